"""Memory that one training step takes, in bytes, from counts: the suite's rule.

* Values are float32, 4 bytes; a pruned weight and a masked gradient take no room for their value.
* Where the zeros are must be stored too: per pruned layer a bitmap (one bit per position) or int32 positions of what
  is left, whichever is smaller; the same for a gradient mask within the weights that are left.
* Activations are the tensors that autograd keeps for the backward pass of all images of one step, replayed ones too.
* The replay memory is counted as it is kept: uint8 images, int64 labels and task numbers, float32 logits.
* What optimizer, learner and policies remember between steps (momentum, importance, counters, copies of the model)
  stands together under ``optimizer``; plain SGD adds nothing.

The plan knows shapes, the record what a run held; neither holds the result, so a corrected rule changes tables only.
:func:`stored` is of the trained model on disk.
"""

from __future__ import annotations

from collections.abc import Iterable

FLOAT = 4
INDEX = 4


def suite(
    dense_parameters: int,
    buffers: int,
    layers: Iterable[tuple[int, int, int]],
    activations: int,
    replay_memory: int,
    state: int,
    frozen: int = 0,
) -> dict[str, int]:
    """Return the bytes that one training step needs, by what they hold.

    Args:
        dense_parameters: number of parameters that no mask covers.
        buffers: bytes of the model's buffers (running statistics).
        layers: per masked layer its size, the weights that are left, and those of them that receive a gradient.
        activations: bytes kept for the backward pass of all images of one step.
        replay_memory: bytes of the replay memory.
        state: bytes beside weights and gradients (momentum, importance, a copy of the model).
        frozen: how many of ``dense_parameters`` receive no gradient.

    Returns:
        ``weights``, ``indices``, ``gradients``, ``activations``, ``replay_memory``, ``optimizer``, ``total``.
    """
    weights, indices, gradients = FLOAT * dense_parameters + buffers, 0, FLOAT * (dense_parameters - frozen)
    for size, left, learning in layers:
        weights += FLOAT * left
        gradients += FLOAT * learning
        indices += index_bytes(size, left) + index_bytes(left, learning)
    parts = {
        "weights": weights,
        "indices": indices,
        "gradients": gradients,
        "activations": activations,
        "replay_memory": replay_memory,
        "optimizer": state,
    }
    return parts | {"total": sum(parts.values())}


def stored(dense_parameters: int, buffers: int, layers: Iterable[tuple[int, int]]) -> dict[str, int]:
    """Return the bytes of a trained model's tensors on disk: ``dense``, and ``sparse`` as a model file stores them.

    A model file (:mod:`sparcl.running.model_file`) keeps of a layer with a mask the values that are left and a bitmap.

    Args:
        dense_parameters: number of parameters that no mask covers.
        buffers: bytes of the model's buffers (running statistics).
        layers: per masked layer its size and the weights that are left.
    """
    dense = sparse = FLOAT * dense_parameters + buffers
    for size, left in layers:
        dense += FLOAT * size
        sparse += FLOAT * left + ((size + 7) // 8 if left < size else 0)
    return {"dense": dense, "sparse": sparse}


def index_bytes(size: int, left: int) -> int:
    """Return the bytes that say which ``left`` of ``size`` positions are kept, as bitmap or int32 positions."""
    if left >= size:
        return 0
    return min((size + 7) // 8, INDEX * left)
