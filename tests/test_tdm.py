"""TDM: importance by hand and against float64 autograd, both schedules, exact counts, what an update keeps."""

from __future__ import annotations

import float64
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl import resolve, trainer
from sparcl.components import Clock
from sparcl.costs import planning
from sparcl.errors import UserError
from sparcl.masks import MaskSet, keep_count
from sparcl.policies.tdm import TDM, importance


def test_continual_weight_importance_by_hand() -> None:
    """|w| + 0.5 |g_current| + 2 |g_memory|: 1 + 0.5 + 2, 2 + 2 + 0, 0 + 0.25 + 1."""
    weight, current, memory = torch.tensor([1.0, -2, 0]), torch.tensor([-1.0, 4, 0.5]), torch.tensor([1.0, 0, -0.5])
    assert importance(weight, current, memory, 0.5, 2.0).tolist() == [3.5, 4, 1.25]
    assert importance(weight, current, None, 0.5, 2.0).tolist() == [1.5, 4, 0.25]
    assert importance(weight, None, None, 0.5, 2.0).tolist() == [1, 2, 0]


# -- schedules ---------------------------------------------------------------------------------------------------------
def test_the_released_codes_schedule() -> None:
    """s = 0.75, 50 epochs, every 5: prune to / grow to as its profile lists them, in every task alike."""
    tdm = TDM(schedule="released", interval=5)
    for task in (0, 3):
        table = {epoch: tdm.update_at(task, epoch, 50, 0.75) for epoch in range(50)}
        updates = {epoch: update for epoch, update in table.items() if update is not None}
        expected = {0: (0.75, 0.74)} | dict.fromkeys(range(5, 45, 5), (0.76, 0.75)) | {45: (0.75, 0.75)}
        assert updates.keys() == expected.keys()
        for epoch, update in updates.items():
            assert update == pytest.approx(expected[epoch])


def test_the_papers_schedule() -> None:
    """Later tasks open at s - p_inter for one interval; every other update prunes p_intra and grows it back."""
    tdm = TDM(interval=5)
    assert tdm.update_at(0, 0, 50, 0.9) is None
    assert tdm.update_at(1, 0, 50, 0.9) == pytest.approx((0.9, 0.89))
    for task in (0, 1):
        for epoch in range(5, 50, 5):
            assert tdm.update_at(task, epoch, 50, 0.9) == pytest.approx((0.905, 0.9))
        assert tdm.update_at(task, 7, 50, 0.9) is None
    in_force = [tdm.sparsity_at(1, epoch, 50, 0.9) for epoch in range(50)]
    assert in_force == pytest.approx([0.89] * 5 + [0.9] * 45)
    assert [tdm.sparsity_at(0, epoch, 50, 0.9) for epoch in range(50)] == [0.9] * 50


@pytest.mark.parametrize("schedule", ["paper", "released"])
def test_at_sparsity_0_there_is_nothing_to_do(schedule: str) -> None:
    tdm = TDM(schedule=schedule)
    assert all(tdm.update_at(task, epoch, 50, 0.0) is None for task in range(3) for epoch in range(50))


@given(
    schedule=st.sampled_from(["paper", "released"]),
    sparsity=st.floats(0.01, 0.99).map(lambda x: round(x, 3)),
    p_inter=st.floats(0, 0.3).map(lambda x: round(x, 3)),
    interval=st.integers(1, 12),
    epochs=st.integers(1, 40),
)
def test_never_denser_than_allowed(schedule: str, sparsity: float, p_inter: float, interval: int, epochs: int) -> None:
    tdm = TDM(schedule=schedule, p_inter=p_inter, interval=interval)
    for task in range(2):
        for epoch in range(epochs):
            in_force = tdm.sparsity_at(task, epoch, epochs, sparsity)
            assert max(sparsity - p_inter, 0) - 1e-9 <= in_force <= sparsity
            assert epoch < interval or in_force == sparsity
            update = tdm.update_at(task, epoch, epochs, sparsity)
            assert update is None or update[0] >= update[1]


# -- one update --------------------------------------------------------------------------------------------------------
def test_an_update_by_hand(toy_run) -> None:
    """Ten weights at s = 0.5, importance |w| + 0.5 |g| + |g'|; prune one, grow one.

    Weight 0.3 has no gradient and goes (importance 0.3); weight 0.1 is saved by the memory's gradient.
    """
    weights = torch.tensor([0.1, 0.3, -0.9, 0.8, 0.7, 0, 0, 0, 0, 0])
    run = toy_run({"a": weights}, sparsity=0.5, tasks=2, epochs=6, epoch=3, steps=4, step=3)
    run.masks.adopt({"a": weights != 0})
    tdm = TDM(interval=4, p_intra=0.1)
    zero = torch.zeros(10)
    run.term_gradients = {"stream": {"a": zero}, "memory": {"a": zero.clone().index_fill_(0, torch.tensor([0]), -1)}}
    assert tdm.by_term
    assert tdm.gradients_wanted(0.5, run.clock) == {"importance": "weights"}
    assert tdm.on_gradients(run) is True
    run.clock = Clock(tasks=2, epochs=6, epoch=4, steps=4)
    tdm.begin_epoch(run)
    mask = run.masks.weight["a"]
    assert run.updates == [(1, 1)]
    assert mask[[0, 2, 3, 4]].all()
    assert mask.sum() == 5
    grown = run.masks.parameters["a"].detach()
    assert grown[[0, 2, 3, 4]].tolist() == pytest.approx([0.1, -0.9, 0.8, 0.7])
    assert (grown[[1, 5, 6, 7, 8, 9]] == 0).all()


@pytest.mark.parametrize(("zeros", "weights"), [("keep", 4), ("drop", 3)])
def test_live_weights_of_value_0_at_an_update(zeros: str, weights: int, toy_run) -> None:
    """Of ten weights five exist: 0.9, 0.8, 0.7, 0 with a gradient of 2, and 0.1, which is the least important one.

    Pruned to s = 0.6 the four others stay, or three of them where a weight of value 0 does not count as one. With
    growth to s = 0.5 there are five again either way; the released code's last update grows nothing.
    """
    values = torch.tensor([0.9, 0.8, 0.7, 0.0, 0.1, 0, 0, 0, 0, 0])
    for grow_to, expected in ((0.6, weights), (0.5, 5)):
        run = toy_run({"a": values}, sparsity=0.5, epochs=6, epoch=3)
        run.masks.adopt({"a": torch.arange(10) < 5})
        tdm = TDM(zeros=zeros)
        gradient = torch.zeros(10).index_fill_(0, torch.tensor([3]), 2.0)
        tdm._sums, tdm._batches = {"stream": {"a": gradient}}, 1
        tdm._update(run, 0.6, grow_to)
        mask = run.masks.weight["a"]
        assert mask[:3].all()
        assert int(mask.sum()) == expected
        assert run.updates == [(1 if zeros == "keep" else 2, expected - weights)]
        if grow_to == 0.6:
            assert mask.tolist()[3:5] == [zeros == "keep", False]


def test_how_many_weights_there_are_after_the_last_update_depends_on_the_data(small_cell, run_steps) -> None:
    """Planned before: nothing while no growth makes up for what is 0, and never more than the schedule says."""
    params = {"tdm.schedule": "released", "tdm.zeros": "drop", "tdm.interval": 1, "tdm.p_inter": 0.1}
    container = MaskSet({"a": torch.nn.Parameter(torch.zeros(100))})
    tdm = TDM(schedule="released", zeros="drop", interval=1, p_inter=0.1)
    planned = [tdm.planned_counts(container, 0.75, Clock(tasks=5, epochs=3, epoch=epoch)) for epoch in range(4)]
    assert planned == [{"a": 35}, {"a": 25}, None, None]
    one = Clock(tasks=5, epochs=1, epoch=1)  # a task of one epoch is expanded to its end
    assert tdm.planned_counts(container, 0.75, one) is None
    assert tdm.planned_counts(container, 0.0, one) == {"a": 100}
    left = []

    def watch(run: trainer.Run) -> None:
        if run.clock.epoch == 2:
            left.append(
                sum(run.masks.counts().values()) / sum(keep_count(m.numel(), 0.75) for m in run.masks.weight.values())
            )

    run_steps(
        small_cell("sparcl-derpp", epochs=3, params=params | {"dgm.refresh": 1000, "dgm.sparsity": 0.9}), None, watch
    )
    assert 0.5 < min(left) < 0.99
    assert max(left) <= 1


def test_merged_importance_lets_terms_cancel(toy_run) -> None:
    """The released code's |w| + alpha |g_current + g_memory| sees 0 where the paper's two terms see 2."""
    weights = torch.tensor([0.5, 0.6, 0.7, 0.8, 0, 0, 0, 0])
    kept = {}
    for kind in ("two-term", "merged"):
        run = toy_run({"a": weights}, sparsity=0.5, epochs=6, epoch=3)
        run.masks.adopt({"a": weights != 0})
        tdm = TDM(interval=4, p_intra=0.125, importance=kind)
        gradient = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
        run.term_gradients = {"stream": {"a": gradient}, "memory": {"a": -gradient}}
        tdm.on_gradients(run)
        run.clock = Clock(epochs=6, epoch=4)
        tdm.begin_epoch(run)
        kept[kind] = (run.masks.parameters["a"].detach() != 0)[:4].tolist()
    assert kept == {"two-term": [True, False, True, True], "merged": [False, True, True, True]}


def test_merged_importance_after_gradient_masking(toy_run) -> None:
    """The released code reads its gradient after the gradient mask: of a weight that does not learn it sees |w| alone.

    Four weights of ten are there, the first two with gradients of 4 and 2 in all. Only the second one learns, so by
    alpha = 0.5 the scores are 0.1 and 0.2 + 0.5 * 2 = 1.2 for them; without the mask the first one's is 2.1.
    """
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0, 0, 0])
    stream, memory = torch.zeros(10), torch.zeros(10)
    stream[:2], memory[:2] = torch.tensor([5.0, -3.0]), torch.tensor([-1.0, 1.0])
    learning = torch.zeros(10, dtype=torch.bool).index_fill_(0, torch.tensor([1, 2]), True)
    scores, kept = {}, {}
    for masked in (True, False):
        for kind in ("merged", "two-term"):
            run = toy_run({"a": weights}, sparsity=0.6, epochs=6, epoch=3)
            run.masks.adopt({"a": weights != 0})
            if masked:
                run.masks.restrict_gradients({"a": learning})
            tdm = TDM(interval=4, p_intra=0.1, importance=kind)
            run.term_gradients = {"stream": {"a": stream}, "memory": {"a": memory}}
            tdm.on_gradients(run)
            scores[kind, masked] = tdm._importance(run, "a")[:4].tolist()
            run.clock = Clock(epochs=6, epoch=4)
            tdm.begin_epoch(run)
            kept[kind, masked] = (run.masks.parameters["a"].detach() != 0)[:4].tolist()
    assert scores["merged", True] == pytest.approx([0.1, 1.2, 0.3, 0.4])
    assert scores["merged", False] == pytest.approx([2.1, 1.2, 0.3, 0.4])
    # The paper's two terms do not look at the gradient mask: 0.1 + 2.5 + 1, 0.2 + 1.5 + 1.
    assert scores["two-term", True] == scores["two-term", False] == pytest.approx([3.6, 2.7, 0.3, 0.4])
    assert kept["merged", True] == [False, True, True, True]
    assert kept["merged", False] == kept["two-term", True] == kept["two-term", False] == [True, True, False, True]


def test_gradients_of_several_batches_are_averaged_before_the_absolute_value(toy_run) -> None:
    weights = torch.tensor([0.5, 0.6, 0, 0])
    run = toy_run({"a": weights}, sparsity=0.5, epochs=6, epoch=3, steps=10, step=8)
    run.masks.adopt({"a": weights != 0})
    tdm = TDM(interval=4, p_intra=0.25, batches=2)
    for step, sign in ((8, 1.0), (9, -1.0)):  # opposite gradients on the first weight: their mean is 0
        run.clock = Clock(epochs=6, epoch=3, steps=10, step=step)
        run.term_gradients = {"stream": {"a": torch.tensor([sign, 0.1, 0, 0])}}
        tdm.on_gradients(run)
    assert tdm.state()["batches"] == 2
    run.clock = Clock(epochs=6, epoch=4, steps=10)
    tdm.begin_epoch(run)
    assert run.masks.parameters["a"].tolist() == pytest.approx([0, 0.6, 0, 0])
    assert tdm.state() == {"batches": 0, "sums": {}}


def test_only_the_last_batches_before_an_update_are_looked_at(toy_run) -> None:
    run = toy_run({"a": torch.ones(4)}, sparsity=0.5)
    tdm = TDM(interval=4, batches=2)

    def wanted(task: int, epoch: int) -> list[int]:
        return [
            step for step in range(10)
            if tdm.gradients_wanted(0.5, Clock(task=task, tasks=2, epoch=epoch, epochs=8, step=step, steps=10))
        ]  # fmt: skip

    assert [wanted(0, epoch) for epoch in range(8)] == [[], [], [], [8, 9], [], [], [], []]
    assert not tdm.gradients_wanted(0.0, Clock(epochs=8, epoch=3, step=9, steps=10))
    # Two epochs a task, so a later task never shrinks back by an update: its end does, and needs the importance.
    last = Clock(task=1, tasks=2, epoch=1, epochs=2, step=9, steps=10)
    assert tdm.gradients_wanted(0.5, last)
    assert run.masks.density() == 1


@given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.sampled_from([0.5, 0.75, 0.9, 0.95, 0.33]),
       st.integers(0, 1000))  # fmt: skip
def test_counts_follow_the_plan_whatever_the_layers(sizes: list[int], sparsity: float, seed: int) -> None:
    tdm = TDM(interval=2)
    draw = torch.Generator().manual_seed(seed)
    container = MaskSet({f"w{i}": torch.nn.Parameter(torch.randn(n, generator=draw)) for i, n in enumerate(sizes)})
    for epoch in range(5):
        counts = tdm.planned_counts(container, sparsity, Clock(task=1, tasks=2, epoch=epoch, epochs=5))
        share = tdm.sparsity_at(1, epoch, 5, sparsity)
        assert counts == {f"w{i}": keep_count(n, share) for i, n in enumerate(sizes)}


# -- a run -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("schedule", ["paper", "released"])
@pytest.mark.parametrize("learner", ["er", "derpp"])
def test_a_run_removes_the_least_important(learner: str, schedule: str, small_cell, run_steps, monkeypatch) -> None:
    """Before each update: importance from float64 gradients of written-out loss terms; the lowest are gone after it."""
    params = {"tdm.interval": 2, "tdm.p_intra": 0.05, "tdm.p_inter": 0.05, "tdm.schedule": schedule}
    chosen = small_cell(f"tdm-{learner}", epochs=5, params=params)
    terms: dict[str, dict[str, torch.Tensor]] = {}
    state: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    updates = []
    original, update = trainer.Run.backward, TDM._update

    def watched(run, batch, replays, positions="dense", by_term=False):
        terms.clear()
        terms.update(float64.gradients(run, batch, replays) if by_term else {})
        return original(run, batch, replays, positions, by_term)

    def checked(self, run, prune_to, grow_to):
        for name, weight in run.masks.parameters.items():
            state[name] = weight.detach().clone(), run.masks.weight[name].clone()
        update(self, run, prune_to, grow_to)
        updates.append((run.clock.task, run.clock.epoch))
        for name, weight in run.masks.parameters.items():
            old, mask = state[name]
            score = old.abs()
            if terms:
                score = score + 0.5 * terms["stream"][name].abs()
            if "memory" in terms:
                score = score + 1.0 * terms["memory"][name].abs()
            active = mask.flatten().nonzero().flatten().tolist()
            active.sort(key=score.flatten().tolist().__getitem__)
            kept = set(active[max(len(active) - keep_count(mask.numel(), prune_to), 0) :])
            values = weight.detach().flatten()
            survivors = set(values.nonzero().flatten().tolist())
            assert survivors == {i for i in kept if old.flatten()[i] != 0}, (name, run.clock)
            assert int(run.masks.weight[name].sum()) == keep_count(mask.numel(), grow_to)
        terms.clear()

    monkeypatch.setattr(trainer.Run, "backward", watched)
    monkeypatch.setattr(TDM, "_update", checked)
    run_steps(chosen, 50, prepare=float64.compute_in)
    first = [] if schedule == "paper" else [(0, 0)]
    assert updates == [*first, (0, 2), (0, 4), (1, 0), (1, 2), (1, 4)]


@pytest.mark.parametrize(
    ("method", "sparsity", "least"), [("sparcl-er", 0.995, "p_intra"), ("sparcl-released-er", 0.99, "p_inter")]
)
def test_an_update_that_would_replace_every_weight_is_refused(method: str, sparsity: float, least: str) -> None:
    with pytest.raises(UserError, match=rf"^tdm\.{least}: expected less than the share {round(1 - sparsity, 3)} "):
        resolve.make("split-digits", method, sparsity, 50)
    resolve.make("split-digits", method, sparsity, 50, params={f"tdm.{least}": 0.001})


@pytest.mark.parametrize("learner", ["er", "ewc", "lwf"])
def test_the_plan_of_a_task_shorter_than_the_interval(learner: str, small_cell, run_steps) -> None:
    """What comes after a task (evaluation, Fisher information, old outputs) is at the cell's sparsity."""
    chosen = small_cell(f"tdm-{learner}", epochs=3, params={"tdm.interval": 5, "tdm.p_inter": 0.2})
    assert planning.executed(chosen) == (run_steps(chosen).ledger.as_record(), False)


def test_a_short_task_still_ends_at_the_cells_sparsity(small_cell, run_steps) -> None:
    """Three epochs with an interval of five: the expansion is taken back when the task ends."""
    densities = []
    chosen = small_cell("tdm-er", epochs=3, params={"tdm.interval": 5})
    run = run_steps(chosen, after_step=lambda run: densities.append(run.masks.density()))
    assert densities[:15] == [densities[0]] * 15
    assert densities[15:30] == [densities[15]] * 15
    assert densities[15] > densities[0]
    assert run.masks.counts() == {n: keep_count(p.numel(), 0.75) for n, p in run.masks.parameters.items()}
