"""LwF: the distillation by hand, whose outputs are the targets, and a whole step in float64."""

from __future__ import annotations

import copy
import math

import float64
import pytest
import torch

from sparcl import trainer
from sparcl.learners.lwf import distillation


def test_distillation_by_hand() -> None:
    """T = 2, old logits (0, 2 log 3): target (1/4, 3/4). New logits (2 log 4, 0): output (4/5, 1/5)."""
    old = torch.tensor([[0.0, 2 * math.log(3)]], dtype=torch.float64)
    new = torch.tensor([[2 * math.log(4), 0.0]], dtype=torch.float64)
    expected = -(0.25 * math.log(0.8) + 0.75 * math.log(0.2))
    assert distillation(new, old, 2.0).item() == pytest.approx(expected, rel=1e-12)


def test_the_temperature_is_the_power_of_the_probabilities() -> None:
    """p^(1/T), normalized: the form in which the source states it."""
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    softened = [p**0.5 / (p**0.5).sum(1, keepdim=True) for p in (old.softmax(1), new.softmax(1))]
    expected = -(softened[0] * softened[1].log()).sum(1).mean()
    assert distillation(new, old, 2.0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_its_gradient_vanishes_where_nothing_is_forgotten() -> None:
    """d/dz = (softmax(z / T) - softmax(z' / T)) / T / N, by hand and 0 at z = z'."""
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    same = old.clone().requires_grad_()
    distillation(same, old, 2.0).backward()
    assert same.grad.abs().max() < 1e-16
    other = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    distillation(other, old, 2.0).backward()
    expected = ((other / 2).softmax(1) - (old / 2).softmax(1)) / 2 / 3
    assert torch.allclose(other.grad, expected, rtol=0, atol=1e-15)


def test_targets_are_the_old_model_on_the_whole_task(small_cell, run_steps) -> None:
    """Recorded before the task's first step, un-augmented, in eval mode, over the classes of past tasks."""
    old = []

    def watch(run: trainer.Run) -> None:
        if run.phase.index == 0:
            old.append(copy.deepcopy(run.model))

    run = run_steps(small_cell("lwf"), 13, watch)
    assert run.phase.index == 1
    with torch.no_grad():
        expected = old[-1].eval()(run.network_input(run.pool_images))[:, :2]
    assert run.learner.targets.shape == (run.pool_size, 2)
    assert torch.allclose(run.learner.targets, expected, rtol=1e-5, atol=1e-6)
    assert run.model.training


@pytest.mark.parametrize("single_head", [True, False])
def test_a_step_by_hand(single_head: bool, small_cell, run_steps) -> None:
    """w <- w - lr grad(CE + alpha D), D over the past classes, against float64 autograd of written-out losses.

    CE over the task's classes 4 and 5, or without a single head over the classes 0 to 5 that were seen, of 10.
    """
    params = {"lwf.alpha": 0.7, "lwf.temperature": 2.0, "protocol.single_head": single_head}
    run = run_steps(small_cell("lwf", learning_rate=0.1, params=params), 22)
    assert run.phase.index == 2
    float64.compute_in(run)
    batch = next(trainer.batches(run))
    model, labels = copy.deepcopy(run.model), batch.labels
    logits = model(batch.images)
    seen = logits[:, :6]
    stream = float64.cross_entropy(seen[:, 4:], labels - 4) if single_head else float64.cross_entropy(seen, labels)
    target = (run.learner.targets[batch.positions].double() / 2).softmax(1)
    assert target.shape == (len(labels), 4)
    output = logits[:, :4].div(2).exp() / logits[:, :4].div(2).exp().sum(1, keepdim=True)
    loss = stream - 0.7 * (target * output.log()).sum() / len(labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    before = [p.detach().clone() for p in run.model.parameters()]
    trainer.step(run, batch)
    for parameter, start, gradient in zip(run.model.parameters(), before, gradients, strict=True):
        assert torch.allclose(parameter.detach(), start - 0.1 * gradient, rtol=0, atol=1e-7)
        # the targets are float32, so the step agrees to their precision


def test_the_first_task_and_alpha_zero_are_fine_tuning(small_cell, run_steps) -> None:
    lwf, fine = run_steps(small_cell("lwf", params={"lwf.alpha": 0.0})), run_steps(small_cell("finetune"))
    assert lwf.accuracy == fine.accuracy
    first = run_steps(small_cell("lwf"), 10)
    for name, value in run_steps(small_cell("finetune"), 10).model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name]), name


def test_what_the_targets_cost(small_cell, run_steps, digits) -> None:
    """One forward pass of each task's images but the first's: no second network runs while training."""
    record = run_steps(small_cell("lwf", epochs=1)).ledger.as_record()["lines"]
    sizes = digits.info.train_sizes
    stream = record["stream"]["forward"] // sum(sizes)
    assert record["old_outputs"] == {"forward": stream * sum(sizes[1:]), "input_gradient": 0, "weight_gradient": 0}
