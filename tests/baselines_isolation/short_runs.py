"""Short runs on Split-Digits, and what the tests of this folder ask of every method."""

from __future__ import annotations

import pytest
import torch

from sparcl import resolve
from sparcl.running import checkpoint
from sparcl.trainer import Run, evaluation_mode, train


def make(method, sparsity=0.0, *, params=None, **fields):
    defaults = {"epochs": 2, "batch_size": 32, "width": 4, "model": "resnet8"}
    return resolve.make("split-digits", method, sparsity, params=params, **{**defaults, **fields})


def complete(method, digits, sparsity=0.0, *, after_task=lambda run: None, params=None, **fields):
    """Train a short cell to its end."""
    run = Run(make(method, sparsity, params=params, **fields), digits)
    train(run, after_task=after_task)
    return run


@torch.no_grad()
def logits(run, images, task):
    """The logits that evaluation uses for ``task``, of its own classes."""
    classes = run.stream.tasks[task].classes
    with evaluation_mode(run.model), run.sparsity.view(run, task):
        return run.learner.predict(run, images)[:, classes.start : classes.stop].clone()


class Stop(Exception):
    pass


def killed_and_resumed(method, digits, folder, step, sparsity=0.0, *, params=None, **fields):
    """Train to the given step, leave through a checkpoint file, and finish in a new run."""
    wanted = make(method, sparsity, params=params, **fields)
    first, count = Run(wanted, digits), 0
    path = folder / "state.ckpt"

    def stop(run):
        nonlocal count
        count += 1
        if count == step:
            checkpoint.save(path, "identity", run.state())
            raise Stop

    with pytest.raises(Stop):
        train(first, after_step=stop)
    second = Run(wanted, digits)
    second.load(checkpoint.load(path, "identity"))
    train(second)
    return second


def assert_same_run(one, other):
    """Every number of two runs agrees, to the last bit."""
    assert one.accuracy == other.accuracy
    assert one.losses == other.losses
    assert one.mask_history == other.mask_history
    assert one.ledger.as_record() == other.ledger.as_record()
    theirs = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def snapshot(run):
    """All training state that evaluation must leave alone, as a flat dict of clones and values."""
    flat = {}

    def walk(key, value):
        if isinstance(value, torch.Tensor):
            flat[key] = value.clone()
        elif isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{key}/{name}", inner)
        elif key.startswith(("/results/seconds", "/ledger/macs")):
            pass
        else:
            flat[key] = repr(value)

    walk("", {name: value for name, value in run.state().items() if name != "results"})
    flat["modes"] = repr([module.training for module in run.model.modules()])
    flat["learning"] = repr([parameter.requires_grad for parameter in run.model.parameters()])
    return flat


def assert_same_snapshot(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key
