"""RigL (Evci et al. 2020, "Rigging the lottery: Making all tickets winners").

Rule: from a random mask, at every ``interval``-th step t < T_end a layer with k weights loses those with the smallest
|w| and gains as many where the gradient of the loss, taken densely, is largest among the positions that are then free:

    n = floor(f(t) k),    f(t) = alpha / 2 (1 + cos(pi t / T_end))
    m <- m - smallest(|w|, n) + largest(|dL/dw| on the free positions, n)

A free position may be one just lost. New weights start at 0. The mask update replaces the optimizer's step, and the
dense gradient stands on the ledger's line "dense_gradient": 2 f_S + f_D instead of 3 f_S per sample.

Adaptation to the stream: ``horizon: task`` (default) runs the schedule anew in every task, up to the share ``end`` of
its steps (0.75 as in the paper), because each task brings data for which no connection has been chosen; ``horizon:
run`` spreads it once over the whole stream, so that the last quarter of the stream trains on a fixed mask. L is the
step's whole loss, replay included (``growth: stream`` looks at the current task's term alone). ``returning: keep`` lets
a lost weight that returns in the same update keep its value, as the authors' code does by default. The bundle
``rigl-erk`` distributes weights by Erdos-Renyi-Kernel instead of uniformly; a layer that it leaves dense is left alone.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sparcl import masks
from sparcl.components import Clock, Density, Run, SparsityPolicy
from sparcl.masks import MaskSet
from sparcl.methods import bundle, policy
from sparcl.parameters import parameter
from sparcl.policies.static import DISTRIBUTION, initial_masks


def drop_fraction(alpha: float, fraction: float) -> float:
    """Return f = alpha/2 (1 + cos(pi t / T_end)) at ``fraction`` = t / T_end in [0, 1]."""
    return alpha / 2 * (1 + math.cos(math.pi * fraction))


@policy("rigl", "RigL")
class RigL(SparsityPolicy):
    """RigL; see the module's docstring for the rule and its source."""

    alpha: float = parameter(0.3, "share of a layer's weights replaced at first", low=0, high=1)
    interval: int = parameter(100, "steps between mask updates, counted within a task", low=1, duration=True)
    end: float = parameter(0.75, "share of the horizon after which the mask is fixed", low=0, high=1)
    horizon: str = parameter("task", "run the schedule in every task, or once over the run", choices=("task", "run"))
    growth: str = parameter(
        "loss", "whose gradient decides growth: the whole loss or the stream's term", choices=("loss", "stream")
    )
    returning: str = parameter(
        "zero", "value of a weight that is lost and returns in one update", choices=("zero", "keep")
    )
    distribution: str = DISTRIBUTION

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.by_term = self.growth == "stream"

    # -- schedule --------------------------------------------------------------------------------------------------
    def fraction_at(self, clock: Clock) -> float | None:
        """Return t / T_end if the step at ``clock`` is a mask update, or None."""
        if not clock.is_due(self.interval):
            return None
        done = clock.task_step / clock.task_steps if self.horizon == "task" else clock.progress
        return done / self.end if done < self.end else None

    # -- the run ---------------------------------------------------------------------------------------------------
    def start(self, run: Run) -> None:
        initial_masks(run, "random", self.distribution)

    def gradients_wanted(self, sparsity: float, clock: Clock) -> dict[str, Density]:
        return {"dense_gradient": "dense"} if sparsity and self.fraction_at(clock) is not None else {}

    def on_gradients(self, run: Run) -> bool:
        fraction = self.fraction_at(run.clock)
        if fraction is None or run.cell.sparsity == 0:
            return True
        self._update(run, drop_fraction(self.alpha, fraction))
        return False

    def _update(self, run: Run, share: float) -> None:
        smaller, larger = {}, {}
        for name, mask in run.masks.weight.items():
            if mask.all():
                continue
            weight, gradient = run.masks.parameters[name], self._growth_gradient(run, name)
            count = int(share * run.masks.counts()[name])
            smaller[name] = mask & ~masks.smallest_k(weight.abs(), count, run.generator("prune"), among=mask)
            grown = masks.top_k(gradient.abs(), count, run.generator("grow"), among=~smaller[name])
            larger[name] = smaller[name] | grown
        if self.returning == "keep":
            churn = run.masks.replace(larger)
            run.note_update(churn.pruned, churn.grown)
        else:
            pruned = run.masks.replace(smaller).pruned
            run.note_update(pruned, run.masks.replace(larger).grown)

    def _growth_gradient(self, run: Run, name: str) -> Tensor:
        if self.growth == "stream":
            return run.term_gradients["stream"][name]
        gradient = run.masks.parameters[name].grad
        assert gradient is not None
        return gradient

    # -- plan ------------------------------------------------------------------------------------------------------
    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int]:
        return masks.allocate(container.shapes, sparsity, self.distribution)


bundle("rigl-ddr", "RigL+DDR", "ablation", {}, sparsity="rigl", data="ddr")
bundle("rigl-erk", "RigL-ERK", "sparse-baseline", {"rigl.distribution": "erk"}, sparsity="rigl")
