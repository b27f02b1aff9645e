"""SparCL against each rival over all settings they share: the question of the suite in one row per rival.

One comparison per setting has little power with few seeds, and many of them need a correction. Here the differences are
averaged over the settings first, seed by seed, and the seeds' averages are tested: one paired test per rival.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import frames, statistics
from analysis.frames import Results
from analysis.statistics import Paired
from analysis.tables import SEEDS, Configuration, configurations, dense_of, is_sparse_training
from analysis.typeset import Column, Row, Table

METRICS = {"class_il": "Class-IL", "task_il": "Task-IL", "learning_class_il": "Learning accuracy"}
DENSE = "dense"


@dataclass(frozen=True)
class Rival:
    """What SparCL is compared with, and the settings that both have: pairs of (SparCL, rival).

    Attributes:
        name: :data:`DENSE`, or the rival's label without its learner's ("RigL").
    """

    name: str
    pairs: tuple[tuple[Configuration, Configuration], ...]

    def pooled(self, metric: str) -> Paired:
        """Compare by the seeds' averages of the difference over all settings, on the seeds that all settings have."""
        return pooled([(own.seeds(metric), other.seeds(metric)) for own, other in self.pairs])

    def below(self, metric: str = "class_il") -> int:
        """Return in how many settings SparCL's mean is the lower one."""
        return sum(own.mean(metric) < other.mean(metric) for own, other in self.pairs)

    def flops(self) -> float:
        """Return the rival's executed training FLOPs over SparCL's, geometric mean over settings."""
        ratios = [other.mean("flops_executed") / own.mean("flops_executed") for own, other in self.pairs]
        return math.exp(sum(map(math.log, ratios)) / len(ratios))


def pooled(pairs: Sequence[tuple[dict[int, float], dict[int, float]]]) -> Paired:
    """Compare two methods over several settings, with seeds as the unit of replication.

    Args:
        pairs: per setting, seed to value of either method; nan values are left out.
    """
    finite = [tuple({s: v for s, v in side.items() if not math.isnan(v)} for side in pair) for pair in pairs]
    if not finite:
        return Paired(0)
    seeds = set.intersection(*(set(side) for pair in finite for side in pair))
    means = [{seed: sum(pair[side][seed] for pair in finite) / len(finite) for seed in seeds} for side in (0, 1)]
    return statistics.compare(means[0], means[1])


def rivals(pool: Sequence[Configuration]) -> list[Rival]:
    """Return the dense learner and every other sparse-training method, each with the settings it shares with SparCL."""
    pool = [c for c in pool if c.n and not c.setting]
    ours = [c for c in pool if c.family == "sparcl" and c.sparsity > 0]
    dense = tuple((c, other) for c in ours if (other := dense_of(c, pool)) is not None)
    found: dict[str, list[tuple[Configuration, Configuration]]] = {}
    for other in pool:
        if other.sparsity == 0 or other.family == "sparcl" or not is_sparse_training(other):
            continue
        for own in ours:
            if (own.stream, own.learner, own.buffer, own.sparsity) == (
                other.stream, other.learner, other.buffer, other.sparsity,
            ):  # fmt: skip
                found.setdefault(_bundle_label(other, pool), []).append((own, other))
    made = [Rival(DENSE, dense)] if dense else []
    return made + [Rival(name, tuple(pairs)) for name, pairs in found.items()]


def _bundle_label(c: Configuration, pool: Sequence[Configuration]) -> str:
    learner = next((other.label for other in pool if other.method == c.learner), c.learner)
    return c.label.removesuffix(f"-{learner}")


def overall(results: Results) -> Table | None:
    """SparCL against each rival, averaged over the settings that both have."""
    found = rivals(configurations(frames.main_rows(results.frame)))
    if not found:
        return None
    compared = {metric: [rival.pooled(metric) for rival in found] for metric in METRICS}
    adjusted = statistics.holm([paired.p for paired in compared["class_il"]])
    made = []
    for index, (rival, p) in enumerate(zip(found, adjusted, strict=True)):
        paired = compared["class_il"][index]
        values = {
            "rival": rival.name, "settings": len(rival.pairs), "below": rival.below(), "p_holm": p,
            "p": paired.p, "p_permutation": paired.p_permutation, "hedges_gz": paired.hedges_gz,
            "flops": rival.flops(), "n": paired.n,
        }  # fmt: skip
        for metric in METRICS:
            one = compared[metric][index]
            values |= {metric: one, f"{metric}_diff": one.mean, f"{metric}_ci_low": one.ci_low,
                       f"{metric}_ci_high": one.ci_high}  # fmt: skip
        made.append(Row(values, "dense" if rival.name == DENSE else "sparse"))
    numbers = ("diff", "ci_low", "ci_high")
    columns = [
        Column("rival", "SparCL minus"), Column("settings", "Settings", "integer"),
        Column("class_il", "Class-IL", "difference", "points"), Column("p_holm", "p", "p"),
        Column("below", "SparCL lower in", "integer", "settings"),
        *(Column(metric, METRICS[metric], "difference", "points") for metric in list(METRICS)[1:]),
        Column("flops", "FLOPs over SparCL's", "ratio", digits=2),
        *(Column(f"{metric}_{key}", "", "number", csv_only=True) for metric in METRICS for key in numbers),
        *(Column(key, "", "number", csv_only=True) for key in ("p", "p_permutation", "hedges_gz")),
        SEEDS,
    ]  # fmt: skip
    notes = [
        "Settings: learner, buffer and sparsity, the same for both; the dense learner has no sparsity and stands "
        "against each. Differences are averaged over the settings within a seed; the interval (95 %, t) and p (paired "
        "t-test, Holm-corrected over the rows) are over the seeds' averages.",
        "Learning accuracy: Class-IL accuracy on each task right after training it, mean over tasks. "
        "FLOPs: executed, the rival's over SparCL's, geometric mean.",
    ]
    planned = pd.concat([c.rows for rival in found for pair in rival.pairs for c in pair]).drop_duplicates("path")
    return Table("overall", "SparCL against each rival, over all settings", columns, made, notes,
                 tuple(frames.missing_lines(planned)))  # fmt: skip
