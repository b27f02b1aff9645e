"""Every method under the loss that its source used: as published tables put them side by side."""

from __future__ import annotations

from typing import Any

from analysis import protocols, regime
from analysis.configurations import configurations, missing_of
from analysis.frames import Results, in_group
from analysis.tables import columns as shared
from analysis.tables.comparison import measures
from analysis.typeset import Column, Row, Table
from sparcl.groups import is_losses

METRICS = ("class_il", "task_il", "forgetting_class_il", "learning_class_il")


def table(results: Results) -> Table:
    """A row for each configuration of the groups of published losses, by group."""
    groups = {name: group for name, group in results.plan.config["groups"].items() if is_losses(name)}
    made, planned = [], []
    for name, group in groups.items():
        rows = configurations(in_group(results.frame, name))
        planned += rows
        found = measures(rows, METRICS)
        for index, row in enumerate(rows):
            loss, start = protocols.of(row.params)
            replay = protocols.START[start] if row.buffer else ""
            values: dict[str, Any] = shared.identity_values(row) | {m: column[index] for m, column in found.items()}
            values |= {
                "source": group.get("title") or name, "label": row.label, "loss": protocols.loss(row.learner, loss),
                "replay": replay, "flops_executed": row.mean("flops_executed"),
            }  # fmt: skip
            made.append(Row(values, name))
    columns = [
        *shared.identity_columns(), Column("source", "As in"), shared.BUFFER, shared.LABEL, shared.SPARSITY,
        Column("loss", "Stream's loss"), Column("replay", "Replay"),
        *(shared.METRIC_COLUMNS[metric] for metric in METRICS), shared.FLOPS[0], shared.SEEDS,
    ]  # fmt: skip
    notes = [
        *regime.notes(results),
        "No equal comparison: each row is under the protocol of its source, and differences between rows are of "
        "protocol and method at once. So nothing is tested here, no row is bold; the table gain takes the two apart.",
        shared.spread_note(planned), shared.FORGETTING_NOTE,
    ]  # fmt: skip
    title = f"Losses as published, on {results.plan.stream['label']}"
    return Table("losses_as_published", title, columns, made, notes, missing_of(planned))
