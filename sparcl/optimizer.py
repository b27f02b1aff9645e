"""Stochastic gradient descent, as all methods of the suite train.

``torch.optim.SGD`` gives the same weights bit for bit (tests/test_optimizer.py), but its first instance imports the
compiler, which takes longer than a short run; see ``docs/pipeline.md``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class SGD:
    """``m <- momentum m + g``, ``w <- w - rate m``; m starts as the first gradient. Without momentum m is g.

    Attributes:
        momenta: the buffer m of each parameter that has been stepped; empty without momentum.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, momentum: float = 0.0):
        self.parameters = list(parameters)
        self.learning_rate, self.momentum = learning_rate, momentum
        self.momenta: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self) -> None:
        """Make every gradient that exists 0."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            torch._foreach_zero_(gradients)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        pairs = [(p, p.grad) for p in self.parameters if p.grad is not None]
        if self.momentum:
            for p, gradient in pairs:
                if p in self.momenta:
                    self.momenta[p].mul_(self.momentum).add_(gradient)
                else:
                    self.momenta[p] = gradient.detach().clone()
            pairs = [(p, self.momenta[p]) for p, _ in pairs]
        if pairs:
            weights: list[Tensor] = [p for p, _ in pairs]
            torch._foreach_add_(weights, [direction for _, direction in pairs], alpha=-self.learning_rate)
