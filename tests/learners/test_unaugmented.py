"""What methods compute on un-augmented images, on a stream that augments: Split-Digits, moved and mirrored."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import float64
import pytest
import torch
from test_ewc import fisher_one_by_one
from torch import Tensor, nn

from sparcl import cell, seeding, streams, trainer
from sparcl.masks import keep_count
from sparcl.streams import augment

Pool = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def stream(digits: streams.Stream) -> streams.Stream:
    return replace(digits, info=replace(digits.info, pad=2, flip=True))


@pytest.fixture(scope="module")
def pool(stream: streams.Stream) -> Pool:
    """Return a function that gives a task's images, as they are or augmented, and their labels."""

    def read(task: int, augmented: bool = False) -> tuple[Tensor, Tensor]:
        index = stream.tasks[task].train_index
        images = stream.train_images[index]
        if augmented:
            draws = augment.draw(len(index), stream.info, torch.Generator().manual_seed(0))
            images = augment.apply(images, draws, stream.info)
        return images, stream.train_labels[index]

    return read


def normal(images: Tensor, stream: streams.Stream) -> Tensor:
    """Return raw images as the network gets them, in float64."""
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (stream.info.mean, stream.info.std))
    return (images.double() / stream.info.scale - mean) / std


def after_first_task(chosen: cell.Cell, stream: streams.Stream) -> trainer.Run:
    def stop(run: trainer.Run) -> None:
        raise trainer.Interrupted

    run = trainer.Run(chosen, stream)
    with contextlib.suppress(trainer.Interrupted):
        trainer.train(run, after_task=stop)
    return run


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    return copy.deepcopy(model).double().eval()(images).float()


def near(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_training_on_this_stream_augments(small_cell, stream) -> None:
    run = trainer.Run(small_cell("fdr"), stream)
    run.enter_phase()
    trainer.begin_epoch(run, 0)
    for batch in trainer.batches(run):
        same = (batch.images - normal(batch.raw, stream)).abs().flatten(1).amax(1) < 1e-4
        assert same.double().mean() < 0.2  # 1 in 50, and mirror images of symmetric digits


def test_fdr_stores_outputs_of_untouched_images(small_cell, stream, pool) -> None:
    """Each stored image is one of the task's, byte for byte, and its logits are those of that image in eval mode."""
    run = after_first_task(small_cell("fdr", epochs=1), stream)
    stored, logits = run.memory.images, run.memory.logits
    assert len(run.memory) == len(stored) == 20
    images, labels = pool(0)
    same = (stored[:, None] == images).flatten(2).all(2)
    assert same.any(1).all()
    place = same.int().argmax(1)
    assert torch.equal(run.memory.labels, labels[place])
    assert near(logits, outputs(run.model, normal(images[place], stream)))
    assert not near(logits, outputs(run.model, normal(pool(0, augmented=True)[0][place], stream)))


def test_lwf_records_outputs_of_untouched_images(small_cell, stream, pool) -> None:
    """The second task's targets are the logits that the model of its start gives to its images, in eval mode."""
    run = after_first_task(small_cell("lwf", epochs=1), stream)
    trainer.begin_task(run, run.phases[1])
    assert near(run.learner.targets, outputs(run.model, normal(pool(1)[0], stream))[:, :2])
    assert not near(run.learner.targets, outputs(run.model, normal(pool(1, augmented=True)[0], stream))[:, :2])


def test_ewc_takes_the_fisher_information_of_untouched_images(small_cell, stream, pool) -> None:
    """The mean squared gradient of one image at a time, in float64 and eval mode."""
    run = after_first_task(small_cell("ewc", epochs=1), stream)

    def fisher(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        seen = SimpleNamespace(phase=run.phases[0], pool_images=images, pool_labels=labels)
        seen.network_input = lambda raw: normal(raw, stream)
        return fisher_one_by_one(seen, run.model)

    expected, augmented = fisher(*pool(0)), fisher(*pool(0, augmented=True))
    for name, found in run.learner.fisher.items():
        exact = {"rtol": 1e-3, "atol": 1e-5 * float(expected[name].max()) + 1e-15}
        assert torch.allclose(found.double(), expected[name], **exact), name
        if found.any():  # there is none for the outputs of later tasks
            assert not torch.allclose(found.double(), augmented[name], **exact), name


@pytest.mark.parametrize("batches", [1, 2])
def test_snip_scores_untouched_images(batches: int, small_cell, stream, pool) -> None:
    """Its masks are the k largest |g w| of each layer, g by float64 autograd in training mode."""
    run = trainer.Run(small_cell("snip-er", params={"snip.batches": batches}), stream)
    float64.compute_in(run)
    model = copy.deepcopy(run.model)
    assert model.training
    trainer.begin_task(run, run.phases[0])

    def kept(images: Tensor, labels: Tensor) -> dict[str, set[int]]:
        weights = {name: dict(model.named_parameters())[name] for name in run.masks.weight}
        order = torch.randperm(len(labels), generator=seeding.generator(run.cell.seed, "saliency"))
        losses = [float64.cross_entropy(model(normal(images[rows], stream))[:, :2], labels[rows])
                  for rows in order.split(64)[:batches]]  # fmt: skip
        gradients = torch.autograd.grad(sum(losses), list(weights.values()))
        scores = {n: (g * w).abs().flatten() for (n, w), g in zip(weights.items(), gradients, strict=True)}
        return {n: set(s.argsort(descending=True)[: keep_count(len(s), 0.75)].tolist()) for n, s in scores.items()}

    masks = {name: set(mask.flatten().nonzero()[:, 0].tolist()) for name, mask in run.masks.weight.items()}
    augmented = kept(*pool(0, augmented=True))
    assert masks == kept(*pool(0))
    assert all(masks[name] != augmented[name] for name in masks)
