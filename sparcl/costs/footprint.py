"""Memory that training a model takes, in bytes, counted in two ways: as this suite trains, and as published.

Conventions of :func:`suite`:

* values are float32, 4 bytes; a pruned weight and a masked gradient take no room for their value;
* where the zeros are must be stored too: per pruned layer a bitmap (one bit per position) or int32 positions
  of what is left, whichever is smaller; the same for a gradient mask within the weights that are left;
* activations are the tensors that autograd keeps from the forward pass for the backward pass, each storage
  once and parameters left out, for all images of one training step, replayed ones too;
* the replay memory is counted as it is kept: uint8 images, int64 labels and task numbers, float32 logits, for
  every method that has one;
* the optimizer's momentum and what learner and policies remember between steps (importance, counters, copies
  of the model) stand together under ``optimizer``; plain SGD adds nothing.

:func:`paper` is the published convention, in its two variants.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from sparcl.trainer import Run

FLOAT = 4
INDEX = 4


def suite(
    model: nn.Module,
    shape: tuple[int, int, int],
    images: int,
    weight_counts: Mapping[str, int] | None = None,
    gradient_counts: Mapping[str, int] | None = None,
    replay_memory: int = 0,
    optimizer: int = 0,
) -> dict[str, int]:
    """Bytes that one training step needs, by what they hold.

    Args:
        model: the network; it is not changed.
        shape: ``(C, H, W)`` of an image.
        images: images of one step, replayed ones included.
        weight_counts: weights left, by parameter name; parameters that are not named are dense.
        gradient_counts: weights with a gradient, by parameter name; as ``weight_counts`` where not named.
        replay_memory: bytes of the replay memory.
        optimizer: bytes of state beside weights and gradients (momentum, importance, a copy of the model).

    Returns:
        ``weights``, ``indices``, ``gradients``, ``activations``, ``replay_memory``, ``optimizer``, ``total``.
    """
    weights = indices = gradients = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        left = (weight_counts or {}).get(name, size)
        learning = (gradient_counts or {}).get(name, left)
        weights += FLOAT * left
        gradients += FLOAT * learning
        indices += index_bytes(size, left) + index_bytes(left, learning)
    weights += sum(value.numel() * value.element_size() for value in model.buffers())
    parts = {
        "weights": weights,
        "indices": indices,
        "gradients": gradients,
        "activations": saved_bytes(model, shape, images),
        "replay_memory": replay_memory,
        "optimizer": optimizer,
    }
    return parts | {"total": sum(parts.values())}


def index_bytes(size: int, left: int) -> int:
    """Bytes that say which ``left`` of ``size`` positions are kept, as bitmap or int32 positions."""
    if left >= size:
        return 0
    return min((size + 7) // 8, INDEX * left)


def saved_bytes(model: nn.Module, shape: tuple[int, int, int], images: int) -> int:
    """Bytes of activations that autograd keeps for the backward pass of ``images`` images, in training mode.

    Counted from a forward pass without data: tensors saved by any operation, each storage once, without
    parameters and buffers. The logits and what the loss saves are not included.
    """
    shadow = copy.deepcopy(model).to("meta").train()
    own = {_storage(value) for value in (*shadow.parameters(), *shadow.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> None:
        """Note a saved tensor's storage: a tensor would hold the graph, which holds this function, for good."""
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        shadow(torch.empty(images, *shape, device="meta"))
    return sum(storage.nbytes() for storage in kept.values())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def convolution_outputs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Numbers that the convolutions of ``model`` put out for one image, shortcuts included."""
    shadow = copy.deepcopy(model).to("meta").eval()
    total = 0

    def add(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    for module in shadow.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    with torch.no_grad():
        shadow(torch.empty(1, *shape, device="meta"))
    return total


def paper(
    model: nn.Module,
    shape: tuple[int, int, int],
    batch_size: int,
    weight_sparsity: float = 0.0,
    gradient_sparsity: float | None = None,
) -> dict[str, float]:
    """Bytes by the published convention (SparCL, Wang et al. 2022; inferred from its figures).

    ``P ((1 - s) + (1 - g)) + k A`` with ``P`` the bytes of all parameters, every layer taken as sparse, and
    ``A`` the bytes of the convolution outputs of one batch. The ablation table counts activations and their
    gradients (``k = 2``), the savings on the phone activations alone (``k = 1``). Index storage, replayed
    batches and the memory are left out.

    Args:
        model: the network; it is not changed.
        shape: ``(C, H, W)`` of an image.
        batch_size: images of a stream batch.
        weight_sparsity: ``s`` in [0, 1).
        gradient_sparsity: ``g``; as ``weight_sparsity`` if None.

    Returns:
        ``ablation_table`` and ``phone``.
    """
    if gradient_sparsity is None:
        gradient_sparsity = weight_sparsity
    parameters = FLOAT * sum(parameter.numel() for parameter in model.parameters())
    values = parameters * ((1 - weight_sparsity) + (1 - gradient_sparsity))
    activations = FLOAT * convolution_outputs(model, shape) * batch_size
    return {"ablation_table": values + 2 * activations, "phone": values + activations}


def suite_of(run: Run) -> dict[str, int]:
    """:func:`suite` of a run, with its masks as they are now and a step as large as its learner's."""
    images = run.learner.images_at_once(run.cell, run.protocol)
    momentum = sum(p.numel() * p.element_size() for p in run.model.parameters()) if run.protocol.momentum else 0
    remembered = tensor_bytes([run.learner.state(), *(policy.state() for policy in run.policies)])
    return suite(
        run.model,
        run.info.shape,
        images,
        run.masks.counts(),
        run.masks.gradient_counts(),
        replay_memory=tensor_bytes(run.memory.state()),
        optimizer=momentum + remembered + run.learner.held_bytes(run),
    )


def paper_of(run: Run) -> dict[str, float]:
    """:func:`paper` of a run, from its settings alone."""
    sparsity = run.cell.sparsity
    gradient = run.cell.params.get("dgm.sparsity", sparsity)
    return paper(run.model, run.info.shape, run.cell.batch_size, sparsity, gradient)


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in nested mappings and sequences."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(tensor_bytes(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(tensor_bytes(value) for value in state)
    return 0
