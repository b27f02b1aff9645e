"""The rule that chooses a kernel."""

from __future__ import annotations

import warnings

import pytest
import torch

from sparcl import models
from sparcl.kernels import attach, library, rule


def shapes(name: str, width: int, shape: tuple[int, int, int]) -> list[rule.Shape]:
    found = attach.shapes_of(models.build(name, width, 10, shape, torch.Generator()))
    assert found is not None
    return found


def test_shapes_are_those_of_the_network() -> None:
    found = shapes("resnet18", 64, (3, 32, 32))
    assert len(found) == 20
    assert sum(s.multiply_adds for s in found) == 3 * 555_417_600  # He et al.'s 0.56 billion
    assert [s.maskable for s in found].count(True) == 16


@pytest.mark.parametrize(
    ("model", "density", "expected"),
    [
        (("resnet18", 64, (3, 32, 32)), 0.1, "sparse"),
        (("resnet18", 64, (3, 32, 32)), 0.5, "sparse"),
        (("resnet18", 64, (3, 32, 32)), 1.0, "dense"),
        (("resnet8", 16, (1, 8, 8)), 1.0, "sparse"),
    ],
)
def test_auto_follows_shape_and_density(model: tuple, density: float, expected: str) -> None:
    assert rule.resolve("auto", shapes(*model), density, "float32", "cpu") == expected


def test_a_named_kernel_is_the_one_that_runs() -> None:
    found = shapes("resnet8", 16, (1, 8, 8))
    assert rule.resolve("dense", found, 0.1, "float32", "cpu") == "dense"
    assert rule.resolve("sparse", found, 1.0, "float32", "cpu") == "sparse"


@pytest.mark.parametrize(
    ("precision", "device", "known", "reason"),
    [("bfloat16", "cpu", True, "float32"), ("float32", "cuda", True, "CPU"), ("float32", "cpu", False, "network")],
)
def test_where_the_sparse_kernel_cannot_run(precision: str, device: str, known: bool, reason: str) -> None:
    found = shapes("resnet8", 16, (1, 8, 8)) if known else None
    assert rule.resolve("auto", found, 0.1, precision, device) == "dense"
    with pytest.raises(ValueError, match=reason):
        rule.resolve("sparse", found, 0.1, precision, device)


def test_without_a_library_the_dense_kernel_runs_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "available", lambda: False)
    attach._say_once.cache_clear()
    model = models.build("resnet8", 4, 5, (1, 8, 8), torch.Generator())
    with pytest.warns(UserWarning, match="not compiled"):
        assert attach.attach(model, "auto", 0.9, "float32", "cpu") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attach.attach(model, "auto", 0.9, "float32", "cpu") is None
    for chosen in (attach.attach, attach.resolved):
        with pytest.raises(ValueError, match=r"it is not compiled; with a C compiler: .*, or take 'auto'"):
            chosen(model, "sparse", 0.9, "float32", "cpu")
