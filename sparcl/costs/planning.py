"""What a cell costs without training it: the ledger of its schedule, the published counts, and its memory.

:func:`executed` walks through the tasks, epochs and steps of a cell and makes the calls on a
:class:`sparcl.costs.ledger.Ledger` that a run would make, with the counts that the policies plan. Where data decide how
many weights a layer keeps (SNIP with global scope), the layers are planned with equal sparsity; where removed samples
may leave fewer in memory than a replayed batch asks for, full batches are planned. ``approximate`` says so in both
cases. Everything else here is a function of the settings alone; the plan of a matrix holds it (:func:`facts`).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparcl import masks, methods, models, streams
from sparcl.cell import Cell
from sparcl.components import Clock, Component, Learner, frozen
from sparcl.costs import convention, footprint, ledger
from sparcl.costs.ledger import LayerCost, Ledger
from sparcl.methods import Parts
from sparcl.protocol import Protocol
from sparcl.streams import StreamInfo


@dataclass(frozen=True)
class Setting:
    """What a cell's plan is made of: its components, protocol, stream and network, without data or training."""

    cell: Cell
    parts: Parts
    protocol: Protocol
    info: StreamInfo
    model: models.Classifier
    costs: tuple[LayerCost, ...]

    @property
    def maskable(self) -> dict[str, torch.nn.Parameter]:
        """The weights that masks may cover, by name."""
        weights = dict(self.model.named_parameters())
        return {name: weights[name] for name in models.maskable(self.model)}

    @property
    def sizes(self) -> list[int]:
        """Samples in the pool of each stretch of training."""
        if self.parts.learner.offline:
            return [sum(self.info.train_sizes)]
        pool, info = self.parts.learner.planned_pool, self.info
        return [pool(info, self.cell, task, size) for task, size in enumerate(info.train_sizes)]


def setting(cell: Cell) -> Setting:
    """Return what the plan of ``cell`` is made of; needs the stream's description, not its data."""
    info = streams.describe(cell.stream, dict(cell.stream_options))
    parts = methods.parts(cell)
    model = network(cell.model, cell.width, info.classes, info.shape)
    costs = ledger.layer_costs(model, info.shape)
    if _has_own_network(parts):
        model = copy.deepcopy(model)
        parts.learner.equip(model, cell, info)
        for part in parts.every:
            part.freeze(model, cell, info.tasks - 1)
    return Setting(cell, parts, cell.component(Protocol), info, model, costs)


@functools.lru_cache(None)
def network(name: str, width: int, classes: int, shape: tuple[int, int, int]) -> models.Classifier:
    """Return a network that nobody trains, once for each set of arguments."""
    return models.build(name, width, classes, shape, torch.Generator().manual_seed(0))


def _has_own_network(parts: Parts) -> bool:
    """Return whether the method adds modules to the network, or freezes some."""
    freezing = any(type(part).freeze is not Component.freeze for part in parts.every)
    return freezing or type(parts.learner).equip is not Learner.equip


# -- as executed -------------------------------------------------------------------------------------------------------
@streams.remembered()
def executed(cell: Cell) -> tuple[dict[str, Any], bool]:
    """Return the planned ledger of ``cell`` (as a record holds it, FLOPs), and whether it is an approximation."""
    plan = setting(cell)
    container = masks.MaskSet(plan.maskable)
    book, parts, sizes = Ledger(plan.costs), plan.parts, plan.sizes
    tests = sum(plan.info.test_sizes)
    approximate = _draws_may_fall_short(plan) or parts.learner.plans_approximately(plan.info, cell)
    seen = 0
    start_counts = parts.sparsity.planned_counts(container, 0.0, Clock(tasks=len(sizes), epochs=cell.epochs))
    if start_counts is not None:
        book.forward(ledger.EVALUATION, tests)
    for task, size in enumerate(sizes):
        remaining = size
        parts.learner.plan_begin_task(book, cell, task, size)
        clock = Clock(task, len(sizes), 0, cell.epochs)
        book.set_frozen(frozen(parts.every, plan.model, cell.sparsity, clock))
        for policy in parts.policies:
            policy.plan_begin_task(book, cell, task, size)
        nominal = plan.protocol.steps(size, cell.batch_size)
        for epoch in range(cell.epochs):
            steps = plan.protocol.steps(remaining, cell.batch_size)
            for step in range(steps):
                clock = Clock(
                    task, len(sizes), epoch, cell.epochs, step, steps, epoch * nominal + step, cell.epochs * nominal
                )
                start, stop = plan.protocol.bounds(remaining, cell.batch_size, step)
                past = parts.learner.planned_replay(cell, plan.protocol, task, seen)
                approximate |= _step(book, plan, container, clock, stop - start, past)
                seen += stop - start
            remaining -= parts.data.planned_removals(size, Clock(task, len(sizes), epoch, cell.epochs, 0, steps))
        end = Clock(
            task, len(sizes), cell.epochs, cell.epochs, 0, nominal, cell.epochs * nominal, cell.epochs * nominal
        )
        final = parts.sparsity.planned_counts(container, cell.sparsity, end)
        approximate |= final is None
        book.set_weight_counts(masks.allocate(container.shapes, cell.sparsity) if final is None else final)
        for part in (*parts.policies, parts.learner):
            part.plan_end_task(book, cell, task, size)
        _evaluation(book, plan, container, end)
    return book.as_record(), approximate


def _step(book: Ledger, plan: Setting, container: masks.MaskSet, clock: Clock, images: int, past: int) -> bool:
    """Make one step's calls on ``book``; return whether its counts are an assumption."""
    parts, sparsity = plan.parts, plan.cell.sparsity
    counts = parts.sparsity.planned_counts(container, sparsity, clock)
    assumed = counts is None
    if counts is None:
        counts = masks.allocate(container.shapes, sparsity)
    book.set_weight_counts(counts)
    learning = parts.sparsity.planned_learning(container, counts, sparsity, clock)
    assumed |= learning is None
    book.set_gradient_counts(parts.gradient.planned_counts(container, counts if learning is None else learning, clock))
    wanted = {
        line: density for policy in parts.policies for line, density in policy.gradients_wanted(sparsity, clock).items()
    }
    book.step(images, past, wanted)
    return assumed


def _evaluation(book: Ledger, plan: Setting, container: masks.MaskSet, clock: Clock) -> None:
    """Make the calls of the evaluation after the task of ``clock``, task by task where the policy has views."""
    parts, sparsity = plan.parts, plan.cell.sparsity
    passes = parts.learner.evaluation_passes(clock.task)
    if not parts.sparsity.has_views:
        book.forward(ledger.EVALUATION, passes * sum(plan.info.test_sizes))
        return
    for task, images in enumerate(plan.info.test_sizes):
        shown = parts.sparsity.planned_view(container, sparsity, clock, task)
        if shown is not None:
            book.set_weight_counts(shown)
        book.forward(ledger.EVALUATION, passes * images)


def _draws_may_fall_short(plan: Setting) -> bool:
    """Return whether removed samples may leave fewer in a small memory than a replayed batch asks for.

    Where a task is replayed while it is trained, how many of the removed the memory holds is a draw: four standard
    deviations are allowed for.
    """
    cell, parts = plan.cell, plan.parts
    if not parts.learner.uses_memory or parts.data.replays_removed:
        return False
    clocks = (Clock(epoch=epoch, epochs=cell.epochs) for epoch in range(cell.epochs))
    removed = sum(parts.data.planned_removals(1000, clock) for clock in clocks) / 1000
    spread = 4 * math.sqrt(cell.buffer * removed * (1 - removed)) if plan.protocol.replay_start == "immediately" else 0
    return removed > 0 and cell.buffer * (1 - removed) - spread < cell.batch_size


# -- as published, and as if dense -------------------------------------------------------------------------------------
def paper(cell: Cell, costs: Sequence[LayerCost] | None = None) -> dict[str, Any]:
    """Return the published convention's count for ``cell``: a function of its settings, not of its run.

    Args:
        costs: of these layers alone; all by default.
    """
    plan = setting(cell)
    costs, parts, sizes = plan.costs if costs is None else costs, plan.parts, list(plan.info.train_sizes)
    shapes = {name: weight.shape for name, weight in plan.maskable.items()}
    left = parts.sparsity.published_sparsity(shapes, cell, sizes)
    fraction = parts.data.published_fraction(cell.epochs)
    masked = parts.gradient.published_sparsity(cell.sparsity)
    gradient = left if masked == cell.sparsity else dict.fromkeys(shapes, masked)
    replays = parts.learner.published_replay_batches
    replays = parts.learner.replay_batches if replays is None else replays
    training = convention.paper_flops(costs, sizes, cell.epochs, replays, left, gradient, fraction)
    own = [part.published_flops(cell, costs, sizes) for part in (parts.learner, parts.sparsity)]
    maskable = [cost for cost in costs if cost.maskable]
    total = sum(cost.weights for cost in maskable) or 1
    return {
        "training": next((count for count in own if count is not None), training),
        "data_fraction": fraction,
        "weight_density": sum(c.weights * (1 - left[c.name]) for c in maskable) / total,
        "gradient_density": sum(c.weights * (1 - gradient[c.name]) for c in maskable) / total,
        "replay_batches": replays,
    }


def dense(cell: Cell) -> dict[str, Any]:
    """Return the ledger (FLOPs) of the same learner without sparsity and without removed data, as executed.

    The learner's own passes between tasks (Fisher information, old outputs, exemplars) are part of it, and what it
    freezes has no gradient.
    """
    plan = setting(cell)
    learner, sizes, book = plan.parts.learner, plan.sizes, Ledger(plan.costs)
    seen = 0
    for task, size in enumerate(sizes):
        learner.plan_begin_task(book, cell, task, size)
        book.set_frozen(learner.planned_frozen(plan.model, 0.0, Clock(task, len(sizes), 0, cell.epochs)))
        presented = replayed = 0
        for _ in range(cell.epochs):
            for step in range(plan.protocol.steps(size, cell.batch_size)):
                replayed += learner.planned_replay(cell, plan.protocol, task, seen + presented)
                start, stop = plan.protocol.bounds(size, cell.batch_size, step)
                presented += stop - start
        book.step(presented, replayed, {})
        seen += presented
        learner.plan_end_task(book, cell, task, size)
    return book.as_record()


def by_layer(cell: Cell) -> dict[str, dict[str, float]]:
    """Return the paper's and the dense training FLOPs of each layer: ``{"paper": {layer: FLOPs}, "dense": ...}``."""
    costs = setting(cell).costs
    return {"paper": {cost.name: paper(cell, [cost])["training"] for cost in costs}, "dense": dense(cell)["layers"]}


def dense_cell(cell: Cell) -> Cell:
    """Return the cell of the same learner, protocol and stream without policies, by which many cells are compared."""
    method = methods.get(cell.method)
    prefixes = (f"{method.learner}.", "protocol.")
    params = {key: value for key, value in cell.params.items() if key.startswith(prefixes)}
    return dataclasses.replace(cell, method=method.learner, sparsity=0.0, seed=0, params=params, variant={})


def dense_over_paper(cell: Cell) -> float | None:
    """Return how many times the dense learner's training FLOPs are those of the cell, both by the paper's count.

    None for a method without policies.
    """
    own = paper(cell)["training"]
    return paper(dense_cell(cell))["training"] / own if own and methods.get(cell.method).policies else None


# -- what a plan holds -------------------------------------------------------------------------------------------------
def facts(cell: Cell) -> dict[str, Any]:
    """Return what follows from the settings of ``cell``, whatever its seed: FLOPs, densities, and bytes of memory."""
    return _facts(dataclasses.replace(cell, seed=0))


@functools.lru_cache(None)
def _facts(cell: Cell) -> dict[str, Any]:
    plan = setting(cell)
    published = paper(cell)
    gradient = plan.parts.gradient.published_sparsity(cell.sparsity)
    base = network(cell.model, cell.width, plan.info.classes, plan.info.shape)
    memory = convention.paper_memory(
        sum(parameter.numel() for parameter in plan.model.parameters()),
        _convolution_outputs(base, plan.info.shape),
        cell.batch_size,
        cell.sparsity,
        gradient,
    )
    images = images_at_once(cell)
    maskable = plan.maskable
    others = [p for n, p in plan.model.named_parameters() if n not in maskable]
    return {
        "flops_paper": published["training"],
        "flops_dense": _dense(dense_cell(cell))["training"],
        "data_fraction": published["data_fraction"],
        "weight_density": published["weight_density"],
        "gradient_density": published["gradient_density"],
        "replay_batches": published["replay_batches"],
        "paper_memory_ablation": memory["ablation_table"],
        "paper_memory_phone": memory["phone"],
        "memory": {
            "dense_parameters": sum(p.numel() for p in others),
            "frozen": sum(p.numel() for p in others if not p.requires_grad),
            "buffers": sum(value.numel() * value.element_size() for value in plan.model.buffers()),
            "activations": _activations(
                cell if _has_own_network(plan.parts) else None, cell.model, cell.width, plan.info, images
            ),
        },
    }


def images_at_once(cell: Cell) -> int:
    """Return how many images one training step keeps activations of."""
    return methods.parts(cell).learner.images_at_once(cell, cell.component(Protocol))


@functools.lru_cache(None)
def _activations(own: Cell | None, name: str, width: int, info: StreamInfo, images: int) -> int:
    model = setting(own).model if own else network(name, width, info.classes, info.shape)
    return footprint.saved_bytes(model, info.shape, images)


_dense = functools.lru_cache(None)(dense)
_convolution_outputs = functools.lru_cache(None)(footprint.convolution_outputs)
