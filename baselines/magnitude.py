"""One-shot magnitude pruning (Han et al. 2015, "Learning both weights and connections for efficient neural networks").

Rule: of a layer's n weights keep the k = round((1 - s) n) with the largest |w|, once; the mask is fixed from then on:

    m = 1 where |w| is among the k largest of its layer

Adaptation to the stream: there is no trained network to prune before the first task. ``warmup: 0`` (default) prunes
the initialization, so that the whole run is sparse; ``warmup: E`` trains the first E epochs of the first task densely
and prunes what they have learned. Later tasks never change the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparcl import masks
from sparcl.cell import Cell
from sparcl.components import Clock, Run, SparsityPolicy, accounting
from sparcl.masks import MaskSet
from sparcl.methods import policy
from sparcl.parameters import parameter
from sparcl.policies.static import DISTRIBUTION


@policy("magnitude", "Magnitude")
class Magnitude(SparsityPolicy):
    """One-shot magnitude pruning; see the module's docstring for the rule and its source."""

    warmup: int = parameter(
        0, "epochs of dense training in the first task before the weights are pruned", low=0, duration=True
    )
    distribution: str = DISTRIBUTION

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        if self.warmup > fields["epochs"]:
            return (
                f"magnitude.warmup: expected at most the {fields['epochs']} epochs of the first task, got {self.warmup}"
            )
        return None

    # -- the run ---------------------------------------------------------------------------------------------------
    def begin_task(self, run: Run) -> None:
        self._prune_if_due(run, epoch=0)

    def begin_epoch(self, run: Run) -> None:
        self._prune_if_due(run, run.clock.epoch)

    def end_task(self, run: Run) -> None:
        self._prune_if_due(run, run.clock.epoch + 1)

    def _prune_if_due(self, run: Run, epoch: int) -> None:
        if run.clock.task > 0 or epoch != self.warmup or run.masks.density() < 1:
            return
        counts = masks.allocate(run.masks.shapes, run.cell.sparsity, self.distribution)
        kept = masks.by_magnitude(run.masks.parameters, counts, run.generator("prune"))
        pruned = run.masks.replace(kept).pruned
        if self.warmup > 0:
            run.note_update(pruned, 0)

    # -- plan ------------------------------------------------------------------------------------------------------
    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int]:
        dense = clock.task == 0 and clock.epoch < self.warmup
        return masks.allocate(container.shapes, 0.0 if dense else sparsity, self.distribution)

    @accounting
    def published_sparsity(
        self, shapes: Mapping[str, torch.Size], cell: Cell, sizes: Sequence[int]
    ) -> dict[str, float]:
        sparse = 1 - self.warmup / cell.epochs * sizes[0] / sum(sizes)
        final = super().published_sparsity(shapes, cell, sizes)
        return {name: sparsity * sparse for name, sparsity in final.items()}
