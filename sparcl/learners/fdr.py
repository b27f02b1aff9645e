"""FDR: function distance regularization on samples of past tasks (Benjamin, Rolnick and Körding 2019).

With z'(x') the logits that the model gave to a stored image x' at the end of its task:

    loss = CE(z(x), y) + alpha mean_x' ||softmax(z(x')) - softmax(z'(x'))||_2

At the end of each task the memory is shared equally by the tasks so far: each earlier one keeps the first part of
what it has, the new one adds images drawn at random with their logits, un-augmented and in eval mode. alpha is 1
where no search has chosen another: mammoth reads an alpha (0.3 and 1.0 in its tuned tables) and applies none. It also
minimizes the two terms in separate steps, which are one loss here, and stores the logits of augmented images in
training mode. The published FLOPs charge two replayed batches; a step replays one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl import streams
from sparcl.cell import Cell
from sparcl.components import Batch, Replay, Run, stream_loss
from sparcl.costs.ledger import Ledger
from sparcl.learners import passes
from sparcl.learners.rehearsal import Rehearsal
from sparcl.memory import quotas
from sparcl.methods import learner
from sparcl.parameters import parameter
from sparcl.protocol import Protocol

LINE = "memory_outputs"


def function_distance(logits: Tensor, old: Tensor) -> Tensor:
    """Return the mean Euclidean distance of the softmax outputs of ``logits`` and ``old``, both (N, classes).

    Its gradient is 0 for a pair of equal outputs, where the distance has none.
    """
    squared = (F.softmax(logits, dim=1) - F.softmax(old, dim=1)).square().sum(1)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0).mean()


@learner("fdr", "FDR")
class FDR(Rehearsal):
    """Function distance regularization; see the module's docstring."""

    published_replay_batches: ClassVar[int] = 2
    alpha: float = parameter(1.0, "weight of the function distance", low=0)

    def replay(self, run: Run) -> list[Replay]:
        return [run.draw_replay()] if len(run.memory) else []

    def remember(self, run: Run, batch: Batch, logits: Tensor) -> None:
        """Store nothing: the memory is filled at the end of a task."""

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *past = run.logits(images, *(replayed for replayed, _, _ in replays))
        terms = {"stream": stream_loss(run, logits, labels)}
        if replays:
            ((_, _, old),) = replays
            terms["memory"] = self.alpha * function_distance(past[0].float(), old)
        return terms, logits

    def end_task(self, run: Run) -> None:
        memory, task = run.memory, run.phase.index
        *earlier, own = quotas(memory.capacity, task + 1)
        kept = [(memory.tasks[: len(memory)] == t).nonzero()[:, 0][:quota] for t, quota in enumerate(earlier)]
        old = torch.cat(kept) if kept else torch.empty(0, dtype=torch.int64, device=run.device)
        new = torch.randperm(run.pool_size, generator=run.generator("memory"))[:own].to(run.device)
        images = run.pool_images[new]
        logits = passes.logits(run, images, LINE) if len(new) else memory.logits[:0]
        memory.fill(
            torch.cat([memory.images[old], images]),
            torch.cat([memory.labels[old], run.pool_labels[new]]),
            torch.cat([memory.logits[old], logits]),
            torch.cat([memory.tasks[old], torch.full_like(new, task)]),
        )

    def planned_replay(self, cell: Cell, protocol: Protocol, task: int, seen: int) -> int:
        if not task:
            return 0
        info = streams.describe(cell.stream, dict(cell.stream_options))
        held = sum(map(min, quotas(cell.buffer, task), info.train_sizes[:task]))
        return min(cell.batch_size, held)

    def plan_end_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        own = min(quotas(cell.buffer, task + 1)[-1], size)
        if own:
            book.forward(LINE, own)
