"""What the paper claims, and what this matrix measured, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis import gain, statistics
from analysis.configurations import Configuration, dense_of, flops_ratio, plain
from analysis.contrasts import DENSE, HIGHER, LOWER, NOT_TESTED, NOT_TOLD, OURS, Finding, findings
from analysis.frames import Results
from analysis.gain import Effect
from analysis.statistics import ALPHA, Paired
from analysis.typeset import TIMES, difference, fixed, p_equals

BY_TASK_IL = {"regularization", "isolation", "sibling", "agem", "agem_r"}
"""Families and methods whose papers are about Task-IL (A-GEM knows the task of an image)."""

GAIN = "config/split-digits-gain.yaml (its committed table: results/reference/split-digits-gain/tables/gain.md)"
"""Where the parts of a published gain are measured."""

FEW = 8
"""Exceptions that an answer names itself; more stand among its comparisons only."""


@dataclass(frozen=True)
class Claim:
    """One claim under test.

    Attributes:
        claim: what the paper says.
        answer: what was measured, in a sentence or two.
        details: one line per comparison behind it.
        highlights: lines that belong to the answer itself.
    """

    claim: str
    answer: str
    details: Sequence[str] = ()
    highlights: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """An exploratory paired comparison with its p, false-discovery rate controlled, and its verdict."""

    what: str
    paired: Paired
    p_fdr: float

    @property
    def verdict(self) -> str:
        if self.paired.n < 2 or math.isnan(self.p_fdr):
            return NOT_TESTED
        if self.p_fdr >= ALPHA:
            return NOT_TOLD
        return HIGHER if self.paired.mean > 0 else LOWER

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
    """The claims that this matrix can speak to, answered."""
    pool = plain(results)
    ours = [c for c in pool if c.bundle == OURS and c.n and c.sparsity > 0]
    found = findings(results)
    answers = [
        _gain(ours, pool, found, _parts(results)), _fewer_flops(ours, pool), _against_baselines(ours, pool, found),
        _beats_finetuning(pool),
    ]  # fmt: skip
    return [answer for answer in answers if answer is not None]


def _fewer_flops(ours: Sequence[Configuration], pool: Sequence[Configuration]) -> Claim | None:
    best = {}
    for ledger in ("flops_paper", "flops_executed"):
        ratios = [(flops_ratio(c, pool, ledger), c) for c in ours]
        ratios = [(ratio, c) for ratio, c in ratios if not math.isnan(ratio)]
        if ratios:
            best[ledger] = max(ratios, key=lambda pair: pair[0])
    if "flops_executed" not in best:
        return None
    names = {"flops_paper": "by the paper's count", "flops_executed": "by what the runs executed"}
    texts = [f"{fixed(ratio, 1)}{TIMES} {names[ledger]} ({_where(c)})" for ledger, (ratio, c) in best.items()]
    details = [
        f"{_where(c)}: {fixed(flops_ratio(c, pool, 'flops_paper'), 1)}{TIMES} paper, "
        f"{fixed(flops_ratio(c, pool, 'flops_executed'), 1)}{TIMES} executed"
        for c in ours
    ]
    return Claim(
        f"Up to 23{TIMES} fewer training FLOPs than the dense method.",
        f"Measured: up to {' and '.join(texts)}. FLOPs are counted, not timed.",
        details,
    )


def _gain(
    ours: Sequence[Configuration], pool: Sequence[Configuration], contrasts: Sequence[Finding], parts: Sequence[Effect]
) -> Claim | None:
    pairs = [(f"{_where(c)} against {dense.label}", c, dense) for c in ours if (dense := dense_of(c, pool))]
    found = compare_all(pairs, "class_il")
    averages = [c.line() for c in contrasts if {c.contrast.first, c.contrast.second} == {OURS, DENSE} and c.paired.n]
    answers = []
    if averages:
        answers.append(f"averaged over the settings within each seed (table primary), {'; '.join(averages)}")
    if found:
        answers.append(
            "one setting at a time, Class-IL, SparCL minus the dense method of the same learner and buffer, "
            f"exploratory: {tally(found)}"
        )
    if not (answers or parts):
        return None
    answers.append(
        "what the gain is made of (table gain), exploratory, in points of Class-IL:"
        if parts
        else "all by one loss and start of replay, which the published dense rows do not share: what such a difference "
        f"is made of is measured by {GAIN}"
    )
    return Claim(
        "Up to +1.7 points of accuracy over the dense state of the art.",
        "Measured: " + ". ".join(text[0].upper() + text[1:] if index else text for index, text in enumerate(answers))
        + ("" if parts else "."),
        [c.line() for c in found],
        [f"{' '.join(filter(None, (part.name, part.where and f'({part.where})')))}: "
         f"{difference(part.found['class_il'])} (n = {part.found['class_il'].n})" for part in parts],
    )  # fmt: skip


def _parts(results: Results) -> list[Effect]:
    """Return the effects that say what a gain over dense training is made of."""
    found = gain.effects(results, ["class_il"])
    return [e for e in found if e.kind == "main" or (e.kind == "comparison" and e.name.endswith(f"minus {DENSE}"))]


def _against_baselines(
    ours: Sequence[Configuration], pool: Sequence[Configuration], contrasts: Sequence[Finding]
) -> Claim | None:
    baselines = [c for c in pool if c.n and c.sparsity > 0 and c.is_sparse_training and c.bundle != OURS]
    pairs = [(f"{_where(a)} against {b.label}", a, b) for a in ours for b in baselines if a.place == b.place]
    found = compare_all(pairs, "class_il")
    if not found:
        return None
    return Claim(
        "Better than sparse-training baselines such as RigL and SNIP at the same sparsity.",
        "Measured, averaged over the settings within each seed (table primary), as below. One setting at a time, "
        "Class-IL, SparCL minus the baseline on the same learner, buffer and sparsity, exploratory: "
        f"{tally(found)}.",
        [c.line() for c in found],
        [c.line() for c in contrasts if DENSE not in (c.contrast.first, c.contrast.second) and c.paired.n],
    )


def _is_judged_by_task_il(c: Configuration) -> bool:
    return c.task_il_only or c.family in BY_TASK_IL or c.method in BY_TASK_IL


def _beats_finetuning(pool: Sequence[Configuration]) -> Claim | None:
    bottom = next((c for c in pool if c.method == "finetune" and c.n), None)
    if bottom is None:
        return None
    pairs = []
    for c in sorted((c for c in pool if c.n and c.method not in ("finetune", "joint")), key=_is_judged_by_task_il):
        metric, words = ("task_il", "Task-IL") if _is_judged_by_task_il(c) else ("class_il", "Class-IL")
        pairs.append((f"{words}, {_where(c)}", statistics.compare(c.seeds(metric), bottom.seeds(metric))))
    comparisons = _corrected(pairs)
    if not comparisons:
        return None
    exceptions = [f"{c.what.partition(', ')[2]} ({c.verdict})" for c in comparisons if c.verdict != HIGHER]
    tail = f" Not shown to be higher: {'; '.join(exceptions)}." if 0 < len(exceptions) <= FEW else ""
    above = sum(c.paired.mean > 0 for c in comparisons)
    return Claim(
        "Every method beats fine-tuning (Class-IL for replay methods, Task-IL for the others).",
        f"Measured against fine-tuning on the same seeds: {tally(comparisons)}; the mean is above it in {above}.{tail}",
        [c.line() for c in comparisons],
    )
