"""Online EWC: a quadratic penalty around the last task's weights (Schwarz et al. 2018, after Kirkpatrick et al. 2017).

With theta* the weights at the end of the last task and F the accumulated diagonal of the empirical Fisher
information:

    loss = CE(z(x), y) + lambda sum_i F_i (theta_i - theta*_i)^2
    F   <- gamma F + 1/N sum_n (d log p(y_n | x_n) / d theta)^2        after each task, over its N training images

p is the softmax that the stream's loss trains (over the task's classes under a single head). The Fisher information is
taken with the un-augmented images in eval mode, and unweighted, as in the papers. mammoth's is another quantity: of
augmented images, one at a time in training mode, over all outputs, each weighted by the predicted probability of its
label. So its lambda (which has no 1/2 either) means nothing here.

The penalty acts by its proximal step, after each step on the stream's loss:

    theta <- (theta + 2 lr lambda F theta*) / (1 + 2 lr lambda F)

which is the gradient step to first order and stable at any lambda. The gradient step itself (``step: explicit``)
diverges once lr lambda F exceeds 1 for some weight, which happens on Split-CIFAR-10 at lambda = 10.

In sparse training a weight that does not exist gets no Fisher information of that task and is anchored at 0. With
``step: explicit`` the penalty is the term called ``memory``, so TDM and DGM weigh its gradient as they weigh that of
replayed samples; with ``implicit`` there is no such term, and they see the stream's gradient alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from sparcl.cell import Cell
from sparcl.components import Learner, Replay, Run, stream_loss
from sparcl.costs.ledger import Ledger
from sparcl.methods import learner
from sparcl.models import Classifier, evaluation_mode
from sparcl.parameters import parameter

LINE = "fisher"
AT_ONCE = 2**25
"""Numbers that the gradients of all images of one pass may hold together."""


def fisher_diagonal(model: Classifier, images: Tensor, labels: Tensor, classes: range) -> dict[str, Tensor]:
    """Return the mean squared per-image gradient of ``log p(y | x)`` by parameter, each of the parameter's shape.

    Args:
        images: network input (N, C, H, W).
        labels: head indices (N,), all within ``classes``.
        classes: the classes over which p is the softmax.
    """
    weights = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        scores = functional_call(model, (values, buffers), (image[None],))
        return F.cross_entropy(scores[:, classes.start : classes.stop], label[None] - classes.start)

    per_image = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    chunk = max(1, min(64, AT_ONCE // sum(value.numel() for value in weights.values())))
    with evaluation_mode(model):
        for part, part_labels in zip(images.split(chunk), labels.split(chunk), strict=True):
            for name, gradient in per_image(weights, part, part_labels).items():
                total[name] += gradient.square().sum(0)
    return {name: value / len(labels) for name, value in total.items()}


def penalty(weights: Mapping[str, Tensor], anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> Tensor:
    """Return ``sum_i F_i (theta_i - theta*_i)^2``, a scalar."""
    return torch.stack([(fisher[name] * (w - anchor[name]).square()).sum() for name, w in weights.items()]).sum()


def proximal(weight: Tensor, anchor: Tensor, fisher: Tensor, rate: float) -> Tensor:
    """Return the minimizer over v of ``rate / 2 sum F (v - theta*)^2 + sum (v - theta)^2 / 2``: stable at any rate."""
    return (weight + rate * fisher * anchor) / (1 + rate * fisher)


@learner("ewc", "EWC")
class EWC(Learner):
    """Online elastic weight consolidation; see the module's docstring.

    Attributes:
        fisher: accumulated Fisher diagonal by parameter name, empty during the first task.
        anchor: the weights at the end of the last task.
    """

    family = "regularization"
    strength: float = parameter(10.0, "lambda, the weight of the penalty", low=0)
    gamma: float = parameter(1.0, "factor on the Fisher information so far when a task's is added", low=0, high=1)
    step: str = parameter(
        "implicit", "how the penalty acts: by its proximal step, or by its gradient", choices=("implicit", "explicit")
    )

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *_ = run.logits(images)
        terms = {"stream": stream_loss(run, logits, labels)}
        if self.fisher and self.step == "explicit":
            terms["memory"] = self.strength * penalty(dict(run.model.named_parameters()), self.anchor, self.fisher)
        return terms, logits

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if not self.fisher or self.step == "explicit":
            return
        rate = 2 * run.cell.learning_rate * self.strength
        learn = run.masks.weight if run.masks.gradient is None else run.masks.gradient
        for name, weight in run.model.named_parameters():
            moved = proximal(weight, self.anchor[name], self.fisher[name], rate)
            weight.copy_(torch.where(learn[name], moved, weight) if name in learn else moved)

    def end_task(self, run: Run) -> None:
        count = len(run.pool_labels)
        run.sync_ledger()
        run.ledger.forward(LINE, count)
        run.ledger.backward(LINE, count, weight_gradient="weights")
        classes = run.phase.classes if run.protocol.single_head else range(run.info.classes)
        found = fisher_diagonal(run.model, run.network_input(run.pool_images), run.pool_labels, classes)
        for name, mask in run.masks.weight.items():
            found[name] *= mask
        self.fisher = {n: self.gamma * self.fisher[n] + f if self.fisher else f for n, f in found.items()}
        self.anchor = {name: value.detach().clone() for name, value in run.model.named_parameters()}

    def plan_end_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        book.forward(LINE, size)
        book.backward(LINE, size, weight_gradient="weights")

    def state(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "anchor": self.anchor}

    def load(self, state: Mapping[str, Any]) -> None:
        self.fisher, self.anchor = dict(state["fisher"]), dict(state["anchor"])

    def resume(self, run: Run) -> None:
        weights = dict(run.model.named_parameters())
        for held in (self.fisher, self.anchor):
            for name, value in held.items():
                held[name] = torch.empty_like(weights[name]).copy_(value).detach()
