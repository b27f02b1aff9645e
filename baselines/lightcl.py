"""LightCL (arXiv 2407.10545, ASP-DAC 2025): train the end of the network only, hold its feature maps where they matter.

Maintain generalizability: everything before the last stage is frozen; only the last stage and the head learn.
Memorize feature patterns: after each task the channels with the largest activation join a mask m_l per feature map of
the last stage; from the second task on, with f_l the feature maps and z the logits of the first ``images`` images of
the NEW task's first batch, and f'_l, z' those of the model before the task,

    L = CE(stream) + beta * ( sum_l sum( m_l (f_l - f'_l)^2 ) + sum( (z - z')^2 ) )

with sums, not means. The feature maps are the post-ReLU outputs of every convolution stage of the last stage of the
network (four in ResNet-18). m_l collects the round(ratio * C) channels with the largest sum of |activation| over one
batch of each task so far. No image of an earlier task is kept. beta = 0.0002, ratio = 0.15 and 15 images are those of
the authors' code.

Pre-training. The authors start from weights pre-trained on ImageNet32x32. Here the first task takes that part: it
trains the whole network, and freezing begins with the second. With ``weights`` (a safetensors file with the model's
tensors by name; the head is left out) the network is frozen from the start, as in the source.

Channel sparsity (cell's sparsity > 0, policy :class:`Channels`): once, before training, the output channels with the
smallest mean signed weight leave every maskable layer, and so do the inputs of the next maskable layer that they feed.
The source prunes 0.8 of the last stage's channels, 0.7 of the stage before it and 0.2 elsewhere and calls the result
0.9; here all three are scaled by one factor, so that the sparsity of the maskable weights comes as near to the cell's
as whole channels allow. With given weights the first task then also trains the last block before the last stage. The
source also holds scale and shift of a pruned channel's batch normalization at 0; here they go on learning, as every
method's do. The source's learning rate is 0.01; here it is the protocol's.

Open in the source and settled here: the images are not augmented; the recorded maps and the mask's activations are
taken in training mode (the batch's own statistics), without touching the running ones. Batch normalization of the
frozen part stays in training mode as in the authors' code (``norm: running``); ``norm: frozen`` freezes its statistics.

FLOPs. Executed: the frozen layers have neither weight gradients nor, before the last stage, input gradients; the
held images stand on the line ``replay``, the passes that record maps and channels on ``regulation``. Paper: LightCL's
own count, 2 n (F + 2 F_last) (1 + images / batch) with n images presented and MACs F of the network and F_last of
its trained part; it reproduces the published 5.4e15 and 8.6e16 at sparsity 0 with LightCL's 90 % of the training
images, and is not comparable with SparCL's. (At 0.9 the published 2.3e15 and 3.7e16 do not follow from it.)
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl import masks, models, seeding, streams
from sparcl.cell import Cell
from sparcl.components import Clock, Learner, Replay, Run, SparsityPolicy, accounting, stream_loss
from sparcl.costs.ledger import LayerCost, Ledger
from sparcl.errors import UserError
from sparcl.masks import MaskSet
from sparcl.methods import learner, method, policy
from sparcl.models import BasicBlock, Classifier
from sparcl.parameters import parameter
from sparcl.protocol import Protocol

LINE = "regulation"


# -- the model's parts -------------------------------------------------------------------------------------------------
def trained_prefixes(model: Classifier, with_block_before: bool) -> tuple[str, ...]:
    """Return the beginnings of the parameter names that learn once the rest is frozen: last stage and head.

    With ``with_block_before`` also the last block of the stage before the last one, all of it without blocks.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found = [f"{names[id(model.stages[-1])]}.", "head."]
    if with_block_before and len(model.stages) > 1:
        before = model.stages[-2]
        block = before[-1] if isinstance(before, nn.Sequential) and isinstance(before[-1], BasicBlock) else before
        found.append(f"{names[id(block)]}.")
    return tuple(found)


def freeze_all_but(model: Classifier, prefixes: tuple[str, ...], freeze_norms: bool) -> None:
    """Let only the parameters under ``prefixes`` learn; the other batch norms keep their statistics if asked."""
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(name.startswith(prefixes))
        if not tensor.requires_grad:
            tensor.grad = None
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not f"{name}.".startswith(prefixes):
            module.train(not freeze_norms)


def layers_outside(model: Classifier, prefixes: tuple[str, ...]) -> set[str]:
    """Return the convolution and linear weights that are not under ``prefixes``."""
    layers = (f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return {name for name in layers if not name.startswith(prefixes)}


def feature_maps(model: Classifier, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the post-ReLU outputs (N, C, ...) of the last stage's convolution stages, and the logits (N, classes)."""
    last = model.stages[-1]
    blocks = [module for module in last.modules() if isinstance(module, BasicBlock)]
    points: list[nn.Module] = [point for block in blocks for point in (block.bn1, block)] or [last]
    found: list[Tensor] = []
    handles = [point.register_forward_hook(lambda _m, _i, out: found.append(F.relu(out))) for point in points]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found, logits


def strongest_channels(feature_map: Tensor, ratio: float) -> Tensor:
    """Return the bool mask (C,) of the ``round(ratio * C)`` channels, at least one, of largest summed |activation|."""
    strength = feature_map.detach().abs().transpose(0, 1).flatten(1).sum(1)
    count = max(1, round(len(strength) * Fraction(str(ratio))))
    chosen = torch.zeros_like(strength, dtype=torch.bool)
    chosen[strength.sort(descending=True, stable=True).indices[:count]] = True
    return chosen


def regulation(
    maps: Sequence[Tensor], old: Sequence[Tensor], channels: Sequence[Tensor], logits: Tensor, old_logits: Tensor
) -> Tensor:
    """Return ``sum_l sum(m_l (f_l - f'_l)^2) + sum((z - z')^2)``, a scalar."""
    total = (logits - old_logits).square().sum()
    for new, before, mask in zip(maps, old, channels, strict=True):
        shape = (1, -1, *[1] * (new.dim() - 2))
        total = total + (mask.to(new.dtype).view(shape) * (new - before).square()).sum()
    return total


@contextlib.contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Give every buffer (running mean, variance, count) its value back afterwards."""
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(saved[name])


def first_positions(run: Run, count: int) -> Tensor:
    """Return the positions (<= count,) of the first images of the task's first epoch, in its order."""
    generator = seeding.generator(run.cell.seed, "order", run.phase.index, 0)
    return torch.randperm(run.pool_size, generator=generator)[:count].to(run.device)


def digest(data: bytes) -> str:
    """Return the first 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


@torch.no_grad()
def load_weights(model: Classifier, path: Path, expected: str) -> None:
    """Copy all tensors but the head's from a safetensors file, which cannot execute code.

    Raises:
        UserError: the file is missing, damaged or another one, or its tensors are not the model's.
    """
    try:
        data = path.read_bytes()
        found = safetensors.torch.load(data)
    except OSError as error:
        raise UserError(f"lightcl.weights: expected a readable file, got {path} ({error.strerror})") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"lightcl.weights: expected a safetensors file, got {path} ({error})") from error
    if digest(data) != expected:
        raise UserError(f"lightcl.weights: {path} has changed: expected digest {expected}, got {digest(data)}")
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    for name, tensor in own.items():
        if name not in found:
            raise UserError(f"lightcl.weights: {path} has no tensor '{name}'")
        if found[name].shape != tensor.shape:
            expected_shape, got = tuple(tensor.shape), tuple(found[name].shape)
            raise UserError(f"lightcl.weights: {path}: expected '{name}' of shape {expected_shape}, got {got}")
        if found[name].is_floating_point() and not bool(found[name].isfinite().all()):
            raise UserError(f"lightcl.weights: {path}: '{name}' has values that are not finite")
    for name, tensor in own.items():
        tensor.copy_(found[name])


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
    return tensor.to(device, memory_format=layout)


# -- the learner -------------------------------------------------------------------------------------------------------
@learner("lightcl", "LightCL")
class LightCL(Learner):
    """Freezing before the last stage and feature-pattern regulation; see the module's docstring.

    Attributes:
        channels: bool mask (C,) per feature map, as text index; collects over the tasks.
        held: "images", "labels", "logits" and the feature maps (text index) of the task's held images.
    """

    family = "sibling"
    bundles: ClassVar = ()
    bundles_reason = "has a channel sparsity of its own and takes no other sparsity policy"
    images: int = parameter(15, "images of the new task whose feature maps are held", low=1)
    ratio: float = parameter(0.15, "fraction of a feature map's channels that a task adds to the mask", low=0, high=1)
    beta: float = parameter(0.0002, "weight of the regulation", low=0)
    norm: str = parameter(
        "running",
        "batch normalization of the frozen part: keeps following the data, or frozen",
        choices=("running", "frozen"),
    )
    weights: str = parameter("", "safetensors file of pre-trained weights; none: the first task trains everything")
    weights_digest: str = parameter("", "first 16 hex digits of the file's SHA-256; filled in")

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.channels: dict[str, Tensor] = {}
        self.held: dict[str, Tensor] = {}

    @classmethod
    def resolve(cls, values: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        path, given = values["weights"], values["weights_digest"]
        if not path:
            return values | {"weights_digest": ""}
        try:
            found = digest(Path(path).read_bytes())
        except OSError as error:
            if given:
                return values
            raise UserError(f"lightcl.weights: expected a readable file, got {path} ({error.strerror})") from error
        if given and given != found:
            raise UserError(f"lightcl.weights: {path} has changed: expected digest {given}, got {found}")
        return values | {"weights_digest": found}

    # -- the run ---------------------------------------------------------------------------------------------------
    def start(self, run: Run) -> None:
        if self.weights:
            load_weights(run.model, Path(self.weights), self.weights_digest)

    def is_frozen(self, task: int) -> bool:
        """Return whether the part before the last stage is frozen during ``task``."""
        return task > 0 or bool(self.weights)

    def prefixes(self, model: Classifier, task: int, sparsity: float) -> tuple[str, ...]:
        """Return the beginnings of the names of what learns during ``task``, if anything is frozen."""
        return trained_prefixes(model, with_block_before=task == 0 and sparsity > 0)

    def freeze(self, model: Classifier, cell: Cell, task: int) -> None:
        if self.is_frozen(task):
            freeze_all_but(model, self.prefixes(model, task, cell.sparsity), self.norm == "frozen")

    def begin_task(self, run: Run) -> None:
        self.held = {}
        if run.phase.index:
            positions = first_positions(run, self.images)
            images = run.network_input(run.pool_images[positions])
            maps, logits = self._record(run, images)
            self.held = {"images": images, "labels": run.pool_labels[positions], "logits": logits}
            self.held |= {str(index): feature_map for index, feature_map in enumerate(maps)}

    def resume(self, run: Run) -> None:
        self.held = {key: _placed(tensor, run.device) for key, tensor in self.held.items()}

    def replay(self, run: Run) -> list[Replay]:
        if not self.held:
            return []
        return [(self.held["images"], self.held["labels"], self.held["logits"])]

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *_ = run.logits(images)
        terms = {"stream": stream_loss(run, logits, labels)}
        if replays:
            ((held, _, old_logits),) = replays
            maps, new_logits = feature_maps(run.model, held)
            keys = [str(index) for index in range(len(maps))]
            old, channels = [self.held[key] for key in keys], [self.channels[key] for key in keys]
            terms["regulation"] = self.beta * regulation(maps, old, channels, new_logits, old_logits)
        return terms, logits

    def end_task(self, run: Run) -> None:
        positions = first_positions(run, run.cell.batch_size)
        maps, _ = self._record(run, run.network_input(run.pool_images[positions]))
        for index, feature_map in enumerate(maps):
            chosen = strongest_channels(feature_map, self.ratio)
            self.channels[str(index)] = self.channels.get(str(index), chosen) | chosen

    @torch.no_grad()
    def _record(self, run: Run, images: Tensor) -> tuple[list[Tensor], Tensor]:
        run.sync_ledger()
        run.ledger.forward(LINE, len(images))
        bfloat16 = run.cell.precision == "bfloat16"
        with kept_statistics(run.model), torch.autocast(run.device.type, torch.bfloat16, enabled=bfloat16):
            maps, logits = feature_maps(run.model, images)
        return [feature_map.float() for feature_map in maps], logits.float()

    # -- plan and checkpoint ---------------------------------------------------------------------------------------
    def planned_frozen(self, model: Classifier, sparsity: float, clock: Clock) -> set[str]:
        if not self.is_frozen(clock.task):
            return set()
        return layers_outside(model, self.prefixes(model, clock.task, sparsity))

    def planned_replay(self, cell: Cell, protocol: Protocol, task: int, seen: int) -> int:
        sizes = streams.describe(cell.stream, dict(cell.stream_options)).train_sizes
        return min(self.images, sizes[task]) if 0 < task < len(sizes) else 0

    def plan_begin_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        if task:
            book.forward(LINE, min(self.images, size))

    def plan_end_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        book.forward(LINE, min(cell.batch_size, size))

    @accounting
    def published_flops(self, cell: Cell, costs: Sequence[LayerCost], sizes: Sequence[int]) -> float:
        info = streams.describe(cell.stream, dict(cell.stream_options))
        model = models.build(cell.model, cell.width, info.classes, info.shape, torch.Generator())
        ends, kept = trained_prefixes(model, False), {}
        if cell.sparsity:
            weights = dict(model.named_parameters())
            kept = channel_counts({name: weights[name].shape for name in models.maskable(model)}, cell.sparsity)
        macs = {cost.name: cost.macs * kept.get(cost.name, cost.weights) / cost.weights for cost in costs}
        trained = sum(count for name, count in macs.items() if f"{name}.".startswith(ends))
        presented = cell.epochs * sum(sizes) * (1 + self.images / cell.batch_size)
        return 2.0 * presented * (sum(macs.values()) + 2 * trained)

    def state(self) -> dict[str, Any]:
        return {"channels": self.channels, "held": self.held}

    def load(self, state: Mapping[str, Any]) -> None:
        self.channels, self.held = dict(state["channels"]), dict(state["held"])


# -- channel sparsity --------------------------------------------------------------------------------------------------
LAST, BEFORE_LAST, ELSEWHERE = 0.8, 0.7, 0.2
"""Fraction of the output channels that the source prunes in the last stage, the one before it, and elsewhere."""


def kept_channels(shapes: Mapping[str, torch.Size], factor: float) -> dict[str, int]:
    """Return the output channels that each layer keeps with the source's three fractions scaled by ``factor``."""
    stages = list(dict.fromkeys(name.split(".")[0] for name in shapes))
    fraction = dict.fromkeys(stages, ELSEWHERE) | dict(zip(stages[::-1], (LAST, BEFORE_LAST), strict=False))
    return {
        name: max(1, shape[0] - int(shape[0] * min(1.0, factor * fraction[name.split(".")[0]])))
        for name, shape in shapes.items()
    }


def weight_counts(shapes: Mapping[str, torch.Size], kept: Mapping[str, int]) -> dict[str, int]:
    """Return the weights left per layer: kept outputs x inputs that the layer before keeps x kernel size."""
    counts, before = {}, None
    for name, shape in shapes.items():
        inputs = kept[before] if before is not None and shapes[before][0] == shape[1] else shape[1]
        counts[name] = kept[name] * inputs * shape[2:].numel()
        before = name
    return counts


def fitted_channels(shapes: Mapping[str, torch.Size], sparsity: float) -> dict[str, int]:
    """Return the kept channels per layer whose total weight count is nearest to the cell's sparsity."""
    if sparsity == 0:
        return {name: shape[0] for name, shape in shapes.items()}
    target = masks.keep_count(sum(shape.numel() for shape in shapes.values()), sparsity)
    low, high = 0.0, 1 / ELSEWHERE
    for _ in range(40):
        middle = (low + high) / 2
        too_many = sum(weight_counts(shapes, kept_channels(shapes, middle)).values()) > target
        low, high = (middle, high) if too_many else (low, middle)
    choices = [kept_channels(shapes, factor) for factor in (high, low)]
    return min(choices, key=lambda kept: abs(sum(weight_counts(shapes, kept).values()) - target))


def channel_counts(shapes: Mapping[str, torch.Size], sparsity: float) -> dict[str, int]:
    """Return the weights that each layer keeps at the cell's sparsity."""
    return weight_counts(shapes, fitted_channels(shapes, sparsity))


@policy("channels", "Channels", family="sibling")
class Channels(SparsityPolicy):
    """One-shot channel sparsity: the output channels of largest mean signed weight stay, once and for all."""

    learners: ClassVar = ()

    def start(self, run: Run) -> None:
        if run.cell.sparsity == 0:
            return
        kept, before, chosen = fitted_channels(run.masks.shapes, run.cell.sparsity), None, {}
        exist: dict[str, Tensor] = {}
        for name, weight in run.masks.parameters.items():
            score = weight.detach().flatten(1).mean(1)
            chosen[name] = masks.top_k(score, kept[name], run.generator("initial-mask"))
            mask = torch.zeros_like(weight, dtype=torch.bool)
            mask[chosen[name]] = True
            if before is not None and len(chosen[before]) == weight.shape[1]:
                mask[:, ~chosen[before]] = False
            exist[name], before = mask, name
        run.masks.adopt(exist)

    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int]:
        return channel_counts(container.shapes, sparsity)


method("lightcl", "LightCL", "sibling", "lightcl", sparsity="channels")
