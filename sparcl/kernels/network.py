"""A network of convolutions, forward and backward, over existing weights only and in one layout throughout.

:class:`Network` runs the convolutional part (``features``) of the project's residual and plain networks: padding, batch
normalization, ReLU and the residual sum are fused with the convolutions, several passes (stream and replayed batches)
go through together with batch-norm statistics of their own, and a weight's gradient is computed only where it is asked
for. It is one differentiable PyTorch operator, ``sparcl::features``.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparcl import models
from sparcl.errors import RunError
from sparcl.kernels import library
from sparcl.kernels.index import Index
from sparcl.kernels.library import LANES, Descent, Layer, NetworkCall
from sparcl.kernels.memory import Areas, aligned
from sparcl.masks import Density, MaskSet
from sparcl.optimizer import SGD

EVALUATION_FLOATS = 1 << 26  # of the area of an evaluation batch
LAYOUTS = 64  # sizes of passes whose description is kept
POOLS = 4  # numbers of blocks and passes whose areas are kept


@dataclass
class Convolution:
    """A convolution with its batch normalization, and where it stands in the network.

    Layers are numbered in forward order; -1 is none (for ``source``, the images).

    Attributes:
        name: of the convolution's module.
        source: layer that gives the input.
        residual, shortcut: layer whose output, or normalized convolution, is added before ReLU.
        user: for a shortcut, the layer that adds it.
        pool: 1: 2x2 maximum after ReLU; 2: mean over the plane.
        rows, columns: of the input.
        buffers: names of the buffers of the gradients of the output and of the convolution.
        accumulate: whether the input's gradient is added to what another layer left.
    """

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    source: int
    rows: int
    columns: int
    buffers: tuple[str, str]
    residual: int = -1
    shortcut: int = -1
    user: int = -1
    pool: int = 0
    accumulate: bool = False

    @property
    def out_rows(self) -> int:
        return (self.rows - 1) // self.conv.stride[0] + 1

    @property
    def out_columns(self) -> int:
        return (self.columns - 1) // self.conv.stride[0] + 1


def layers_of(model: nn.Module) -> list[Convolution] | None:
    """Return the convolutions of ``model.features`` in forward order, or None for a network of another kind."""
    if type(model) not in (models.ResNet, models.ConvNet) or any(_watched(module) for module in model.modules()):
        return None
    if isinstance(model, models.ResNet):
        found = _residual(model)
    else:
        assert isinstance(model, models.ConvNet)
        found = _plain(model)
    return found if all(_fits(layer) for layer in found) else None


def _watched(module: nn.Module) -> bool:
    """Say whether a module does more than its class: hooks or parametrized weights."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or hasattr(module, "parametrizations")
    )


def _fits(layer: Convolution) -> bool:
    conv, norm = layer.conv, layer.norm
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    return (
        type(conv) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and conv.kernel_size == (kernel, kernel)
        and kernel in (1, 3)
        and conv.padding == (kernel // 2, kernel // 2)
        and conv.stride == (stride, stride)
        and stride in (1, 2)
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.bias is None
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )


def _residual(model: models.ResNet) -> list[Convolution]:
    names = {id(module): name for name, module in model.named_modules()}
    _, rows, columns = model.shape
    found = [Convolution("conv1", model.conv1, model.bn1, -1, rows, columns, ("0 out", "0 out"))]
    for stage in model.stages:
        for block in stage.children():
            assert isinstance(block, models.BasicBlock)
            source, first = len(found) - 1, len(found)
            rows, columns = found[source].out_rows, found[source].out_columns
            kind = f"{block.conv1.out_channels} x {(rows - 1) // block.conv1.stride[0] + 1}"
            if not len(block.shortcut):  # the gradient of the sum becomes the input's in place
                kind = found[source].buffers[0].removesuffix(" out")
            sizes = (names[id(block.conv1)], block.conv1, block.bn1, source, rows, columns)
            found.append(Convolution(*sizes, (f"{kind} in", f"{kind} in"), accumulate=True))
            middle_rows, middle_columns = found[first].out_rows, found[first].out_columns
            last = Convolution(
                names[id(block.conv2)], block.conv2, block.bn2, first, middle_rows, middle_columns,
                (f"{kind} out", f"{kind} gy"),
            )  # fmt: skip
            if len(block.shortcut):
                conv, norm = block.shortcut[0], block.shortcut[1]
                assert isinstance(conv, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                last.shortcut = len(found)
                found.append(
                    Convolution(names[id(conv)], conv, norm, source, rows, columns, (f"{kind} out", f"{kind} out"))
                )
                found[-1].user = len(found)
            else:
                last.residual = source
            found.append(last)
    found[-1].pool = 2
    return found


def _plain(model: models.ConvNet) -> list[Convolution]:
    names = {id(module): name for name, module in model.named_modules()}
    _, rows, columns = model.shape
    found: list[Convolution] = []
    for stage in model.stages:
        assert isinstance(stage, nn.Sequential)
        conv, norm = stage[0], stage[1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        pool = 1 if isinstance(stage[-1], nn.MaxPool2d) else 0
        buffer = f"{len(found)} out"
        found.append(
            Convolution(names[id(conv)], conv, norm, len(found) - 1, rows, columns, (buffer, buffer), pool=pool)
        )
        rows, columns = found[-1].out_rows, found[-1].out_columns
        if pool:
            rows, columns = rows // 2, columns // 2
    found[-1].pool = 2
    return found


class _Batch:
    """Where things lie for passes of given sizes, for one network; equal ``key``, equal places."""

    def __init__(self, layers: Sequence[Convolution], sizes: tuple[int, ...]):
        if any(size < 1 for size in sizes):
            raise ValueError(f"expected passes of at least one image, got {sizes}")
        counts = [-(-size // LANES) for size in sizes]
        self.sizes = sizes
        self.blocks = sum(counts)
        self.starts = [sum(counts[:i]) for i in range(len(counts))]
        self.group = torch.tensor([g for g, n in enumerate(counts) for _ in range(n)], dtype=torch.int32)
        self.group_sizes = torch.tensor(sizes, dtype=torch.int32)
        lanes = torch.zeros(self.blocks * LANES)
        rows = torch.cat([torch.arange(size) + start * LANES for size, start in zip(sizes, self.starts, strict=True)])
        lanes[rows] = 1
        self.rows: Tensor | None = None if len(rows) == len(lanes) else rows
        self.lanes = aligned(lanes)
        self.groups = len(sizes)
        self.key = (self.blocks, self.groups)
        self.outputs = layers[-1].conv.out_channels
        self.structures: Any = None
        self.call: NetworkCall | None = None
        self.filled: Any = None  # what the structures were last filled with

        self._size = 0
        first = layers[0]
        self.images = self._reserve(first.conv.in_channels, first.rows, first.columns)
        self.saved_offsets = []
        for layer in layers:
            shape = (layer.conv.out_channels, layer.out_rows, layer.out_columns)
            y = self._reserve(*shape)
            z = self._reserve(*shape) if layer.user < 0 else 0
            pooled = self._reserve(shape[0], shape[1] // 2, shape[2] // 2) if layer.pool == 1 else 0
            statistics = self._size
            self._size += -(-4 * self.groups * shape[0] // LANES) * LANES
            self.saved_offsets.append((y, z, pooled, statistics))
        self.saved_size = self._size

        self._size = 0
        buffers: dict[str, int] = {}
        self.work_offsets = []
        for layer in layers:
            shape = (layer.conv.out_channels, layer.out_rows, layer.out_columns)
            for name in layer.buffers:
                if name not in buffers:
                    buffers[name] = self._reserve(*shape)
            pooled = self._reserve(shape[0], shape[1] // 2, shape[2] // 2) if layer.pool == 1 else 0
            self.work_offsets.append((buffers[layer.buffers[0]], buffers[layer.buffers[1]], pooled))
        self.work_size = self._size

    def _reserve(self, channels: int, rows: int, columns: int) -> int:
        at = self._size
        self._size += self.blocks * channels * (rows + 2) * (columns + 2) * LANES
        return at


class Network:
    """The convolutional part of a model, run by the sparse kernel.

    Attributes:
        model: whose parameters and running statistics are used.
        layers: its convolutions in forward order.
        positions: where the weight gradient of maskable weights is computed in the next backward pass: "masked" (at the
            weights that learn), "weights" (at all that exist), "dense" (everywhere).
        accumulate: let backward passes write into ``parameter.grad`` themselves instead of handing whole tensors to
            autograd: faster, for ``loss.backward()`` only (not ``torch.autograd.grad``).
    """

    def __init__(self, model: models.Classifier):
        """Run ``model.features``.

        Raises:
            ValueError: a network of another kind (:func:`layers_of`).
            UserError: the kernel is not compiled here.
        """
        layers = layers_of(model)
        if layers is None:
            raise ValueError(f"the sparse kernel does not know networks like {type(model).__name__}")
        library.require()
        self.model = model
        self.layers = layers
        self.positions: Density = "masked"
        self.accumulate = False
        self.handle = id(self)
        _networks[self.handle] = self
        self._modules = list(model.modules())
        self._convs = [layer.conv for layer in layers]
        self._norms = [layer.norm for layer in layers]
        self._own: list[Tensor] = [
            p for layer in layers for p in (layer.conv.weight, layer.norm.weight, layer.norm.bias)
        ]
        first = layers[0]
        self.shape = (first.conv.in_channels, first.rows, first.columns)
        self._least = min(layer.out_rows * layer.out_columns for layer in layers)  # values of a channel and image
        self._parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._names = [f"{layer.name}.weight" for layer in layers]
        self._weights: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._version = -1
        self._indices: dict[tuple[int, str], tuple[Tensor | None, Index]] = {}
        self._changes = 0  # of the masks
        self._batches: dict[tuple[int, ...], _Batch] = {}
        self._pools: dict[tuple[int, int], tuple[Areas, Areas]] = {}
        self._descent: tuple[Any, Any, list[Tensor]] = (None, None, [])
        self._fresh = True
        self._written: dict[int, Index] = {}
        self._memory: dict[str, Tensor] = {}
        self._largest: int | None = None

    # -- masks ---------------------------------------------------------------------------------------------------------
    def follow(self, masks: MaskSet) -> None:
        """Take over the masks of ``masks`` if they have changed since the last call."""
        if self._version != masks.version:
            self.set_masks(masks.weight, masks.gradient)
            self._version = masks.version

    def set_masks(self, weight: Mapping[str, Tensor], gradient: Mapping[str, Tensor] | None = None) -> None:
        """Use these bool masks, by parameter name: which weights exist, and which of them learn (default: all)."""
        self._weights, self._gradients = dict(weight), dict(gradient or {})
        self._changes += 1

    def density(self) -> float:
        """Return the fraction of the convolutions' weights that exist."""
        counts = [self._index(i, "weights").count for i in range(len(self.layers))]
        return sum(counts) / sum(layer.conv.weight.numel() for layer in self.layers)

    def _index(self, i: int, positions: Density) -> Index:
        """Return layer i's index for ``positions``, built anew if its mask is another tensor than last time."""
        name = self._names[i]
        mask = self._weights.get(name)
        if positions == "masked" and name in self._gradients:
            mask = self._gradients[name]
        elif positions == "dense" and mask is not None:
            mask = None
        else:
            positions = "weights"
        known = self._indices.get((i, positions))
        if known is None or known[0] is not mask or known[1].instruction_set != library.instruction_set():
            layer = self.layers[i]
            index = Index(
                mask, layer.conv.weight.detach(), layer.conv.stride[0], layer.rows, layer.columns,
                backward=layer.source >= 0 and positions == "weights",
            )  # fmt: skip
            known = self._indices[i, positions] = (mask, index)
        return known[1]

    def _evaluate(self, images: Tensor) -> Tensor:
        """Return the features (N, D) in evaluation mode, where no image depends on another, in large batches."""
        if self._largest is None:
            one = _Batch(self.layers, (LANES,)).saved_size
            self._largest = max(1, min(32, EVALUATION_FLOATS // one)) * LANES
        found = []
        for part in images.split(self._largest):
            found.append(self.forward([part], [False] * len(self.layers))[0])
        return torch.cat(found)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model has the dense kernel."""
        return None

    # -- passes --------------------------------------------------------------------------------------------------------
    def features(self, passes: Sequence[Tensor]) -> list[Tensor]:
        """Return the features (n, D) of every pass (n, C, H, W), float32."""
        return list(self.joined(passes).split([len(images) for images in passes]))

    def joined(self, passes: Sequence[Tensor]) -> Tensor:
        """Return the features (sum n, D) of all passes (n, C, H, W), float32.

        In training mode every pass is normalized by its own batch statistics, and the running statistics see the
        passes one after another, as in calls of ``model.features`` on each of them.
        """
        sizes = [len(images) for images in passes]
        self._check(passes)
        if not torch.is_grad_enabled() and not any(self.training()):
            return self._evaluate(torch.cat(list(passes)))
        parameters, training = self.parameters(), self.training()
        if self.accumulate:
            anchor = next((p for p in parameters if p.requires_grad), parameters[0])
            found, saved = _Accumulated.apply(self, anchor, training, *passes)
        else:
            found, saved = features(list(passes), parameters, training, self.handle)
        if any(training):
            self.update_running(tuple(sizes), saved)
        return found

    def _check(self, passes: Sequence[Tensor]) -> None:
        """Refuse what PyTorch refuses: images of another shape, and a batch with one value per channel to normalize.

        Raises:
            ValueError: as said.
        """
        for images in passes:
            if images.shape[1:] != self.shape:
                raise ValueError(f"expected images of shape {self.shape}, got {tuple(images.shape[1:])}")
        if any(self.training()) and self._least * min(map(len, passes)) == 1:
            raise ValueError("expected more than 1 value per channel when training, got a batch of 1 image")

    def usable(self, images: Tensor) -> bool:
        """Say whether ``model.features(images)`` may be computed here: float32 on the CPU, of its shape, no hooks."""
        return (
            images.dtype == torch.float32
            and images.device.type == "cpu"
            and not images.requires_grad
            and images.shape[1:] == self.shape
            and not torch.is_autocast_enabled("cpu")
            and not any(module._forward_hooks or module._forward_pre_hooks for module in self._modules)
        )

    def parameters(self) -> list[Tensor]:
        """Return weight, scale and shift of every layer, in forward order."""
        return self._own

    def zero_gradients(self, optimizer: SGD) -> None:
        """Make every gradient 0; with ``accumulate`` the next backward pass overwrites those it computes instead."""
        own = {id(p) for p in self.parameters() if p.requires_grad} if self.accumulate else set()
        gradients = [p.grad for p in optimizer.parameters if p.grad is not None and id(p) not in own]
        if gradients:
            torch._foreach_zero_(gradients)
        self._fresh = True

    def _batch(self, sizes: tuple[int, ...]) -> _Batch:
        return _recent(self._batches, sizes, LAYOUTS, lambda: _Batch(self.layers, sizes))

    def _pool(self, batch: _Batch) -> tuple[Areas, Areas]:
        """Return where a batch's saved area and the backward pass's working area come from."""
        return _recent(self._pools, batch.key, POOLS, lambda: (Areas(batch.saved_size), Areas(batch.work_size)))

    # -- calls of the library ------------------------------------------------------------------------------------------
    def training(self) -> list[bool]:
        """Return whether each layer is normalized by the statistics of its batch."""
        return [norm.training for norm in self._norms]

    def _prepare(self, batch: _Batch, saved: Tensor, training: Sequence[bool]) -> NetworkCall:
        """Return the C description of a call; what cannot change is kept with the batch's layout."""
        call = batch.call
        if call is None:
            call = batch.call = self._describe(batch)
        parameters = self.parameters()
        filled = (self._changes, library.instruction_set(), training, [p.data_ptr() for p in parameters])
        if batch.filled != filled:
            self._fill(batch, training)
            batch.filled = filled
        call.threads = torch.get_num_threads()
        call.saved = saved.data_ptr()
        return call

    def _fill(self, batch: _Batch, training: Sequence[bool]) -> None:
        """Name the weights' indices and the addresses of parameters and running statistics."""
        for i, (norm, s) in enumerate(zip(self._norms, batch.structures, strict=True)):
            s.index = s.gradient_index = self._index(i, "weights").pointer
            s.training, s.eps, s.momentum = training[i], norm.eps, norm.momentum
            own: dict[str, Any] = norm._parameters
            buffers: dict[str, Any] = norm._buffers
            s.weight, s.gamma, s.beta = (
                self._convs[i].weight.data_ptr(), own["weight"].data_ptr(), own["bias"].data_ptr(),
            )  # fmt: skip
            s.running_mean, s.running_var, s.batches = (
                buffers["running_mean"].data_ptr(), buffers["running_var"].data_ptr(),
                buffers["num_batches_tracked"].data_ptr(),
            )  # fmt: skip

    def _describe(self, batch: _Batch) -> NetworkCall:
        batch.structures = (Layer * len(self.layers))()
        for i, (layer, s) in enumerate(zip(self.layers, batch.structures, strict=True)):
            conv = layer.conv
            s.source, s.residual, s.shortcut, s.user = layer.source, layer.residual, layer.shortcut, layer.user
            s.inputs, s.outputs, s.kernel, s.stride = (
                conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0],
            )  # fmt: skip
            s.in_rows, s.in_columns, s.rows, s.columns = layer.rows, layer.columns, layer.out_rows, layer.out_columns
            s.relu, s.pool, s.accumulate, s.final = layer.user < 0, layer.pool, layer.accumulate, layer.user < 0
            s.y, s.z, s.pooled, s.statistics = batch.saved_offsets[i]
            s.gz, s.gy, s.gpooled = batch.work_offsets[i]
        return NetworkCall(
            layers=batch.structures, count=len(self.layers), blocks=batch.blocks, groups=batch.groups,
            group=batch.group.data_ptr(), group_sizes=batch.group_sizes.data_ptr(), lanes=batch.lanes.data_ptr(),
            images=batch.images,
        )  # fmt: skip

    def _lend(self, call: NetworkCall) -> None:
        """Give the call memory to work in, which belongs to the network."""
        loops = library.require()
        stride = loops.network_scratch(call)
        sizes = {
            "scratch": stride * call.threads, "sums": loops.network_sums(call), "parts": 2 * loops.network_parts(call),
        }  # fmt: skip
        for name, size in sizes.items():
            if name not in self._memory or len(self._memory[name]) < size:
                self._memory[name] = Areas(size).take()
            setattr(call, name, self._memory[name].data_ptr())
        call.scratch_stride = stride

    def forward(self, passes: Sequence[Tensor], training: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Return features (sum n, D) and the saved area; what the operator ``sparcl::features`` computes."""
        loops = library.require()
        batch = self._batch(tuple(len(images) for images in passes))
        saved = self._pool(batch)[0].take()
        call = self._prepare(batch, saved, training)
        self._lend(call)
        for images, start in zip(passes, batch.starts, strict=True):
            images = images.detach().float()
            strides = (ctypes.c_int64 * 4)(*images.stride())
            loops.network_pack(call, images.data_ptr(), strides, len(images), start)
        found = torch.empty(batch.blocks * LANES, batch.outputs)
        loops.network_forward(call, found.data_ptr())
        return found if batch.rows is None else found[batch.rows], saved

    def update_running(self, sizes: tuple[int, ...], saved: Tensor) -> None:
        """Bring the running statistics up to date with the forward pass that left ``saved``, just before."""
        call = self._batch(sizes).call
        assert call is not None
        call.saved = saved.data_ptr()
        library.require().network_running(call)

    def backward(
        self, gradient: Tensor, saved: Tensor, sizes: tuple[int, ...], training: Sequence[bool], wanted: Sequence[bool]
    ) -> list[Tensor]:
        """Return the gradient of every wanted parameter (weight, scale, shift of each layer in turn).

        With ``accumulate`` they are added to ``parameter.grad`` instead, and the list is empty.
        """
        loops = library.require()
        batch = self._batch(sizes)
        call = self._prepare(batch, saved, training)
        work = self._pool(batch)[1].take()
        call.work = work.data_ptr()
        call.first = wanted.index(True) // 3
        call.add = int(self.accumulate and not self._fresh)
        found: list[Tensor] = []
        for i, s in enumerate(batch.structures):
            places = [0, 0, 0]
            for j, parameter in enumerate(self._own[3 * i : 3 * i + 3]):
                if wanted[3 * i + j]:
                    index = self._index(i, self.positions) if j == 0 else None
                    if index is not None:
                        s.gradient_index = index.pointer
                    found.append(self._place(parameter, i, index))
                    places[j] = found[-1].data_ptr()
            s.weight_gradient, s.gamma_gradient, s.beta_gradient = places
        self._lend(call)
        padded = gradient.detach().contiguous()
        if batch.rows is not None:
            padded = torch.zeros(batch.blocks * LANES, batch.outputs)
            padded[batch.rows] = gradient
        if not loops.network_backward(call, padded.data_ptr()):
            raise RunError("a backward pass does not fit into memory")
        self._fresh = False
        return [] if self.accumulate else found

    # -- optimizer -----------------------------------------------------------------------------------------------------
    def step(self, optimizer: SGD) -> None:
        """Do what ``mask_gradients()``, ``optimizer.step()`` and ``project()`` do, touching existing weights only.

        Weights that do not exist, and their momentum, must be 0, as :class:`~sparcl.masks.MaskSet` leaves them. Weight
        decay is the caller's to add to the gradients.
        """
        pairs = [(p, p.grad) for p in optimizer.parameters if p.grad is not None]
        key = (
            self._changes, library.instruction_set(), [(p.data_ptr(), g.data_ptr()) for p, g in pairs],
            [optimizer.momenta[p].data_ptr() for p, _ in pairs if p in optimizer.momenta],
        )  # fmt: skip
        if self._descent[0] != key:
            moved, held = self._moved(optimizer, pairs)
            # Momentum may just have been made; a gradient in another memory format is copied at every step.
            again = len(key[3]) != len(optimizer.momenta) or not all(_same_layout(g, p) for p, g in pairs)
            self._descent = (None if again else key, moved, held)
        moved = self._descent[1]
        library.require().sgd_step(
            moved, len(moved), optimizer.learning_rate, optimizer.momentum, torch.get_num_threads()
        )

    def _moved(self, optimizer: SGD, pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> tuple[Any, list[Tensor]]:
        """Return the C description of a step, and the tensors that it points to."""
        numbers = {name: i for i, name in enumerate(self._names)}
        moved: list[Descent] = []
        held: list[Tensor] = []
        for parameter, given in pairs:
            name = self._parameter_names.get(id(parameter), "")
            momentum = None
            if optimizer.momentum:
                momentum = optimizer.momenta.get(parameter)
                if momentum is None:
                    momentum = optimizer.momenta[parameter] = torch.zeros_like(parameter).detach()
                elif not _same_layout(momentum, parameter):
                    momentum = optimizer.momenta[parameter] = torch.empty_like(parameter).copy_(momentum).detach()
            gradient = _like(given, parameter)
            learning = self._gradients.get(name)
            learning = None if learning is None else _like(learning, parameter)
            held += [t for t in (gradient, learning) if t is not None]
            moved.append(
                Descent(
                    self._index(numbers[name], "weights").pointer if name in self._weights else None,
                    parameter.data_ptr(),
                    None if momentum is None else momentum.data_ptr(),
                    gradient.data_ptr(),
                    None if learning is None else learning.data_ptr(),
                    parameter.numel(),
                )
            )
        return (Descent * len(moved))(*moved), held

    def _place(self, parameter: Tensor, i: int, index: Index | None) -> Tensor:
        """Return the tensor that receives a gradient; where ``index`` has no weight it is 0."""
        if not self.accumulate:
            whole = index is None or index.count == parameter.numel()
            return torch.empty_like(parameter) if whole else torch.zeros_like(parameter)
        place = parameter.grad
        if place is None or not _same_layout(place, parameter):
            place = parameter.grad = torch.zeros_like(parameter)
        elif index is not None and self._fresh and self._written.get(i) is not index:
            place.zero_()
        if index is not None:
            self._written[i] = index
        return place


def _same_layout(one: Tensor, other: Tensor) -> bool:
    """Say whether equal positions are at equal distances in memory; strides of dimensions of size 1 say nothing."""
    return all(a == b for n, a, b in zip(one.shape, one.stride(), other.stride(), strict=True) if n > 1)


def _like(values: Tensor, parameter: Tensor) -> Tensor:
    """Return ``values`` in the memory format of ``parameter``."""
    if _same_layout(values, parameter):
        return values
    return torch.empty_like(parameter, dtype=values.dtype).copy_(values)


def _recent(kept: dict[Any, Any], key: Any, most: int, make: Callable[[], Any]) -> Any:
    """Return what ``kept`` has for ``key``, made if need be; of more than ``most`` the least recently used goes."""
    if key in kept:
        kept[key] = kept.pop(key)
    else:
        if len(kept) == most:
            kept.pop(next(iter(kept)))
        kept[key] = make()
    return kept[key]


_networks: weakref.WeakValueDictionary[int, Network] = weakref.WeakValueDictionary()


# -- the operator ------------------------------------------------------------------------------------------------------
@torch.library.custom_op("sparcl::features", mutates_args=(), device_types="cpu")
def features(
    passes: list[Tensor], parameters: list[Tensor], training: list[bool], network: int
) -> tuple[Tensor, Tensor]:
    """Return the features (sum n, D) of ``passes`` (n, C, H, W each) and what the backward pass needs.

    Args:
        passes: images, float32; every pass has batch statistics of its own.
        parameters: weight, scale and shift of every layer, in forward order: the network's own.
        training: per layer, whether it is normalized by the statistics of its batch.
        network: ``handle`` of a :class:`Network`.
    """
    return _networks[network].forward(passes, training)


@features.register_fake
def _(passes: list[Tensor], parameters: list[Tensor], training: list[bool], network: int) -> tuple[Tensor, Tensor]:
    batch = _networks[network]._batch(tuple(len(images) for images in passes))
    new = passes[0].new_empty
    return new((sum(batch.sizes), batch.outputs)), new((batch.saved_size,))


@torch.library.custom_op("sparcl::features_backward", mutates_args=(), device_types="cpu")
def features_backward(
    gradient: Tensor,
    saved: Tensor,
    parameters: list[Tensor],
    training: list[bool],
    network: int,
    sizes: list[int],
    wanted: list[bool],
) -> list[Tensor]:
    """Return the gradients of the wanted parameters from that of the features."""
    return _networks[network].backward(gradient, saved, tuple(sizes), training, wanted)


@features_backward.register_fake
def _(
    gradient: Tensor,
    saved: Tensor,
    parameters: list[Tensor],
    training: list[bool],
    network: int,
    sizes: list[int],
    wanted: list[bool],
) -> list[Tensor]:
    return [torch.empty_like(p) for p, want in zip(parameters, wanted, strict=True) if want]


def _setup(ctx: Any, inputs: tuple[list[Tensor], list[Tensor], list[bool], int], output: tuple[Tensor, Tensor]) -> None:
    passes, parameters, training, network = inputs
    if any(images.requires_grad for images in passes):
        raise ValueError("the sparse kernel computes no gradient of the images")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *parameters)
    ctx.training, ctx.network, ctx.sizes = training, network, [len(images) for images in passes]
    ctx.wanted = [bool(parameter.requires_grad) for parameter in parameters]


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    given: list[Tensor | None] = [None] * len(ctx.wanted)
    if gradient is not None and any(ctx.wanted):
        saved, *parameters = ctx.saved_tensors
        found = features_backward(gradient, saved, parameters, ctx.training, ctx.network, ctx.sizes, ctx.wanted)
        each = iter(found)
        given = [next(each) if want else None for want in ctx.wanted]
    return [None] * len(ctx.sizes), given, None, None


features.register_autograd(_backward, setup_context=_setup)


class _Accumulated(torch.autograd.Function):
    """The operator without its wrapping, for a network that writes into ``parameter.grad`` itself."""

    @staticmethod
    def forward(
        ctx: Any, network: Network, anchor: Tensor, training: list[bool], *passes: Tensor
    ) -> tuple[Tensor, Tensor]:
        if any(images.requires_grad for images in passes):
            raise ValueError("the sparse kernel computes no gradient of the images")
        found, saved = network.forward(passes, training)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(saved)
        ctx.network, ctx.training, ctx.sizes = network, training, tuple(len(images) for images in passes)
        return found, saved

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        (saved,) = ctx.saved_tensors
        wanted = [parameter.requires_grad for parameter in ctx.network.parameters()]
        if gradients[0] is not None and any(wanted):
            ctx.network.backward(gradients[0], saved, ctx.sizes, ctx.training, wanted)
        return (None,) * (3 + len(ctx.sizes))
