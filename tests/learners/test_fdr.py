"""FDR: the distance by hand, who shares the memory, and a whole step in float64."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import float64
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl import trainer
from sparcl.learners.fdr import FDR, function_distance
from sparcl.memory import quotas


def test_distance_by_hand() -> None:
    """(3/4, 1/4) against (1/2, 1/2): sqrt(1/8). The same outputs at shifted logits: 0. The mean of both."""
    new = torch.tensor([[math.log(3), 0.0], [5.0, 5.0]], dtype=torch.float64)
    old = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert function_distance(new, old).item() == pytest.approx(math.sqrt(1 / 8) / 2, rel=1e-12)


def test_gradient_by_hand() -> None:
    """With p = sigmoid(z), q = 1/2: D = sqrt(2) (p - q), dD/dz = sqrt(2) p (1 - p) for the first logit, minus that
    for the second."""
    new = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    function_distance(new, torch.zeros(1, 2, dtype=torch.float64)).backward()
    slope = math.sqrt(2) * 0.75 * 0.25
    assert new.grad.flatten().tolist() == pytest.approx([slope, -slope], rel=1e-12)


def test_equal_outputs_have_gradient_zero() -> None:
    new = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    distance = function_distance(new, torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
    distance.backward()
    assert new.grad[0].tolist() == [0, 0]
    assert bool(new.grad[1].abs().min() > 0.1)


@pytest.mark.parametrize(("single_head", "classes"), [(True, 2), (False, 6)])
def test_terms_by_hand(single_head: bool, classes: int) -> None:
    """Six equal outputs, of which the task has the classes 2 and 3: log 2, or without a single head log 6.

    Old logits (log 7, 0, 0, 0, 0, 0) of an image of class 0: (7, 1, 1, 1, 1, 1) / 12 against (2, 2, ...) / 12 over all
    outputs in either case, so the distance is sqrt(30) / 12.
    """
    run = SimpleNamespace(protocol=SimpleNamespace(single_head=single_head), phase=SimpleNamespace(classes=range(2, 4)))
    run.logits = lambda *passes: [torch.zeros(len(images), 6, dtype=torch.float64) for images in passes]
    old, images = torch.tensor([[math.log(7), 0, 0, 0, 0, 0]], dtype=torch.float64), torch.zeros(1, 1)
    terms, _ = FDR(alpha=0.6).terms(run, images, torch.tensor([2]), [(images, torch.tensor([0]), old)])
    assert terms["stream"].item() == pytest.approx(math.log(classes), rel=1e-12)
    assert terms["memory"].item() == pytest.approx(0.6 * math.sqrt(30) / 12, rel=1e-6)  # .float() in the term


def test_quotas_by_hand() -> None:
    assert quotas(10, 1) == [10]
    assert quotas(10, 3) == [4, 3, 3]
    assert quotas(2, 3) == [1, 1, 0]


@given(st.integers(1, 500), st.integers(1, 20))
def test_quotas_fill_the_memory_and_never_grow(capacity: int, tasks: int) -> None:
    now, later = quotas(capacity, tasks), quotas(capacity, tasks + 1)
    assert sum(now) == capacity
    assert max(now) - min(now) <= 1
    assert all(a >= b for a, b in zip(now, later, strict=False))


@pytest.mark.parametrize(("buffer", "single_head"), [(3, True), (20, True), (20, False)])
def test_memory_after_each_task(buffer: int, single_head: bool, small_cell, run_steps) -> None:
    """Equal shares; an earlier task keeps the first part of its own; new logits are the model's, in eval mode.

    They are those of all ten outputs, with a single head and without.
    """
    after, original = [], trainer.evaluate

    def at_end(run: trainer.Run, seen: int):
        if run.losses:
            state = {name: value[: len(run.memory)].clone() for name, value in run.memory.state().items()
                     if isinstance(value, torch.Tensor)}  # fmt: skip
            after.append((state, copy.deepcopy(run.model).eval()))
        return original(run, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "evaluate", at_end)
        run = run_steps(small_cell("fdr", buffer=buffer, epochs=1, params={"protocol.single_head": single_head}))
    assert len(after) == 5
    for task, (held, model) in enumerate(after):
        assert held["tasks"].bincount(minlength=task + 1).tolist() == quotas(buffer, task + 1)
        for past in range(task):
            earlier = after[task - 1][0]
            mine, before = held["tasks"] == past, earlier["tasks"] == past
            count = int(mine.sum())
            assert torch.equal(held["images"][mine], earlier["images"][before][:count])
            assert torch.equal(held["logits"][mine], earlier["logits"][before][:count])
        own = held["tasks"] == task
        if own.any():
            with torch.no_grad():
                expected = model(run.network_input(held["images"][own]))
            assert expected.shape == (int(own.sum()), 10)
            assert torch.allclose(held["logits"][own], expected, rtol=1e-5, atol=1e-5)
            assert set(held["labels"][own].tolist()) <= {2 * task, 2 * task + 1}
            assert len(held["images"][own].unique(dim=0)) == int(own.sum())


@pytest.mark.parametrize("single_head", [True, False])
def test_a_step_by_hand(single_head: bool, small_cell, run_steps) -> None:
    """w <- w - lr grad(CE + alpha mean ||p - q||) against float64 autograd of written-out losses.

    CE over the task's classes 2 and 3, or without a single head over all ten; p and q over all ten in either case.
    """
    params = {"fdr.alpha": 0.6, "protocol.single_head": single_head}
    run = run_steps(small_cell("fdr", learning_rate=0.1, params=params), 14)
    assert run.phase.index == 1
    float64.compute_in(run)
    saved = {n: run.generator(n).get_state() for n in ("replay", "replay-augment")}
    batch, replays = next(trainer.batches(run)), run.learner.replay(run)
    for name, state in saved.items():
        run.generator(name).set_state(state)
    ((past, _, old),) = replays
    model, labels = copy.deepcopy(run.model), batch.labels
    logits = model(batch.images)
    stream = float64.cross_entropy(logits[:, 2:4], labels - 2) if single_head else float64.cross_entropy(logits, labels)
    output, target = model(past).exp(), old.double().exp()
    gap = output / output.sum(1, keepdim=True) - target / target.sum(1, keepdim=True)
    loss = stream + 0.6 * gap.square().sum(1).sqrt().sum() / len(past)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    before = [p.detach().clone() for p in run.model.parameters()]
    trainer.step(run, batch)
    moved = 0.0
    for parameter, start, gradient in zip(run.model.parameters(), before, gradients, strict=True):
        assert torch.allclose(parameter.detach(), start - 0.1 * gradient, rtol=0, atol=2e-6)  # .float() in the term
        moved += float((parameter.detach() - start).abs().sum())
    assert moved > 0.1


def test_what_it_replays_and_pays(small_cell, run_steps) -> None:
    """One replayed batch a step from the second task on, and one forward pass of every image that enters memory."""
    run = run_steps(small_cell("fdr", epochs=1, batch_size=64, buffer=20))
    lines, sizes = run.ledger.as_record()["lines"], run.info.train_sizes
    per_image = lines["stream"]["forward"] // sum(sizes)
    entered = sum(quotas(20, tasks)[-1] for tasks in range(1, 6))
    assert lines["memory_outputs"] == {"forward": per_image * entered, "input_gradient": 0, "weight_gradient": 0}
    assert lines["replay"]["forward"] == per_image * 20 * sum(-(-size // 64) for size in sizes[1:])
