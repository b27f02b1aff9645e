"""Rehearsal: ER, DER and DER++ (Buzzega et al. 2020, "Dark Experience for General Continual Learning").

With x, y from the stream, z the model's logits, and M a reservoir memory of (x', y', z') where z' are the logits at
insertion:

    ER      CE(z(x), y) + w CE(z(x'), y')
    DER     CE(z(x), y) + alpha MSE(z(x'), z')
    DER++   CE(z(x), y) + alpha MSE(z(x'), z') + beta CE(z(x''), y''),  x' and x'' two independent draws

Every replayed batch has the stream batch's size, is augmented afresh and passes the model on its own (its own
batch-norm statistics), as in the authors' code. The stream's cross-entropy is single-head if the protocol says so,
the memory's is over all classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sparcl.components import Learner, Replay, Run, stream_loss
from sparcl.methods import learner
from sparcl.parameters import parameter


class Rehearsal(Learner):
    """Draws ``replay_batches`` independent batches from a reservoir memory.

    A step has no replay while the memory is empty or holds nothing but samples that the task has removed.
    """

    uses_memory = True
    replay_batches = 1
    outputs_only = True

    def replay(self, run: Run) -> list[Replay]:
        if len(run.memory) == 0 or (run.phase.index == 0 and run.protocol.replay_start == "second-task"):
            return []
        replays = [run.draw_replay() for _ in range(self.replay_batches)]
        return replays if len(replays[0][1]) else []


@learner("er", "ER")
class ER(Rehearsal):
    """Experience replay: cross-entropy on one replayed batch."""

    weight: float = parameter(1.0, "weight of the replayed batch's cross-entropy", low=0)

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *past = run.logits(images, *(replayed for replayed, _, _ in replays))
        terms = {"stream": stream_loss(run, logits, labels)}
        if replays:
            ((_, past_labels, _),) = replays
            terms["memory"] = self.weight * F.cross_entropy(past[0], past_labels)
        return terms, logits


@learner("der", "DER")
class DER(Rehearsal):
    """Dark experience replay: mean squared error to the logits stored at insertion."""

    alpha: float = parameter(0.3, "weight of the logits' mean squared error", low=0)

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *past = run.logits(images, *(replayed for replayed, _, _ in replays))
        terms = {"stream": stream_loss(run, logits, labels)}
        if replays:
            ((_, _, past_logits),) = replays
            terms["memory"] = self.alpha * F.mse_loss(past[0], past_logits)
        return terms, logits


@learner("derpp", "DER++")
class DERpp(Rehearsal):
    """Dark experience replay++: logits on one draw, labels on a second, independent draw."""

    replay_batches = 2
    alpha: float = parameter(0.1, "weight of the logits' mean squared error", low=0)
    beta: float = parameter(0.5, "weight of the replayed labels' cross-entropy", low=0)

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *past = run.logits(images, *(replayed for replayed, _, _ in replays))
        terms = {"stream": stream_loss(run, logits, labels)}
        if replays:
            (_, _, first_logits), (_, second_labels, _) = replays
            matching = F.mse_loss(past[0], first_logits)
            terms["memory"] = self.alpha * matching + self.beta * F.cross_entropy(past[1], second_labels)
        return terms, logits
