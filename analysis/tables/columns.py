"""Columns and notes that several tables share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.configurations import Configuration, flops_ratio
from analysis.statistics import ALPHA
from analysis.typeset import Column

MEGABYTE = 1e6
COMPARED = {"class_il", "task_il"}
"""Metrics in which a row can be best. In forgetting none can: what was never learned is not forgotten either."""

FORGETTING_NOTE = (
    "Forgetting: mean over all tasks but the last of (highest Class-IL accuracy on the task after any "
    "training task but the last, minus the final one), in points (Chaudhry et al. 2018); the variant that "
    "includes the last row is in the CSV as forgetting_class_il_mammoth. Learning accuracy: mean over tasks of the "
    "Class-IL accuracy on a task right after training it; what was never learned is not forgotten either."
)
FLOPS_NOTE = (
    "Training FLOPs (one multiply-add = 2): executed = what the run did, every replayed batch forward and "
    "backward; paper = the published convention, which charges a replayed batch a forward pass only. "
    "Ratio: FLOPs of the dense method of the same learner over the row's; where the plan has none, the executed "
    "ratio is to the run's own dense count and the paper's is a dash."
)


def spread_note(rows: Sequence[Configuration]) -> str:
    """Return the note that says what stands behind ±."""
    counts = sorted({row.n for row in rows})
    text = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts == [1]:
        return "n = 1 seed: a single run has no deviation, no interval and no test."
    spread = f"Mean ± sample standard deviation over n = {text} seeds."
    return f"{spread} 95 % t-intervals are in the CSV."


def bold_note(rows: Sequence[Configuration], block: str) -> str:
    """Return the note that says what is bold."""
    if max((row.n for row in rows), default=0) < 2:
        return "No row is bold: fewer than 2 seeds tell nothing apart."
    return (
        f"Bold: the best within {block}, where a paired t-test tells it from every other row there (Holm over the "
        f"block, {ALPHA:.2f}); elsewhere no row is bold. Joint training does not compete."
    )


def reference_note(text: str) -> str:
    """Return the note on differences to the reference method, called ``text``."""
    return (
        f"Difference: Class-IL minus that of {text} on the same seeds, in points, with its 95 % t-interval; "
        "p: paired t-test, exploratory: with false-discovery-rate control (Benjamini and Hochberg) over the table."
    )


def identity_columns() -> list[Column]:
    """Columns for machines."""
    return [
        Column("configuration", "Configuration", csv_only=True),
        Column("method", "Method name", csv_only=True),
        Column("learner", "Learner", csv_only=True),
        Column("variant", "Variant", csv_only=True),
        Column("stream", "Stream", csv_only=True),
    ]


def identity_values(row: Configuration) -> dict[str, Any]:
    """Return what names a row in the CSV."""
    return {
        "configuration": row.key, "method": row.method, "learner": row.learner, "variant": row.variant,
        "stream": row.stream_label, "label": row.name, "sparsity": float(row.sparsity),
        "buffer": int(row.buffer), "n": row.n,
    }  # fmt: skip


METRIC_COLUMNS = {
    "class_il": Column("class_il", "Class-IL", "measure", "%"),
    "task_il": Column("task_il", "Task-IL", "measure", "%"),
    "forgetting_class_il": Column("forgetting_class_il", "Forgetting", "measure", "points"),
    "learning_class_il": Column("learning_class_il", "Learning accuracy", "measure", "%"),
    "forgetting_task_il": Column("forgetting_task_il", "Forgetting, Task-IL", "measure", "points", csv_only=True),
    "forgetting_class_il_mammoth": Column(
        "forgetting_class_il_mammoth", "Forgetting, last row included", "measure", "points", csv_only=True
    ),
}
LABEL, SPARSITY = Column("label", "Method"), Column("sparsity", "Sparsity", "number")
BUFFER, SEEDS = Column("buffer", "Buffer", "integer", "images"), Column("n", "n", "integer")
FLOPS = [
    Column("flops_executed", "FLOPs, executed", "flops"),
    Column("flops_paper", "FLOPs, paper", "flops"),
    Column("ratio_executed", "Ratio, executed", "ratio", digits=1),
    Column("ratio_paper", "Ratio, paper", "ratio", digits=1),
]
AGAINST = Column("reference", "Reference", csv_only=True)
DIFFERENCE = Column("difference", "Difference", "difference", "points")
P_FDR = Column("p_fdr", "p", "p")


def flops_values(row: Configuration, pool: Sequence[Configuration]) -> dict[str, float]:
    """Return mean training FLOPs in two ledgers, each with its ratio to the dense method in ``pool``."""
    return {
        "flops_executed": row.mean("flops_executed"),
        "flops_paper": row.mean("flops_paper"),
        "ratio_executed": flops_ratio(row, pool, "flops_executed"),
        "ratio_paper": flops_ratio(row, pool, "flops_paper"),
    }
