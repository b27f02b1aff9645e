"""Published numbers, as data: what the papers print, where it was seen, and how sure that is.

The figures are in ``published.csv``, one per row. ``status`` says what stands behind a figure:

* ``sourced``: read in print, in the paper itself or in one that reprints it;
* ``figure``: measured off a published plot;
* ``others-run``: somebody else's run of the method, by them or from their log;
* ``corroborated``: recalled from the paper; one formula, fitted to all of them, gives each as printed
  (``docs/flops.md``), so they fit each other, which proves no single one;
* ``recalled``: recalled from the paper and not checked. It must be printed with that word beside it.

Values keep their printed digits, so that a calculation can be compared as the paper would have rounded it.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources

STATUSES = ("sourced", "figure", "others-run", "corroborated", "recalled")

UNITS = {
    "class_il": "%",
    "task_il": "%",
    "training_flops": "FLOPs",
    "memory_mb": "MB (10^6 bytes)",
    "memory_mib": "MiB (2^20 bytes)",
    "memory_saving_percent": "%",
    "speedup": "x",
    "flops_reduction": "x",
    "accuracy_gain_points": "points",
    "data_fraction": "fraction",
}
"""Metrics that the data may hold, and their units."""


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
        table: where it stands: ``table1`` to ``table3``, ``bounds``, ``phone`` and ``abstract`` are SparCL's
            protocol; ``others`` is the same protocol run by others; ``lightcl`` is LightCL's own protocol.
        stream: stream name, or empty where the source names none.
        buffer: memory capacity in images, or None where the method has none or the source names none.
        method: method name as in this suite.
        sparsity: weight sparsity in [0, 1), or None where the source names none.
        metric: one of :data:`UNITS`.
        text: the value as printed; ``value`` is the number.
        std: standard deviation over ``runs`` runs, or None where not known.
        status: one of :data:`STATUSES`.
        source: paper or public repository.
        note: what a reader must know to compare with it, or empty.
    """

    table: str
    stream: str
    buffer: int | None
    method: str
    sparsity: float | None
    metric: str
    text: str
    std: float | None
    runs: int | None
    status: str
    source: str
    note: str

    @property
    def value(self) -> float:
        """The number, in the unit of its metric."""
        return float(self.text)


@functools.cache
def load() -> tuple[Figure, ...]:
    """Return all published figures, in file order."""
    text = resources.files("analysis").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(_figure(row) for row in csv.DictReader(text.splitlines()))


def _figure(row: dict[str, str]) -> Figure:
    return Figure(
        table=row["table"],
        stream=row["stream"],
        buffer=int(row["buffer"]) if row["buffer"] else None,
        method=row["method"],
        sparsity=float(row["sparsity"]) if row["sparsity"] else None,
        metric=row["metric"],
        text=row["value"],
        std=float(row["std"]) if row["std"] else None,
        runs=int(row["runs"]) if row["runs"] else None,
        status=row["status"],
        source=row["source"],
        note=row["note"],
    )
