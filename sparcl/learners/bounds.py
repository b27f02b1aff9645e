"""Reference points: fine-tuning (lower bound) and joint training (upper bound)."""

from __future__ import annotations

from sparcl.components import Learner
from sparcl.methods import learner


@learner("finetune", "Fine-tuning")
class FineTune(Learner):
    """Trains on the stream alone: the lower bound. Loss: cross-entropy of the stream batch."""

    family = "bound"
    outputs_only = True


@learner("joint", "Joint")
class Joint(Learner):
    """Trains on all tasks' data at once, for the epochs of one task: the upper bound.

    It sees no stream, so only the last row of its accuracy matrix exists and forgetting is undefined.
    """

    family = "bound"
    outputs_only = True
    offline = True
