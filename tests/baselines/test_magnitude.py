"""One-shot magnitude pruning: which weights stay, and when."""

from __future__ import annotations

import pytest
import torch

from sparcl import resolve
from sparcl.errors import UserError


def test_the_largest_weights_of_each_layer_stay(toy_run) -> None:
    from baselines.magnitude import Magnitude

    weights = {"a": torch.tensor([[0.1, -0.9, 0.3, -0.2]]), "b": torch.tensor([9.0, 5.0, -7.0, 6.0])}
    run = toy_run(weights, sparsity=0.5, epochs=2)
    Magnitude().begin_task(run)
    assert run.masks.weight["a"].tolist() == [[False, True, True, False]]
    assert run.masks.weight["b"].tolist() == [True, False, True, False]
    kept = torch.tensor([0.0, -0.9, 0.3, 0.0])
    assert torch.equal(run.masks.parameters["a"].detach().flatten(), kept)
    assert run.updates == []


def test_warmup_prunes_what_the_first_epochs_have_learned(small_cell, run_steps) -> None:
    chosen = small_cell("magnitude-er", epochs=2, params={"magnitude.warmup": 1})
    densities, weights = [], {}

    def watch(run) -> None:
        densities.append(run.masks.density())
        if len(densities) == 5:
            weights.update({n: p.detach().clone() for n, p in run.masks.parameters.items()})

    run = run_steps(chosen, 6, watch)
    assert densities == [1.0] * 5 + [run.masks.density()]
    assert run.masks.density() == pytest.approx(0.25, abs=0.001)
    for name, before in weights.items():
        mask = run.masks.weight[name]
        assert mask.sum() == before.numel() // 4
        assert before.abs()[mask].min() >= before.abs()[~mask].max()
    assert [u["epoch"] for u in run.mask_history] == [1]


def test_warmup_of_all_epochs_prunes_before_the_first_evaluation(small_cell, run_steps) -> None:
    chosen = small_cell("magnitude-er", epochs=1, params={"magnitude.warmup": 1})
    densities = []
    run_steps(chosen, 6, lambda run: densities.append(run.masks.density()))
    assert densities[:5] == [1.0] * 5
    assert densities[5] == pytest.approx(0.25, abs=0.001)


def test_a_warmup_longer_than_the_task_is_refused() -> None:
    with pytest.raises(UserError, match=r"magnitude\.warmup: expected at most the 2 epochs of the first task, got 3"):
        resolve.make("split-digits", "magnitude-er", 0.5, 20, epochs=2, params={"magnitude.warmup": 3})
