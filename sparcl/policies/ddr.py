"""DDR, dynamic data removal (Wang et al. 2022, "SparCL", section 3.3).

Within a task, training samples are scored by how often they were misclassified during the current stage (``interval``
epochs). At the end of each of the first ``cutoff`` stages the samples that were misclassified least, the easiest ones,
leave the task: ``proportion / cutoff`` of its original training set each time, ``proportion`` in all. Counts start
again after each removal; ties are broken by the run's own generator. Removed samples come back neither in the task nor
through its replayed batches; the memory itself is untouched, so later tasks replay them (``replays_removed: true``
replays them in the task too, as the released code does).

A prediction is the largest logit among the task's classes, the form in which the stream's loss is taken;
``prediction: all`` looks at all classes, as the released code does. ``criterion: forgetting`` counts forgetting events
(a correct prediction followed by a wrong one) instead, a sample that was never right counting as the maximum, which is
also the released code's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from sparcl import masks
from sparcl.components import Clock, DataPolicy, Run, accounting
from sparcl.costs.convention import ramp_fraction
from sparcl.methods import policy
from sparcl.parameters import parameter

NEVER_LEARNED = 2**31 - 1


@policy("ddr", "DDR", family="ablation")
class DDR(DataPolicy):
    """Dynamic data removal; see the module's docstring for the rule and its source."""

    proportion: float = parameter(0.3, "share of a task's training set that is removed in all", low=0, high=0.99)
    cutoff: int = parameter(4, "stages at whose end samples are removed", low=1)
    interval: int = parameter(5, "epochs of a stage", low=1, duration=True)
    criterion: str = parameter("misclassification", "what is counted", choices=("misclassification", "forgetting"))
    replays_removed: bool = parameter(False, "replay removed samples that the memory holds within their task too")
    prediction: str = parameter("task", "classes among which a prediction is made", choices=("task", "all"))

    def __init__(self, **values: Any):
        super().__init__(**values)
        self._errors = self._was_right = self._ever_right = torch.zeros(0, dtype=torch.int32)

    @classmethod
    def stretch(cls, values: Mapping[str, Any], factor: Fraction) -> dict[str, Any]:
        new = super().stretch(values, factor)
        last = values["cutoff"] * values["interval"] * factor  # in epochs
        return new | {"cutoff": max(1, round(last / new["interval"]))}

    def removed_after(self, size: int, stages: int) -> int:
        """Return how many of ``size`` samples are gone after ``stages`` ended stages."""
        return round(size * self.proportion * min(stages, self.cutoff) / self.cutoff)

    def planned_removals(self, size: int, clock: Clock) -> int:
        done, rest = divmod(clock.epoch + 1, self.interval)
        if rest or clock.epoch + 1 >= clock.epochs:
            return 0
        return self.removed_after(size, done) - self.removed_after(size, done - 1)

    @accounting
    def published_fraction(self, epochs: int) -> float:
        return ramp_fraction(self.proportion, self.cutoff * self.interval, epochs)

    def begin_task(self, run: Run) -> None:
        self._reset(run.pool_size, run.device)

    def observe(self, run: Run, positions: Tensor, logits: Tensor, labels: Tensor) -> None:
        if self.prediction == "task":
            classes = run.phase.classes
            predicted = logits[:, classes.start : classes.stop].argmax(1) + classes.start
        else:
            predicted = logits.argmax(1)
        right = (predicted == labels).to(torch.int32)
        if self.criterion == "misclassification":
            self._errors[positions] += 1 - right
        else:
            self._errors[positions] += self._was_right[positions] * (1 - right)
            self._was_right[positions] = right
            self._ever_right[positions] |= right

    def end_epoch(self, run: Run) -> None:
        count = self.planned_removals(run.pool_size, run.clock)
        if count:
            run.remove_samples(masks.smallest_k(self.scores(), count, run.generator("removal"), among=run.present))
        if (run.clock.epoch + 1) % self.interval == 0:
            self._reset(run.pool_size, run.device)

    def scores(self) -> Tensor:
        """Return the score of each of the task's samples in this stage (N,): the lowest are the easiest."""
        if self.criterion == "misclassification":
            return self._errors
        return torch.where(self._ever_right > 0, self._errors, NEVER_LEARNED)

    def _reset(self, size: int, device: torch.device) -> None:
        self._errors = torch.zeros(size, dtype=torch.int32, device=device)
        self._was_right = torch.zeros_like(self._errors)
        self._ever_right = torch.zeros_like(self._errors)

    def state(self) -> dict[str, Any]:
        return {"errors": self._errors, "was_right": self._was_right, "ever_right": self._ever_right}

    def load(self, state: Mapping[str, Any]) -> None:
        self._errors, self._was_right, self._ever_right = (
            state[name].clone() for name in ("errors", "was_right", "ever_right")
        )

    def resume(self, run: Run) -> None:
        held = (self._errors, self._was_right, self._ever_right)
        self._errors, self._was_right, self._ever_right = (tensor.to(run.device) for tensor in held)
