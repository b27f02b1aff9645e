"""One convolution over existing weights as a PyTorch operator, ``sparcl::convolution``, on ordinary tensors.

Training goes through :mod:`sparcl.kernels.network`, which keeps one layout through all layers; here images are copied
into that layout and out of it again.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from sparcl.kernels import library
from sparcl.kernels.index import Index, by_handle
from sparcl.kernels.library import LANES, Layer, NetworkCall
from sparcl.kernels.memory import Areas


def convolve(images: Tensor, weight: Tensor, index: Index, gradient_index: Index | None = None) -> Tensor:
    """Return the convolution (N, C', H', W') of ``images`` (N, C, H, W) with padding k // 2, float32.

    Args:
        images: float32.
        weight: (C', C, k, k), in the memory format that the indices were made for.
        index: of the weights that exist; the others are not read.
        gradient_index: of the weights that get a gradient (the others' is 0), by default those of ``index``.
    """
    return convolution(images, weight, index.handle, (gradient_index or index).handle)


@torch.library.custom_op("sparcl::convolution", mutates_args=(), device_types="cpu")
def convolution(images: Tensor, weight: Tensor, index: int, gradient_index: int) -> Tensor:
    """See :func:`convolve`; the indices by their handles."""
    call = _Call(weight, len(images), by_handle(index), by_handle(gradient_index))
    call.put(images, call.layer.inputs, call.layer.in_rows, call.layer.in_columns, "images")
    library.require().convolution_forward(call.structure)
    return call.get("y", weight.shape[0], call.layer.rows, call.layer.columns)


@convolution.register_fake
def _(images: Tensor, weight: Tensor, index: int, gradient_index: int) -> Tensor:
    stride = by_handle(index).stride
    rows, columns = ((size - 1) // stride + 1 for size in images.shape[2:])
    return images.new_empty((len(images), weight.shape[0], rows, columns))


@torch.library.custom_op("sparcl::convolution_backward", mutates_args=(), device_types="cpu")
def convolution_backward(
    gradient: Tensor, images: Tensor, weight: Tensor, index: int, gradient_index: int, both: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``images`` (zeros unless ``both``) and ``weight``."""
    call = _Call(weight, len(images), by_handle(index), by_handle(gradient_index))
    layer = call.layer
    call.put(images, layer.inputs, layer.in_rows, layer.in_columns, "images")
    call.put(gradient, layer.outputs, layer.rows, layer.columns, "gy")
    found = torch.zeros_like(weight)
    layer.weight_gradient = found.data_ptr()
    library.require().convolution_backward(call.structure)
    if not both:
        return torch.zeros_like(images, memory_format=torch.contiguous_format), found
    return call.get("gz", layer.inputs, layer.in_rows, layer.in_columns), found


@convolution_backward.register_fake
def _(
    gradient: Tensor, images: Tensor, weight: Tensor, index: int, gradient_index: int, both: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(images, memory_format=torch.contiguous_format), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
    images, weight, ctx.index, ctx.gradient_index = inputs
    ctx.save_for_backward(images, weight)
    ctx.kept = by_handle(ctx.index), by_handle(ctx.gradient_index)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    images, weight = ctx.saved_tensors
    both = ctx.needs_input_grad[0]
    found = convolution_backward(gradient, images, weight, ctx.index, ctx.gradient_index, both)
    return found[0] if both else None, found[1] if ctx.needs_input_grad[1] else None, None, None


convolution.register_autograd(_backward, setup_context=_setup)


class _Call:
    """The C description of one convolution and the memory it works in."""

    def __init__(self, weight: Tensor, images: int, index: Index, gradient_index: Index):
        loops = library.require()
        outputs, inputs, kernel, _ = weight.shape
        self.images = images
        rows, columns = ((size - 1) // index.stride + 1 for size in (index.rows, index.columns))
        self.layer = Layer(
            source=-1, residual=-1, shortcut=-1, user=-1, inputs=inputs, outputs=outputs, kernel=kernel,
            stride=index.stride, in_rows=index.rows, in_columns=index.columns, rows=rows, columns=columns,
            index=index.pointer, gradient_index=gradient_index.pointer, weight=weight.data_ptr(),
        )  # fmt: skip
        blocks = -(-images // LANES)
        outer = blocks * outputs * (rows + 2) * (columns + 2) * LANES
        inner = blocks * inputs * (index.rows + 2) * (index.columns + 2) * LANES
        self.group = torch.zeros(blocks, dtype=torch.int32)
        self.structure = NetworkCall(
            layers=ctypes.pointer(self.layer), count=1, blocks=blocks, groups=1, threads=torch.get_num_threads(),
            group=self.group.data_ptr(),
        )  # fmt: skip
        # images and y are offsets in the saved area; the gradients of y and of the images in the work area
        self.offsets = {"images": 0, "y": inner, "gy": 0, "gz": outer}
        self.structure.images, self.layer.y = self.offsets["images"], self.offsets["y"]
        self.layer.gy, self.layer.gz = self.offsets["gy"], self.offsets["gz"]
        stride = loops.network_scratch(self.structure)
        self.areas = {
            "saved": Areas(inner + outer).take(), "work": Areas(inner + outer).take(),
            "scratch": Areas(stride * self.structure.threads).take(),
            "sums": Areas(loops.network_sums(self.structure)).take(),
            "parts": Areas(2 * loops.network_parts(self.structure)).take(),
        }  # fmt: skip
        for name, area in self.areas.items():
            setattr(self.structure, name, area.data_ptr())
        self.structure.scratch_stride = stride

    def _address(self, name: str) -> int:
        area = self.areas["saved" if name in ("images", "y") else "work"]
        return area.data_ptr() + 4 * self.offsets[name]

    def put(self, values: Tensor, channels: int, rows: int, columns: int, name: str) -> None:
        """Copy ``values`` (N, channels, rows, columns) into the loops' layout."""
        if values.shape != (self.images, channels, rows, columns):
            expected = (self.images, channels, rows, columns)
            raise ValueError(f"{name}: expected the shape {expected} of the index, got {tuple(values.shape)}")
        values = values.detach().float().contiguous()
        library.require().blocks_pack(values.data_ptr(), self._address(name), self.images, channels, rows, columns)

    def get(self, name: str, channels: int, rows: int, columns: int) -> Tensor:
        """Return (N, channels, rows, columns) out of the loops' layout."""
        values = torch.empty(self.images, channels, rows, columns)
        library.require().blocks_unpack(self._address(name), values.data_ptr(), self.images, channels, rows, columns)
        return values
