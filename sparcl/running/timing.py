"""How long steps take on this machine, beside the FLOPs that they execute: ``sparcl time``.

For every method and sparsity of a plan a run is brought to its second task, so that it replays, and then all make
one step after the other, in turns, so that a busy machine slows all alike. The same with batches of test images. Beside
each method stands its dense learner by PyTorch's own convolutions, measured in the same turns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sparcl import groups, masks, methods, models, resolve, trainer
from sparcl.cell import Cell
from sparcl.costs import memory, planning
from sparcl.kernels import bench, library
from sparcl.running import environment, identity
from sparcl.streams import Stream

WARM_UP = 3
"""Steps of the first task, and then of the second, that are not measured."""
LEAST, MOST = 5, 40
"""Turns."""


@dataclass
class Course:
    """A run in its second task, with what its steps and its inference took."""

    run: trainer.Run
    steps: Iterator[tuple[float, float]]
    seconds: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    inference: list[float] = field(default_factory=list)


def cells_of(plan: Mapping[str, Any]) -> list[Cell]:
    """Return a cell for every sparse method and sparsity of the plan's main groups: its largest buffer, seed 0."""
    aside = groups.apart(plan["config"])
    chosen: dict[tuple[str, float], Cell] = {}
    for entry in plan["cells"]:
        cell = resolve.from_dict(entry["cell"])
        if not groups.in_main(entry["groups"], aside) or cell.device != "cpu" or not methods.get(cell.method).policies:
            continue
        key = cell.method, cell.sparsity
        if key not in chosen or cell.buffer > chosen[key].buffer:
            chosen[key] = dataclasses.replace(cell, seed=0)
    return list(chosen.values())


def reference(cell: Cell) -> Cell:
    """Return the dense learner of ``cell`` by PyTorch's convolutions."""
    return dataclasses.replace(planning.dense_cell(cell), kernel="dense")


def measure(cells: Sequence[Cell], stream: Stream, threads: int, budget: float) -> list[dict[str, Any]]:
    """Return a row for every cell, with ``threads`` threads, after turns of about ``budget`` seconds in all.

    Prints where it is. A cell that diverges has no row.

    Raises:
        UserError: a cell wants the sparse kernel where it cannot run.
    """
    for cell in cells:
        identity.kernel_of(cell)
    environment.prepare(cells[0], threads)
    courses: dict[Cell, Course] = {}
    for number, cell in enumerate(dict.fromkeys([*map(reference, cells), *cells])):
        print(f"{threads} threads: {number + 1}. {cell.method}, sparsity {cell.sparsity:g}", flush=True)
        with _unless_diverged(cell, courses):
            run = trainer.Run(cell, stream)
            courses[cell] = Course(run, _second_task(run))
    started, turns = time.perf_counter(), 0
    while turns < MOST and (turns < LEAST or time.perf_counter() - started <= budget):
        for cell, course in list(courses.items()):
            with _unless_diverged(cell, courses):
                seconds, flops = next(course.steps)
                course.seconds.append(seconds)
                course.flops.append(flops)
                course.inference.append(_inference(course.run))
        turns += 1
    print(f"{threads} threads: {turns} turns", flush=True)
    return [
        _row(cell, courses[cell], courses[reference(cell)], threads)
        for cell in cells
        if cell in courses and reference(cell) in courses
    ]


@contextlib.contextmanager
def _unless_diverged(cell: Cell, courses: dict[Cell, Course]) -> Iterator[None]:
    """Take a cell that diverges meanwhile out of ``courses``, and say so."""
    try:
        yield
    except trainer.Diverged as error:
        print(f"{cell.method}, sparsity {cell.sparsity:g}: not timed: {error}", flush=True)
        courses.pop(cell, None)


def _second_task(run: trainer.Run) -> Iterator[tuple[float, float]]:
    """Bring a run to its second task and yield seconds and training FLOPs of one step after the other."""
    run.learner.start(run)
    for policy in run.policies:
        policy.start(run)
    for phase in run.phases[:2]:
        trainer.begin_task(run, phase)
        planned = run.sparsity.planned_counts(run.masks, run.cell.sparsity, run.clock)
        if phase.index and planned is not None and planned != run.masks.counts():  # a schedule that took no time here
            run.masks.adopt(masks.at_random(run.masks.parameters, planned, run.generator("timing")))
        steps = _steps(run)
        for _ in range(WARM_UP):
            next(steps)
        if phase.index == 0 and len(run.phases) > 1:
            if run.sparsity.has_views:  # what a task keeps for itself is decided in its last steps
                for step in range(WARM_UP, run.clock.task_steps):
                    run.clock = dataclasses.replace(run.clock, task_step=step)
                    run.sparsity.after_step(run)
            for policy in run.policies:
                policy.end_task(run)
            run.learner.end_task(run)
    return steps


def _steps(run: trainer.Run) -> Iterator[tuple[float, float]]:
    epoch = 0
    while True:
        trainer.begin_epoch(run, epoch % run.cell.epochs)
        batches = trainer.batches(run)
        while True:
            before = run.ledger.as_record()["training"]
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            trainer.step(run, batch)
            yield time.perf_counter() - started, run.ledger.as_record()["training"] - before
        epoch += 1


@torch.no_grad()
def _inference(run: trainer.Run) -> float:
    images = run.network_input(run.stream.test_images[: models.EVALUATION_BATCH])
    with models.evaluation_mode(run.model), run.autocast():
        started = time.perf_counter()
        run.logits(images)
        return (time.perf_counter() - started) / len(images)


def _row(cell: Cell, own: Course, dense: Course, threads: int) -> dict[str, Any]:
    def inference_flops(course: Course) -> float:
        counts = course.run.masks.counts()
        return 2.0 * sum(c.macs_per_weight * counts.get(c.name, c.weights) for c in course.run.ledger.costs)

    median = statistics.median
    return {
        "method": cell.method,
        "sparsity": cell.sparsity,
        "buffer": cell.buffer,
        "kernel": identity.kernel_of(cell)["kernel"],
        "threads": threads,
        "step_seconds": median(own.seconds),
        "dense_step_seconds": median(dense.seconds),
        "step_time_saved": median(d / s for d, s in zip(dense.seconds, own.seconds, strict=True)),
        "step_flops": median(own.flops),
        "dense_step_flops": median(dense.flops),
        "inference_seconds": median(own.inference),
        "dense_inference_seconds": median(dense.inference),
        "inference_time_saved": median(d / s for d, s in zip(dense.inference, own.inference, strict=True)),
        "inference_flops": inference_flops(own),
        "dense_inference_flops": inference_flops(dense),
        **_stored(own.run),
    }


def _stored(run: trainer.Run) -> dict[str, int]:
    """Return {"dense_bytes", "sparse_bytes"} of the model on disk."""
    counts, masked = run.masks.counts(), run.masks.parameters
    others = sum(p.numel() for n, p in run.model.named_parameters() if n not in masked)
    buffers = sum(b.numel() * b.element_size() for b in run.model.buffers())
    found = memory.stored(others, buffers, [(p.numel(), counts[n]) for n, p in masked.items()])
    return {f"{kind}_bytes": size for kind, size in found.items()}


def machine(threads: int) -> dict[str, Any]:
    """Return where it was measured."""
    rate = bench.peak(threads) if library.available() else 0.0
    return bench.machine(threads, rate)
