"""All records of a plan to one tidy table, ``results.csv.gz``, and ``provenance.json``.

Each record is read once. One that is damaged, or that belongs to another cell, other code, other data or other
libraries than the plan says, is refused with its file's name, and nothing is written. A planned cell without a record
stays in the table with a ``status`` and a ``reason``; a record that the plan does not name is listed and left out.

The table has a row for each number (``docs/records.md`` explains every quantity and its unit). Columns:

* ``path``, ``stream``, ``method``, ``sparsity``, ``buffer``, ``seed``, ``variant`` (settings that differ from what
  these imply, as in the path), ``status``, ``reason``: the cell, the same in all its rows;
* ``quantity``: what the number is; empty in the only row of a cell that has none;
* ``task``, ``on``, ``epoch``, ``step``, ``line``, ``kind``, ``layer``: where the number belongs, empty where that does
  not apply: the task trained (counted from 0; empty for the untrained network), the task tested, epoch and step in the
  task, line of the ledger of FLOPs, kind of pass, name of a weight tensor;
* ``value``.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from analysis.plan import CellEntry, Method, Plan
from analysis.provenance import Facts
from sparcl import metrics
from sparcl.costs import memory
from sparcl.errors import UserError, one_line
from sparcl.files import atomic
from sparcl.running import record as records
from sparcl.running.record import Record

TABLE, PROVENANCE = "results.csv.gz", "provenance.json"
DONE, DIVERGED, FAILED, NOT_RUN, NOT_PLANNED = "done", "diverged", "failed", "not run", "not planned"
COLUMNS = (
    "path", "stream", "method", "sparsity", "buffer", "seed", "variant", "status", "reason",
    "quantity", "task", "on", "epoch", "step", "line", "kind", "layer", "value",
)  # fmt: skip
NOTHING = "," * COLUMNS[COLUMNS.index("quantity") :].index("value")
"""The end of a row that holds no number."""
FAILURE = "failed.json"
"""Beside a record's place: why its run failed (:mod:`sparcl.running.runner`)."""
ACCURACIES: tuple[Literal["class_il", "task_il"], ...] = ("class_il", "task_il")
UPDATE: tuple[Literal["density", "gradient_density", "pruned", "grown", "churn"], ...] = (
    "density", "gradient_density", "pruned", "grown", "churn",
)  # fmt: skip
TIMES = ("wall_seconds", "train_seconds", "evaluation_seconds", "peak_rss_bytes", "resumed", "threads")


def collect(plan: Plan, folder: Path) -> dict[str, Any]:
    """Read the records of ``plan`` and write the table and the provenance into ``folder``.

    Returns:
        What was written to ``provenance.json``.

    Raises:
        UserError: a record is damaged or not the planned one; nothing was written.
    """
    facts, refusals = Facts(plan), []
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, packed, mtime=0) as zipped, io.TextIOWrapper(zipped, "utf-8", newline="") as text:
        text.write(",".join(COLUMNS) + "\n")
        for entry in plan.cells:
            try:
                text.writelines(_cell(plan, entry, facts))
            except UserError as error:
                refusals.append(str(error))
        for path in facts.foreign(_foreign(plan)):
            text.write(f"{_quoted(path)},,,,,,,{NOT_PLANNED},,{NOTHING}\n")
    if refusals:
        more = f" (and {len(refusals) - 1} more records are refused)" if len(refusals) > 1 else ""
        raise UserError(refusals[0] + more)
    result = facts.result()
    atomic.write_bytes(folder / TABLE, packed.getvalue())
    atomic.write_text(folder / PROVENANCE, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def _cell(plan: Plan, entry: CellEntry, facts: Facts) -> Iterator[str]:
    """Yield the lines of a cell."""
    file = plan.runs / entry["path"] / records.FILE
    record = _read(plan, file, entry, facts) if os.path.lexists(file) else None
    if record is None:
        status, reason = _absent(file.with_name(FAILURE))
    else:
        status, reason = record["status"], ""
        if place := record["diverged"]:
            reason = f"diverged in task {place['task']}, epoch {place['epoch']}, step {place['step']}"
    facts.count(status, f"{entry['path']}: {reason}" if record is None else "")
    cell = entry["cell"]
    head = ",".join(
        (
            _quoted(entry["path"]), _quoted(cell["stream"]), _quoted(cell["method"]), repr(cell["sparsity"]),
            str(cell["buffer"]), str(cell["seed"]), _quoted(variant_of(entry)), status, _quoted(reason), "",
        )
    )  # fmt: skip
    if record is None:
        yield f"{head}{NOTHING}\n"
        return
    for row in numbers(record, entry, plan.methods[cell["method"]]):
        yield f"{head}{row}\n"


def variant_of(entry: CellEntry) -> str:
    """Return the part of a cell's path that names the settings that differ, or an empty text."""
    return entry["path"].split("/")[-2] if entry["variant"] else ""


def _read(plan: Plan, file: Path, entry: CellEntry, facts: Facts) -> Record | None:
    """Return the record of a cell, or refuse it; None for what a failed run was to replace."""
    if not file.resolve().is_relative_to(plan.runs.resolve()):
        raise UserError(f"{file}: expected a file inside {plan.runs}, found a link to somewhere else")
    record = records.read(file)
    wanted, found = _flat(entry["cell"]), _flat(record["cell"])
    if different := sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key)):
        key = different[0]
        raise UserError(
            f"{file}: record of another cell: '{key}' is {one_line(found.get(key), 60)}, "
            f"the plan says {one_line(wanted.get(key), 60)}"
        )
    if record["identity"] != entry["identity"]:
        if _failure(file.with_name(FAILURE)).get("identity") == entry["identity"]:
            return None
        raise UserError(
            f"{file}: record of other code, data or library versions (identity {record['identity'][:12]}, "
            f"the plan says {entry['identity'][:12]}); run the cell again or remove the file"
        )
    tasks, accuracy = plan.stream["tasks"], record["results"]["accuracy"]
    for kind in ACCURACIES:
        lengths = {len(accuracy[kind]), len(accuracy["untrained"][kind]), *map(len, accuracy[kind])}
        if lengths != {tasks}:
            raise UserError(f"{file}: results.accuracy.{kind}: expected {tasks} rows of {tasks} tasks, as in the plan")
    facts.add(entry["path"], file, record)
    return record


def _flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell's settings with its parameters among them, so that a difference names one."""
    params = cell.get("params")
    return {**cell, **params, "params": None} if isinstance(params, dict) else dict(cell)


def _absent(failed: Path) -> tuple[str, str]:
    """Return status and reason of a cell without a record."""
    if not os.path.lexists(failed):
        return NOT_RUN, NOT_RUN
    error = _failure(failed).get("error", f"{failed.name} cannot be read")
    return FAILED, "failed: " + one_line(error, 200).encode(errors="replace").decode()


def _failure(failed: Path) -> dict[str, Any]:
    """Return what failed.json says; nothing where it is not there or cannot be read."""
    try:
        found = json.loads(failed.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _foreign(plan: Plan) -> list[str]:
    """Return the records in the folder that the plan does not name, relative to it."""
    named = {entry["path"] for entry in plan.cells}
    found = []
    for folder, _, files in os.walk(plan.runs):
        if records.FILE in files:
            path = Path(folder).relative_to(plan.runs).as_posix()
            if path not in named:
                found.append(os.fsencode(f"{path}/{records.FILE}").decode(errors="replace"))
    return sorted(found)


def numbers(record: Record, entry: CellEntry, method: Method) -> Iterator[str]:
    """Yield every number of a cell, from ``quantity`` on; those that are not defined are left out."""
    results, planned = record["results"], entry["planned"]
    accuracy, executed, masks = results["accuracy"], results["executed"], results["masks"]
    computed = metrics.summary(accuracy["class_il"], accuracy["task_il"], accuracy["untrained"]["task_il"])
    for name, value in computed.items():
        if value is not None and not (method["task_il_only"] and "class_il" in name):
            yield row(name, value)
    yield row("flops_executed", executed["training"])
    yield row("flops_evaluation", executed["evaluation"])
    for name, amount in planned.items():
        if isinstance(amount, int | float):
            yield row(name, amount)
    layers = masks["layers"]
    for name, value in memory.suite(
        **planned["memory"],
        layers=[(layer["size"], layer["weights"], layer["learning"]) for layer in layers.values()],
        replay_memory=results["held_bytes"]["memory"],
        state=results["held_bytes"]["state"],
    ).items():
        yield row(f"memory_{name}", value)
    measured: Mapping[str, Any] = record["measured"]
    for name in TIMES:
        yield row(name, measured[name])

    for kind in ACCURACIES:
        quantity = f"accuracy_{kind}"
        untrained = accuracy["untrained"][kind]
        yield from (row(quantity, value, on=k) for k, value in enumerate(untrained) if value is not None)
        for task, values in enumerate(accuracy[kind]):
            yield from (row(quantity, value, task, on=k) for k, value in enumerate(values) if value is not None)
    for line, kinds in executed["lines"].items():
        for name, value in kinds.items():
            yield row("flops", value, line=_quoted(line), kind=_quoted(name))
    for name, value in executed["layers"].items():
        yield row("flops_layer", value, layer=_quoted(name))
    for name, layer in layers.items():
        quoted = _quoted(name)
        yield row("layer_size", layer["size"], layer=quoted)
        yield row("layer_weights", layer["weights"], layer=quoted)
        yield row("layer_learning", layer["learning"], layer=quoted)
    for update in masks["history"]:
        for name in UPDATE:
            yield row(f"mask_{name}", update[name], update["task"], update["epoch"], update["step"])
    for task, removals in enumerate(results["data"]["removed"]):
        for removal in removals:
            yield row("removed", removal["removed"], task, removal["epoch"])
            yield row("remaining", removal["remaining"], task, removal["epoch"])
            yield row("removed_tied", removal["tied"], task, removal["epoch"])
    yield from (row("presented", value, task) for task, value in enumerate(results["data"]["presented"]))
    for task, losses in enumerate(results["losses"]):
        yield from (row("loss", value, task, epoch) for epoch, value in enumerate(losses))


def row(
    quantity: str, value: float, task: int | str = "", epoch: int | str = "", step: int | str = "",
    on: int | str = "", line: str = "", kind: str = "", layer: str = "",
) -> str:  # fmt: skip
    """Return the end of a line of the table; every digit of ``value`` is written."""
    return f"{quantity},{task},{on},{epoch},{step},{line},{kind},{layer},{value!r}"


def _quoted(text: str) -> str:
    """Return a text as a field of a CSV file."""
    if any(sign in text for sign in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
