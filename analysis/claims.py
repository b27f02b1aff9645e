"""What is asked of this matrix, by the paper's claims and by its own plan, and what it measured, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis import frames, gain, protocols, statistics, timing
from analysis.configurations import Configuration, configurations, dense_of, flops_ratio, plain
from analysis.contrasts import (
    DENSE,
    HIGHER,
    LOWER,
    METRICS,
    NOT_TESTED,
    NOT_TOLD,
    OURS,
    RELEASED,
    Finding,
    analysis_of,
    findings,
    pooled,
    verdict,
)
from analysis.frames import Results
from analysis.statistics import Paired
from analysis.typeset import TIMES, difference, fixed, p_equals
from sparcl.groups import budgets

BY_TASK_IL = {"regularization", "isolation", "sibling", "agem", "agem_r"}
"""Families and methods whose papers are about Task-IL (A-GEM knows the task of an image)."""

GAIN = "config/split-digits-gain.yaml (its committed table: results/reference/split-digits-gain/tables/gain.md)"
"""Where the parts of a published gain are measured."""

FEW = 8
"""Exceptions that an answer names itself; more stand among its comparisons only."""
LEDGERS = {"executed": "flops_executed", "by the paper's count": "flops_paper"}


@dataclass(frozen=True)
class Claim:
    """One claim under test, or one question.

    Attributes:
        claim: what the paper says (of a question: what is asked).
        answer: what was measured, in a sentence or two.
        details: one line per comparison behind it.
        highlights: lines that belong to the answer itself.
    """

    claim: str
    answer: str
    details: Sequence[str] = ()
    highlights: Sequence[str] = ()
    kind: str = "Claim"


@dataclass(frozen=True)
class Comparison:
    """An exploratory paired comparison with its p, false-discovery rate controlled, and its verdict."""

    what: str
    paired: Paired
    p_fdr: float

    @property
    def verdict(self) -> str:
        return verdict(self.paired.mean, self.p_fdr)

    def line(self) -> str:
        """Return the comparison as one line of text: difference in points, verdict, p, n."""
        text = f"{self.what}: {difference(self.paired)} points"
        return f"{text}, {self.verdict} ({p_equals(self.p_fdr)}, n = {self.paired.n})"


def compare_all(pairs: Iterable[tuple[str, Configuration, Configuration]], metric: str) -> list[Comparison]:
    """Paired differences of ``metric``, first minus second; false-discovery rate controlled over all of them."""
    return _corrected([(what, statistics.compare(a.seeds(metric), b.seeds(metric))) for what, a, b in pairs])


def _corrected(found: Sequence[tuple[str, Paired]]) -> list[Comparison]:
    adjusted = statistics.fdr([paired.p for _, paired in found])
    return [Comparison(what, paired, p) for (what, paired), p in zip(found, adjusted, strict=True) if paired.n]


def tally(comparisons: Sequence[Comparison]) -> str:
    """``12 comparisons: higher in 3, lower in 1, not told apart in 8``."""
    verdicts = [c.verdict for c in comparisons]
    parts = [f"{word} in {verdicts.count(word)}" for word in (HIGHER, LOWER, NOT_TOLD, NOT_TESTED) if word in verdicts]
    return f"{len(verdicts)} comparison{'s' if len(verdicts) != 1 else ''}: {', '.join(parts)}"


def _where(c: Configuration) -> str:
    level = f" at {c.sparsity:.2f}" if c.sparsity else ""
    return f"{c.label}{level}" + (f", buffer {c.buffer}" if c.buffer else "")


def claims(results: Results) -> list[Claim]:
    """The claims that this matrix can speak to, and its own questions, answered."""
    pool = plain(results)
    ours = [c for c in pool if c.bundle == OURS and c.n and c.sparsity > 0]
    found, metric = findings(results), METRICS[analysis_of(results)["metric"]]
    answers = [
        _planned(found, metric),
        _budgets(results),
        _gain(ours, pool, found, metric, _parts(results)),
        _fewer_flops(ours, pool, results),
        _against_baselines(ours, pool, found, metric),
        _released(found, metric),
        _beats_finetuning(pool),
    ]
    return [answer for answer in answers if answer is not None]


def _planned(contrasts: Sequence[Finding], metric: str) -> Claim | None:
    """The planned contrasts that are no claim's: those without SparCL."""
    own = [c for c in contrasts if c.contrast.is_planned and OURS not in (c.contrast.first, c.contrast.second)]
    return _question("What this matrix was planned to tell.", own, metric)


def _released(contrasts: Sequence[Finding], metric: str) -> Claim | None:
    own = [c for c in contrasts if {c.contrast.first, c.contrast.second} == {OURS, RELEASED}]
    return _question("Does SparCL by its released code differ from SparCL by its paper?", own, metric)


def _question(text: str, contrasts: Sequence[Finding], metric: str) -> Claim | None:
    lines = [c.line() for c in contrasts if c.paired.n]
    answer = f"Measured, {metric}, averaged over the settings within each seed (table primary):"
    return Claim(text, answer, (), lines, "Question") if lines else None


def _budgets(results: Results) -> Claim | None:
    pairs = []
    for group in budgets(results.plan.config):
        rows = [c for c in configurations(frames.in_group(results.frame, group)) if c.n]
        title = results.plan.config["groups"][group].get("title") or group
        for dense in (c for c in rows if not c.sparsity):
            rivals = [c for c in rows if c.sparsity and (c.learner, c.buffer) == (dense.method, dense.buffer)]
            pairs += [(f"{title}: {_where(c)} minus {dense.label}", c, dense) for c in rivals]
    found = compare_all(pairs, "class_il")
    if not found:
        return None
    answer = f"Measured, Class-IL, exploratory (table budget, which says where tasks are not learned): {tally(found)}."
    lines = [c.line() for c in found]
    return Claim("Is sparse and longer better than dense and shorter, at equal FLOPs?", answer, (), lines, "Question")


def _fewer_flops(ours: Sequence[Configuration], pool: Sequence[Configuration], results: Results) -> Claim | None:
    """What is saved and what it costs, by sparsity."""
    steps: dict[float, list[float]] = {}
    for timed in timing.read(results)[1]:
        if timed.configuration.bundle == OURS and timed.row["threads"] == 1:
            steps.setdefault(timed.configuration.sparsity, []).append(timed.time("step"))
    lines, details = [], []
    for level in sorted({c.sparsity for c in ours}):
        own = [c for c in ours if c.sparsity == level]
        saved = {name: [flops_ratio(c, pool, ledger) for c in own] for name, ledger in LEDGERS.items()}
        parts = [f"{_times(ratios)} fewer FLOPs {name}" for name, ratios in saved.items() if _times(ratios)]
        if level in steps:
            parts.append(f"{_times(steps[level])} less time a step (one thread)")
        if not parts:
            continue
        pairs = [(c.seeds("class_il"), dense.seeds("class_il")) for c in own if (dense := dense_of(c, pool))]
        cost = pooled(pairs)
        price = f"; {difference(cost)} points of Class-IL (n = {cost.n})" if cost.n else ""
        lines.append(f"at {level:.2f} {', '.join(parts)}{price}")
        for index, c in enumerate(own):
            each = [f"{_times([ratios[index]])} {name}" for name, ratios in saved.items() if _times([ratios[index]])]
            details.append(f"{_where(c)}: {', '.join(each)}")
    if not lines:
        return None
    answer = (
        "Measured, SparCL against its dense learner: what is saved, as a range over the settings, and what it costs, "
        "averaged over them within each seed."
        if any(dense_of(c, pool) for c in ours)
        else "Counted of SparCL's own runs, against the same steps dense: no dense learner was run beside it."
    )
    return Claim(f"Up to 23{TIMES} fewer training FLOPs than the dense method.", answer, details, lines)


def _times(ratios: Iterable[float]) -> str:
    """Return ratios as a range ("9.2 to 10.1" times); empty without any."""
    texts = list(dict.fromkeys(fixed(ratio, 1) for ratio in sorted(r for r in ratios if not math.isnan(r))))
    return " to ".join(texts[:1] + texts[1:][-1:]) + TIMES if texts else ""


def _gain(
    ours: Sequence[Configuration], pool: Sequence[Configuration], contrasts: Sequence[Finding], metric: str,
    parts: Sequence[Comparison],
) -> Claim | None:  # fmt: skip
    averages = [c for c in contrasts if {c.contrast.first, c.contrast.second} == {OURS, DENSE} and c.paired.n]
    pairs = [(f"{_where(c)} against {dense.label}", c, dense) for c in ours if (dense := dense_of(c, pool))]
    pairs, best = pairs if _add_something(averages) else [], _best_of_each(ours, pool)
    found, tops = compare_all([*pairs, *best], "class_il"), {what for what, *_ in best}
    singly = [c for c in found if c.what not in tops]
    answers = []
    if averages:
        lines = "; ".join(c.line() for c in averages)
        answers.append(f"{metric}, averaged over the settings within each seed (table primary), {lines}")
    if singly:
        answers.append(
            "one setting at a time, Class-IL, SparCL minus the dense method of the same learner and buffer, "
            f"exploratory: {tally(singly)}"
        )
    answers += [f"{c.line()}, exploratory, both chosen by their means" for c in found if c.what in tops]
    if not (answers or parts):
        return None
    answers.append(
        "what the gain is made of (table gain), exploratory, Class-IL:"
        if parts
        else f"all by one loss and start of replay, which the published {_others(ours)} rows do not share: what such a "
        f"difference is made of is measured by {GAIN}"
    )
    return Claim(
        "Up to +1.7 points of accuracy over the dense state of the art.",
        "Measured: " + ". ".join(text[0].upper() + text[1:] if index else text for index, text in enumerate(answers))
        + ("" if parts else "."),
        [c.line() for c in singly],
        [c.line() for c in parts],
    )  # fmt: skip


def _others(ours: Sequence[Configuration]) -> str:
    """Return which of the published rows have another protocol than these."""
    return "SparCL" if all(protocols.of(c.params) == protocols.DER for c in ours) else "dense"


def _add_something(contrasts: Sequence[Finding]) -> bool:
    """Whether a look at one setting at a time is another one than the contrasts themselves."""
    return not contrasts or any(len(c.contrast.pairs) > 1 for c in contrasts)


def _best_of_each(
    ours: Sequence[Configuration], pool: Sequence[Configuration]
) -> list[tuple[str, Configuration, Configuration]]:
    """Return, for each buffer, the best SparCL and the best dense method, where that is not SparCL's own learner."""
    pairs = []
    for buffer in sorted({c.buffer for c in ours}):
        top = max((c for c in ours if c.buffer == buffer), key=_class_il)
        dense = [c for c in pool if c.n and not c.sparsity and c.buffer == buffer and c.method == c.learner != "joint"]
        dense = [c for c in dense if c.conditions == top.conditions and not c.task_il_only]
        if dense and (best := max(dense, key=_class_il)).method not in {c.learner for c in ours}:
            what = f"the best dense method with buffer {buffer} is {best.label}, {fixed(_class_il(best), 1)} %: "
            pairs.append((f"{what}{_where(top)} minus it", top, best))
    return pairs


def _class_il(c: Configuration) -> float:
    value = c.mean("class_il")
    return -math.inf if math.isnan(value) else value


def _parts(results: Results) -> list[Comparison]:
    """Return the effects of table gain that say what a gain over dense training is made of, tested as there."""
    found = [
        Comparison(f"{e.name} ({e.where})" if e.where else e.name, e.found["class_il"], e.p_fdr)
        for e in gain.effects(results, ["class_il"])
        if e.kind == "main" or (e.kind == "comparison" and e.name.endswith(f"minus {DENSE}"))
    ]
    return [comparison for comparison in found if comparison.paired.n]


def _against_baselines(
    ours: Sequence[Configuration], pool: Sequence[Configuration], contrasts: Sequence[Finding], metric: str
) -> Claim | None:
    sparse = [c for c in pool if c.n and c.sparsity > 0 and c.is_sparse_training]
    baselines = [c for c in sparse if c.bundle not in (OURS, RELEASED)]
    pairs = [(f"{_where(a)} against {b.label}", a, b) for a in ours for b in baselines if a.place == b.place]
    averages = [
        c for c in contrasts
        if OURS in (c.contrast.first, c.contrast.second) and c.paired.n
        and not {DENSE, RELEASED} & {c.contrast.first, c.contrast.second}
    ]  # fmt: skip
    found = compare_all(pairs, "class_il") if _add_something(averages) else []
    if not (averages or found):
        return None
    averaged = f"Measured, {metric}, averaged over the settings within each seed (table primary), as below."
    singly = (
        " One setting at a time, Class-IL, SparCL minus the baseline on the same learner, buffer and sparsity, "
        f"exploratory: {tally(found)}."
    )
    return Claim(
        "Better than sparse-training baselines such as RigL and SNIP at the same sparsity.",
        averaged + (singly if found else ""),
        [c.line() for c in found],
        [c.line() for c in averages],
    )


def _is_judged_by_task_il(c: Configuration) -> bool:
    return c.task_il_only or c.family in BY_TASK_IL or c.method in BY_TASK_IL


def _beats_finetuning(pool: Sequence[Configuration]) -> Claim | None:
    bottom = next((c for c in pool if c.method == "finetune" and c.n), None)
    if bottom is None:
        return None
    pairs = []
    others = [c for c in pool if c.n and c.method not in ("finetune", "joint") and c.conditions == bottom.conditions]
    for c in sorted(others, key=_is_judged_by_task_il):
        metric, words = ("task_il", "Task-IL") if _is_judged_by_task_il(c) else ("class_il", "Class-IL")
        pairs.append((f"{words}, {_where(c)}", statistics.compare(c.seeds(metric), bottom.seeds(metric))))
    comparisons = _corrected(pairs)
    if not comparisons:
        return None
    tested = [c for c in comparisons if c.verdict != NOT_TESTED]
    exceptions = [f"{c.what.partition(', ')[2]} ({c.verdict})" for c in tested if c.verdict != HIGHER]
    tail = f" Not shown to be higher: {'; '.join(exceptions)}." if 0 < len(exceptions) <= FEW else ""
    above = sum(c.paired.mean > 0 for c in comparisons)
    return Claim(
        "Every method beats fine-tuning (Class-IL for replay methods, Task-IL for the others).",
        f"Measured against fine-tuning on the same seeds, exploratory: {tally(comparisons)}; the mean is above it in "
        f"{above}.{tail}",
        [c.line() for c in comparisons],
    )
