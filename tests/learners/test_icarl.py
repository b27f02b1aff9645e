"""iCaRL: herding by brute force, the loss and a step by hand, exemplars and the nearest mean."""

from __future__ import annotations

import copy
import math

import float64
import pytest
import torch
import torch.nn.functional as F

from sparcl import trainer
from sparcl.errors import UserError
from sparcl.learners.icarl import class_outputs_loss, herd


def test_herding_by_hand() -> None:
    """Mean (2, 0). Nearest is (2, 1) at distance 1; beside it (3, -1) brings the mean to (2.5, 0), closest of all."""
    features = torch.tensor([[0.0, 3.0], [2.0, 1.0], [3.0, -1.0], [3.0, -3.0]])
    assert features.mean(0).tolist() == [2, 0]
    assert herd(features, 2).tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_herding_is_the_greedy_choice(seed: int) -> None:
    """Every next exemplar is the one whose addition leaves the mean of the chosen closest to the class's mean."""
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = herd(features, 12).tolist()
    assert sorted(chosen) == list(range(12))
    mean = features.mean(0)
    for k in range(12):
        before, best = chosen[:k], chosen[k]
        distances = {i: float((mean - features[[*before, i]].mean(0)).norm()) for i in range(12) if i not in before}
        assert distances[best] <= min(distances.values()) + 1e-12


def test_herding_stops_at_the_class() -> None:
    features = torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert len(herd(features, 50)) == 9
    assert len(herd(features, 0)) == 0


def test_herding_of_equal_features_repeats_none() -> None:
    assert sorted(herd(torch.ones(4, 2), 4).tolist()) == [0, 1, 2, 3]


def test_loss_by_hand() -> None:
    """Past class: output 3/4, target 1/4. New classes: outputs 1/2 and 4/5, label the second. Class 3 is unseen."""
    logits = torch.tensor([[math.log(3), 0.0, math.log(4), 9.0]], dtype=torch.float64)
    targets = torch.tensor([[0.25]])
    past = -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    new = -math.log(1 - 0.5) - math.log(0.8)
    found = class_outputs_loss(logits, torch.tensor([2]), targets, range(1, 3)).item()
    assert found == pytest.approx(past + new, rel=1e-6)


def test_an_exemplar_of_a_past_class_is_none_of_the_new_ones() -> None:
    """Its label plays no part among the past classes, where the old outputs are the targets."""
    logits = torch.zeros(1, 3, dtype=torch.float64)
    found = class_outputs_loss(logits, torch.tensor([0]), torch.tensor([[0.5]]), range(1, 3)).item()
    assert found == pytest.approx(3 * math.log(2), rel=1e-6)


def states_after_tasks(chosen, run_steps) -> tuple[trainer.Run, list]:
    """Return the run and, per task, (memory's labels, memory's images, means, model, pool's images, labels)."""
    after, original = [], trainer.evaluate

    def at_end(run: trainer.Run, seen: int):
        if run.losses:
            held = len(run.memory)
            own = len(run.phase.train_index)
            after.append((
                run.memory.labels[:held].clone(), run.memory.images[:held].clone(), run.learner.means.clone(),
                copy.deepcopy(run.model).eval(), run.pool_images[:own].clone(), run.pool_labels[:own].clone(),
            ))  # fmt: skip
        return original(run, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "evaluate", at_end)
        run = run_steps(chosen)
    return run, after


def test_exemplars_and_means(small_cell, run_steps) -> None:
    """buffer // classes of each class, herded; later fewer, the first of the earlier; means by their definition."""
    run, after = states_after_tasks(small_cell("icarl", buffer=25, epochs=1), run_steps)
    for task, (labels, images, means, model, pool, pool_labels) in enumerate(after):
        seen = 2 * (task + 1)
        assert labels.bincount(minlength=seen).tolist() == [25 // seen] * seen
        for c in range(seen):
            mine = images[labels == c]
            if c < seen - 2:
                past_labels, past_images = after[task - 1][:2]
                assert torch.equal(mine, past_images[past_labels == c][: len(mine)])
            else:
                members = pool[pool_labels == c]
                with torch.no_grad():
                    features = F.normalize(model.features(run.network_input(members)), dim=1)
                assert torch.equal(mine, members[herd(features, 25 // seen)])
            with torch.no_grad():
                mean = F.normalize(model.features(run.network_input(mine)), dim=1).mean(0)
            assert torch.allclose(means[c], mean / mean.norm(), rtol=0, atol=1e-5)


def test_prediction_is_the_nearest_mean(small_cell, run_steps) -> None:
    """Class-IL of the last row, from the definition; scores fall with the distance to the normalized mean."""
    run = run_steps(small_cell("icarl"))
    model, stream = copy.deepcopy(run.model).eval(), run.stream
    right = []
    for task in stream.tasks:
        with torch.no_grad():
            near = F.normalize(model.features(run.network_input(stream.test_images[task.test_index])), dim=1)
        distance = (near[:, None] - run.learner.means[None]).norm(dim=2)
        right.append(100 * float((distance.argmin(1) == stream.test_labels[task.test_index]).double().mean()))
    assert run.accuracy["class_il"][-1] == pytest.approx(right)


def test_classes_without_exemplars_come_last_by_their_outputs(small_cell, run_steps) -> None:
    """After two tasks no image is taken for a later class; among those, the logits decide."""
    run = run_steps(small_cell("icarl"), 25)
    assert run.learner.means.shape[0] == 4
    model = copy.deepcopy(run.model).eval()
    images = run.network_input(run.stream.test_images[:200])
    with torch.no_grad(), trainer.evaluation_mode(run.model):
        scores, logits = run.learner.predict(run, images), model(images)
    assert bool((scores[:, :4].min(1).values > scores[:, 4:].max(1).values).all())
    assert torch.equal(scores[:, 4:].argmax(1), logits[:, 4:].argmax(1))


def test_before_training_the_outputs_decide(small_cell, digits) -> None:
    """Untrained scores rank as the outputs do, to the last bit: no class has a mean yet."""
    run = trainer.Run(small_cell("icarl"), digits)
    images = run.network_input(digits.test_images)
    with torch.no_grad(), trainer.evaluation_mode(run.model):
        scores, logits = run.learner.predict(run, images), run.model(images)
    assert torch.equal(scores.argsort(1), logits.argsort(1))


def test_exemplars_join_the_pool(small_cell, run_steps) -> None:
    run, after = states_after_tasks(small_cell("icarl", epochs=1), run_steps)
    sizes = run.info.train_sizes
    assert run.presented == [sizes[0], *(size + len(held[0]) for size, held in zip(sizes[1:], after, strict=False))]
    assert torch.equal(run.pool_labels[sizes[-1] :], after[-2][0])


def test_a_step_by_hand(small_cell, run_steps) -> None:
    """w <- w - lr grad of the class outputs' cross-entropies, exemplars among the batch, in float64."""
    run = run_steps(small_cell("icarl", learning_rate=0.1), 14)
    assert run.phase.index == 1
    float64.compute_in(run)
    batch = next(b for b in trainer.batches(run) if bool((b.labels < 2).any()))
    model = copy.deepcopy(run.model)
    output = torch.sigmoid(model(batch.images)[:, :4])
    wanted = torch.zeros(len(batch.labels), 4, dtype=torch.float64)
    wanted[:, :2] = run.learner.targets[batch.positions].double()
    for row, label in enumerate(batch.labels.tolist()):
        if label >= 2:
            wanted[row, label] = 1
    loss = -(wanted * output.log() + (1 - wanted) * (1 - output).log()).sum() / len(wanted)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    before = [p.detach().clone() for p in run.model.parameters()]
    trainer.step(run, batch)
    for parameter, start, gradient in zip(run.model.parameters(), before, gradients, strict=True):
        assert torch.allclose(parameter.detach(), start - 0.1 * gradient, rtol=0, atol=2e-6)  # .float() in the loss


def test_targets_are_the_old_outputs_on_pool_and_exemplars(small_cell, run_steps) -> None:
    old = []

    def watch(run: trainer.Run) -> None:
        if run.phase.index == 0:
            old.append(copy.deepcopy(run.model))

    run = run_steps(small_cell("icarl"), 13, watch)
    assert run.phase.index == 1
    with torch.no_grad():
        expected = old[-1].eval()(run.network_input(run.pool_images))[:, :2].sigmoid()
    assert torch.allclose(run.learner.targets, expected, rtol=1e-5, atol=1e-6)


def test_too_small_a_buffer_and_removed_samples_are_refused(small_cell) -> None:
    with pytest.raises(UserError, match="needs at least 10, got 9"):
        small_cell("icarl", buffer=9)
    small_cell("icarl", buffer=10)
    with pytest.raises(UserError, match="icarl takes no data policy: its exemplars are part of the pool"):
        small_cell("sparcl-icarl")


def test_exemplars_over_a_run(small_cell, run_steps) -> None:
    """20 exemplars: 10 of each of 2 classes, then 5 of 4, then 3 of 6 (18), each the first of those before."""
    seen: dict[int, list[int]] = {}
    images: dict[int, torch.Tensor] = {}
    pools: dict[int, tuple[int, int]] = {}

    def watch(run: trainer.Run) -> None:
        task = run.phase.index
        pools[task] = (run.pool_size, len(run.phase.train_index))
        held = len(run.memory)
        seen.setdefault(task, run.memory.labels[:held].tolist())
        images.setdefault(task, run.memory.images[:held].clone())

    run = run_steps(small_cell("icarl"), None, watch)
    assert seen[0] == []
    assert seen[1] == [0] * 10 + [1] * 10
    assert seen[2] == [c for c in range(4) for _ in range(5)]
    assert seen[3] == [c for c in range(6) for _ in range(3)]
    assert torch.equal(images[2][:5], images[1][:5])
    assert torch.equal(images[2][5:10], images[1][10:15])
    for task, (size, own) in pools.items():
        assert size == own + len(seen[task])
    assert run.memory.labels[: len(run.memory)].tolist() == [c for c in range(10) for _ in range(2)]
