"""Equal budgets: every method with the same executed training FLOPs, sparse ones trained longer than dense ones."""

from __future__ import annotations

from typing import Any

from analysis import frames, regime
from analysis.configurations import Configuration, configurations, missing_of
from analysis.frames import Results
from analysis.tables import columns as shared
from analysis.tables.comparison import measures
from analysis.typeset import Column, Row, Table
from sparcl.groups import budgets

METRICS = ("class_il", "task_il", "learning_class_il")


def table(results: Results) -> Table:
    """The configurations of each group with a budget, compared with the dense learner at the same budget."""
    planned: list[Configuration] = []
    owners: list[str] = []
    for group in budgets(results.plan.config):
        rows = configurations(frames.in_group(results.frame, group))
        planned += rows
        owners += [group] * len(rows)

    def dense(row: Configuration, group: str) -> Configuration | None:
        same = (other for other, owner in zip(planned, owners, strict=True) if owner == group)
        return next((o for o in same if (o.method, o.buffer, o.sparsity) == (row.learner, row.buffer, 0) and o.n), None)

    rivals = [dense(row, group) for row, group in zip(planned, owners, strict=True)]
    against = {id(row): None if rival is row else rival for row, rival in zip(planned, rivals, strict=True)}
    found = measures(planned, METRICS, lambda row: against[id(row)])
    made = []
    for index, (row, group, rival) in enumerate(zip(planned, owners, rivals, strict=True)):
        first = found["class_il"][index]
        values: dict[str, Any] = shared.identity_values(row) | {m: column[index] for m, column in found.items()}
        values |= {
            "group": group, "title": results.plan.config["groups"][group].get("title") or group, "label": row.label,
            "epochs": int(row.rows.iloc[0].epochs), "flops_executed": row.mean("flops_executed"),
            "share": row.mean("flops_executed") / rival.mean("flops_executed") if rival else None,
            "train_seconds": row.mean("train_seconds"), "difference": first.paired, "p_fdr": first.p_fdr,
            "reference": rival.key if rival and rival is not row else "",
        }  # fmt: skip
        made.append(Row(values, f"{group}, {row.learner}, {row.buffer}"))
    columns = [
        *shared.identity_columns(), Column("group", "", csv_only=True), Column("title", "Budget"), shared.BUFFER,
        shared.LABEL, shared.SPARSITY, Column("epochs", "Epochs", "integer"), shared.FLOPS[0],
        Column("share", "FLOPs over the dense learner's", "ratio", digits=2),
        Column("train_seconds", "Training time", "number", "s", digits=1),
        *(shared.METRIC_COLUMNS[metric] for metric in METRICS), shared.AGAINST, shared.DIFFERENCE, shared.P_FDR,
        shared.SEEDS,
    ]  # fmt: skip
    notes = [
        *regime.notes(results),
        *(f"{line}." for group in budgets(results.plan.config) for line in regime.shortened(results, group)),
        "Every cell of a group has about the executed training FLOPs of the group's dearest or cheapest one: epochs "
        "are whole numbers, and schedules are stretched with them (docs/pipeline.md). Sparse methods train longer than "
        "the dense learner, or it shorter than they.",
        shared.reference_note("the dense learner at the same budget"), shared.spread_note(planned),
        "Training time: mean over seeds, as the cells took it, beside whatever else the machine did.",
    ]  # fmt: skip
    title = f"Equal budgets of training FLOPs, on {results.plan.stream['label']}"
    return Table("budget", title, columns, made, notes, missing_of(planned))
