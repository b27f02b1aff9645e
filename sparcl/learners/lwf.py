"""Learning without forgetting: the old outputs on the new images as targets (Li and Hoiem 2017).

With z'(x) the logits that the model of the task's start gives to the un-augmented training image x, over the classes
of the past tasks, and T a temperature:

    loss = CE(z(x), y) - alpha sum_k softmax(z'(x) / T)_k log softmax(z(x) / T)_k

The targets are recorded once, before the task's first step, in eval mode. The sum is averaged over the batch. The
source's warm-up of the new classifier, which it does not find crucial to its method, is left out (mammoth trains the
new classifier first). CE is over the current task's classes under the protocol's single head; without it, over the
classes seen so far, as in mammoth: the head has no outputs for classes that are still to come.

Both parts come from one forward pass of the stream's batch and are one term for TDM and DGM, weighted by alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl.cell import Cell
from sparcl.components import Learner, Replay, Run, stream_loss
from sparcl.costs.ledger import Ledger
from sparcl.learners import passes
from sparcl.methods import learner
from sparcl.parameters import parameter

LINE = "old_outputs"


def distillation(logits: Tensor, old: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy between the softened outputs ``old`` and ``logits``, both (N, K)."""
    target = F.softmax(old / temperature, dim=1)
    return -(target * F.log_softmax(logits / temperature, dim=1)).sum(1).mean()


@learner("lwf", "LwF")
class LwF(Learner):
    """Learning without forgetting; see the module's docstring.

    Attributes:
        targets: old logits of the task's images (N, classes of past tasks), empty (0, 0) during the first task.
    """

    family = "regularization"
    outputs_only = True
    alpha: float = parameter(1.0, "weight of the distillation", low=0)
    temperature: float = parameter(2.0, "temperature of the distillation", low=0.01)

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.targets = torch.empty(0, 0)

    def begin_task(self, run: Run) -> None:
        past = run.phase.classes.start
        self.targets = torch.empty(0, 0, device=run.device)
        if past:
            self.targets = passes.logits(run, run.pool_images, LINE)[:, :past].clone()

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *_ = run.logits(images)
        seen = run.phase.classes.stop
        terms = {"stream": stream_loss(run, logits[:, :seen], labels)}
        if len(self.targets):
            old = self.targets[run.batch.positions]
            past = distillation(logits[:, : old.shape[1]], old, self.temperature)
            terms["stream"] = terms["stream"] + self.alpha * past
        return terms, logits

    def plan_begin_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        if task:
            book.forward(LINE, size)

    def state(self) -> dict[str, Any]:
        return {"targets": self.targets}

    def load(self, state: Mapping[str, Any]) -> None:
        self.targets = state["targets"]
