"""Class order, tasks, held-out images, descriptions and options."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl import streams
from sparcl.errors import UserError
from sparcl.streams import layout
from sparcl.streams.cache import Images
from sparcl.streams.source import Facts


def test_names():
    assert set(streams.names()) >= {
        "split-digits",
        "split-mnist",
        "split-fashion-mnist",
        "split-cifar10",
        "split-cifar100",
        "split-tiny-imagenet",
        "folder",
    }


@pytest.mark.parametrize(
    ("name", "shape", "tasks", "classes", "train", "test", "pad", "flip"),
    [
        ("split-digits", (1, 8, 8), 5, 10, 1438, 359, 0, False),
        ("split-mnist", (1, 28, 28), 5, 10, 60_000, 10_000, 0, False),
        ("split-fashion-mnist", (1, 28, 28), 5, 10, 60_000, 10_000, 0, False),
        ("split-cifar10", (3, 32, 32), 5, 10, 50_000, 10_000, 4, True),
        ("split-cifar100", (3, 32, 32), 10, 100, 50_000, 10_000, 4, True),
        ("split-tiny-imagenet", (3, 64, 64), 10, 200, 100_000, 10_000, 8, True),
    ],
)
def test_descriptions_need_no_data(name, shape, tasks, classes, train, test, pad, flip):
    info = streams.describe(name)
    assert (info.shape, info.tasks, info.classes) == (shape, tasks, classes)
    assert (sum(info.train_sizes), sum(info.test_sizes)) == (train, test)
    assert len(info.train_sizes) == len(info.test_sizes) == tasks
    assert (info.pad, info.flip) == (pad, flip)
    assert len(info.mean) == len(info.std) == shape[0]


def test_modules_name_the_source():
    assert "sparcl.streams.sources.cifar" in streams.modules("split-cifar10")
    assert "sparcl.streams.sources.cifar" not in streams.modules("split-digits")
    assert "sparcl.streams.layout" in streams.modules("split-digits")


def test_sizes_per_task():
    assert streams.describe("split-cifar10").train_sizes == (10_000,) * 5
    assert streams.describe("split-cifar10").test_sizes == (2_000,) * 5
    assert streams.describe("split-mnist").train_sizes == (12_665, 12_089, 11_263, 12_183, 11_800)
    assert streams.describe("split-cifar100", {"tasks": 20}).train_sizes == (2_500,) * 20
    held_out = streams.describe("split-cifar10", {"validation": 0.2})
    assert (held_out.train_sizes, held_out.test_sizes) == ((8_000,) * 5, (2_000,) * 5)


def test_the_usual_seed_gives_the_usual_class_order():
    # CIFAR-100 in the order of iCaRL, BiC, PODNet and others (seed 1993).
    assert layout.class_order(100, 1993)[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert layout.class_order(4, None) == [0, 1, 2, 3]


def test_labels_follow_the_class_order(digits_root):
    plain = streams.load("split-digits", digits_root)
    mixed = streams.load("split-digits", digits_root, {"class_order_seed": 3})
    order = np.random.RandomState(3).permutation(10).tolist()
    assert torch.equal(torch.tensor(order)[mixed.train_labels], plain.train_labels)
    assert torch.equal(torch.tensor(order)[mixed.test_labels], plain.test_labels)
    assert torch.equal(mixed.train_images, plain.train_images)
    for task in mixed.tasks:
        originals = set(plain.train_labels[task.train_index].tolist())
        assert originals == set(order[2 * task.index : 2 * task.index + 2])
    assert mixed.info.train_sizes == streams.describe("split-digits", {"class_order_seed": 3}).train_sizes
    assert mixed.info.train_sizes == tuple(len(task.train_index) for task in mixed.tasks)


@pytest.mark.parametrize("options", [{}, {"validation": 0.25}, {"class_order_seed": 1, "tasks": 10}])
def test_tasks_partition_the_images(digits_root, options):
    stream = streams.load("split-digits", digits_root, options)
    assert stream.info == streams.describe("split-digits", options)
    width = 10 // stream.info.tasks
    for task in stream.tasks:
        assert task.classes == range(task.index * width, (task.index + 1) * width)
        for labels, rows in ((stream.train_labels, task.train_index), (stream.test_labels, task.test_index)):
            assert rows.dtype == torch.int64
            assert set(labels[rows].tolist()) == set(task.classes)
            assert (rows.diff() > 0).all()
    rows = torch.cat([task.train_index for task in stream.tasks])
    held = torch.cat([task.test_index for task in stream.tasks])
    assert len(rows.unique()) == len(rows)
    if "validation" in options:
        assert not set(rows.tolist()) & set(held.tolist())
        assert len(rows) + len(held) == 1438
        assert stream.test_images is stream.train_images
    else:
        assert (len(rows), len(held)) == (1438, 359)


def test_the_digits_split_is_stratified_disjoint_and_complete(digits_root):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    stream = streams.load("split-digits", digits_root)
    found = torch.cat([stream.train_images, stream.test_images]).reshape(1797, 64).numpy()
    assert sorted(map(bytes, found)) == sorted(map(bytes, images.astype(np.uint8)))
    counts = np.bincount(labels)
    assert torch.bincount(stream.test_labels).tolist() == [round(0.2 * count) for count in counts]
    pixels = stream.train_images.double() / 16
    assert stream.info.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-4)
    assert stream.info.std[0] == pytest.approx(pixels.std().item(), abs=1e-4)


def test_held_out_images_do_not_depend_on_class_order_or_tasks(digits_root):
    def held_out(options):
        stream = streams.load("split-digits", digits_root, {"validation": 0.2, **options})
        return set(torch.cat([task.test_index for task in stream.tasks]).tolist())

    assert held_out({}) == held_out({"class_order_seed": 5}) == held_out({"tasks": 2})
    assert held_out({}) < held_out({"validation": 0.4})


def rows_of(stream, part="train_index"):
    return set(torch.cat([getattr(task, part) for task in stream.tasks]).tolist())


@pytest.mark.parametrize("name", ["split-cifar10", "split-mnist", "split-cifar100", "split-tiny-imagenet"])
def test_few_images_are_described_without_data(name):
    whole, few = streams.describe(name), streams.describe(name, {"train_per_class": 400})
    assert few.train_sizes == (400 * whole.classes // whole.tasks,) * whole.tasks
    assert few.test_sizes == whole.test_sizes
    held_out = streams.describe(name, {"train_per_class": 400, "validation": 0.25})
    per_task = whole.classes // whole.tasks
    assert held_out.train_sizes == (300 * per_task,) * whole.tasks
    assert held_out.test_sizes == (100 * per_task,) * whole.tasks


def test_few_images_of_each_class(digits_root):
    options = {"train_per_class": 20}
    stream = streams.load("split-digits", digits_root, options)
    assert stream.info == streams.describe("split-digits", options)
    rows = torch.cat([task.train_index for task in stream.tasks])
    assert torch.bincount(stream.train_labels[rows]).tolist() == [20] * 10
    assert sum(len(task.test_index) for task in stream.tasks) == 359
    # By hand: class 0 of the training images, in the order of the fixed permutation.
    zeros = np.flatnonzero(stream.train_labels.numpy() == 0)
    chosen = zeros[np.random.RandomState([20221128, 0]).permutation(142)[:20]]
    assert set(chosen.tolist()) == rows_of(stream) & set(zeros.tolist())
    assert set(chosen.tolist()) != set(zeros[:20].tolist())


def test_which_images_are_kept_depends_on_their_number_alone(digits_root):
    def load(**options):
        return streams.load("split-digits", digits_root, options)

    few = rows_of(load(train_per_class=20))
    assert few == rows_of(load(train_per_class=20, class_order_seed=5)) == rows_of(load(train_per_class=20, tasks=2))
    assert few < rows_of(load(train_per_class=30))
    digests = {load(**options).digest for options in ({}, {"train_per_class": 20}, {"train_per_class": 21})}
    assert len(digests) == 3


def test_images_are_held_out_of_the_few(digits_root):
    options = {"train_per_class": 20, "validation": 0.25}
    stream = streams.load("split-digits", digits_root, options)
    assert stream.info == streams.describe("split-digits", options)
    kept, held = rows_of(stream), rows_of(stream, "test_index")
    assert not kept & held
    assert kept | held == rows_of(streams.load("split-digits", digits_root, {"train_per_class": 20}))
    for rows, count in ((kept, 15), (held, 5)):
        assert torch.bincount(stream.train_labels[sorted(rows)]).tolist() == [count] * 10


def test_a_class_with_too_few_images_is_named():
    assert streams.describe("split-digits", {"train_per_class": 139}).train_sizes == (278,) * 5
    with pytest.raises(UserError) as caught:
        streams.describe("split-digits", {"train_per_class": 140})
    assert str(caught.value) == (
        "stream_options.train_per_class: expected at most 139, the training images of class 8 of split-digits, got 140"
    )


@given(
    counts=st.lists(st.integers(2, 9), min_size=2, max_size=8),
    fraction=st.floats(0.01, 0.99),
    seed=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_any_data_set_is_cut_into_whole_tasks(counts, fraction, seed, data):
    classes = len(counts)
    tasks = data.draw(st.sampled_from([k for k in range(1, classes + 1) if classes % k == 0]))
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), counts))
    pixels = np.zeros((len(labels), 1, 1, 1), np.uint8)
    facts = Facts("x", (1, 1, 1), tuple(counts), tuple(counts), 1, (0.0,), (1.0,))
    options = {"tasks": tasks, "validation": fraction} | ({} if seed is None else {"class_order_seed": seed})
    stream = layout.assemble("x", facts, options, Images(pixels, labels, pixels, labels, "digest"))
    assert stream.info == layout.info("x", facts, options)
    rows = torch.cat([part for task in stream.tasks for part in (task.train_index, task.test_index)])
    assert sorted(rows.tolist()) == list(range(len(labels)))
    held = torch.cat([stream.test_labels[task.test_index] for task in stream.tasks]).bincount(minlength=classes)
    order = layout.class_order(classes, seed)
    for label, count in enumerate(counts):
        expected = min(max(int(fraction * count + 0.5), 1), count - 1)
        assert held[order.index(label)] == expected


def test_the_digest_covers_pixels_labels_and_layout():
    facts = Facts("x", (1, 1, 1), (3, 3), (3, 3), 2, (0.0,), (1.0,))
    labels, pixels = np.array([0, 1, 0, 1, 0, 1]), np.zeros((6, 1, 1, 1), np.uint8)
    images = Images(pixels, labels, pixels, labels, "content")

    def digest(images=images, **options):
        return layout.assemble("x", facts, options, images).digest

    assert layout.assemble("y", replace(facts, label="Y"), {}, images).digest == digest()
    digests = [
        digest(),
        layout.assemble("x", replace(facts, mean=(0.1,)), {}, images).digest,
        layout.assemble("x", replace(facts, flip=True), {}, images).digest,
        digest(replace(images, digest="other")),
        digest(tasks=1),
        digest(class_order_seed=1),
        digest(validation=0.3),
        digest(validation=0.6),
    ]
    assert digest() == digests[0]
    assert layout.class_order(2, 1) == [
        0,
        1,
    ]  # so that this seed changes nothing, and neither does the digest
    assert digests.pop(5) == digests[0]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("split-cifar", None, ["stream", "'split-cifar'", "did you mean 'split-cifar10'"]),
        (3, None, ["stream", "3"]),
        ("split-digits", {"task": 5}, ["'task'", "did you mean 'tasks'"]),
        ("split-digits", {"path": "x"}, ["'path'", "split-digits"]),
        ("split-digits", {"tasks": 3}, ["stream_options.tasks", "3 does not divide", "10", "1, 2, 5, 10"]),
        ("split-digits", {"tasks": 0}, ["stream_options.tasks", "0"]),
        ("split-digits", {"tasks": True}, ["stream_options.tasks", "True"]),
        ("split-digits", {"tasks": "5"}, ["stream_options.tasks", "'5'"]),
        ("split-digits", {"validation": 1.0}, ["stream_options.validation", "1.0"]),
        ("split-digits", {"validation": 0}, ["stream_options.validation", "0"]),
        ("split-digits", {"validation": float("nan")}, ["stream_options.validation", "nan"]),
        ("split-digits", {"train_per_class": 0}, ["stream_options.train_per_class", "0"]),
        ("split-digits", {"train_per_class": 2.5}, ["stream_options.train_per_class", "2.5"]),
        ("split-digits", {"train_per_class": 1, "validation": 0.5}, ["stream_options.validation", "at least 2"]),
        ("split-digits", {"class_order_seed": -1}, ["stream_options.class_order_seed", "-1"]),
        ("split-digits", {"class_order_seed": 2**32}, ["stream_options.class_order_seed"]),
        ("split-digits", [1], ["stream_options", "mapping"]),
        ("folder", {}, ["stream_options.path"]),
        ("folder", {"path": "nowhere"}, ["nowhere", "train/<class>"]),
        ("folder", {"path": "x" * 5000}, ["no such folder"]),
        ("folder", {"path": "a\nb"}, ["stream_options.path"]),
        ("folder", {"path": "\ud800"}, ["stream_options.path"]),
        ("folder", {"path": ".", "size": 4}, ["stream_options.size", "4"]),
        ("folder", {"path": ".", "flip": 1}, ["stream_options.flip", "1"]),
    ],
)
def test_bad_input_is_one_line_that_names_the_key(name, options, words):
    with pytest.raises(UserError) as caught:
        streams.describe(name, options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_an_option_of_none_is_not_set():
    assert streams.describe("split-digits", {"tasks": None}) == streams.describe("split-digits")


def test_a_class_of_one_image_cannot_be_divided():
    with pytest.raises(UserError, match="at least 2"):
        layout.held_out_count(1, 0.5)
    assert [layout.held_out_count(10, fraction) for fraction in (0.01, 0.25, 0.2, 0.99)] == [1, 3, 2, 9]
