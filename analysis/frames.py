"""The tidy table of a plan as data: a row per planned cell, whether it was run or not, and what lies behind it.

:func:`read` takes ``plan.json`` and the ``results.csv.gz`` that :mod:`analysis.collect` made of its records, and
nothing else. Every planned cell has a row with a ``status`` and a ``reason``: tables and figures say what they lack.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import plan as plans
from analysis.collect import COLUMNS, DIVERGED, DONE, FAILED, NOT_PLANNED, NOT_RUN, UPDATE, variant_of
from analysis.plan import Plan, shown
from sparcl.errors import UserError, one_line
from sparcl.groups import apart, in_main, swept

METRICS = (
    "class_il", "task_il", "forgetting_class_il", "forgetting_task_il", "forgetting_class_il_mammoth",
    "forgetting_task_il_mammoth", "bwt_class_il", "bwt_task_il", "fwt_task_il", "learning_class_il",
    "learning_task_il",
)  # fmt: skip
MEMORY = ("weights", "indices", "gradients", "activations", "replay_memory", "optimizer", "total")
NUMBERS = (
    *METRICS, "flops_executed", "flops_evaluation", "flops_paper", "flops_dense", "data_fraction",
    *(f"memory_{name}" for name in MEMORY), "paper_memory_ablation", "paper_memory_phone",
    "wall_seconds", "train_seconds", "peak_rss_bytes", "threads",
)  # fmt: skip
"""Quantities that a cell has one number of, as columns of the frame."""
POLICIES = ("sparsity", "gradient", "data")
TEXTS = ("path", "status", "reason", "quantity", "line", "kind", "layer")
PLACES = ("task", "on", "epoch", "step")


@dataclass(frozen=True)
class Results:
    """A plan with what there is of it.

    Attributes:
        frame: one row per planned cell, in the plan's order; columns in :func:`read`.
        values: the tidy table's numbers, a row each; ``path`` is a category in the plan's order.
        foreign: record files in the folder that the plan does not name, relative to it.
        folder: where the tidy table lies.
    """

    plan: Plan
    frame: pd.DataFrame
    values: pd.DataFrame = field(repr=False)
    foreign: tuple[str, ...] = ()
    folder: Path = Path()

    @functools.cached_property
    def _by_quantity(self) -> Mapping[str, pd.DataFrame]:
        groups = self.values.groupby("quantity", sort=False, observed=True)
        return {str(name): rows for name, rows in groups}

    def of(self, quantity: str, paths: Sequence[str]) -> pd.DataFrame:
        """Return the rows of a quantity for some cells, in the order of the table."""
        rows = self._by_quantity.get(quantity, self.values.iloc[:0])
        return rows[rows.path.isin(list(paths))]

    def matrices(self, paths: Sequence[str], kind: str = "class_il") -> np.ndarray:
        """Return accuracy matrices, ``(cells, task trained, task tested)``, percent; nan where unknown."""
        rows, tasks = self.of(f"accuracy_{kind}", paths), self.plan.stream["tasks"]
        rows = rows[rows.task.notna()]
        place = {path: index for index, path in enumerate(paths)}
        result = np.full((len(paths), tasks, tasks), np.nan)
        cells = rows.path.astype(str).map(place).to_numpy(int)
        result[cells, rows.task.to_numpy(int), rows.on.to_numpy(int)] = rows.value
        return result

    def line_flops(self, paths: Sequence[str]) -> dict[str, float]:
        """Return executed training FLOPs by line of the ledger, mean over cells; evaluation left out."""
        rows = self.of("flops", paths)
        sums = rows.groupby("line", sort=False, observed=True).value.sum() / max(len(paths), 1)
        return {str(line): float(value) for line, value in sums.items() if line != "evaluation"}

    def history(self, path: str) -> list[dict[str, float]]:
        """Return the mask updates of a cell: task, epoch, step, density, gradient_density, pruned, grown, churn."""
        parts = {name: self.of(f"mask_{name}", [path]) for name in UPDATE}
        events: list[dict[str, float]] = parts["density"][["task", "epoch", "step"]].to_dict("records")
        for name, rows in parts.items():
            for event, value in zip(events, rows.value, strict=True):
                event[name] = float(value)
        return events

    def layers(self, path: str) -> tuple[float, float]:
        """Return the number of maskable weights of a cell, and how many of them the final mask leaves."""
        return float(self.of("layer_size", [path]).value.sum()), float(self.of("layer_weights", [path]).value.sum())


def read(plan_path: str | Path, table: str | Path) -> Results:
    """Read a plan and the tidy table of its records.

    Returns:
        The frame has the cell's fields (``stream``, ``method``, ``sparsity``, ...), ``path``, ``configuration`` (the
        path without its seed), ``groups``, ``main`` (whether the comparisons between methods have it), ``variant``,
        ``setting`` (what tells it from other configurations of that method, sparsity and buffer), ``conditions`` (what
        of its protocol differs from what stream and method's name imply: epochs, loss, ...), ``params``, ``status``,
        ``reason``, what the plan says of the method (``label``, ``family``, ``learner``, ``bundle``,
        ``is_sparse_training``, ``policy_*``), and :data:`NUMBERS`: metrics in percent, FLOPs, bytes and seconds, nan
        where there is none.

    Raises:
        UserError: the plan is not one, or the table is not one of this plan.
    """
    plan = plans.read(plan_path)
    rows = _read_table(Path(table))
    foreign = tuple(rows.path[rows.status == NOT_PLANNED].astype(str))
    rows = rows[rows.status != NOT_PLANNED]
    paths = [entry["path"] for entry in plan.cells]
    if set(rows.path.unique()) != set(paths):
        raise UserError(f"{table}: table of another plan than {plan.path}; 'python -m analysis collect' makes it anew")
    rows["path"] = pd.Categorical(rows.path.astype(str), paths)
    cells = rows.drop_duplicates("path").set_index("path").loc[paths, ["status", "reason"]].astype(str)
    cells["reason"] = cells.reason.where(cells.reason != "nan", "")
    if wrong := set(cells.status) - {DONE, DIVERGED, FAILED, NOT_RUN}:
        raise UserError(f"{table}: unknown status '{one_line(min(wrong), 40)}'")
    rows = rows[rows.quantity.notna()].drop(columns=["status", "reason"])
    conditions = _conditions(plan)
    frame = pd.DataFrame([_planned(plan, entry, conditions) for entry in plan.cells])
    frame["status"], frame["reason"] = cells.status.to_numpy(), cells.reason.to_numpy()
    frame["setting"] = _settings(frame)
    single = pd.DataFrame(_pivot(rows, len(paths)), columns=NUMBERS)
    return Results(plan, pd.concat([frame, single], axis=1), rows, foreign, Path(table).parent)


def _read_table(table: Path) -> pd.DataFrame:
    """Read ``results.csv.gz``; its identification columns are left out, the plan has them."""
    types: Any = dict.fromkeys(TEXTS, "category") | dict.fromkeys(PLACES, "float64") | {"value": str}
    try:
        with table.open("rb") as file:
            rows = pd.read_csv(
                file, compression="gzip", usecols=list(types), dtype=types, keep_default_na=False,
                na_values={name: [""] for name in types},
            )  # fmt: skip
        rows["value"] = rows["value"].astype("float64")  # to the last bit, whichever parser pandas has
        return rows
    except FileNotFoundError:
        raise UserError(f"{table}: no such file; 'python -m analysis collect' makes it from run records") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{table}: expected a table with the columns {', '.join(COLUMNS)} ({one_line(error, 120)})"
        ) from None


def _planned(plan: Plan, entry: plans.CellEntry, conditions: Set[str]) -> dict[str, Any]:
    cell, method = entry["cell"], plan.methods[entry["cell"]["method"]]
    learner = method["learner"]
    return {
        "path": entry["path"],
        "configuration": entry["path"].rpartition("/")[0],
        "groups": tuple(entry["groups"]),
        "main": in_main(entry["groups"], apart(plan.config)),
        **{key: cell[key] for key in plan.fields},
        "sparsity": float(cell["sparsity"]),
        "params": {key: cell[key] for keys in swept(plan.config).values() for key in keys if key in cell}
        | cell["params"],
        "variant": variant_of(entry),
        "settings": tuple(f"{key}={shown(value)}" for key, value in sorted(entry["variant"].items())),
        "conditions": tuple((key, value) for key, value in sorted(entry["variant"].items()) if key in conditions),
        "stream_label": plan.stream["label"],
        "label": method["label"],
        "family": method["family"],
        "learner": learner,
        "bundle": plans.bundle(cell["method"], learner),
        "is_sparse_training": plans.is_sparse_training(plan.document, cell["method"]),
        **{f"policy_{kind}": method["policies"].get(kind) or "" for kind in POLICIES},
        "task_il_only": method["task_il_only"],
    }


def _conditions(plan: Plan) -> set[str]:
    """Return the settings of training's protocol (of no component) in which the cells differ beyond their names.

    Compared methods share them: epochs, width, loss, start of replay, ... Not where they compute.
    """
    keys = {key for entry in plan.cells for key in entry["variant"]}
    keys = {key for key in keys if key.startswith("protocol.") or ("." not in key and key not in ("kernel", "device"))}
    cells = [entry["cell"] for entry in plan.cells]
    return {key for key in keys if len({cell["params"].get(key, cell.get(key)) for cell in cells}) > 1}


def _settings(frame: pd.DataFrame) -> list[str]:
    """What each configuration has beyond the others of its method, sparsity and buffer; may be empty.

    Of a cell of the main comparisons, beyond the others there: a sweep leaves their names as they are.
    """
    keys = list(zip(frame.method, frame.sparsity, frame.buffer, strict=True))
    common: dict[tuple, set[str]] = {}
    for key, settings, main in zip(keys, frame.settings, frame.main, strict=True):
        for scope in ((*key, True), (*key, False)) if main else ((*key, False),):
            common[scope] = common.get(scope, set(settings)) & set(settings)
    return [
        ", ".join(part for part in settings if part not in common[*key, main])
        for key, settings, main in zip(keys, frame.settings, frame.main, strict=True)
    ]


def _pivot(rows: pd.DataFrame, cells: int) -> np.ndarray:
    """Numbers that a cell has one of, ``(cells, len(NUMBERS))``."""
    single = rows[rows.quantity.isin(NUMBERS)]
    place = {name: index for index, name in enumerate(NUMBERS)}
    columns = single.quantity.cat.rename_categories(str).astype(str).map(place).to_numpy(int)
    result = np.full((cells, len(NUMBERS)), np.nan)
    result[single.path.cat.codes.to_numpy(), columns] = single.value
    return result


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows for the comparisons between methods: all but the cells that only groups aside asked for."""
    return frame[frame.main]


def in_group(frame: pd.DataFrame, group: str) -> pd.DataFrame:
    """Rows that a group of the matrix named."""
    return frame[[group in groups for groups in frame.groups]]


def missing_lines(rows: pd.DataFrame) -> list[str]:
    """One line per configuration among ``rows`` that lacks cells: which seeds, and why."""
    lines = []
    absent = rows[rows.status != DONE]
    for (configuration, reason), group in absent.groupby(["configuration", "reason"], sort=False):
        seeds = ", ".join(str(seed) for seed in sorted(group.seed))
        lines.append(f"{configuration}: seed{'s' if len(group) > 1 else ''} {seeds}: {reason}")
    return lines
