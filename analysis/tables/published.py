"""Published numbers beside the measured ones, figure by figure, with every difference in protocol named.

A figure recalled from memory is labelled so wherever it is printed. A figure whose row was not run says so; a
measured number stands beside it only where stream, method, sparsity and buffer are the published ones. A method that
holds no memory runs with buffer 0 whatever was published for it (LightCL's 15 images), and the difference is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from analysis import protocols, statistics
from analysis.configurations import Configuration, configurations, dense_of
from analysis.frames import Results
from analysis.published import Figure, load
from analysis.tables.columns import MEGABYTE
from analysis.typeset import DASH, MINUS, Column, Row, Table, fixed, scientific
from sparcl.groups import is_losses

STATUS = {
    "sourced": "sourced",
    "figure": "read off a plot",
    "others-run": "run by others",
    "corroborated": "recalled, corroborated",
    "recalled": "recalled, unverified",
}
QUANTITY = {
    "class_il": "Class-IL (%)", "task_il": "Task-IL (%)", "training_flops": "Training FLOPs, paper ledger",
    "memory_mb": "Memory (MB)", "memory_mib": "Memory (MiB)", "memory_saving_percent": "Memory saved (%)",
    "speedup": "Speed-up on a phone", "data_fraction": "Data presented (fraction)",
}  # fmt: skip
PLACE = {
    "table1": "SparCL, Table 1", "table2": "SparCL, Table 2", "table3": "SparCL, Table 3",
    "bounds": "SparCL's bounds", "phone": "SparCL, phone", "others": "Run by others",
    "lightcl": "LightCL, Table 1",
}  # fmt: skip
LABELS = {
    "agem": "A-GEM", "derpp": "DER++", "er": "ER", "ewc": "EWC", "fdr": "FDR", "finetune": "Fine-tuning",
    "icarl": "iCaRL", "joint": "Joint", "lightcl": "LightCL", "lps": "LPS", "lwf": "LwF", "packnet": "PackNet",
    "pnn": "PNN", "rigl-derpp": "RigL-DER++", "snip-derpp": "SNIP-DER++", "sparcl-derpp": "SparCL-DER++",
    "sparcl-er": "SparCL-ER", "tdm-ddr-derpp": "TDM+DDR-DER++", "tdm-derpp": "TDM-DER++",
    "tdm-dgm-derpp": "TDM+DGM-DER++",
}  # fmt: skip
"""Labels of the published methods, for those that no record names. PNN is not in this suite."""
PROTOCOL = {"model": "resnet18", "width": 64, "batch_size": 32}
EPOCHS = {"split-cifar10": 50, "split-cifar100": 50, "split-tiny-imagenet": 100}
DENSE = {"finetune", "joint", "ewc", "lwf", "agem", "icarl", "fdr", "er", "der", "derpp"}
"""Methods whose figures in SparCL's tables are the DER paper's."""
OF_SPARCL = {"table1", "table2", "table3", "bounds"}
"""Where SparCL's paper prints figures."""
NOT_COMPARABLE = {
    ("lightcl", "training_flops"): "another count of FLOPs, not comparable",
    ("lightcl", "memory_mib"): "another count of memory, not comparable",
}


def _measured(metric: str, row: Configuration, pool: Sequence[Configuration]) -> dict[int, float]:
    """Seed to value of what a published figure states, in its unit; empty where a run does not give it."""
    if metric in ("class_il", "task_il", "data_fraction"):
        return row.seeds(metric)
    if metric == "training_flops":
        return row.seeds("flops_paper")
    if metric == "memory_mb":
        return {seed: value / MEGABYTE for seed, value in row.seeds("paper_memory_ablation").items()}
    dense = dense_of(row, pool)
    if metric == "memory_saving_percent" and dense is not None:
        whole = dense.mean("paper_memory_phone")
        return {seed: 100 * (1 - value / whole) for seed, value in row.seeds("paper_memory_phone").items()}
    return {}


def source_protocol(figure) -> tuple[bool, str] | None:
    """Return loss and replay of the runs behind a published accuracy; None where they are not known."""
    if figure.method.startswith(("sparcl-", "tdm-")) and figure.table != "lightcl":
        return protocols.OWN
    return protocols.DER if figure.table in OF_SPARCL and figure.method in DENSE else None


def _protocol(figure, row: Configuration) -> list[str]:
    """Say how loss and replay differ from those of the published runs."""
    wanted, own = source_protocol(figure), protocols.of(row.params)
    if figure.method in protocols.WITHOUT_HEAD:
        return []
    if wanted is None:
        return [f"{protocols.text(own)} (published: not known)"]
    if figure.method == "lwf":
        return [f"{protocols.loss('lwf', True)} (published: {protocols.loss('lwf', False)})"] if own[0] else []
    texts = ((protocols.LOSS, own[0], wanted[0]), (protocols.START, own[1], wanted[1]))
    return [
        f"{names[mine]} (published: {names[theirs]})"
        for names, mine, theirs in texts
        if mine != theirs and (row.buffer or names is protocols.LOSS)
    ]


def protocol_differences(figure, row: Configuration) -> list[str]:
    """How the runs of ``row`` differ from the protocol that the figure was published for."""
    cell = row.rows.iloc[0]
    found = [f"{key} {cell[key]} (published {value})" for key, value in PROTOCOL.items() if cell[key] != value]
    epochs = EPOCHS.get(figure.stream)
    if epochs is not None and cell["epochs"] != epochs:
        found.append(f"{cell['epochs']} epochs a task (published {epochs})")
    if figure.runs is not None and figure.metric in ("class_il", "task_il") and row.n != figure.runs:
        found.append(f"n = {row.n} (published {figure.runs})")
    if figure.metric in ("class_il", "task_il"):
        found += _protocol(figure, row)
    if cell["precision"] != "float32":
        found.append(f"precision {cell['precision']}")
    if row.buffer != (figure.buffer or 0):
        found.append(f"buffer {row.buffer}, no replay memory (published {figure.buffer})")
    settings = [text for text in cell["settings"] if not text.startswith((protocols.HEAD, protocols.REPLAY))]
    if settings:
        found.append(f"settings {'+'.join(settings)}")
    return found + ([figure.note] if figure.note else [])


def _runs_of(figure, pool: Sequence[Configuration]) -> list[Configuration]:
    """The rows of ``pool`` that a figure is compared with: its buffer's, or those of buffer 0.

    A method whose cells have buffer 0 has no memory at all: one that has needs at least one sample.
    """
    key, buffer = (figure.stream, figure.method, figure.sparsity or 0.0), figure.buffer or 0
    return [
        row for row in pool
        if row.n and (row.stream, row.method, row.sparsity) == key and row.buffer in (buffer, 0)
    ]  # fmt: skip


def _shown(metric: str, value: float, std: float = math.nan, sign: bool = False) -> str:
    if math.isnan(value):
        return DASH
    if metric == "training_flops":
        text = scientific(abs(value))
        return (("+" if value >= 0 else MINUS) if sign else "") + text
    digits = 3 if metric == "data_fraction" else 2
    text = fixed(value, digits, sign=sign)
    return text if math.isnan(std) or (metric not in ("class_il", "task_il")) else f"{text} ± {fixed(std, digits)}"


def table(results: Results, load: Callable[[], Sequence[Figure]] = load) -> Table:
    """One row per published figure on the plan's stream; all figures where it has none.

    Args:
        load: returns the published figures.
    """
    as_published = results.frame.groups.map(lambda groups: any(map(is_losses, groups)))
    pool = configurations(results.frame[results.frame.main | as_published])
    names = LABELS | {name: method["label"] for name, method in results.plan.methods.items()}
    figures = [figure for figure in load() if figure.stream and figure.metric in QUANTITY]
    stream = results.plan.stream["name"]
    covered = [figure for figure in figures if figure.stream == stream]
    others = sorted({figure.stream for figure in figures} - {stream})
    made = []
    for figure in covered or figures:
        rows = _runs_of(figure, pool)
        values: dict[str, Any] = {
            "place": PLACE.get(figure.table, figure.table), "table": figure.table, "stream": figure.stream,
            "buffer": figure.buffer, "method": figure.method,
            "label": names.get(figure.method, figure.method),
            "sparsity": figure.sparsity, "quantity": QUANTITY[figure.metric], "metric": figure.metric,
            "published": figure.text + (f" ± {fixed(figure.std)}" if figure.std is not None else ""),
            "published_value": figure.value, "published_std": figure.std, "published_runs": figure.runs,
            "status": STATUS[figure.status], "source": figure.source, "measured": "not run",
            "difference": DASH, "protocol": "", "n": 0,
        }  # fmt: skip
        if rows:
            row = min(rows, key=lambda row: (len(_protocol(figure, row)), len(row.setting)))
            values |= _beside(figure, row, pool)
        elif figure.note:
            values["protocol"] = figure.note
        made.append(Row(values, f"{figure.stream}, {figure.table}"))
    columns = [
        Column("place", "Published in"),
        Column("table", "", csv_only=True),
        Column("stream", "Stream"),
        Column("buffer", "Buffer", "integer"),
        Column("method", "", csv_only=True),
        Column("label", "Method"),
        Column("sparsity", "Sparsity", "number"),
        Column("quantity", "Quantity"),
        Column("metric", "", csv_only=True),
        Column("published", "Published"),
        Column("published_value", "", "number", csv_only=True),
        Column("published_std", "", "number", csv_only=True),
        Column("published_runs", "", "integer", csv_only=True),
        Column("status", "Status"),
        Column("measured", "Measured"),
        Column("measured_value", "", "number", csv_only=True),
        Column("measured_sd", "", "number", csv_only=True),
        Column("difference", "Difference"),
        Column("difference_value", "", "number", csv_only=True),
        Column("n", "n", "integer"),
        Column("protocol", "Differences in protocol"),
        Column("source", "Source", csv_only=True),
    ]
    notes = [
        "Status: sourced = read in print; read off a plot = measured on a published figure; run by others "
        "= from somebody else's run; recalled, corroborated = recalled, and met by the one formula that is fitted to "
        "all of them; recalled, unverified = not to be taken as a published fact. Sources are in the CSV.",
        "Measured: mean ± sample standard deviation over n seeds. Difference: measured minus published.",
    ]
    if not covered:
        notes.append("No published figure is on the stream of this matrix: every row is one that was not run.")
    elif others:
        notes.append(f"Figures published on {', '.join(others)} are not covered by this matrix.")
    return Table("published", "Published and measured", columns, made, notes)


def _beside(figure, row: Configuration, pool: Sequence[Configuration]) -> dict[str, Any]:
    reason = NOT_COMPARABLE.get((figure.table, figure.metric))
    if reason is not None:
        return {"measured": DASH, "protocol": reason}
    summary = statistics.summarize(list(_measured(figure.metric, row, pool).values()))
    if summary.n == 0 or math.isnan(summary.mean):
        return {"measured": "not measured", "protocol": figure.note}
    difference = summary.mean - figure.value
    return {
        "measured": _shown(figure.metric, summary.mean, summary.sd), "measured_value": summary.mean,
        "measured_sd": summary.sd, "difference": _shown(figure.metric, difference, sign=True),
        "difference_value": difference, "n": summary.n,
        "protocol": "; ".join(protocol_differences(figure, row)) or "none known",
    }  # fmt: skip
