"""Masks: which weights exist, and which of them learn.

The decisions are pure functions on tensors with exact counts (:func:`keep_count`, :func:`allocate`,
:func:`top_k`, :func:`random_k`); :class:`MaskSet` is the one place that makes a weight zero.
A masked weight is exactly 0 at every moment between two training steps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

Density = Literal["masked", "weights", "dense"]
"""At which weights a gradient is computed: those that learn, all that exist, or all positions."""
DENSITIES: tuple[Density, ...] = ("masked", "weights", "dense")
"""From few to all."""


@functools.lru_cache(4096)
def keep_count(size: int, sparsity: float) -> int:
    """Return ``round((1 - sparsity) * size)``, computed in exact decimal arithmetic (ties to even)."""
    return round(size * (1 - Fraction(str(float(sparsity)))))


def allocate(shapes: Mapping[str, torch.Size], sparsity: float, distribution: str = "uniform") -> dict[str, int]:
    """Return how many weights each layer keeps at a global ``sparsity``.

    ``uniform`` keeps the same fraction in every layer. ``erk`` (Erdos-Renyi-Kernel; Evci et al. 2020, section 3)
    makes a layer's density proportional to ``sum(shape) / prod(shape)``; layers that would exceed density 1 become
    dense and the factor is solved again for the others. The largest layers absorb the rounding, so that the total
    is exactly ``keep_count(total, sparsity)`` for ``erk``.
    """
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    if distribution == "uniform":
        return {name: keep_count(size, sparsity) for name, size in sizes.items()}
    if distribution != "erk":
        raise ValueError(f"distribution: expected 'uniform' or 'erk', got {distribution!r}")
    budget = keep_count(sum(sizes.values()), sparsity)
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        free = budget - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in sizes if name not in dense)
        factor = free / weight if weight else 0.0
        exceeding = {name for name in sizes if name not in dense and factor * raw[name] > 1}
        if not exceeding:
            break
        dense |= exceeding
    counts = {
        name: sizes[name] if name in dense else min(sizes[name], round(factor * raw[name] * sizes[name]))
        for name in sizes
    }
    difference = budget - sum(counts.values())
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        change = max(-counts[name], min(sizes[name] - counts[name], difference))
        counts[name] += change
        difference -= change
    return counts


def top_k(score: Tensor, k: int, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
    """Return the bool mask of exactly the ``k`` largest entries of ``score``, ties broken by ``generator``.

    Args:
        score: any shape, finite.
        k: how many entries to select; ``0 <= k <=`` number of candidates.
        generator: CPU generator; used only when a tie must be broken.
        among: bool mask of the candidates (same shape); all entries by default.
    """
    flat = score.detach().reshape(-1).float()
    candidates = torch.ones_like(flat, dtype=torch.bool) if among is None else among.reshape(-1)
    available = int(candidates.sum())
    if not 0 <= k <= available:
        raise ValueError(f"k: expected 0 <= k <= {available}, got {k}")
    if k == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if k == available:
        return candidates.reshape(score.shape).clone()
    flat = torch.where(candidates, flat, torch.full_like(flat, -torch.inf))
    threshold = torch.topk(flat, k, sorted=False).values.min()
    chosen = flat > threshold
    missing = k - int(chosen.sum())
    tied = ((flat == threshold) & candidates).nonzero().reshape(-1)
    if missing < len(tied):
        tied = tied[torch.randperm(len(tied), generator=generator)[:missing].to(tied.device)]
    chosen[tied] = True
    return chosen.reshape(score.shape)


def random_k(among: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return the bool mask of ``k`` entries drawn uniformly, without replacement, from the mask ``among``."""
    places = among.reshape(-1).nonzero().reshape(-1)
    if not 0 <= k <= len(places):
        raise ValueError(f"k: expected 0 <= k <= {len(places)}, got {k}")
    chosen = torch.zeros(among.numel(), dtype=torch.bool, device=among.device)
    chosen[places[torch.randperm(len(places), generator=generator)[:k].to(places.device)]] = True
    return chosen.reshape(among.shape)


def smallest_k(score: Tensor, k: int, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
    """Return the bool mask of exactly the ``k`` smallest entries of ``score`` (see :func:`top_k`)."""
    return top_k(-score.detach().float(), k, generator, among)


@dataclass(frozen=True)
class Churn:
    """How many weights a mask update removed and added."""

    pruned: int
    grown: int


class MaskSet:
    """The masks of a run's maskable weights, with exact counts.

    Attributes:
        parameters: maskable weights by name, in model order.
        momenta: the optimizer's momentum by parameter, which follows the masks.
        weight: bool mask per name: True where the weight exists.
        gradient: bool mask per name, True where the weight learns, or None where every existing weight learns.
        version: grows with every change, so that others can tell when to look again.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.parameters = dict(parameters)
        self.weight = {n: torch.ones_like(p, dtype=torch.bool) for n, p in self.parameters.items()}
        self.gradient: dict[str, Tensor] | None = None
        self.momenta: Mapping[nn.Parameter, Tensor] = {}
        self.version = 0
        self._refresh()

    # -- what there is ---------------------------------------------------------------------------------------------
    @property
    def names(self) -> list[str]:
        return list(self.parameters)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: parameter.shape for name, parameter in self.parameters.items()}

    def size(self) -> int:
        """Return the number of maskable weights, masked or not."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def counts(self) -> dict[str, int]:
        """Return the number of existing weights per layer."""
        return dict(self._counts)

    def gradient_counts(self) -> dict[str, int]:
        """Return the number of learning weights per layer."""
        return dict(self._gradient_counts)

    def density(self) -> float:
        """Return the fraction of maskable weights that exist."""
        return sum(self._counts.values()) / self.size() if self.parameters else 1.0

    def gradient_density(self) -> float:
        """Return the fraction of maskable weights that learn."""
        return sum(self._gradient_counts.values()) / self.size() if self.parameters else 1.0

    # -- changes ---------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def replace(self, masks: Mapping[str, Tensor]) -> Churn:
        """Set weight masks; weights that stop existing become 0, weights that start existing start at 0.

        The momentum of both is 0 as well, so that nothing remembers a weight that was not there.
        A gradient mask in force is dropped: every existing weight learns until the gradient policy speaks again.
        """
        pruned = grown = 0
        for name, mask in masks.items():
            old = self.weight[name]
            if mask.shape != old.shape or mask.dtype != torch.bool:
                raise ValueError(f"{name}: expected a bool mask of shape {tuple(old.shape)}")
            pruned += int((old & ~mask).sum())
            grown += int((mask & ~old).sum())
            absent = ~(old & mask)
            self.parameters[name].masked_fill_(absent, 0)
            momentum = self.momenta.get(self.parameters[name])
            if momentum is not None:
                momentum.masked_fill_(absent, 0)
            self.weight[name] = mask.clone()
        self.gradient = None
        self._refresh()
        return Churn(pruned, grown)

    @torch.no_grad()
    def adopt(self, masks: Mapping[str, Tensor]) -> None:
        """Set weight masks and keep the values of weights that start existing (initial masks, task switches)."""
        for name, mask in masks.items():
            self.weight[name] = mask.clone()
        self.gradient = None
        self._refresh()
        self.project()

    def restrict_gradients(self, masks: Mapping[str, Tensor] | None) -> None:
        """Let only the weights of ``masks`` learn (intersected with the weight masks); None lifts the restriction."""
        if masks is None:
            self.gradient = None
        else:
            self.gradient = {name: masks[name] & self.weight[name] for name in self.parameters}
        self._refresh()

    @torch.no_grad()
    def project(self) -> None:
        """Make every masked weight (and its momentum) exactly 0."""
        if self._all_weights:
            return
        weights: list[Tensor] = [*self._parameters]
        torch._foreach_mul_(weights, self._weight_factors)
        for name, factor in zip(self.parameters, self._weight_factors, strict=True):
            momentum = self.momenta.get(self.parameters[name])
            if momentum is not None:
                momentum.mul_(factor)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Make the gradient of every weight that does not exist or does not learn exactly 0."""
        if self._all_gradients:
            return
        pairs = [
            (p.grad, f) for p, f in zip(self._parameters, self._gradient_factors, strict=True) if p.grad is not None
        ]
        torch._foreach_mul_([grad for grad, _ in pairs], [factor for _, factor in pairs])

    # -- checkpoint ------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the masks by name, for a checkpoint; an empty "gradient" means that every existing weight learns."""
        return {"weight": dict(self.weight), "gradient": dict(self.gradient or {})}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what :meth:`state` returned."""

        def placed(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: torch.empty_like(self.weight[n]).copy_(m) for n, m in masks.items()}

        self.weight = placed(state["weight"])
        self.gradient = placed(state["gradient"]) if state["gradient"] else None
        self._refresh()

    def _refresh(self) -> None:
        self.version += 1
        learning = self.gradient or self.weight
        self._counts = _count(self.weight)
        self._gradient_counts = _count(learning) if self.gradient else dict(self._counts)
        self._parameters = list(self.parameters.values())
        self._all_weights = all(self._counts[n] == p.numel() for n, p in self.parameters.items())
        self._all_gradients = all(self._gradient_counts[n] == p.numel() for n, p in self.parameters.items())
        self._weight_factors = [self.weight[n].to(p.dtype) for n, p in self.parameters.items()]
        self._gradient_factors = (
            [learning[n].to(p.dtype) for n, p in self.parameters.items()] if self.gradient else self._weight_factors
        )


def _count(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the True entries of every mask with one transfer from the device."""
    if not masks:
        return {}
    sums = torch.stack([mask.sum() for mask in masks.values()]).tolist()
    return dict(zip(masks, sums, strict=True))


def by_magnitude(
    parameters: Mapping[str, Tensor], counts: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return per-layer masks of the ``counts[name]`` largest ``|w|`` (Han et al. 2015)."""
    return {name: top_k(weight.abs(), counts[name], generator) for name, weight in parameters.items()}


def at_random(
    parameters: Mapping[str, Tensor], counts: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return per-layer masks of ``counts[name]`` uniformly drawn positions."""
    return {
        name: random_k(torch.ones_like(weight, dtype=torch.bool), counts[name], generator)
        for name, weight in parameters.items()
    }


def globally(scores: Mapping[str, Tensor], k: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return masks of the ``k`` largest scores over all layers together (exactly ``k`` in total)."""
    names: Iterable[str] = list(scores)
    flat = torch.cat([scores[name].reshape(-1) for name in names])
    chosen = top_k(flat, k, generator)
    pieces = chosen.split([scores[name].numel() for name in names])
    return {name: piece.reshape(scores[name].shape) for name, piece in zip(names, pieces, strict=True)}
