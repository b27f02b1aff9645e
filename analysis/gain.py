"""What a gain of SparCL over dense training is made of: a crossed design over what published comparisons mix.

A group ``gain`` of a matrix crosses four factors on the same seeds: how weights are trained (dense, static, RigL, TDM +
DGM, ...), the classes that the stream's loss is taken over (``protocol.single_head``), when replay begins
(``protocol.replay_start``), and data removal (a method's data policy, or none). All effects are contrasts within a
seed, averaged over all other factors and over the group's learners, buffers and sparsities; Student's t over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from analysis import contrasts, frames, protocols, statistics
from analysis.configurations import Configuration, configurations
from analysis.frames import Results
from analysis.statistics import Paired
from analysis.typeset import TIMES
from sparcl.groups import GAIN

LEVELS: Mapping[int, Mapping[bool | str, str]] = {
    1: protocols.LOSS,
    2: protocols.START,
    3: {True: "data removal", False: "no data removal"},
}
"""Loss, replay and removal by where they stand in a place; the level that SparCL has first."""
WORDS = {1: "loss", 2: "replay", 3: "removal"}
BY_SOURCE = (
    "each by its source: loss over the task's classes, replay from the second task; loss over all, replay at once"
)
"""How a comparison between papers is made: SparCL by its code, the other one by DER's."""

Place = tuple[str, bool, str, bool]
"""How weights are trained, whether the loss is over the task's classes, when replay begins, whether data is removed."""
Cells = Mapping[tuple[Place, tuple], Configuration]
"""Cells by place and setting (learner, buffer, sparsity); the dense learner stands in each sparsity's setting."""


@dataclass(frozen=True)
class Factor:
    """Two levels of a factor, ``high`` minus ``low`` being its effect; ``axis``: where it stands in a place."""

    axis: int
    high: bool | str
    low: bool | str
    name: str

    @property
    def short(self) -> str:
        """What figures call it."""
        return WORDS.get(self.axis, self.name)


@dataclass(frozen=True)
class Effect:
    """An effect in points.

    Attributes:
        kind: "comparison" of two methods under one or two protocols, "main" effect or "interaction".
        name: what minus what.
        where: of a comparison the protocol; of an interaction the second factor, by whose levels ``name`` differs.
        found: by metric; of an interaction the difference of differences.
        pairs: how many pairs of cells (of an interaction: of pairs) a seed's value is averaged over.
        short: what figures call it.
        at_low, at_high: of an interaction, the first factor's effect in Class-IL at the second's levels.
        p_fdr: of Class-IL, with false-discovery-rate control over all effects.
    """

    kind: str
    name: str
    where: str
    found: Mapping[str, Paired]
    pairs: int
    short: str = ""
    at_low: Paired | None = None
    at_high: Paired | None = None
    p_fdr: float = math.nan


def effects(results: Results, metrics: Iterable[str] = ("class_il", "task_il")) -> list[Effect]:
    """Return the comparisons that a paper could make, the main effects, and the interactions of two factors.

    ``metrics`` has "class_il", which is tested.
    """
    metrics = tuple(metrics)
    cells, labels = cells_of(results)
    crossed = factors(cells, labels)
    made = _comparisons(cells, labels, results.plan.bundles, metrics)
    for factor in crossed:
        made.append(_effect("main", factor.name, "", _pairs(cells, factor), metrics))
    for index, one in enumerate(crossed):
        made += [_interaction(cells, one, other, metrics) for other in crossed[index + 1 :] if one.axis != other.axis]
    made = [effect for effect in made if effect.pairs]
    adjusted = statistics.fdr([effect.found["class_il"].p for effect in made])
    return [replace(effect, p_fdr=p) for effect, p in zip(made, adjusted, strict=True)]


def cells_of(results: Results) -> tuple[Cells, dict[str, str]]:
    """Return the finished cells of the design by place, and what to call each way of training, SparCL's first."""
    group = configurations(frames.in_group(results.frame, GAIN))
    found = [c for c in group if c.n and {protocols.HEAD, protocols.REPLAY} <= c.params.keys()]
    levels = sorted({c.sparsity for c in found if c.sparsity}) or [0.0]
    cells: dict[tuple[Place, tuple], Configuration] = {}
    labels: dict[str, str] = {}
    owners: dict[tuple[str, bool], str] = {}
    for c in sorted(found, key=lambda c: c.bundle not in (contrasts.OURS, c.policies["sparsity"])):
        owners.setdefault((_training(c), bool(c.policies["data"])), c.bundle)
    for c in found:
        training = _training(c)
        if owners[training, bool(c.policies["data"])] != c.bundle:
            training = c.bundle  # RigL-ERK beside RigL: the same policies with other values
        place = training, *protocols.of(c.params), bool(c.policies["data"])
        for sparsity in [c.sparsity] if c.sparsity else levels:
            cells[place, (c.learner, c.buffer, sparsity)] = c
        if training not in labels or not c.policies["data"]:
            labels[training] = results.plan.bundles[c.bundle] if c.bundle else contrasts.DENSE
    return cells, dict(sorted(labels.items(), key=lambda item: "tdm" not in item[0]))


def _training(c: Configuration) -> str:
    return "+".join(filter(None, (c.policies["sparsity"], c.policies["gradient"]))) or contrasts.DENSE


def factors(cells: Cells, labels: Mapping[str, str]) -> list[Factor]:
    """Return the factors that are crossed: SparCL's training against every other, then loss, replay and removal."""
    ours, *others = labels or [""]
    made = [Factor(0, ours, other, f"{labels[ours]} minus {labels[other]}") for other in others]
    for axis, names in LEVELS.items():
        high, low = names
        if {high, low} <= {place[axis] for place, _ in cells}:
            made.append(Factor(axis, high, low, f"{names[high]} minus {names[low]}"))
    return made


Pairs = list[tuple[Configuration, Configuration]]


def _effect(kind: str, name: str, where: str, pairs: Pairs, metrics: Iterable[str]) -> Effect:
    return Effect(kind, name, where, {metric: _pooled(pairs, metric) for metric in metrics}, len(pairs), name)


def _pooled(pairs: Pairs, metric: str) -> Paired:
    return contrasts.pooled([(one.seeds(metric), other.seeds(metric)) for one, other in pairs])


def _moved(place: Place, axis: int, level: bool | str) -> Place:
    moved: list = list(place)
    moved[axis] = level
    return tuple(moved)  # type: ignore[return-value]


def _pairs(cells: Cells, factor: Factor, axis: int = 0, level: bool | str = "") -> Pairs:
    """Return the pairs of cells that differ in a factor alone; with ``level``, those at that level on ``axis``."""
    return [
        (c, cells[low])
        for (place, setting), c in cells.items()
        if place[factor.axis] == factor.high
        and level in ("", place[axis])
        and (low := (_moved(place, factor.axis, factor.low), setting)) in cells
    ]


def _interaction(cells: Cells, one: Factor, other: Factor, metrics: Iterable[str]) -> Effect:
    """How much larger the first factor's effect is at the second's high level than at its low one."""
    squares = []
    for place, setting in cells:
        if (place[one.axis], place[other.axis]) == (one.high, other.high):
            left, below = _moved(place, one.axis, one.low), _moved(place, other.axis, other.low)
            corners = [(p, setting) for p in (place, _moved(left, other.axis, other.low), left, below)]
            if all(corner in cells for corner in corners):
                squares.append(tuple(cells[corner] for corner in corners))
    found = {
        metric: contrasts.pooled([(_added(a, d, metric), _added(b, c, metric)) for a, d, b, c in squares])
        for metric in metrics
    }
    at_low, at_high = (_pooled(_pairs(cells, one, other.axis, level), "class_il") for level in (other.low, other.high))
    short = f"{one.short} {TIMES} {other.short}"
    return Effect("interaction", one.name, other.name, found, len(squares), short, at_low, at_high)


def _added(one: Configuration, other: Configuration, metric: str) -> dict[int, float]:
    """Seed to the sum of two cells' values, on the seeds that both have."""
    first, second = one.seeds(metric), other.seeds(metric)
    return {seed: value + second[seed] for seed, value in first.items() if seed in second}


def _comparisons(
    cells: Cells, labels: Mapping[str, str], bundles: Mapping[str, str], metrics: Iterable[str]
) -> list[Effect]:
    """SparCL with its data removal minus each way of training without: each by its source, then by one protocol."""
    ours, *others = labels or [""]
    if not any(c.bundle == contrasts.OURS for c in cells.values()):
        return []
    versions: dict[str, tuple[tuple, tuple]] = {BY_SOURCE: (protocols.OWN, protocols.DER)}
    for head, loss in LEVELS[1].items():
        versions |= {f"both: {loss}, {text}": ((head, start), (head, start)) for start, text in LEVELS[2].items()}
    made = []
    for other in others:
        for where, (own, theirs) in versions.items():
            pairs = [
                (c, cells[low])
                for (place, setting), c in cells.items()
                if place == (ours, *own, True) and (low := ((other, *theirs, False), setting)) in cells
            ]
            name = f"{bundles[contrasts.OURS]} minus {labels[other]}"
            made.append(_effect("comparison", name, where, pairs, metrics))
    return made
