"""The run record: what only the run of a cell can know, one JSON file, written once and atomically, with a checksum.

The types below say what a record holds; ``docs/records.md`` explains every key and its unit. Imports neither torch nor
anything that does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from sparcl.errors import UserError, one_line
from sparcl.files import atomic, typed_json

SCHEMA = "sparcl-record/2"
FILE = "record.json"
LARGEST = 64 * 2**20
"""Bytes; a larger file is no record of this suite."""

Matrix = list[list[float | None]]


class Untrained(TypedDict):
    """Accuracy in percent on every task before any training."""

    class_il: list[float | None]
    task_il: list[float | None]


class Accuracy(TypedDict):
    """Percent; row t after training task t, column k on task k; None where nothing was evaluated."""

    class_il: Matrix
    task_il: Matrix
    untrained: Untrained


class Executed(TypedDict):
    """FLOPs, one multiply-add being 2."""

    training: int
    evaluation: int
    lines: dict[str, dict[str, int]]
    layers: dict[str, int]


class MaskedLayer(TypedDict):
    """Weights of a layer: all, those that are not zero, those that receive a gradient."""

    size: int
    weights: int
    learning: int


class MaskUpdate(TypedDict):
    """Densities are fractions of all maskable weights; ``churn`` is pruned / maskable weights."""

    task: int
    epoch: int
    step: int
    density: float
    gradient_density: float
    pruned: int
    grown: int
    churn: float


class Masks(TypedDict):
    """The masks at the end of the run, by layer, and every update on the way."""

    layers: dict[str, MaskedLayer]
    history: list[MaskUpdate]


class Removal(TypedDict):
    """Samples of a task removed at the end of an epoch, how many remain, and the share of them that ties decided."""

    epoch: int
    removed: int
    remaining: int
    tied: float


class Data(TypedDict):
    """Per task: samples removed, and images presented."""

    removed: list[list[Removal]]
    presented: list[int]


class HeldBytes(TypedDict):
    """Bytes at the end of the run: of the replay memory; of optimizer, learner and policies."""

    memory: int
    state: int


class Results(TypedDict):
    """What came out; FLOPs, percent and bytes as the parts say."""

    accuracy: Accuracy
    executed: Executed
    masks: Masks
    data: Data
    losses: list[list[float]]
    held_bytes: HeldBytes


class Place(TypedDict):
    """A step of the run, all counts from 0."""

    task: int
    epoch: int
    step: int


class Provenance(TypedDict):
    """SHA-256 of the code and of the images, the versions of the libraries, and the kernel that ran."""

    code: str
    data: str
    versions: dict[str, str]
    kernel: str
    instruction_set: str | None


class Hardware(TypedDict):
    """Names, and the cores that the run could use."""

    cpu: str
    cores: int
    gpu: str | None


class Git(TypedDict):
    """Revision of the checkout, and whether it had local changes; None outside of one."""

    revision: str | None
    dirty: bool | None


class Measured(TypedDict):
    """What may differ between two runs of one cell."""

    started: str
    wall_seconds: float
    train_seconds: float
    evaluation_seconds: float
    peak_rss_bytes: int
    resumed: int
    threads: int
    hardware: Hardware
    git: Git


class Record(TypedDict):
    """Everything; ``diverged`` says where the loss was not finite, and is None for a run that is done."""

    schema: Literal["sparcl-record/2"]
    identity: str
    cell: dict[str, Any]
    status: Literal["done", "diverged"]
    diverged: Place | None
    results: Results
    provenance: Provenance
    measured: Measured
    checksum: str


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 over everything in ``record`` but its own checksum."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "checksum"}).encode()).hexdigest()


def reproducible(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of ``record`` on which two runs of a cell agree bit for bit: all but times and checksum."""
    return {k: v for k, v in record.items() if k not in ("measured", "checksum")}


def write(path: Path, record: Mapping[str, Any]) -> Record:
    """Check ``record`` against the types, add its checksum, write it atomically, and return it as written."""
    complete = {**record, "checksum": checksum(record)}
    problem = typed_json.problem(complete, Record)
    if problem:
        raise ValueError(f"record does not fit its schema: {problem}")
    atomic.write_text(path, json.dumps(complete, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return cast(Record, complete)


def read(path: str | Path) -> Record:
    """Read a record and check its checksum and its types.

    Raises:
        UserError: not readable, no JSON, another schema, a checksum that does not match, values of other types.
    """
    path = Path(path)
    data = typed_json.read(path, "run record", LARGEST)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{path}: expected a run record with schema '{SCHEMA}', found {one_line(repr(found), 60)}")
    try:
        matches = data.get("checksum") == checksum(data)
    except (ValueError, RecursionError):
        matches = False
    if not matches:
        raise UserError(f"{path}: run record was changed after it was written (its checksum does not match)")
    problem = typed_json.problem(data, Record)
    if problem is None and (data["status"] == "diverged") != (data["diverged"] is not None):
        problem = f"diverged: expected a place for a diverged run alone, status is '{data['status']}'"
    if problem:
        raise UserError(f"{path}: run record does not fit its schema: {problem}")
    return cast(Record, data)
