"""Published numbers, as data: what the papers print, where it was seen, and how sure that is.

The figures are in ``data/published.csv``, one per row. ``status`` says what stands behind a figure:

* ``sourced``: read in print, in the paper itself or in one that reprints it;
* ``figure``: measured off a published plot;
* ``others-run``: somebody else's run of the method, by them or from their log;
* ``corroborated``: recalled from the paper, and an independent calculation arrives at the same figure;
* ``recalled``: recalled from the paper and not checked. It must be printed with that word beside it.

Values keep their printed digits, so that a calculation can be compared as the paper would have rounded it.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib import resources

from sparcl.errors import UserError, suggest

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

COLUMNS = (
    "table", "stream", "buffer", "method", "sparsity", "metric",
    "value", "std", "runs", "status", "source", "note",
)  # fmt: skip


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

    @property
    def resolution(self) -> float:
        """One unit of the last printed digit: 1e14 for ``2.5e15``, 0.01 for ``74.09``."""
        return float(Decimal(1).scaleb(int(Decimal(self.text).as_tuple().exponent)))

    def rounds_from(self, number: float) -> bool:
        """Whether ``number`` prints as this figure does when rounded to as many digits."""
        return abs(number - self.value) <= self.resolution * 0.5 * (1 + 1e-9)


@functools.cache
def load() -> tuple[Figure, ...]:
    """All published figures, in file order, validated.

    Raises:
        UserError: the data file has a wrong column, value, metric or status; names the line.
    """
    text = resources.files("sparcl").joinpath("data/published.csv").read_text(encoding="utf-8")
    return parse(text.splitlines())


def parse(lines: Iterable[str], name: str = "published.csv") -> tuple[Figure, ...]:
    """Read figures from CSV ``lines`` with the header :data:`COLUMNS`; ``name`` is for messages."""
    reader = csv.DictReader(lines)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{name}: expected the columns {', '.join(COLUMNS)}")
    figures = []
    seen: dict[tuple, int] = {}
    for row in reader:
        figure = _figure(row, f"{name}, line {reader.line_num}")
        key = (figure.table, figure.stream, figure.buffer, figure.method, figure.sparsity, figure.metric)
        if key in seen:
            raise UserError(f"{name}, line {reader.line_num}: expected one row per figure, repeats line {seen[key]}")
        seen[key] = reader.line_num
        figures.append(figure)
    return tuple(figures)


def select(
    figures: Sequence[Figure] | None = None,
    *,
    stream: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    buffer: int | None = None,
    sparsity: float | None = None,
    table: str | None = None,
    status: str | None = None,
) -> tuple[Figure, ...]:
    """The figures (all of them by default) that agree with every argument given, in file order."""
    wanted = {
        "stream": stream,
        "method": method,
        "metric": metric,
        "buffer": buffer,
        "sparsity": sparsity,
        "table": table,
        "status": status,
    }
    chosen = load() if figures is None else figures
    return tuple(
        figure
        for figure in chosen
        if all(value is None or getattr(figure, key) == value for key, value in wanted.items())
    )


def _figure(row: dict[str, str], where: str) -> Figure:
    if None in row or None in row.values():
        raise UserError(f"{where}: expected {len(COLUMNS)} columns")
    for column, choices in (("status", STATUSES), ("metric", tuple(UNITS))):
        if row[column] not in choices:
            raise UserError(
                f"{where}, {column}: expected one of {', '.join(choices)}, got '{row[column]}'"
                f"{suggest(row[column], choices)}"
            )
    for column in ("table", "method", "source"):
        if not row[column].strip():
            raise UserError(f"{where}, {column}: expected a text, got nothing")
    value = _number(row, "value", where)
    if value is None or value < 0:
        raise UserError(f"{where}, value: expected a number of at least 0, got '{row['value']}'")
    buffer, runs = _number(row, "buffer", where), _number(row, "runs", where)
    sparsity, std = _number(row, "sparsity", where), _number(row, "std", where)
    if sparsity is not None and not 0 <= sparsity < 1:
        raise UserError(f"{where}, sparsity: expected a number in [0, 1), got '{row['sparsity']}'")
    return Figure(
        table=row["table"],
        stream=row["stream"],
        buffer=None if buffer is None else int(buffer),
        method=row["method"],
        sparsity=None if sparsity is None else float(sparsity),
        metric=row["metric"],
        text=row["value"],
        std=None if std is None else float(std),
        runs=None if runs is None else int(runs),
        status=row["status"],
        source=row["source"],
        note=row["note"],
    )


def _number(row: dict[str, str], column: str, where: str) -> Decimal | None:
    if row[column] == "":
        return None
    try:
        number = Decimal(row[column])
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise UserError(f"{where}, {column}: expected a number, got '{row[column]}'")
    return number
