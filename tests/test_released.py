"""``sparcl-released``: every choice of the released code under one name, and nothing else than its switches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparcl import cli, methods, resolve, trainer

CHOICES = {
    "tdm.importance": "merged", "tdm.schedule": "released", "tdm.init": "magnitude", "tdm.zeros": "drop",
    "dgm.importance": "merged",
    "ddr.criterion": "forgetting", "ddr.prediction": "all", "ddr.ties": "random", "ddr.replays_removed": True,
    "protocol.single_head": True, "protocol.replay_start": "second-task", "protocol.last_batch": "drop",
    "protocol.freeze_bn_bias": True,
}  # fmt: skip


@pytest.mark.parametrize("stream", ["split-digits", "split-cifar10", "split-tiny-imagenet"])
@pytest.mark.parametrize("learner", ["er", "derpp"])
def test_its_choices_belong_to_the_name(stream: str, learner: str) -> None:
    """Every choice is in the cell and none in its path; one that is set otherwise stands in the path."""
    chosen = resolve.make(stream, f"sparcl-released-{learner}", 0.75, 200)
    assert methods.bundles()["sparcl-released"].values == CHOICES
    assert {key: chosen.params[key] for key in CHOICES} == CHOICES
    assert chosen.path == f"{stream}/sparcl-released-{learner}/s0.75/b200/seed0"
    params = {"protocol.last_batch": "spread"}
    other = resolve.make(stream, f"sparcl-released-{learner}", 0.75, 200, params=params)
    assert other.path.endswith("/b200/protocol.last_batch=spread/seed0")
    assert resolve.from_dict(chosen.as_dict()).path == chosen.path


def test_the_list_of_parameters_has_those_of_the_protocol_that_the_name_sets(capsys) -> None:
    assert cli.main(["methods", "sparcl-released-derpp", "--parameters"]) == 0
    shown = capsys.readouterr().out
    for key, value in CHOICES.items():
        assert f"    {key} = {value}: " in shown
    assert cli.main(["methods", "sparcl-derpp", "--parameters"]) == 0
    assert "protocol." not in capsys.readouterr().out


def test_it_is_sparcl_with_these_switches(small_cell, run_steps) -> None:
    """Bit for bit, of six epochs of every task: the name is worth its values and nothing more."""
    fields = {"epochs": 6, "buffer": 40}
    released = run_steps(small_cell("sparcl-released-derpp", **fields))
    switched = run_steps(small_cell("sparcl-derpp", **fields, params=CHOICES))
    assert released.cell.params == switched.cell.params
    assert released.accuracy == switched.accuracy
    for name, value in released.model.state_dict().items():
        assert torch.equal(value, switched.model.state_dict()[name]), name
    # What the choices do: whole batches alone, no shift of batch normalization, removed samples by forgetting events.
    assert all(count % 64 == 0 for count in released.presented)
    norms = [module for module in released.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(not module.bias.any() for module in norms)
    assert all(len(task) == released.data.cutoff for task in released.removed)
    assert isinstance(released, trainer.Run)
    ours = run_steps(small_cell("sparcl-derpp", **fields))
    assert ours.accuracy != released.accuracy
