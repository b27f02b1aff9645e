"""ER, DER and DER++: terms and whole steps against steps done by hand in float64."""

from __future__ import annotations

import copy

import float64
import pytest
import torch
import torch.nn.functional as F

from sparcl import components, trainer
from sparcl.errors import UserError

LEARNERS = {
    "er": {"er.weight": 0.7},
    "der": {"der.alpha": 0.3},
    "derpp": {"derpp.alpha": 0.2, "derpp.beta": 0.6},
}


def batch_and_replays(run: trainer.Run) -> tuple[components.Batch, list]:
    return next(trainer.batches(run)), run.learner.replay(run)


@pytest.mark.parametrize("single_head", [True, False])
@pytest.mark.parametrize("learner", LEARNERS)
def test_terms(learner: str, single_head: bool, small_cell, run_steps) -> None:
    """Stream: cross-entropy over the task's classes (or all). Memory: MSE to stored logits, CE over all classes."""
    chosen = small_cell(learner, params=LEARNERS[learner] | {"protocol.single_head": single_head})
    run = run_steps(chosen, 13)
    batch, replays = batch_and_replays(run)
    assert len(replays) == (2 if learner == "derpp" else 1)
    terms, logits = run.learner.terms(run, batch.images, batch.labels, replays)
    model = copy.deepcopy(run.model)
    assert torch.equal(model(batch.images), logits)
    first = run.phase.classes.start
    scores = logits[:, first : first + 2] if single_head else logits
    labels = batch.labels - first if single_head else batch.labels
    assert terms["stream"].item() == pytest.approx(float64.cross_entropy(scores.double(), labels).item(), rel=1e-5)
    images, past, stored = replays[0]
    expected = {
        "er": 0.7 * F.cross_entropy(model(images), past),
        "der": 0.3 * F.mse_loss(model(images), stored),
        "derpp": 0.2 * F.mse_loss(model(images), stored) + 0.6 * F.cross_entropy(model(replays[-1][0]), replays[-1][1]),
    }
    assert terms["memory"].item() == pytest.approx(expected[learner].item(), rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_step_is_sgd_on_the_sum_of_the_terms(learner: str, decay: float, small_cell, run_steps) -> None:
    """w <- w - lr (g_stream + g_memory + decay w), with gradients by float64 autograd of written-out losses."""
    chosen = small_cell(learner, params=LEARNERS[learner] | {"protocol.weight_decay": decay}, learning_rate=0.1)
    run = run_steps(chosen, 13)
    float64.compute_in(run)
    state = run.generator("replay").get_state(), run.generator("replay-augment").get_state()
    batch, replays = batch_and_replays(run)
    terms = float64.gradients(run, batch, replays)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    for name, saved in zip(("replay", "replay-augment"), state, strict=True):
        run.generator(name).set_state(saved)
    trainer.step(run, batch)
    moved = 0.0
    for name, parameter in run.model.named_parameters():
        gradient = sum(term[name] for term in terms.values()) + decay * before[name]
        expected = before[name] - 0.1 * gradient
        assert torch.allclose(parameter.detach(), expected, rtol=0, atol=1e-12), name
        moved += float((parameter.detach() - before[name]).abs().sum())
    assert moved > 0.1


def test_two_steps_with_momentum(small_cell, run_steps) -> None:
    """v <- 0.9 v + g; w <- w - lr v. The first step of a task begins with v = 0."""
    run = run_steps(small_cell("finetune", learning_rate=0.1, params={"protocol.momentum": 0.9}), 10)
    float64.compute_in(run)
    trainer.begin_task(run, run.phases[1])
    velocity = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in run.model.named_parameters()}
    for batch in list(trainer.batches(run))[:2]:
        gradients = float64.gradients(run, batch, [])["stream"]
        before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        trainer.step(run, batch)
        for name, parameter in run.model.named_parameters():
            velocity[name] = 0.9 * velocity[name] + gradients[name]
            expected = before[name] - 0.1 * velocity[name]
            assert torch.allclose(parameter.detach(), expected, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(("start", "first"), [("second-task", 10), ("immediately", 1)])
def test_when_replay_begins(learner: str, start: str, first: int, small_cell, run_steps, monkeypatch) -> None:
    """With the second task, or with the second step: the first has nothing to replay."""
    replayed = []
    original = trainer.Run.backward

    def watched(run, batch, replays, positions="dense", by_term=False):
        replayed.append([len(labels) for _, labels, _ in replays])
        return original(run, batch, replays, positions, by_term)

    monkeypatch.setattr(trainer.Run, "backward", watched)
    run_steps(small_cell(learner, params={"protocol.replay_start": start}), 14)
    each = [20] * (2 if learner == "derpp" else 1)
    assert replayed == [[]] * first + [each] * (14 - first)


def test_the_memory_holds_raw_images_and_the_logits_before_the_update(small_cell, run_steps, digits) -> None:
    """With room for everything, the first task's first batch is stored in order, with the untrained model's logits."""
    chosen = small_cell("derpp", buffer=1000)
    run = run_steps(chosen, 1)
    fresh = trainer.Run(chosen, digits)
    fresh.phase = fresh.phases[0]
    fresh.enter_phase()
    fresh.clock = fresh.clock_at(0)
    batch = next(trainer.batches(fresh))
    assert len(run.memory) == 58  # 288 images in 5 batches of at most 64: 58, 58, 58, 57, 57
    assert torch.equal(run.memory.images[:58], batch.raw)
    assert torch.equal(run.memory.labels[:58], batch.labels)
    assert torch.allclose(run.memory.logits[:58], fresh.model(batch.images).detach())
    assert run.memory.images.dtype == torch.uint8


def test_joint_sees_everything_at_once(small_cell, run_steps) -> None:
    run = run_steps(small_cell("joint", epochs=1))
    assert run.presented == [1438]
    assert [row[0] is None for row in run.accuracy["class_il"]] == [True] * 4 + [False]


def test_a_replay_method_without_memory_is_refused(small_cell) -> None:
    with pytest.raises(UserError, match="buffer: er replays from memory and needs a buffer of at least 1, got 0"):
        small_cell("er", buffer=0)
