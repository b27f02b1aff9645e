"""SNIP (Lee et al. 2019, "SNIP: Single-shot network pruning based on connection sensitivity").

Rule: before training, keep the weights whose removal would change the loss most, by the connection sensitivity

    c(w) = |g w|,    g = dL/dw at the initialization, on a mini-batch

and fix the mask. The paper divides c by its sum, which changes no order.

Adaptation to the stream: L is the learner's own loss on ``batches`` (default 1) un-augmented batches of the first
task, at the weights that then train (no re-initialization); later tasks are not seen. The memory is still empty, so L
has no replay term. ``scope: layer`` (default) keeps the same share of every layer, as RigL's authors run SNIP: each
method of the table then has the same number of weights in each layer, hence the same FLOPs, and no layer is emptied.
``scope: global``, the paper's, ranks all layers together; the bundle ``snip-global`` is that.

The scoring pass is paid on the ledger's line "saliency", dense. Batch-norm statistics are as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparcl import masks
from sparcl.cell import Cell
from sparcl.components import Batch, Clock, Run, SparsityPolicy
from sparcl.costs.ledger import Ledger
from sparcl.masks import MaskSet
from sparcl.methods import bundle, policy
from sparcl.parameters import parameter
from sparcl.policies.static import DISTRIBUTION


@policy("snip", "SNIP")
class SNIP(SparsityPolicy):
    """Single-shot pruning by connection sensitivity; see the module's docstring for the rule and its source."""

    scope: str = parameter("layer", "rank weights within each layer, or all together", choices=("layer", "global"))
    batches: int = parameter(1, "batches of the first task whose mean gradient scores the weights", low=1)
    distribution: str = DISTRIBUTION

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        if self.scope == "global" and self.distribution != "uniform":
            return f"snip.distribution: has no effect with scope global, got {self.distribution}"
        return None

    # -- the run ---------------------------------------------------------------------------------------------------
    def begin_task(self, run: Run) -> None:
        if run.clock.task > 0 or run.cell.sparsity == 0:
            return
        gradients = saliency_gradients(run, self.scored(run.pool_size, run.cell.batch_size))
        scores = {name: (gradients[name] * w.detach()).abs() for name, w in run.masks.parameters.items()}
        run.masks.adopt(self.select(scores, run.cell.sparsity, run.generator("initial-mask")))

    def select(self, scores: dict[str, Tensor], sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the masks of the largest ``scores``, within each layer or over all of them."""
        shapes = {name: score.shape for name, score in scores.items()}
        if self.scope == "global":
            total = sum(shape.numel() for shape in shapes.values())
            return masks.globally(scores, masks.keep_count(total, sparsity), generator)
        counts = masks.allocate(shapes, sparsity, self.distribution)
        return {name: masks.top_k(score, counts[name], generator) for name, score in scores.items()}

    # -- plan ------------------------------------------------------------------------------------------------------
    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int] | None:
        if self.scope == "global" and sparsity > 0:
            return None
        return masks.allocate(container.shapes, sparsity, self.distribution)

    def scored(self, size: int, batch_size: int) -> int:
        """Return how many images of a pool of ``size`` score the weights."""
        return min(self.batches * batch_size, size)

    def plan_begin_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        if task == 0 and cell.sparsity:
            book.forward("saliency", self.scored(size, cell.batch_size))
            book.backward("saliency", self.scored(size, cell.batch_size))


def saliency_gradients(run: Run, images: int) -> dict[str, Tensor]:
    """Return the mean gradient of every maskable weight over ``images`` samples of the task's pool, and pay for it.

    The samples come from a generator of their own, in batches of the cell's size (each weighted by its share). Model,
    batch-norm statistics and gradients are left as they were.
    """
    order = torch.randperm(run.pool_size, generator=run.generator("saliency"))[:images].to(run.device)
    sums = {name: torch.zeros_like(weight) for name, weight in run.masks.parameters.items()}
    buffers = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    for positions in order.split(run.cell.batch_size):
        raw = run.pool_images[positions]
        run.backward(Batch(positions, raw, run.network_input(raw), run.pool_labels[positions]), [])
        for name, weight in run.masks.parameters.items():
            if weight.grad is not None:
                sums[name] += weight.grad * (len(positions) / len(order))
    for name, buffer in run.model.named_buffers():
        buffer.copy_(buffers[name])
    for weight in run.model.parameters():
        weight.grad = None
    run.sync_ledger()
    run.ledger.forward("saliency", len(order))
    run.ledger.backward("saliency", len(order))
    return sums


bundle("snip-global", "SNIP-global", "sparse-baseline", {"snip.scope": "global"}, sparsity="snip")
