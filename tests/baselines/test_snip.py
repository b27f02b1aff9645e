"""SNIP: selection against a brute-force reading of the paper, and what the scoring pass leaves behind."""

from __future__ import annotations

import copy

import float64
import pytest
import torch

from baselines.snip import SNIP, saliency_gradients
from sparcl import resolve, seeding, trainer
from sparcl.errors import UserError
from sparcl.masks import keep_count


def test_selection_by_hand() -> None:
    """Per layer: half of each. Globally: the four largest of all eight, so layer b keeps one."""
    scores = {"a": torch.tensor([4.0, 3.0, 8.0, 7.0]), "b": torch.tensor([1.0, 6.0, 2.0, 0.5])}
    generator = torch.Generator().manual_seed(0)
    layer = SNIP().select(scores, 0.5, generator)
    assert {n: m.tolist() for n, m in layer.items()} == {
        "a": [False, False, True, True], "b": [False, True, True, False],
    }  # fmt: skip
    everywhere = SNIP(scope="global").select(scores, 0.5, generator)
    assert {n: m.tolist() for n, m in everywhere.items()} == {
        "a": [True, False, True, True], "b": [False, True, False, False],
    }  # fmt: skip


def connection_sensitivity(run: trainer.Run, batches: int) -> dict[str, torch.Tensor]:
    """The paper's |dL/dc| at c = 1 for w -> c w, in float64, by autograd on explicit gates c."""
    order = torch.randperm(run.pool_size, generator=seeding.generator(run.cell.seed, "saliency"))
    size = run.cell.batch_size
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in run.masks.parameters.items()}
    for index in range(batches):
        rows = order[index * size : (index + 1) * size]
        images, labels = run.network_input(run.pool_images[rows]).double(), run.pool_labels[rows]
        model = copy.deepcopy(run.model).double()
        shapes = run.masks.shapes.items()
        gates = {n: torch.ones(shape, dtype=torch.float64, requires_grad=True) for n, shape in shapes}
        weights = dict(model.named_parameters())
        gated = {n: gates[n] * weights[n] for n in gates}
        logits = torch.func.functional_call(model, gated, (images,))
        loss = float64.cross_entropy(logits[:, :2], labels)
        for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            total[name] += gradient
    return {name: value.abs() for name, value in total.items()}


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("learner", ["er", "derpp"])
def test_a_run_keeps_the_most_sensitive_connections(learner, scope, batches, small_cell, digits) -> None:
    chosen = small_cell(f"snip-{learner}", params={"snip.scope": scope, "snip.batches": batches})
    run = trainer.Run(chosen, digits)
    float64.compute_in(run)
    initial = {n: p.detach().clone() for n, p in run.masks.parameters.items()}
    trainer.begin_task(run, run.phases[0])
    kept = {n: p.detach().clone() for n, p in run.masks.parameters.items()}
    for name, parameter in run.masks.parameters.items():
        parameter.data.copy_(initial[name])
    score = connection_sensitivity(run, batches)
    groups = [list(score)] if scope == "global" else [[name] for name in score]
    for group in groups:
        everything = torch.cat([score[name].flatten() for name in group])
        mask = torch.cat([run.masks.weight[name].flatten() for name in group])
        k = keep_count(len(everything), 0.75)
        assert mask.sum() == k
        expected = set(everything.argsort(descending=True)[:k].tolist())
        assert set(mask.nonzero().flatten().tolist()) == expected
    for name, mask in run.masks.weight.items():
        assert torch.equal(kept[name], initial[name] * mask)


def test_the_scoring_pass_leaves_no_trace_but_its_cost(small_cell, digits) -> None:
    run = trainer.Run(small_cell("snip-er"), digits)
    run.phase = run.phases[0]
    run.enter_phase()
    run.clock = run.clock_at(0)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    generators = {name: run.generator(name).get_state() for name in ("memory", "replay", "replay-augment", "prune")}
    everywhere = torch.get_rng_state()
    found = saliency_gradients(run, 64)
    assert all(gradient.abs().sum() > 0 for gradient in found.values())
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(torch.equal(run.generator(name).get_state(), state) for name, state in generators.items())
    assert torch.equal(torch.get_rng_state(), everywhere)
    assert all(parameter.grad is None for parameter in run.model.parameters())
    macs = sum(cost.macs for cost in run.ledger.costs)
    assert run.ledger.as_record()["lines"]["saliency"] == {
        "forward": 2 * 64 * macs, "input_gradient": 2 * 64 * macs, "weight_gradient": 2 * 64 * macs,
    }  # fmt: skip


def test_several_batches_average_over_samples(small_cell, digits) -> None:
    """288 samples in batches of 64: the last batch of 32 counts half of the others."""
    run = trainer.Run(small_cell("snip-er", params={"snip.batches": 9}), digits)
    assert run.sparsity.scored(288, 64) == 288
    run.phase = run.phases[0]
    run.enter_phase()
    order = torch.randperm(288, generator=seeding.generator(0, "saliency"))
    expected = {name: torch.zeros_like(p) for name, p in run.masks.parameters.items()}
    for rows in order.split(64):
        run.optimizer.zero_grad()
        logits = run.model(run.network_input(run.pool_images[rows]))[:, :2]
        torch.nn.functional.cross_entropy(logits, run.pool_labels[rows]).backward()
        for name, parameter in run.masks.parameters.items():
            expected[name] += parameter.grad * len(rows) / 288
    for name, gradient in saliency_gradients(run, 288).items():
        assert torch.allclose(gradient, expected[name], atol=1e-7)


def test_the_mask_is_there_before_the_first_step_and_stays(small_cell, run_steps) -> None:
    masks = []

    def watch(run) -> None:
        masks.append({name: mask.clone() for name, mask in run.masks.weight.items()})

    run_steps(small_cell("snip-derpp"), after_step=watch)
    for mask in masks[1:]:
        assert all(torch.equal(mask[name], masks[0][name]) for name in mask)
    assert all(mask.sum() == mask.numel() // 4 for mask in masks[0].values())


def test_layers_of_a_global_ranking_have_no_distribution() -> None:
    with pytest.raises(UserError, match=r"^snip\.distribution: has no effect with scope global"):
        resolve.make("split-digits", "snip-global-er", 0.9, 50, params={"snip.distribution": "erk"})


def test_at_sparsity_0_nothing_is_scored(small_cell, run_steps) -> None:
    run = run_steps(small_cell("snip-er", sparsity=0.0), 5)
    assert "saliency" not in run.ledger.as_record()["lines"]
    assert run.masks.density() == 1
