"""FLOPs of a cell without training it: the same ledgers, from the schedule alone.

:func:`planned` walks through the tasks, epochs and steps of a cell and makes the calls on a
:class:`sparcl.costs.ledger.Ledger` that a run would make, with the counts that the policies plan. Where data decide how
many weights a layer keeps (SNIP with global scope), the layers are planned with equal sparsity; where removed samples
may leave fewer in memory than a replayed batch asks for, full batches are planned. ``approximate`` says so in both cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparcl import masks, methods, models, streams
from sparcl.cell import Cell
from sparcl.components import Clock, DataPolicy, GradientPolicy, SparsityPolicy
from sparcl.costs import footprint, ledger
from sparcl.costs.ledger import LayerCost, Ledger
from sparcl.protocol import Protocol
from sparcl.streams import StreamInfo


@dataclass(frozen=True)
class Planned:
    """The planned ledgers of a cell: FLOPs of the executed, the paper's and the dense count."""

    executed: dict[str, Any]
    paper: dict[str, Any]
    dense: dict[str, Any]
    approximate: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the three ledgers (FLOPs) and dense/executed as plain JSON values."""
        training = self.executed["training"]
        return {
            "executed": self.executed, "paper": self.paper, "dense": self.dense,
            "dense_over_executed": self.dense["training"] / training if training else None,
            "approximate": self.approximate,
        }  # fmt: skip


class Parts:
    """The learner and policies of a cell, without a run."""

    def __init__(self, cell: Cell):
        method = methods.get(cell.method)
        self.learner = cell.component(methods.learners()[method.learner])
        chosen = {kind: cell.component(methods.policies()[name]) for kind, name in method.policies.items()}
        self.sparsity: SparsityPolicy = chosen.get("sparsity", SparsityPolicy())
        self.gradient: GradientPolicy = chosen.get("gradient", GradientPolicy())
        self.data: DataPolicy = chosen.get("data", DataPolicy())
        self.protocol: Protocol = cell.component(Protocol)


def planned(cell: Cell) -> Planned:
    """Return the three ledgers of ``cell`` as planned; needs the stream's description, not its data."""
    info = streams.describe(cell.stream, dict(cell.stream_options))
    model, _ = _model(cell)
    costs = ledger.layer_costs(model, info.shape)
    weights = dict(model.named_parameters())
    container = masks.MaskSet({name: weights[name] for name in models.maskable(model)})
    book, parts = Ledger(costs), Parts(cell)
    sizes = [sum(info.train_sizes)] if parts.learner.offline else list(info.train_sizes)
    if not parts.learner.offline:
        sizes = [parts.learner.planned_pool(info, cell, task, size) for task, size in enumerate(sizes)]
    tests = sum(info.test_sizes)
    approximate = _draws_may_fall_short(cell, parts) or parts.learner.plans_approximately(info, cell)
    seen = 0
    start_counts = parts.sparsity.planned_counts(container, 0.0, Clock(tasks=len(sizes), epochs=cell.epochs))
    if start_counts is not None:
        book.forward(ledger.EVALUATION, tests)
    for task, size in enumerate(sizes):
        remaining = size
        parts.learner.plan_begin_task(book, cell, task, size)
        book.set_frozen(_frozen(parts, model, cell.sparsity, Clock(task, len(sizes), 0, cell.epochs)))
        nominal = parts.protocol.steps(size, cell.batch_size)
        scored = parts.sparsity.planned_saliency(task, size, cell.batch_size)
        if cell.sparsity and scored:
            book.forward("saliency", scored)
            book.backward("saliency", scored)
        for epoch in range(cell.epochs):
            steps = parts.protocol.steps(remaining, cell.batch_size)
            for step in range(steps):
                clock = Clock(task, len(sizes), epoch, cell.epochs, step, steps, epoch * nominal + step,
                              cell.epochs * nominal)  # fmt: skip
                start, stop = parts.protocol.bounds(remaining, cell.batch_size, step)
                images = stop - start
                past = parts.learner.planned_replay(cell, parts.protocol, task, seen)
                approximate |= _plan_step(book, cell, parts, container, clock, images, past)
                seen += images
            clock = Clock(task, len(sizes), epoch, cell.epochs, 0, steps)
            remaining -= parts.data.planned_removals(size, clock)
        end = Clock(
            task, len(sizes), cell.epochs, cell.epochs, 0, nominal, cell.epochs * nominal, cell.epochs * nominal
        )
        final = parts.sparsity.planned_counts(container, cell.sparsity, end)
        if final is not None:
            book.set_weight_counts(final)
        parts.learner.plan_end_task(book, cell, task, size)
        _plan_evaluation(book, cell, parts, container, end, info)
    return Planned(book.as_record(), paper_ledger(cell, info, costs), dense_ledger(cell, info, costs), approximate)


def _frozen(parts: Parts, model: models.Classifier, sparsity: float, clock: Clock) -> set[str]:
    components = (parts.learner, parts.sparsity, parts.gradient)
    return set().union(*(part.planned_frozen(model, sparsity, clock) for part in components))


def _plan_evaluation(
    book: Ledger, cell: Cell, parts: Parts, container: masks.MaskSet, clock: Clock, info: StreamInfo
) -> None:
    """Make the calls of the evaluation after the task of ``clock``, task by task where the policy has views."""
    passes = parts.learner.evaluation_passes(clock.task)
    if not parts.sparsity.has_views:
        final = parts.sparsity.planned_counts(container, cell.sparsity, clock)
        if final is not None:
            book.set_weight_counts(final)
        book.forward(ledger.EVALUATION, passes * sum(info.test_sizes))
        return
    for task, images in enumerate(info.test_sizes):
        shown = parts.sparsity.planned_view(container, cell.sparsity, clock, task)
        if shown is not None:
            book.set_weight_counts(shown)
        book.forward(ledger.EVALUATION, passes * images)


def _draws_may_fall_short(cell: Cell, parts: Parts) -> bool:
    """Return whether removed samples may leave fewer in a small memory than a replayed batch asks for."""
    if not parts.learner.uses_memory or parts.data.replays_removed:
        return False
    clocks = (Clock(epoch=epoch, epochs=cell.epochs) for epoch in range(cell.epochs))
    removed = sum(parts.data.planned_removals(1000, clock) for clock in clocks) / 1000
    return removed > 0 and cell.buffer * (1 - removed) < cell.batch_size


def _plan_step(
    book: Ledger, cell: Cell, parts: Parts, container: masks.MaskSet, clock: Clock, images: int, past: int
) -> bool:
    """Make one step's calls on ``book``; return whether its counts are an assumption."""
    counts = parts.sparsity.planned_counts(container, cell.sparsity, clock)
    assumed = counts is None
    if counts is None:
        counts = masks.allocate(container.shapes, cell.sparsity)
    book.set_weight_counts(counts)
    learning = parts.sparsity.planned_learning(container, counts, cell.sparsity, clock)
    assumed |= learning is None
    book.set_gradient_counts(parts.gradient.planned_counts(container, counts if learning is None else learning, clock))
    scores = getattr(parts.sparsity, "planned_importance", lambda *_: False)(cell.sparsity, clock)
    refreshes = parts.gradient.planned_refresh(clock)
    assumed |= scores and refreshes  # whether the second costs anything depends on the gradient mask before the step
    if scores:
        book.extra_weight_gradient("importance", images + past, at="weights")
    if refreshes:
        book.extra_weight_gradient("gradient_refresh", images + past, at="weights")
    if cell.sparsity and parts.sparsity.planned_dense_gradients(clock):
        book.extra_weight_gradient("dense_gradient", images + past, at="dense")
    for line, count in (("stream", images), ("replay", past)):
        if count:
            book.forward(line, count)
            book.backward(line, count)
    return assumed


def dense_ledger(cell: Cell, info: StreamInfo, costs: Sequence[LayerCost]) -> dict[str, int]:
    """Return the executed convention's count of the same learner without sparsity and without removed data.

    The learner's own passes between tasks (Fisher information, old outputs, exemplars) are part of it.
    """
    parts = Parts(cell)
    sizes = [sum(info.train_sizes)] if parts.learner.offline else list(info.train_sizes)
    if not parts.learner.offline:
        sizes = [parts.learner.planned_pool(info, cell, task, size) for task, size in enumerate(sizes)]
    presented = replayed = 0
    own = Ledger(costs)
    for task, size in enumerate(sizes):
        parts.learner.plan_begin_task(own, cell, task, size)
        for _ in range(cell.epochs):
            for step in range(parts.protocol.steps(size, cell.batch_size)):
                replayed += parts.learner.planned_replay(cell, parts.protocol, task, presented)
                start, stop = parts.protocol.bounds(size, cell.batch_size, step)
                presented += stop - start
        parts.learner.plan_end_task(own, cell, task, size)
    return {"training": ledger.dense_flops(costs, presented, replayed) + own.as_record()["training"]}


def by_layer(cell: Cell) -> dict[str, dict[str, float]]:
    """Return the paper's and the dense training FLOPs of each layer: ``{"paper": {layer: FLOPs}, "dense": ...}``."""
    info, costs = streams.describe(cell.stream, dict(cell.stream_options)), ledger.layer_costs(*_model(cell))
    return {
        "paper": {cost.name: paper_ledger(cell, info, [cost])["training"] for cost in costs},
        "dense": {cost.name: dense_ledger(cell, info, [cost])["training"] for cost in costs},
    }


def paper_memory(cell: Cell) -> dict[str, float]:
    """Return the bytes of the published memory figures for ``cell``: ``ablation_table`` and ``phone``."""
    gradient = cell.params.get("dgm.sparsity", cell.sparsity)
    return footprint.paper(*_model(cell), cell.batch_size, cell.sparsity, gradient)


def _model(cell: Cell) -> tuple[models.Classifier, tuple[int, int, int]]:
    info = streams.describe(cell.stream, dict(cell.stream_options))
    return models.build(cell.model, cell.width, info.classes, info.shape, torch.Generator().manual_seed(0)), info.shape


def paper_ledger(cell: Cell, info: StreamInfo, costs: Sequence[LayerCost]) -> dict[str, Any]:
    """Return the published convention's count for ``cell``: a function of its settings, not of its run."""
    parts = Parts(cell)
    method = methods.get(cell.method)
    data = method.policies.get("data") == "ddr"
    fraction = 1.0
    if data:
        p = cell.params
        fraction = ledger.ramp_fraction(p["ddr.proportion"], p["ddr.cutoff"] * p["ddr.interval"], cell.epochs)
    gradient = cell.params.get("dgm.sparsity", cell.sparsity)
    replays = parts.learner.published_replay_batches
    replays = parts.learner.replay_batches if replays is None else replays
    training = ledger.paper_flops(
        costs, list(info.train_sizes), cell.epochs, replays, cell.sparsity, gradient, fraction
    )
    own = [part.paper_flops(cell, costs, list(info.train_sizes)) for part in (parts.learner, parts.sparsity)]
    maskable = [cost for cost in costs if cost.maskable]
    total = sum(cost.weights for cost in maskable) or 1
    return {
        "training": next((count for count in own if count is not None), training),
        "data_fraction": fraction,
        "weight_density": sum(c.weights * (1 - cell.sparsity) for c in maskable) / total,
        "gradient_density": sum(c.weights * (1 - gradient) for c in maskable) / total,
        "replay_batches": replays,
    }
