"""What every registered method promises, plug-ins included; a new method is covered as soon as it registers.

After every step: exact counts as planned, masked weights and their momentum exactly 0, learning weights among the
existing ones. Evaluation leaves training alone. The same seed gives the same run, another seed another one: other
weights at the start and at the end, another order, other masks, another memory. A run continues from a checkpoint bit
for bit. All methods of a seed see the same data order and the same initial weights. The planned ledger is the executed
one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import float64
import numpy as np
import pytest
import torch
from torch import Tensor

from sparcl import components, methods, resolve, seeding, streams, trainer
from sparcl.cell import Cell
from sparcl.costs import planning
from sparcl.errors import UserError
from sparcl.kernels import library
from sparcl.masks import keep_count
from sparcl.memory import ReservoirMemory
from sparcl.running import checkpoint, identity

NAMES = methods.names()
MIDDLE = 17
VOLATILE = {"results/seconds/train", "results/seconds/evaluation", "results/resumed"}


def is_usual(name: str) -> bool:
    """Every learner and every method of its own, and every bundle once: on DER++, or on the first learner it takes."""
    bundle = name.rpartition("-")[0]
    takes = [learner for learner in methods.learners() if f"{bundle}-{learner}" in NAMES]
    return not takes or name == f"{bundle}-{'derpp' if 'derpp' in takes else takes[0]}"


CASES = [pytest.param(name, marks=() if is_usual(name) else pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module")
def contract_cell(small_cell) -> Callable[..., Cell]:
    """Cells in which every interval is short enough to happen, with momentum where the method allows it."""

    def make(name: str, seed: int = 0, **fields: Any) -> Cell:
        known = methods.get(name).parameters()
        params: dict[str, Any] = {k: 3 for k, p in known.items() if p.duration and p.default > 5}
        params |= fields.pop("params", {})
        fields = {"kernel": "auto"} | fields
        try:
            return small_cell(name, seed=seed, params={"protocol.momentum": 0.5} | params, **fields)
        except UserError:
            return small_cell(name, seed=seed, params=params, **fields)

    return make


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested state by path."""
    if isinstance(state, Mapping):
        children = {str(key): value for key, value in state.items()}
    elif isinstance(state, (list, tuple)):
        children = {str(index): value for index, value in enumerate(state)}
    else:
        return {prefix: state.clone() if isinstance(state, Tensor) else state}
    found: dict[str, Any] = {}
    for key, value in children.items():
        found |= flat(value, f"{prefix}/{key}" if prefix else key)
    return found


def differences(a: Any, b: Any, ignore: Callable[[str], bool] = lambda path: False) -> list[str]:
    """Return the paths at which two states differ, by bits."""
    first, second = flat(a), flat(b)
    paths = [p for p in first.keys() | second.keys() if p not in VOLATILE and not ignore(p)]

    def same(path: str) -> bool:
        if path not in first or path not in second:
            return False
        x, y = first[path], second[path]
        if isinstance(x, Tensor):
            return isinstance(y, Tensor) and x.dtype == y.dtype and torch.equal(x, y)
        return type(x) is type(y) and x == y

    return sorted(path for path in paths if not same(path))


def global_generators() -> tuple[bytes, Any, bytes]:
    numpy_state = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy_state[1].tobytes()


def strict(run: trainer.Run) -> trainer.Run:
    """Return ``run`` with a sparsity policy that must say in each step whether it is taken."""
    answer = run.sparsity.on_gradients

    def on_gradients(run: trainer.Run) -> bool:
        taken = answer(run)
        assert isinstance(taken, bool), f"on_gradients: expected True, or False to skip the step, got {taken!r}"
        return taken

    run.sparsity.on_gradients = on_gradients  # type: ignore[method-assign]
    return run


def check_step(run: trainer.Run) -> None:
    """Check masks, weights, momentum and counts after a step."""
    planned = run.sparsity.planned_counts(run.masks, run.cell.sparsity, run.clock)
    counts, learning = run.masks.counts(), run.masks.gradient_counts()
    for name, weight in run.masks.parameters.items():
        mask = run.masks.weight[name]
        assert int(mask.sum()) == counts[name], f"{name}: counts() is stale"
        assert not weight.detach()[~mask].any(), f"{name}: a masked weight is not 0"
        momentum = run.optimizer.momenta.get(weight)
        assert momentum is None or not momentum[~mask].any(), f"{name}: the momentum of a masked weight is not 0"
        if run.masks.gradient is not None:
            assert not (run.masks.gradient[name] & ~mask).any(), f"{name}: a weight learns that does not exist"
            assert int(run.masks.gradient[name].sum()) == learning[name]
    if planned is None:
        assert sum(counts.values()) <= keep_count(run.masks.size(), run.cell.sparsity)
        return
    assert counts == planned
    may_learn = run.sparsity.planned_learning(run.masks, counts, run.cell.sparsity, run.clock)
    if may_learn is not None:
        assert learning == run.gradient.planned_counts(run.masks, may_learn, run.clock)


def check_method(chosen: Cell, stream: streams.Stream, folder: Any) -> None:
    """Check everything that one method promises under one seed."""
    path, steps = folder / "state.ckpt", 0
    generators = global_generators()

    # A whole run, saved in the middle.
    def watch(run: trainer.Run) -> None:
        nonlocal steps
        steps += 1
        check_step(run)
        if steps == MIDDLE:
            checkpoint.save(path, "contract", run.state())

    whole = strict(trainer.Run(chosen, stream))
    initial = {name: weight.detach().clone() for name, weight in whole.model.named_parameters()}
    trainer.train(whole, watch)
    assert steps > MIDDLE, f"a run of {steps} steps is too short for the contract, which stops after {MIDDLE}"
    for name, weight in whole.masks.parameters.items():
        assert not torch.equal(weight * whole.masks.weight[name], initial[name] * whole.masks.weight[name]), (
            f"{name}: no weight has learned"
        )
    assert global_generators() == generators, "a global random generator was used"
    executed, approximate = planning.executed(chosen)
    if not approximate:
        assert executed == whole.ledger.as_record()

    # The same again, up to the middle, where it is evaluated: the state is what was saved there.
    again = trainer.Run(chosen, stream)
    steps = 0

    def stop(run: trainer.Run) -> None:
        nonlocal steps
        steps += 1
        if steps == MIDDLE:
            modes = [module.training for module in run.model.modules()]
            first = trainer.evaluate(run, run.info.classes)
            assert trainer.evaluate(run, run.info.classes) == first
            assert [module.training for module in run.model.modules()] == modes
            raise trainer.Interrupted

    with pytest.raises(trainer.Interrupted):
        trainer.train(again, stop)
    saved = checkpoint.load(path, "contract")
    assert differences(again.state(), saved, lambda p: p.startswith("ledger/")) == []

    # From the checkpoint on, in a new process's place: the end is the same, bit for bit.
    rest = trainer.Run(chosen, stream)
    rest.load(saved)
    trainer.train(rest, check_step)
    assert differences(rest.state(), whole.state()) == []
    assert rest.ledger.as_record() == whole.ledger.as_record()


@pytest.mark.parametrize("name", CASES)
def test_method(name: str, contract_cell, digits, tmp_path) -> None:
    check_method(contract_cell(name), digits, tmp_path)


def beginning(chosen: Cell, stream: streams.Stream) -> tuple[dict[str, Tensor], list[components.Batch]]:
    """Return a run's initial weights and the batches of its first epoch."""
    run = trainer.Run(chosen, stream)
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.phase = run.phases[0]
    run.enter_phase()
    run.clock = run.clock_at(0)
    return weights, list(trainer.batches(run))


@pytest.mark.parametrize("name", CASES)
def test_seeds(name: str, contract_cell, digits) -> None:
    """Another seed: other weights and order. Another method: the same, but for parameters of its own.

    A bundle may have values of the protocol (the last batch) in its name; the other method has them as well.
    """
    weights, batches = beginning(contract_cell(name, seed=1), digits)
    other_weights, other_batches = beginning(contract_cell(name, seed=2), digits)
    assert not torch.equal(weights["conv1.weight"], other_weights["conv1.weight"])
    assert not torch.equal(batches[0].positions, other_batches[0].positions)
    protocol = {k: v for k, v in methods.get(name).values.items() if k.startswith("protocol.")}
    common_weights, common_batches = beginning(contract_cell("finetune", seed=1, params=protocol), digits)
    assert common_weights.keys() & weights.keys()
    for key in common_weights.keys() & weights.keys():
        assert torch.equal(weights[key], common_weights[key]), key
    if methods.get(name).learner == "joint":
        return
    for batch, common in zip(batches, common_batches, strict=True):
        assert torch.equal(batch.positions, common.positions)
        assert torch.equal(batch.images, common.images)
        assert torch.equal(batch.labels, common.labels)


def check_seeds(first: Cell, second: Cell, stream: streams.Stream) -> None:
    """Check that two seeds differ in all that is random: initial and final masks, memory, final weights."""
    runs = [trainer.Run(chosen, stream) for chosen in (first, second)]
    initial: list[dict[str, Tensor]] = []
    for run in runs:

        def note(run: trainer.Run) -> None:
            if run.clock.task_step == 1 and run.phase.index == 0:
                initial.append({name: mask.clone() for name, mask in run.masks.weight.items()})

        trainer.train(run, note)
    one, two = runs
    for masks in (initial, [run.masks.weight for run in runs]):
        if one.sparsity.fixed_pattern:
            assert same_masks(*masks), "another seed gives other masks, and fixed_pattern says that none does"
        elif not all(mask.all() for mask in masks[0].values()):
            assert not same_masks(*masks), "another seed gives the same masks"
    if one.masks.gradient is not None:
        assert not same_masks(one.masks.gradient, two.masks.gradient), "another seed gives the same gradient masks"
    assert (len(one.memory), one.memory.seen > 0) == (len(two.memory), two.memory.seen > 0)
    if len(one.memory):
        contents = [{image.numpy().tobytes() for image in run.memory.images} for run in runs]
        assert contents[0] != contents[1], "another seed gives the same memory"
    for name, weight in one.model.named_parameters():
        if weight.requires_grad and weight.dim() > 1:
            assert not torch.equal(weight, two.model.state_dict()[name]), f"{name}: another seed gives the same weights"


def same_masks(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether all masks are equal."""
    return all(torch.equal(mask, second[name]) for name, mask in first.items())


@pytest.mark.parametrize("name", CASES)
def test_another_seed_is_another_run(name: str, contract_cell, digits) -> None:
    check_seeds(contract_cell(name, seed=1, epochs=1), contract_cell(name, seed=2, epochs=1), digits)


def apart(one: trainer.Run, exact: trainer.Run) -> Tensor:
    """Return how far existing weights are from another run's, as shares of the largest of their tensor."""
    found = []
    for key, weight in one.model.named_parameters():
        other = dict(exact.model.named_parameters())[key].detach()
        difference = (weight.detach().double() - other).abs() / other.abs().max().clamp(min=1e-2)
        found.append(difference[(weight != 0) | (other != 0)])
    return torch.cat(found)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_that_auto_gives_trains_as_the_method_says(name: str, contract_cell, run_steps) -> None:
    """16 steps into the second task, with replay and mask updates, weights are those of a run in float64 by PyTorch."""

    def beginning(kernel: str, **prepared: Callable[[trainer.Run], None]) -> trainer.Run:
        done: list[trainer.Run] = []
        run = run_steps(contract_cell(name, kernel=kernel), 16, done.append, **prepared)
        assert len(done) == 16
        return run

    auto = beginning("auto")
    assert identity.kernel_of(auto.cell)["kernel"] == ("dense" if auto.network is None else "sparse")
    if auto.network is None:
        return
    exact = beginning("dense", prepare=float64.compute_in)
    assert exact.network is None
    # A value that rounding puts on the other side of a ReLU moves some weights a little; a wrong rule moves many.
    assert apart(auto, exact).quantile(0.9) < 2e-3, (
        "the sparse kernel trains other weights than PyTorch: gradients_wanted must name every gradient of a missing "
        "or resting weight that is used"
    )


@pytest.mark.slow
@pytest.mark.skipif(not library.available(), reason="the sparse kernel is not compiled here")
@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("-derpp") and methods.get(n).policies.get("sparsity")])
def test_after_200_steps_the_sparse_kernel_is_as_near_to_float64_as_pytorch(name: str, run_steps) -> None:
    """Of the protocol's own steps, at 0.90; rounding grows from step to step, so that this is a bound on the growth."""

    def beginning(kernel: str, **prepared: Callable[[trainer.Run], None]) -> trainer.Run:
        return run_steps(resolve.make("split-digits", name, 0.9, 50, 0, kernel=kernel), 200, **prepared)

    exact = beginning("dense", prepare=float64.compute_in)
    near, dense = (apart(beginning(kernel), exact).median() for kernel in ("sparse", "dense"))
    assert near < max(3 * dense, 2e-2)


def every_fourth(self: Any, run: trainer.Run) -> None:
    """Keep every fourth weight of a layer: a pattern that no seed changes, of the planned size."""
    fixed = {}
    for name, mask in run.masks.weight.items():
        flat = torch.zeros(mask.numel(), dtype=torch.bool)
        flat[: 4 * keep_count(mask.numel(), run.cell.sparsity) : 4] = True
        fixed[name] = torch.empty_like(mask).copy_(flat.reshape(mask.shape))
    run.masks.adopt(fixed)


def test_a_fixed_pattern_is_a_method(contract_cell, digits, tmp_path, monkeypatch) -> None:
    cls = methods.policies()["static"]
    monkeypatch.setattr(cls, "start", every_fourth)
    first, second = (contract_cell("static-er", seed, epochs=1) for seed in (1, 2))
    with pytest.raises(AssertionError, match="the same masks"):
        check_seeds(first, second, digits)
    monkeypatch.setattr(cls, "fixed_pattern", True)
    check_seeds(first, second, digits)
    check_method(contract_cell("static-er"), digits, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(cls, "fixed_pattern", True)
    with pytest.raises(AssertionError, match="fixed_pattern"):
        check_seeds(first, second, digits)


# -- the contract notices what it is there to notice -------------------------------------------------------------------
def unmask(run: trainer.Run) -> None:
    """Give a masked weight a value."""
    name, weight = next(iter(run.masks.parameters.items()))
    with torch.no_grad():
        weight[~run.masks.weight[name]] = 1e-30


def lose_one(run: trainer.Run) -> None:
    """Drop one weight too many."""
    name, mask = next(iter(run.masks.weight.items()))
    smaller = mask.clone().flatten()
    smaller[smaller.nonzero()[0]] = False
    run.masks.replace({name: smaller.reshape(mask.shape)})


def draw_globally(run: trainer.Run) -> None:
    """Draw from the process's generator."""
    torch.rand(1)


def forget(run: trainer.Run) -> None:
    """Let what happens depend on something that no state holds."""
    calls = run.__dict__.setdefault("calls", [])
    calls.append(1)
    run.model.head.bias.data[0] += len(calls) * 1e-3


def test_a_policy_that_does_not_say_whether_a_step_is_taken_fails(contract_cell, digits, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(methods.policies()["static"], "on_gradients", lambda self, run: None)
    with pytest.raises(AssertionError, match="expected True, or False to skip the step, got None"):
        check_method(contract_cell("static-er"), digits, tmp_path)


def test_a_policy_that_takes_no_step_fails(contract_cell, digits, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(methods.policies()["static"], "on_gradients", lambda self, run: False)
    with pytest.raises(AssertionError, match="no weight has learned"):
        check_method(contract_cell("static-er"), digits, tmp_path)


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [(unmask, "a masked weight is not 0"), (lose_one, "assert"), (draw_globally, "global random"), (forget, "assert")],
)
def test_a_broken_method_fails(sabotage, message, contract_cell, digits, tmp_path, monkeypatch) -> None:
    cls = methods.policies()["static"]
    monkeypatch.setattr(cls, "after_step", lambda self, run: sabotage(run))
    with pytest.raises(AssertionError, match=message):
        check_method(contract_cell("static-er"), digits, tmp_path)


@pytest.mark.parametrize(
    ("what", "message"),
    [("masks", "the same masks"), ("memory", "the same memory"), ("weights", "the same weights")],
)
def test_a_seed_that_changes_nothing_is_noticed(what, message, contract_cell, digits, monkeypatch) -> None:
    """The draws of static masks, everything that fills the memory, or a layer's weights do not look at the seed."""
    if what == "masks":
        real = trainer.Run.generator

        def generator(run: trainer.Run, name: str) -> torch.Generator:
            return seeding.generator(0, name) if name == "initial-mask" else real(run, name)

        monkeypatch.setattr(trainer.Run, "generator", generator)
    elif what == "memory":
        same = digits.train_images[:20], digits.train_labels[:20]
        monkeypatch.setattr(ReservoirMemory, "add", lambda memory, *_: memory.fill(*same, None, 0))
    else:
        monkeypatch.setattr(
            methods.policies()["static"], "end_task", lambda policy, run: run.model.head.weight.data.zero_()
        )
    with pytest.raises(AssertionError, match=message):
        check_seeds(contract_cell("static-er", 1, epochs=1), contract_cell("static-er", 2, epochs=1), digits)


@pytest.mark.parametrize("name", sorted(methods.learners()))
def test_the_plan_of_few_images_is_what_a_run_executes(name: str) -> None:
    """Eight images a task, fewer than a batch and than what a learner would like to hold or replay."""
    few = {"train_per_class": 4}
    sparsity = 0.5 if methods.get(name).is_sparse else 0.0
    chosen = resolve.make("split-digits", name, sparsity, 20, stream_options=few, epochs=2, width=4)
    run = trainer.Run(chosen, streams.load("split-digits", options=few))
    trainer.train(run)
    run.sync_ledger()
    executed, approximate = planning.executed(chosen)
    assert approximate or executed == run.ledger.as_record()
