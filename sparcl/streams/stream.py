"""What a stream is to the rest of the suite: its description, its tasks and its images."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StreamInfo:
    """A stream without its images.

    Attributes:
        name: name in the registry ("split-cifar10").
        label: name in tables ("Split-CIFAR-10").
        shape: (C, H, W) of an image.
        classes: number of classes over all tasks.
        tasks: number of tasks, all with ``classes // tasks`` classes.
        train_sizes: training images per task.
        test_sizes: test images per task (held-out training images under the option ``validation``).
        mean: per channel, of pixels divided by ``scale``.
        std: per channel, likewise.
        scale: largest pixel value (255; 16 for the digits).
        pad: zero pixels added on each side before a random crop back to ``shape``; 0 for no crop.
        flip: whether training images are mirrored left-right with probability 1/2.
    """

    name: str
    label: str
    shape: tuple[int, int, int]
    classes: int
    tasks: int
    train_sizes: tuple[int, ...]
    test_sizes: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: int
    pad: int
    flip: bool


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream.

    Attributes:
        index: position in the stream, from 0.
        classes: the task's outputs in the head, contiguous; labels are numbered the same way.
        train_index: int64, ascending: rows of ``Stream.train_images``.
        test_index: int64, ascending: rows of ``Stream.test_images``.
    """

    index: int
    classes: range
    train_index: torch.Tensor
    test_index: torch.Tensor


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream with its images. Images belong to a task only through its ``train_index`` and ``test_index``.

    Under the option ``validation`` the test tensors *are* the training tensors, and the tasks' indices are
    disjoint.

    Attributes:
        info: description; its sizes are those of the images present.
        train_images: uint8 (N, C, H, W); memory-mapped copy-on-write, to be treated as read-only.
        train_labels: int64 (N,), in the stream's class order.
        test_images: uint8 (M, C, H, W).
        test_labels: int64 (M,).
        tasks: the tasks in order.
        digest: SHA-256 (hex) that all of the above determine but the names: pixels, labels, class
            order, tasks, held-out images, normalization and augmentation.
    """

    info: StreamInfo
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    tasks: tuple[Task, ...]
    digest: str
