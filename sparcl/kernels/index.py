"""Indices of masks: the lists of existing weights that the loops walk."""

from __future__ import annotations

import ctypes
import weakref

from torch import Tensor

from sparcl.errors import RunError
from sparcl.kernels import library


class Index:
    """The existing weights of one convolution, by chunk of input channels and output channel.

    Attributes:
        count: existing weights.
        handle: number that stands for this object in calls of operators.
        stride, rows, columns: of the convolution and its input.
        pointer: address of the C structure; valid as long as this object.
    """

    def __init__(
        self, mask: Tensor | None, weight: Tensor, stride: int, rows: int, columns: int, backward: bool = True
    ):
        """Index ``mask``.

        Args:
            mask: bool, the weight's shape; None: every weight exists.
            weight: (outputs, inputs, k, k), k being 1 or 3; its strides say where a weight is in memory.
            stride: of the convolution; its padding is ``k // 2``.
            rows, columns: of the input.
            backward: whether to index the gradient of the input, too.

        Raises:
            RunError: not enough memory.
        """
        loops = library.require()
        outputs, inputs, kernel, width = weight.shape
        if kernel != width or kernel not in (1, 3) or stride not in (1, 2):
            raise ValueError(f"expected a 1x1 or 3x3 convolution with stride 1 or 2, got {kernel}x{width}, {stride}")
        if mask is not None and mask.shape != weight.shape:
            raise ValueError(f"expected a mask of shape {tuple(weight.shape)}, got {tuple(mask.shape)}")
        four = ctypes.c_int64 * 4
        structure = loops.index_new(
            None if mask is None else mask.data_ptr(), four(*(weight if mask is None else mask).stride()),
            four(*weight.stride()), outputs, inputs, kernel, stride, rows, columns, int(backward),
        )  # fmt: skip
        if not structure:
            raise RunError("the indices of a mask do not fit into memory")
        self.pointer: int = ctypes.addressof(structure.contents)
        self.count: int = structure.contents.count
        self.stride, self.rows, self.columns, self.backward = stride, rows, columns, backward
        self.handle = id(self)
        _indices[self.handle] = self
        self.instruction_set = library.instruction_set()
        weakref.finalize(self, loops.index_free, self.pointer).atexit = False


_indices: weakref.WeakValueDictionary[int, Index] = weakref.WeakValueDictionary()


def by_handle(handle: int) -> Index:
    """Return the index with that ``handle``; the caller must have kept it alive."""
    return _indices[handle]
