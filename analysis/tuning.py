"""Choose hyper-parameters from a matrix that sweeps them on held-out training images (``docs/tuning.md``).

A search is an ordinary plan: its stream has the option ``validation`` and its groups sweep parameters. For each
stream, method, sparsity and buffer the point of the grid with the highest mean final average accuracy over the seeds
is chosen: Class-IL, or Task-IL for methods that have no Class-IL. Of equal means the one with fewer executed training
FLOPs is chosen, then the earlier one. A point that lacks a seed cannot be chosen and is listed with the reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import yaml

from analysis import statistics
from analysis.frames import DONE, Results
from analysis.plan import shown
from analysis.statistics import Summary
from analysis.typeset import Column, Measure, Row, Table
from sparcl.errors import UserError, one_line
from sparcl.groups import Config, Group

METRICS = {"class_il": "Class-IL", "task_il": "Task-IL"}
SAME = 1e-9
"""Means closer than this (percent) are equal: they differ by rounding alone."""
DIGITS = 4


@dataclass(frozen=True)
class Point:
    """One combination of values of a grid.

    Attributes:
        index: place in the grid.
        scores: seed to accuracy, percent, of the finished cells.
        lacking: why seeds are missing, a line each; empty for a point that can be chosen.
        flops: executed training FLOPs, mean over the finished cells.
        is_default: whether a cell has these values without a search.
    """

    index: int
    values: Mapping[str, Any]
    scores: Mapping[int, float]
    lacking: tuple[str, ...]
    flops: float
    is_default: bool

    @cached_property
    def summary(self) -> Summary:
        """Mean and deviation over the seeds."""
        return statistics.summarize(list(self.scores.values()))

    @property
    def text(self) -> str:
        return ", ".join(f"{key} = {shown(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Choice:
    """Everything that was tried for one stream, method, sparsity and buffer, the best point first.

    Attributes:
        points: the complete ones by rank, then the others in the grid's order.
        reason: what decided between the first two: ``mean``, ``flops`` or ``order``; ``alone`` for a single one.
        identities: of the finished cells, in the plan's order.
    """

    stream: str
    method: str
    label: str
    sparsity: float
    buffer: int
    metric: str
    grid_source: str
    points: tuple[Point, ...]
    reason: str
    identities: tuple[str, ...]

    @property
    def best(self) -> Point | None:
        """The chosen point; None if no point has all its seeds."""
        return self.points[0] if not self.points[0].lacking else None

    @property
    def complete(self) -> list[Point]:
        return [point for point in self.points if not point.lacking]

    @property
    def default(self) -> Point | None:
        """The point that a cell has without a search, where the grid holds it and it is complete."""
        return next((point for point in self.complete if point.is_default), None)

    @property
    def title(self) -> str:
        return f"{self.method}, sparsity {self.sparsity:g}, buffer {self.buffer}"


def choose(results: Results) -> list[Choice]:
    """Rank the points of every grid of a search.

    Raises:
        UserError: the plan is no search, cells of one choice differ in more than what is swept, or no grid has a
            complete point.
    """
    plan = results.plan
    if not held_out(results) or not any(_swept(plan.config, row.groups, row.method) for row in _rows(results.frame)):
        raise UserError(
            f"{plan.path}: expected a search: stream_options.validation and a group with 'grid: true' or 'set'"
        )
    identities = {entry["path"]: entry["identity"] for entry in plan.cells}
    choices = []
    for _, rows in results.frame.groupby(["method", "sparsity", "buffer"], sort=False):
        keys = sorted({key for row in _rows(rows) for key in _swept(plan.config, row.groups, row.method)})
        if keys:
            _require_comparable(results, rows, keys)
            choices.append(_choice(results, rows, keys, identities))
    if not any(choice.best for choice in choices):
        example = next(line for choice in choices for line in _lacking(choice))
        raise UserError(f"{plan.path}: no point of any grid has all its seeds: {example}")
    return choices


def held_out(results: Results) -> float:
    """Share of the training images that replaces the test images; 0 for a matrix that is no search."""
    return float((results.plan.config.get("stream_options") or {}).get("validation") or 0)


def _rows(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples(index=False))


def _swept(config: Config, groups: Sequence[str], method: str) -> set[str]:
    """Parameters that the groups of a cell sweep."""
    found: set[str] = set()
    for group in groups:
        entry = config.get("groups", {}).get(group, Group())
        grid = entry.get("grid", {}).get(method)
        found |= set(grid["set"] if grid else entry.get("set", {}) | entry.get("alone", {}))
    return found


def _grid_source(config: Config, rows: pd.DataFrame) -> str:
    found: dict[str, None] = {}
    for row in _rows(rows):
        for group in row.groups:
            entry = config["groups"].get(group, Group())
            if grid := entry.get("grid"):
                found[grid[row.method]["source"]] = None
            elif entry.get("set") or entry.get("alone"):
                found["the config"] = None
    return "; ".join(found)


def _require_comparable(results: Results, rows: pd.DataFrame, keys: Sequence[str]) -> None:
    """Refuse cells that differ in more than the swept parameters and the seed."""
    first = rows.iloc[0]
    for row in _rows(rows):
        for key in results.plan.fields:
            if key != "seed" and getattr(row, key) != first[key]:
                raise UserError(
                    f"{results.plan.path}: {row.path} and {first.path}: expected one '{key}' for all points of a grid, "
                    f"found {getattr(row, key)!r} and {first[key]!r}"
                )
        names = {*row.params, *first.params} - set(keys)
        for key in sorted(names):
            if row.params.get(key) != first.params.get(key):
                raise UserError(
                    f"{results.plan.path}: {row.path} and {first.path}: expected one '{key}' for all points of a grid, "
                    f"which does not sweep it, found {row.params.get(key)!r} and {first.params.get(key)!r}"
                )


def _choice(results: Results, rows: pd.DataFrame, keys: Sequence[str], identities: Mapping[str, str]) -> Choice:
    first = rows.iloc[0]
    metric = "task_il" if rows.task_il_only.any() else "class_il"
    seeds = sorted({int(seed) for seed in rows.seed})
    points = [
        _point(index, part, keys, metric, seeds)
        for index, (_, part) in enumerate(rows.groupby("configuration", sort=False))
    ]
    # Means that are equal but for rounding must also be equal in the order.
    complete = sorted(
        (point for point in points if not point.lacking),
        key=lambda point: (-round(point.summary.mean / SAME), point.flops, point.index),
    )
    reason = "alone"
    if len(complete) > 1:
        one, two = complete[:2]
        apart = round(one.summary.mean / SAME) != round(two.summary.mean / SAME)
        reason = "mean" if apart else "flops" if one.flops != two.flops else "order"
    return Choice(
        first.stream, first.method, first.label, float(first.sparsity), int(first.buffer), metric,
        _grid_source(results.plan.config, rows), (*complete, *(point for point in points if point.lacking)), reason,
        tuple(identities[path] for path in rows.path[rows.status == DONE]),
    )  # fmt: skip


def _point(index: int, rows: pd.DataFrame, keys: Sequence[str], metric: str, seeds: Sequence[int]) -> Point:
    first = rows.iloc[0]
    scores, lacking = {}, []
    for row in _rows(rows):
        if row.status != DONE:
            lacking.append(f"seed {row.seed}: {row.reason}")
        elif math.isnan(getattr(row, metric)):
            lacking.append(f"seed {row.seed}: the record has no {METRICS[metric]} accuracy")
        else:
            scores[int(row.seed)] = float(getattr(row, metric))
    lacking += [f"seed {seed}: not planned" for seed in seeds if seed not in set(rows.seed)]
    is_default = not any(setting.partition("=")[0] in keys for setting in first.settings)
    values = {key: first.params[key] for key in keys}
    return Point(index, values, dict(sorted(scores.items())), tuple(lacking), float(rows.flops_executed.mean()),
                 is_default)  # fmt: skip


def _lacking(choice: Choice) -> list[str]:
    return [f"{choice.title}: {point.text}: {line}" for point in choice.points for line in point.lacking]


def lines_lacking(choices: Sequence[Choice]) -> list[str]:
    """One line for each seed that a point lacks, and for each grid without a choice."""
    lines = [line for choice in choices for line in _lacking(choice)]
    return lines + [f"{choice.title}: no choice, no point has all its seeds" for choice in choices if not choice.best]


# What is written.


def document(results: Results, choices: Sequence[Choice]) -> dict[str, Any]:
    """The choice as a file of hyper-parameters (``components``), and what it rests on (``search``)."""
    config = results.plan.config
    streams = (config.get("tune") or {}).get("streams") or [config["stream"]]
    share = held_out(results)
    identities = sorted(identity for choice in choices for identity in choice.identities)
    return {
        "components": [
            _entry(results, choice, stream, share) for stream in streams for choice in choices if choice.best
        ],
        "search": {
            "plan": results.plan.name,
            "stream": config["stream"],
            "validation": share,
            "records": len(identities),
            "planned": len(results.frame),
            "records_sha256": _digest(identities),
            "lacking": lines_lacking(choices),
        },
    }


def _entry(results: Results, choice: Choice, stream: str, share: float) -> dict[str, Any]:
    """An entry that :func:`sparcl.cell.make` reads: for which cells, which values, why."""
    best = choice.best
    assert best is not None
    held = f"{METRICS[choice.metric]} on {100 * share:g} % of {choice.stream}'s training images, held out"
    entry: dict[str, Any] = {
        "where": {"stream": stream, "method": choice.method, "sparsity": choice.sparsity, "buffer": choice.buffer},
        "values": dict(best.values),
        "source": f"search {results.plan.name}: highest mean {held}; grid: {choice.grid_source}",
        "evidence": {
            "metric": choice.metric,
            **_numbers(best),
            "seeds": list(best.scores),
            "points": len(choice.points),
            "complete": len(choice.complete),
            "decided_by": choice.reason,
        },
    }
    evidence = entry["evidence"]
    if len(choice.complete) > 1:
        evidence["runner_up"] = _against(choice.complete[1], best)
    if choice.default is not None:
        evidence["default"] = _against(choice.default, best)
    evidence["records_sha256"] = _digest(choice.identities)
    evidence["lacking"] = _lacking(choice)
    return entry


def _numbers(point: Point) -> dict[str, Any]:
    deviation = point.summary.sd
    return {
        "mean": round(point.summary.mean, DIGITS),
        "sd": None if math.isnan(deviation) else round(deviation, DIGITS),
        "n": point.summary.n,
    }


def _against(point: Point, best: Point) -> dict[str, Any]:
    """A point's values and numbers, and how far the chosen one is above it on the same seeds."""
    paired = statistics.compare(best.scores, point.scores)
    return {
        "values": dict(point.values),
        **_numbers(point),
        "difference": round(paired.mean, DIGITS),
        "difference_sd": None if math.isnan(paired.sd) else round(paired.sd, DIGITS),
    }


def _digest(identities: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(identities)).encode()).hexdigest()


class _Plain(yaml.SafeDumper):
    """Every value written out where it stands."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(results: Results, choices: Sequence[Choice]) -> str:
    """``tuned.yaml``."""
    head = (
        f"# Chosen by the search {one_line(results.plan.name)}; another matrix uses it with\n"
        f"#   hyperparameters: results/{one_line(results.plan.name)}/tuned.yaml\n"
    )
    return head + yaml.dump(document(results, choices), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)


def table(results: Results, choices: Sequence[Choice]) -> Table:
    """All points of all grids, the chosen one of each first."""
    columns = (
        Column("stream", "Stream", csv_only=True),
        Column("method", "method", csv_only=True),
        Column("label", "Method"),
        Column("sparsity", "Sparsity", "number"),
        Column("buffer", "Buffer", "integer"),
        Column("values", "Values"),
        Column("metric", "Accuracy"),
        Column("accuracy", "Held out", "measure", unit="%"),
        Column("difference", "Below the best", "number", unit="points"),
        Column("difference_sd", "Deviation of the difference", "number", unit="points", csv_only=True),
        Column("flops", "Training FLOPs", "flops"),
        Column("chosen", "Chosen", "flag"),
        Column("default", "Default", "flag"),
        Column("lacking", "Lacking"),
    )
    rows = []
    for choice in choices:
        for point in choice.points:
            best = choice.best
            paired = None if best is None or point.lacking else statistics.compare(best.scores, point.scores)
            rows.append(
                Row(
                    {
                        "stream": choice.stream, "method": choice.method, "label": choice.label,
                        "sparsity": choice.sparsity, "buffer": choice.buffer, "values": point.text,
                        "metric": METRICS[choice.metric], "accuracy": Measure(point.summary),
                        "difference": paired and paired.mean, "difference_sd": paired and paired.sd,
                        "flops": point.flops, "chosen": point is best, "default": point.is_default,
                        "lacking": "; ".join(point.lacking),
                    },
                    choice.title,
                )
            )  # fmt: skip
    notes = (
        f"Mean and standard deviation over the seeds of the final average accuracy on {100 * held_out(results):g} % "
        "of the training images, held out; the test images are not used. Below the best: the chosen point minus this "
        "one on the same seeds. There are no tests and the chosen mean is optimistic, since the choice is made on "
        "these very numbers. Default: the values that a cell has without a search.",
    )
    return Table("tuning", f"{results.plan.title}: all points", columns, rows, notes, lines_lacking(choices))
