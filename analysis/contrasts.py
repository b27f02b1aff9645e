"""The planned contrasts of a matrix, and SparCL against every other rival, each over all settings that both sides have.

One comparison per setting has little power with few seeds, and many of them need a correction. Here the differences are
averaged over the settings first, seed by seed, and the seeds' averages are tested: one paired test per contrast. The
plan says which contrasts were planned (``analysis`` of a matrix); these are corrected among themselves, by Holm. All
others are exploratory, with false-discovery-rate control (Benjamini and Hochberg).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean

from analysis import statistics
from analysis.configurations import Configuration, dense_of, plain
from analysis.frames import Results
from analysis.plan import Analysis
from analysis.statistics import Paired
from analysis.typeset import DASH, difference, p_equals

DENSE = "dense"
"""What contrasts call a learner without policies."""
OURS = "sparcl"
"""The bundle that is compared with every rival, planned or not."""
RELEASED = "sparcl-released"
"""SparCL as its released code has it: no rival of SparCL."""
METRICS = {"class_il": "Class-IL", "task_il": "Task-IL"}
"""What tables and answers call the metrics that a contrast may be of."""
UNPLANNED = Analysis(
    metric="class_il", smallest_difference=2.0, alpha=statistics.ALPHA, power=0.8, correction="holm", contrasts=[]
)
"""What exploratory contrasts go by in a matrix that names no analysis."""
HIGHER, LOWER, NOT_TOLD, NOT_TESTED = "higher", "lower", "not told apart", "not tested"


def verdict(mean: float, p: float) -> str:
    """Return what an exploratory test of a difference says, by its corrected ``p`` (nan: there was no test)."""
    if math.isnan(p):
        return NOT_TESTED
    return NOT_TOLD if p >= statistics.ALPHA else HIGHER if mean > 0 else LOWER


@dataclass(frozen=True)
class Contrast:
    """Two bundles of policies, and the settings that both have: pairs of (first, second).

    Attributes:
        first, second: names of bundles ("sparcl", "rigl"), or :data:`DENSE`.
        labels: what tables call the two ("SparCL", "RigL").
        is_planned: whether the matrix's analysis names it.
    """

    first: str
    second: str
    labels: tuple[str, str]
    is_planned: bool
    pairs: tuple[tuple[Configuration, Configuration], ...]

    def pooled(self, metric: str, since: int = 0) -> Paired:
        """Compare by the seeds' averages of the difference over all settings, on the seeds that all settings have; with
        ``since`` on those seeds from it on."""
        return pooled([(one.seeds(metric), other.seeds(metric)) for one, other in self.pairs], since)

    def below(self, metric: str) -> int:
        """Return in how many settings the first one's mean is the lower one."""
        return sum(statistics.compare(one.seeds(metric), other.seeds(metric)).mean < 0 for one, other in self.pairs)

    def flops(self) -> float:
        """Return the second one's executed training FLOPs over the first one's, geometric mean over settings."""
        ratios = [other.mean("flops_executed") / one.mean("flops_executed") for one, other in self.pairs]
        return geometric_mean(ratios) if ratios else math.nan


@dataclass(frozen=True)
class Finding:
    """A contrast with its test.

    Attributes:
        paired: differences of the seeds' averages, in points.
        p: of the paired t-test; p_within: of equivalence within ``margin`` points; both corrected.
        alpha: level of the verdict.
        fresh: the same on the fresh seeds alone, where the matrix has any (``fresh_from``).
    """

    contrast: Contrast
    paired: Paired
    p: float
    p_within: float
    margin: float
    alpha: float
    fresh: Finding | None = None

    @property
    def verdict(self) -> str:
        """In the words "higher", "lower", "within 2 points", "higher, but within 2 points", "not told apart", ..."""
        if math.isnan(self.p):
            return NOT_TESTED
        told = (HIGHER if self.paired.mean > 0 else LOWER) if self.p < self.alpha else ""
        within = f"within {self.margin:g} points" if self.p_within < self.alpha else ""
        return ", but ".join(filter(None, (told, within))) or NOT_TOLD

    @property
    def p_of_verdict(self) -> float:
        """The corrected p of what the verdict says: of equivalence if it says no more, else of a difference."""
        return self.p_within if self.p_within < self.alpha <= self.p else self.p

    @property
    def excluded(self) -> str:
        """Which of no difference, and a gain and a loss of ``margin`` points, are outside the interval.

        The first by the 95 % interval, as the test of a difference; the others by the 90 % one, as two one-sided tests.
        """
        low, high = self.paired.ci_low, self.paired.ci_high
        if math.isnan(low):
            return DASH
        size = f"of {self.margin:g} points"
        narrower = statistics.t_quantile(self.paired.n, 0.90) / statistics.t_quantile(self.paired.n, 0.95)
        least, most = (self.paired.mean + narrower * (end - self.paired.mean) for end in (low, high))
        outside = {
            "no difference": not low <= 0 <= high, f"a gain {size}": most < self.margin,
            f"a loss {size}": least > -self.margin,
        }  # fmt: skip
        return "; ".join(text for text, is_outside in outside.items() if is_outside) or "none of them"

    @property
    def name(self) -> str:
        """``SparCL minus RigL``."""
        return " minus ".join(self.contrast.labels)

    def line(self) -> str:
        """Return the finding as one line of text: difference in points, verdict, corrected p, n."""
        fresh = f"; fresh seeds alone: {self.fresh._numbers()}" if self.fresh and self.fresh.paired.n else ""
        return f"{self.name}: {self._numbers()}{fresh}"

    def _numbers(self) -> str:
        kind = "" if self.contrast.is_planned else ", exploratory"
        numbers = f"{p_equals(self.p_of_verdict)}, n = {self.paired.n}{kind}"
        return f"{difference(self.paired)} points, {self.verdict} ({numbers})"


def pooled(pairs: Sequence[tuple[dict[int, float], dict[int, float]]], since: int = 0) -> Paired:
    """Compare two methods over several settings, with seeds as the unit of replication.

    Args:
        pairs: per setting, seed to value of either method; nan values are left out.
        since: the first seed to look at.
    """
    finite = [tuple({s: v for s, v in side.items() if not math.isnan(v)} for side in pair) for pair in pairs]
    if not finite:
        return Paired(0)
    seeds = {seed for seed in set.intersection(*(set(side) for pair in finite for side in pair)) if seed >= since}
    means = [{seed: sum(pair[side][seed] for pair in finite) / len(finite) for seed in seeds} for side in (0, 1)]
    return statistics.compare(means[0], means[1])


def analysis_of(results: Results) -> Analysis:
    """Return the planned analysis, or what exploratory contrasts go by without one."""
    return results.plan.document["analysis"] or UNPLANNED


def contrasts(results: Results) -> list[Contrast]:
    """Return the planned contrasts in their order, then SparCL against the dense learner and every other rival."""
    pool = plain(results)
    planned = [(contrast["first"], contrast["second"]) for contrast in analysis_of(results)["contrasts"]]
    rivals = dict.fromkeys(c.bundle for c in pool if c.sparsity > 0 and c.is_sparse_training and c.bundle != OURS)
    named = {frozenset(sides) for sides in planned}
    labels = {DENSE: DENSE, **results.plan.bundles}
    others = [(OURS, rival) for rival in (DENSE, *rivals) if OURS in labels and frozenset((OURS, rival)) not in named]
    made = [_contrast(*sides, True, pool, labels) for sides in planned]
    made += [_contrast(*sides, False, pool, labels) for sides in others]
    return [contrast for contrast in made if contrast.is_planned or contrast.pairs]


def _contrast(
    first: str, second: str, is_planned: bool, pool: Sequence[Configuration], labels: Mapping[str, str]
) -> Contrast:
    done = [c for c in pool if c.n and (c.sparsity > 0 or not c.policies["sparsity"])]
    if first == DENSE:
        pairs = [(dense, c) for c in done if c.bundle == second and (dense := dense_of(c, done))]
    elif second == DENSE:
        pairs = [(c, dense) for c in done if c.bundle == first and (dense := dense_of(c, done))]
    else:
        sides = [{c.place: c for c in done if c.bundle == name} for name in (first, second)]
        pairs = [(c, sides[1][setting]) for setting, c in sides[0].items() if setting in sides[1]]
    return Contrast(first, second, (labels[first], labels[second]), is_planned, tuple(pairs))


def compared(results: Results, planned_only: bool = False) -> list[Configuration]:
    """Return the configurations that contrasts are about, also those without a finished cell."""
    pool = plain(results)
    named = {side for one in analysis_of(results)["contrasts"] for side in (one["first"], one["second"])}
    sparse = [c for c in pool if c.bundle in named or (c.sparsity > 0 and c.is_sparse_training and not planned_only)]
    return [*sparse, *{dense.key: dense for c in sparse if (dense := dense_of(c, pool))}.values()]


def findings(results: Results) -> list[Finding]:
    """Test the contrasts in the metric of the analysis: the planned ones, Holm-corrected, then the exploratory ones."""
    named, analysis, since = contrasts(results), analysis_of(results), results.plan.config.get("fresh_from")
    found = _tested(named, analysis)
    if since is None:
        return found
    return [replace(whole, fresh=later) for whole, later in zip(found, _tested(named, analysis, since), strict=True)]


def _tested(named: Sequence[Contrast], analysis: Analysis, since: int = 0) -> list[Finding]:
    alpha, margin = analysis["alpha"], analysis["smallest_difference"]
    found: list[Finding] = []
    for is_planned, correct in ((True, statistics.holm), (False, statistics.fdr)):
        chosen = [contrast for contrast in named if contrast.is_planned == is_planned]
        tested = [contrast.pooled(analysis["metric"], since) for contrast in chosen]
        p_values = correct([paired.p for paired in tested])
        within = correct([statistics.equivalence_p(paired, margin) for paired in tested])
        make = functools.partial(Finding, margin=margin, alpha=alpha)
        found += map(make, chosen, tested, p_values, within)
    return found
