"""iCaRL: exemplars, distillation and the nearest mean of exemplars (Rebuffi et al. 2017).

Training (the source's Algorithm 3): the exemplars of past classes join the task's images. With q(x) the sigmoid
outputs that the model of the task's start gives to the un-augmented image x, over the K past classes, and t(x) the
one-hot label:

    loss = sum_{k past} BCE(sigmoid(z_k(x)), q_k(x)) + sum_{k of the task} BCE(sigmoid(z_k(x)), t_k(x))

averaged over the batch (mammoth averages over the classes too, with a larger learning rate). The protocol's single
head plays no part: every class has an output of its own.

Exemplars (Algorithms 4 and 5): each of the C classes seen keeps ``buffer // C`` images, chosen one after the other so
that the mean of their normalized features stays closest to the class's (herding); fewer are the first of these.

Prediction (Algorithm 1): the class whose exemplars' mean feature, scaled to length 1, is nearest to the image's (the
authors' code and mammoth's average in the exemplars' mirror images, which is left out). A
class that has no exemplars yet is never preferred to one that has; among themselves such classes are ranked by their
outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl import streams
from sparcl.cell import Cell
from sparcl.components import Batch, Learner, Replay, Run
from sparcl.costs.ledger import Ledger
from sparcl.errors import UserError
from sparcl.learners import passes
from sparcl.methods import learner
from sparcl.protocol import Protocol
from sparcl.streams import StreamInfo

TARGETS, HERDING = "old_outputs", "herding"
NEVER = 1e4
"""What the scores of classes without exemplars stay behind; squared distances of unit vectors are at most 4."""


def herd(features: Tensor, count: int) -> Tensor:
    """Return the positions (<= count,) of exemplars in the order in which herding chooses them.

    Args:
        features: normalized features (N, D) of one class.
    """
    mean = features.mean(0)
    total, chosen = torch.zeros_like(mean), []
    left = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for k in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + features) / k).square().sum(1)
        best = int(distance.masked_fill(~left, float("inf")).argmin())
        left[best] = False
        total = total + features[best]
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.int64, device=features.device)


def class_outputs_loss(logits: Tensor, labels: Tensor, targets: Tensor, classes: range) -> Tensor:
    """Return the binary cross-entropies of all classes seen, summed over classes and averaged over the batch.

    Args:
        logits: (N, all classes).
        labels: (N,).
        targets: sigmoid outputs (N, K) to be kept for the K = ``classes.start`` past classes.
        classes: the task's classes.
    """
    new = torch.arange(classes.start, classes.stop, device=labels.device)
    wanted = torch.cat([targets, (labels[:, None] == new).to(targets.dtype)], dim=1)
    losses = F.binary_cross_entropy_with_logits(logits[:, : classes.stop].float(), wanted, reduction="none")
    return losses.sum(1).mean()


@learner("icarl", "iCaRL")
class ICaRL(Learner):
    """Incremental classifier and representation learning; see the module's docstring.

    Attributes:
        targets: sigmoid outputs (N, K) of the pool's images for the past classes.
        means: mean exemplar feature (classes seen, D) of each class, scaled to length 1.
    """

    uses_memory: ClassVar[bool] = True
    outputs_only: ClassVar[bool] = True
    published_replay_batches: ClassVar[int] = 1
    refuses: ClassVar = {"data": "its exemplars are part of the pool that samples are removed from"}

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.targets = torch.empty(0, 0)
        self.means = torch.empty(0, 0)

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        classes = streams.describe(fields["stream"], {}).classes if fields["stream"] != "folder" else 1
        if fields["buffer"] < classes:
            return f"buffer: icarl keeps exemplars of every class and needs at least {classes}, got {fields['buffer']}"
        return None

    def start(self, run: Run) -> None:
        if run.memory.capacity < run.info.classes:
            raise UserError(
                f"buffer: icarl keeps exemplars of every class and needs at least {run.info.classes}, "
                f"got {run.memory.capacity}"
            )

    # -- training --------------------------------------------------------------------------------------------------
    def pool(self, run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        held = len(run.memory)
        return torch.cat([images, run.memory.images[:held]]), torch.cat([labels, run.memory.labels[:held]])

    def begin_task(self, run: Run) -> None:
        past = run.phase.classes.start
        self.targets = torch.empty(run.pool_size, 0, device=run.device)
        if past:
            self.targets = passes.logits(run, run.pool_images, TARGETS)[:, :past].sigmoid()

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *_ = run.logits(images)
        targets = self.targets[run.batch.positions]
        return {"stream": class_outputs_loss(logits, labels, targets, run.phase.classes)}, logits

    def remember(self, run: Run, batch: Batch, logits: Tensor) -> None:
        """Store nothing: exemplars are chosen at the end of a task."""

    # -- exemplars and prediction ----------------------------------------------------------------------------------
    def end_task(self, run: Run) -> None:
        memory, classes = run.memory, run.phase.classes
        each = memory.capacity // classes.stop
        own = len(run.phase.train_index)
        images, labels = run.pool_images[:own], run.pool_labels[:own]
        features = passes.features(run, images, HERDING)
        kept = [(memory.labels[: len(memory)] == c).nonzero()[:, 0][:each] for c in range(classes.start)]
        old = torch.cat(kept) if kept else torch.empty(0, dtype=torch.int64, device=run.device)
        old_features = passes.features(run, memory.images[old], HERDING) if len(old) else features[:0]
        chosen = []
        for c in classes:
            members = (labels == c).nonzero()[:, 0]
            chosen.append(members[herd(features[members], each)])
        new = torch.cat(chosen)
        memory.fill(
            torch.cat([memory.images[old], images[new]]),
            torch.cat([memory.labels[old], labels[new]]),
            None,
            torch.cat([memory.tasks[old], torch.full_like(new, run.phase.index)]),
        )
        held, held_labels = torch.cat([old_features, features[new]]), memory.labels[: len(memory)]
        means = torch.stack([held[held_labels == c].mean(0) for c in range(classes.stop)])
        self.means = F.normalize(means, dim=1)

    def predict(self, run: Run, images: Tensor) -> Tensor:
        features = run.features(images)
        scores = run.model.head(features).double() - NEVER
        if len(self.means):
            near = F.normalize(features.float(), dim=1)
            apart = torch.cdist(near, self.means, compute_mode="donot_use_mm_for_euclid_dist")
            scores[:, : len(self.means)] = -apart.double()
        return scores

    # -- plan and checkpoint ---------------------------------------------------------------------------------------
    def planned_pool(self, info: StreamInfo, cell: Cell, task: int, size: int) -> int:
        return size + sum(self._planned_exemplars(info, cell, task, task))

    def plans_approximately(self, info: StreamInfo, cell: Cell) -> bool:
        per_class = min(info.train_sizes) * info.tasks / info.classes
        return cell.stream == "folder" or cell.buffer // (info.classes // info.tasks) > per_class / 2

    def _planned_exemplars(self, info: StreamInfo, cell: Cell, task: int, of: int) -> list[int]:
        """Return the exemplars that each of the tasks before ``of`` holds once ``task`` tasks are done."""
        per_task = info.classes // info.tasks
        each = cell.buffer // (task * per_task) if task else 0
        return [min(each * per_task, info.train_sizes[t]) for t in range(of)]

    def planned_replay(self, cell: Cell, protocol: Protocol, task: int, seen: int) -> int:
        return 0

    def plan_begin_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        if task:
            book.forward(TARGETS, size)

    def plan_end_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        info = streams.describe(cell.stream, dict(cell.stream_options))
        old = sum(self._planned_exemplars(info, cell, task + 1, task))
        book.forward(HERDING, info.train_sizes[task] + old)

    def state(self) -> dict[str, Any]:
        return {"targets": self.targets, "means": self.means}

    def load(self, state: Mapping[str, Any]) -> None:
        self.targets, self.means = state["targets"], state["means"]
