"""Memory footprint: hand-counted bytes, and the published figures."""

from __future__ import annotations

import pytest
import torch
from printed import rounds_from, select
from torch import nn

from sparcl import models
from sparcl.costs import footprint
from sparcl.costs.convention import paper_memory
from sparcl.costs.memory import suite
from sparcl.memory import ReservoirMemory
from sparcl.running.runner import tensor_bytes


def of(model, shape, images, weights=(), learning=(), replay_memory=0, state=0):
    """Return the suite's count for a model with so many weights left, and learning, in the layers that are named."""
    weights, learning = dict(weights), dict(learning)
    sizes = {name: model.get_parameter(name).numel() for name in weights}
    return suite(
        sum(p.numel() for name, p in model.named_parameters() if name not in weights),
        sum(value.numel() * value.element_size() for value in model.buffers()),
        [(sizes[name], left, learning.get(name, left)) for name, left in weights.items()],
        footprint.saved_bytes(model, shape, images),
        replay_memory,
        state,
    )


def published_memory(model, sparsity=0.0, gradient=None):
    """Return the published count for batches of 32 images of CIFAR."""
    outputs = footprint.convolution_outputs(model, (3, 32, 32))
    return paper_memory(sum(p.numel() for p in model.parameters()), outputs, 32, sparsity, gradient)


def build(name="resnet18", width=64, classes=10, shape=(3, 32, 32)):
    return models.build(name, width, classes, shape, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet18():
    return build()


def test_resnet18_dense(resnet18):
    """32 images. Kept per image: the image, the outputs of all convolutions (read by batch normalization),
    the outputs of all ReLUs (read by the next convolution and by themselves), the features."""
    statistics = sum(m.num_features for m in resnet18.modules() if isinstance(m, nn.BatchNorm2d))
    counters = sum(isinstance(m, nn.BatchNorm2d) for m in resnet18.modules())
    memory = ReservoirMemory(500, (3, 32, 32), 10)
    got = of(resnet18, (3, 32, 32), 32, replay_memory=tensor_bytes(memory.state()))
    convolutions = 5 * 65_536 + 5 * 32_768 + 5 * 16_384 + 5 * 8_192
    rectified = 5 * 65_536 + 4 * (32_768 + 16_384 + 8_192)
    per_image = 3 * 32 * 32 + convolutions + rectified + 512
    assert got == {
        "weights": 4 * 11_173_962 + 4 * 2 * statistics + 8 * counters,
        "indices": 0,
        "gradients": 4 * 11_173_962,
        "activations": 4 * (32 * per_image + 2 * statistics),  # and mean and deviation of each normalization
        "replay_memory": 500 * (3_072 + 8 + 8 + 8 + 40),
        "optimizer": 0,
        "total": sum(value for key, value in got.items() if key != "total"),
    }


def test_masks_save_values_and_cost_indices(resnet18):
    name = "layer4.1.conv2.weight"
    size = resnet18.get_parameter(name).numel()
    dense = of(resnet18, (3, 32, 32), 1)
    left, learning = size // 10, size // 25
    got = of(resnet18, (3, 32, 32), 1, {name: left}, {name: learning}, state=12)
    assert dense["weights"] - got["weights"] == 4 * (size - left)
    assert dense["gradients"] - got["gradients"] == 4 * (size - learning)
    assert got["indices"] == size // 8 + -(-left // 8)
    assert got["activations"] == dense["activations"]
    assert got["total"] - got["optimizer"] == sum(got.values()) - got["total"] - 12
    follows = of(resnet18, (3, 32, 32), 1, {name: left})
    assert dense["gradients"] - follows["gradients"] == 4 * (size - left)


def test_perceptron_keeps_its_hidden_layers():
    """Kept: the image, two hidden layers. Nothing else is needed for the backward pass."""
    model = build("mlp", 100, 10, (1, 28, 28))
    assert footprint.saved_bytes(model, (1, 28, 28), 5) == 4 * 5 * (784 + 100 + 100)


@pytest.mark.parametrize("name", models.names())
def test_counted_without_data_equals_counted_with_data(name):
    """The same count on a real forward pass."""
    model = build(name, 8, 10, (1, 16, 16))
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(4, 1, 16, 16))
    real = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)
    assert footprint.saved_bytes(model, (1, 16, 16), 4) == real


def test_counting_leaves_the_model_as_it_is():
    model = build("resnet8", 8, 10, (1, 8, 8)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    of(model, (1, 8, 8), 4)
    footprint.convolution_outputs(model, (1, 8, 8))
    assert not model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


GRADIENT = {0: 0, 0.75: 0.80, 0.90: 0.92, 0.95: 0.96}


@pytest.mark.parametrize("figure", select(metric="memory_mb"), ids=lambda f: f.method)
def test_published_ablation_memory(resnet18, figure):
    masked = figure.method.startswith("sparcl") or "dgm" in figure.method
    gradient = GRADIENT[figure.sparsity] if masked else None
    got = published_memory(resnet18, figure.sparsity, gradient)["ablation_table"]
    assert rounds_from(got / 1e6, figure)


@pytest.mark.parametrize("figure", select(metric="memory_saving_percent"), ids=lambda f: f.sparsity)
def test_published_phone_savings(resnet18, figure):
    dense = published_memory(resnet18)["phone"]
    sparse = published_memory(resnet18, figure.sparsity, GRADIENT[figure.sparsity])["phone"]
    assert rounds_from(100 * (1 - sparse / dense), figure)
    # The other variant of the convention does not fit: it takes both.
    other = published_memory(resnet18, figure.sparsity, GRADIENT[figure.sparsity])
    whole = published_memory(resnet18)["ablation_table"]
    assert not rounds_from(100 * (1 - other["ablation_table"] / whole), figure)


def test_published_convention_counts(resnet18):
    assert footprint.convolution_outputs(resnet18, (3, 32, 32)) == 614_400
    assert len(select(metric="memory_mb")) == 5
    assert len(select(metric="memory_saving_percent")) == 2


def test_bytes_of_nested_state():
    state = {"a": torch.zeros(3), "b": [torch.zeros(2).bool(), 7], "c": {"d": (torch.zeros(1).double(),)}}
    assert tensor_bytes(state) == 12 + 2 + 8
