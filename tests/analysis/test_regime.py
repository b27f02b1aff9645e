"""Whether tasks are learned: the rules by hand, and what tables and report say where they are not."""

from __future__ import annotations

import json
import math

import factory
import pandas as pd
import pytest

from analysis import __main__ as command
from analysis import catalog, collect, frames, regime, ties
from sparcl import groups

MAIN = [("finetune", 0.0, 0), ("er", 0.0, 50), ("derpp", 0.0, 50), ("sparcl-derpp", 0.9, 50)]
FAST = [1.0 / (e + 1) for e in range(10)]
"""Losses of a learned task: 1, 1/2, ... 1/10. The last quarter, 2 epochs, makes (1/8 - 1/10) / (1 - 1/10) = 1/36."""
SLOW = [1.0 - 0.05 * e for e in range(10)]
"""Of one that is still learning: 2 steps of 9."""


def made(folder, pilot=None, losses=FAST, bottom=20.0, learned=None, seeds=2, main=MAIN):
    """A matrix with finished runs; ``pilot`` maps epochs to DER++'s learning accuracy there; ``bottom`` is the Class-IL
    accuracy of fine-tuning, and the other methods end at 80."""
    items = [factory.entry(factory.cell(m, s, b, seed)) for m, s, b in main for seed in range(seeds)]
    for epochs in pilot or {}:
        variant = {} if epochs == 10 else {"epochs": epochs}
        items += [factory.entry(factory.cell("derpp", 0.0, 50, s, epochs=epochs), [groups.PILOT], variant)
                  for s in range(seeds)]  # fmt: skip
    document = factory.plan(items)
    document["config"]["groups"].setdefault(groups.PILOT, {"methods": ["derpp"]})
    file = factory.write(folder, document)
    for entry in document["cells"]:
        where = file.parent / "runs" / entry["path"] / "record.json"
        record, cell = json.loads(where.read_text()), entry["cell"]
        value = (pilot or {}).get(cell["epochs"], 95.0) if cell["method"] == "derpp" else 95.0
        final = bottom if cell["method"] == "finetune" else 80.0
        for kind in ("class_il", "task_il"):
            rows = [[float(final)] * 5 for _ in range(5)]
            for t in range(5):
                rows[t][t] = value
            rows[4] = [final - (value - final) / 4] * 4 + [value]
            record["results"]["accuracy"][kind] = rows
        record["results"]["losses"] = [list(losses)] * 5
        where.write_text(json.dumps(factory.sealed(record)))
    return factory.collected(file)


def frame(*tasks):
    """The losses of tasks of one cell, as the tidy table has them."""
    rows = [("a", task, epoch, value) for task, values in enumerate(tasks) for epoch, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["path", "task", "epoch", "value"])


@pytest.mark.parametrize(
    ("tasks", "share"),
    [
        ([FAST], 1 / 36),
        ([SLOW], 2 / 9),
        ([[4.0, 2.0, 1.0, 0.5]], 0.5 / 3.5),  # 4 epochs: the last one
        ([[3.0, 1.0]], math.nan),  # the last quarter would be all of it
        ([[3.0, 2.0, 1.0]], math.nan),
        ([[4.0, 2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 1.0]], 1 / 3),  # added up over tasks: (0 + 1) / (2 + 1)
        ([[1.0]], math.nan),
        ([[1.0, 2.0]], math.nan),
        ([], math.nan),
    ],
)
def test_the_last_quarters_share_of_the_fall(tasks, share):
    assert regime.late(frame(*tasks)) == pytest.approx(share, nan_ok=True)


def test_the_order_of_the_rows_does_not_matter():
    shuffled = frame(SLOW, FAST).sample(frac=1, random_state=1)
    assert regime.late(shuffled) == pytest.approx(regime.late(frame(SLOW, FAST)))


def test_a_learned_matrix_says_nothing(tmp_path):
    results = made(tmp_path)
    (check,) = regime.checks(results)  # DER++ alone: no sparse method is built on ER
    assert (check.learner.method, check.epochs, check.is_learned, check.is_forgotten) == ("derpp", 10, True, True)
    assert check.above.mean == pytest.approx(60)
    assert regime.problems([check]) == []
    assert not any(regime.NOT_LEARNED in note for note in factory.table(results, "continual_learning").notes)


def test_losses_that_still_fall_are_named_in_tables_and_report(tmp_path):
    results = made(tmp_path, losses=SLOW)
    (line,) = regime.problems(regime.checks(results))
    assert line == "DER++, buffer 50, 10 epochs: the last quarter of the epochs still makes 22 % of the loss's fall"
    for name in ("primary", "continual_learning", "regime"):
        assert any(note.startswith(regime.NOT_LEARNED) for note in factory.table(results, name).notes), name
    folder = results.plan.path.parent
    for kind in ("table", "figure", "report"):
        out = folder / ("report.html" if kind == "report" else f"{kind}s")
        assert command.main([kind, "--plan", str(results.plan.path), "--out", str(out)]) == 0
    html = (folder / "report.html").read_text()
    assert f"<b>{regime.NOT_LEARNED}</b>" in html
    assert "22 % of the loss" in html


@pytest.mark.parametrize("losses", [[2.0], [3.0, 2.0], [1.0, 2.0, 2.0, 2.0]])
def test_losses_that_show_nothing_do_not_pass(tmp_path, losses):
    (line,) = regime.problems(regime.checks(made(tmp_path, losses=losses)))
    assert line.endswith("nothing shows tasks to be learned (no pilot, no fall of the loss over four epochs)")


def test_fine_tuning_must_be_well_below_replay(tmp_path):
    (line,) = regime.problems(regime.checks(made(tmp_path, bottom=72.0)))
    assert line == "DER++, buffer 50, 10 epochs: only 8.0 points of Class-IL above fine-tuning"


def test_without_fine_tuning_that_check_is_open(tmp_path):
    (check,) = regime.checks(made(tmp_path, main=MAIN[1:]))
    assert (check.above, check.is_forgotten) == (None, None)
    assert regime.problems([check]) == []


@pytest.mark.parametrize(("longer", "is_learned"), [(96.5, True), (97.5, False), (92.5, False)])
def test_a_pilot_decides_whatever_the_losses_say(tmp_path, longer, is_learned):
    """At 10 epochs 95 %; at 20 within 2 points of it, or not."""
    for losses in (FAST, SLOW):
        results = made(tmp_path / str(losses is FAST), {10: 95.0, 20: longer}, losses)
        own, pilot = regime.checks(results)
        assert (own.epochs, own.is_own, own.is_learned) == (10, True, is_learned)
        assert [paired.mean for paired in own.moved.values()] == pytest.approx([longer - 95.0] * 2)
        assert (pilot.epochs, pilot.is_own, pilot.moved, pilot.above) == (20, False, {}, None)
        assert bool(regime.problems([own, pilot])) != is_learned
    assert ("moves learning accuracy" in regime.problems([own])[0]) if not is_learned else True


@pytest.mark.parametrize(("shorter", "is_learned"), [(93.5, True), (92.5, False)])
def test_half_the_epochs_stand_in_for_twice(tmp_path, shorter, is_learned):
    results = made(tmp_path, {10: 95.0, 5: shorter}, SLOW)
    pilot, own = regime.checks(results)
    assert (own.epochs, own.is_own, own.moved, own.is_learned) == (10, True, {}, is_learned)
    assert [paired.mean for paired in own.reached.values()] == pytest.approx([95.0 - shorter] * 2)
    assert (pilot.epochs, pilot.is_own, pilot.moved) == (5, False, own.reached)
    lines = regime.problems([pilot, own])
    assert lines == [] if is_learned else "the last doubling of the epochs moved" in lines[0]


@pytest.mark.parametrize(("doubled", "answer"), [([96.0, 96.05], "yes"), ([97.0, 95.0], "yes, by the means")])
def test_an_interval_that_reaches_beyond_is_told(tmp_path, doubled, answer):
    """At 10 epochs 95 % for both seeds; at 20 1.0 and 1.05 more, or 2 and 0: 1 +- 12.7."""
    results = made(tmp_path, {10: 95.0, 20: 95.0})
    own, pilot = regime.checks(results)
    frame = results.frame
    for metric in regime.METRICS:
        frame.loc[frame.configuration == own.learner.key, metric] = 95.0
        frame.loc[frame.configuration == pilot.learner.key, metric] = doubled
    row = factory.rows(factory.table(results, "regime"))[0]
    assert (row["learned"], row["pilot_n"]) == (answer, "2")


def test_only_twice_the_epochs_is_a_pilot(tmp_path):
    own, _ = regime.checks(made(tmp_path, {10: 95.0, 30: 99.0}))
    assert own.moved == {}


def test_a_pilot_alone_has_the_table() -> None:
    """A matrix whose dense rows are all sweeps (the gain's) may have one."""
    entries = [
        factory.entry(factory.cell("derpp", 0.0, 50, 0, epochs=epochs), ["pilot"], {"epochs": epochs})
        for epochs in (10, 20)
    ]
    assert "regime" in catalog.tables(factory.plan(entries))


def test_the_pilot_is_in_no_comparison_and_has_one_table(tmp_path):
    results = made(tmp_path, {10: 95.0, 20: 96.0})
    assert {entry.epochs for entry in frames.main_rows(results.frame).itertuples()} == {10}
    names = catalog.tables(results.plan.document)
    assert "regime" in names
    assert not [name for name in names if "pilot" in name]
    rows = factory.rows(factory.table(results, "regime"))
    assert [(row["epochs"], row["own"], row["learned"], row["forgotten"]) for row in rows] == [
        ("10", "1", "yes", "yes"), ("20", "0", "yes", ""),
    ]  # fmt: skip
    assert float(rows[0]["moved_learning_class_il_diff"]) == pytest.approx(1.0)
    assert float(rows[0]["learning_class_il_mean"]) == pytest.approx(95.0)
    assert float(rows[0]["late"]) == pytest.approx(100 / 36)


def test_a_budget_that_leaves_tasks_unlearned_is_named(tmp_path):
    """A budget of one epoch, 15 points of learning accuracy below ten; one of 1.5 points is none."""
    results = made(tmp_path / "short", {10: 95.0, 1: 80.0})
    (line,) = regime.shortened(results, groups.PILOT)
    assert line.startswith(
        "pilot: with 1 epoch a task DER++, buffer 50, is 15.0 points of learning accuracy below 10: its tasks are not"
    )
    assert regime.shortened(made(tmp_path / "long", {10: 95.0, 5: 93.5}), groups.PILOT) == []


def test_ties_are_warned_of_where_they_decide_more_than_half(tmp_path):
    """Of SparCL's four removals, two cells with 0.9 and 0.5 each: one half is no more than half."""
    items = [factory.entry(factory.cell("sparcl-derpp", 0.9, 50, seed)) for seed in range(2)]
    items += [factory.entry(factory.cell("ddr-derpp", 0.0, 50, 0))]
    file = factory.write(tmp_path, factory.plan(items))
    results = factory.collected(file)
    assert (ties.lines(results), ties.summary(results)) == ([], "")  # no removal at all
    table = pd.read_csv(tmp_path / collect.TABLE, dtype=str, keep_default_na=False)
    for path, shares in ((items[0]["path"], (0.9, 0.5)), (items[1]["path"], (0.9, 0.5)), (items[2]["path"], (0.1,))):
        head = table[table.path == path].iloc[:1]
        for epoch, share in enumerate(shares):
            row = head.assign(quantity="removed_tied", task="0", epoch=str(epoch), value=str(share), line="", kind="")
            table = pd.concat([table, row])
    table.to_csv(tmp_path / collect.TABLE, index=False)
    results = frames.read(file, tmp_path / collect.TABLE)
    assert ties.lines(results) == [
        "split-digits/sparcl-derpp/s0.90/b50: more than half in 2 of 4 removals, on average 70 %"
    ]
    assert ties.summary(results).startswith(
        "In 2 of 5 removals (on average in 1 of 2 settings with data removal) more than half"
    )
