"""Floating-point operations of a run as executed.

Conventions, the same in all counts:

* One multiply-add (MAC) is 2 FLOPs.
* Convolutions and linear layers are counted; biases, batch normalization, activations, pooling, losses, the
  optimizer and the bookkeeping of masks are left out. MACs per layer come from fvcore.
* Training on one image is forward + gradient to the inputs + gradient to the weights, each as many MACs as
  the forward, in the first layer too (its input gradient is never needed; the usual factor 3 counts it).
* A pruned weight costs nothing. A convolution at one image applies each of its weights the same number of
  times, ``macs / weights``, so a layer with ``k`` weights left costs exactly ``k * macs / weights`` MACs.

:class:`Ledger` adds up what a run does, mask by mask and batch by batch, in exact integers;
:mod:`sparcl.costs.convention` has the published count.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparcl.errors import UserError
from sparcl.masks import DENSITIES

KINDS = ("forward", "input_gradient", "weight_gradient")
EVALUATION = "evaluation"


@dataclass(frozen=True)
class LayerCost:
    """What one convolution or linear layer costs.

    Attributes:
        name: name of its weight, for example ``layer1.0.conv1.weight``.
        macs: multiply-adds of the forward pass of one image at density 1.
        weights: entries of the weight tensor.
        maskable: whether sparse training may prune it.
    """

    name: str
    macs: int
    weights: int
    maskable: bool

    @property
    def macs_per_weight(self) -> int:
        """Multiply-adds that each single weight takes part in, per image."""
        return self.macs // self.weights


_COSTS: dict[tuple, tuple[LayerCost, ...]] = {}


def layer_costs(model: nn.Module, shape: tuple[int, int, int]) -> tuple[LayerCost, ...]:
    """Cost of each convolution and linear layer of ``model`` for images ``(C, H, W)``, in module order.

    Counted by fvcore on a copy, so the model, its training mode, its batch statistics and every random
    generator stay as they are. Models made by :func:`sparcl.models.build` are counted once per process.

    Raises:
        UserError: the model multiplies outside of its convolution and linear layers, or calls a layer more
            than once, so that a cost per weight would be wrong.
    """
    made = [getattr(model, key, None) for key in ("name", "width", "classes")]
    key = (type(model), *made, tuple(shape)) if None not in made else None
    if key in _COSTS:
        return _COSTS[key]
    costs = _count(model, shape)
    if key is not None:
        _COSTS[key] = costs
    return costs


def _count(model: nn.Module, shape: tuple[int, int, int]) -> tuple[LayerCost, ...]:
    shadow = copy.deepcopy(model).cpu().eval()
    maskable = set(getattr(model, "maskable_names", ()))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit, which fvcore traces with, announces its own retirement
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(shadow, torch.zeros(1, *shape))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_module, by_operator = analysis.by_module(), analysis.by_operator()
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    costs = tuple(
        LayerCost(f"{name}.weight", int(by_module[name]), module.weight.numel(), f"{name}.weight" in maskable)
        for name, module in layers
    )
    multiplied = sum(by_operator[op] for op in ("conv", "linear", "addmm", "matmul", "bmm", "einsum"))
    if multiplied != sum(cost.macs for cost in costs):
        raise UserError(
            f"model '{type(model).__name__}': expected all multiply-adds in Conv2d and Linear modules, "
            f"{int(multiplied) - sum(cost.macs for cost in costs)} of {int(multiplied)} are elsewhere"
        )
    for cost in costs:
        if cost.macs % cost.weights:
            raise UserError(f"layer '{cost.name}': {cost.macs} MACs are no multiple of its {cost.weights} weights")
    return costs


class Ledger:
    """FLOPs that a run executes, by line (what for), kind (which product) and layer, in exact integers.

    A line is any name: ``stream``, ``replay``, ``importance``, ``saliency``, ``gradient_refresh``,
    ``dense_gradient``, ``distillation``, ``evaluation``, ... All lines but ``evaluation`` are training.

    The ledger knows how many weights each layer has left. Calls on the training path only add image counts;
    they are turned into multiply-adds when the counts of weights change or a result is asked for. The same
    calls with planned counts give the ledger of a run that has not been made.
    """

    def __init__(self, costs: Iterable[LayerCost]) -> None:
        self.costs = tuple(costs)
        self._names = [cost.name for cost in self.costs]
        self._index = {name: index for index, name in enumerate(self._names)}
        self._rate = [cost.macs_per_weight for cost in self.costs]
        self._size = [cost.weights for cost in self.costs]
        self._weights = list(self._size)
        self._gradients: list[int | None] = [None] * len(self.costs)
        self._told: dict[str, Mapping[str, int] | None] = {"weights": {}, "gradients": {}}
        self._frozen: set[int] = set()
        self._pending: dict[tuple[str, str, str], int] = {}
        self._macs: dict[str, dict[str, list[int]]] = {}

    def set_weight_counts(self, counts: Mapping[str, int]) -> None:
        """Say how many weights each layer has left from now on; a layer that is not named is dense."""
        if counts == self._told["weights"]:
            return
        checked = self._checked(counts)
        weights = [size if count is None else count for size, count in zip(self._size, checked, strict=True)]
        self._flush()
        self._weights = weights
        self._told["weights"] = dict(counts)

    def set_gradient_counts(self, counts: Mapping[str, int]) -> None:
        """Say how many weights of each layer get a gradient; one that is not named updates what it has."""
        if counts == self._told["gradients"]:
            return
        gradients = self._checked(counts)
        self._flush()
        self._gradients = gradients
        self._told["gradients"] = dict(counts)

    def set_frozen(self, names: Iterable[str]) -> None:
        """Say which weights are not trained from now on: they have no weight gradient.

        The layers before the first trained one have no input gradient either; the first trained layer keeps its
        own, by the convention for first layers.
        """
        frozen = {self._position(name) for name in names}
        self._flush()
        self._frozen = frozen

    def forward(self, line: str, images: int) -> None:
        """Add a forward pass of ``images`` images at the density of the weights."""
        self._add(line, "forward", "weights", images)

    def backward(self, line: str, images: int, weight_gradient: str = "masked") -> None:
        """Add a backward pass of ``images`` images: input gradient and weight gradient.

        The input gradient is at the density of the weights. ``weight_gradient`` is the density of the other
        product: ``masked`` (that of the gradient mask), ``weights`` or ``dense``.
        """
        self._add(line, "input_gradient", "weights", images)
        self._add(line, "weight_gradient", weight_gradient, images)

    def step(self, images: int, replayed: int, wanted: Mapping[str, str]) -> None:
        """Add a training step on ``images`` stream images and ``replayed`` replayed ones.

        ``wanted`` (line to density) names the weight gradients that the step needs beyond those that it applies: a
        refresh of the gradient mask needs them on all ``weights``, RigL's growth on all positions (``dense``). What
        has been computed for one line costs nothing on the next.
        """
        for line, count in (("stream", images), ("replay", replayed)):
            if count:
                self.forward(line, count)
                self.backward(line, count)
        paid: str = "masked"
        for line, at in wanted.items():
            if DENSITIES.index(at) > DENSITIES.index(paid):
                self._add(line, "weight_gradient", at, images + replayed)
                self._add(line, "weight_gradient", paid, -(images + replayed))
                paid = at

    def _add(self, line: str, kind: str, at: str, images: int) -> None:
        key = (line, kind, at)
        try:
            self._pending[key] += images
        except KeyError:
            if at not in DENSITIES:
                raise ValueError(f"density: expected 'masked', 'weights' or 'dense', got {at!r}") from None
            self._pending[key] = int(images)

    def _position(self, name: str) -> int:
        if name not in self._index:
            raise ValueError(f"layer: expected one of {', '.join(self._names)}, got {name!r}")
        return self._index[name]

    def _checked(self, counts: Mapping[str, int]) -> list[int | None]:
        row: list[int | None] = [None] * len(self.costs)
        for name, count in counts.items():
            index = self._position(name)
            if not 0 <= int(count) <= self._size[index]:
                raise ValueError(f"count of '{name}': expected 0 to {self._size[index]}, got {count}")
            row[index] = int(count)
        return row

    def _counts(self, at: str) -> list[int]:
        if at == "dense":
            return self._size
        if at == "weights":
            return self._weights
        return [w if g is None else g for w, g in zip(self._weights, self._gradients, strict=True)]

    def _active(self, kind: str) -> list[bool]:
        layers = range(len(self.costs))
        if kind == "forward" or not self._frozen:
            return [True for _ in layers]
        if kind == "weight_gradient":
            return [index not in self._frozen for index in layers]
        first = next((index for index in layers if index not in self._frozen), len(self.costs))
        return [index >= first for index in layers]

    def _flush(self) -> None:
        for (line, kind, at), images in self._pending.items():
            kinds = self._macs.setdefault(line, {name: [0] * len(self.costs) for name in KINDS})
            row = kinds[kind]
            active = self._active(kind)
            for index, count in enumerate(self._counts(at)):
                if active[index]:
                    row[index] += images * count * self._rate[index]
        self._pending.clear()

    def as_record(self) -> dict:
        """Totals in FLOPs, for the run record.

        Returns:
            ``training`` (all lines but evaluation), ``evaluation``, ``lines`` (line to kind to FLOPs,
            evaluation included) and ``layers`` (weight name to training FLOPs; they add up to ``training``).
        """
        self._flush()
        lines = {
            line: {kind: 2 * sum(row) for kind, row in kinds.items()} for line, kinds in sorted(self._macs.items())
        }
        training = [kinds for line, kinds in self._macs.items() if line != EVALUATION]
        layers = {
            name: 2 * sum(row[index] for kinds in training for row in kinds.values())
            for index, name in enumerate(self._names)
        }
        return {
            "training": sum(layers.values()),
            "evaluation": sum(lines.get(EVALUATION, {}).values()),
            "lines": lines,
            "layers": layers,
        }

    def state(self) -> dict:
        """Everything that :meth:`load` needs to go on, as JSON-able values."""
        self._flush()
        return {
            "layers": list(self._names),
            "weights": list(self._weights),
            "gradients": list(self._gradients),
            "frozen": sorted(self._frozen),
            "macs": copy.deepcopy(self._macs),
        }

    def load(self, state: Mapping) -> None:
        """Go on from :meth:`state`.

        Raises:
            UserError: the state belongs to a model with other layers.
        """
        if list(state["layers"]) != self._names:
            raise UserError("ledger: expected the state of a model with the same layers")
        self._weights = list(state["weights"])
        self._gradients = list(state["gradients"])
        self._frozen = set(state["frozen"])
        self._macs = copy.deepcopy(dict(state["macs"]))
        self._told = {"weights": None, "gradients": None}
        self._pending = {}
