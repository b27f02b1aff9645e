"""The suite's rule of training memory, by hand."""

from __future__ import annotations

from sparcl.costs import memory


def test_parts_by_hand():
    """10 dense parameters, 6 bytes of buffers; a layer of 80 weights, 40 left, 2 learning; a dense layer of 5."""
    got = memory.suite(10, 6, [(80, 40, 2), (5, 5, 5)], activations=1_000, replay_memory=300, state=20)
    assert got == {
        "weights": 4 * (10 + 40 + 5) + 6,
        "indices": 10 + 5,  # bitmaps of 80 and of 40 positions; two int32 positions would take 8
        "gradients": 4 * (10 + 2 + 5),
        "activations": 1_000,
        "replay_memory": 300,
        "optimizer": 20,
        "total": 226 + 15 + 68 + 1_000 + 300 + 20,
    }


def test_frozen_parameters_have_no_gradient():
    free, frozen = (memory.suite(10, 6, [], 0, 0, 0, frozen=count) for count in (0, 4))
    assert free["gradients"] - frozen["gradients"] == 4 * 4
    assert free["weights"] == frozen["weights"]


def test_indices_take_the_smaller_form():
    assert memory.index_bytes(80, 80) == 0
    assert memory.index_bytes(80, 40) == 10
    assert memory.index_bytes(81, 40) == 11
    assert memory.index_bytes(80, 2) == 8  # two int32 positions
    assert memory.index_bytes(80, 0) == 0
