"""The memory that training takes."""

from __future__ import annotations

import math
from typing import Any

from analysis import frames
from analysis.configurations import Configuration, configurations, dense_of, missing_of
from analysis.frames import Results
from analysis.tables import columns as shared
from analysis.typeset import Column, Row, Table


def table(results: Results) -> Table:
    """Training memory footprint in bytes, by the suite's rules and by the paper's."""
    rows = [row for row in configurations(frames.main_rows(results.frame)) if row.method != "joint" or row.n]
    pool = rows
    names = {
        "weights": "Weights", "indices": "Indices", "gradients": "Gradients", "activations": "Activations",
        "replay_memory": "Replay memory", "optimizer": "Optimizer", "total": "Total",
    }  # fmt: skip
    columns = [shared.BUFFER, shared.LABEL, shared.SPARSITY]
    columns += [Column(f"memory_{key}", header, "number", "MB", digits=3) for key, header in names.items()]
    columns += [
        Column("saving", "Saved", "number", "%", digits=1),
        Column("paper_ablation", "Paper, ablation table", "number", "MB", digits=3),
        Column("paper_phone", "Paper, phone", "number", "MB", digits=3),
        Column("saving_phone", "Saved, phone", "number", "%", digits=1),
        shared.SEEDS,
    ]

    def saved(row: Configuration, key: str) -> float:
        dense = dense_of(row, pool)
        if dense is None or dense is row or dense.key == row.key:
            return math.nan
        return 100 * (1 - row.mean(key) / dense.mean(key))

    made = []
    for row in rows:
        values: dict[str, Any] = shared.identity_values(row)
        values |= {f"memory_{key}": row.mean(f"memory_{key}") / shared.MEGABYTE for key in names}
        values |= {
            "saving": saved(row, "memory_total"),
            "paper_ablation": row.mean("paper_memory_ablation") / shared.MEGABYTE,
            "paper_phone": row.mean("paper_memory_phone") / shared.MEGABYTE,
            "saving_phone": saved(row, "paper_memory_phone"),
        }
        made.append(Row(values, str(row.buffer)))
    notes = [
        "Computed from shapes and masks, not measured; MB = 10^6 bytes; mean over seeds. Suite: weights "
        "that are not zero and their indices, gradients that are kept, activations kept for the backward "
        "pass, replay memory, optimizer state. Saved: against the dense method of the same learner and "
        "buffer.",
        "With the weights that a run ends with: a method that begins with more (GMP, which starts dense), or holds "
        "more within a task (TDM: weights between its updates, and their importance; LPS: ADMM's variables), needs "
        "more before.",
        "Paper: activations of one batch (twice in the ablation table, once in the phone figures) plus "
        "weights and gradients at their densities; inferred from the published figures (docs/flops.md).",
    ]
    title = "Memory footprint of training"
    return Table("memory", title, shared.identity_columns() + columns, made, notes, missing_of(rows))
