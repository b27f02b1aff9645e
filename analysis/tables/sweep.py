"""A sweep: a group of the matrix that sets parameters, one row per setting, compared with the default one."""

from __future__ import annotations

from typing import Any

from analysis import frames
from analysis.catalog import SWEEP
from analysis.configurations import Configuration, configurations
from analysis.frames import Results
from analysis.plan import swept
from analysis.tables.columns import (
    BUFFER,
    DIFFERENCE,
    FLOPS,
    FLOPS_NOTE,
    FORGETTING_NOTE,
    LABEL,
    METRIC_COLUMNS,
    P_HOLM,
    SEEDS,
    SPARSITY,
    flops_values,
    identity_columns,
    identity_values,
    missing_of,
    reference_note,
    spread_note,
)
from analysis.tables.comparison import measures
from analysis.typeset import Column, Row, Table


def sorted_by(rows: list[Configuration], parameters: list[str]) -> list[Configuration]:
    """Return configurations by learner, buffer and sparsity, then by the swept values, numbers before texts."""

    def order(row: Configuration) -> tuple:
        values = [row.params.get(key) for key in parameters]
        return row.learner, row.buffer, row.sparsity, row.method, [_sort_key(value) for value in values]

    return sorted(rows, key=order)


def _sort_key(value: Any) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, str(value)


def table(results: Results, group: str) -> Table:
    """The settings of a sweep."""
    parameters = swept(results.plan.config)[group]
    rows = sorted_by(configurations(frames.in_group(results.frame, group)), parameters)
    pool = configurations(frames.main_rows(results.frame))

    def default(row: Configuration) -> Configuration | None:
        key = row.method, row.sparsity, row.buffer
        same = (c for c in (*pool, *rows) if (c.method, c.sparsity, c.buffer) == key)
        return next((c for c in same if not c.setting and c.key != row.key), None)

    found = measures(rows, METRIC_COLUMNS, default)
    made = []
    for index, row in enumerate(rows):
        first, reference = found["class_il"][index], default(row)
        values: dict[str, Any] = identity_values(row) | flops_values(row, pool)
        values |= {metric: column[index] for metric, column in found.items()}
        values |= {key: row.params.get(key) for key in parameters}
        values |= {
            "label": row.label, "data_fraction": row.mean("data_fraction"), "difference": first.paired,
            "p_holm": first.p_holm, "reference": "" if reference is None else reference.key,
        }  # fmt: skip
        made.append(Row(values, f"{row.method}, {row.buffer}, {row.sparsity}"))
    columns = [
        *(Column(key, key) for key in parameters), LABEL, SPARSITY, BUFFER, *METRIC_COLUMNS.values(), *FLOPS,
        Column("data_fraction", "Data presented", "number", "fraction", digits=3),
        Column("reference", "Reference", csv_only=True), DIFFERENCE, P_HOLM, SEEDS,
    ]  # fmt: skip
    notes = [spread_note(rows), reference_note("the default setting"), FORGETTING_NOTE, FLOPS_NOTE]
    title = f"{title_of(results, group)} on {results.plan.stream['label']}"
    return Table(f"{SWEEP}{group}", title, identity_columns() + columns, made, notes, missing_of(rows))


def title_of(results: Results, group: str) -> str:
    """Return what the config calls a sweep, or what it sweeps."""
    found = results.plan.config["groups"][group].get("title")
    return found or f"Sweep {group}: {', '.join(swept(results.plan.config)[group])}"
