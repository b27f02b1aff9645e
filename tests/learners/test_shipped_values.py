"""Every learner for a few hundred steps on Split-CIFAR-10 at its shipped values: all weights stay finite.

The official images where the data folder has them, else crops of the two photographs that scikit-learn brings.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_sample_images

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


def crops(classes: int, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images (classes * count, 3, 32, 32) and labels: a class is a fifth of one of the two photographs."""
    photographs = [torch.tensor(photograph).permute(2, 0, 1) for photograph in load_sample_images().images]
    labels = torch.arange(classes).repeat_interleave(count)
    images = []
    for label in labels.tolist():
        photograph, width = photographs[label % 2], photographs[0].shape[2] // 5
        left = label // 2 * width + int(torch.randint(width - 31, (1,), generator=generator))
        top = int(torch.randint(photograph.shape[1] - 31, (1,), generator=generator))
        images.append(photograph[:, top : top + 32, left : left + 32])
    return torch.stack(images), labels


@functools.cache
def crop_stream() -> Stream:
    info, generator = streams.describe("split-cifar10", {}), torch.Generator().manual_seed(0)
    (images, labels), (test_images, test_labels) = (crops(10, n, generator) for n in (PER_CLASS, TESTS))
    tasks = [
        Task(t, range(2 * t, 2 * t + 2), (labels // 2 == t).nonzero()[:, 0], (test_labels // 2 == t).nonzero()[:, 0])
        for t in range(5)
    ]
    return cut(Stream(info, images, labels, test_images, test_labels, tuple(tasks), "crops"))


def cut(whole: Stream) -> Stream:
    """Keep the first images of each class."""
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


@pytest.fixture(scope="module")
def stream() -> Stream:
    return cut(streams.load("split-cifar10", None, {})) if OFFICIAL else crop_stream()


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
def test_the_gradient_step_on_ewcs_penalty_would_not(stream: Stream) -> None:
    """What the default avoids, at the strength that mammoth lists."""
    params = {"ewc.step": "explicit", "ewc.strength": 10.0}
    run = trainer.Run(resolve.make("split-cifar10", "ewc", width=8, epochs=EPOCHS, params=params), stream)
    with pytest.raises(trainer.Diverged):
        trainer.train(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packnet", "lps"])
def test_isolated_tasks_are_all_learned(name: str) -> None:
    """With one batch normalization per task; frozen after the first, PackNet's later tasks end at losses up to 0.5."""
    run = trainer.Run(resolve.make("split-cifar10", name, SPARSITY[name], width=8, epochs=EPOCHS), crop_stream())
    trainer.train(run)
    assert max(losses[-1] for losses in run.losses) < 0.2
