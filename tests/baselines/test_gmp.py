"""Gradual magnitude pruning: counts at every update, which weights go, what a later task does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.gmp import GMP, ramp
from sparcl.masks import MaskSet, keep_count


def test_ramp_by_hand() -> None:
    """s_t / s_f = 1 - (1 - t/T)^3 at quarters: 1 - 27/64, 1 - 1/8, 1 - 1/64."""
    assert [ramp(x) for x in (0, 0.25, 0.5, 0.75, 1)] == [0, 37 / 64, 7 / 8, 63 / 64, 1]


def test_counts_at_each_update_by_hand() -> None:
    """640 weights, s = 0.5: 320 go in the end; 320 * 37/64 = 185, 320 * 7/8 = 280, 320 * 63/64 = 315."""
    gmp, container = GMP(interval=5), MaskSet({"a": torch.nn.Parameter(torch.zeros(640))})
    in_force = [gmp.counts(container, 0.5, gmp.level(0, done, 20))["a"] for done in range(21)]
    assert in_force == [640] * 5 + [640 - 185] * 5 + [640 - 280] * 5 + [640 - 315] * 5 + [320]


def test_the_last_update_falls_on_the_end_whatever_the_interval() -> None:
    gmp = GMP(interval=7)
    assert gmp.level(0, 20, 20) == 1
    assert gmp.level(0, 19, 20) == ramp(14 / 20)
    assert GMP(interval=100).level(0, 19, 20) == 0
    early = GMP(interval=1, end=0.5)
    assert [early.level(0, done, 20) for done in (5, 10, 15)] == [ramp(0.5), 1, 1]


def test_later_tasks_are_sparse_or_begin_dense_again() -> None:
    assert GMP(interval=5).level(1, 0, 20) == 1
    again = GMP(interval=5, repeat="every-task")
    assert [again.level(3, done, 20) for done in (0, 10, 20)] == [0, 7 / 8, 1]


def test_the_smallest_weights_go_and_never_return(toy_run) -> None:
    values = torch.tensor([0.5, -0.1, 0.3, -0.8, 0.2, 0.9, -0.4, 0.7])
    run = toy_run({"a": values}, sparsity=0.5, task_step=0, task_steps=4)
    gmp = GMP(interval=2)
    gmp.after_step(run)
    assert run.updates == []
    run.clock = type(run.clock)(task_step=1, task_steps=4)
    gmp.after_step(run)
    assert run.updates == [(4, 0)]  # 4 * 7/8 = 3.5, rounded to even: all 4
    assert run.masks.weight["a"].tolist() == [True, False, False, True, False, True, False, True]


@given(
    size=st.integers(1, 3000),
    sparsity=st.floats(0, 0.99).map(lambda x: round(x, 3)),
    interval=st.integers(1, 40),
    steps=st.integers(1, 200),
    end=st.floats(0, 1),
)
def test_counts_fall_to_exactly_the_target(size: int, sparsity: float, interval: int, steps: int, end: float) -> None:
    gmp = GMP(interval=interval, end=end)
    container = MaskSet({"a": torch.nn.Parameter(torch.zeros(size))})
    counts = [gmp.counts(container, sparsity, gmp.level(0, done, steps))["a"] for done in range(steps + 1)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == keep_count(size, sparsity)


@pytest.mark.parametrize("repeat", ["first-task", "every-task"])
def test_a_run_follows_the_schedule(repeat: str, small_cell, run_steps) -> None:
    """10 steps a task, updates after 4, 8 and 10; every update removes the smallest of what exists."""
    chosen = small_cell("gmp-er", params={"gmp.interval": 4, "gmp.repeat": repeat})
    levels = {0: [0] * 3 + [ramp(0.4)] * 4 + [ramp(0.8)] * 2 + [1]}
    levels[1] = levels[0] if repeat == "every-task" else [1] * 10
    seen: list[dict[str, int]] = []
    before: dict[str, torch.Tensor] = {}

    def watch(run) -> None:
        seen.append(run.masks.counts())
        for name, weight in run.masks.parameters.items():
            mask = run.masks.weight[name]
            assert (weight.detach()[~mask] == 0).all()
            if len(seen) <= 10 and name in before:
                assert not (mask & ~before[name]).any()
            before[name] = mask.clone()

    run = run_steps(chosen, 20, watch)
    for index, counts in enumerate(seen):
        level = levels[index // 10][index % 10]
        for name, weight in run.masks.parameters.items():
            gone = weight.numel() - keep_count(weight.numel(), 0.75)
            assert counts[name] == weight.numel() - round(gone * level), (index, name)


def test_the_updating_step_is_counted_at_the_mask_it_used(small_cell, run_steps) -> None:
    """With one update, after the task's last step, all of its training FLOPs are dense."""
    sparse = run_steps(small_cell("gmp-finetune", params={"gmp.interval": 10}), 10)
    dense = run_steps(small_cell("finetune"), 10)
    assert sparse.masks.density() < 0.26
    assert sparse.ledger.as_record()["training"] == dense.ledger.as_record()["training"]


def test_with_repeat_missing_weights_return_at_zero(small_cell, run_steps) -> None:
    chosen = small_cell("gmp-er", params={"gmp.interval": 4, "gmp.repeat": "every-task"})
    run = run_steps(chosen, 10)
    run.clock = run.clock.__class__(task=1)
    missing = {name: ~mask for name, mask in run.masks.weight.items()}
    run.sparsity.begin_task(run)
    assert run.masks.density() == 1
    for name, places in missing.items():
        assert places.any()
        assert (run.masks.parameters[name].detach()[places] == 0).all()
