"""RigL: the cosine, the selection against a brute-force reading of the paper, when, and what a step does."""

from __future__ import annotations

import math

import float64
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from baselines.rigl import RigL, drop_fraction
from sparcl import trainer
from sparcl.components import Clock
from sparcl.costs import planning
from sparcl.masks import allocate, keep_count


def test_the_cosine_by_hand() -> None:
    """alpha/2 (1 + cos(pi t/T)): 0.3 at 0, 0.15 (1 + sqrt(1/2)) at a quarter, 0.15 at half, 0 at the end."""
    found = [drop_fraction(0.3, x) for x in (0, 0.25, 0.5, 0.75, 1)]
    root = math.sqrt(0.5)
    assert found == pytest.approx([0.3, 0.15 * (1 + root), 0.15, 0.15 * (1 - root), 0])


def brute_force(weights: list[float], mask: list[bool], gradients: list[float], count: int) -> list[bool]:
    """The paper's update, read literally: sort the active by |w|, drop; sort the others by |gradient|, grow."""
    active = sorted((i for i, m in enumerate(mask) if m), key=lambda i: abs(weights[i]))
    kept = set(active[count:])
    free = sorted((i for i in range(len(mask)) if i not in kept), key=lambda i: -abs(gradients[i]))
    new = kept | set(free[:count])
    return [i in new for i in range(len(mask))]


def updated(toy_run, policy: RigL, weights, mask, gradients, **clock):
    run = toy_run({"a": weights}, **clock)
    run.masks.adopt({"a": mask})
    run.masks.parameters["a"].grad = gradients.clone()
    return run, policy.on_gradients(run)


def test_one_update_by_hand(toy_run) -> None:
    """Half way to T_end, alpha = 1: half of the four weights. 0.1 and 0.2 go; places 5 and 1 (just lost) come."""
    weights = torch.tensor([0.1, -0.2, 0.9, -0.8, 0, 0, 0])
    mask = torch.tensor([True, True, True, True, False, False, False])
    gradients = torch.tensor([0.0, -5.0, 9.0, 9.0, 0.1, 6.0, -4.0])
    rigl = RigL(alpha=1.0, interval=3, end=0.75)
    run, proceed = updated(toy_run, rigl, weights, mask, gradients, task_step=3, task_steps=8)
    assert rigl.gradients_wanted(0.5, run.clock) == {"dense_gradient": "dense"}
    assert rigl.gradients_wanted(0.0, run.clock) == {}
    assert rigl.gradients_wanted(0.5, Clock(step=4, steps=8, task_step=4, task_steps=8)) == {}
    assert proceed is False
    assert run.masks.weight["a"].tolist() == [False, True, True, True, False, True, False]
    assert run.masks.parameters["a"].tolist() == pytest.approx([0, 0, 0.9, -0.8, 0, 0, 0])
    assert run.updates == [(2, 2)]


def test_returning_weights_may_keep_their_value(toy_run) -> None:
    weights = torch.tensor([0.1, -0.2, 0.9, -0.8, 0, 0, 0])
    mask = weights != 0
    gradients = torch.tensor([0.0, -5.0, 9.0, 9.0, 0.1, 6.0, -4.0])
    policy = RigL(alpha=1.0, interval=3, returning="keep")
    run, _ = updated(toy_run, policy, weights, mask, gradients, task_step=3, task_steps=8)
    assert run.masks.parameters["a"].tolist() == pytest.approx([0, -0.2, 0.9, -0.8, 0, 0, 0])
    assert run.updates == [(1, 1)]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 60), density=st.floats(0.05, 0.95), done=st.integers(1, 74))
def test_the_selection_is_the_papers(toy_run, seed: int, size: int, density: float, done: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < density
    signs = 1 - 2 * torch.randint(2, (size,), generator=generator)
    weights = (torch.randperm(size, generator=generator) + 1.0) * signs
    gradients = torch.randperm(size, generator=generator) - size / 3 + 0.17
    run, _ = updated(toy_run, RigL(alpha=0.9, interval=1), weights, mask, gradients, task_step=done, task_steps=100)
    active = int(mask.sum())
    share = 0.45 * (1 + math.cos(math.pi * done / 75)) * active
    assume(abs(share - round(share)) > 1e-9)  # there a rounding error decides
    count = int(share)
    expected = mask.tolist()
    if active < size:
        expected = brute_force(weights.tolist(), mask.tolist(), gradients.tolist(), count)
    assert run.masks.weight["a"].tolist() == expected


def test_a_dense_layer_is_left_alone(toy_run) -> None:
    """What ERK leaves dense has nowhere to grow: dropping would only reset its smallest weights."""
    weights = torch.tensor([1.0, -2, 3, 4])
    mask = torch.ones(4, dtype=torch.bool)
    run, proceed = updated(toy_run, RigL(interval=1), weights, mask, weights, task_step=1, task_steps=8)
    assert proceed is False
    assert torch.equal(run.masks.parameters["a"].detach(), weights)


def test_updates_that_data_removal_skips_come_with_the_epochs_last_step() -> None:
    """Two epochs of 10 steps of which 7 are left: steps 0 to 6 and 10 to 16; of 4, 8, 12, 16 (and 20) 8 is left out."""
    clocks = [Clock(0, 1, e, 2, step, 7, 10 * e + step, 20) for e in range(2) for step in range(7)]
    assert [c.task_step for c in clocks if c.is_due(4)] == [4, 6, 12, 16]
    assert [c.task_step for c in clocks if c.is_due(4, done=1)] == [3, 6, 11, 15, 16]
    assert [c.task_step for c in clocks if c.is_due(30)] == []
    whole = [Clock(0, 1, e, 2, step, 10, 10 * e + step, 20) for e in range(2) for step in range(10)]
    assert [c.task_step for c in whole if c.is_due(4)] == [4, 8, 12, 16]
    assert [c.task_step for c in whole if c.is_due(4, done=1)] == [3, 7, 11, 15, 19]


def test_when_per_task_and_over_the_run() -> None:
    """100 steps a task, every 20th, until 75 %: 20, 40, 60 of each task, or up to 75 % of all four tasks."""

    def updates(policy: RigL, task: int) -> dict[int, float]:
        clocks = [Clock(task, 4, 0, 1, step, 100, step, 100) for step in range(100)]
        found = {clock.task_step: policy.fraction_at(clock) for clock in clocks}
        return {step: x for step, x in found.items() if x is not None}

    each = RigL(interval=20)
    for task in range(4):
        assert updates(each, task) == pytest.approx({20: 0.2 / 0.75, 40: 0.4 / 0.75, 60: 0.6 / 0.75})
    whole = RigL(interval=20, horizon="run")
    assert updates(whole, 0) == pytest.approx({20: 0.05 / 0.75, 40: 0.1 / 0.75, 60: 0.15 / 0.75, 80: 0.2 / 0.75})
    assert updates(whole, 2) == pytest.approx({s: (2 + s / 100) / 3 for s in (20, 40, 60, 80)})
    assert updates(whole, 3) == {}
    assert updates(RigL(interval=20, end=0.0), 0) == {}
    assert updates(RigL(interval=25), 0) == pytest.approx({25: 1 / 3, 50: 2 / 3})  # 75 is T_end itself


@pytest.mark.parametrize("learner", ["er", "derpp", "finetune"])
@pytest.mark.parametrize("growth", ["loss", "stream"])
def test_a_run_updates_as_the_paper_says(learner: str, growth: str, small_cell, run_steps, monkeypatch) -> None:
    """Masks after every update against a brute-force reading with float64 gradients; the update replaces the step."""
    params = {"rigl.interval": 3, "rigl.growth": growth, "protocol.momentum": 0.5}
    chosen = small_cell(f"rigl-{learner}", width=3, params=params)
    before: dict[str, torch.Tensor] = {}
    independent: dict[str, torch.Tensor] = {}
    checked = 0
    original = trainer.Run.backward

    def watched(run, batch, replays, positions="dense", by_term=False):
        before.update({n: p.detach().clone() for n, p in run.model.named_parameters()})
        before.update({f"mask {n}": m.clone() for n, m in run.masks.weight.items()})
        terms = float64.gradients(run, batch, replays)
        wanted = terms if growth == "loss" else {"stream": terms["stream"]}
        independent.update({n: sum(term[n] for term in wanted.values()) for n in run.masks.names})
        return original(run, batch, replays, positions, by_term)

    def after(run) -> None:
        nonlocal checked
        done = run.clock.task_step - 1
        if done % 3 or done == 0 or done >= 7.5:
            return
        checked += 1
        share = 0.15 * (1 + math.cos(math.pi * done / 7.5))
        for name, parameter in run.model.named_parameters():
            if name not in run.masks.parameters:
                assert torch.equal(parameter.detach(), before[name]), name
                continue
            old, new = before[f"mask {name}"], run.masks.weight[name]
            count = int(share * int(old.sum()))
            expected = brute_force(before[name].flatten().tolist(), old.flatten().tolist(),
                                   independent[name].flatten().tolist(), count)  # fmt: skip
            assert new.flatten().tolist() == expected, name
            weight, momentum = parameter.detach(), run.optimizer.momenta[parameter]
            dropped = torch.tensor(brute_force(before[name].flatten().tolist(), old.flatten().tolist(),
                                               [0.0] * old.numel(), count))  # fmt: skip
            assert dropped.sum() == old.sum()
            kept = new & old & (weight != 0)
            assert torch.equal(weight[kept], before[name][kept])
            assert int(kept.sum()) == int(old.sum()) - count
            assert (weight[~kept] == 0).all()
            assert (momentum[~kept] == 0).all()

    monkeypatch.setattr(trainer.Run, "backward", watched)
    run_steps(chosen, 20, after, prepare=float64.compute_in)
    assert checked == 4


def test_at_sparsity_0_it_is_dense_training(small_cell, run_steps) -> None:
    chosen = small_cell("rigl-er", sparsity=0.0, params={"rigl.interval": 3})
    sparse, dense = run_steps(chosen), run_steps(small_cell("er"))
    assert sparse.accuracy == dense.accuracy
    assert sparse.ledger.as_record() == dense.ledger.as_record() == planning.executed(chosen)[0]


def test_erk_counts(small_cell, run_steps) -> None:
    run = run_steps(small_cell("rigl-erk-er", sparsity=0.9, params={"rigl.interval": 2}), 12)
    assert run.masks.counts() == allocate(run.masks.shapes, 0.9, "erk")
    assert sum(run.masks.counts().values()) == keep_count(run.masks.size(), 0.9)
    densities = [run.masks.counts()[n] / p.numel() for n, p in run.masks.parameters.items()]
    assert densities[0] > densities[-1]
