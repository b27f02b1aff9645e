"""Networks: published sizes, PyTorch's own initialization, and no touch of the global generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparcl import models
from sparcl.errors import UserError

SHAPES = {"resnet18": (3, 32, 32), "resnet8": (1, 8, 8), "cnn": (1, 28, 28), "mlp": (1, 28, 28)}


def make(name: str, seed: int = 0, width: int = 8, classes: int = 10) -> models.Classifier:
    return models.build(name, width, classes, SHAPES[name], torch.Generator().manual_seed(seed))


def test_resnet18_has_the_published_size():
    model = make("resnet18", width=64)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    sizes = dict(model.named_parameters())
    assert sum(sizes[name].numel() for name in models.maskable(model)) == 10_985_472
    assert len(models.maskable(model)) == 16
    assert all(sizes[name].shape[2:] == (3, 3) for name in models.maskable(model))
    assert models.maskable(model)[:3] == (
        "layer1.0.conv1.weight",
        "layer1.0.conv2.weight",
        "layer1.1.conv1.weight",
    )


def test_resnet8_masks_its_six_block_convolutions():
    model = make("resnet8", width=16)
    assert models.maskable(model) == tuple(
        f"layer{stage}.0.conv{index}.weight" for stage in (1, 2, 3) for index in (1, 2)
    )
    assert sum(p.numel() for p in model.parameters()) == 77_754


@pytest.mark.parametrize("name", models.names())
def test_forward_is_the_head_of_the_features(name):
    model = make(name)
    x = torch.randn(3, *SHAPES[name], generator=torch.Generator().manual_seed(5))
    features = model.eval().features(x)
    assert features.shape == (3, model.head.in_features)
    assert model(x).shape == (3, 10)
    assert torch.equal(model(x), model.head(features))
    inner = {id(p) for stage in model.stages for p in stage.parameters()}
    assert not inner & {id(p) for p in model.head.parameters()}
    for weight in models.maskable(model):
        assert id(model.get_parameter(weight)) in inner


@pytest.mark.parametrize("name", models.names())
def test_equal_generators_give_equal_models(name):
    first, again, other = make(name, 1), make(name, 1), make(name, 2)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.isfinite(value).all()
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("name", models.names())
def test_initialization_is_pytorchs_own(name):
    """Drawn with the same numbers, each layer equals what the layer's constructor would have drawn."""
    model = make(name, seed=11)
    torch.manual_seed(11)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            twin = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size, bias=module.bias is not None)
        elif isinstance(module, nn.Linear):
            twin = nn.Linear(module.in_features, module.out_features)
        else:
            continue
        torch.testing.assert_close(module.weight, twin.weight, rtol=1e-6, atol=0)
        if module.bias is not None:
            torch.testing.assert_close(module.bias, twin.bias, rtol=1e-6, atol=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert (module.running_mean == 0).all()
            assert (module.running_var == 1).all()
            assert module.num_batches_tracked == 0


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for name in models.names():
        make(name)
    assert torch.equal(before, torch.get_rng_state())


def test_convolutions_are_channels_last():
    model = make("resnet18")
    assert model.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.training


def test_bad_requests_are_named():
    generator = torch.Generator()
    with pytest.raises(UserError, match=r"model: .*did you mean 'resnet18'"):
        models.build("resnet1", 8, 10, (1, 8, 8), generator)
    with pytest.raises(UserError, match="width: expected a positive integer"):
        models.build("resnet8", 0, 10, (1, 8, 8), generator)
    with pytest.raises(UserError, match="classes: expected a positive integer"):
        models.build("resnet8", 8, 2.5, (1, 8, 8), generator)
    with pytest.raises(UserError, match="shape: expected"):
        models.build("cnn", 8, 10, (1, 2, 2), generator)
