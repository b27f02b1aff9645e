"""GMP, gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune").

Rule: training starts dense, and every ``interval`` steps a layer loses its smallest |w| until its sparsity is

    s_t = s_f (1 - (1 - t / T)^3),    0 <= t <= T

with s_f the layer's final sparsity and t counted in steps. What is pruned stays pruned.

Adaptation to the stream: T is the share ``end`` of the first task's steps (default 1.0, all of them; an update falls on
step T whatever the interval), and with ``repeat: first-task`` (default) the mask is fixed afterwards, so all later
tasks run at s_f. Masked weights are exactly 0, so pruning them again by magnitude could never choose others; ``repeat:
every-task`` therefore begins each task dense again, the missing weights starting at 0, and prunes along the same
schedule. Either way every task ends at exactly the cell's sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from sparcl import masks
from sparcl.cell import Cell
from sparcl.components import Clock, Run, SparsityPolicy, accounting
from sparcl.masks import MaskSet
from sparcl.methods import policy
from sparcl.parameters import parameter
from sparcl.policies.static import DISTRIBUTION
from sparcl.protocol import Protocol


def ramp(fraction: float) -> float:
    """Return s_t / s_f = 1 - (1 - t/T)^3 at ``fraction`` = t/T in [0, 1]."""
    return 1.0 - (1.0 - fraction) ** 3


@policy("gmp", "GMP")
class GMP(SparsityPolicy):
    """Gradual magnitude pruning; see the module's docstring for the rule and its source."""

    interval: int = parameter(100, "steps between mask updates", low=1, duration=True)
    end: float = parameter(1.0, "share of the task at which the final sparsity is reached", low=0, high=1)
    repeat: str = parameter(
        "first-task",
        "prune during the first task alone, or from dense in every task",
        choices=("first-task", "every-task"),
    )
    distribution: str = DISTRIBUTION

    # -- schedule --------------------------------------------------------------------------------------------------
    def level(self, task: int, done: int, steps: int) -> float:
        """Return s_t / s_f in force after ``done`` of a task's ``steps`` steps."""
        if task > 0 and self.repeat == "first-task":
            return 1.0
        last = round(self.end * steps)
        return 1.0 if done >= last else ramp(done // self.interval * self.interval / last)

    def counts(self, container: MaskSet, sparsity: float, level: float) -> dict[str, int]:
        """Return the weights per layer at ``level`` = s_t / s_f."""
        final = masks.allocate(container.shapes, sparsity, self.distribution)
        sizes = {name: shape.numel() for name, shape in container.shapes.items()}
        return {name: size - round((size - final[name]) * level) for name, size in sizes.items()}

    # -- the run ---------------------------------------------------------------------------------------------------
    def begin_task(self, run: Run) -> None:
        if run.clock.task > 0 and self.repeat == "every-task":
            full = {name: torch.ones_like(mask) for name, mask in run.masks.weight.items()}
            run.note_update(0, run.masks.replace(full).grown)

    def begin_epoch(self, run: Run) -> None:
        self._prune(run, run.clock.task_step)

    def after_step(self, run: Run) -> None:
        self._prune(run, run.clock.task_step + 1)

    def end_task(self, run: Run) -> None:
        self._prune(run, run.clock.task_steps)

    def _prune(self, run: Run, done: int) -> None:
        """Prune to what the schedule says after ``done`` of the task's steps."""
        clock = run.clock
        counts = self.counts(run.masks, run.cell.sparsity, self.level(clock.task, done, clock.task_steps))
        if counts == run.masks.counts():
            return
        kept = {
            name: masks.top_k(weight.abs(), counts[name], run.generator("prune"), among=run.masks.weight[name])
            for name, weight in run.masks.parameters.items()
        }
        run.note_update(run.masks.replace(kept).pruned, 0)

    # -- plan ------------------------------------------------------------------------------------------------------
    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int]:
        return self.counts(container, sparsity, self.level(clock.task, clock.task_step, clock.task_steps))

    @accounting
    def published_sparsity(
        self, shapes: Mapping[str, torch.Size], cell: Cell, sizes: Sequence[int]
    ) -> dict[str, float]:
        """The mean over all steps: the convention knows no ramp, and a task that starts dense is not free."""
        mean = 0.0
        for task, size in enumerate(sizes):
            steps = cell.epochs * cell.component(Protocol).steps(size, cell.batch_size)
            mean += size / sum(sizes) * fmean(self.level(task, done, steps) for done in range(steps))
        final = super().published_sparsity(shapes, cell, sizes)
        return {name: sparsity * mean for name, sparsity in final.items()}
