"""SET: how many weights go, which, where new ones come, when."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from baselines.set import SET
from sparcl.masks import keep_count


def masked_run(toy_run, weights, **clock):
    """A run whose masks are the non-zero entries of ``weights``."""
    run = toy_run(weights, sparsity=0.5, **clock)
    run.masks.adopt({name: value != 0 for name, value in weights.items()})
    return run


def test_one_update_by_hand(toy_run) -> None:
    """Ten weights, zeta 0.3: the three smallest go and three free places are taken; kept values do not move."""
    values = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10] + [0.0] * 10)
    run = masked_run(toy_run, {"a": values}, task_step=4, task_steps=20, epochs=2)
    SET(interval=5).after_step(run)
    mask, after = run.masks.weight["a"], run.masks.parameters["a"].detach()
    assert run.updates == [(3, 3)]
    assert mask.sum() == 10
    assert mask[3:10].all()
    assert torch.equal(after[3:10], values[3:10])
    assert (after[:3] == 0).all()
    assert (after[10:] == 0).all()


def test_drops_are_rounded_down_and_a_dense_layer_is_left_alone(toy_run) -> None:
    weights = {"a": torch.tensor([1.0, 2, 3, 0, 0, 0]), "dense": torch.tensor([1.0, 2, 3, 4, 5])}
    run = masked_run(toy_run, weights, task_step=4, epochs=2)
    SET(interval=5, zeta=0.4).after_step(run)
    assert run.updates == [(1, 1)]
    assert torch.equal(run.masks.parameters["dense"].detach(), weights["dense"])


def test_growth_is_uniform_over_the_free_places(toy_run) -> None:
    """One of four free places (three empty ones and the one just lost), 2,000 times: chi-squared, 3 degrees."""
    hits = torch.zeros(6)
    rule = SET(interval=1, zeta=0.34)
    run = toy_run({"a": torch.zeros(6)}, sparsity=0.5, epochs=2)
    for _ in range(2000):
        run.masks.adopt({"a": torch.tensor([True, True, True, False, False, False])})
        run.masks.parameters["a"].data[:3] = torch.tensor([0.1, 2.0, 3.0])
        rule.after_step(run)
        hits += run.masks.weight["a"]
    assert hits[1:3].tolist() == [2000, 2000]
    free = hits[[0, 3, 4, 5]]
    assert free.sum() == 2000
    assert float(((free - 500) ** 2 / 500).sum()) < 16.3  # 0.1 % quantile


def test_random_reinitialization_draws_from_the_initial_range(toy_run) -> None:
    values = torch.cat([torch.ones(50, 10), torch.zeros(50, 10)], 1)
    run = masked_run(toy_run, {"a": values}, epochs=2)
    SET(interval=1, zeta=0.5, reinit="random").after_step(run)
    drawn = run.masks.parameters["a"].detach()
    drawn = drawn[(drawn != 1) & run.masks.weight["a"]]
    assert len(drawn) == 250
    assert drawn.abs().max() <= 1 / math.sqrt(20)
    assert drawn.abs().max() > 0.9 / math.sqrt(20)
    assert (drawn != 0).all()


@pytest.mark.parametrize(("epoch", "step", "task_step", "updates"), [(0, 3, 3, 0), (0, 4, 4, 1), (1, 4, 9, 0)])
def test_when(toy_run, epoch: int, step: int, task_step: int, updates: int) -> None:
    """Every fifth step, but not after a task's last one."""
    clock = {"epoch": epoch, "epochs": 2, "step": step, "steps": 5, "task_step": task_step, "task_steps": 10}
    run = masked_run(toy_run, {"a": torch.tensor([1.0, 2, 3, 4, 0, 0, 0, 0])}, **clock)
    SET(interval=5).after_step(run)
    assert len(run.updates) == updates


def test_at_sparsity_0_there_is_nothing_to_exchange(small_cell, run_steps) -> None:
    sparse = run_steps(small_cell("set-er", sparsity=0.0, params={"set.interval": 2}))
    dense = run_steps(small_cell("er"))
    assert sparse.accuracy == dense.accuracy
    assert sparse.mask_history == []


def test_a_run_keeps_its_counts_and_takes_its_steps(small_cell, run_steps) -> None:
    chosen = small_cell("set-er", params={"set.interval": 3, "protocol.momentum": 0.5})
    stem = []

    def watch(run) -> None:
        stem.append(run.model.conv1.weight.detach().clone())
        for name, weight in run.masks.parameters.items():
            mask, momentum = run.masks.weight[name], run.optimizer.momenta[weight]
            assert mask.sum() == keep_count(weight.numel(), 0.75)
            assert (weight.detach()[~mask] == 0).all()
            assert (momentum[~mask] == 0).all()

    run = run_steps(chosen, after_step=watch)
    assert [(u["epoch"], u["step"]) for u in run.mask_history if u["task"] == 1] == [(0, 2), (1, 0), (1, 3)]
    assert all(not torch.equal(a, b) for a, b in pairwise(stem))
