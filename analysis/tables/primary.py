"""SparCL against its rivals, the planned contrasts first: the question of the suite in one row per contrast."""

from __future__ import annotations

from typing import Any

from analysis import regime
from analysis.configurations import missing_of, plain
from analysis.contrasts import METRICS, analysis_of, compared, findings
from analysis.frames import Results
from analysis.tables.columns import SEEDS
from analysis.tables.comparison import conditions_note
from analysis.typeset import Column, Row, Table

SHOWN = {**METRICS, "learning_class_il": "Learning accuracy"}

FRESH = (
    Column("fresh", "Fresh seeds", "difference", "points"), Column("fresh_p", "Fresh: p", "p"),
    Column("fresh_p_within", "Fresh: p, within", "p"),
    Column("fresh_verdict", "Fresh: verdict"), Column("fresh_n", "Fresh: n", "integer"),
)  # fmt: skip
FRESH_NOTE = (
    "Fresh: the seeds from {since} on by themselves, tested and corrected in the same way. They were added when the "
    "results of those before them had been seen, so what all seeds show together rests in part on having looked."
)


def table(results: Results) -> Table:
    """The planned contrasts and the exploratory ones, averaged over the settings that both sides have."""
    analysis, found = analysis_of(results), findings(results)
    since = results.plan.config.get("fresh_from")
    shown = [*SHOWN, "fresh"] if since else [*SHOWN]
    metric, margin = analysis["metric"], analysis["smallest_difference"]
    others = [key for key in SHOWN if key != metric]
    made = []
    for finding in found:
        contrast, paired = finding.contrast, finding.paired
        values: dict[str, Any] = {
            "contrast": finding.name, "first": contrast.first, "second": contrast.second,
            "planned": contrast.is_planned, "settings": len(contrast.pairs), "below": contrast.below(metric),
            metric: paired, f"{metric}_sd": paired.sd, "p": paired.p, "p_corrected": finding.p,
            "p_within": finding.p_within, "excluded": finding.excluded, "verdict": finding.verdict,
            "flops": contrast.flops(), "n": paired.n,
        }  # fmt: skip
        values |= {other: contrast.pooled(other) for other in others}
        if fresh := finding.fresh:
            of_them = fresh.paired
            values |= {
                "fresh": of_them, "fresh_p": fresh.p, "fresh_p_within": fresh.p_within,
                "fresh_verdict": fresh.verdict, "fresh_n": of_them.n,
            }  # fmt: skip
        for key in shown:
            one = values[key]
            values |= {f"{key}_diff": one.mean, f"{key}_ci_low": one.ci_low, f"{key}_ci_high": one.ci_high}
        made.append(Row(values, "planned" if contrast.is_planned else "exploratory"))
    numbers = ("diff", "ci_low", "ci_high")
    columns = [
        Column("contrast", "Difference"), Column("planned", "Planned", "flag"),
        Column("settings", "Settings", "integer"), Column(metric, SHOWN[metric], "difference", "points"),
        Column("p_corrected", "p", "p"), Column("p_within", f"p, within {margin:g} points", "p"),
        Column("verdict", "Verdict"), Column("excluded", "Excluded"),
        Column("below", "Lower in", "integer", "settings"), *(FRESH if since else ()),
        *(Column(key, SHOWN[key], "difference", "points") for key in others),
        Column("flops", "FLOPs, second / first", "ratio", digits=2),
        *(Column(f"{key}_{number}", "", "number", csv_only=True) for key in shown for number in numbers),
        *(Column(key, "", csv_only=True) for key in ("first", "second")),
        *(Column(key, "", "number", csv_only=True) for key in (f"{metric}_sd", "p")),
        SEEDS,
    ]  # fmt: skip
    is_planned = results.plan.document["analysis"] is not None
    title = "Primary analysis: the planned contrasts, and other rivals" if is_planned else "SparCL against each rival"
    notes = [
        *regime.notes(results),
        "Settings: learner, buffer and sparsity, the same on both sides; the dense learner has no sparsity and stands "
        "against each. Differences are averaged over the settings within a seed; the interval (95 %, t) and p (paired "
        "t-test) are over the seeds' averages.",
        _correction(is_planned, analysis["alpha"]),
        f"p, within {margin:g} points: two one-sided tests against a difference of {margin:g} points either way, "
        f"corrected in the same way. Verdict: higher, lower, within {margin:g} points where the corrected p is below "
        f"{analysis['alpha']:g}; not told apart is not the same as equal. Excluded: which of no difference "
        f"(by the 95 % interval), a gain and a loss of {margin:g} points (by the 90 % one, which belongs to two "
        "one-sided tests at 0.05) are outside it, uncorrected.",
        *([FRESH_NOTE.format(since=since)] if since else []),
        "Learning accuracy: Class-IL accuracy on each task right after training it, mean over tasks. FLOPs: executed, "
        "geometric mean over settings.",
        *conditions_note(c for c in plain(results) if c.is_sparse_training or c.method == c.learner),
    ]
    return Table("primary", title, columns, made, notes, missing_of(compared(results)))


def _correction(is_planned: bool, alpha: float) -> str:
    """Return the note that says which rows confirm, and how p is corrected."""
    if not is_planned:
        return (
            "No analysis was planned for this matrix: all rows are exploratory, p with false-discovery-rate control "
            "(Benjamini and Hochberg) over the rows."
        )
    return (
        "Planned: named by the matrix's analysis (docs/protocol.md says of some what had been seen); p is "
        f"Holm-corrected over these rows alone (those that were run), level {alpha:g}. The other rows are exploratory, "
        "p with false-discovery-rate control (Benjamini and Hochberg) over them."
    )
