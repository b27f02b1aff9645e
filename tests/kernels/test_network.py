"""Whole networks: against float64, with masks, joined passes, frozen layers, threads, fork."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl import models
from sparcl.errors import UserError
from sparcl.kernels import library
from sparcl.kernels import network as kernels
from sparcl.kernels.network import Network
from sparcl.masks import Density, MaskSet, allocate, at_random
from sparcl.optimizer import SGD

CASES = [
    ("resnet8", 6, (1, 8, 8), (32, 32, 32)),
    ("resnet8", 5, (3, 9, 7), (20, 3, 33)),
    ("resnet18", 4, (3, 32, 32), (16,)),
    ("cnn", 6, (3, 11, 10), (20, 16)),
    ("cnn", 4, (1, 8, 8), (1, 97)),
]


def made(
    name: str, width: int, shape: tuple[int, int, int], sparsity: float = 0.8
) -> tuple[models.Classifier, MaskSet]:
    """Return a model with drawn scales and shifts, and random masks in force."""
    generator = torch.Generator().manual_seed(0)
    model = models.build(name, width, 5, shape, generator)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.momentum = 0.3
    weights = dict(model.named_parameters())
    masks = MaskSet({n: weights[n] for n in models.maskable(model)})
    masks.adopt(at_random(masks.parameters, allocate(masks.shapes, sparsity), generator))
    return model, masks


def drawn(shape: tuple[int, int, int], sizes: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, *shape, generator=generator) for n in sizes]


def backward(found: Sequence[Tensor]) -> None:
    """Differentiate a fixed random function of the features of every pass."""
    generator = torch.Generator().manual_seed(2)
    torch.stack([(f * torch.randn(f.shape, generator=generator).to(f)).sum() for f in found]).sum().backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(got: Tensor, want: Tensor, tolerance: float = 2e-5) -> bool:
    return bool((got.detach() - want).abs().max() <= tolerance * (want.abs().max() + 1e-3))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_network_is_right_to_rounding(case: tuple, training: bool, isa: str) -> None:
    name, width, shape, sizes = case
    model, masks = made(name, width, shape)
    model.train(training)
    exact = copy.deepcopy(model).double()
    network = Network(model)
    network.follow(masks)
    passes = drawn(shape, sizes)
    found = network.features(passes)
    wanted = [exact.features(images.double()) for images in passes]
    for got, want in zip(found, wanted, strict=True):
        assert close(got, want)
    backward(found)
    backward(wanted)
    for (key, got), want in zip(gradients(model).items(), gradients(exact).values(), strict=True):
        assert close(got, want * masks.weight.get(key, 1), 2e-4), key
    for (key, got), want in zip(model.named_buffers(), exact.buffers(), strict=True):
        assert close(got.double(), want.double()), key


@pytest.mark.parametrize("positions", ["masked", "weights", "dense"])
def test_the_weight_gradient_is_computed_where_it_is_asked_for(positions: Density) -> None:
    model, masks = made("resnet8", 6, (1, 8, 8))
    generator = torch.Generator().manual_seed(3)
    masks.restrict_gradients({n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in masks.weight.items()})
    exact = copy.deepcopy(model).double()
    network = Network(model)
    network.follow(masks)
    network.positions = positions
    passes = drawn((1, 8, 8), (16, 16))
    backward(network.features(passes))
    backward([exact.features(images.double()) for images in passes])
    for name, want in gradients(exact).items():
        where = 1
        if name in masks.weight:
            where = {"masked": masks.gradient, "weights": masks.weight, "dense": None}[positions]
            where = 1 if where is None else where[name]
        assert close(gradients(model)[name], want * where, 2e-4), name


def test_evaluation_does_not_depend_on_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = made("resnet8", 6, (1, 8, 8))
    model.eval()
    network = Network(model)
    network.follow(masks)
    passes = drawn((1, 8, 8), (50, 3))
    with torch.no_grad():
        monkeypatch.setattr(kernels, "EVALUATION_FLOATS", 1)
        found = network.features(passes)
        monkeypatch.undo()
        again = Network(model)
        again.follow(masks)
        for got, other, images in zip(found, again.features(passes), passes, strict=True):
            assert torch.equal(got, other)
            assert close(got, model.features(images))


def test_changed_masks_are_followed() -> None:
    model, masks = made("resnet8", 6, (1, 8, 8), 0.5)
    network = Network(model)
    network.follow(masks)
    before = network.density()
    generator = torch.Generator().manual_seed(3)
    masks.replace(at_random(masks.parameters, allocate(masks.shapes, 0.9), generator))
    network.follow(masks)
    assert network.density() < before
    images = drawn((1, 8, 8), (16,))
    assert close(network.features(images)[0], model.features(images[0]))


def test_frozen_layers_get_no_gradient() -> None:
    model, masks = made("resnet8", 6, (1, 8, 8))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2.0.conv2", "layer3", "layer2.0.bn2")))
    for module in [model.bn1, model.layer1[0].bn1, model.layer1[0].bn2]:
        module.eval()
    exact = copy.deepcopy(model).double()
    network = Network(model)
    network.follow(masks)
    passes = drawn((1, 8, 8), (16, 16))
    backward(network.features(passes))
    backward([exact.features(images.double()) for images in passes])
    want = gradients(exact)
    assert gradients(model).keys() == want.keys() != {}
    for name, got in gradients(model).items():
        assert close(got, want[name] * masks.weight.get(name, 1), 2e-4), name
    for (name, got), other in zip(model.named_buffers(), exact.buffers(), strict=True):
        assert close(got.double(), other.double()), name


def run(threads: int, accumulate: bool = False, isa_steps: int = 2) -> list[Tensor]:
    """Return features and gradients of two steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, masks = made("resnet8", 6, (3, 16, 16))
        network = Network(model)
        network.follow(masks)
        network.accumulate = accumulate
        optimizer = SGD(model.parameters(), 0.01, 0.9)
        found: list[Tensor] = []
        for _ in range(isa_steps):
            network.zero_gradients(optimizer)
            features = network.features(drawn((3, 16, 16), (20, 32)))
            backward(features)
            found += [f.detach().clone() for f in features] + list(gradients(model).values())
            network.step(optimizer)
        return found + [p.detach().clone() for p in model.parameters()] + list(model.buffers())
    finally:
        torch.set_num_threads(before)


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_bits_do_not_depend_on_threads_or_repetition(isa: str) -> None:
    first = run(1)
    assert same(first, run(1))
    for threads in (2, 3, 7):
        assert same(first, run(threads))


def test_gradients_written_in_place_have_the_same_bits() -> None:
    assert same(run(1), run(1, accumulate=True))


def test_accumulated_gradients_add_up_until_they_are_zeroed() -> None:
    model, masks = made("resnet8", 6, (1, 8, 8))
    network = Network(model)
    network.follow(masks)
    network.accumulate = True
    passes = drawn((1, 8, 8), (16,))
    backward(network.features(passes))
    once = gradients(model)
    backward(network.features(passes))
    for name, twice in gradients(model).items():
        assert close(twice, 2 * once[name]), name
    optimizer = SGD(model.parameters(), 0.01)
    network.zero_gradients(optimizer)
    network.positions = "dense"
    backward(network.features(passes))
    network.zero_gradients(optimizer)
    network.positions = "masked"
    backward(network.features(passes))  # what the dense gradient wrote elsewhere is gone
    for name, got in gradients(model).items():
        assert torch.equal(got, once[name]), name


def test_two_forward_passes_may_wait_for_their_backward_passes() -> None:
    model, masks = made("resnet8", 6, (1, 8, 8))
    network = Network(model)
    network.follow(masks)
    passes = drawn((1, 8, 8), (16, 16))
    one = network.features(passes[:1])
    two = network.features(passes[1:])
    backward(two)
    backward(one)
    late = gradients(model)
    model.zero_grad()
    for part in (passes[1:], passes[:1]):
        backward(network.features(part))
    for name, got in gradients(model).items():
        assert torch.equal(got, late[name]), name


def test_a_forked_child_computes_the_same_bits() -> None:
    torch.set_num_threads(2)  # the parent's pool has a worker
    try:
        first = run(2)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # PyTorch's own threads do not survive a fork: nothing of it may run in parallel here
            torch.set_num_threads(1)
            os.write(writing, b"1" if same(first, run(1)) and same(first, _threaded(2)) else b"0")
            os._exit(0)
        os.close(writing)
        answer = os.read(reading, 1)
        assert os.waitpid(child, 0)[1] == 0
        assert answer == b"1"
    finally:
        torch.set_num_threads(1)


def _threaded(threads: int) -> list[Tensor]:
    """Run with ``threads`` of the kernel's while PyTorch has one."""
    real = torch.get_num_threads
    torch.get_num_threads = lambda: threads
    try:
        model, masks = made("resnet8", 6, (3, 16, 16))
        network = Network(model)
        network.follow(masks)
        optimizer = SGD(model.parameters(), 0.01, 0.9)
        found: list[Tensor] = []
        for _ in range(2):
            optimizer.zero_grad()
            features = network.features(drawn((3, 16, 16), (20, 32)))
            backward(features)
            found += [f.detach().clone() for f in features] + list(gradients(model).values())
            network.step(optimizer)
        return found + [p.detach().clone() for p in model.parameters()] + list(model.buffers())
    finally:
        torch.get_num_threads = real


def test_beside_pytorchs_threads() -> None:
    torch.set_num_threads(3)
    try:
        first = run(3)
        big = torch.randn(400, 400)
        for _ in range(3):
            (big @ big).relu().sum()
            assert same(first, run(3))
    finally:
        torch.set_num_threads(1)


def test_the_operator_is_one_for_pytorch() -> None:
    model, masks = made("resnet8", 4, (1, 8, 8))
    network = Network(model)
    network.follow(masks)
    passes = drawn((1, 8, 8), (5, 16))
    torch.library.opcheck(kernels.features, (passes, network.parameters(), network.training(), network.handle))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_is_that_of_sgd_with_masks(momentum: float) -> None:
    model, masks = made("resnet8", 6, (1, 8, 8))
    generator = torch.Generator().manual_seed(3)
    masks.restrict_gradients({n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in masks.weight.items()})
    other = copy.deepcopy(model)
    weights = dict(other.named_parameters())
    other_masks = MaskSet({n: weights[n] for n in masks.names})
    other_masks.load(masks.state())
    network = Network(model)
    network.follow(masks)
    optimizers = [SGD(m.parameters(), 0.1, momentum) for m in (model, other)]
    other_masks.momenta = optimizers[1].momenta
    for _ in range(3):
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator).to(memory_format=torch.preserve_format)
            a.grad = torch.empty_like(a).copy_(a.grad)
            b.grad = a.grad.clone()
        network.step(optimizers[0])
        other_masks.mask_gradients()
        optimizers[1].step()
        other_masks.project()
    for (name, got), want in zip(model.named_parameters(), other.parameters(), strict=True):
        assert close(got, want.detach(), 1e-6), name


def test_training_stays_with_the_dense_kernel() -> None:
    """The loss of masked training is that of the dense kernel, up to how rounding grows."""
    losses = []
    for sparse in (True, False):
        model, masks = made("resnet8", 6, (1, 8, 8))
        network = Network(model)
        network.follow(masks)
        network.accumulate = True
        optimizer = SGD(model.parameters(), 0.05, 0.9)
        masks.momenta = optimizer.momenta
        images, labels = drawn((1, 8, 8), (64,))[0], torch.arange(64) % 5
        curve = []
        for _ in range(60):
            model.head.zero_grad()
            if sparse:
                network.zero_gradients(optimizer)
            else:
                optimizer.zero_grad()
            passes = images.split(32)
            features = network.features(passes) if sparse else [model.features(part) for part in passes]
            loss = F.cross_entropy(model.head(torch.cat(features)), labels)
            loss.backward()
            if sparse:
                network.step(optimizer)
            else:
                masks.mask_gradients()
                optimizer.step()
                masks.project()
            curve.append(float(loss.detach()))
        losses.append(torch.tensor(curve))
    assert losses[0][-1] < 0.5 * losses[0][0]
    assert (losses[0] - losses[1])[:20].abs().max() < 1e-4
    assert (losses[0] - losses[1]).abs().max() < 0.05


def test_what_is_not_a_number_reaches_the_loss() -> None:
    model, masks = made("resnet8", 4, (1, 8, 8))
    network = Network(model)
    network.follow(masks)
    with torch.no_grad():
        model.layer1[0].conv1.weight[masks.weight["layer1.0.conv1.weight"]] = float("nan")
    assert network.features(drawn((1, 8, 8), (16,)))[0].isnan().all()


def test_networks_that_the_kernel_does_not_know() -> None:
    generator = torch.Generator().manual_seed(0)
    assert kernels.layers_of(models.build("mlp", 4, 5, (1, 8, 8), generator)) is None
    with pytest.raises(ValueError, match="does not know"):
        Network(models.build("mlp", 4, 5, (1, 8, 8), generator))
    model = models.build("resnet8", 4, 5, (1, 8, 8), generator)
    network = Network(model)
    images = drawn((1, 8, 8), (4,))[0]
    assert network.usable(images)
    handle = model.layer1.register_forward_hook(lambda *_: None)
    assert not network.usable(images)
    assert kernels.layers_of(model) is None
    handle.remove()
    assert not network.usable(images.double())
    assert copy.deepcopy(network) is None
    assert not network.usable(images[:, :, :4])
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\), got \(1, 4, 8\)"):
        network.features([images[:, :, :4]])
    with pytest.raises(ValueError, match="gradient of the images"):
        network.features([images.requires_grad_()])


def test_one_value_per_channel_is_refused_as_pytorch_does() -> None:
    """On 8 x 8 the last stage of a ResNet-18 has one pixel: a batch of one image has no variance."""
    model, masks = made("resnet18", 2, (1, 8, 8))
    network = Network(model)
    network.follow(masks)
    (one,) = drawn((1, 8, 8), (1,))
    for features in (model.features, lambda images: network.features([images])):
        with pytest.raises(ValueError, match="more than 1 value per channel when training"):
            features(one)
    model.eval()
    assert torch.allclose(network.features([one])[0], model.features(one), atol=1e-4)


def test_a_library_that_does_not_belong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that SPARCL_KERNELS names and that is none, and one that is older than its sources."""
    load = library.load.__wrapped__
    monkeypatch.setenv("SPARCL_KERNELS", str(tmp_path / "none.so"))
    with pytest.raises(UserError, match=r"SPARCL_KERNELS: expected a library of these kernels, got '.*none.so'"):
        load()
    monkeypatch.delenv("SPARCL_KERNELS")
    old = tmp_path / "_native.so"
    old.touch()
    os.utime(old, (0, 0))
    monkeypatch.setattr(library, "path", lambda: old)
    with pytest.raises(UserError, match=r"_native.so is older than its sources; 'python -m sparcl.kernels.build'"):
        load()
