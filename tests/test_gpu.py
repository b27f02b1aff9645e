"""What must hold on a CUDA device; skipped without one."""

from __future__ import annotations

import contextlib

import pytest
import torch

from sparcl import cell, resolve, streams, trainer
from sparcl.running import environment, record, runner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def make(method: str, device: str, **fields: object) -> cell.Cell:
    sparsity = 0.9 if "-" in method else 0.0
    return resolve.make("split-digits", method, sparsity, 50, 0, device=device, epochs=2, **fields)


def trained(chosen: cell.Cell, steps: int | None = None) -> trainer.Run:
    environment.prepare(chosen)
    run = trainer.Run(chosen, streams.load(chosen.stream, None, {}))
    done = 0

    def stop(_: trainer.Run) -> None:
        nonlocal done
        done += 1
        if done == steps:
            raise trainer.Interrupted

    with contextlib.suppress(trainer.Interrupted):
        trainer.train(run, stop)
    return run


def weights(run: trainer.Run) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().double() for name, value in run.model.named_parameters()}


@pytest.mark.parametrize("method", ["derpp", "sparcl-derpp", "sparcl-er", "rigl-derpp"])
def test_cuda_follows_the_cpu(method: str) -> None:
    """The first steps agree to float32 rounding: same draws, same arithmetic."""
    cpu = weights(trained(make(method, "cpu"), steps=4))
    gpu = weights(trained(make(method, "cuda"), steps=4))
    for name, value in cpu.items():
        assert torch.allclose(value, gpu[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("method", ["sparcl-derpp", "rigl-derpp"])
def test_the_same_cell_gives_the_same_record(method: str, tmp_path) -> None:
    chosen = make(method, "cuda")
    first, second = (runner.run_cell(chosen, tmp_path / str(i)) for i in range(2))
    assert record.reproducible(first) == record.reproducible(second)


def test_masked_weights_are_zero_and_counts_exact() -> None:
    run = trained(make("sparcl-derpp", "cuda"))
    for name, mask in run.masks.weight.items():
        assert int((run.masks.parameters[name] != 0).logical_and(~mask).sum()) == 0
        assert int(mask.sum()) == run.masks.counts()[name]


def test_an_interrupted_run_continues_bit_for_bit(tmp_path) -> None:
    chosen = make("sparcl-derpp", "cuda")
    whole = runner.run_cell(chosen, tmp_path / "whole")
    calls = iter(range(10**9))
    with pytest.raises(trainer.Interrupted):
        runner.run_cell(chosen, tmp_path / "parts", stop=lambda: next(calls) == 40)
    assert record.reproducible(runner.run_cell(chosen, tmp_path / "parts")) == record.reproducible(whole)
