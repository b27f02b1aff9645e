"""The plan of a matrix: what ``plan.json`` says, read and checked. Light: neither pandas nor matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from sparcl.errors import UserError, one_line
from sparcl.files import typed_json
from sparcl.groups import Config

SCHEMA = "sparcl-plan/2"
LARGEST = 2**30
"""Bytes; the plan of 100,000 cells is smaller."""


class Sides(TypedDict):
    """A contrast: bundles of policies, or "dense"; first minus second."""

    first: str
    second: str


class Analysis(TypedDict):
    """A planned primary analysis; ``smallest_difference`` in points."""

    metric: Literal["class_il", "task_il"]
    smallest_difference: float
    alpha: float
    power: float
    correction: Literal["holm"]
    contrasts: list[Sides]


class Stream(TypedDict):
    """The stream: classes and sizes by task, shape (C, H, W)."""

    name: str
    label: str
    tasks: int
    train_sizes: list[int]


class Method(TypedDict):
    """A method: what tables call it, and what it is made of."""

    label: str
    family: str
    learner: str
    policies: dict[str, str | None]
    task_il_only: bool


class PlannedMemory(TypedDict):
    """What the memory rule needs of the network: parameters, those of them without a gradient, and bytes."""

    dense_parameters: int
    frozen: int
    buffers: int
    activations: int


class Planned(TypedDict):
    """What follows from the settings: FLOPs by the published and the dense convention, fractions, bytes."""

    flops_paper: float
    flops_dense: float
    data_fraction: float
    weight_density: float
    gradient_density: float
    replay_batches: float
    paper_memory_ablation: float
    paper_memory_phone: float
    memory: PlannedMemory


class CellEntry(TypedDict):
    """A planned cell; ``variant`` holds the settings that differ from what its name implies."""

    path: str
    groups: list[str]
    cell: dict[str, Any]
    variant: dict[str, Any]
    identity: str
    planned: Planned


class Document(TypedDict):
    """``plan.json``; keys that are not here are for others."""

    schema: Literal["sparcl-plan/2"]
    name: str
    title: str
    description: str
    reference: str | None
    config: Config
    analysis: Analysis | None
    stream: Stream
    methods: dict[str, Method]
    bundles: dict[str, str]
    cells: list[CellEntry]


class Identified(TypedDict):
    """Fields of a cell by which configurations are told apart."""

    stream: str
    method: str
    sparsity: float
    buffer: int
    seed: int
    params: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The cells that were asked for. ``reference`` is a method, or empty; ``bundles`` is what tables call each of them;
    ``document`` is the file as it stands."""

    path: Path
    document: Document
    name: str
    title: str
    description: str
    reference: str
    config: Config
    stream: Stream
    methods: Mapping[str, Method]
    bundles: Mapping[str, str]
    cells: tuple[CellEntry, ...]

    @property
    def runs(self) -> Path:
        """Folder that holds the run records, beside the plan."""
        return self.path.parent / "runs"

    @property
    def reference_parts(self) -> tuple[str, str]:
        """Bundle and learner of the reference; both empty where the plan has none."""
        if self.reference not in self.methods:
            return "", ""
        learner = self.methods[self.reference]["learner"]
        return bundle(self.reference, learner), learner

    @property
    def fields(self) -> list[str]:
        """Settings of a cell that are one value each, those of its path first."""
        leading = ["stream", "method", "sparsity", "buffer", "seed"]
        others = [key for key in self.cells[0]["cell"] if key not in (*leading, "stream_options", "params")]
        return leading + others


def read(path: str | Path) -> Plan:
    """Read and check ``plan.json``.

    Raises:
        UserError: not there, not JSON, not a plan, a path that leaves the folder, or two cells alike.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    data = typed_json.read(path, "plan", LARGEST)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{path}: expected a plan with schema '{SCHEMA}', found {one_line(repr(found), 60)}")
    document = cast(Document, data)
    problem = typed_json.problem(data, Document, closed=False) or _problem(document)
    if problem:
        raise UserError(f"{path}: {problem}")
    return Plan(
        path, document, data["name"], data["title"] or data["name"], data["description"], data["reference"] or "",
        data["config"], data["stream"], data["methods"], data["bundles"], tuple(data["cells"]),
    )  # fmt: skip


def _problem(plan: Document) -> str | None:
    """Say what is wrong beyond the types."""
    if not plan["cells"]:
        return "cells: expected at least one cell"
    if plan["stream"]["tasks"] < 1 or len(plan["stream"]["train_sizes"]) != plan["stream"]["tasks"]:
        return "stream.train_sizes: expected a number for each of at least one task"
    fields = plan["cells"][0]["cell"].keys()
    seen: dict[str, int] = {}
    for index, entry in enumerate(plan["cells"]):
        where = f"cells[{index}]"
        parts = entry["path"].split("/")
        if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
            return f"{where}: path {one_line(repr(entry['path']), 80)}: expected a relative path without '..'"
        for key in (entry["path"], entry["identity"]):
            if key in seen:
                return f"{where}: the same cell as cells[{seen[key]}] ({entry['path']})"
            seen[key] = index
        if wrong := typed_json.problem(entry["cell"], Identified, closed=False):
            return f"{where}.cell.{wrong}"
        if entry["cell"].keys() != fields:
            different = sorted(entry["cell"].keys() ^ fields)[0]
            return f"{where}.cell.{one_line(different, 40)}: expected the same settings as in cells[0]"
        if entry["cell"]["method"] not in plan["methods"]:
            return f"methods: expected '{one_line(entry['cell']['method'], 60)}', the method of {where}"
    return None


def bundle(method: str, learner: str) -> str:
    """Return the name of a method's policies: ``rigl-erk-er`` -> ``rigl-erk``; empty for the learner alone.

    A method with a name of its own is its own bundle (``packnet``, which is fine-tuning), as in the plan's ``bundles``.
    """
    return "" if method == learner else method.removesuffix(f"-{learner}")


def is_sparse_training(plan: Document, method: str) -> bool:
    """Whether a method is SparCL or one that it competes with (plug-ins of any family name too).

    SparCL without a part is one of its ablations, and a method as the others only where the plan's reference is such.
    """
    facts, reference = plan["methods"][method], plan["methods"].get(plan["reference"] or "")
    if facts["family"] == "ablation":
        return reference is not None and reference["family"] == "ablation"
    if facts["family"] in ("sparse-baseline", "sparcl"):
        return True
    return bool(facts["policies"].get("sparsity")) and facts["family"] not in ("isolation", "sibling")


def shown(value: Any) -> str:
    """Return a setting's value as paths and tables print it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
