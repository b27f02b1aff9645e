"""Whether a matrix trains its tasks until they are learned, or measures how fast a method learns.

Two things are asked of the dense rehearsal learners (those that sparse methods build on, where the plan has any):

* *Learned*: doubling the epochs moves learning accuracy, Class-IL and Task-IL, by less than :data:`MOVED` points. A
  group ``pilot`` that sets ``epochs`` shows it; where twice the epochs cost too much, half of them: when the doubling
  up to here moved less, the next one moves less still. Without a pilot the losses stand in: within a task, the last
  quarter of the epochs makes less than :data:`LATE` of the fall of the loss since the first epoch.
* *Forgotten without replay*: fine-tuning ends at least :data:`BELOW` points of Class-IL below them.

Where one of the two fails, tables and report say so. ``docs/protocol.md`` has the reasons for the three numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from analysis import frames, statistics
from analysis.configurations import Configuration, configurations, plain
from analysis.frames import Results
from analysis.statistics import Paired
from sparcl.groups import PILOT

MOVED, LATE, BELOW = 2.0, 0.05, 10.0
"""Points, fraction, points."""
METRICS = ("learning_class_il", "learning_task_il")
NOT_LEARNED = "Tasks are not learned: these figures measure speed of learning."


@dataclass(frozen=True)
class Check:
    """What the runs of one dense learner say.

    Attributes:
        is_own: whether it trains as long as the matrix does (the pilot trains longer, too).
        late: fraction of the loss's fall that the last quarter of the epochs makes; nan where it does not fall.
        moved: learning accuracy at twice the epochs minus that here, by metric; empty without such cells.
        reached: that here minus that at half the epochs; empty without such cells.
        above: its Class-IL minus fine-tuning's; None without fine-tuning.
    """

    learner: Configuration
    epochs: int
    is_own: bool
    late: float
    moved: dict[str, Paired] = field(default_factory=dict)
    reached: dict[str, Paired] = field(default_factory=dict)
    above: Paired | None = None

    @property
    def doubled(self) -> dict[str, Paired]:
        """What a doubling of the epochs moves: from here on, else up to here; empty without a pilot."""
        return self.moved or self.reached

    @property
    def is_learned(self) -> bool:
        """By the pilot, else by the losses; not where neither shows it, as with a single epoch."""
        if self.doubled:
            return all(abs(paired.mean) < MOVED for paired in self.doubled.values())
        return self.late < LATE

    @property
    def is_shown(self) -> bool:
        """Whether the intervals of the doubling lie within the bound, and not the means alone."""
        ends = [end for paired in self.doubled.values() for end in (paired.ci_low, paired.ci_high)]
        return all(abs(end) < MOVED for end in ends)  # nan, with one seed, is not

    @property
    def is_forgotten(self) -> bool | None:
        """None without fine-tuning."""
        return None if self.above is None else self.above.mean >= BELOW


def checks(results: Results) -> list[Check]:
    """Return a check for each dense rehearsal learner of the main comparisons, and of the pilot at other epochs."""
    own, tried = learners(results)
    dense, tried = [c for c in own if c.n], [c for c in tried if c.n]
    keys = {c.key for c in dense}
    bottom = next((c for c in plain(results) if c.method == "finetune" and c.n), None)
    found = []
    for c in sorted([*dense, *tried], key=lambda c: (c.method, c.buffer, _epochs(c))):
        longer = next((other for other in [*dense, *tried] if _is_twice(other, c)), None)
        shorter = next((other for other in [*dense, *tried] if _is_twice(c, other)), None)
        moved, reached = _change(longer, c), _change(c, shorter)
        is_own = c.key in keys
        below = bottom if bottom is not None and bottom.conditions == c.conditions else None
        above = statistics.compare(c.seeds("class_il"), below.seeds("class_il")) if below and is_own else None
        above = above if above is not None and above.n else None
        found.append(Check(c, _epochs(c), is_own, late(results.of("loss", c.paths)), moved, reached, above))
    return found


def _change(long: Configuration | None, short: Configuration | None) -> dict[str, Paired]:
    """Return what ``long`` minus ``short`` is in learning accuracy, by metric; empty where one is missing."""
    if long is None or short is None:
        return {}
    found = {metric: statistics.compare(long.seeds(metric), short.seeds(metric)) for metric in METRICS}
    return {metric: paired for metric, paired in found.items() if paired.n}


def learners(results: Results) -> tuple[list[Configuration], list[Configuration]]:
    """Return the dense rehearsal learners of the main comparisons, and those of the pilot, finished or not."""
    own, pilot = plain(results), frames.in_group(results.frame, PILOT)
    dense = [c for c in own if c.family == "rehearsal" and c.method == c.learner and c.sparsity == 0 and c.buffer]
    built_on = {c.learner for c in own if c.is_sparse_training}
    dense = [c for c in dense if c.learner in built_on] or dense
    keys = {c.key for c in dense}
    return dense, [c for c in configurations(pilot) if c.key not in keys and c.sparsity == 0 and c.buffer]


def _epochs(c: Configuration) -> int:
    return int(c.rows.iloc[0].epochs)


def _is_twice(other: Configuration, c: Configuration) -> bool:
    """Whether ``other`` is ``c`` with twice the epochs and no other difference."""

    def rest(one: Configuration) -> tuple:
        settings = one.rows.iloc[0].settings
        return one.method, one.sparsity, one.buffer, [text for text in settings if not text.startswith("epochs=")]

    return _epochs(other) == 2 * _epochs(c) and rest(other) == rest(c)


def late(losses: pd.DataFrame) -> float:
    """Return which fraction of the loss's fall the last quarter of the epochs makes.

    Nan where it does not fall, and with fewer than four epochs, whose last quarter is no part of an epoch.

    Args:
        losses: mean loss of each epoch: columns path, task, epoch and value. Falls are added up over tasks and cells.
    """
    last = fall = 0.0
    for _, task in losses.groupby(["path", "task"], sort=False, observed=True):
        values = task.sort_values("epoch").value.to_numpy()
        if len(values) < 4:
            return math.nan
        quarter = max(1, round(len(values) / 4))
        last += values[max(0, len(values) - 1 - quarter)] - values[-1]
        fall += values[0] - values[-1]
    return float(last / fall) if fall > 0 else math.nan


def problems(found: Sequence[Check]) -> list[str]:
    """Return a line for each check that fails at the matrix's own epochs: why its tasks are not learned."""
    lines = []
    for check in found:
        c = check.learner
        name = f"{c.label}, buffer {c.buffer}, {check.epochs} epochs"
        if check.is_own and not check.is_learned:
            if check.doubled:
                moves = " and ".join(f"{paired.mean:+.1f}" for paired in check.doubled.values())
                what = "doubling the epochs moves" if check.moved else "the last doubling of the epochs moved"
                lines.append(f"{name}: {what} learning accuracy (Class-IL, Task-IL) by {moves} points")
            elif math.isnan(check.late):
                lines.append(
                    f"{name}: nothing shows tasks to be learned (no pilot, no fall of the loss over four epochs)"
                )
            else:
                lines.append(
                    f"{name}: the last quarter of the epochs still makes {100 * check.late:.0f} % of the loss's fall"
                )
        if check.is_own and check.is_forgotten is False:
            gap = check.above.mean if check.above else math.nan
            lines.append(f"{name}: only {gap:.1f} points of Class-IL above fine-tuning")
    return lines


def shortened(results: Results, group: str) -> list[str]:
    """Return a line for each dense learner of a group with a budget that leaves its tasks unlearned.

    They are where its learning accuracy (Class-IL) is :data:`MOVED` points or more below that at the matrix's epochs.
    """
    full = {(c.method, c.buffer): c for c in plain(results) if c.sparsity == 0 and c.n}
    lines = []
    for c in configurations(frames.in_group(results.frame, group)):
        own = full.get((c.method, c.buffer))
        if c.sparsity or not c.n or own is None:
            continue
        below = own.mean(METRICS[0]) - c.mean(METRICS[0])
        if below >= MOVED:
            title = results.plan.config["groups"][group].get("title") or group
            epochs = f"{_epochs(c)} epoch{'s' if _epochs(c) > 1 else ''}"
            lines.append(
                f"{title}: with {epochs} a task {c.label}, buffer {c.buffer}, is "
                f"{below:.1f} points of learning accuracy below {_epochs(own)}: its tasks are not learned, and these "
                "rows compare speed of learning"
            )
    return lines


def notes(results: Results) -> list[str]:
    """Return the note that tables carry where tasks are not learned; none where they are or nothing can tell."""
    return [NOT_LEARNED + " (table regime)"] if problems(checks(results)) else []
