"""DGM: importance by hand and against float64 autograd, counts, refresh times, weights that stay as they are."""

from __future__ import annotations

import float64
import pytest
import torch

from sparcl import resolve, trainer
from sparcl.components import Clock
from sparcl.errors import UserError
from sparcl.masks import MaskSet, keep_count
from sparcl.policies.dgm import DGM, importance


def test_continual_gradient_importance_by_hand() -> None:
    """0.5 |g_current| + 2 |g_memory|."""
    current, memory = torch.tensor([1.0, -4, 0]), torch.tensor([-1.0, 0, 0.5])
    assert importance(current, memory, 0.5, 2.0).tolist() == [2.5, 2, 1]
    assert importance(current, None, 0.5, 2.0).tolist() == [0.5, 2, 0]
    assert importance(None, memory, 0.5, 2.0).tolist() == [2, 0, 1]


@pytest.mark.parametrize(("sparsity", "gradient"), [(0.75, 0.80), (0.90, 0.92), (0.95, 0.96), (0.0, 0.2)])
def test_default_gradient_sparsity_is_the_papers(sparsity: float, gradient: float) -> None:
    method = "sparcl-er" if sparsity else "dgm-er"
    assert resolve.make("split-digits", method, sparsity, 50).params["dgm.sparsity"] == gradient


def test_a_gradient_sparsity_below_the_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"dgm\.sparsity: expected at least the cell's sparsity 0\.9"):
        resolve.make("split-digits", "sparcl-er", 0.9, 50, params={"dgm.sparsity": 0.8})


def test_momentum_is_refused() -> None:
    with pytest.raises(UserError, match=r"protocol\.momentum: dgm needs 0"):
        resolve.make("split-digits", "sparcl-er", 0.9, 50, params={"protocol.momentum": 0.9})


@pytest.mark.parametrize(("method", "key"), [("sparcl-er", "tdm"), ("static-dgm-er", "static")])
def test_layers_of_different_density_are_refused(method: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}\.distribution: dgm needs uniform"):
        resolve.make("split-digits", method, 0.9, 50, params={f"{key}.distribution": "erk"})


def test_one_refresh_by_hand(toy_run) -> None:
    """Eight weights, six exist, g = 0.75 of eight: two learn. CGI = 0.5 |g| + |g'|: 0.5, 3, 0.5, 1, 2, 0 -> 1 and 4."""
    run = toy_run({"a": torch.ones(8)}, sparsity=0.25)
    run.masks.adopt({"a": torch.tensor([True] * 6 + [False] * 2)})
    run.term_gradients = {
        "stream": {"a": torch.tensor([1.0, 0, -1, 2, 0, 0, 90, 90])},
        "memory": {"a": torch.tensor([0.0, -3, 0, 0, 2, 0, 90, 90])},
    }
    dgm = DGM(sparsity=0.75)
    assert dgm.gradients_wanted(0.25, run.clock) == {"gradient_refresh": "weights"}
    dgm.on_gradients(run)
    assert run.masks.gradient["a"].nonzero().flatten().tolist() == [1, 4]
    assert run.masks.gradient_counts() == {"a": 2}


def test_merged_importance_lets_terms_cancel(toy_run) -> None:
    run = toy_run({"a": torch.ones(2)}, sparsity=0.0)
    run.term_gradients = {"stream": {"a": torch.tensor([4.0, 1])}, "memory": {"a": torch.tensor([-4.0, 0])}}
    DGM(sparsity=0.5, importance="merged").on_gradients(run)
    assert run.masks.gradient["a"].tolist() == [False, True]


def test_refresh_times(toy_run) -> None:
    """Every 30 steps, beginning with the first of every epoch."""
    refreshing = [step for step in range(100) if DGM().gradients_wanted(0.9, Clock(step=step, steps=100))]
    assert refreshing == [0, 30, 60, 90]
    run = toy_run({"a": torch.ones(2)}, step=7)
    DGM(sparsity=0.5).on_gradients(run)
    assert run.masks.gradient is None


def test_planned_counts_are_of_the_whole_layer() -> None:
    container = MaskSet({"a": torch.nn.Parameter(torch.zeros(1000)), "b": torch.nn.Parameter(torch.zeros(10))})
    planned = DGM(sparsity=0.8).planned_counts(container, {"a": 250, "b": 1}, Clock())
    assert planned == {"a": 200, "b": 1}


@pytest.mark.parametrize("name", ["dgm-er", "static-dgm-derpp", "sparcl-derpp"])
def test_a_run_lets_the_most_important_learn_and_nothing_else_move(name, small_cell, run_steps, monkeypatch) -> None:
    """Masks against float64 gradients of written-out terms; unmasked weights are bit-identical after the step."""
    chosen = small_cell(name, epochs=3, params={"dgm.refresh": 2, "protocol.weight_decay": 0.01})
    share = chosen.params["dgm.sparsity"]
    before: dict[str, torch.Tensor] = {}
    terms: dict[str, dict[str, torch.Tensor]] = {}
    original = trainer.Run.backward
    refreshed = moved = 0

    def watched(run, batch, replays, positions="dense", by_term=False):
        before.update({n: p.detach().clone() for n, p in run.masks.parameters.items()})
        terms.clear()
        terms.update(float64.gradients(run, batch, replays) if by_term else {})
        return original(run, batch, replays, positions, by_term)

    def after(run) -> None:
        nonlocal refreshed, moved
        step = run.clock.step - 1
        refreshed += bool(terms)
        for name, weight in run.masks.parameters.items():
            exists, learns = run.masks.weight[name], run.masks.gradient[name]
            assert int(learns.sum()) == min(keep_count(exists.numel(), share), int(exists.sum()))
            assert torch.equal(weight.detach()[~learns], before[name][~learns])
            moved += int((weight.detach()[learns] != before[name][learns]).sum())
            if step % 2 == 0:
                score = 0.5 * terms["stream"][name].abs()
                if "memory" in terms:
                    score = score + terms["memory"][name].abs()
                score = score.masked_fill(~exists, -1).flatten()
                expected = set(score.argsort(descending=True)[: int(learns.sum())].tolist())
                assert set(learns.flatten().nonzero().flatten().tolist()) == expected

    monkeypatch.setattr(trainer.Run, "backward", watched)
    run_steps(chosen, 30, after, prepare=float64.compute_in)
    assert refreshed >= 15
    assert moved > 0
