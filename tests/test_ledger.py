"""The three FLOPs ledgers, against counts made by hand, one by one, and by two independent counters."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparcl import models
from sparcl.costs import convention, ledger
from sparcl.costs.ledger import LayerCost, Ledger
from sparcl.errors import UserError

# Two layers with 4 and 3 multiply-adds per weight, 10 and 20 weights.
COSTS = (LayerCost("a", 40, 10, True), LayerCost("b", 60, 20, False))


def build(name="resnet18", width=64, classes=10, shape=(3, 32, 32)):
    return models.build(name, width, classes, shape, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def cifar():
    return ledger.layer_costs(build(), (3, 32, 32))


@pytest.fixture(scope="module")
def tiny():
    return ledger.layer_costs(build(classes=200, shape=(3, 64, 64)), (3, 64, 64))


# Costs of layers


def test_resnet18_costs(cifar):
    assert sum(cost.macs for cost in cifar) == 555_422_720
    assert sum(cost.macs for cost in cifar if cost.maskable) == 547_356_672
    assert sum(cost.weights for cost in cifar if cost.maskable) == 10_985_472
    by_name = {cost.name: cost for cost in cifar}
    assert by_name["conv1.weight"].macs == 32 * 32 * 3 * 9 * 64
    assert by_name["layer2.0.conv1.weight"].macs == 16 * 16 * 64 * 9 * 128
    assert by_name["layer2.0.shortcut.0.weight"].macs == 16 * 16 * 64 * 128
    assert by_name["head.weight"].macs == 512 * 10
    assert by_name["layer4.1.conv2.weight"].macs_per_weight == 4 * 4


def test_tiny_imagenet_pays_four_times_as_much_per_image(cifar, tiny):
    assert sum(c.macs for c in tiny) == 4 * (555_422_720 - 5_120) + 512 * 200


def test_resnet8_costs_on_digits():
    costs = ledger.layer_costs(build("resnet8", 16, 10, (1, 8, 8)), (1, 8, 8))
    assert [cost.macs for cost in costs] == [
        9_216, 147_456, 147_456, 73_728, 147_456, 8_192, 73_728, 147_456, 8_192, 640,
    ]  # fmt: skip


@pytest.mark.parametrize("name", models.names())
def test_costs_name_the_weights_of_the_model(name):
    model = build(name, 8, 10, (1, 8, 8))
    sizes = {key: value.numel() for key, value in model.named_parameters()}
    costs = ledger.layer_costs(model, (1, 8, 8))
    assert tuple(cost.name for cost in costs if cost.maskable) == models.maskable(model)
    assert all(sizes[cost.name] == cost.weights for cost in costs)


@pytest.mark.parametrize("name", models.names())
def test_density_one_agrees_with_torchs_counter(name):
    """FlopCounterMode counts 2 per multiply-add: the same forward, and a backward of two forwards less the
    input gradient of the first layer, which nothing asks for and the ledger charges by convention."""
    model = build(name, 8, 10, (3, 16, 16)).train()
    costs = ledger.layer_costs(model, (3, 16, 16))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(model(x), torch.tensor([0, 1]))
    assert counter.get_total_flops() == 2 * 2 * sum(cost.macs for cost in costs)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    executed = Ledger(costs)
    executed.forward("stream", 2)
    executed.backward("stream", 2)
    first_input_gradient = 2 * 2 * costs[0].macs
    total = counter.get_total_flops() + backward.get_total_flops()
    assert executed.as_record()["training"] == total + first_input_gradient


def test_counting_leaves_the_model_as_it_is():
    model = build("resnet8", 8, 10, (1, 8, 8))
    model.bn1.eval()
    del model.name  # without a name there is no cache to answer from
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(4)
    state = torch.get_rng_state()
    ledger.layer_costs(model, (1, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_multiplications_elsewhere_are_refused():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            out = self.layer(x.flatten(1))
            return out @ out.T

    with pytest.raises(UserError, match="elsewhere"):
        ledger.layer_costs(Bilinear(), (1, 2, 2))


# The executed ledger


def test_hand_counted_steps():
    book = Ledger(COSTS)
    book.set_weight_counts({"a": 5})
    book.set_gradient_counts({"a": 2})
    book.forward("stream", 3)
    book.backward("stream", 3)
    book.forward("evaluation", 7)
    record = book.as_record()
    assert record["lines"]["stream"] == {
        "forward": 2 * 3 * (5 * 4 + 60),
        "input_gradient": 2 * 3 * (5 * 4 + 60),
        "weight_gradient": 2 * 3 * (2 * 4 + 60),
    }
    assert record["layers"] == {"a": 2 * 3 * 4 * (5 + 5 + 2), "b": 2 * 3 * 3 * 60}
    assert record["training"] == sum(record["lines"]["stream"].values()) == sum(record["layers"].values())
    assert record["evaluation"] == 2 * 7 * 80


def test_gradient_follows_the_weights_until_told_otherwise():
    book = Ledger(COSTS)
    book.set_weight_counts({"a": 5})
    book.backward("stream", 1)
    book.set_gradient_counts({"a": 1})
    book.backward("stream", 1)
    book.set_gradient_counts({})
    book.backward("stream", 1)
    assert book.as_record()["lines"]["stream"]["weight_gradient"] == 2 * (4 * (5 + 1 + 5) + 3 * 60)


@pytest.mark.parametrize(
    ("wanted", "extra"),
    [
        ({}, {}),
        ({"gradient_refresh": "weights"}, {"gradient_refresh": 3}),
        ({"dense_gradient": "dense"}, {"dense_gradient": 8}),
        ({"importance": "weights", "gradient_refresh": "weights"}, {"importance": 3}),
        ({"gradient_refresh": "weights", "dense_gradient": "dense"}, {"gradient_refresh": 3, "dense_gradient": 5}),
        ({"dense_gradient": "dense", "gradient_refresh": "weights"}, {"dense_gradient": 8}),
    ],
)
def test_a_step_pays_once_for_what_several_want(wanted, extra):
    """Ten weights in layer a: 5 exist, 2 learn; 7 stream images and 3 replayed ones."""
    book = Ledger(COSTS)
    book.set_weight_counts({"a": 5})
    book.set_gradient_counts({"a": 2})
    book.step(7, 3, wanted)
    lines = book.as_record()["lines"]
    for line, images in (("stream", 7), ("replay", 3)):
        passed = 2 * images * (4 * 5 + 60)
        assert lines[line] == {
            "forward": passed, "input_gradient": passed, "weight_gradient": 2 * images * (4 * 2 + 60),
        }  # fmt: skip
    found = {line: kinds for line, kinds in lines.items() if line not in ("stream", "replay")}
    none = {"forward": 0, "input_gradient": 0}
    assert found == {line: none | {"weight_gradient": 2 * 10 * 4 * count} for line, count in extra.items()}


def test_weight_gradient_density_can_be_chosen():
    totals = {}
    for at in ("masked", "weights", "dense"):
        book = Ledger(COSTS)
        book.set_weight_counts({"a": 5})
        book.set_gradient_counts({"a": 2})
        book.backward("importance", 1, weight_gradient=at)
        totals[at] = book.as_record()["lines"]["importance"]["weight_gradient"]
    assert totals == {"masked": 2 * (8 + 60), "weights": 2 * (20 + 60), "dense": 2 * (40 + 60)}


def test_frozen_prefix_has_no_backward():
    costs = (*COSTS, LayerCost("c", 7, 7, False))
    book = Ledger(costs)
    book.set_frozen(["a"])
    book.forward("stream", 1)
    book.backward("stream", 1)
    assert book.as_record()["layers"] == {"a": 2 * 40, "b": 2 * 3 * 60, "c": 2 * 3 * 7}
    book = Ledger(costs)
    book.set_frozen(["b"])  # the gradient still passes through to "a"
    book.backward("stream", 1)
    assert book.as_record()["layers"] == {"a": 2 * 2 * 40, "b": 2 * 60, "c": 2 * 2 * 7}


def test_mistakes_are_refused():
    book = Ledger(COSTS)
    with pytest.raises(ValueError, match="expected one of a, b, got 'c'"):
        book.set_weight_counts({"c": 1})
    with pytest.raises(ValueError, match="expected 0 to 10, got 11"):
        book.set_gradient_counts({"a": 11})
    with pytest.raises(ValueError, match="density: expected"):
        book.backward("stream", 1, weight_gradient="sparse")
    with pytest.raises(UserError, match="same layers"):
        Ledger(COSTS[:1]).load(book.state())


steps = st.lists(
    st.tuples(
        st.sampled_from(["forward", "backward", "extra", "weights", "gradients", "evaluate"]),
        st.integers(0, 10),
        st.integers(1, 10**12),
    ),
    max_size=30,
)


def replay(book: Ledger, calls) -> None:
    for call, count, images in calls:
        if call == "forward":
            book.forward("stream", images)
        elif call == "backward":
            book.backward("replay", images)
        elif call == "extra":
            book.step(images, 0, {"gradient_refresh": "dense"})
        elif call == "weights":
            book.set_weight_counts({"a": count})
        elif call == "gradients":
            book.set_gradient_counts({"a": count})
        else:
            book.forward("evaluation", images)


@given(steps)
def test_ledger_equals_a_step_by_step_sum(calls):
    """Deferred counting gives what adding up every call at once gives, at totals beyond 64 bits too."""
    book = Ledger(COSTS)
    replay(book, calls)
    weights, gradients, training, evaluation = 10, None, 0, 0
    for call, count, images in calls:
        gradient = weights if gradients is None else gradients
        if call == "forward":
            training += 2 * images * (4 * weights + 60)
        elif call == "backward":
            training += 2 * images * (4 * weights + 60 + 4 * gradient + 60)
        elif call == "extra":
            training += 2 * images * (2 * (4 * weights + 60) + 4 * 10 + 60)
        elif call == "weights":
            weights = count
        elif call == "gradients":
            gradients = count
        else:
            evaluation += 2 * images * (4 * weights + 60)
    record = book.as_record()
    assert (record["training"], record["evaluation"]) == (training, evaluation)
    assert record["training"] == sum(record["layers"].values())


@given(steps, st.integers(0, 30))
def test_interrupted_ledger_equals_uninterrupted(calls, cut):
    whole, first, second = Ledger(COSTS), Ledger(COSTS), Ledger(COSTS)
    first.set_frozen(["b"])
    whole.set_frozen(["b"])
    replay(whole, calls)
    replay(first, calls[:cut])
    second.load(json.loads(json.dumps(first.state())))
    replay(second, calls[cut:])
    assert second.as_record() == whole.as_record()
    assert second.state() == whole.state()


def count_one_by_one(weight, gradient_mask, image, stride, padding):
    """Multiply-adds of a masked convolution, counted one at a time: forward, input, weight gradient.

    A multiply-add that reads the zero padding is counted like any other, as in all usual counters.
    """
    outputs, inputs, kernel, _ = weight.shape
    out = (image + 2 * padding - kernel) // stride + 1
    forward = gradient = 0
    places = itertools.product(range(out), range(out))
    for _y, _x in places:
        for o, i, ky, kx in itertools.product(range(outputs), range(inputs), range(kernel), range(kernel)):
            if weight[o, i, ky, kx] != 0:
                forward += 1  # once to the output, once more to the input gradient
            if gradient_mask[o, i, ky, kx]:
                gradient += 1
    return forward, forward, gradient


def test_masked_network_counted_one_multiply_at_a_time():
    generator = torch.Generator().manual_seed(7)
    model = build("resnet8", 2, 3, (1, 6, 6))
    costs = ledger.layer_costs(model, (1, 6, 6))
    book = Ledger(costs)
    weight_counts, gradient_counts, expected = {}, {}, [0, 0, 0]
    image = {"conv1": 6, "layer1": 6, "layer2": 6, "layer3": 3}
    for name, parameter in model.named_parameters():
        if parameter.ndim != 4:
            continue
        mask = torch.ones(parameter.shape, dtype=torch.bool)
        gradient = mask
        if name in models.maskable(model):
            mask = torch.rand(parameter.shape, generator=generator) < 0.4
            gradient = mask & (torch.rand(parameter.shape, generator=generator) < 0.5)
            weight_counts[name], gradient_counts[name] = int(mask.sum()), int(gradient.sum())
        module = model.get_submodule(name.removesuffix(".weight"))
        size = image[name.split(".")[0]]
        if name.endswith("conv2.weight") and module.in_channels > 2:
            size = (size + 1) // 2  # behind the stride of the block's first convolution
        counted = count_one_by_one(mask.int(), gradient, size, module.stride[0], module.padding[0])
        expected = [a + b for a, b in zip(expected, counted, strict=True)]
    head = model.head.weight.numel()
    expected = [count + head for count in expected]
    book.set_weight_counts(weight_counts)
    book.set_gradient_counts(gradient_counts)
    book.forward("stream", 5)
    book.backward("stream", 5)
    assert list(book.as_record()["lines"]["stream"].values()) == [2 * 5 * count for count in expected]


@given(st.integers(0, 10), st.integers(0, 10), st.integers(1, 1000))
def test_cost_never_grows_with_sparsity(more, fewer, images):
    more, fewer = max(more, fewer), min(more, fewer)
    totals = []
    for count in (more, fewer):
        book = Ledger(COSTS)
        book.set_weight_counts({"a": count})
        book.forward("stream", images)
        book.backward("stream", images)
        totals.append(book.as_record()["training"])
    assert totals[1] <= totals[0] <= 3 * 2 * images * sum(cost.macs for cost in COSTS)
    assert (totals[0] == 3 * 2 * images * sum(cost.macs for cost in COSTS)) == (more == 10)


# The published convention


CIFAR = [10_000] * 5
TINY = [10_000] * 10


def test_paper_closed_form(cifar):
    """F = u r [(1 + n) d(s) + 2 d(g)], written out."""
    u = 2 * 555_422_720 * 50 * 50_000
    assert u == pytest.approx(2.7771e15, rel=1e-5)

    def d(x):
        return (547_356_672 * (1 - x) + 8_066_048) / 555_422_720

    got = convention.paper_flops(cifar, CIFAR, 50, 2, 0.75, 0.80, 0.76)
    assert got == pytest.approx(u * 0.76 * (3 * d(0.75) + 2 * d(0.80)), rel=1e-12)
    assert convention.paper_flops(cifar, CIFAR, 50, 0) == pytest.approx(3 * u, rel=1e-12)


def test_paper_sparsity_per_layer(cifar):
    same = {cost.name: 0.9 for cost in cifar if cost.maskable}
    assert convention.paper_flops(cifar, CIFAR, 50, 1, same) == pytest.approx(
        convention.paper_flops(cifar, CIFAR, 50, 1, 0.9), rel=1e-12
    )
    one = convention.paper_flops(COSTS, [1], 1, 0, {"a": 0.5})
    assert one == 2 * 3 * (20 + 60)


def test_data_fractions():
    assert convention.ramp_fraction(0.30, 20, 50) == pytest.approx((20 * 0.85 + 30 * 0.70) / 50) == pytest.approx(0.76)
    assert convention.ramp_fraction(0.30, 40, 20) == pytest.approx(0.925)  # ends half way down, at 0.85
    assert convention.ramp_fraction(0, 20, 50) == 1
    assert convention.ramp_fraction(0.3, 0, 50) == 1


def test_honest_count_of_the_published_runs(cifar):
    """The same runs with every backward charged: SparCL-DER++ at 0.75, 0.90, 0.95 against dense DER++."""
    dense = 3 * 2 * sum(cost.macs for cost in cifar) * 3 * 50 * 50_000  # the stream's batch and two replayed ones
    assert dense / 1e15 == pytest.approx(24.994, abs=1e-3)
    images = round(50 * 50_000 * 0.775)
    ratios, totals = [], []
    for s, g in ((0.75, 0.80), (0.90, 0.92), (0.95, 0.96)):
        book = Ledger(cifar)
        book.set_weight_counts({c.name: round(c.weights * (1 - s)) for c in cifar if c.maskable})
        book.set_gradient_counts({c.name: round(c.weights * (1 - g)) for c in cifar if c.maskable})
        for line, batches in (("stream", 1), ("replay", 2)):
            book.forward(line, batches * images)
            book.backward(line, batches * images)
        totals.append(book.as_record()["training"] / 1e15)
        ratios.append(dense / book.as_record()["training"])
    assert [round(total, 2) for total in totals] == [4.74, 2.06, 1.17]
    assert [round(ratio, 1) for ratio in ratios] == [5.3, 12.1, 21.3]
