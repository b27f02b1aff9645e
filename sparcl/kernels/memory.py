"""Areas of activations that are used again: a step allocates nothing, and borders stay zero."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from typing import Any

import torch
from torch import Tensor

HUGE = 2 << 20  # bytes of a huge page: a plane of a large network has its channels on different small pages
ALIGNMENT = 64


class Areas:
    """Zeroed float areas of one size, given out as tensors and taken back when nothing holds the tensor any more."""

    def __init__(self, size: int):
        """Give out areas of ``size`` floats, aligned to 64 bytes."""
        self.size = max(size, 1)
        self._free: list[Tensor] = []
        self._view: Any = type("Area", (ctypes.c_float * self.size,), {})

    def take(self) -> Tensor:
        """Return an area (size,): zeros at first, later what its last user left."""
        base = self._free.pop() if self._free else _zeros(4 * self.size)
        lease = self._view.from_address(base.data_ptr())
        weakref.finalize(lease, self._free.append, base).atexit = False
        return torch.frombuffer(lease, dtype=torch.float32)


def _zeros(size: int) -> Tensor:
    """Return ``size`` zero bytes, on huge pages if they are many and the system has such pages."""
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        base = torch.zeros(size, dtype=torch.uint8)  # PyTorch aligns to 64 bytes; no slack that would hide an overrun
        assert base.data_ptr() % ALIGNMENT == 0
        return base
    pages = mmap.mmap(-1, size + HUGE)
    pages.madvise(mmap.MADV_HUGEPAGE)
    base = torch.frombuffer(pages, dtype=torch.uint8)
    return base[-base.data_ptr() % HUGE :][:size]


def aligned(values: Tensor) -> Tensor:
    """Return a copy of a float vector at an address that the loops accept."""
    return Areas(len(values)).take().copy_(values)
