"""PackNet and LPS: exact counts, weights and logits that never change, ADMM by hand, FLOPs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from short_runs import assert_same_run, assert_same_snapshot, complete, killed_and_resumed, logits, make, snapshot

from baselines import isolation
from baselines.lps import LPS, project_share, project_weights
from baselines.packnet import PackNet
from sparcl import methods
from sparcl.components import Clock
from sparcl.costs import planning
from sparcl.errors import UserError
from sparcl.masks import MaskSet
from sparcl.trainer import Run, evaluate, train

METHODS = ("packnet", "lps")


# -- the partition -----------------------------------------------------------------------------------------------------
def test_partition_by_hand():
    """1000 weights, half of the free ones kept each time; 62.5 rounds to even."""
    assert [isolation.partition(1000, 0.5, task) for task in range(5)] == [
        (0, 500, 500), (500, 250, 250), (750, 125, 125), (875, 62, 63), (937, 32, 31),
    ]  # fmt: skip
    assert [isolation.partition(144, 0.75, task) for task in range(5)] == [
        (0, 36, 108), (36, 27, 81), (63, 20, 61), (83, 15, 46), (98, 12, 34),
    ]  # fmt: skip


def test_partition_when_weights_run_out():
    assert [isolation.partition(3, 0.5, task) for task in range(3)] == [(0, 2, 1), (2, 0, 1), (2, 0, 1)]
    assert isolation.partition(10, 0.01, 1) == (10, 0, 0)


@given(st.integers(1, 10**7), st.floats(0.01, 0.99), st.integers(0, 20))
def test_partition_never_loses_a_weight(size, sparsity, task):
    frozen, kept, free = isolation.partition(size, sparsity, task)
    assert frozen + kept + free == size
    assert min(frozen, kept, free) >= 0
    assert isolation.partition(size, sparsity, task + 1)[0] == frozen + kept


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_exact_counts_per_task_and_layer(method, sparsity, digits):
    """After every task each layer's owners have the partition's counts."""
    seen = []

    def check(run):
        task = run.phase.index
        for owner in run.sparsity.owner.values():
            frozen, kept, free = isolation.partition(owner.numel(), sparsity, task)
            assert int(((owner >= 0) & (owner < task)).sum()) == frozen
            assert int((owner == task).sum()) == kept
            assert int((owner == isolation.FREE).sum()) == free
        assert {n: int(m.sum()) for n, m in run.masks.weight.items()} == {
            n: int((o >= 0).sum()) for n, o in run.sparsity.owner.items()
        }
        seen.append(task)

    complete(method, digits, sparsity, after_task=check)
    assert seen == [0, 1, 2, 3, 4]


# -- nothing changes any more ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["frozen", "per-task"])
@pytest.mark.parametrize("fields", [{}, {"model": "mlp", "width": 24}, {"model": "cnn", "width": 4}])
def test_a_task_keeps_its_weights_and_logits(method, norm, fields, digits, images):
    """The logits of task k are equal, bit for bit, after every later task; momentum and decay change nothing."""
    weights, outputs = {}, {}

    def check(run):
        task = run.phase.index
        for name, parameter in run.masks.parameters.items():
            owner = run.sparsity.owner[name]
            for earlier in range(task):
                assert torch.equal(parameter[owner == earlier], weights[name, earlier])
            weights[name, task] = parameter[owner == task].detach().clone()
        for earlier in range(task):
            assert torch.equal(logits(run, images, earlier), outputs[earlier])
        outputs[task] = logits(run, images, task)

    params = {f"{method}.batch_norm": norm, "protocol.momentum": 0.9, "protocol.weight_decay": 1e-3,
              "protocol.single_head": False}  # fmt: skip
    run = complete(method, digits, 0.5, after_task=check, params=params, **fields)
    for task in range(5):
        column = [run.accuracy["task_il"][row][task] for row in range(task, 5)]
        assert len(set(column)) == 1
    assert all(value is None for row in run.accuracy["class_il"] for value in row)
    assert run.untrained["class_il"] == [None] * 5


@pytest.mark.parametrize("method", METHODS)
def test_views_zero_what_they_mask_and_give_everything_back(method, digits):
    run = complete(method, digits, 0.75)
    before = snapshot(run)
    for task in range(5):
        shown = run.sparsity.shown(task)
        with run.sparsity.view(run, task):
            for name, parameter in run.masks.parameters.items():
                assert int(parameter[~shown[name]].count_nonzero()) == 0
                assert torch.equal(parameter[shown[name]], before[f"/model/{name}"][shown[name]])
                owned = run.sparsity.owner[name]
                assert not (shown[name] & (owned > task)).any()
    evaluate(run, seen=10)
    assert_same_snapshot(before, snapshot(run))


@pytest.mark.parametrize("method", METHODS)
def test_resumed_run_is_the_same_run(method, digits, tmp_path):
    params = {f"{method}.batch_norm": "per-task", "protocol.momentum": 0.5}
    fields = {"epochs": 4, "params": params}
    whole = complete(method, digits, 0.5, **fields)
    steps = sum(-(-len(task.train_index) // 32) for task in digits.tasks[:1]) * 4
    for step in (steps - 3, steps + 5, 3 * steps - 2):
        again = killed_and_resumed(method, digits, tmp_path, step, 0.5, **fields)
        assert_same_run(whole, again)
        assert all(torch.equal(o, again.sparsity.owner[n]) for n, o in whole.sparsity.owner.items())


# -- PackNet's choice --------------------------------------------------------------------------------------------------
def tiny_run(policy, weights, sparsity, task=0, learning_rate=0.5, **clock):
    """A run of one layer "w" that the policy sees, without stream or model."""
    parameter = torch.nn.Parameter(torch.tensor(weights))
    parameter.grad = torch.zeros_like(parameter)
    generator = torch.Generator().manual_seed(0)
    run = SimpleNamespace(
        masks=MaskSet({"w": parameter}),
        phase=SimpleNamespace(index=task, classes=range(2)),
        cell=SimpleNamespace(sparsity=sparsity, learning_rate=learning_rate),
        clock=Clock(**{"epochs": 3, **clock}),
        generator=lambda purpose: generator,
        note_update=lambda pruned, grown: None,
    )
    policy.owner = {"w": torch.full(parameter.shape, isolation.FREE, dtype=torch.int16)}
    return run, parameter


def test_packnet_keeps_the_largest_of_the_free_weights():
    policy = PackNet()
    run, weight = tiny_run(policy, [[5.0, -0.1, 0.4, -3.0], [0.2, -0.6, 0.3, 1.0]], 0.5, task=1)
    policy.owner["w"][0] = torch.tensor([0, -1, 0, -1], dtype=torch.int16)
    policy.owner["w"][1] = torch.tensor([0, -1, -1, 0], dtype=torch.int16)
    # 8 weights at 0.5: task 0 keeps 4 (here by hand), task 1 keeps 2 of the free -0.1, -3.0, -0.6, 0.3.
    policy.prune(run)
    assert weight.tolist() == torch.tensor([[5.0, 0.0, 0.4, -3.0], [0.2, -0.6, 0.0, 1.0]]).tolist()
    assert run.masks.gradient["w"].tolist() == [[False, False, False, True], [False, True, False, False]]


@pytest.mark.parametrize(("steps", "retrain", "step"), [(3000, 1 / 3, 2000), (10, 1 / 3, 7), (1, 1 / 3, 1), (4, 1.0, 1),
                                                       (4, 0.0, 4)])  # fmt: skip
def test_prune_step(steps, retrain, step):
    """Two parts of training and one of retraining, as in the paper; at least one step comes before pruning."""
    clock = Clock(task_steps=steps)
    policy = PackNet(retrain=retrain)
    assert policy.prune_step(clock) == step
    assert [policy.is_pruned(Clock(task_step=s, task_steps=steps)) for s in (step - 1, step)] == [False, True]


def test_only_own_rows_of_the_head_learn():
    head = torch.nn.Linear(3, 6)
    head(torch.ones(1, 3)).sum().backward()
    isolation.own_rows(head, range(2, 4))
    assert head.weight.grad.sum(1).tolist() == [0, 0, 3, 3, 0, 0]
    assert head.bias.grad.tolist() == [0, 0, 1, 1, 0, 0]


# -- LPS's updates -----------------------------------------------------------------------------------------------------
def test_projections_by_hand():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.3, -2.0, 0.9, -1.0, 5.0])
    among = torch.tensor([True, True, True, True, False])
    assert project_weights(values, 2, among, generator).tolist() == [0, -2, 0, -1, 0]
    assert project_share(values, 2, among, generator).tolist() == torch.tensor([1.0, 0, 1, 0, 0]).tolist()


def test_admm_step_and_duals_by_hand():
    """Two free and two frozen weights, rho 0.1, learning rate 0.5; all numbers written out."""
    policy = LPS(rho=0.1, share=0.5)
    run, weight = tiny_run(policy, [2.0, -4.0, 1.0, 0.5], 0.5, task=1)
    policy.owner["w"] = torch.tensor([0, 0, -1, -1], dtype=torch.int16)
    policy.frozen = {"w": torch.tensor([2.0, -4.0, 0.0, 0.0])}
    policy.auxiliary = {"M": {"w": torch.ones(4)}}
    policy._start_round(run)
    assert policy.auxiliary["U"]["w"].tolist() == [0, 0, 0, 0]
    assert policy.auxiliary["Z"]["w"].tolist() == [0, 0, 1, 0]  # keeps round(0.5 * 2) = 1 of the free two
    y = policy.auxiliary["Y"]["w"]
    assert sorted(y.tolist()) == [0, 0, 0, 1]  # a tie: one of the two frozen weights
    assert y[2:].tolist() == [0, 0]
    policy.auxiliary["Y"]["w"] = torch.tensor([1.0, 0, 0, 0])

    weight.grad = torch.tensor([0.1, 0.1, 0.3, -0.2])
    policy._augment(run)
    # M: dL/dM = frozen * g = (0.2, -0.4); + 0.1 (M - Y) = (0, 0.1); step 0.5: (1 - 0.1, 1 + 0.15)
    m = policy.auxiliary["M"]["w"]
    assert m[:2].tolist() == pytest.approx([0.9, 1.15])
    assert m[2:].tolist() == [1, 1]
    assert weight[:2].tolist() == pytest.approx([1.8, -4.6])
    # W: g + 0.1 (W - Z + U) at the free ones, no gradient at the frozen ones
    assert weight.grad.tolist() == pytest.approx([0, 0, 0.3 + 0.0, -0.2 + 0.05])

    policy._update_duals(run)
    # Z = P(W + U) = (., ., 1, 0), U = W - Z = (0, 0.5); Y: M largest at the second, K = M - Y
    assert policy.auxiliary["Z"]["w"].tolist() == [0, 0, 1, 0]
    assert policy.auxiliary["U"]["w"][2:].tolist() == [0, 0.5]
    assert policy.auxiliary["Y"]["w"].tolist() == [0, 1, 0, 0]
    assert policy.auxiliary["K"]["w"][:2].tolist() == pytest.approx([0.9, 0.15])


def test_m_gradient_is_the_gradient_of_the_sharing_mask():
    """dL/dM from the weight's gradient against autograd through W + M * W'."""
    torch.manual_seed(0)
    frozen, mask, x = torch.randn(3, 4), torch.ones(3, 4, requires_grad=True), torch.randn(5, 4)
    effective = mask * frozen
    effective.retain_grad()
    (x @ effective.T).pow(2).sum().backward()
    assert torch.allclose(mask.grad, effective.grad * frozen)


def test_rounds_and_shares():
    policy = LPS(rho=0.01, rounds=3, updates=2)
    assert [policy.part_at(step, 9) for step in range(9)] == [0, 0, 1, 2, 2, 3, 4, 4, 5]
    assert [policy.rho_at(step, 9) for step in (0, 2, 3, 5, 6, 8)] == pytest.approx([0.01, 0.01, 0.1, 0.1, 1.0, 1.0])
    assert [LPS(share=0.9).share_count(n) for n in (0, 10, 1000)] == [0, 9, 900]
    assert LPS(sharing="all").share_count(7) == 7
    assert LPS(sharing="none").share_count(7) == 0


def test_plain_training_rounds_and_retraining_are_fifths_of_a_task() -> None:
    """1000 epochs of the authors' code: 200 plain, three rounds of 200 with rho 0.01, 0.1 and 1, 200 of retraining."""
    policy, clock = LPS(), Clock(task_steps=1000)
    admm = policy.admm(clock)
    assert (admm.start, admm.stop, policy.prune_step(clock)) == (200, 800, 800)
    rho = [policy.rho_at(step - 200, len(admm)) for step in (200, 399, 400, 599, 600, 799)]
    assert rho == pytest.approx([0.01, 0.01, 0.1, 0.1, 1, 1])
    assert list(LPS(warm=0.0, retrain=0.5).admm(Clock(task_steps=4))) == [0, 1]
    assert list(LPS(warm=0.9, retrain=0.5).admm(Clock(task_steps=4))) == []


def test_a_task_draws_its_free_weights_and_trains_them_plainly_first(digits):
    """20 steps of a task: 4 plain ones (w <- w - lr g at the free weights, M = 1), 12 of ADMM, 4 of retraining."""
    frozen: dict[str, torch.Tensor] = {}
    last: dict[str, torch.Tensor] = {}
    checked = []

    def watch(run):
        step, policy = run.clock.task_step - 1, run.sparsity
        if run.phase.index == 0:
            return
        for name, weight in run.masks.parameters.items():
            free, now = policy.free()[name], weight.detach()
            if step == 0:  # the weights of earlier tasks are as they were, the others new: not 0, within the bound
                frozen[name] = now[~free].clone()
                start = now[free] + 0.03 * weight.grad[free]
                bound = 1 / weight[0].numel() ** 0.5
                assert float(start.abs().max()) <= bound * 1.001
                assert 0.2 < float((start.abs() > bound / 2).float().mean()) < 0.8
            elif step < 4:
                assert torch.allclose(now[free], last[name][free] - 0.03 * weight.grad[free], rtol=0, atol=1e-7)
            if step < 4:
                assert torch.equal(now[~free], frozen[name])
                assert not weight.grad[~free].any()
            last[name] = now.clone()
        assert ("M" in policy.auxiliary) == (3 <= step < 15)
        checked.append(step)

    chosen = make("lps", 0.5, epochs=4, batch_size=64, params={"lps.warm": 0.2, "lps.retrain": 0.2})
    train(Run(chosen, digits), after_step=watch)
    assert checked == 4 * list(range(20))


def test_lps_shares_the_planned_number_and_frees_the_rest(digits):
    run = complete("lps", digits, 0.5, params={"lps.share": 0.5})
    for task in range(5):
        for name, shown in run.sparsity.shown(task).items():
            earlier, kept, _ = isolation.partition(shown.numel(), 0.5, task)
            assert int(shown.sum()) == kept + round(earlier / 2)
            assert int(run.sparsity.shared[str(task)][name].sum()) == round(earlier / 2)


# -- FLOPs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("packnet", {}),
        ("packnet", {"packnet.retrain": 0.0, "packnet.batch_norm": "per-task"}),
        ("lps", {}),
        ("lps", {"lps.sharing": "all"}),
        ("lps", {"lps.sharing": "none"}),
        ("lps", {"lps.updates": 5, "lps.rounds": 2, "lps.share": 0.3}),
    ],
)
def test_planned_is_executed(method, params, digits):
    run = complete(method, digits, 0.75, epochs=4, params=params)
    executed, approximate = planning.executed(run.cell)
    assert executed == run.ledger.as_record()
    assert not approximate


@pytest.mark.parametrize("method", ["packnet", "lps"])
def test_after_a_task_its_own_weights_are_those_that_learn(method, digits):
    """What a record says of gradients is of the last task, in both methods alike."""
    run = complete(method, digits, 0.5, epochs=4)
    assert run.masks.gradient_counts() == {
        name: isolation.partition(weight.numel(), 0.5, 4)[1] for name, weight in run.masks.parameters.items()
    }


def test_executed_flops_of_packnet_in_closed_form(digits):
    """Forward and input gradient at what exists, weight gradient at what learns; dense layers freeze after task 0."""
    run = complete("packnet", digits, 0.5, epochs=3, params={"packnet.retrain": 1 / 3})
    steps = [-(-len(t.train_index) // 32) for t in digits.tasks]  # 9 or 10 an epoch: pruned between two epochs
    assert [run.sparsity.prune_step(Clock(task_steps=3 * s)) for s in steps] == [2 * s for s in steps]
    macs = {"forward": 0, "input_gradient": 0, "weight_gradient": 0}
    for task, size in enumerate(len(t.train_index) for t in digits.tasks):
        for cost in run.ledger.costs:
            rate = cost.macs // cost.weights
            for epoch in range(3):
                exist, learn = cost.weights, cost.weights
                if cost.maskable:
                    frozen, kept, free = isolation.partition(cost.weights, 0.5, task)
                    exist, learn = (cost.weights, kept + free) if epoch < 2 else (frozen + kept, kept)
                elif task and cost.name != "head.weight":
                    learn = 0
                macs["forward"] += size * exist * rate
                macs["input_gradient"] += 0 if task and cost.name == "conv1.weight" else size * exist * rate
                macs["weight_gradient"] += size * learn * rate
    assert run.ledger.as_record()["lines"]["stream"] == {kind: 2 * value for kind, value in macs.items()}


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_task_il_only_methods_of_their_own(method):
    found = methods.get(method)
    assert (found.family, found.learner, found.task_il_only) == ("isolation", "finetune", True)
    assert f"{method}-er" not in methods.names()
    with pytest.raises(UserError, match="method of its own"):
        methods.get(f"{method}-er")
    with pytest.raises(UserError, match=r"sparsity: .* needs more than 0"):
        make(method, 0.0)
    with pytest.raises(UserError, match="retrain"):
        make(method, 0.5, params={f"{method}.retrain": 2})


def test_frozen_layers_have_no_gradient(digits):
    """After task 0 stem, shortcuts and batch normalization stay as they are."""
    dense = {}

    def check(run):
        now = {n: t.clone() for n, t in run.model.state_dict().items()
               if n not in run.masks.parameters and not n.startswith("head.")}  # fmt: skip
        if dense:
            assert all(torch.equal(tensor, dense[name]) for name, tensor in now.items())
        dense.update(now)

    run = complete("packnet", digits, 0.5, after_task=check)
    assert isinstance(run, Run)
    assert run.model.conv1.weight.grad is None
