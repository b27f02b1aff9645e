"""Static masks: drawn once, before training, and never changed. The control of every dynamic method."""

from __future__ import annotations

from sparcl import masks
from sparcl.components import Clock, Run, SparsityPolicy
from sparcl.masks import MaskSet
from sparcl.methods import policy
from sparcl.parameters import parameter

DISTRIBUTION = parameter("uniform", "share of the weights per layer", choices=("uniform", "erk"))


def initial_masks(run: Run, init: str, distribution: str) -> None:
    """Give ``run`` its first masks: exactly the cell's sparsity, at random or by initial magnitude."""
    counts = masks.allocate(run.masks.shapes, run.cell.sparsity, distribution)
    choose = masks.at_random if init == "random" else masks.by_magnitude
    run.masks.adopt(choose(run.masks.parameters, counts, run.generator("initial-mask")))


@policy("static", "Static")
class Static(SparsityPolicy):
    """A fixed mask: the control. Nothing is ever pruned or grown after the initialization."""

    init: str = parameter("random", "which weights exist", choices=("random", "magnitude"))
    distribution: str = DISTRIBUTION

    def start(self, run: Run) -> None:
        initial_masks(run, self.init, self.distribution)

    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int]:
        return masks.allocate(container.shapes, sparsity, self.distribution)
