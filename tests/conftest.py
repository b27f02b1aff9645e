"""Fixtures that tests of the core and of the baselines share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparcl import cell, methods, resolve, seeding, streams, trainer
from sparcl.components import Clock
from sparcl.masks import MaskSet


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all") or "slow" in config.option.markexpr:
        return
    chosen = [item for item in items if "slow" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "slow" in item.keywords])
    items[:] = chosen


TOGETHER = {
    "tests/analysis/test_figures.py",
    "tests/analysis/test_report.py",
    "tests/analysis/test_sweeps.py",
    "tests/benchmarks/test_aggregation.py",
    "tests/test_export.py",
    "tests/test_new_baseline.py",
    "tests/workflow/test_pipeline.py",
    "tests/workflow/test_slurm.py",
}
"""Files whose tests share what is costly, or follow each other: one process runs them, before it takes single tests."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share single tests out between the processes, but for the files of :data:`TOGETHER`."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in TOGETHER else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> streams.Stream:
    return streams.load("split-digits", None, {})


@pytest.fixture(scope="session")
def toy_run() -> Callable[..., SimpleNamespace]:
    """Return a maker of what a policy sees of a run: masks over the given weights, a clock and notes."""

    def make(weights: Mapping[str, Tensor], sparsity: float = 0.5, **clock: int) -> SimpleNamespace:
        container = MaskSet({name: nn.Parameter(value.clone()) for name, value in weights.items()})
        one_epoch = {"step": clock.get("task_step", 0), "steps": clock.get("task_steps", 1)}
        run = SimpleNamespace(masks=container, clock=Clock(**one_epoch | clock), updates=[], term_gradients={})
        run.cell = SimpleNamespace(sparsity=sparsity, batch_size=4)
        generators: dict[str, torch.Generator] = {}
        run.generator = lambda name: generators.setdefault(name, seeding.generator(0, name))
        run.note_update = lambda pruned, grown: run.updates.append((pruned, grown))
        run.note_gradients = lambda: None
        return run

    return make


@pytest.fixture(scope="session")
def small_cell() -> Callable[..., cell.Cell]:
    """Return a maker of cells that run in a fraction of a second, by PyTorch's kernels unless told otherwise."""

    def make(method: str, sparsity: float | None = None, seed: int = 0, **fields: Any) -> cell.Cell:
        if sparsity is None:
            sparsity = 0.75 if methods.get(method).is_sparse else 0.0
        values: dict[str, Any] = {"buffer": 20, "width": 4, "epochs": 2, "batch_size": 64, "kernel": "dense"} | fields
        return resolve.make("split-digits", method, sparsity, values.pop("buffer"), seed, **values)

    return make


@pytest.fixture(scope="session")
def run_steps(digits: streams.Stream) -> Callable[..., trainer.Run]:
    """Return a function that makes a run of a cell and trains it, to its end or for a number of steps."""

    def train(
        chosen: cell.Cell,
        steps: int | None = None,
        after_step: Callable[[trainer.Run], None] = lambda run: None,
        prepare: Callable[[trainer.Run], None] = lambda run: None,
    ) -> trainer.Run:
        run = trainer.Run(chosen, digits)
        prepare(run)
        done = 0

        def watch(run: trainer.Run) -> None:
            nonlocal done
            after_step(run)
            done += 1
            if done == steps:
                raise trainer.Interrupted

        with contextlib.suppress(trainer.Interrupted):
            trainer.train(run, watch)
        return run

    return train
