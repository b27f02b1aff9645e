"""A-GEM: a step must not increase the loss on memory, to first order (Chaudhry et al. 2019).

With g the gradient of CE(z(x), y) and r that of CE(z(x'), y') on a batch (x', y') from memory:

    g <- g - (g . r / r . r) r     where g . r < 0

The memory is filled at the end of each task with images of that task, drawn at random, an equal part of it for each
of the stream's T tasks (the paper's algorithm 2: M / T each; where T does not divide M the first ones have one more).
So it holds nothing of the task that is being trained, and the constraint, which is about the past, is there in every
step from the second task on. (mammoth's first version does this; its present one stores one batch a task.) ``agem_r``,
A-GEM-R, draws from a reservoir over the stream instead, as ER does; the images of the current task that it holds make
the reference gradient agree with the step's own.

The constraint is about the step that is made, so in sparse training the products go over the weights that exist, with
DGM over those that learn. The reference gradient is the term ``memory`` of TDM's and DGM's importance.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl import streams
from sparcl.cell import Cell
from sparcl.components import Batch, Replay, Run, stream_loss
from sparcl.learners.rehearsal import Rehearsal
from sparcl.memory import quotas
from sparcl.methods import learner
from sparcl.protocol import Protocol


def project(gradients: dict[str, Tensor], reference: dict[str, Tensor], learning: dict[str, Tensor]) -> bool:
    """Project ``gradients`` in place so that their product with ``reference`` is not negative; return whether needed.

    Args:
        gradients: by parameter name, any shapes.
        reference: as ``gradients``.
        learning: bool masks of the weights that the products go over, for some of the names; the others go in full.
    """

    def product(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        parts = [(a[n] * b[n] * learning[n] if n in learning else a[n] * b[n]).sum(dtype=torch.float64) for n in a]
        return torch.stack(parts).sum()

    along = product(gradients, reference)
    if along >= 0:
        return False
    factor = float(along / product(reference, reference))
    for name, gradient in gradients.items():
        gradient.sub_(reference[name], alpha=factor)
    return True


@learner("agem_r", "A-GEM-R")
class AGEMR(Rehearsal):
    """Averaged gradient episodic memory over a reservoir; see the module's docstring."""

    outputs_only = False  # the reference gradient is taken beside the step's

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *_ = run.logits(images)
        self._replays = replays
        return {"stream": stream_loss(run, logits, labels)}, logits

    def images_at_once(self, cell: Cell, protocol: Protocol) -> int:
        return cell.batch_size  # the two gradients are taken one after the other

    def held_bytes(self, run: Run) -> int:
        return sum(p.numel() * p.element_size() for p in run.model.parameters())  # the reference gradient

    def adjust_gradients(self, run: Run) -> None:
        if not self._replays:
            return
        ((past, labels, _),) = self._replays
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.cell.precision == "bfloat16"):
            loss = F.cross_entropy(run.logits(past)[0], labels)
        parameters = {n: p for n, p in run.model.named_parameters() if p.grad is not None}
        found = torch.autograd.grad(loss, list(parameters.values()))
        reference = dict(zip(parameters, found, strict=True))
        if run.term_gradients:
            run.term_gradients["memory"] = {name: reference[name] for name in run.masks.parameters}
        learning = run.masks.gradient or run.masks.weight
        project({n: p.grad for n, p in parameters.items() if p.grad is not None}, reference, learning)


@learner("agem", "A-GEM")
class AGEM(AGEMR):
    """Averaged gradient episodic memory with equal parts of the past tasks; see the module's docstring."""

    def __init__(self, **values: Any):
        super().__init__(**values)
        self._planned: list[int] = []

    def replay(self, run: Run) -> list[Replay]:
        return [run.draw_replay()] if len(run.memory) else []

    def remember(self, run: Run, batch: Batch, logits: Tensor) -> None:
        """Store nothing: the memory is filled at the end of a task."""

    def end_task(self, run: Run) -> None:
        memory, task = run.memory, run.phase.index
        part = quotas(memory.capacity, run.info.tasks)[task]
        new = torch.randperm(run.pool_size, generator=run.generator("memory"))[:part].to(run.device)
        held = len(memory)
        memory.fill(
            torch.cat([memory.images[:held], run.pool_images[new]]),
            torch.cat([memory.labels[:held], run.pool_labels[new]]),
            None,
            torch.cat([memory.tasks[:held], torch.full_like(new, task)]),
        )

    def planned_replay(self, cell: Cell, protocol: Protocol, task: int, seen: int) -> int:
        if not self._planned:
            info = streams.describe(cell.stream, dict(cell.stream_options))
            parts = zip(quotas(cell.buffer, info.tasks), info.train_sizes, strict=True)
            self._planned = [min(part, size) for part, size in parts]
        return min(cell.batch_size, sum(self._planned[:task]))
