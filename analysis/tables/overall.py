"""SparCL against each rival: the question of the suite in one row per rival."""

from __future__ import annotations

from analysis import frames, statistics
from analysis.configurations import configurations
from analysis.frames import Results
from analysis.rivals import DENSE, rivals
from analysis.tables.columns import SEEDS, missing_of
from analysis.typeset import Column, Row, Table

METRICS = {"class_il": "Class-IL", "task_il": "Task-IL", "learning_class_il": "Learning accuracy"}


def table(results: Results) -> Table:
    """SparCL against each rival, averaged over the settings that both have."""
    pool = configurations(frames.main_rows(results.frame))
    found = rivals(pool)
    compared_rows = [c for rival in found for pair in rival.pairs for c in pair]
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
    missing = missing_of(compared_rows or pool)
    return Table("overall", "SparCL against each rival, over all settings", columns, made, notes, missing)
