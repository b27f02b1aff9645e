"""The same cell gives the same record: alone, beside others, in a fresh process, in a copy of the code, served."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import call

from sparcl import cell, record, runner, trainer

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the code in another folder, without anything compiled."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("sparcl", "baselines"):
        shutil.copytree(TOP / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("method", ["sparcl-derpp", "rigl-er", "lwta"])
def test_everywhere_the_same(method: str, small_cell: Callable[..., cell.Cell], clone: Path, tmp_path: Path) -> None:
    """Four processes beside each other, with other surroundings each, and this one after other cells."""
    chosen = small_cell(method, epochs=1)
    common = {**os.environ, "TMPDIR": str(tmp_path)}
    common.pop("XDG_RUNTIME_DIR", None)
    surroundings = {
        "fresh": ("sparcl.cli", TOP, {"PYTHONHASHSEED": "1"}),
        "again": (
            "sparcl.cli",
            tmp_path,
            {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "HOME": "/"},
        ),
        "clone": ("sparcl.cli", clone, {"PYTHONPATH": str(clone), "MALLOC_PERTURB_": "165"}),
        "served": ("sparcl.worker", TOP, {"SPARCL_WORKER": "fork"}),
    }
    running = {}
    for name, (module, folder, variables) in surroundings.items():
        command = [
            sys.executable,
            "-m",
            module,
            "run",
            "--cell",
            chosen.json(),
            "--results",
            str(tmp_path / name),
        ]
        running[name] = subprocess.Popen(
            [*command, "--data", str(TOP / "data")], env=common | variables, cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    for other in ("er", "snip-derpp", "packnet"):
        runner.run_cell(small_cell(other, epochs=1), tmp_path / "others")
    here = record.reproducible(runner.run_cell(chosen, tmp_path / "here"))
    for name, process in running.items():
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert record.reproducible(record.read(runner.folder_of(chosen, tmp_path / name) / "record.json")) == here, name
    another = record.reproducible(runner.run_cell(small_cell(method, epochs=1, seed=1), tmp_path / "here"))
    assert another["results"] != here["results"]


def test_no_global_state_matters(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    """Other seeds of the process's own generators, other threads, other settings that an earlier cell may have left."""
    chosen = small_cell("sparcl-derpp", epochs=1)
    here = record.reproducible(runner.run_cell(chosen, tmp_path / "here"))

    def disturbed() -> bool:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
        runner.run_cell(small_cell("er", epochs=1, precision="bfloat16"), tmp_path / "there")
        return record.reproducible(runner.run_cell(chosen, tmp_path / "there")) == here

    assert call(disturbed)


def test_methods_share_data_order_augmentation_and_initial_weights(
    small_cell: Callable[..., cell.Cell],
    run_steps: Callable[..., trainer.Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under one seed every method sees each sample in the same order; one that removes samples skips them only."""
    seen: dict[str, list[list[int]]] = {}
    memories: dict[str, torch.Tensor] = {}
    real = trainer.step
    for method in ("finetune", "derpp", "rigl-derpp", "sparcl-derpp"):
        order = seen.setdefault(method, [])

        def watched(run: trainer.Run, batch: trainer.Batch, order: list[list[int]] = order) -> None:
            if batch.positions is not None and run.clock.step == 0:
                order.append([])
            order[-1] += batch.positions.tolist()
            real(run, batch)

        monkeypatch.setattr(trainer, "step", watched)
        run = run_steps(small_cell(method))
        memories[method] = run.memory.positions + 10_000 * run.memory.tasks
    assert seen["finetune"] == seen["derpp"] == seen["rigl-derpp"]
    assert torch.equal(memories["derpp"], memories["rigl-derpp"])
    for epoch, (dense, reduced) in enumerate(zip(seen["derpp"], seen["sparcl-derpp"], strict=True)):
        kept = set(reduced)
        assert [position for position in dense if position in kept] == reduced, epoch
    stream = run_steps(small_cell("finetune"), 1).stream
    first, second = (
        dict(trainer.Run(small_cell(method), stream).model.named_parameters())
        for method in ("finetune", "sparcl-derpp")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
