"""What a gain of SparCL over dense training is made of: a crossed design over what published comparisons mix.

A group ``gain`` of a matrix crosses four factors on the same seeds: how weights are trained (dense, static, RigL, TDM +
DGM, ...), the classes that the stream's loss is taken over (``protocol.single_head``), when replay begins
(``protocol.replay_start``), and data removal (a method's data policy, or none). All effects are contrasts within a
seed, averaged over all other factors and over the group's learners, buffers and sparsities; Student's t over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from analysis import contrasts, frames
from analysis.configurations import Configuration, configurations
from analysis.frames import Results
from analysis.plan import GAIN, Method
from analysis.statistics import Paired

HEAD, REPLAY = "protocol.single_head", "protocol.replay_start"
LOSS = {True: "loss over the task's classes", False: "loss over all classes"}
START = {"second-task": "replay from the second task", "immediately": "replay at once"}
REMOVAL = {True: "data removal", False: "no data removal"}
OWN, DER = (True, "second-task"), (False, "immediately")
"""Loss and replay of SparCL's code; of DER's, from whose paper the published dense figures are."""
TRAINING, PLACES = 0, {"loss": 1, "replay": 2, "removal": 3}
"""Where a factor stands in the coordinates of a cell."""

Level = bool | str
Place = tuple[str, bool, str, bool]
"""How weights are trained, whether the loss is over the task's classes, when replay begins, whether data is removed."""
Cells = Mapping[tuple[Place, tuple], Configuration]
"""Cells by place and setting (learner, buffer, sparsity); the dense learner stands in each sparsity's setting."""


@dataclass(frozen=True)
class Factor:
    """Two levels of a factor: its effect is ``high`` minus ``low``. ``axis``: where it stands in a place."""

    axis: int
    high: Level
    low: Level
    name: str


@dataclass(frozen=True)
class Effect:
    """An effect in points, by metric.

    Attributes:
        kind: "comparison" (two places), "main" or "interaction".
        name: what minus what; of an interaction the first factor, and where.
        found: by metric.
        at_low, at_high: of an interaction, the first factor's effect in Class-IL at either level of the second.
        pairs: over how many pairs of cells a seed's value is averaged (of an interaction: of pairs).
    """

    kind: str
    name: str
    found: Mapping[str, Paired]
    pairs: int
    at_low: Paired | None = None
    at_high: Paired | None = None


def cells_of(results: Results) -> tuple[Cells, dict[str, str]]:
    """Return the finished cells of the design by place, and what to call each way of training, SparCL's first."""
    found = [
        c for c in configurations(frames.in_group(results.frame, GAIN)) if c.n and {HEAD, REPLAY} <= c.params.keys()
    ]
    levels = sorted({c.sparsity for c in found if c.sparsity}) or [0.0]
    cells: dict[tuple[Place, tuple], Configuration] = {}
    labels: dict[str, str] = {}
    for c in found:
        training = "+".join(filter(None, (c.policies["sparsity"], c.policies["gradient"]))) or contrasts.DENSE
        place = training, c.params[HEAD], c.params[REPLAY], bool(c.policies["data"])
        for sparsity in [c.sparsity] if c.sparsity else levels:
            cells[place, (c.learner, c.buffer, sparsity)] = c
        if training not in labels or not c.policies["data"]:
            labels[training] = contrasts.label_of(c.bundle, results.plan.methods) if c.bundle else contrasts.DENSE
    return cells, dict(sorted(labels.items(), key=lambda item: "tdm" not in item[0]))


def factors(cells: Cells, labels: Mapping[str, str]) -> list[Factor]:
    """Return the factors that the design crosses: SparCL's training against every other, loss, replay, removal."""
    ours, *others = labels or [""]
    made = [Factor(TRAINING, ours, other, f"{labels[ours]} minus {labels[other]}") for other in others]
    for axis, names, high, low in ((1, LOSS, True, False), (2, START, *START), (3, REMOVAL, True, False)):
        if {high, low} <= {place[axis] for place, _ in cells}:
            made.append(Factor(axis, high, low, f"{names[high]} minus {names[low]}"))  # type: ignore[index]
    return made


def effects(results: Results, metrics: Iterable[str] = ("class_il", "task_il")) -> list[Effect]:
    """Return the comparisons that a paper could make, the main effects, and the interactions of two factors."""
    cells, labels = cells_of(results)
    metrics, crossed = tuple(metrics), factors(cells, labels)
    made = _comparisons(cells, labels, results.plan.methods, metrics)
    for factor in crossed:
        pairs = _pairs(cells, factor)
        made.append(Effect("main", factor.name, {m: _pooled(pairs, m) for m in metrics}, len(pairs)))
    for index, one in enumerate(crossed):
        for other in crossed[index + 1 :]:
            if one.axis != other.axis:
                made.append(_interaction(cells, one, other, metrics))
    return [effect for effect in made if effect.pairs]


def _moved(place: Place, axis: int, level: Level) -> Place:
    return (*place[:axis], level, *place[axis + 1 :])  # type: ignore[return-value]


def _pairs(cells: Cells, factor: Factor, other: Factor | None = None, level: Level = "") -> list[tuple]:
    """Return the pairs of cells that differ in a factor alone; of ``other``, if given, at one level of it."""
    return [
        (c, cells[low])
        for (place, setting), c in cells.items()
        if place[factor.axis] == factor.high
        and (other is None or place[other.axis] == level)
        and (low := (_moved(place, factor.axis, factor.low), setting)) in cells
    ]


def _pooled(pairs: Iterable[tuple[Configuration, Configuration]], metric: str) -> Paired:
    return contrasts.pooled([(one.seeds(metric), other.seeds(metric)) for one, other in pairs])


def _interaction(cells: Cells, one: Factor, other: Factor, metrics: Iterable[str]) -> Effect:
    """How much larger the first factor's effect is at the second's high level: a difference of differences."""
    squares = []
    for (place, setting), _ in cells.items():
        if place[one.axis] != one.high or place[other.axis] != other.high:
            continue
        left, right = _moved(place, one.axis, one.low), _moved(place, other.axis, other.low)
        corners = [(p, setting) for p in (place, _moved(left, other.axis, other.low), left, right)]
        if all(corner in cells for corner in corners):
            squares.append([cells[corner] for corner in corners])
    found = {
        metric: contrasts.pooled([(_added(*square[:2], metric), _added(*square[2:], metric)) for square in squares])
        for metric in metrics
    }
    sides = (_pooled(_pairs(cells, one, other, level), "class_il") for level in (other.low, other.high))
    high, low = other.name.split(" minus ")
    return Effect("interaction", f"{one.name}: at {high} minus at {low}", found, len(squares), *sides)


def _added(one: Configuration, other: Configuration, metric: str) -> dict[int, float]:
    """Seed to the sum of two cells' values, on the seeds that both have."""
    first, second = one.seeds(metric), other.seeds(metric)
    return {seed: value + second[seed] for seed, value in first.items() if seed in second}


def _comparisons(
    cells: Cells, labels: Mapping[str, str], methods: Mapping[str, Method], metrics: Iterable[str]
) -> list[Effect]:
    """SparCL, with data removal, minus each way of training without: each by its source's protocol, then by one."""
    ours, *others = labels or [""]
    whole = next((c.bundle for (place, _), c in cells.items() if (place[0], place[3]) == (ours, True)), "")
    name = contrasts.label_of(whole, methods)
    made = []
    for other in others:
        versions = {"each by its source": (OWN, DER)}
        versions |= {f"both: {LOSS[h]}, {START[s]}": ((h, s), (h, s)) for h in LOSS for s in START}
        for text, (own, rivals) in versions.items():
            pairs = [
                (c, cells[low])
                for (place, setting), c in cells.items()
                if place == (ours, *own, True) and (low := ((other, *rivals, False), setting)) in cells
            ]
            title = f"{name} minus {labels[other]}, {text}"
            made.append(Effect("comparison", title, {m: _pooled(pairs, m) for m in metrics}, len(pairs)))
    return made
