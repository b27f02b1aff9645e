"""Equal budgets: the epochs at which the cells of a group execute the same training FLOPs.

Which is better, a sparse network trained longer or a dense one trained shorter? A group of a matrix with ``budget``
gives all its cells the planned training FLOPs (:func:`sparcl.costs.planning.executed`) that its cheapest or its dearest
cell has at the group's own epochs. A cell's epochs become the whole number, at least 1, that comes nearest. What is
scheduled in epochs or steps (parameters declared with ``duration=True``) is stretched with them, so that a task has the
same number of updates, spread over more or fewer epochs; where an interval is an epoch already it cannot shrink, and a
shorter task has fewer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from sparcl import methods, resolve
from sparcl.cell import Cell
from sparcl.costs import planning

LEVELS = {"flops-of-cheapest": min, "flops-of-dearest": max}
"""What a group's ``budget`` may be: whose FLOPs every cell gets."""


def equalize(cells: Sequence[Cell], level: str) -> list[Cell]:
    """Return ``cells`` in their order, each at the epochs that give it the budget ``level``."""
    budget = LEVELS[level](map(flops, cells))
    return [_at_budget(cell, budget) for cell in cells]


def flops(cell: Cell) -> int:
    """Return the training FLOPs that ``cell`` is planned to execute; its seed does not matter."""
    return _flops(replace(cell, seed=0))


@functools.lru_cache(None)
def _flops(cell: Cell) -> int:
    return planning.executed(cell)[0]["training"]


def _at_budget(cell: Cell, budget: int) -> Cell:
    """Return ``cell`` at the epochs whose FLOPs are nearest to ``budget``; the fewer of two."""
    tried: dict[int, int] = {}
    epochs = cell.epochs
    while epochs not in tried:  # FLOPs are nearly, not quite, proportional to epochs: dense gradients, Fisher passes
        tried[epochs] = flops(stretched(cell, epochs))
        epochs = max(1, round(epochs * budget / tried[epochs]))
    tried |= {near: flops(stretched(cell, near)) for near in (epochs - 1, epochs + 1) if near >= 1}
    return stretched(cell, min(tried, key=lambda epochs: (abs(tried[epochs] - budget), epochs)))


def stretched(cell: Cell, epochs: int) -> Cell:
    """Return ``cell`` with ``epochs`` a task, and what is scheduled in a task stretched with them."""
    params = dict(cell.params)
    for part in methods.get(cell.method).components:
        own = {key: params[f"{part.name}.{key}"] for key in part.parameters}
        changed = part.stretch(own, Fraction(epochs, cell.epochs))
        params |= {f"{part.name}.{key}": value for key, value in changed.items()}
    return resolve.from_dict(cell.as_dict() | {"epochs": epochs, "params": params})
