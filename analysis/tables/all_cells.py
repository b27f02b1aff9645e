"""Every planned cell."""

from __future__ import annotations

from dataclasses import replace

from analysis import frames
from analysis.frames import Results
from analysis.tables.columns import COMPARED, FORGETTING_NOTE
from analysis.typeset import Column, Row, Table

SHOWN = {*COMPARED, "forgetting_class_il"}


def table(results: Results) -> Table:
    """Every planned cell, one row each, with what became of it."""
    frame = results.frame
    columns = [
        Column("path", "Cell"), Column("groups", "Groups", csv_only=True), Column("status", "Status"),
        *(Column(key, key, csv_only=True) for key in results.plan.fields),
        *(Column(key, key, csv_only=True) for key in ("variant", "label", "family", "learner")),
        *(Column(key, key, "number", digits=4, csv_only=key not in SHOWN) for key in frames.METRICS),
        Column("flops_executed", "FLOPs, executed", "flops"), Column("flops_paper", "FLOPs, paper", "flops"),
        Column("flops_dense", "FLOPs, dense", "flops", csv_only=True),
        Column("flops_evaluation", "FLOPs, evaluation", "flops", csv_only=True),
        Column("memory_total", "Memory", "number", "bytes", digits=0, csv_only=True),
        Column("wall_seconds", "Wall time", "number", "s", digits=1),
        Column("peak_rss_bytes", "Peak memory", "number", "bytes", digits=0, csv_only=True),
        Column("reason", "Reason", csv_only=True),
    ]  # fmt: skip
    printed = {"class_il": "Class-IL", "task_il": "Task-IL", "forgetting_class_il": "Forgetting"}
    columns = [
        replace(c, header=printed[c.key], unit="points" if "forgetting" in c.key else "%", digits=2)
        if c.key in printed
        else c
        for c in columns
    ]
    made = []
    for record in frame.to_dict("records"):
        values = {column.key: record.get(column.key) for column in columns}
        values["groups"] = " ".join(record["groups"])
        made.append(Row(values, str(record["stream"])))
    missing = list(frames.missing_lines(frame))
    missing += [f"{path}: not of this plan, left out" for path in results.foreign]
    return Table("all_cells", "All cells", columns, made, [FORGETTING_NOTE], tuple(missing))
