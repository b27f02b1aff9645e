"""A sweep: a group of the matrix that sets parameters, one row per setting, compared with the default one."""

from __future__ import annotations

from typing import Any

from analysis import frames
from analysis.catalog import SWEEP
from analysis.configurations import Configuration, by_values, configurations, default_of, missing_of
from analysis.frames import Results
from analysis.tables import columns as shared
from analysis.tables.comparison import measures
from analysis.typeset import Column, Row, Table
from sparcl.groups import sweep_title, swept


def table(results: Results, group: str) -> Table:
    """The settings of a sweep."""
    parameters = swept(results.plan.config)[group]
    one_at_a_time = "alone" in results.plan.config["groups"][group]
    rows = by_values(configurations(frames.in_group(results.frame, group)), [] if one_at_a_time else parameters)
    pool = configurations(frames.main_rows(results.frame))

    def default(row: Configuration) -> Configuration | None:
        return default_of(row, (*pool, *rows))

    found = measures(rows, shared.METRIC_COLUMNS, default)
    made = []
    for index, row in enumerate(rows):
        first, reference = found["class_il"][index], default(row)
        values: dict[str, Any] = shared.identity_values(row) | shared.flops_values(row, pool)
        values |= {metric: column[index] for metric, column in found.items()}
        values |= {key: row.params.get(key) for key in parameters}
        values |= {
            "label": row.label, "setting": row.setting or "default",
            "data_fraction": row.mean("data_fraction"), "difference": first.paired,
            "p_fdr": first.p_fdr, "reference": "" if reference is None else reference.key,
        }  # fmt: skip
        made.append(Row(values, f"{row.method}, {row.buffer}, {row.sparsity}"))
    columns = [
        *shared.identity_columns(), *([Column("setting", "Changed")] if one_at_a_time else []),
        *(Column(key, key, csv_only=one_at_a_time) for key in parameters), shared.LABEL, shared.SPARSITY,
        shared.BUFFER, *shared.METRIC_COLUMNS.values(), *shared.FLOPS,
        Column("data_fraction", "Data presented", "number", "fraction", digits=3), shared.AGAINST,
        shared.DIFFERENCE, shared.P_FDR, shared.SEEDS,
    ]  # fmt: skip
    default_note = shared.reference_note("the default setting")
    notes = [shared.spread_note(rows), default_note, shared.FORGETTING_NOTE, shared.FLOPS_NOTE]
    title = f"{sweep_title(results.plan.config, group)} on {results.plan.stream['label']}"
    return Table(f"{SWEEP}{group}", title, columns, made, notes, missing_of(rows))
