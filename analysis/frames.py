"""A plan and its run records as one tidy frame: a row per planned cell, whether it was run or not.

Nothing is mixed and nothing is dropped. A record that is damaged, or that belongs to another cell, another
config, other code or other data than the plan says, is refused with its file's name. A planned cell without a
record stays in the frame with a ``status`` and a ``reason``, so that every table and figure can say what it
lacks. A record that the plan does not name is listed and left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from sparcl.errors import UserError, one_line

PLAN_SCHEMA = "sparcl-plan/1"
SWEEPS = {"ddr-proportion": "ddr.proportion", "ddr-cutoff": "ddr.cutoff", "dgm-sparsity": "dgm.sparsity"}
DONE, FAILED, NOT_RUN = "done", "failed", "not run"

CELL_FIELDS = (
    "stream", "method", "sparsity", "buffer", "seed", "model", "width", "epochs", "batch_size",
    "learning_rate", "precision", "device",
)  # fmt: skip
METRICS = (
    "class_il", "task_il", "forgetting_class_il", "forgetting_task_il", "forgetting_class_il_mammoth",
    "forgetting_task_il_mammoth", "bwt_class_il", "bwt_task_il", "fwt_task_il", "learning_class_il",
    "learning_task_il",
)  # fmt: skip
CLASS_IL_METRICS = tuple(name for name in METRICS if "class_il" in name)
MEMORY = ("weights", "indices", "gradients", "activations", "replay_memory", "optimizer", "total")

Reader = Callable[[Path], dict]


@dataclass(frozen=True)
class Plan:
    """The cells that were asked for: ``plan.json``, made from ``config``. ``reference`` is a method, or empty."""

    path: Path
    name: str
    title: str
    description: str
    reference: str
    cells: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        """Folder that holds the run records, beside the plan."""
        return self.path.parent / "runs"


@dataclass(frozen=True)
class Results:
    """A plan with what there is of it.

    Attributes:
        frame: one row per planned cell, in the plan's order; columns in :func:`collect`.
        records: path of the cell to its whole record, for the cells that are done.
        foreign: record files in the folder that the plan does not name, relative to it.
    """

    plan: Plan
    frame: pd.DataFrame
    records: Mapping[str, dict] = field(repr=False)
    foreign: tuple[str, ...] = ()

    @property
    def missing(self) -> pd.DataFrame:
        """Rows of the planned cells that have no record."""
        return self.frame[self.frame.status != DONE]


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read and check ``plan.json``.

    Raises:
        UserError: not there, not JSON, not a plan, a path that leaves the folder, or two cells alike.
    """
    path = Path(path)
    plan = _json(path)
    if not isinstance(plan, dict) or plan.get("schema") != PLAN_SCHEMA:
        found = plan.get("schema") if isinstance(plan, dict) else type(plan).__name__
        raise UserError(f"{path}: expected a plan with schema '{PLAN_SCHEMA}', found {found!r}")
    if not isinstance(plan.get("name"), str):
        raise UserError(f"{path}: key 'name': expected a string, found {plan.get('name')!r}")
    for key in ("reference", "title", "description"):
        if not isinstance(plan.get(key), str | None):
            raise UserError(f"{path}: key '{key}': expected a string or null, found {plan[key]!r}")
    cells = plan.get("cells")
    if not isinstance(cells, list) or not cells:
        raise UserError(f"{path}: key 'cells': expected a list of at least one cell")
    seen: dict[str, int] = {}
    for index, entry in enumerate(cells):
        _check_entry(path, index, entry)
        for key in (entry["path"], entry["identity"]):
            if key in seen:
                first = f"cells[{seen[key]}]"
                raise UserError(f"{path}: cells[{index}]: the same cell as {first} ({entry['path']})")
            seen[key] = index
    texts = (plan.get("title") or plan["name"], plan.get("description") or "", plan.get("reference") or "")
    config = plan.get("config", {})
    if not isinstance(config, dict):
        raise UserError(f"{path}: key 'config': expected an object, found {type(config).__name__}")
    return Plan(path, plan["name"], *texts, tuple(cells), config)


def _json(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates cannot be written to any file
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON ({one_line(error, 120)})") from None
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check_entry(path: Path, index: int, entry: Any) -> None:
    def refuse(what: str) -> UserError:
        return UserError(f"{path}: cells[{index}]: {what}")

    if not isinstance(entry, dict):
        raise refuse("expected an object")
    for key, kind in {"path": str, "identity": str, "cell": dict, "groups": list}.items():
        if not isinstance(entry.get(key), kind):
            raise refuse(f"key '{key}': expected {kind.__name__}, found {type(entry.get(key)).__name__}")
    parts = entry["path"].split("/")
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
        raise refuse(f"path {entry['path'][:80]!r}: expected a relative path without '..'")
    if absent := [key for key in CELL_FIELDS if key not in entry["cell"]]:
        raise refuse(f"key 'cell': lacks {', '.join(absent)}")
    cell = entry["cell"]
    for key in ("sparsity", "buffer", "seed"):
        if isinstance(cell[key], bool) or not isinstance(cell[key], int | float):
            raise refuse(f"key 'cell.{key}': expected a number, found {cell[key]!r}")
    for key in ("stream", "method"):
        if not isinstance(cell[key], str):
            raise refuse(f"key 'cell.{key}': expected a string, found {cell[key]!r}")
    if not isinstance(cell.get("params", {}), dict):
        raise refuse("key 'cell.params': expected an object")
    if not all(isinstance(group, str) for group in entry["groups"]):
        raise refuse("key 'groups': expected a list of strings")


def collect(plan_path: str | os.PathLike[str], read: Reader | None = None) -> Results:
    """Read a plan and every record it names.

    Args:
        plan_path: ``plan.json``; records are expected at ``runs/<cell path>/record.json`` beside it.
        read: reader of one record that checks schema and checksum; :func:`sparcl.running.record.read` by default.

    Returns:
        The frame has the cell's fields (``stream``, ``method``, ``sparsity``, ...), ``path``,
        ``configuration`` (the path without its seed), ``groups``, ``variant``, ``setting`` (what tells it
        from other configurations of that method, sparsity and buffer), ``sweep_only``, ``params``,
        ``status``, ``reason``, what the record says of the method (``label``, ``family``, ``learner``,
        ``bundle``, ``policy_*``), metrics in percent, FLOPs (``flops_executed``, ``flops_evaluation``,
        ``flops_paper``, ``flops_dense``), memory in bytes (``memory_*``, ``paper_memory_*``) and seconds.

    Raises:
        UserError: the plan is not one, or a record is damaged or not the planned one.
    """
    reader = read
    if reader is None:
        import sparcl.running.record

        reader = sparcl.running.record.read
    plan = read_plan(plan_path)
    records: dict[str, dict] = {}
    refusals: list[str] = []
    data: dict[str, tuple[str, Path]] = {}
    rows = []
    for entry in plan.cells:
        file = plan.runs / entry["path"] / "record.json"
        row = _planned(entry)
        if _exists(file):
            try:
                record = _checked(plan, file, entry, reader)
                _check_data(record, file, data)
            except UserError as error:
                refusals.append(str(error))
                continue
            records[entry["path"]] = record
            row |= _measured(record)
        else:
            row |= _absent(file.with_name("failed.json"))
        rows.append(row)
    if refusals:
        more = f" (and {len(refusals) - 1} more records are refused)" if len(refusals) > 1 else ""
        raise UserError(refusals[0] + more)
    frame = pd.DataFrame(rows)
    _describe_unrun(frame)
    frame["setting"] = _settings(frame)
    return Results(plan, frame, records, _foreign(plan))


def _exists(file: Path) -> bool:
    return os.path.lexists(file)


def _checked(plan: Plan, file: Path, entry: Mapping[str, Any], read: Reader) -> dict:
    if not file.resolve().is_relative_to(plan.runs.resolve()):
        raise UserError(f"{file}: expected a file inside {plan.runs}, found a link to somewhere else")
    record = read(file)
    wanted, found = entry["cell"], record["cell"]
    if different := sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key)):
        key = different[0]
        raise UserError(
            f"{file}: record of another cell: '{key}' is {one_line(found.get(key), 60)}, "
            f"the plan says {one_line(wanted.get(key), 60)}"
        )
    if record["identity"] != entry["identity"]:
        raise UserError(
            f"{file}: record of other code, data or library versions (identity {record['identity'][:12]}, "
            f"the plan says {entry['identity'][:12]}); run the cell again or remove the file"
        )
    return record


def _check_data(record: Mapping[str, Any], file: Path, seen: dict[str, tuple[str, Path]]) -> None:
    """Refuse a record whose images are not those of the first record of the same stream and options."""
    cell, digest = record["cell"], record["provenance"]["data"]
    key = json.dumps([cell["stream"], cell.get("stream_options")], sort_keys=True)
    first, where = seen.setdefault(key, (digest, file))
    if digest != first:
        raise UserError(f"{file}: record of other data (digest {digest[:12]}) than {where} ({first[:12]})")


def _planned(entry: Mapping[str, Any]) -> dict[str, Any]:
    cell = entry["cell"]
    groups = tuple(entry["groups"])
    return {
        "path": entry["path"],
        "configuration": entry["path"].rpartition("/")[0],
        "groups": groups,
        "sweep_only": bool(groups) and set(groups) <= set(SWEEPS),
        **{key: cell[key] for key in CELL_FIELDS},
        "params": cell.get("params") or {},
    }


def _measured(record: Mapping[str, Any]) -> dict[str, Any]:
    method, results, measured = record["method"], record["results"], record["measured"]
    policies = method["policies"]
    flops, memory = results["flops"], results["memory"]
    row = {
        "status": DONE,
        "reason": "",
        "variant": record["variant"],
        "stream_label": record["stream"]["label"],
        "label": method["label"],
        "family": method["family"],
        "learner": method["learner"],
        "policy_sparsity": policies.get("sparsity") or "",
        "policy_gradient": policies.get("gradient") or "",
        "policy_data": policies.get("data") or "",
        "task_il_only": bool(method["task_il_only"]),
        **{name: _number(results["metrics"].get(name)) for name in METRICS},
        "flops_executed": float(flops["executed"]["training"]),
        "flops_evaluation": float(flops["executed"]["evaluation"]),
        "flops_paper": _number(flops["paper"].get("training")),
        "flops_dense": _number(flops["dense"].get("training")),
        "data_fraction": _number(flops["paper"].get("data_fraction")),
        **{f"memory_{name}": _number(memory["suite"].get(name)) for name in MEMORY},
        "paper_memory_ablation": _number(memory["paper"].get("ablation_table")),
        "paper_memory_phone": _number(memory["paper"].get("phone")),
        "wall_seconds": _number(measured.get("wall_seconds")),
        "train_seconds": _number(measured.get("train_seconds")),
        "peak_rss_bytes": _number(measured.get("peak_rss_bytes")),
    }
    if row["task_il_only"]:
        row |= dict.fromkeys(CLASS_IL_METRICS, np.nan)
    return row


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _absent(failed: Path) -> dict[str, Any]:
    if not _exists(failed):
        return {"status": NOT_RUN, "reason": "not run"}
    try:
        error = json.loads(failed.read_text(encoding="utf-8"))["error"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        error = f"{failed.name} cannot be read"
    return {"status": FAILED, "reason": "failed: " + one_line(error, 200)}


def _describe_unrun(frame: pd.DataFrame) -> None:
    """Fill in what a missing cell's record would say of its method, from the method's other cells.

    A method without any record is described by its name alone: the learner is the last part of it.
    """
    described = ("label", "family", "learner", "policy_sparsity", "policy_gradient", "policy_data")
    text = (*described, "stream_label", "variant")
    for column in (*text, "task_il_only", *METRICS, "flops_executed", "flops_paper", "flops_dense"):
        if column not in frame:
            frame[column] = np.nan
    for column in text:
        frame[column] = frame[column].astype(object)
    frame["task_il_only"] = frame["task_il_only"].astype(object)
    done = frame[frame.status == DONE]
    known = done.drop_duplicates("method").set_index("method")
    streams = done.drop_duplicates("stream").set_index("stream").stream_label
    for index in frame.index[frame.status != DONE]:
        method, sparsity = frame.at[index, "method"], frame.at[index, "sparsity"]
        if method in known.index:
            values = known.loc[method]
        else:
            prefix, _, learner = method.rpartition("-")
            dense = "rehearsal" if frame.at[index, "buffer"] else "bound"
            family = "sparcl" if prefix == "sparcl" else "sparse-baseline" if sparsity else dense
            values = {"label": method, "family": family, "learner": learner, "task_il_only": False}
        for column in (
            "label",
            "family",
            "learner",
            "policy_sparsity",
            "policy_gradient",
            "policy_data",
            "task_il_only",
        ):
            frame.at[index, column] = values.get(column, "")
        frame.at[index, "stream_label"] = streams.get(frame.at[index, "stream"], frame.at[index, "stream"])
        frame.at[index, "variant"] = _variant_of(frame.at[index, "configuration"])
    frame["task_il_only"] = frame["task_il_only"].astype(bool)
    frame["bundle"] = [
        method.removesuffix(learner).rstrip("-") for method, learner in zip(frame.method, frame.learner, strict=True)
    ]


def _variant_of(configuration: str) -> str:
    """The part of a cell's path that names its non-default settings, if it has one."""
    last = PurePosixPath(configuration).name
    return last if "=" in last else ""


def _settings(frame: pd.DataFrame) -> list[str]:
    """What each configuration has beyond the others of its method, sparsity and buffer; may be empty."""
    items = [tuple(part for part in str(variant).split(",") if part) for variant in frame.variant]
    common: dict[tuple, set[str]] = {}
    keys = list(zip(frame.stream, frame.method, frame.sparsity, frame.buffer, strict=True))
    for key, parts in zip(keys, items, strict=True):
        common[key] = common[key] & set(parts) if key in common else set(parts)
    return [
        ", ".join(part for part in parts if part not in common[key]) for key, parts in zip(keys, items, strict=True)
    ]


def _foreign(plan: Plan) -> tuple[str, ...]:
    named = {entry["path"] for entry in plan.cells}
    found = []
    for folder, _, files in os.walk(plan.runs):
        if "record.json" in files:
            path = Path(folder).relative_to(plan.runs).as_posix()
            if path not in named:
                found.append(f"{path}/record.json")
    return tuple(sorted(found))


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows for the comparisons between methods: all but the settings that only a sweep asked for."""
    return frame[~(frame.sweep_only & (frame.setting != ""))]


def in_group(frame: pd.DataFrame, group: str) -> pd.DataFrame:
    """Rows that a group of the matrix named."""
    return frame[[group in groups for groups in frame.groups]]


def by_seed(rows: pd.DataFrame, metric: str) -> dict[int, float]:
    """Seed to value of ``metric`` over the finished cells of one configuration."""
    done = rows[rows.status == DONE]
    return dict(zip(done.seed, done[metric], strict=True))


def missing_lines(rows: pd.DataFrame) -> list[str]:
    """One line per configuration among ``rows`` that lacks cells: which seeds, and why."""
    lines = []
    absent = rows[rows.status != DONE]
    for (configuration, reason), group in absent.groupby(["configuration", "reason"], sort=False):
        seeds = ", ".join(str(seed) for seed in sorted(group.seed))
        lines.append(f"{configuration}: seed{'s' if len(group) > 1 else ''} {seeds}: {reason}")
    return lines
