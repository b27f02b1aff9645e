"""The same cell gives the same record: in a fresh process, after other cells, through the fork server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparcl import cell, record, runner, trainer


@pytest.mark.parametrize("method", ["sparcl-derpp", "rigl-er"])
def test_alone_after_others_and_through_the_worker(
    method: str, small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    chosen = small_cell(method, epochs=1)
    for other in ("er", "snip-derpp"):
        runner.run_cell(small_cell(other, epochs=1), tmp_path / "others")
    here = record.reproducible(runner.run_cell(chosen, tmp_path / "here"))
    for name, module, server in (("fresh", "sparcl.cli", "off"), ("served", "sparcl.worker", "fork")):
        command = [sys.executable, "-m", module, "run", "--cell", chosen.json(), "--results", str(tmp_path / name)]
        environment = {**os.environ, "SPARCL_WORKER": server, "TMPDIR": str(tmp_path)}
        environment.pop("XDG_RUNTIME_DIR", None)
        subprocess.run(command, check=True, env=environment, capture_output=True)
        found = record.read(runner.folder_of(chosen, tmp_path / name) / "record.json")
        assert record.reproducible(found) == here, name


def test_methods_share_data_order_augmentation_and_initial_weights(
    small_cell: Callable[..., cell.Cell], run_steps: Callable[..., trainer.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one seed every method sees each sample in the same order; one that removes samples skips them only."""
    seen: dict[str, list[list[int]]] = {}
    real = trainer.step
    for method in ("finetune", "derpp", "rigl-derpp", "sparcl-derpp"):
        order = seen.setdefault(method, [])

        def watched(run: trainer.Run, batch: trainer.Batch, order: list[list[int]] = order) -> None:
            if batch.positions is not None and run.clock.step == 0:
                order.append([])
            order[-1] += batch.positions.tolist()
            real(run, batch)

        monkeypatch.setattr(trainer, "step", watched)
        run_steps(small_cell(method))
    assert seen["finetune"] == seen["derpp"] == seen["rigl-derpp"]
    for epoch, (dense, reduced) in enumerate(zip(seen["derpp"], seen["sparcl-derpp"], strict=True)):
        kept = set(reduced)
        assert [position for position in dense if position in kept] == reduced, epoch
    stream = run_steps(small_cell("finetune"), 1).stream
    first, second = (
        dict(trainer.Run(small_cell(method), stream).model.named_parameters())
        for method in ("finetune", "sparcl-derpp")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
