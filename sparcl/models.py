"""Networks of the benchmark: small image classifiers with one head for all classes.

Every model gives ``features(x)``, the ``(N, D)`` input of its last layer, and ``head``, that layer;
``forward`` is ``head(features(x))``. ``stages`` are the blocks in order, input side first, for methods that
freeze a prefix. Weights are drawn from PyTorch's default distributions with the caller's generator; the
global one is never used.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.errors import UserError, suggest

EVALUATION_BATCH = 512
"""Images of one forward pass at evaluation."""


class Classifier(nn.Module):
    """A network whose logits are a linear function of its features.

    Attributes:
        name, width, classes, shape: what :func:`build` was asked for; together they fix the architecture.
        head: the last layer, ``D`` features to ``classes`` logits.
        maskable_names: names of the weights that sparse training may prune.
    """

    name: str
    width: int
    classes: int
    shape: tuple[int, int, int]
    head: nn.Linear
    maskable_names: tuple[str, ...]

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """The blocks between input and head, input side first."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to the features ``(N, D)`` that the head reads."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, classes)``."""
        return self.head(self.features(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where shape or width changes (He et al.
    2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C', H / stride, W / stride)``."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(Classifier):
    """Residual network for small images: 3x3 stem with stride 1, no max-pool, widths ``w, 2w, 4w, ...``."""

    def __init__(self, channels: int, width: int, classes: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.depth = len(blocks)
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            layers = []
            for block in range(count):
                layers.append(BasicBlock(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.head = nn.Linear(inputs, classes)
        self.maskable_names = tuple(
            f"{name}.{conv}.weight"
            for name, module in self.named_modules()
            if isinstance(module, BasicBlock)
            for conv in ("conv1", "conv2")
        )

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        return tuple(self.get_submodule(f"layer{stage + 1}") for stage in range(self.depth))

    def features(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            out = stage(out)
        return F.adaptive_avg_pool2d(out, 1).flatten(1)


class ConvNet(Classifier):
    """Three 3x3 convolutions with batch normalization, halving the image after the first two."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 2 * width]
        for index in range(3):
            block = nn.Sequential(
                nn.Conv2d(widths[index], widths[index + 1], 3, padding=1, bias=False),
                nn.BatchNorm2d(widths[index + 1]),
                nn.ReLU(),
            )
            if index < 2:
                block.append(nn.MaxPool2d(2))
            self.add_module(f"layer{index + 1}", block)
        self.head = nn.Linear(widths[-1], classes)
        self.maskable_names = ("layer2.0.weight", "layer3.0.weight")

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        return tuple(self.get_submodule(f"layer{index}") for index in (1, 2, 3))

    def features(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Perceptron(Classifier):
    """Two hidden layers of ``width`` ReLU units, the usual network for MNIST streams."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(inputs, width)
        self.layer2 = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)
        self.maskable_names = ("layer2.weight",)

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        return (self.layer1, self.layer2)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.layer2(F.relu(self.layer1(x.flatten(1)))))


_BUILDERS: dict[str, Callable[[tuple[int, int, int], int, int], Classifier]] = {
    "resnet18": lambda shape, width, classes: ResNet(shape[0], width, classes, (2, 2, 2, 2)),
    "resnet8": lambda shape, width, classes: ResNet(shape[0], width, classes, (1, 1, 1)),
    "cnn": lambda shape, width, classes: ConvNet(shape[0], width, classes),
    "mlp": lambda shape, width, classes: Perceptron(math.prod(shape), width, classes),
}


def names() -> tuple[str, ...]:
    """The model names that :func:`build` knows."""
    return tuple(_BUILDERS)


def build(name: str, width: int, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> Classifier:
    """Build a model on the CPU, in channels_last memory format and training mode.

    Args:
        name: one of :func:`names`.
        width: channels of the first stage (units of a hidden layer for ``mlp``).
        classes: logits of the head.
        shape: ``(C, H, W)`` of an image.
        generator: source of the initial weights; equal generators give equal models.

    Raises:
        UserError: unknown name, or a width, class count or image size that the model cannot have.
    """
    if name not in _BUILDERS:
        raise UserError(f"model: expected one of {', '.join(names())}, got '{name}'{suggest(name, names())}")
    for key, value in (("width", width), ("classes", classes)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{key}: expected a positive integer, got {value!r}")
    smallest = 4 if name == "cnn" else 1
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < smallest:
        raise UserError(f"shape: expected (C, H, W) with H, W >= {smallest} for '{name}', got {shape}")
    with torch.device("meta"):  # no memory is filled, and PyTorch's own initialization draws nothing
        model = _BUILDERS[name](shape, width, classes)
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # to_empty imports a compiler for this
    initialize(model, generator)
    model.name, model.width, model.classes, model.shape = name, width, classes, shape
    return model.to(memory_format=torch.channels_last).train()


def fresh_weights(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` values from the initial distribution of a ``weight`` (out, in, ...), on its device."""
    drawn = torch.rand(count, generator=generator).to(weight.device, weight.dtype)
    return (2 * drawn - 1) / math.sqrt(weight[0].numel())


@torch.no_grad()
def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters anew, in module order, from PyTorch's default distributions.

    Convolution and linear weights are uniform in ``±1/sqrt(fan_in)`` (Kaiming uniform with ``a = sqrt(5)``),
    so are biases; batch normalization starts at scale 1, shift 0, mean 0, variance 1.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            module.weight.copy_(torch.empty(module.weight.shape).uniform_(-bound, bound, generator=generator))
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def maskable(model: Classifier) -> tuple[str, ...]:
    """Names of the weights that sparse training may prune, in forward order.

    In residual networks these are the 3x3 convolutions of the blocks; stem, shortcuts, batch normalization
    and head stay dense. In the plain networks they are the hidden layers but the first.
    """
    return model.maskable_names


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode and give every module its own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
