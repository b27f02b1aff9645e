"""Areas of activations that are used again: a step allocates nothing, and borders stay zero."""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor


class Areas:
    """Zeroed float areas of one size, given out as tensors and taken back when nothing holds the tensor any more."""

    def __init__(self, size: int):
        """Give out areas of ``size`` floats, aligned to 64 bytes."""
        self.size = max(size, 1)
        self._free: list[Tensor] = []
        self._view = type("Area", (ctypes.c_float * self.size,), {})

    def take(self) -> Tensor:
        """Return an area (size,): zeros at first, later what its last user left."""
        base = self._free.pop() if self._free else torch.zeros(self.size + 16)
        lease = self._view.from_address(base.data_ptr() + -base.data_ptr() % 64)
        weakref.finalize(lease, self._free.append, base).atexit = False
        return torch.frombuffer(lease, dtype=torch.float32)
