"""Named random streams: pinned, independent, and never the process's own."""

from __future__ import annotations

import hashlib
from itertools import combinations

import torch

from sparcl import seeding


def test_a_key_is_the_hash_of_seed_and_purpose() -> None:
    digest = hashlib.sha256(b"3\x1forder\x1f0\x1f12").digest()
    assert seeding.key(3, "order", 0, 12) == int.from_bytes(digest[:8], "big") >> 1


def test_draws_are_pinned() -> None:
    """A change of these numbers changes every result: it must be deliberate."""
    assert torch.randint(1000, (5,), generator=seeding.generator(0, "order", 0, 0)).tolist() == [91, 586, 887, 831, 239]


def test_purposes_do_not_run_into_each_other() -> None:
    keys = {
        (seed, names): seeding.key(seed, *names)
        for seed in (0, 1, 10)
        for names in [(), ("a",), ("a", "b"), ("ab",), ("a", 1), ("a", 11), ("a", 1, 1), ("memory",), ("replay",)]
    }
    assert len(set(keys.values())) == len(keys)
    assert all(0 <= key < 2**63 for key in keys.values())


def test_streams_are_uncorrelated() -> None:
    streams = [torch.rand(4000, generator=seeding.generator(seed, "x", i)) for seed in (0, 1) for i in range(4)]
    for a, b in combinations(streams, 2):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.07


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.get_rng_state()
    first = torch.rand(3, generator=seeding.generator(5, "x"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3, generator=seeding.generator(5, "x")), first)
