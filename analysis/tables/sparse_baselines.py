"""Sparse-training baselines and SparCL."""

from __future__ import annotations

from analysis import frames
from analysis.configurations import configurations
from analysis.frames import Results
from analysis.tables.columns import BUFFER, LABEL, SPARSITY
from analysis.tables.comparison import beside_ours, comparison
from analysis.typeset import Table


def table(results: Results) -> Table:
    """Sparse-training baselines against SparCL, per buffer, learner and sparsity."""
    rows = configurations(frames.main_rows(results.frame))
    rows = [row for row in rows if row.sparsity > 0 and row.is_sparse_training]
    learners = {learner: index for index, learner in enumerate(dict.fromkeys(row.learner for row in rows))}
    rows.sort(key=lambda row: (row.buffer, learners[row.learner], row.sparsity))
    leading = [BUFFER, SPARSITY, LABEL]
    return comparison(
        results, "sparse_baselines", f"Sparse-training baselines{beside_ours(rows)}", rows, leading,
        lambda row: f"buffer {row.buffer}, {row.learner}, sparsity {row.sparsity}",
        "a learner, buffer and sparsity", True,
    )  # fmt: skip
