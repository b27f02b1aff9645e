"""DDR: how many leave, when, which ones, against a direct simulation; what comes back and what does not."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl import seeding, trainer
from sparcl.components import Clock
from sparcl.policies.ddr import DDR


def schedule(ddr: DDR, size: int, epochs: int) -> dict[int, int]:
    """Return {epoch (counted from 1) at whose end samples leave: how many}."""
    planned = {e + 1: ddr.planned_removals(size, Clock(epoch=e, epochs=epochs)) for e in range(epochs)}
    return {epoch: count for epoch, count in planned.items() if count}


def test_the_released_codes_schedule() -> None:
    """30 % of 10,000 images: 750 after epochs 5, 10, 15 and 20 of 50."""
    assert schedule(DDR(), 10_000, 50) == {5: 750, 10: 750, 15: 750, 20: 750}


def test_other_schedules_by_hand() -> None:
    """291 samples, 30 % in 4 stages of 1 epoch: 21.825 a stage, so 22, 44, 65, 87 are gone; a run may end before."""
    assert schedule(DDR(interval=1), 291, 10) == {1: 22, 2: 22, 3: 21, 4: 22}
    assert schedule(DDR(interval=1), 291, 3) == {1: 22, 2: 22}
    assert schedule(DDR(interval=5), 291, 5) == {}
    assert schedule(DDR(proportion=0.0), 291, 50) == {}
    assert schedule(DDR(proportion=0.5, cutoff=1, interval=2), 100, 10) == {2: 50}


@given(
    size=st.integers(1, 20_000),
    proportion=st.floats(0, 0.99),
    cutoff=st.integers(1, 12),
    interval=st.integers(1, 8),
    epochs=st.integers(1, 60),
)
def test_totals(size: int, proportion: float, cutoff: int, interval: int, epochs: int) -> None:
    """Exactly the proportion leaves in all, in shares that differ by at most one, once the last stage fits.

    One sample stays at least.
    """
    ddr = DDR(proportion=proportion, cutoff=cutoff, interval=interval)
    counts = [ddr.planned_removals(size, Clock(epoch=e, epochs=epochs)) for e in range(epochs)]
    assert min(counts) >= 0
    assert all(count == 0 for e, count in enumerate(counts) if (e + 1) % interval or e + 1 > cutoff * interval)
    if cutoff * interval < epochs:
        assert sum(counts) == round(min(size * proportion, size - 1))
        stages = [counts[stage * interval - 1] for stage in range(1, cutoff + 1)]
        assert max(stages) - min(stages) <= 1


def watching(size: int, proportion: float = 0.5, **parameters: object) -> tuple[DDR, SimpleNamespace]:
    """A policy with one stage of one epoch, and a run of ``size`` samples of two classes for it."""
    ddr = DDR(proportion=proportion, **{"cutoff": 1, "interval": 1} | parameters)
    run = SimpleNamespace(
        pool_size=size, device=torch.device("cpu"), phase=SimpleNamespace(classes=range(2, 4)), gone=None,
        clock=Clock(epochs=9), present=torch.ones(size, dtype=torch.bool), removed=[[]],
        generator=lambda purpose: seeding.generator(0, purpose),
    )  # fmt: skip

    def remove(which: torch.Tensor, tied: float) -> None:
        run.gone = which.nonzero().flatten().tolist()
        run.removed[-1].append({"tied": tied})

    run.remove_samples = remove
    ddr.begin_task(run)
    return ddr, run


def show(ddr: DDR, run: SimpleNamespace, predictions: list[int], label: int = 2) -> None:
    """Let every sample be predicted once; all samples have one label."""
    logits = torch.nn.functional.one_hot(torch.tensor(predictions), 5).float()
    ddr.observe(run, torch.arange(len(predictions)), logits, torch.full((len(predictions),), label))


def test_the_least_misclassified_leave() -> None:
    """Errors 2, 0, 1, 3 over three presentations: the second and the third sample leave."""
    ddr, run = watching(4)
    for predictions in ([3, 2, 3, 3], [3, 2, 2, 3], [2, 2, 2, 3]):
        show(ddr, run, predictions)
    assert ddr.scores().tolist() == [2, 0, 1, 3]
    ddr.end_epoch(run)
    assert run.gone == [1, 2]
    show(ddr, run, [2, 2, 2, 2])
    assert ddr.scores().tolist() == [0, 0, 0, 0]  # counts start again


def test_forgetting_events_as_in_the_released_code() -> None:
    """Right, wrong, right, wrong forgets twice; never right counts most; wrong then right forgets nothing."""
    ddr, run = watching(4, criterion="forgetting")
    for predictions in ([2, 3, 3, 2], [3, 3, 2, 2], [2, 3, 2, 2], [3, 3, 2, 3]):
        show(ddr, run, predictions)
    assert ddr.scores().tolist() == [2, 2**31, 0, 1]
    ddr.end_epoch(run)
    assert run.gone == [2, 3]


def test_a_prediction_is_made_among_the_tasks_classes_or_all() -> None:
    """The largest logit belongs to class 0 of another task, the next one to the right class."""
    logits, labels = torch.tensor([[9.0, 0, 5, 1, 0]]), torch.tensor([2])
    errors = {}
    for prediction in ("task", "all"):
        ddr, run = watching(1, prediction=prediction)
        ddr.observe(run, torch.tensor([0]), logits, labels)
        errors[prediction] = ddr.scores().tolist()
    assert errors == {"task": [0], "all": [1]}


@pytest.mark.parametrize("criterion", ["misclassification", "forgetting"])
def test_what_was_not_presented_is_unknown_and_leaves_last(criterion: str) -> None:
    """Six samples, half of them leave. Unknown are 0 and 1; wrong, of the others, is 4 alone: 2, 3 and 5 leave."""
    ddr, run = watching(6, criterion=criterion)
    positions, predictions = torch.tensor([2, 3, 4, 5]), torch.tensor([2, 2, 3, 2])
    ddr.observe(run, positions, torch.nn.functional.one_hot(predictions, 5).float(), torch.full((4,), 2))
    known = ddr.scores()[2:].max()
    assert ddr.scores()[:2].tolist() == [2**32, 2**32]
    assert known < 2**32
    ddr.end_epoch(run)
    assert run.gone == [2, 3, 5]
    # Five of six leave: the one that was wrong goes before any unknown one.
    ddr, run = watching(6, proportion=0.83, criterion=criterion)
    ddr.observe(run, positions, torch.nn.functional.one_hot(predictions, 5).float(), torch.full((4,), 2))
    ddr.end_epoch(run)
    assert {2, 3, 4, 5} < set(run.gone)
    assert run.removed[-1][-1]["tied"] == pytest.approx(1 / 5)  # one of the two unknown ones, by lot


def test_share_decided_by_ties_by_hand() -> None:
    """Errors 0 0 0 1 1 1 1 3: of four that leave one is drawn among four with one error; of three none is drawn."""
    errors = [0, 0, 0, 1, 1, 1, 1, 3]
    for proportion, tied in ((0.5, 1 / 4), (3 / 8, 0.0), (2 / 8, 1.0), (5 / 8, 2 / 5), (7 / 8, 0.0)):
        ddr, run = watching(8, proportion=proportion)
        for shown in range(3):
            show(ddr, run, [3 if shown < count else 2 for count in errors])
        ddr.end_epoch(run)
        assert run.removed[-1][-1]["tied"] == pytest.approx(tied)
        assert len(run.gone) == round(8 * proportion)
        assert max(errors[i] for i in run.gone) <= min(errors[i] for i in set(range(8)) - set(run.gone))


def test_ties_by_loss() -> None:
    """All right, with label logits 0.5, 3, 1, 2 over a 0: the least cross-entropies are those of samples 1 and 3.

    The loss adds up over a stage: where the second showing of sample 1 is right by a hair, samples 2 and 3 leave.
    """
    labels = torch.full((4,), 2)
    first = torch.zeros(4, 5)
    first[:, 2] = torch.tensor([0.5, 3.0, 1.0, 2.0])
    ddr, run = watching(4, ties="loss", prediction="task")
    ddr.observe(run, torch.arange(4), first, labels)
    ddr.end_epoch(run)
    assert run.gone == [1, 3]
    assert run.removed[-1][-1]["tied"] == 1.0  # of the counts: the loss has decided among all four
    ddr, run = watching(4, ties="loss", prediction="task")
    ddr.observe(run, torch.arange(4), first, labels)
    second = first.clone()
    second[1, 2] = 1e-3  # log(1 + e^-0.001) + log(1 + e^-3) = 0.74; the others: 0.95, 0.63, 0.25
    ddr.observe(run, torch.arange(4), second, labels)
    ddr.end_epoch(run)
    assert run.gone == [2, 3]


def test_ties_by_margin() -> None:
    """The last prediction counts: margins 1, 4, 2, 0.5 over the other class of the task, so 1 and 2 leave.

    Class 0, of another task, has the largest logit: it is looked at with ``prediction: all`` alone.
    """
    labels = torch.full((4,), 2)
    logits = torch.tensor([[0.0, 0, 3, 2, 0], [9, 0, 5, 1, 0], [0, 0, 2, 0, 0], [0, 0, 1, 0.5, 0]])
    ddr, run = watching(4, ties="margin", prediction="task")
    ddr.observe(run, torch.arange(4), logits.flip(0), labels)
    ddr.observe(run, torch.arange(4), logits, labels)
    ddr.end_epoch(run)
    assert run.gone == [1, 2]
    ddr, run = watching(4, ties="margin", prediction="all")
    ddr.observe(run, torch.arange(4), logits, labels)
    assert ddr.scores().tolist() == [0, 1, 0, 0]
    ddr.end_epoch(run)
    assert run.gone == [0, 2]


def test_a_warning_once_a_run(capsys) -> None:
    ddr, run = watching(4)
    for _ in range(2):
        show(ddr, run, [2, 2, 2, 2])
        ddr.end_epoch(run)
    assert capsys.readouterr().err.count("decided by ties") == 1
    ddr, run = watching(4)
    show(ddr, run, [2, 2, 3, 2])  # two leave of three: also by lot alone
    ddr.end_epoch(run)
    assert "100% of the samples" in capsys.readouterr().err
    ddr, run = watching(4)
    show(ddr, run, [2, 3, 3, 3])  # one by its count, one by lot: half is not more than half
    ddr.end_epoch(run)
    assert run.removed[-1][-1]["tied"] == 0.5
    assert capsys.readouterr().err == ""


def test_ties_are_in_the_record(small_cell, run_steps) -> None:
    """Samples in memory of what is drawn: the removals of a run say which share was, between 0 and 1."""
    run = run_steps(small_cell("ddr-er", epochs=3, params={"ddr.interval": 1, "ddr.prediction": "task"}))
    found = [entry["tied"] for task in run.removed for entry in task]
    assert len(found) == 10
    assert all(0 <= tied <= 1 for tied in found)
    assert max(found) > 0


def test_samples_that_are_gone_cannot_leave_again() -> None:
    ddr, run = watching(6)
    run.present = torch.tensor([False, False, True, True, True, True])
    show(ddr, run, [2, 2, 3, 2, 3, 2])
    ddr.end_epoch(run)
    assert run.removed[-1][-1]["tied"] == pytest.approx(1 / 3)
    assert len(run.gone) == 3
    assert {3, 5} < set(run.gone) <= {2, 3, 4, 5}


def test_counts_go_on_within_a_stage() -> None:
    ddr, run = watching(2, interval=2)
    show(ddr, run, [3, 2])
    ddr.end_epoch(run)
    assert run.gone is None
    assert ddr.scores().tolist() == [1, 0]


@pytest.mark.parametrize("criterion", ["misclassification", "forgetting"])
@pytest.mark.parametrize(("name", "prediction"), [("ddr-er", "all"), ("sparcl-derpp", "all"), ("sparcl-derpp", "task")])
def test_a_run_against_a_direct_simulation(
    name: str, prediction: str, criterion: str, small_cell, run_steps, monkeypatch
) -> None:
    """Keep, per sample, the list of its predictions; who has left after each stage follows from the lists alone."""
    params = {"ddr.interval": 2, "ddr.cutoff": 2, "ddr.criterion": criterion, "ddr.prediction": prediction}
    chosen = small_cell(name, epochs=6, params=params)
    histories: dict[int, list[bool]] = {}
    gone: set[int] = set()
    stages = 0
    original, observe = trainer.end_epoch, DDR.observe

    def watched(self, run, positions, logits, labels):
        observe(self, run, positions, logits, labels)
        first, last = (run.phase.classes.start, run.phase.classes.stop) if prediction == "task" else (0, 10)
        for position, row, label in zip(positions.tolist(), logits.tolist(), labels.tolist(), strict=True):
            own = row[first:last]
            histories.setdefault(position, []).append(own.index(max(own)) + first == label)

    def score(history: list[bool]) -> float:
        if criterion == "misclassification":
            return history.count(False)
        if not any(history):
            return float("inf")
        return sum(a and not b for a, b in pairwise(history))

    def ended(run):
        nonlocal stages
        epoch, size = run.clock.epoch, run.pool_size
        if epoch == 0:
            gone.clear()
        original(run)
        left = set((~run.present).nonzero().flatten().tolist())
        assert gone <= left
        assert set(histories).isdisjoint(gone)
        assert set(histories) == set(range(size)) - gone
        if epoch in (1, 3):
            stages += 1
            new, stay = left - gone, set(histories) - left
            assert len(left) == round(size * 0.15 * (epoch + 1) / 2)
            assert max(score(histories[i]) for i in new) <= min(score(histories[i]) for i in stay)
            gone.update(new)
        else:
            assert left == gone
        if epoch % 2:
            histories.clear()

    monkeypatch.setattr(DDR, "observe", watched)
    monkeypatch.setattr(trainer, "end_epoch", ended)
    run = run_steps(chosen)
    assert stages == 10
    assert [[(r["epoch"], r["removed"]) for r in task] for task in run.removed][2] == [(1, 44), (3, 43)]
    assert run.presented[2] == 2 * 291 + 2 * (291 - 44) + 2 * (291 - 87)


def test_removed_samples_are_not_replayed_in_their_task_but_later(small_cell, run_steps) -> None:
    """What the memory holds of the running task's removed samples is not drawn; everything else is."""
    steps_of_a_task = 5 + 4 + 3 + 2 + 4 * 1
    params = {"ddr.proportion": 0.9, "ddr.cutoff": 4, "ddr.replays_removed": False}
    chosen = small_cell("ddr-er", epochs=8, params=params)
    run = run_steps(chosen, 2 * steps_of_a_task - 2)
    assert run.phase.index == 1
    held = [
        slot for slot in range(len(run.memory))
        if run.memory.tasks[slot] == run.phase.index and not run.present[run.memory.positions[slot]]
    ]  # fmt: skip
    assert held
    assert len(run.draw_replay()[1]) == len(run.memory) - len(held)
    run.data.replays_removed = True
    assert len(run.draw_replay()[1]) == len(run.memory)
    run.data.replays_removed = False
    trainer.begin_task(run, run.phases[run.phase.index + 1])
    assert len(run.draw_replay()[1]) == len(run.memory)


def test_a_memory_of_removed_samples_alone_is_not_replayed(small_cell, run_steps) -> None:
    """One slot, whose sample often leaves the task: such steps have no replay instead of a loss over nothing."""
    params = {"ddr.proportion": 0.9, "ddr.replays_removed": False}
    for seed in range(3):
        chosen = small_cell("ddr-derpp", seed=seed, buffer=1, epochs=10, params=params)
        run = run_steps(chosen, 120)
        assert all(loss == loss for losses in run.losses for loss in losses)
