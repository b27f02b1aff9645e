"""What every learner answers, and the single-head cross-entropy that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor

from sparcl.components import Component

if TYPE_CHECKING:
    from sparcl.cell import Cell
    from sparcl.costs.ledger import Ledger
    from sparcl.models import Classifier
    from sparcl.protocol import Protocol
    from sparcl.streams import StreamInfo
    from sparcl.trainer import Batch, Run

Replay = tuple[Tensor, Tensor, Tensor]
"""One replayed batch: normalized images (N, C, H, W), labels (N,), stored logits (N, classes)."""


class Learner(Component):
    """Which loss is minimized. Subclasses answer :meth:`terms`; everything else has a default.

    Attributes:
        family: the block of the tables in which the dense method stands.
        uses_memory: whether a cell needs a buffer of at least 1.
        replay_batches: replayed batches per step once replay has begun.
        published_replay_batches: the paper ledger's ``n`` where it is another number.
        offline: whether all tasks are trained at once (joint training).
        task_il_only: whether Class-IL is undefined for the method.
        refuses: kinds of policies ("sparsity", "gradient", "data") that the learner does not go with, and why.
    """

    family: ClassVar[str] = "rehearsal"
    uses_memory: ClassVar[bool] = False
    replay_batches: ClassVar[int] = 0
    published_replay_batches: ClassVar[int | None] = None
    offline: ClassVar[bool] = False
    task_il_only: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {}

    def equip(self, model: Classifier, cell: Cell, info: StreamInfo) -> None:
        """Called when a run is built, before a checkpoint is loaded: add modules to ``model``, rename nothing."""

    def start(self, run: Run) -> None:
        """Called once, before the first task."""

    def begin_task(self, run: Run) -> None:
        """Called before the first epoch of each task, before the policies."""

    def end_task(self, run: Run) -> None:
        """Called after the last epoch of each task, after the policies and before evaluation."""

    def pool(self, run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the task's training pool: images (N, C, H, W) uint8 and labels (N,); iCaRL adds its exemplars."""
        return images, labels

    def replay(self, run: Run) -> list[Replay]:
        """Draw this step's replayed batches from memory, augmented and normalized."""
        return []

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the loss terms by name ("stream", "memory") and the stream batch's logits (N, classes).

        The step minimizes the sum of the terms. ``run.batch`` is the stream batch that ``images`` come from. TDM and
        DGM weigh the gradients of the terms "stream" and "memory"; a term of another name is none of theirs. Each term
        has a forward pass of its own, since each is differentiated on its own where a policy asks for it.
        """
        logits = run.model(images)
        return {"stream": stream_loss(run, logits, labels)}, logits

    def adjust_gradients(self, run: Run) -> None:
        """Called after backward, before the policies, with gradients in ``parameter.grad`` (A-GEM's projection)."""

    def after_step(self, run: Run) -> None:
        """Called after the optimizer step, unless a policy has skipped it."""

    def remember(self, run: Run, batch: Batch, logits: Tensor) -> None:
        """Present the stream batch to the memory: raw images, labels, logits before the step's update."""
        if self.uses_memory:
            run.memory.add(batch.raw, batch.labels, logits, run.phase.index, run.generator("memory"), batch.positions)

    def predict(self, run: Run, images: Tensor) -> Tensor:
        """Return evaluation scores (N, classes) for normalized ``images``; the model is in eval mode."""
        return run.model(images)

    def evaluation_passes(self, task: int) -> int:
        """Return the forward passes that :meth:`predict` takes per image during and after ``task``."""
        return 1

    # -- plan: the same calls on a ledger that a run makes, without one ----------------------------------------------
    def planned_replay(self, cell: Cell, protocol: Protocol, task: int, seen: int) -> int:
        """Return how many images :meth:`replay` gives to a step of ``task`` after ``seen`` images of the stream."""
        if not self.uses_memory or (task == 0 and protocol.replay_start == "second-task"):
            return 0
        return self.replay_batches * min(cell.batch_size, cell.buffer, seen)

    def planned_pool(self, info: StreamInfo, cell: Cell, task: int, size: int) -> int:
        """Return how many samples :meth:`pool` gives for a task of ``size`` training images."""
        return size

    def plans_approximately(self, info: StreamInfo, cell: Cell) -> bool:
        """Return whether the data decide what the plan has to assume."""
        return False

    def held_bytes(self, run: Run) -> int:
        """Return the bytes that a step holds beside its gradients and activations and what :meth:`state` returns."""
        return 0

    def images_at_once(self, cell: Cell, protocol: Protocol) -> int:
        """Return of how many images a step holds activations at the same time, once replay has begun."""
        return cell.batch_size + self.planned_replay(cell, protocol, 1, cell.buffer)

    def plan_begin_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        """Write on ``book`` what :meth:`begin_task` computes for a task with a pool of ``size`` samples."""

    def plan_end_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        """Write on ``book`` what :meth:`end_task` computes."""


def stream_loss(run: Run, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the stream batch: over the current task's logits alone when ``protocol.single_head`` is on.

    SparCL, section 3.2: the logits of classes outside the current task are masked out.
    """
    if not run.protocol.single_head:
        return F.cross_entropy(logits, labels)
    classes = run.phase.classes
    return F.cross_entropy(logits[:, classes.start : classes.stop], labels - classes.start)
