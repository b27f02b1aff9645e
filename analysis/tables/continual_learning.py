"""Dense continual-learning methods, SparCL and the plan's reference."""

from __future__ import annotations

from analysis import frames
from analysis.configurations import configurations
from analysis.frames import Results
from analysis.tables.columns import BUFFER, LABEL, SPARSITY
from analysis.tables.comparison import beside_ours, comparison
from analysis.typeset import DASH, Table


def table(results: Results) -> Table:
    """Dense continual-learning methods against SparCL and the plan's reference, per buffer."""
    rows = configurations(frames.main_rows(results.frame))
    bundle, _ = results.plan.reference_parts
    rows = [row for row in rows if row.family not in ("sparse-baseline", "ablation") or row.bundle == bundle]
    leading = [BUFFER, LABEL, SPARSITY]
    notes = []
    if any(row.buffer == 0 for row in rows):
        notes.append("Buffer 0: methods without a memory; they have no reference at equal memory.")
    if any(row.task_il_only for row in rows):
        notes.append(f"Methods that need the task's identity at test time have no Class-IL accuracy ({DASH}).")
    return comparison(
        results, "continual_learning", f"Continual-learning methods{beside_ours(rows)}", rows, leading,
        lambda row: f"buffer {row.buffer}", "a buffer", False, notes,
    )  # fmt: skip
