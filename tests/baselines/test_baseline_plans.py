"""Every baseline's plan gives the executed ledger exactly, before anything is trained."""

from __future__ import annotations

import pytest
import torch

from sparcl import masks, models, resolve
from sparcl.costs import planning

BASELINES = {
    "static": {}, "magnitude": {}, "gmp": {"gmp.interval": 3}, "snip": {}, "set": {"set.interval": 3},
    "rigl": {"rigl.interval": 3}, "rigl-erk": {"rigl.interval": 3},
}  # fmt: skip
VARIANTS = [
    ("magnitude", {"magnitude.warmup": 1}),
    ("magnitude", {"magnitude.warmup": 2, "magnitude.distribution": "erk"}),
    ("gmp", {"gmp.interval": 3, "gmp.repeat": "every-task"}),
    ("gmp", {"gmp.interval": 2, "gmp.end": 0.5, "gmp.distribution": "erk"}),
    ("snip", {"snip.batches": 3, "snip.distribution": "erk"}),
    ("snip", {"snip.batches": 100}),
    ("rigl", {"rigl.interval": 2, "rigl.horizon": "run"}),
    ("rigl", {"rigl.interval": 2, "rigl.growth": "stream", "protocol.replay_start": "immediately"}),
    ("rigl", {"rigl.interval": 1, "rigl.end": 1.0, "protocol.last_batch": "drop"}),
    ("set", {"set.interval": 1, "protocol.replay_start": "immediately"}),
]


def check(chosen, run_steps) -> None:
    executed, approximate = planning.executed(chosen)
    assert not approximate
    assert executed == run_steps(chosen).ledger.as_record()


@pytest.mark.parametrize("learner", ["finetune", "er", "der", "derpp"])
@pytest.mark.parametrize("name", BASELINES)
def test_plan_is_what_a_run_executes(name: str, learner: str, small_cell, run_steps) -> None:
    check(small_cell(f"{name}-{learner}", sparsity=0.9, params=BASELINES[name]), run_steps)


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_plan_of_the_options(name: str, params: dict, small_cell, run_steps) -> None:
    check(small_cell(f"{name}-derpp", sparsity=0.9, params=params), run_steps)


@pytest.mark.parametrize("name", [*BASELINES, "snip-global"])
def test_at_sparsity_0_a_baseline_is_its_dense_learner(name: str, small_cell, run_steps) -> None:
    """Bit for bit: the same weights, accuracies and FLOPs."""
    sparse = run_steps(small_cell(f"{name}-derpp", sparsity=0.0, params=BASELINES.get(name, {})))
    dense = run_steps(small_cell("derpp"))
    assert sparse.accuracy == dense.accuracy
    assert sparse.ledger.as_record() == dense.ledger.as_record()
    for key, value in dense.model.state_dict().items():
        assert torch.equal(sparse.model.state_dict()[key], value), key


def test_global_snip_is_planned_approximately(small_cell, run_steps) -> None:
    """Data decide the layers' counts: the plan says so, and the total number of weights is still exact."""
    chosen = small_cell("snip-global-er", sparsity=0.9)
    assert planning.executed(chosen)[1]
    run = run_steps(chosen, 1)
    assert sum(run.masks.counts().values()) == round(run.masks.size() * 0.1)
    assert len({round(run.masks.counts()[n] / p.numel(), 2) for n, p in run.masks.parameters.items()}) > 1


def paper(chosen, densities: dict[str, float]) -> float:
    """Training FLOPs by the published convention with these densities: ER replays one batch, forward alone."""
    plan = planning.setting(chosen)
    one = sum(2 * cost.macs * densities.get(cost.name, 1.0) for cost in plan.costs)
    return chosen.epochs * sum(plan.info.train_sizes) * (1 + 1 + 2) * one


def test_the_published_count_has_the_layers_of_erk() -> None:
    chosen = resolve.make("split-digits", "rigl-erk-er", 0.9, 50)
    weights = dict(planning.setting(chosen).model.named_parameters())
    shapes = {n: weights[n].shape for n in models.maskable(planning.setting(chosen).model)}
    densities = {n: count / shapes[n].numel() for n, count in masks.allocate(shapes, 0.9, "erk").items()}
    assert max(densities.values()) > 3 * min(densities.values())
    assert planning.paper(chosen)["training"] == pytest.approx(paper(chosen, densities), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "params", "mean"),
    [
        ("gmp-er", {"gmp.interval": 1}, 1 - 1 / 4 / 5),  # the ramp's mean is 3/4, in one task of five
        ("gmp-er", {"gmp.interval": 1, "gmp.repeat": "every-task"}, 3 / 4),
        ("magnitude-er", {"magnitude.warmup": 5}, 1 - 1 / 2 / 5),  # dense in half of one task
    ],
)
def test_the_published_count_has_the_dense_phases(name: str, params: dict, mean: float) -> None:
    chosen = resolve.make("split-digits", name, 0.9, 50, params=params)
    assert chosen.epochs == 10
    densities = dict.fromkeys(planning.setting(chosen).model.maskable_names, 1 - 0.9 * mean)
    assert planning.paper(chosen)["training"] == pytest.approx(paper(chosen, densities), rel=0.01)
    assert planning.paper(chosen)["gradient_density"] == planning.paper(chosen)["weight_density"]


def test_draws_that_may_fall_short_make_a_plan_approximate(small_cell) -> None:
    """Of 46 images in memory 30 % may be removed: 32 are left on average, and often fewer."""
    params = {"ddr.cutoff": 1, "ddr.interval": 1, "protocol.replay_start": "immediately"}
    plans = {buffer: planning.executed(small_cell("ddr-er", buffer=buffer, batch_size=32, params=params))[1]
             for buffer in (40, 46, 200)}  # fmt: skip
    assert plans == {40: True, 46: True, 200: False}


def test_rigl_pays_2_sparse_and_1_dense_pass_on_an_update(small_cell, run_steps) -> None:
    """Evci et al. 2020, appendix: an update step costs 2 f_S + f_D, any other 3 f_S."""
    rigl = run_steps(small_cell("rigl-finetune", sparsity=0.9, params={"rigl.interval": 4}), 5)
    static = run_steps(small_cell("static-finetune", sparsity=0.9), 5)
    counts = rigl.masks.counts()
    f_sparse = sum(2 * c.macs_per_weight * counts.get(c.name, c.weights) for c in rigl.ledger.costs)
    f_dense = sum(2 * c.macs for c in rigl.ledger.costs)
    last_batch = 57  # 288 images in 5 batches of at most 64: 58, 58, 58, 57, 57
    assert static.ledger.as_record()["training"] == 288 * 3 * f_sparse
    expected = (288 - last_batch) * 3 * f_sparse + last_batch * (2 * f_sparse + f_dense)
    assert rigl.ledger.as_record()["training"] == expected
