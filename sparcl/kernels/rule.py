"""Which kernel a network runs: a fixed rule of its layers' shapes and its density, never of a measurement.

What a training step costs for an image was measured once, with one thread and AVX-512 (docs/kernels.md), and is told
well by two terms: multiply-adds (forward, input gradient and weight gradient together) and output pixels, which pay for
normalization and for moving them through memory. A choice by timing would make results depend on the machine's mood;
other machines run the same rule, at worst a little slower than they could.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

KERNELS = ("auto", "dense", "sparse")

DENSE_MULTIPLY_ADD, DENSE_PIXEL = 0.014, 14.0
SPARSE_MULTIPLY_ADD, SPARSE_PIXEL = 0.017, 7.5
"""Nanoseconds of a training step for one multiply-add that is done, and for one output pixel of a channel."""


@dataclass(frozen=True)
class Shape:
    """A convolution: channels, side of its kernel, rows and columns of its output, whether masks prune it."""

    inputs: int
    outputs: int
    kernel: int
    rows: int
    columns: int
    maskable: bool

    @property
    def pixels(self) -> int:
        return self.outputs * self.rows * self.columns

    @property
    def multiply_adds(self) -> int:
        """Of a dense training step for an image: forward, input gradient and weight gradient."""
        return 3 * self.pixels * self.inputs * self.kernel**2


def dense_cost(shapes: Iterable[Shape]) -> float:
    """Return the estimated nanoseconds of a training step for an image with the dense kernel."""
    return sum(DENSE_MULTIPLY_ADD * s.multiply_adds + DENSE_PIXEL * s.pixels for s in shapes)


def sparse_cost(shapes: Iterable[Shape], density: float) -> float:
    """Return the estimated nanoseconds with the sparse kernel, maskable layers having that density."""
    return sum(
        SPARSE_MULTIPLY_ADD * s.multiply_adds * (density if s.maskable else 1) + SPARSE_PIXEL * s.pixels for s in shapes
    )


def resolve(kernel: str, shapes: Iterable[Shape] | None, density: float, precision: str, device: str) -> str:
    """Return "dense" or "sparse" for a cell's ``kernel``.

    Args:
        kernel: one of :data:`KERNELS`.
        shapes: the network's convolutions, None for a network that the sparse kernel does not know.
        density: fraction of the maskable weights that exist.
        precision: of the cell; the sparse kernel computes in float32.
        device: of the cell; the sparse kernel runs on the CPU.

    Raises:
        ValueError: "sparse" where it cannot run, in words for the user.
    """
    reason = (
        "it runs on the CPU" if device != "cpu"
        else "it computes in float32" if precision != "float32"
        else "it does not know this network" if shapes is None
        else None
    )  # fmt: skip
    if kernel == "sparse" and reason:
        raise ValueError(f"kernel: the sparse kernel cannot run here: {reason}")
    if kernel != "auto":
        return kernel
    if reason or shapes is None:
        return "dense"
    shapes = list(shapes)
    return "sparse" if sparse_cost(shapes, density) < dense_cost(shapes) else "dense"
