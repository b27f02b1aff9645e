"""LightCL: the regulation by hand and against autograd, what freezes, channel sparsity, given weights, FLOPs."""

from __future__ import annotations

import itertools

import pytest
import safetensors.torch
import torch
from short_runs import complete, make
from torch import nn

from baselines import lightcl
from sparcl import methods, models, resolve, streams, trainer
from sparcl.costs import ledger, planning
from sparcl.errors import UserError
from sparcl.masks import keep_count
from sparcl.running import runner
from sparcl.trainer import Run


def build(name="resnet8", width=4, seed=0):
    return models.build(name, width, 10, (1, 8, 8), torch.Generator().manual_seed(seed))


# -- the rule ----------------------------------------------------------------------------------------------------------
def test_regulation_by_hand():
    """One map with two channels of two pixels, one channel masked out; sums, not means."""
    new = [torch.tensor([[[[1.0, 2.0]], [[5.0, 5.0]]]])]
    old = [torch.tensor([[[[0.0, 4.0]], [[9.0, 9.0]]]])]
    logits, before = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 1.0]])
    found = lightcl.regulation(new, old, [torch.tensor([True, False])], logits, before)
    assert found.item() == 1 + 4 + 0.25 + 4


def test_regulation_gradient():
    maps = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)]
    logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    old, before, mask = torch.randn_like(maps[0]), torch.randn_like(logits), torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda m, z: lightcl.regulation([m], [old], [mask], z, before), (maps[0], logits))
    lightcl.regulation(maps, [old], [mask], logits, before).backward()
    assert int(maps[0].grad[:, 1].count_nonzero()) == 0
    assert torch.allclose(maps[0].grad[:, 0], 2 * (maps[0] - old)[:, 0])


def test_strongest_channels_by_hand():
    """Sums of |activation| over batch and space: 3, 8, 0, 6 and so on; round(0.15 * 20) = 3 of 20."""
    feature_map = torch.zeros(2, 20, 1, 2)
    feature_map[0, 4, 0, 0], feature_map[1, 4, 0, 1] = -5, 3
    feature_map[0, 7, 0, 0], feature_map[0, 9, 0, 0], feature_map[1, 2, 0, 0] = 6, 3, 2.5
    assert lightcl.strongest_channels(feature_map, 0.15).nonzero().flatten().tolist() == [4, 7, 9]
    assert int(lightcl.strongest_channels(feature_map[:, :2], 0.15).sum()) == 1


@pytest.mark.parametrize(("name", "count", "channels"), [("resnet18", 4, 32), ("resnet8", 2, 16), ("cnn", 1, 8),
                                                        ("mlp", 1, 4)])  # fmt: skip
def test_feature_maps_are_the_last_stages_rectified_outputs(name, count, channels):
    model = build(name).eval()
    x = torch.randn(3, 1, 8, 8)
    maps, logits = lightcl.feature_maps(model, x)
    assert [feature_map.shape[1] for feature_map in maps] == [channels] * count
    assert all((feature_map >= 0).all() for feature_map in maps)
    assert torch.equal(logits, model(x))
    pooled = maps[-1].mean((2, 3)) if maps[-1].dim() == 4 else maps[-1]
    assert torch.allclose(model.head(pooled), logits, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def test_loss_of_a_step_by_hand(digits):
    """At the task's start the regulation is exactly 0; after a change it is beta times the sums, written out."""
    run = Run(make("lightcl", params={"lightcl.beta": 0.5}), digits)
    at_start = []

    def stop(run):
        if run.phase.index == 1:
            raise KeyboardInterrupt

    original = run.learner.begin_task

    def begin_task(run):
        original(run)
        if run.phase.index == 1:
            batch = next(trainer.batches(run))
            terms, _ = run.learner.terms(run, batch.images, batch.labels, run.learner.replay(run))
            at_start.append(terms["regulation"].item())

    run.learner.begin_task = begin_task
    with pytest.raises(KeyboardInterrupt):
        trainer.train(run, after_step=stop)
    assert at_start == [0.0]
    ((held, labels, old_logits),) = run.learner.replay(run)
    assert len(held) == 15
    assert set(labels.tolist()) <= {2, 3}
    terms, _ = run.learner.terms(run, held, labels, run.learner.replay(run))
    maps, logits = lightcl.feature_maps(run.model, held)
    expected = ((logits - old_logits) ** 2).sum()
    for index, feature_map in enumerate(maps):
        chosen = run.learner.channels[str(index)]
        expected = expected + ((feature_map - run.learner.held[str(index)])[:, chosen] ** 2).sum()
    assert terms["regulation"].item() == pytest.approx(0.5 * expected.item(), rel=1e-6)
    assert expected.item() > 0


def test_held_images_are_the_first_of_the_new_tasks_first_batch(digits):
    run = Run(make("lightcl"), digits)
    run.phase = run.phases[2]
    run.enter_phase()
    run.clock = run.clock_at(0)
    first = next(trainer.batches(run))
    assert torch.equal(lightcl.first_positions(run, 15), first.positions[:15])


# -- freezing ----------------------------------------------------------------------------------------------------------
def outside(run):
    names = run.model.state_dict()
    return {name: tensor.clone() for name, tensor in names.items() if not name.startswith(("layer3.", "head."))}


@pytest.mark.parametrize("norm", ["running", "frozen"])
def test_everything_before_the_last_stage_freezes_after_the_first_task(norm, digits):
    states, channels = [], []

    def watch(run):
        states.append(outside(run))
        channels.append({key: mask.clone() for key, mask in run.learner.channels.items()})

    run = complete("lightcl", digits, after_task=watch, params={"lightcl.norm": norm})
    parameters = dict(run.model.named_parameters())
    start = outside(Run(run.cell, digits))
    assert not torch.equal(start["conv1.weight"], states[0]["conv1.weight"])
    for later in states[1:]:
        for name, tensor in states[0].items():
            same = torch.equal(tensor, later[name])
            assert same == (name in parameters or norm == "frozen"), name
    for before, after in itertools.pairwise(channels):
        assert all((after[key] | ~mask).all() for key, mask in before.items())  # the mask only grows
    assert all(int(mask.sum()) == 2 for mask in channels[0].values())  # round(0.15 * 16)


def test_trained_prefixes():
    assert lightcl.trained_prefixes(build("resnet18"), False) == ("layer4.", "head.")
    assert lightcl.trained_prefixes(build("resnet18"), True) == ("layer4.", "head.", "layer3.1.")
    assert lightcl.trained_prefixes(build("mlp"), False) == ("layer2.", "head.")
    assert lightcl.trained_prefixes(build("cnn"), True) == ("layer3.", "head.", "layer2.")


def test_recording_leaves_statistics_alone(digits):
    run = Run(make("lightcl"), digits)
    before = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    run.learner._record(run, torch.randn(4, 1, 8, 8))
    assert all(torch.equal(buffer, before[name]) for name, buffer in run.model.named_buffers())


# -- channel sparsity --------------------------------------------------------------------------------------------------
SHAPES = {
    "layer1.0.conv1.weight": torch.Size([10, 10, 3, 3]),
    "layer1.0.conv2.weight": torch.Size([10, 10, 3, 3]),
    "layer2.0.conv1.weight": torch.Size([20, 10, 3, 3]),
    "layer3.0.conv1.weight": torch.Size([40, 20, 3, 3]),
}


def test_channel_counts_by_hand_with_the_sources_fractions():
    """20 %, 70 % and 80 % of the channels leave; inputs that lost their channel leave too."""
    kept = lightcl.kept_channels(SHAPES, 1.0)
    assert list(kept.values()) == [8, 8, 6, 8]
    assert list(lightcl.weight_counts(SHAPES, kept).values()) == [8 * 10 * 9, 8 * 8 * 9, 6 * 8 * 9, 8 * 6 * 9]


def test_source_fractions_are_about_090_on_resnet18():
    """The source calls its fractions 0.9 on ResNet-18: our counts agree with that reading."""
    model = models.build("resnet18", 64, 10, (3, 32, 32), torch.Generator())
    weights = dict(model.named_parameters())
    shapes = {name: weights[name].shape for name in models.maskable(model)}
    left = sum(lightcl.weight_counts(shapes, lightcl.kept_channels(shapes, 1.0)).values())
    assert 1 - left / sum(s.numel() for s in shapes.values()) == pytest.approx(0.91, abs=0.02)
    fitted = sum(lightcl.channel_counts(shapes, 0.9).values())
    assert 1 - fitted / sum(s.numel() for s in shapes.values()) == pytest.approx(0.9, abs=0.005)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.75, 0.9, 0.95])
def test_fitted_channels_are_the_nearest(sparsity):
    """No other factor comes nearer, by brute force over the factors at which a count changes."""
    total = sum(shape.numel() for shape in SHAPES.values())
    target = keep_count(total, sparsity)
    fitted = abs(sum(lightcl.channel_counts(SHAPES, sparsity).values()) - target)
    best = min(
        abs(sum(lightcl.weight_counts(SHAPES, lightcl.kept_channels(SHAPES, i / 2000)).values()) - target)
        for i in range(10001)
    )
    assert fitted <= best


def test_a_single_task_has_a_plan():
    """Of what it executes, although there is no next task whose images it could hold."""
    chosen = make("lightcl", stream_options={"tasks": 1}, epochs=1)
    run = Run(chosen, streams.load("split-digits", options={"tasks": 1}))
    trainer.train(run)
    run.sync_ledger()
    assert run.ledger.as_record()["lines"] == planning.executed(chosen)[0]["lines"]


def test_channels_of_largest_mean_signed_weight_stay(digits):
    run = Run(make("lightcl", 0.75, width=10), digits)
    before = {name: weight.detach().clone() for name, weight in run.masks.parameters.items()}
    run.sparsity.start(run)
    assert run.masks.counts() == run.sparsity.planned_counts(run.masks, 0.75, run.clock)
    first, second = list(before)[:2]
    kept = lightcl.fitted_channels(run.masks.shapes, 0.75)
    means = before[first].mean((1, 2, 3))
    expected = means.argsort(descending=True)[: kept[first]].sort().values
    rows = run.masks.weight[first].flatten(1).any(1)
    assert torch.equal(rows.nonzero().flatten(), expected)
    assert not run.masks.weight[second][:, ~rows].any()
    for name, weight in run.masks.parameters.items():
        assert torch.equal(weight, before[name] * run.masks.weight[name])


# -- given weights -----------------------------------------------------------------------------------------------------
@pytest.fixture
def pretrained(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({n: t.contiguous() for n, t in build(seed=5).state_dict().items()}, path)
    return path


def test_given_weights_replace_the_first_tasks_training(pretrained, digits):
    params = {"lightcl.weights": str(pretrained)}
    run = complete("lightcl", digits, params=params)
    given = build(seed=5).state_dict()
    for name, parameter in run.model.named_parameters():
        if not name.startswith(("layer3.", "head.")):
            assert torch.equal(parameter, given[name]), name
    assert not torch.equal(run.model.layer3[0].conv1.weight, given["layer3.0.conv1.weight"])
    assert planning.executed(run.cell)[0] == run.ledger.as_record()
    assert run.cell.params["lightcl.weights_digest"] == lightcl.digest(pretrained.read_bytes())
    assert resolve.from_dict(run.cell.as_dict()) == run.cell


def test_sparse_with_given_weights_also_trains_the_block_before_in_the_first_task(pretrained, digits):
    states = []
    params = {"lightcl.weights": str(pretrained)}
    run = complete("lightcl", digits, 0.75, params=params, after_task=lambda run: states.append(outside(run)))
    given = outside(Run(run.cell, digits)) | {n: t for n, t in build(seed=5).state_dict().items() if "layer3" not in n}
    moved = {n for n in states[0] if not torch.equal(states[0][n], given[n]) and n in run.masks.parameters}
    assert {name.split(".")[0] for name in moved if name.startswith("layer2")} == {"layer2"}
    assert torch.equal(states[0]["conv1.weight"], given["conv1.weight"])
    assert torch.equal(states[0]["layer2.0.conv1.weight"], states[1]["layer2.0.conv1.weight"])
    assert planning.executed(run.cell)[0] == run.ledger.as_record()


def test_bad_weights_are_refused(pretrained, digits, tmp_path):
    with pytest.raises(UserError, match=r"lightcl\.weights: expected a readable file"):
        make("lightcl", params={"lightcl.weights": str(tmp_path / "none.safetensors")})
    chosen = make("lightcl", params={"lightcl.weights": str(pretrained)})
    wide = make("lightcl", params={"lightcl.weights": str(pretrained)}, width=8)
    with pytest.raises(UserError, match="of shape"):
        trainer.train(Run(wide, digits))
    data = bytearray(pretrained.read_bytes())
    data[-1] ^= 1
    pretrained.write_bytes(data)
    with pytest.raises(UserError, match="has changed"):
        trainer.train(Run(chosen, digits))
    with pytest.raises(UserError, match="has changed"):
        resolve.from_dict(chosen.as_dict())
    pretrained.write_bytes(b"not a safetensors file")
    again = make("lightcl", params={"lightcl.weights": str(pretrained)})
    with pytest.raises(UserError, match="expected a safetensors file"):
        trainer.train(Run(again, digits))
    safetensors.torch.save_file({"conv1.weight": torch.zeros(4, 1, 3, 3)}, pretrained)
    with pytest.raises(UserError, match=r"has no tensor 'bn1\.weight'"):
        trainer.train(Run(make("lightcl", params={"lightcl.weights": str(pretrained)}), digits))


# -- FLOPs and registration --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields", [{}, {"sparsity": 0.75}, {"model": "cnn"}, {"model": "mlp", "width": 16}])
def test_planned_is_executed(fields, digits):
    run = complete("lightcl", digits, **fields)
    executed, approximate = planning.executed(run.cell)
    assert executed == run.ledger.as_record()
    assert not approximate


def test_executed_flops_in_closed_form(digits):
    """After the first task only the last stage and the head have weight gradients, and input gradients."""
    run = complete("lightcl", digits, epochs=1, batch_size=32)
    macs = {cost.name: cost.macs for cost in run.ledger.costs}
    late = sum(count for name, count in macs.items() if name.startswith(("layer3.", "head.")))
    everything, sizes = sum(macs.values()), [len(task.train_index) for task in digits.tasks]
    lines = run.ledger.as_record()["lines"]
    assert lines["stream"]["forward"] == 2 * everything * sum(sizes)
    expected = 2 * (everything * sizes[0] + late * sum(sizes[1:]))
    assert lines["stream"]["weight_gradient"] == lines["stream"]["input_gradient"] == expected
    steps = sum(-(-size // 32) for size in sizes[1:])
    assert lines["replay"]["forward"] == 2 * everything * 15 * steps
    assert lines["replay"]["weight_gradient"] == 2 * late * 15 * steps
    assert lines["regulation"] == {"forward": 2 * everything * (4 * 15 + 5 * 32), "input_gradient": 0,
                                   "weight_gradient": 0}  # fmt: skip


def test_the_dense_ledger_is_that_of_a_run_at_sparsity_0(digits):
    """What freezes has no gradient there either."""
    run = complete("lightcl", digits)
    assert planning.dense(make("lightcl", 0.9))["training"] == run.ledger.as_record()["training"]
    assert planning.facts(make("lightcl", 0.9))["flops_dense"] == run.ledger.as_record()["training"]


def test_what_is_frozen_has_no_gradient_in_record_and_plan(digits, tmp_path):
    chosen = make("lightcl", 0.9, epochs=1)
    layers = runner.run_cell(chosen, tmp_path)["results"]["masks"]["layers"]
    assert {name: layer["learning"] > 0 for name, layer in layers.items()} == {
        name: name.startswith("layer3.") for name in layers
    }
    frozen = planning.facts(chosen)["memory"]["frozen"]
    model = planning.setting(chosen).model
    assert frozen == sum(p.numel() for n, p in model.named_parameters()
                         if n not in layers and not n.startswith(("layer3.", "head.")))  # fmt: skip


@pytest.mark.parametrize(("stream", "low", "high"), [("split-cifar10", 5.4e15, 5.5e15),
                                                     ("split-tiny-imagenet", 8.6e16, 8.75e16)])  # fmt: skip
def test_own_count_is_the_published_one(stream, low, high):
    """5.4e15 and 8.6e16 are published for 90 % of the training images; the formula gives 5.45 and 8.71."""
    chosen = resolve.make(stream, "lightcl")
    info = streams.describe(stream, {})
    model = models.build(chosen.model, chosen.width, info.classes, info.shape, torch.Generator())
    costs = ledger.layer_costs(model, info.shape)
    sizes = [round(0.9 * size) for size in info.train_sizes]
    assert low <= chosen.component(lightcl.LightCL).published_flops(chosen, costs, sizes) < high
    assert planning.paper(chosen)["training"] == pytest.approx(
        chosen.component(lightcl.LightCL).published_flops(chosen, costs, sizes) / 0.9
    )


def test_registered_as_one_method():
    found = methods.get("lightcl")
    assert (found.family, found.learner, dict(found.policies)) == ("sibling", "lightcl", {"sparsity": "channels"})
    assert [name for name in methods.names() if name.endswith("-lightcl")] == []
    with pytest.raises(UserError, match="channel sparsity of its own"):
        methods.get("tdm-lightcl")
    assert isinstance(build().layer3, nn.Sequential)
