"""Every learner for a few hundred steps on Split-CIFAR-10 at its shipped values: all weights stay finite.

The official images where the data folder has them, else images of that shape made here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparcl import methods, resolve, streams, trainer
from sparcl.streams import Stream, Task

PER_CLASS, TESTS, EPOCHS = 60, 10, 15  # 4 steps an epoch, 300 in all
OFFICIAL = (streams.data_root(None) / "cifar-10-batches-py").is_dir()
SPARSITY = {"packnet": 0.5, "lps": 0.5, "lwta": 0.5}
NAMES = [name for name in methods.names() if "-" not in name]
"""Learners and methods of their own: no bundles."""


def first_of_each_class(index: torch.Tensor, labels: torch.Tensor, classes: range, count: int) -> torch.Tensor:
    """Return, ascending, the first ``count`` rows of ``index`` of each of the ``classes``."""
    return torch.cat([index[labels[index] == c][:count] for c in classes]).sort().values


def made(classes: int, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images (classes * count, 3, 32, 32) and labels: a pattern for each class under much noise."""
    labels = torch.arange(classes).repeat_interleave(count)
    patterns = torch.randn(classes, 3, 8, 8, generator=generator)
    patterns = torch.nn.functional.interpolate(patterns, scale_factor=4, mode="bilinear")
    noise = torch.randn(len(labels), 3, 32, 32, generator=generator)
    return (120 + 30 * patterns[labels] + 40 * noise).clamp(0, 255).to(torch.uint8), labels


@pytest.fixture(scope="module")
def stream() -> Stream:
    if OFFICIAL:
        whole = streams.load("split-cifar10", None, {})
    else:
        info, generator = streams.describe("split-cifar10", {}), torch.Generator().manual_seed(0)
        (images, labels), (test_images, test_labels) = (made(10, n, generator) for n in (PER_CLASS, TESTS))
        tasks = [
            Task(
                t, range(2 * t, 2 * t + 2), (labels // 2 == t).nonzero()[:, 0], (test_labels // 2 == t).nonzero()[:, 0]
            )
            for t in range(5)
        ]
        whole = Stream(info, images, labels, test_images, test_labels, tuple(tasks), "made")
    tasks = [
        replace(
            task,
            train_index=first_of_each_class(task.train_index, whole.train_labels, task.classes, PER_CLASS),
            test_index=first_of_each_class(task.test_index, whole.test_labels, task.classes, TESTS),
        )
        for task in whole.tasks
    ]
    info = replace(whole.info, train_sizes=(2 * PER_CLASS,) * 5, test_sizes=(2 * TESTS,) * 5)
    return replace(whole, info=info, tasks=tuple(tasks))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_stays_finite(name: str, stream: Stream) -> None:
    buffer = 200 if methods.get(name).needs_memory else 0
    chosen = resolve.make("split-cifar10", name, SPARSITY.get(name, 0.0), buffer, width=8, epochs=EPOCHS)
    run = trainer.Run(chosen, stream)
    trainer.train(run)  # a loss that is not finite ends it
    for key, value in run.model.state_dict().items():
        assert bool(value.isfinite().all()), key
    assert all(torch.tensor(losses).isfinite().all() for losses in run.losses)


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL, reason="the official images are not in the data folder")
def test_the_gradient_step_on_ewcs_penalty_would_not(stream: Stream) -> None:
    """What the default avoids, at the strength that mammoth lists. (On the images made here it stays finite too.)"""
    params = {"ewc.step": "explicit", "ewc.strength": 10.0}
    run = trainer.Run(resolve.make("split-cifar10", "ewc", width=8, epochs=EPOCHS, params=params), stream)
    with pytest.raises(trainer.Diverged):
        trainer.train(run)
