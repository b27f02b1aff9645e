"""One masked convolution against float64, on every layer shape of every network and on drawn ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparcl import models
from sparcl.kernels import library
from sparcl.kernels.convolution import convolution, convolve
from sparcl.kernels.index import Index
from sparcl.kernels.network import layers_of

NETWORKS = [
    ("resnet18", 64, (3, 32, 32)), ("resnet18", 20, (3, 32, 32)), ("resnet18", 16, (3, 64, 64)),
    ("resnet8", 16, (1, 8, 8)), ("resnet8", 8, (1, 28, 28)), ("cnn", 16, (1, 8, 8)), ("cnn", 32, (3, 32, 32)),
]  # fmt: skip


def layer_shapes() -> list[tuple[int, ...]]:
    """Return (inputs, outputs, kernel, stride, rows, columns) of all layers of all networks."""
    found = set()
    for name, width, shape in NETWORKS:
        for layer in layers_of(models.build(name, width, 10, shape, torch.Generator())) or []:
            conv = layer.conv
            found.add(
                (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], layer.rows, layer.columns)
            )
    return sorted(found)


def compare(images: Tensor, weight: Tensor, mask: Tensor, learning: Tensor | None, stride: int) -> None:
    """Check output and gradients against float64; ``learning`` None: the weights' gradient is wanted everywhere."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = images.shape[2:]
    images = images.requires_grad_()
    weight = weight.requires_grad_()
    index = Index(mask, weight, stride, rows, columns)
    gradient_index = Index(learning, weight, stride, rows, columns, backward=False)
    found = convolve(images, weight, index, gradient_index)

    exact_images = images.detach().double().requires_grad_()
    exact_weight = (weight.detach() * mask).double().requires_grad_()
    exact = F.conv2d(exact_images, exact_weight, stride=stride, padding=weight.shape[-1] // 2)
    coefficients = torch.randn(exact.shape, generator=generator)
    (found * coefficients).sum().backward()
    (exact * coefficients).sum().backward()

    assert index.count == int(mask.sum())
    wanted = exact_weight.grad if learning is None else exact_weight.grad * learning
    for got, want, terms in (
        (found, exact, weight[0].numel()),
        (images.grad, exact_images.grad, weight[:, 0].numel()),
        (weight.grad, wanted, exact[:, 0].numel()),
    ):
        assert got.shape == want.shape
        bound = 1e-6 * (10 + terms**0.5) * (want.abs().max() + 1e-3)
        assert (got - want).abs().max() <= bound
    if learning is not None:
        assert not weight.grad[~learning].any()


def drawn(*shape: int, generator: torch.Generator, last: bool = True) -> Tensor:
    values = torch.randn(shape, generator=generator)
    return values.contiguous(memory_format=torch.channels_last) if last else values


@pytest.mark.parametrize("shape", layer_shapes(), ids=str)
def test_every_layer_of_every_network_is_right_to_rounding(shape: tuple[int, ...], generator: torch.Generator) -> None:
    inputs, outputs, kernel, stride, rows, columns = shape
    weight = drawn(outputs, inputs, kernel, kernel, generator=generator)
    mask = torch.rand(weight.shape, generator=generator) < 0.1
    learning = mask & (torch.rand(weight.shape, generator=generator) < 0.5)
    compare(drawn(3, inputs, rows, columns, generator=generator), weight, mask, learning, stride)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(library.instruction_sets() or ["none"]),
    batch=st.integers(1, 97),
    channels=st.tuples(st.integers(1, 19), st.integers(1, 37)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    density=st.sampled_from(["none", "one", "some", "full"]),
    learning=st.sampled_from(["existing", "some", "none", "dense"]),
    last=st.booleans(),
)
def test_any_shape_is_right_to_rounding(
    isa: str, batch: int, channels: tuple[int, int], size: tuple[int, int], kernel: int, stride: int, density: str,
    learning: str, last: bool,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(batch)
    weight = drawn(channels[1], channels[0], kernel, kernel, generator=generator, last=last)
    uniform = torch.rand(weight.shape, generator=generator)
    mask = {"none": uniform < 0, "one": uniform == uniform.min(), "some": uniform < 0.2, "full": uniform < 2}[density]
    learns = {"existing": mask, "some": mask & (uniform < 0.1), "none": uniform < 0, "dense": None}[learning]
    best = library.instruction_set()
    library.choose(isa)
    try:
        compare(drawn(batch, channels[0], *size, generator=generator, last=last), weight, mask, learns, stride)
    finally:
        library.choose(str(best))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_the_operator_is_one_for_pytorch(kernel: int, stride: int, generator: torch.Generator) -> None:
    weight = drawn(5, 3, kernel, kernel, generator=generator).requires_grad_()
    mask = torch.rand(weight.shape, generator=generator) < 0.4
    index = Index(mask, weight, stride, 6, 5)
    images = drawn(4, 3, 6, 5, generator=generator).requires_grad_()
    torch.library.opcheck(convolution, (images, weight, index.handle, index.handle))


def test_a_convolution_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="1x1 or 3x3"):
        Index(None, torch.zeros(2, 2, 5, 5), 1, 8, 8)
    with pytest.raises(ValueError, match="mask of shape"):
        Index(torch.ones(2, 3, 3, 3, dtype=torch.bool), torch.zeros(2, 2, 3, 3), 1, 8, 8)
    weight = torch.zeros(4, 2, 3, 3)
    with pytest.raises(ValueError, match=r"images: expected the shape \(2, 2, 8, 8\) of the index"):
        convolve(torch.zeros(2, 2, 6, 6), weight, Index(None, weight, 1, 8, 8))
