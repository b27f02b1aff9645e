"""DDR, dynamic data removal (Wang et al. 2022, "SparCL", section 3.3).

Within a task, training samples are scored by how often they were misclassified during the current stage (``interval``
epochs). At the end of each of the first ``cutoff`` stages the samples that were misclassified least, the easiest ones,
leave the task: ``proportion / cutoff`` of its original training set each time, ``proportion`` in all. Counts start
again after each removal. A sample that the stage did not present (a dropped last batch) is unknown, not easy: it leaves
last. Removed samples come back neither in the task nor through its replayed batches; the memory itself is untouched, so
later tasks replay them (``replays_removed: true`` replays them in the task too, as the released code does).

A prediction is the largest logit among all classes, as in the released code. Among the task's classes alone
(``prediction: task``), the form in which the loss is taken, nearly every prediction is right after an epoch, and
nearly every sample ties at 0: samples would leave at random. Once a task is learned most tie among all classes, too
(``docs/methods.md``). ``criterion: forgetting`` counts forgetting events
(a correct prediction followed by a wrong one) instead, a sample that was never right counting as the maximum, which is
also the released code's choice.

Counts tie: where more samples have the lowest count than may leave, ``ties`` says which of them do. The run's own
generator draws by default. Ours are ``loss`` (the samples of least cross-entropy, summed over the stage, leave first)
and ``margin`` (those whose last prediction in the stage had the largest margin, the label's logit minus the largest
other one); both look at the classes of ``prediction``. The record says of every removal which share of it ties decided.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl import masks
from sparcl.components import Clock, DataPolicy, Run, accounting
from sparcl.costs.convention import ramp_fraction
from sparcl.methods import policy
from sparcl.parameters import parameter

NEVER_LEARNED, UNKNOWN = 2**31, 2**32
"""Scores of samples that were never right, and of samples that were not presented: above every count."""
MOSTLY_TIES = 0.5
"""Share of a removal above which a run says that its removal is not by score."""
HELD = ("errors", "was_right", "ever_right", "presented", "hardness")
"""What a stage has counted so far, per sample."""


def easiest(
    scores: Tensor, count: int, present: Tensor, hardness: Tensor, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Return the bool mask (N,) of the ``count`` samples of lowest score, and the share of them that ties decided.

    Ties decide about a sample that has the largest score of those that leave, where more samples have it than may
    leave. Of these the ones of least ``hardness`` go, equal ones by ``generator``.

    Args:
        scores: (N,).
        count: from 1 to the number of present samples.
        present: bool mask (N,) of the candidates.
        hardness: (N,), finite.
    """
    cutoff = scores[present].sort().values[count - 1]
    below, level = present & (scores < cutoff), present & (scores == cutoff)
    places = count - int(below.sum())
    leave = below | masks.smallest_k(hardness, places, generator, among=level)
    return leave, places / count if places < int(level.sum()) else 0.0


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the label's logit minus the largest other one (N,), for ``logits`` (N, classes) and ``labels`` (N,)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


@policy("ddr", "DDR", family="ablation")
class DDR(DataPolicy):
    """Dynamic data removal; see the module's docstring for the rule and its source."""

    proportion: float = parameter(0.3, "share of a task's training set that is removed in all", low=0, high=0.99)
    cutoff: int = parameter(4, "stages at whose end samples are removed", low=1)
    interval: int = parameter(5, "epochs of a stage", low=1, duration=True)
    criterion: str = parameter("misclassification", "what is counted", choices=("misclassification", "forgetting"))
    replays_removed: bool = parameter(False, "replay removed samples that the memory holds within their task too")
    prediction: str = parameter("all", "classes among which a prediction is made", choices=("task", "all"))
    ties: str = parameter("random", "what decides among equal counts", choices=("random", "loss", "margin"))

    def __init__(self, **values: Any):
        super().__init__(**values)
        self._reset(0, torch.device("cpu"))

    @classmethod
    def stretch(cls, values: Mapping[str, Any], factor: Fraction) -> dict[str, Any]:
        new = super().stretch(values, factor)
        last = values["cutoff"] * values["interval"] * factor  # in epochs
        return new | {"cutoff": max(1, round(last / new["interval"]))}

    def removed_after(self, size: int, stages: int) -> int:
        """Return how many of ``size`` samples are gone after ``stages`` ended stages; never all of them."""
        return round(min(size * self.proportion, size - 1) * min(stages, self.cutoff) / self.cutoff)

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
            logits, labels = logits[:, classes.start : classes.stop], labels - classes.start
        right = (logits.argmax(1) == labels).to(torch.int32)
        if self.criterion == "misclassification":
            self._errors[positions] += 1 - right
        else:
            self._errors[positions] += self._was_right[positions] * (1 - right)
            self._was_right[positions] = right
            self._ever_right[positions] |= right
        self._presented[positions] = True
        if self.ties == "loss":
            self._hardness[positions] += F.cross_entropy(logits, labels, reduction="none")
        elif self.ties == "margin":
            self._hardness[positions] = -margin(logits, labels)

    def end_epoch(self, run: Run) -> None:
        count = self.planned_removals(run.pool_size, run.clock)
        if count:
            scores = self.scores()
            hardness = scores if self.ties == "random" else self._hardness
            leave, tied = easiest(scores, count, run.present, hardness, run.generator("removal"))
            self._warn(run, tied)
            run.remove_samples(leave, tied)
        if (run.clock.epoch + 1) % self.interval == 0:
            self._reset(run.pool_size, run.device)

    def _warn(self, run: Run, tied: float) -> None:
        """Say once in a run that a removal is decided by ties more than by scores."""
        if tied > MOSTLY_TIES and not any(entry["tied"] > MOSTLY_TIES for task in run.removed for entry in task):
            where = f"task {run.clock.task}, epoch {run.clock.epoch}"
            print(
                f"warning: {tied:.0%} of the samples that leave are decided by ties ({where}; ddr.ties: {self.ties}), "
                f"not the {self.criterion} counts; later ones are in the record",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def scores(self) -> Tensor:
        """Return the score (N,) int64 of each of the task's samples in this stage: the lowest are the easiest."""
        scores = self._errors.long()
        if self.criterion == "forgetting":
            scores = torch.where(self._ever_right > 0, scores, NEVER_LEARNED)
        return torch.where(self._presented, scores, UNKNOWN)

    def _reset(self, size: int, device: torch.device) -> None:
        self._errors = torch.zeros(size, dtype=torch.int32, device=device)
        self._was_right = torch.zeros_like(self._errors)
        self._ever_right = torch.zeros_like(self._errors)
        self._presented = torch.zeros_like(self._errors, dtype=torch.bool)
        self._hardness = torch.zeros(0 if self.ties == "random" else size, device=device)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in HELD}

    def load(self, state: Mapping[str, Any]) -> None:
        for name in HELD:
            setattr(self, f"_{name}", state[name].clone())
