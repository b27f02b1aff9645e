"""Activations of a model, in two counts: what autograd keeps (bytes), and what convolutions put out (numbers).

What else memory is made of needs no model (:mod:`sparcl.costs.memory`); the published count of memory is
:func:`sparcl.costs.convention.paper_memory`.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def saved_bytes(model: nn.Module, shape: tuple[int, int, int], images: int) -> int:
    """Bytes of activations that autograd keeps for the backward pass of ``images`` images, in training mode.

    Counted from forward passes of two and of three images, whose difference is what an image takes: tensors saved by
    any operation, each storage once, without parameters and buffers. The logits and what the loss saves are not
    included.
    """
    two, three = _saved(model, shape, 2), _saved(model, shape, 3)
    return two + (images - 2) * (three - two)


def _saved(model: nn.Module, shape: tuple[int, int, int], images: int) -> int:
    shadow = copy.deepcopy(model).train()
    own = {_storage(value) for value in (*shadow.parameters(), *shadow.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> None:
        """Note a saved tensor's storage: a tensor would hold the graph, which holds this function, for good."""
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        shadow(torch.zeros(images, *shape))
    return sum(storage.nbytes() for storage in kept.values())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def convolution_outputs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Numbers that the convolutions of ``model`` put out for one image, shortcuts included."""
    shadow = copy.deepcopy(model).eval()
    total = 0

    def add(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    for module in shadow.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    with torch.no_grad():
        shadow(torch.zeros(1, *shape))
    return total
