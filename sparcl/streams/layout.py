"""From labelled images to tasks: class order, tasks, held-out images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sparcl.errors import UserError
from sparcl.streams.cache import Images
from sparcl.streams.source import Facts
from sparcl.streams.stream import Stream, StreamInfo, Task

HOLD_OUT_SEED = 20220409
SUBSET_SEED = 20221128


def class_order(classes: int, seed: int | None) -> list[int]:
    """Return the data set's classes in the order in which the stream shows them."""
    if seed is None:
        return list(range(classes))
    return [int(value) for value in np.random.RandomState(seed).permutation(classes)]


def subset(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Return the rows, ascending, of ``per_class`` images of every class.

    Drawn by a fixed permutation per class (as :func:`stratified_split`, with a seed of its own), so the choice depends
    on the labels alone, and a smaller subset is part of a larger one.
    """
    kept = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        kept.append(rows[np.random.RandomState([SUBSET_SEED, int(label)]).permutation(len(rows))[:per_class]])
    return np.sort(np.concatenate(kept))


def held_out_count(count: int, fraction: float) -> int:
    """Return how many of a class's ``count`` images are held out: the nearest integer, halves up, in [1,
    count - 1].

    Raises:
        UserError: a class of one image cannot be divided.
    """
    if count < 2:
        raise UserError("stream_options.validation: expected at least 2 training images in every class")
    return min(max(int(fraction * count + 0.5), 1), count - 1)


def stratified_split(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into (kept, held out), both ascending, with the same fraction of every class held out.

    The choice is a fixed permutation per class (``RandomState``, whose sequence NumPy never changes), so it
    depends on the labels and the fraction alone; the images held out at a smaller fraction are among those
    at a larger one.
    """
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.random.RandomState([HOLD_OUT_SEED, int(label)]).permutation(len(rows))
        held[rows[order[: held_out_count(len(rows), fraction)]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def info(name: str, facts: Facts, options: Mapping[str, Any]) -> StreamInfo:
    """Return the description of the stream that ``options`` make of a data set.

    Raises:
        UserError: ``tasks`` does not divide the number of classes, or a class has too few training images.
    """
    classes = len(facts.train_counts)
    tasks = options.get("tasks", facts.tasks)
    if classes % tasks:
        divisors = [str(number) for number in range(1, classes + 1) if classes % number == 0]
        raise UserError(
            f"stream_options.tasks: {tasks} does not divide the {classes} classes of {name}; expected one of"
            f" {', '.join(divisors)}"
        )
    train, test = list(facts.train_counts), list(facts.test_counts)
    if "train_per_class" in options:
        wanted, fewest = options["train_per_class"], min(train)
        if wanted > fewest:
            raise UserError(
                f"stream_options.train_per_class: expected at most {fewest}, the training images of class"
                f" {train.index(fewest)} of {name}, got {wanted}"
            )
        train = [wanted] * classes
    if "validation" in options:
        test = [held_out_count(count, options["validation"]) for count in train]
        train = [count - held for count, held in zip(train, test, strict=True)]
    order, width = class_order(classes, options.get("class_order_seed")), classes // tasks
    groups = [order[start : start + width] for start in range(0, classes, width)]
    return StreamInfo(
        name=name,
        label=facts.label,
        shape=facts.shape,
        classes=classes,
        tasks=tasks,
        train_sizes=tuple(sum(train[label] for label in group) for group in groups),
        test_sizes=tuple(sum(test[label] for label in group) for group in groups),
        mean=facts.mean,
        std=facts.std,
        scale=facts.scale,
        pad=facts.pad,
        flip=facts.flip,
    )


def assemble(name: str, facts: Facts, options: Mapping[str, Any], images: Images) -> Stream:
    """Return the stream: labels renumbered in class order, tasks with their rows, digest."""
    classes = len(facts.train_counts)
    present = replace(
        facts,
        train_counts=tuple(np.bincount(images.train_labels, minlength=classes).tolist()),
        test_counts=tuple(np.bincount(images.test_labels, minlength=classes).tolist()),
    )
    description = info(name, present, options)
    order = class_order(classes, options.get("class_order_seed"))
    head = np.empty(classes, dtype=np.int64)
    head[order] = np.arange(classes)
    train_images, train_labels = images.train_images, head[images.train_labels]
    # Rows are chosen before classes are renumbered, so that the choice does not depend on the class order.
    train_rows = np.arange(len(train_labels))
    if "train_per_class" in options:
        train_rows = subset(images.train_labels, options["train_per_class"])
    if "validation" in options:
        kept, held = stratified_split(images.train_labels[train_rows], options["validation"])
        train_rows, test_rows = train_rows[kept], train_rows[held]
        test_images, test_labels = train_images, train_labels
    else:
        test_images, test_labels = images.test_images, head[images.test_labels]
        test_rows = np.arange(len(test_labels))

    width = classes // description.tasks
    digest = hashlib.sha256(f"{images.digest}\n{order}\n{replace(description, name='', label='')}\n".encode())
    tasks = []
    for index in range(description.tasks):
        train_index = train_rows[train_labels[train_rows] // width == index]
        test_index = test_rows[test_labels[test_rows] // width == index]
        for part in (train_index, test_index):
            digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
        tasks.append(
            Task(
                index,
                range(index * width, (index + 1) * width),
                torch.from_numpy(train_index),
                torch.from_numpy(test_index),
            )
        )
    train, labels = torch.from_numpy(train_images), torch.from_numpy(train_labels)
    held_out = "validation" in options
    return Stream(
        info=description,
        train_images=train,
        train_labels=labels,
        test_images=train if held_out else torch.from_numpy(test_images),
        test_labels=labels if held_out else torch.from_numpy(test_labels),
        tasks=tuple(tasks),
        digest=digest.hexdigest(),
    )
