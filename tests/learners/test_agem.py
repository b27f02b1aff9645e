"""A-GEM: the projection on written-out vectors, whole steps in float64, whose images the memory holds, and what sparse
training makes of it."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import float64
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl import components, trainer
from sparcl.learners.agem import AGEM, project


def vectors(*values: list[float]) -> dict[str, torch.Tensor]:
    return {f"w{i}": torch.tensor(value, dtype=torch.float64) for i, value in enumerate(values)}


def test_projection_by_hand() -> None:
    """g = (1, -3 | 2), r = (2, 1 | -1): g.r = -3, r.r = 6, so g + r / 2 = (2, -2.5 | 1.5), at right angles to r."""
    g, r = vectors([1, -3], [2]), vectors([2, 1], [-1])
    assert project(g, r, {})
    assert [v.tolist() for v in g.values()] == [[2.0, -2.5], [1.5]]
    assert sum(float((g[n] * r[n]).sum()) for n in g) == 0


@pytest.mark.parametrize("g", [[3.0, 1.0], [1.0, -2.0], [0.0, 0.0]])
def test_no_projection_where_the_product_is_not_negative(g: list[float]) -> None:
    found = vectors(g)
    assert not project(found, vectors([2, 1]), {})
    assert found["w0"].tolist() == g


def test_no_projection_on_a_zero_reference() -> None:
    found = vectors([1, 2])
    assert not project(found, vectors([0, 0]), {})
    assert found["w0"].tolist() == [1, 2]


def test_products_go_over_the_weights_that_exist() -> None:
    """All of w: g.r = 1 - 4 = -3, a conflict. Without the second weight: g.r = 1, none."""
    exist = {"w0": torch.tensor([True, False])}
    found = vectors([1, -4])
    assert not project(found, vectors([1, 1]), exist)
    assert found["w0"].tolist() == [1, -4]
    # And with a conflict among the existing ones: g.r = -2 over r.r = 4 there, whatever the missing weight says.
    found = vectors([-1, 9])
    assert project(found, vectors([2, 100]), exist)
    assert found["w0"][0] == 0


@pytest.mark.parametrize(
    ("single_head", "after"), [(True, [0, 0, -1 / 2, 1 / 2, 0, 0]), (False, [0, 1 / 5, -4 / 5, 1 / 5, 1 / 5, 1 / 5])]
)
def test_the_loss_over_all_outputs_makes_a_conflict(single_head: bool, after: list[float]) -> None:
    """Six outputs z = w x at w = 0; the task has the classes 2 and 3. Of it x = 1, y = 2; x' = 2, y' = 0 is stored.

    r = (-5, 1, 1, 1, 1, 1) / 3, over all outputs in either case. With a single head g = (0, 0, -1, 1, 0, 0) / 2 is at
    right angles to it. Without one g = (1, 1, -5, 1, 1, 1) / 6: g.r = -1/3, r.r = 10/3, and g + r / 10 is applied.
    """
    model = torch.nn.Linear(1, 6, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    run = SimpleNamespace(model=model, device=torch.device("cpu"), cell=SimpleNamespace(precision="float32"))
    run.protocol, run.phase = SimpleNamespace(single_head=single_head), SimpleNamespace(classes=range(2, 4))
    run.masks, run.term_gradients = SimpleNamespace(gradient=None, weight={}), {}
    run.logits = lambda *passes: [model(images) for images in passes]
    image, learner = torch.ones(1, 1, dtype=torch.float64), AGEM()
    terms, _ = learner.terms(run, image, torch.tensor([2]), [(2 * image, torch.tensor([0]), torch.zeros(1, 6))])
    sum(terms.values()).backward()
    learner.adjust_gradients(run)
    assert model.weight.grad.flatten().tolist() == pytest.approx(after, rel=0, abs=1e-15)


def both_gradients(
    run: trainer.Run, batch: components.Batch, replays: list, single_head: bool
) -> tuple[list[torch.Tensor], ...]:
    """Return the gradients of the loss, over the task's classes or all, and of the stored images', over all."""
    model = copy.deepcopy(run.model)
    first, last = (run.phase.classes.start, run.phase.classes.stop) if single_head else (0, 10)
    losses = (
        float64.cross_entropy(model(batch.images)[:, first:last], batch.labels - first),
        float64.cross_entropy(model(replays[0][0]), replays[0][1]),
    )
    return tuple([g.clone() for g in torch.autograd.grad(loss, list(model.parameters()))] for loss in losses)


@pytest.mark.parametrize("single_head", [True, False])
@pytest.mark.parametrize("name", ["agem", "agem_r"])
def test_steps_by_hand(name: str, single_head: bool, small_cell, run_steps) -> None:
    """w <- w - lr (g - min(0, g.r) / r.r r) over eight steps, some in conflict; r is of all classes."""
    params = {"protocol.single_head": single_head}
    run = run_steps(small_cell(name, learning_rate=0.1, epochs=3, batch_size=32, params=params), 27 + 1)
    assert run.phase.index == 1
    float64.compute_in(run)
    conflicts = 0
    for batch in list(trainer.batches(run))[:8]:
        saved = {n: run.generator(n).get_state() for n in ("replay", "replay-augment")}
        replays = run.learner.replay(run)
        for name, state in saved.items():
            run.generator(name).set_state(state)
        g, r = both_gradients(run, batch, replays, single_head)
        product = sum(float((a * b).sum()) for a, b in zip(g, r, strict=True))
        square = sum(float((b * b).sum()) for b in r)
        factor = min(0.0, product) / square
        conflicts += product < 0
        before = [p.detach().clone() for p in run.model.parameters()]
        trainer.step(run, batch)
        for parameter, start, a, b in zip(run.model.parameters(), before, g, r, strict=True):
            assert torch.allclose(parameter.detach(), start - 0.1 * (a - factor * b), rtol=0, atol=1e-12)
    assert conflicts > 0


@pytest.mark.parametrize(
    ("buffer", "parts"), [(20, (4, 4, 4, 4, 4)), (23, (5, 5, 5, 4, 4)), (3, (1, 1, 1, 0, 0)), (5000, (1000,) * 5)]
)
def test_memory_holds_equal_parts_of_the_past_tasks(buffer: int, parts: tuple[int, ...], small_cell, run_steps) -> None:
    """M / T images of each task that has ended, drawn without replacement among its own, and none of the present one.

    23 = 5 + 5 + 5 + 4 + 4; of 3 places the first three tasks get one; 5000 hold every image of a task, 282 to 293.
    """
    seen: dict[int, list[int]] = {}

    def watch(run: trainer.Run) -> None:
        tasks = run.memory.tasks[: len(run.memory)]
        counts = tasks.bincount(minlength=5).tolist()
        limits = zip(parts, run.info.train_sizes, strict=True)
        assert counts == [min(limit) if task < run.phase.index else 0 for task, limit in enumerate(limits)]
        seen[run.phase.index] = counts
        held = run.memory.images[: len(run.memory)].flatten(1)
        for task in range(run.phase.index):
            own = held[tasks == task]
            labels = run.memory.labels[: len(run.memory)][tasks == task]
            assert set(labels.tolist()) <= {2 * task, 2 * task + 1}
            pool = run.stream.train_images[run.stream.tasks[task].train_index].flatten(1)
            assert bool((own[:, None] == pool).all(2).any(1).all())
            assert len(own) < 5 or len(own.unique(dim=0)) > 0.9 * len(own)

    run_steps(small_cell("agem", buffer=buffer, epochs=1, batch_size=128), after_step=watch)
    assert sorted(seen) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "own"), [("agem", False), ("agem_r", True)])
def test_the_constraint_acts_from_the_second_task_on(name: str, own: bool, small_cell, run_steps, monkeypatch) -> None:
    """Every step of the tasks 1 to 4 has a reference gradient and none of task 0; only A-GEM-R's is of its own task."""
    steps: list[int] = []
    drawn: dict[int, set[int]] = {}
    original = project
    monkeypatch.setattr("sparcl.learners.agem.project", lambda *given: steps.append(1) or original(*given))
    draw = trainer.Run.draw_replay

    def watched(run: trainer.Run):
        found = draw(run)
        drawn.setdefault(run.phase.index, set()).update((found[1] // 2).tolist())
        return found

    monkeypatch.setattr(trainer.Run, "draw_replay", watched)
    run = run_steps(small_cell(name, epochs=2, batch_size=64))
    assert len(steps) == 2 * sum(-(-size // 64) for size in run.info.train_sizes[1:])
    assert sorted(drawn) == [1, 2, 3, 4]
    for task, tasks in drawn.items():
        assert tasks == set(range(task + own)), task


def test_sparse_steps_move_no_missing_weight_and_do_not_hurt_memory(small_cell, run_steps, monkeypatch) -> None:
    """The gradient that a sparse step applies has no negative product with the reference over existing weights."""
    products = []
    original = project

    def watched(gradients, reference, exist):
        needed = original(gradients, reference, exist)
        parts = [(gradients[n] * reference[n] * exist.get(n, torch.ones(()))).double().sum() for n in gradients]
        size = [(reference[n] * exist.get(n, torch.ones(()))).double().square().sum() for n in gradients]
        products.append((needed, float(sum(parts)) / float(sum(size))))
        return needed

    monkeypatch.setattr("sparcl.learners.agem.project", watched)
    run = run_steps(small_cell("static-agem"))
    assert any(needed for needed, _ in products)
    assert all(product > -1e-5 for _, product in products)
    for name, weight in run.masks.parameters.items():
        assert not weight.detach()[~run.masks.weight[name]].any()


@pytest.mark.parametrize(("name", "held"), [("agem", (4, 8, 12, 16)), ("agem_r", (20, 20, 20, 20))])
def test_what_the_reference_gradient_costs(name: str, held: tuple[int, ...], small_cell, run_steps) -> None:
    """A whole training pass of each replayed image, on the line of replay; not held at once with the stream's.

    20 places for 5 tasks: 4 images of each past one, in a batch of at most 64.
    """
    chosen = small_cell(name, epochs=1, batch_size=64, buffer=20)
    run = run_steps(chosen)
    lines = run.ledger.as_record()["lines"]
    images = sum(-(-size // 64) * count for size, count in zip(run.info.train_sizes[1:], held, strict=True))
    per_image = lines["stream"]["forward"] // sum(run.info.train_sizes)
    assert lines["replay"] == dict.fromkeys(("forward", "input_gradient", "weight_gradient"), per_image * images)
    assert run.learner.images_at_once(chosen, run.protocol) == 64


def test_terms_for_importance(small_cell, run_steps) -> None:
    """TDM and DGM see the stream's gradient and the memory's, both before the projection."""
    run = run_steps(small_cell("agem"), 14)
    batch = next(trainer.batches(run))
    replays = run.learner.replay(run)
    run.backward(batch, replays, by_term=True)
    run.learner.adjust_gradients(run)
    assert set(run.term_gradients) == {"stream", "memory"}
    names = list(run.masks.parameters)
    assert all(list(term) == names for term in run.term_gradients.values())


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0.2, 1.0))
def test_the_result_is_the_nearest_that_does_not_increase_the_memorys_loss(seed: int, size: int, share: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    g, r = (torch.randn(size, generator=draw, dtype=torch.float64) for _ in range(2))
    exist = torch.rand(size, generator=draw) < share
    after = {"a": g.clone()}
    projected = project(after, {"a": r}, {"a": exist})
    along = float((after["a"] * r)[exist].sum())
    if not projected:
        assert along >= 0
        assert torch.equal(after["a"], g)
        return
    assert along == pytest.approx(0, abs=1e-9)
    moved = (after["a"] - g)[exist]  # the shortest way to the half-space is along its normal
    assert abs(float(moved @ r[exist])) == pytest.approx(float(moved.norm() * r[exist].norm()))
