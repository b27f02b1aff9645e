"""Steps timed in turns: which cells, what is counted, and beside what."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sparcl import cli, matrix, plan, resolve
from sparcl.costs import planning
from sparcl.running import timing

CONFIG = {
    "name": "timed", "title": "Timed", "stream": "split-digits", "seeds": 2,
    "defaults": {"epochs": 2, "width": 4},
    "groups": {
        "dense": {"methods": ["derpp"], "buffers": [20, 50]},
        "sparse": {"methods": ["static-derpp", "gmp-er"], "buffers": [20, 50], "sparsities": [0.5, 0.9]},
        "sweep": {
            "methods": ["sparcl-derpp"], "buffers": [20], "sparsities": [0.9], "set": {"ddr.proportion": [0.1, 0.5]},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def planned():
    return plan.make(matrix.from_dict(CONFIG))


def test_a_cell_for_every_sparse_method_and_sparsity(planned) -> None:
    found = timing.cells_of(planned)
    assert [(c.method, c.sparsity, c.buffer, c.seed) for c in found] == [
        ("static-derpp", 0.5, 50, 0), ("static-derpp", 0.9, 50, 0), ("gmp-er", 0.5, 50, 0), ("gmp-er", 0.9, 50, 0)
    ]  # fmt: skip


def test_the_flops_of_a_row_are_those_of_a_step(planned, digits) -> None:
    """Static masks: three passes of three products at the mask's density; the dense learner's at density 1."""
    (cell, *_) = timing.cells_of(planned)
    cell = dataclasses.replace(cell, batch_size=32)
    (row,) = timing.measure([cell], digits, 1, 0.0)
    setting = planning.setting(cell)
    dense = [c.macs for c in setting.costs]
    kept = [c.macs_per_weight * (c.weights // 2 if c.maskable else c.weights) for c in setting.costs]
    images = row["step_flops"] / (2 * 3 * sum(kept))
    assert images == 3 * 32  # the stream's batch and two replayed ones
    assert row["dense_step_flops"] == 2 * 3 * images * sum(dense)
    assert row["inference_flops"] == 2 * sum(kept)
    assert row["dense_inference_flops"] == 2 * sum(dense)
    assert (row["method"], row["sparsity"], row["threads"]) == ("static-derpp", 0.5, 1)
    assert min(row["step_seconds"], row["dense_step_seconds"], row["inference_seconds"]) > 0
    assert row["step_time_saved"] > 0
    masked = sum(c.weights for c in setting.costs if c.maskable)
    assert row["dense_bytes"] - row["sparse_bytes"] == 4 * masked - 4 * (masked // 2) - masked // 8


def test_a_schedule_is_at_its_end_when_it_is_timed(planned, digits) -> None:
    """GMP has reached its sparsity in the second task, though only a few steps of the first were made."""
    cell = timing.cells_of(planned)[3]
    run = timing.trainer.Run(cell, digits)
    next(timing._second_task(run))
    assert run.phase.index == 1
    assert run.masks.counts() == run.sparsity.planned_counts(run.masks, 0.9, run.clock)
    assert run.masks.density() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("method", ["packnet", "lps"])
def test_a_second_task_has_the_weights_that_the_first_left_free(method, digits) -> None:
    run = timing.trainer.Run(resolve.make("split-digits", method, 0.5, epochs=2, width=4), digits)
    steps = timing._second_task(run)
    free = sum(int(mask.sum()) for mask in run.sparsity.free().values())
    assert free == pytest.approx(run.masks.size() / 2, rel=0.1)
    for _ in range(run.clock.task_steps):
        next(steps)  # past the pruning of the second task


def test_a_cell_that_diverges_has_no_row(planned, digits, capsys) -> None:
    static, *_ = timing.cells_of(planned)
    wild = dataclasses.replace(static, learning_rate=1e6, sparsity=0.9)
    rows = timing.measure([static, wild], digits, 1, 0.0)
    assert [row["sparsity"] for row in rows] == [0.5]
    assert "static-derpp, sparsity 0.9: not timed: " in capsys.readouterr().out


def test_the_reference_is_the_dense_learner_by_pytorch() -> None:
    cell = resolve.make("split-digits", "rigl-derpp", 0.9, 50, 3, params={"derpp.alpha": 0.7})
    found = timing.reference(cell)
    assert (found.method, found.sparsity, found.kernel, found.buffer) == ("derpp", 0.0, "dense", 50)
    assert found.params["derpp.alpha"] == 0.7


def test_the_command_writes_rows_for_one_thread_and_for_all(planned, tmp_path, capsys) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(planned))
    assert cli.main(["time", "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "timing.json"),
                     "--cores", "2", "--seconds", "0"]) == 0  # fmt: skip
    found = json.loads((tmp_path / "timing.json").read_text())
    assert [row["threads"] for row in found["rows"]] == [1] * 4 + [2] * 4
    assert found["machine"]["torch"]
    assert cli.main(["time", "--plan", str(tmp_path / "none.json"), "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x").exists()
