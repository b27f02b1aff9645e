"""The plan of a matrix: a file that is made once and holds all that follows from the settings of its cells.

Jobs on other nodes, the progress display and the analysis read it and plan nothing again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

from sparcl import budget, methods, resolve, streams
from sparcl.cell import Cell
from sparcl.costs import planning
from sparcl.files import atomic, locks
from sparcl.matrix import DENSE, Matrix
from sparcl.models import EVALUATION_BATCH
from sparcl.running.identity import contents, identity, kernel_of

SCHEMA = "sparcl-plan/2"
START_SECONDS = 1.0
"""What a cell takes beside its steps, for the first estimate."""
FLOPS_PER_SECOND, STEP_SECONDS = {"cpu": 4e10, "cuda": 5e12}, {"cpu": 2e-3, "cuda": 2e-2}
"""Of one core or one GPU, for the first estimate: convolutions of a small network, and what a step takes beside them.
Those of a GPU are a cautious guess and not measured."""
MEGABYTES = {"cpu": 1000, "cuda": 4000}
"""Of a process with the libraries loaded and the Snakemake process of its job; with a GPU a guess and not measured."""


class Entry(TypedDict):
    """A planned cell."""

    path: str
    groups: list[str]
    cell: dict[str, Any]
    variant: dict[str, Any]
    identity: str
    planned: dict[str, Any]
    resources: dict[str, float]


class Plan(TypedDict):
    """What plan.json holds; ``docs/pipeline.md`` explains the keys."""

    schema: str
    name: str
    title: str
    description: str
    reference: str | None
    config: dict[str, Any]
    analysis: dict[str, Any] | None
    stream: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    bundles: dict[str, str]
    cells: list[Entry]


@streams.remembered()
def make(matrix: Matrix) -> Plan:
    """Return the plan of a checked matrix."""
    config = matrix.config
    described = streams.describe(config["stream"], dict(config.get("stream_options", {})))
    files = contents(matrix.cells[0])
    per_task = described.classes // described.tasks
    return {
        "schema": SCHEMA,
        "name": matrix.name,
        "title": config["title"],
        "description": config.get("description", ""),
        "reference": config.get("reference"),
        "config": dict(config),
        "analysis": None if matrix.analysis is None else dict(matrix.analysis),
        "stream": {
            "name": config["stream"],
            "label": described.label,
            "tasks": described.tasks,
            "classes": [list(range(t * per_task, (t + 1) * per_task)) for t in range(described.tasks)],
            "train_sizes": list(described.train_sizes),
            "test_sizes": list(described.test_sizes),
            "shape": list(described.shape),
            "files": files,
        },
        "methods": {name: _method(name) for name in dict.fromkeys(cell.method for cell in matrix.cells)},
        "bundles": _bundles(matrix),
        "cells": [
            {
                "path": cell.path,
                "groups": list(groups),
                "cell": cell.as_dict(),
                "variant": dict(cell.variant),
                "identity": identity(cell, lambda _: files),
                "planned": planning.facts(cell),
                "resources": resources(cell),
            }
            for cell, groups in zip(matrix.cells, matrix.groups, strict=True)
        ],
    }


def _method(name: str) -> dict[str, Any]:
    found = methods.get(name)
    return {
        "label": found.label,
        "family": found.family,
        "learner": found.learner,
        "policies": {kind: found.policies.get(kind) for kind in methods.KINDS},
        "task_il_only": found.task_il_only,
    }


def _bundle(name: str) -> str:
    """Return what contrasts call a method: its bundle, itself where it has a name of its own, or "dense"."""
    learner = methods.get(name).learner
    return DENSE if name == learner else name.removesuffix(f"-{learner}")


def _bundles(matrix: Matrix) -> dict[str, str]:
    """Return what tables call the bundles of the matrix and of its planned contrasts, and methods of their own name."""
    here = {cell.method for cell in matrix.cells}
    labels = {name: bundle.label for name, bundle in methods.bundles().items()}
    labels |= {name: methods.get(name).label for name in here if _bundle(name) == name}
    named = {_bundle(name) for name in here}
    if matrix.analysis is not None:
        named |= {contrast[side] for contrast in matrix.analysis["contrasts"] for side in ("first", "second")}
    return {name: label for name, label in sorted(labels.items()) if name in named}


def resources(cell: Cell) -> dict[str, float]:
    """Return a first estimate of what a cell needs: seconds of one core, with a GPU where it has one, and megabytes."""
    facts = planning.facts(cell)
    info = streams.describe(cell.stream, dict(cell.stream_options))
    steps = cell.epochs * sum(info.train_sizes) / cell.batch_size
    computed = facts["weight_density"] if kernel_of(cell)["kernel"] == "sparse" else 1.0
    computing = computed * facts["flops_dense"] / FLOPS_PER_SECOND[cell.device]
    seconds = START_SECONDS + steps * STEP_SECONDS[cell.device] + computing
    held = 2.0 * math.prod(info.shape) * (sum(info.train_sizes) + sum(info.test_sizes))
    if cell.device == "cpu":
        one = facts["memory"]["activations"] / planning.images_at_once(cell)
        held += 3 * facts["memory"]["activations"] + EVALUATION_BATCH * one
        held += 8 * 4 * facts["memory"]["dense_parameters"]
    return {"seconds": round(seconds, 2), "memory_mb": round(MEGABYTES[cell.device] + held / 1e6)}


def write(plan: Plan, results: Path) -> Path | None:
    """Write ``plan`` to results/<name>/plan.json unless it is there already; return the file.

    None where a run is at work in that folder, whose plan stays as it is.
    """
    target = results / plan["name"] / "plan.json"
    text = json.dumps(plan, indent=1, sort_keys=True, allow_nan=False) + "\n"
    try:
        unchanged = target.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        unchanged = False
    if unchanged:
        return target
    if not locks.is_free(target.parent / locks.RUN):
        return None
    atomic.write_text(target, text)
    return target


# -- what of it is done ------------------------------------------------------------------------------------------------
def summary(plan: Plan, results: Path) -> list[str]:
    """Return what a plan holds, what of it is done, and how long the rest takes by the records that exist."""
    state = _measured(plan, results)
    cells = plan["cells"]
    lines = [f"{plan['title']}: {len(cells)} cells on {plan['config']['stream']}"]
    for group, whole in plan["config"]["groups"].items():
        inside = [entry for entry in cells if group in entry["groups"]]
        done = sum(entry["path"] in state.current for entry in inside)
        lines.append(
            f"  {group:<24} {len(inside):>5} cells, {done} done" + (_budget(inside) if "budget" in whole else "")
        )
    if untested := _untested(plan):
        lines.append(f"planned contrasts of methods that are not here: {', '.join(untested)}")
    todo = [entry["cell"] for entry in cells if entry["path"] not in state.current]
    lines.append(f"to run: {len(todo)} of {len(cells)}" + (f" ({state.stale} out of date)" if state.stale else ""))
    seconds = state.estimate(todo)
    if todo and seconds is not None:
        lines.append(f"estimated: {clock(seconds)} of one core, by {len(state.seconds)} measured cells")
    return lines


def _untested(plan: Plan) -> list[str]:
    """Return the planned contrasts of which the matrix lacks a side."""
    contrasts = plan["analysis"]["contrasts"] if plan["analysis"] else []
    here = {_bundle(name) for name in plan["methods"]}
    sides = [(contrast["first"], contrast["second"]) for contrast in contrasts]
    return [f"{first} minus {second}" for first, second in sides if not {first, second} <= here]


def _budget(cells: list[Entry]) -> str:
    """Return what the equal budget of a group's cells comes to in whole epochs."""
    flops = [budget.flops(resolve.from_dict(entry["cell"])) for entry in cells]
    return f", {min(flops):.2e} to {max(flops):.2e} training FLOPs each"


@dataclass
class _State:
    """Records found for a plan: current paths, how many are stale, and measured (cell, wall seconds)."""

    current: set[str]
    stale: int
    seconds: list[tuple[Mapping[str, Any], float]]

    def estimate(self, cells: list[dict[str, Any]]) -> float | None:
        """Return the core seconds that ``cells`` take: mean of the method, else of all, scaled by epochs."""
        if not self.seconds:
            return None
        overall = fmean(seconds / cell["epochs"] for cell, seconds in self.seconds)
        by_method: dict[str, list[float]] = {}
        for cell, seconds in self.seconds:
            by_method.setdefault(cell["method"], []).append(seconds / cell["epochs"])
        means = {method: fmean(values) for method, values in by_method.items()}
        return sum(cell["epochs"] * means.get(cell["method"], overall) for cell in cells)


def _measured(plan: Plan, results: Path) -> _State:
    state = _State(set(), 0, [])
    for entry in plan["cells"]:
        path = results / plan["name"] / "runs" / entry["path"] / "record.json"
        try:
            record = json.loads(path.read_bytes())
            seconds = float(record["measured"]["wall_seconds"])
            found = record["identity"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            state.stale += 1
            continue
        if found == entry["identity"]:
            state.current.add(entry["path"])
        else:
            state.stale += 1
        if math.isfinite(seconds):
            state.seconds.append((entry["cell"], seconds))
    return state


def clock(seconds: float) -> str:
    """Return a duration as people say it: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
