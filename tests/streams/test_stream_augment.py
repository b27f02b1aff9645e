"""Augmentation against an image-by-image reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sparcl import seeding, streams
from sparcl.streams import augment

INFO = streams.describe("split-cifar10")
DIGITS = streams.describe("split-digits")


def image_batch(n, info, seed=0):
    return torch.randint(0, 256, (n, *info.shape), dtype=torch.uint8, generator=seeding.generator(seed, "batch"))


def one_by_one(images, draws, info):
    """Crop and mirror as torchvision does, one image at a time, by padding and slicing."""
    height, width = images.shape[-2:]
    results = []
    for image, (dy, dx, flip) in zip(images, draws.tolist(), strict=True):
        padded = functional.pad(image, (info.pad,) * 4)
        crop = padded[:, dy : dy + height, dx : dx + width]
        results.append(crop.flip(-1) if flip else crop)
    return torch.stack(results)


@given(
    n=st.integers(1, 6),
    shape=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    pad=st.integers(0, 4),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_apply_equals_padding_and_slicing_each_image(n, shape, pad, flip, seed):
    info = replace(INFO, shape=shape, pad=pad, flip=flip)
    images = image_batch(n, info, seed)
    draws = augment.draw(n, info, seeding.generator(seed, "draws"))
    result = augment.apply(images, draws, info)
    assert result.dtype == torch.uint8
    assert torch.equal(result, one_by_one(images, draws, info))


def test_apply_by_hand():
    info = replace(INFO, shape=(1, 2, 2), pad=1, flip=True)
    images = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8).repeat(4, 1, 1, 1)
    draws = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [2, 1, 1]])
    assert augment.apply(images, draws, info)[:, 0].tolist() == [
        [[1, 2], [3, 4]],
        [[2, 1], [4, 3]],
        [[0, 0], [0, 1]],
        [[4, 3], [0, 0]],
    ]


def test_apply_leaves_its_input_alone():
    images = image_batch(8, INFO)
    before = images.clone()
    augment.apply(images, augment.draw(8, INFO, seeding.generator(1, "x")), INFO)
    assert torch.equal(images, before)


def test_draws_are_uniform_and_independent():
    n, values = 27_000, 2 * INFO.pad + 1
    draws = augment.draw(n, INFO, seeding.generator(3, "augmentation"))
    assert draws.shape == (n, 3)
    assert draws.dtype == torch.int64
    for column in (0, 1):  # binomial(27000, 1/9): mean 3000, standard deviation 51.6
        assert (torch.bincount(draws[:, column], minlength=values) - n / values).abs().max() < 5 * 51.6
    assert abs(draws[:, 2].sum().item() - n / 2) < 5 * 82.2
    together = draws[:, 0] * values + draws[:, 1]  # mean 333.3, standard deviation 18.1
    assert (torch.bincount(together, minlength=values**2) - n / values**2).abs().max() < 5.5 * 18.1


def test_draws_come_from_the_generator_alone():
    first = augment.draw(16, INFO, seeding.generator(5, "augmentation"))
    torch.manual_seed(0)
    assert torch.equal(first, augment.draw(16, INFO, seeding.generator(5, "augmentation")))
    assert not torch.equal(first, augment.draw(16, INFO, seeding.generator(6, "augmentation")))


def test_a_stream_without_augmentation_draws_zeros():
    draws = augment.draw(5, DIGITS, seeding.generator(0, "x"))
    assert draws.tolist() == [[0, 0, 0]] * 5
    images = image_batch(5, DIGITS)
    assert torch.equal(augment.apply(images, draws, DIGITS), images)


def test_normalize_by_hand():
    info = replace(INFO, shape=(3, 1, 1), mean=(0.5, 0.0, 0.2), std=(0.25, 1.0, 0.5))
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    assert augment.normalize(images, info).flatten().tolist() == pytest.approx([-2.0, 1.0, 0.0])
    digits = augment.normalize(
        torch.tensor([[[[16, 0]]]], dtype=torch.uint8), replace(DIGITS, mean=(0.5,), std=(0.25,))
    )
    assert digits.flatten().tolist() == [2.0, -2.0]


def test_normalize_equals_torchvision():
    transforms = pytest.importorskip("torchvision.transforms.functional")
    images = image_batch(4, INFO)
    result = augment.normalize(images, INFO)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = transforms.normalize(images.float() / 255, INFO.mean, INFO.std)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_the_border_is_black_before_normalization():
    info = replace(INFO, flip=False)
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    result = augment.normalize(augment.apply(images, torch.tensor([[0, 0, 0]]), info), info)
    assert result[0, :, 0, 0].tolist() == pytest.approx([-m / s for m, s in zip(info.mean, info.std, strict=True)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_sees_the_same_images():
    images, draws = image_batch(64, INFO), augment.draw(64, INFO, seeding.generator(2, "x"))
    expected = augment.apply(images, draws, INFO)
    result = augment.apply(images.cuda(), draws, INFO)
    assert torch.equal(result.cpu(), expected)
    torch.testing.assert_close(augment.normalize(result, INFO).cpu(), augment.normalize(expected, INFO))
