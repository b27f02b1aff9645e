"""Measured times of a matrix (``timing.json``, written by ``sparcl time``), beside the FLOPs that were counted."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis import frames
from analysis.configurations import Configuration, configurations, dense_of
from analysis.frames import Results
from sparcl.errors import UserError, one_line

FILE = "timing.json"


@dataclass(frozen=True)
class Timed:
    """A method at a sparsity, with its steps measured with a number of threads.

    Attributes:
        row: as ``sparcl time`` writes it.
        configuration: the runs of the same method, sparsity and buffer.
        dense: the runs of its dense learner, if the plan has it.
    """

    row: dict[str, Any]
    configuration: Configuration
    dense: Configuration | None

    def saved(self, quantity: str) -> float:
        """Return the dense learner's mean of a quantity of whole runs over this method's; nan where there is none."""
        own = self.configuration.mean(quantity)
        return self.dense.mean(quantity) / own if self.dense is not None and own else math.nan


def read(results: Results) -> tuple[dict[str, Any], list[Timed]]:
    """Return where it was measured, and what; nothing where there is no file.

    Raises:
        UserError: the file is not one of ``sparcl time``.
    """
    path = results.folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        machine, rows = dict(found["machine"]), list(found["rows"])
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path}: expected what 'sparcl time' writes ({one_line(error, 80)})") from error
    pool = configurations(frames.main_rows(results.frame))
    return machine, [timed for row in rows if (timed := _timed(row, pool)) is not None]


def _timed(row: dict[str, Any], pool: Sequence[Configuration]) -> Timed | None:
    key = (row["method"], row["sparsity"], row["buffer"])
    for c in pool:
        if (c.method, c.sparsity, c.buffer) == key and not c.setting:
            return Timed(row, c, dense_of(c, pool))
    return None
