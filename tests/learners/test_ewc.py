"""Online EWC: the Fisher diagonal by hand and beside mammoth's, its accumulation, the penalty and a whole step in
float64."""

from __future__ import annotations

import copy
import math

import float64
import pytest
import torch
from torch import nn

from sparcl import trainer
from sparcl.learners.ewc import fisher_diagonal, penalty, proximal


class Softmax(nn.Module):
    """A linear classifier without bias: d log p(y | x) / dW_k = (1[k = y] - p_k) x."""

    def __init__(self, weight: list[list[float]]):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def test_fisher_of_a_linear_classifier_by_hand() -> None:
    """At W = 0, p = 1/2 each: every squared factor is 1/4, so both rows hold (1^2 + 3^2) / 2 / 4, (4 + 0) / 2 / 4."""
    model = Softmax([[0, 0], [0, 0]])
    images = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    found = fisher_diagonal(model, images, torch.tensor([0, 1]), range(2))["weight"]
    assert found.tolist() == [[1.25, 0.5], [1.25, 0.5]]


def test_fisher_squares_each_image_before_averaging() -> None:
    """Two equal images of opposite labels: the mean gradient is 0 at W = 0, the Fisher information is not."""
    model = Softmax([[0, 0], [0, 0]])
    images = torch.tensor([[2.0, 0.0], [2.0, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    found = fisher_diagonal(model, images, torch.tensor([0, 1]), range(2))["weight"]
    assert found.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_fisher_is_over_the_classes_of_the_task_alone() -> None:
    """p = (1/4, 3/4) over classes 1 and 2, whatever class 0 says; class 0 gets no information."""
    model = Softmax([[7.0], [0.0], [0.5 * math.log(3)]])
    images = torch.tensor([2.0], dtype=torch.float64).reshape(1, 1, 1, 1)
    found = fisher_diagonal(model, images, torch.tensor([1]), range(1, 3))["weight"]
    expected = torch.tensor([[0.0], [(0.75 * 2) ** 2], [(0.75 * 2) ** 2]], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


class Normalized(Softmax):
    """The same behind a batch normalization of its one channel, which in eval mode leaves an image as it is."""

    def __init__(self, weight: list[list[float]]):
        super().__init__(weight)
        self.norm = nn.BatchNorm2d(1, eps=1e-30, affine=False, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))


def mammoths_fisher(model: Softmax, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return 1/N sum p(y) (d log p(y) / dW)^2, p over all outputs, of one image after the other in training mode."""
    model.train()
    total = torch.zeros_like(model.weight)
    for image, label in zip(images, labels, strict=True):
        log_probability = -float64.cross_entropy(model(image[None]), label[None])
        total += log_probability.detach().exp() * torch.autograd.grad(log_probability, model.weight)[0] ** 2
    return total / len(labels)


@pytest.mark.parametrize(
    ("label", "ours", "theirs"), [(0, [1, 1 / 16, 9 / 16], [1 / 2, 1 / 32, 9 / 32]),
                                  (1, [1, 49 / 16, 9 / 16], [1 / 8, 49 / 128, 9 / 128])]
)  # fmt: skip
def test_over_all_outputs_it_is_mammoths_divided_by_the_labels_probability(label: int, ours, theirs) -> None:
    """p = (1/2, 1/8, 3/8), x = 2: 4 (1[k = y] - p_k)^2 here, and there p_y times that: a half of it or an eighth."""
    model = Softmax([[0.5 * math.log(4)], [0.0], [0.5 * math.log(3)]])
    images, labels = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64), torch.tensor([label])
    found = fisher_diagonal(model, images, labels, range(3))["weight"]
    assert found.flatten().tolist() == pytest.approx(ours, rel=0, abs=1e-14)
    mammoths = mammoths_fisher(model, images, labels)
    assert mammoths.flatten().tolist() == pytest.approx(theirs, rel=0, abs=1e-14)


@pytest.mark.parametrize(
    ("probabilities", "labels", "ours", "theirs"),
    [
        ([1 / 10] * 10, [0, 1], [1 / 4] * 2 + [0] * 8, [0.041] * 2 + [0.001] * 8),
        ([9 / 20, 1 / 20, 5 / 20, 5 / 20], [0, 0], [0.01, 0.01, 0, 0], [0.136125, 0.001125, 0.028125, 0.028125]),
    ],
    ids=["more", "less"],
)
def test_with_a_single_head_it_is_more_than_mammoths_or_less(probabilities, labels, ours, theirs) -> None:
    """Untrained outputs, the task's classes 0 and 1: p = 1/2 each here, so 1/4 for both; there p = 1/10, so for both
    1/10 (0.9^2 + 0.1^2) / 2, and 1/10 0.1^2 for the others: 5 times as much in all. With class 0 learned, other outputs
    being high: p = (9, 1) / 10 here, so 0.1^2 for both; there 9/20 (11, 1, 5, 5)^2 / 400: a tenth of it in all.
    """
    model = Softmax([[math.log(p)] for p in probabilities])
    images = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    found = fisher_diagonal(model, images, torch.tensor(labels), range(2))["weight"]
    assert found.flatten().tolist() == pytest.approx(ours, rel=0, abs=1e-14)
    mammoths = mammoths_fisher(model, images, torch.tensor(labels))
    assert mammoths.flatten().tolist() == pytest.approx(theirs, rel=0, abs=1e-14)


def test_it_is_of_eval_mode_and_mammoths_of_each_images_own_statistics() -> None:
    """x = (5, 1) in eval mode; by its own mean 3 and deviation 2 it is (1, -1). At W = 0: x^2 / 4 and 1/2 x^2 / 4."""
    model = Normalized([[0, 0], [0, 0]])
    images, labels = torch.tensor([5.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 2), torch.tensor([0])
    ours = fisher_diagonal(model, images, labels, range(2))["weight"]
    assert ours.tolist() == [[6.25, 0.25], [6.25, 0.25]]
    theirs = mammoths_fisher(model, images, labels)
    assert torch.allclose(theirs, torch.full((2, 2), 1 / 8, dtype=torch.float64), rtol=0, atol=1e-14)


def test_penalty_and_its_gradient_by_hand() -> None:
    """F = (1, 2, 0), theta - theta* = (3, -1, 5): 9 + 2 = 11, gradient 2 F (theta - theta*) = (6, -4, 0)."""
    weight = torch.tensor([4.0, 1.0, 5.0], requires_grad=True)
    value = penalty({"w": weight}, {"w": torch.tensor([1.0, 2.0, 0.0])}, {"w": torch.tensor([1.0, 2.0, 0.0])})
    assert value.item() == 11
    value.backward()
    assert weight.grad.tolist() == [6, -4, 0]


def fisher_one_by_one(run: trainer.Run, model: nn.Module, single_head: bool = True) -> dict[str, torch.Tensor]:
    """Return the Fisher diagonal of the current task with one backward pass per image, in float64."""
    model = copy.deepcopy(model).double().eval()
    first, last = (run.phase.classes.start, run.phase.classes.stop) if single_head else (0, 10)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    images = run.network_input(run.pool_images).double()
    for image, label in zip(images, run.pool_labels, strict=True):
        loss = float64.cross_entropy(model(image[None])[:, first:last], label[None] - first)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        for value, gradient in zip(total.values(), grads, strict=True):
            value += gradient**2
    return {name: value / len(images) for name, value in total.items()}


@pytest.mark.parametrize(("gamma", "single_head"), [(1.0, True), (0.5, True), (0.5, False)])
def test_fisher_of_two_tasks(gamma: float, single_head: bool, small_cell, run_steps) -> None:
    """gamma F_1 + F_2, each at its own task's end; the anchor is the last task's weights.

    The outputs of the classes 4 to 9, which no task has had, have information without a single head, else none.
    """
    ends = []
    original = trainer.evaluate

    def at_end(run: trainer.Run, seen: int):  # evaluation follows the learner's end of task
        if run.losses:
            fisher = fisher_one_by_one(run, run.model, single_head)
            ends.append((fisher, dict(run.learner.fisher), dict(run.learner.anchor)))
        return original(run, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "evaluate", at_end)
        params = {"ewc.gamma": gamma, "protocol.single_head": single_head}
        run = run_steps(small_cell("ewc", epochs=1, params=params), 11)
    (first, one, _), (second, two, anchor) = ends
    for name, parameter in run.model.named_parameters():
        scale = float(first[name].max()) + 1e-12
        assert torch.allclose(one[name].double(), first[name], rtol=1e-3, atol=1e-5 * scale), name
        expected = gamma * first[name] + second[name]
        assert torch.allclose(two[name].double(), expected, rtol=1e-3, atol=1e-5 * float(expected.max())), name
        assert anchor[name].shape == parameter.shape
    assert any(not torch.equal(anchor[n], p.detach()) for n, p in run.model.named_parameters())
    assert bool(two["head.weight"][4:].any()) != single_head


def stepped(run: trainer.Run, single_head: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Make a step in float64; return the weights before it and the gradients of the stream's loss.

    That is over the classes 2 and 3 of the second task, or without a single head over all ten.
    """
    assert run.phase.index == 1
    float64.compute_in(run)
    for held in (run.learner.fisher, run.learner.anchor):
        for name in held:
            held[name] = held[name].double()
    batch = next(trainer.batches(run))
    model, labels = copy.deepcopy(run.model), batch.labels
    logits = model(batch.images)
    loss = float64.cross_entropy(logits[:, 2:4], labels - 2) if single_head else float64.cross_entropy(logits, labels)
    found = torch.autograd.grad(loss, list(model.parameters()))
    gradients = dict(zip((name for name, _ in model.named_parameters()), found, strict=True))
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    trainer.step(run, batch)
    return before, gradients


@pytest.mark.parametrize("single_head", [True, False])
def test_a_step_is_sgd_on_the_penalized_loss(single_head: bool, small_cell, run_steps) -> None:
    """w <- w - lr (g + 2 lambda F (w - w*)), with g by float64 autograd; no penalty in the first task."""
    params = {"ewc.strength": 30.0, "ewc.step": "explicit", "protocol.single_head": single_head}
    run = run_steps(small_cell("ewc", learning_rate=0.1, params=params), 12)
    before, gradients = stepped(run, single_head)
    pulled = 0.0
    for name, parameter in run.model.named_parameters():
        pull = 2 * 30 * run.learner.fisher[name] * (before[name] - run.learner.anchor[name])
        expected = before[name] - 0.1 * (gradients[name] + pull)
        assert torch.allclose(parameter.detach(), expected, rtol=0, atol=1e-12), name
        pulled += float(pull.abs().sum())
    assert pulled > 0.01


def test_the_first_task_is_fine_tuning(small_cell, run_steps) -> None:
    ewc, fine = run_steps(small_cell("ewc"), 10), run_steps(small_cell("finetune"), 10)
    for name, value in fine.model.state_dict().items():
        assert torch.equal(value, ewc.model.state_dict()[name]), name


def test_strength_zero_is_fine_tuning(small_cell, run_steps) -> None:
    ewc = run_steps(small_cell("ewc", params={"ewc.strength": 0.0}))
    assert ewc.accuracy == run_steps(small_cell("finetune")).accuracy


def test_missing_weights_have_no_information_and_no_anchor(small_cell, run_steps) -> None:
    run = run_steps(small_cell("static-ewc", epochs=1))
    for name, mask in run.masks.weight.items():
        assert not run.learner.fisher[name][~mask].any()
        assert not run.learner.anchor[name][~mask].any()
        assert run.learner.fisher[name][mask].any()


def test_what_the_fisher_pass_costs(small_cell, run_steps) -> None:
    """One forward and both backward products of every training image, beside the stream."""
    record = run_steps(small_cell("ewc", epochs=1)).ledger.as_record()["lines"]
    stream, fisher = record["stream"], record["fisher"]
    assert fisher == stream  # one epoch: each image passes once for each
    assert "replay" not in record


def test_the_proximal_step_by_hand() -> None:
    """(theta + r F theta*) / (1 + r F); at a small rate the gradient step, at a large one the anchor."""
    weight, anchor, fisher = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0]), torch.tensor([2.0, 0.5])
    assert proximal(weight, anchor, fisher, 1.0).tolist() == pytest.approx([1 / 3, 3.5 / 1.5])
    assert torch.allclose(proximal(weight, anchor, fisher, 1e9), anchor)
    small = proximal(weight.double(), anchor.double(), fisher.double(), 1e-6)
    assert torch.allclose(small, weight.double() - 1e-6 * fisher * (weight - anchor), rtol=0, atol=1e-11)


def test_the_proximal_step_is_stable_where_the_gradient_step_is_not() -> None:
    """2 lr lambda F = 3: the gradient step takes the distance to the anchor times 1 - 3 = -2, the proximal one 1/4."""
    explicit, implicit = torch.tensor([1.0]), torch.tensor([1.0])
    fisher, anchor = torch.tensor([50.0]), torch.tensor([0.0])
    for _ in range(10):
        explicit = explicit - 0.03 * 2 * 1.0 * fisher * (explicit - anchor)
        implicit = proximal(implicit, anchor, fisher, 2 * 0.03 * 1.0)
    assert explicit.item() == pytest.approx(2**10, rel=1e-4)
    assert implicit.item() == pytest.approx(4**-10, rel=1e-4)


@pytest.mark.parametrize("single_head", [True, False])
def test_a_step_takes_the_loss_first_and_the_penalty_then(single_head: bool, small_cell, run_steps) -> None:
    """v = w - lr g by float64 autograd; then w = (v + 2 lr lambda F w*) / (1 + 2 lr lambda F): the default."""
    params = {"ewc.strength": 30.0, "protocol.single_head": single_head}
    run = run_steps(small_cell("ewc", learning_rate=0.1, params=params), 12)
    before, gradients = stepped(run, single_head)
    pulled = 0.0
    for name, parameter in run.model.named_parameters():
        rate = 2 * 0.1 * 30 * run.learner.fisher[name]
        moved = before[name] - 0.1 * gradients[name]
        expected = (moved + rate * run.learner.anchor[name]) / (1 + rate)
        assert torch.allclose(parameter.detach(), expected, rtol=0, atol=1e-12), name
        pulled += float((expected - moved).abs().sum())
    assert pulled > 0.001


def test_the_implicit_step_moves_what_learns_and_nothing_else(small_cell, run_steps) -> None:
    """Masked weights stay 0, weights without a gradient keep their bits, and a huge lambda holds everything else."""
    seen: list[dict[str, torch.Tensor]] = []

    def watch(run) -> None:
        if run.phase.index == 1:
            seen.append({name: value.detach().clone() for name, value in run.masks.parameters.items()})

    params = {"ewc.step": "implicit", "ewc.strength": 1e12}
    run = run_steps(small_cell("static-dgm-ewc", params=params | {"dgm.refresh": 1000}), 14, watch)
    assert len(seen) >= 2
    for name, value in seen[-1].items():
        held = ~run.masks.gradient[name]
        assert torch.equal(value[held], seen[-2][name][held])
        anchored = run.masks.gradient[name] & (run.learner.fisher[name] > 1e-8)
        assert torch.allclose(value[anchored], run.learner.anchor[name][anchored], rtol=1e-3, atol=1e-4)
