"""A table of configurations, each compared with its reference on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from analysis import frames, regime, statistics
from analysis.configurations import Configuration, by_conditions, configurations, missing_of, reference_of
from analysis.contrasts import OURS
from analysis.frames import Results
from analysis.statistics import ALPHA
from analysis.tables import columns as shared
from analysis.typeset import Column, Measure, Row, Table


def measures(
    rows: Sequence[Configuration],
    metrics: Iterable[str],
    against: Callable[[Configuration], Configuration | None] = lambda row: None,
    block: Callable[[Configuration], str] | None = None,
) -> dict[str, list[Measure]]:
    """Per metric, the measure of each row: summary, comparison with ``against(row)``, bold.

    False-discovery-rate control is over all rows of the table, per metric. Bold is the best of its block where it is
    told apart from every other row, in accuracies alone; joint training, which sees all data at
    once, does not compete.
    """
    references = [against(row) for row in rows]
    result: dict[str, list[Measure]] = {}
    for metric in metrics:
        values = [row.seeds(metric) for row in rows]
        found = [
            Measure(
                statistics.summarize(list(v.values())),
                statistics.compare(v, reference.seeds(metric)) if reference is not None else None,
            )
            for v, reference in zip(values, references, strict=True)
        ]
        adjusted = statistics.fdr([m.paired.p if m.paired else math.nan for m in found])
        winners: set[int | None] = set()
        if block is not None and metric in shared.COMPARED:
            blocks: dict[str, dict[int, dict[int, float]]] = {}
            for index, row in enumerate(rows):
                if row.method != "joint":
                    blocks.setdefault(block(row), {})[index] = values[index]
            for competing in blocks.values():
                winners.add(statistics.best(competing, ALPHA))
        result[metric] = [
            replace(m, p_fdr=p, best=i in winners) for i, (m, p) in enumerate(zip(found, adjusted, strict=True))
        ]
    return result


def conditions_note(rows: Iterable[Configuration]) -> list[str]:
    """Say which rows were trained under other protocols, if not all share one."""
    text = by_conditions(rows)
    return [f"Rows of different protocols are not compared: {text}."] if text else []


def _reference_text(results: Results, rows: Iterable[Configuration], same_learner: bool) -> str:
    """Say what :func:`reference_of` compares the rows with."""
    plan, (bundle, learner) = results.plan, results.plan.reference_parts
    if not learner:
        return "the reference (this matrix names none)"
    if not bundle and not any(plan.methods[plan.reference]["policies"].values()):
        name = "the dense learner" if same_learner else plan.methods[plan.reference]["label"]
        return f"{name}, same {'learner and ' if same_learner else ''}buffer"
    if same_learner and bundle:
        text = f"{plan.bundles.get(bundle, bundle)} on the same learner, buffer and sparsity"
    else:
        text = f"{plan.methods[plan.reference]['label']}, same buffer and sparsity"
    return text + (" (for dense rows: its lowest sparsity here)" if any(not row.sparsity for row in rows) else "")


def beside_ours(rows: Iterable[Configuration]) -> str:
    """What a title adds where SparCL is among the rows."""
    return " and SparCL" if any(row.bundle == OURS for row in rows) else ""


def comparison(
    results: Results, name: str, title: str, rows: list[Configuration], leading: list[Column],
    block: Callable[[Configuration], str], block_text: str, same_learner: bool, notes: Sequence[str] = (),
    extra: Callable[[Configuration, Sequence[Configuration]], dict] = lambda row, pool: {},
    order: Callable | None = None, trailing: Sequence[Column] = (),
) -> Table:  # fmt: skip
    """A table of configurations with metrics, FLOPs, and paired differences to the reference."""
    if order is not None:
        rows = sorted(rows, key=order)
    title += f" on {results.plan.stream['label']}"
    pool = configurations(frames.main_rows(results.frame))

    def against(row: Configuration) -> Configuration | None:
        return reference_of(row, rows, pool, results.plan, same_learner)

    found = measures(rows, shared.METRIC_COLUMNS, against, lambda row: f"{block(row)} {row.conditions}")
    made = []
    for index, row in enumerate(rows):
        values: dict[str, Any] = shared.identity_values(row) | shared.flops_values(row, pool) | extra(row, pool)
        values |= {metric: column[index] for metric, column in found.items()}
        if row.task_il_only:
            values |= {metric: None for metric in shared.METRIC_COLUMNS if "class_il" in metric}
        first, other = found["class_il"][index], against(row)
        values |= {"difference": first.paired, "p_fdr": first.p_fdr}
        values["reference"] = "" if other is None else other.key
        made.append(Row(values, block(row)))
    all_notes = [
        *regime.notes(results), shared.spread_note(rows), shared.bold_note(rows, block_text),
        shared.reference_note(_reference_text(results, rows, same_learner)), *conditions_note(rows),
        shared.FORGETTING_NOTE, shared.FLOPS_NOTE, *notes,
    ]  # fmt: skip
    columns = [
        *shared.identity_columns(), *leading, *shared.METRIC_COLUMNS.values(), *shared.FLOPS, *trailing, shared.AGAINST,
        shared.DIFFERENCE, shared.P_FDR, shared.SEEDS,
    ]  # fmt: skip
    return Table(name, title, columns, made, all_notes, missing_of(rows))
