"""Every baseline's plan gives the executed ledger exactly, before anything is trained."""

from __future__ import annotations

import pytest
import torch

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
