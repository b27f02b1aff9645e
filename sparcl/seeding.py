"""Named random streams: every draw of a run comes from a generator that its seed and its purpose determine.

Two purposes never share a generator, so a policy that draws more numbers does not shift anybody else's draws:
methods compared under one seed see the same data order, the same augmentation and the same initial weights.
"""

from __future__ import annotations

import hashlib

import torch


def key(seed: int, *names: str | int) -> int:
    """Return the 63-bit integer that ``seed`` and the purpose ``names`` determine (SHA-256, not ``hash``)."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a fresh CPU generator for the purpose ``names`` of the run with this ``seed``."""
    return torch.Generator(device="cpu").manual_seed(key(seed, *names))
