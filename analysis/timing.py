"""Measured times of a matrix (``timing.json``, written by ``sparcl time``), beside the FLOPs that were counted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from analysis import frames
from analysis.configurations import Configuration, configurations, dense_of
from analysis.frames import Results
from sparcl.errors import UserError
from sparcl.files import typed_json

FILE = "timing.json"
LARGEST = 2**24
"""Bytes."""


class Times(TypedDict):
    """A method at a sparsity with a number of threads: medians, in seconds, FLOPs and bytes; savings as ratios."""

    method: str
    sparsity: float
    buffer: int
    kernel: str
    threads: int
    step_seconds: float
    step_time_saved: float
    step_flops: float
    dense_step_flops: float
    inference_time_saved: float
    inference_flops: float
    dense_inference_flops: float
    dense_bytes: int
    sparse_bytes: int


class Measured(TypedDict):
    """The file: where it was measured, and what. It says more, for people."""

    machine: dict[str, Any]
    rows: list[Times]


@dataclass(frozen=True)
class Timed:
    """A method at a sparsity, with its steps measured with a number of threads.

    Attributes:
        row: as ``sparcl time`` writes it.
        configuration: the runs of the same method, sparsity and buffer.
        dense: the runs of its dense learner, if the plan has it.
    """

    row: Times
    configuration: Configuration
    dense: Configuration | None

    def flops(self, what: str) -> float:
        """Return how many times fewer FLOPs a "step" or "inference" executes than the dense learner's."""
        if what == "step":
            return self.row["dense_step_flops"] / self.row["step_flops"]
        return self.row["dense_inference_flops"] / self.row["inference_flops"]

    def time(self, what: str) -> float:
        """Return how many times less time a "step" or "inference" takes than the dense learner's."""
        return self.row["step_time_saved"] if what == "step" else self.row["inference_time_saved"]

    def saved(self, quantity: str) -> float:
        """Return the dense learner's value of a quantity of whole runs over this method's, the median over seeds.

        nan where the plan has no dense learner, or the runs had another number of threads.
        """
        if self.dense is None or self.configuration.mean("threads") != self.row["threads"]:
            return math.nan
        own, dense = self.configuration.seeds(quantity), self.dense.seeds(quantity)
        ratios = [dense[seed] / value for seed, value in own.items() if seed in dense and value]
        return statistics.median(ratios) if ratios else math.nan


def read(results: Results) -> tuple[dict[str, Any], list[Timed]]:
    """Return where it was measured, and what of the plan's methods; nothing where there is no file.

    Raises:
        UserError: the file is not one of ``sparcl time``.
    """
    path = results.folder / FILE
    if not path.exists():
        return {}, []
    found: Measured = typed_json.read(path, "file of times", LARGEST)
    if problem := typed_json.problem(found, Measured, closed=False):
        raise UserError(f"{path}: {problem}; 'sparcl time' writes it")
    pool = configurations(frames.main_rows(results.frame))
    return found["machine"], [timed for row in found["rows"] if (timed := _timed(row, pool)) is not None]


def _timed(row: Times, pool: Sequence[Configuration]) -> Timed | None:
    key = (row["method"], row["sparsity"], row["buffer"])
    for c in pool:
        if (c.method, c.sparsity, c.buffer) == key and not c.setting:
            return Timed(row, c, dense_of(c, pool))
    return None
