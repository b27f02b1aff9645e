"""Equal budgets: how epochs and schedules of a group are stretched, and what such a group is to the tables."""

from __future__ import annotations

from fractions import Fraction

import pytest
from test_matrix import SMALL, problems

from sparcl import budget, groups, matrix, methods, plan, resolve
from sparcl.components import Clock
from sparcl.costs import planning

METHODS = ["derpp", "sparcl-derpp", "static-derpp", "rigl-derpp"]


def config(level: str, epochs: int = 4, **groups) -> dict:
    group = {"methods": METHODS, "buffers": [50], "sparsities": [0.9]}
    return SMALL | {
        "seeds": 1,
        "defaults": {"epochs": epochs, "batch_size": 32, "params": {"rigl.interval": 6, "ddr.cutoff": 3}},
        "groups": {"plain": group, "equal": group | {"budget": level}, **groups},
    }


def of_group(made: matrix.Matrix, group: str) -> dict:
    cells = zip(made.cells, made.groups, strict=True)
    return {cell.method: cell for cell, groups in cells if group in groups}


def stretch(component: str, factor: Fraction, **values) -> dict:
    cls = (methods.policies() | methods.learners())[component]
    return cls.stretch({key: p.default for key, p in cls.parameters.items()} | values, factor)


def test_a_duration_is_stretched_and_rounded_up() -> None:
    assert stretch("tdm", Fraction(104, 10), interval=1)["interval"] == 11  # of 104 epochs: 10 updates, as of 10
    assert stretch("tdm", Fraction(8, 10), interval=1)["interval"] == 1  # 8 updates: there is no shorter interval
    assert stretch("rigl", Fraction(7, 10), interval=18)["interval"] == 13  # 12.6
    assert stretch("set", Fraction(7, 50), interval=100)["interval"] == 14  # exactly, though 100 * 0.14 > 14 in binary
    assert stretch("gmp", Fraction(3), interval=9)["interval"] == 27
    assert stretch("magnitude", Fraction(9), warmup=0)["warmup"] == 0
    assert stretch("magnitude", Fraction(1, 9), warmup=2)["warmup"] == 1


def test_what_is_no_duration_stays() -> None:
    changed = {key for name, key in _parameters() if stretch(name, Fraction(3))[key] != stretch(name, Fraction(1))[key]}
    assert changed == {"interval"}  # and warmup, whose default is 0; all others are shares, coefficients and choices
    assert stretch("dgm", Fraction(3), refresh=30)["refresh"] == 30  # counted within an epoch


def _parameters() -> list[tuple[str, str]]:
    known = methods.policies() | methods.learners()
    return [(name, key) for name, cls in known.items() for key in cls.parameters]


@pytest.mark.parametrize(
    ("factor", "interval", "cutoff", "stretched"),
    [
        (Fraction(9), 5, 4, (45, 4)),  # removals after 20 of 50 epochs, after 180 of 450
        (Fraction(1, 2), 1, 3, (1, 2)),  # after 3 of 10 epochs, after 2 of 5: a stage has no less than an epoch
        (Fraction(13, 10), 1, 3, (2, 2)),  # after 3 of 10, after 4 of 13
        (Fraction(1, 10), 1, 3, (1, 1)),
    ],
)
def test_removal_ends_at_the_same_share_of_a_task(factor, interval, cutoff, stretched) -> None:
    found = stretch("ddr", factor, interval=interval, cutoff=cutoff)
    assert (found["interval"], found["cutoff"]) == stretched


@pytest.mark.parametrize("level", budget.LEVELS)
def test_every_cell_has_the_epochs_that_come_nearest(level: str) -> None:
    made = matrix.from_dict(config(level))
    plain, equal = of_group(made, "plain"), of_group(made, "equal")
    assert plain.keys() == equal.keys() == set(METHODS)
    own = {name: planning.executed(cell)[0]["training"] for name, cell in plain.items()}
    assert min(own, key=own.get) == "sparcl-derpp"
    assert max(own, key=own.get) == "derpp"
    wanted = own["sparcl-derpp" if level == "flops-of-cheapest" else "derpp"]
    for name, cell in equal.items():
        tried = {epochs: budget.flops(budget.stretched(plain[name], epochs)) for epochs in range(1, 50)}
        assert cell.epochs == min(tried, key=lambda epochs: abs(tried[epochs] - wanted)), name
        assert cell == budget.stretched(plain[name], cell.epochs)
    assert equal["derpp"].epochs == (1 if level == "flops-of-cheapest" else 4)


def test_dense_flops_are_the_epochs_and_the_nearest_is_one_by_hand() -> None:
    """DER++ without masks costs the same every epoch: 4 epochs for the budget, 7 epochs of its own."""
    cell = resolve.make("split-digits", "derpp", buffer=50, epochs=7, params={"protocol.replay_start": "second-task"})
    one = budget.flops(budget.stretched(cell, 1))
    assert budget.flops(cell) == 7 * one
    assert budget._at_budget(cell, 4 * one).epochs == 4
    assert budget._at_budget(cell, 4 * one + one // 3).epochs == 4
    assert budget._at_budget(cell, 4 * one + 2 * one // 3).epochs == 5
    assert budget._at_budget(cell, one // 10).epochs == 1


def test_a_longer_task_has_as_many_updates() -> None:
    made = matrix.from_dict(config("flops-of-dearest"))
    plain, equal = of_group(made, "plain"), of_group(made, "equal")
    for name, expected in (("sparcl-derpp", 4), ("rigl-derpp", 4)):
        for cell in (plain[name], equal[name]):
            assert _updates(cell) == expected
    assert equal["sparcl-derpp"].epochs >= 8 * plain["sparcl-derpp"].epochs
    removed = [_removed(cell) for cell in (plain["sparcl-derpp"], equal["sparcl-derpp"])]
    assert removed[0] == removed[1] == [100, 100, 100]


def _updates(cell) -> int:
    """Count the mask updates of the second task, by the policy's own schedule."""
    sparsity, steps = methods.parts(cell).sparsity, 9
    clocks = [
        Clock(1, 5, epoch, cell.epochs, step, steps, epoch * steps + step, cell.epochs * steps)
        for epoch in range(cell.epochs)
        for step in range(steps)
    ]
    if "tdm.interval" in cell.params:
        return sum(sparsity.update_at(1, c.epoch, c.epochs, cell.sparsity) is not None for c in clocks if not c.step)
    return sum(sparsity.fraction_at(c) is not None for c in clocks)


def _removed(cell) -> list[int]:
    data = methods.parts(cell).data
    counts = [data.planned_removals(1000, Clock(1, 5, epoch, cell.epochs)) for epoch in range(cell.epochs)]
    return [count for count in counts if count]


def test_the_cell_that_sets_the_budget_is_the_plain_one_and_runs_once() -> None:
    made = matrix.from_dict(config("flops-of-cheapest"))
    both = [cell.method for cell, groups in zip(made.cells, made.groups, strict=True) if len(groups) == 2]
    assert both == ["sparcl-derpp"]
    assert len(made.cells) == 2 * len(METHODS) - 1
    stretched = of_group(made, "equal")["rigl-derpp"]
    assert stretched.path == "split-digits/rigl-derpp/s0.90/b50/batch_size=32+epochs=2+rigl.interval=3/seed0"


def test_excluded_cells_set_no_budget() -> None:
    exclude = [{"group": "equal", "method": "sparcl-derpp"}]
    made = matrix.from_dict(config("flops-of-cheapest") | {"exclude": exclude})
    assert of_group(made, "equal")["static-derpp"].epochs == 4


def test_the_plan_says_what_the_budget_comes_to(tmp_path) -> None:
    made = matrix.from_dict(config("flops-of-cheapest"))
    flops = [budget.flops(cell) for cell in of_group(made, "equal").values()]
    line = next(line for line in plan.summary(plan.make(made), tmp_path) if line.startswith("  equal "))
    assert line.endswith(f"{min(flops):.2e} to {max(flops):.2e} training FLOPs each")


def test_a_group_of_equal_budgets_is_in_no_comparison_between_methods() -> None:
    made = plan.make(matrix.from_dict(config("flops-of-dearest")))
    aside = groups.apart(made["config"])
    assert aside == {"equal"}
    main = {entry["path"] for entry in made["cells"] if groups.in_main(entry["groups"], aside)}
    assert main == {cell.path for cell in of_group(matrix.from_dict(config("flops-of-dearest")), "plain").values()}
    assert groups.swept(made["config"]) == {}


def test_another_budget_is_refused() -> None:
    assert problems(config("time")) == [
        'groups.equal.budget: expected flops-of-cheapest or flops-of-dearest, got "time"'
    ]
