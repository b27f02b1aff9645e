"""What a gain is made of: effects of a crossed design with known ones, against least squares and by hand."""

from __future__ import annotations

import itertools
import json

import factory
import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as formula
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_tables import one

from analysis import catalog, claims, gain
from analysis.figures import gain as figure
from analysis.figures import style
from analysis.figures.scene import Scene
from analysis.protocols import HEAD, REPLAY
from analysis.typeset import p_equals

TRAINING = {"dense": "derpp", "static": "static-derpp", "rigl": "rigl-derpp", "tdm+dgm": "tdm-dgm-derpp"}
REMOVING = {"dense": "ddr-derpp", "static": "static-ddr-derpp", "rigl": "rigl-ddr-derpp", "tdm+dgm": "sparcl-derpp"}
LEVELS = list(itertools.product(TRAINING, (True, False), ("second-task", "immediately"), (False, True)))
RNG = np.random.default_rng(3)
NOISE = {(level, seed): RNG.normal(0, 1) for level in LEVELS for seed in range(3)}


def truth(training, head, start, removal, seed):
    """80, minus 3 for every sparse training, 1 less for TDM + DGM, 4 more for the task's loss but for TDM + DGM."""
    value = (
        80.0 - 3 * (training != "dense") + 1 * (training == "tdm+dgm") - 2 * removal + 0.5 * (start == "immediately")
    )
    value += 4 * head * (training != "tdm+dgm") + 1.5 * head * removal
    return value + NOISE[(training, head, start, removal), seed] + 5 * seed


def items(levels=LEVELS, buffers=(50,), seeds=3):
    for training, head, start, removal in levels:
        method = (REMOVING if removal else TRAINING)[training]
        params = {HEAD: head, REPLAY: start}
        variant = {key: value for key, value in params.items() if (key, value) not in
                   ((HEAD, True), (REPLAY, "second-task"))}  # fmt: skip
        for buffer, seed in itertools.product(buffers, range(seeds)):
            sparsity = 0.0 if training == "dense" else 0.9
            yield factory.entry(factory.cell(method, sparsity, buffer, seed, params), ["gain"], variant)


def collected(folder, entries, skip=()):
    """Records whose final Class-IL is the truth, in every task."""
    plan = factory.plan(entries, sweeps={"gain": [HEAD, REPLAY]})
    file = factory.write(folder, plan, skip)
    for entry in plan["cells"]:
        where, cell = file.parent / "runs" / entry["path"] / "record.json", entry["cell"]
        if entry["path"] in skip:
            continue
        facts = factory.facts(cell["method"])["policies"]
        training = "+".join(filter(None, (facts["sparsity"], facts["gradient"]))) or "dense"
        place = training, cell["params"][HEAD], cell["params"][REPLAY], bool(facts["data"])
        record = json.loads(where.read_text())
        record["results"]["accuracy"]["class_il"][-1] = [truth(*place, cell["seed"]) + 0.1 * cell["buffer"]] * 5
        where.write_text(json.dumps(factory.sealed(record)))
    return factory.collected(file)


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    return collected(tmp_path_factory.mktemp("gain"), items())


@pytest.fixture(scope="module")
def rows(crossed):
    return factory.rows(factory.table(crossed, "gain"))


def difference(high, low, seeds=3):
    """Per seed, the mean of the truth over places minus that over others."""
    return np.array(
        [np.mean([truth(*p, s) for p in high]) - np.mean([truth(*p, s) for p in low]) for s in range(seeds)]
    )


def test_the_rows_are_comparisons_main_effects_and_interactions(rows):
    kinds = [row["kind"] for row in rows]
    assert kinds == ["SparCL as compared"] * 15 + ["main effect"] * 6 + ["interaction"] * 12
    assert [row["name"] for row in rows if row["kind"] == "main effect"] == [
        "TDM+DGM minus dense", "TDM+DGM minus Static", "TDM+DGM minus RigL",
        "loss over the task's classes minus loss over all classes", "replay from the second task minus replay at once",
        "data removal minus no data removal",
    ]  # fmt: skip


def test_a_main_effect_is_the_mean_over_all_other_levels(rows):
    row = one(rows, kind="main effect", name="loss over the task's classes minus loss over all classes")
    gaps = difference([p for p in LEVELS if p[1]], [p for p in LEVELS if not p[1]])
    expected = stats.ttest_1samp(gaps, 0)
    assert float(row["class_il_diff"]) == pytest.approx(gaps.mean())
    assert float(row["p"]) == pytest.approx(expected.pvalue)
    assert float(row["class_il_ci_low"]) == pytest.approx(expected.confidence_interval().low)
    assert row["pairs"] == "16"
    assert float(row["class_il_diff"]) == pytest.approx(4 * 3 / 4 + 1.5 / 2, abs=0.7)  # what the truth was made with


def test_an_interaction_is_a_difference_of_differences(rows):
    row = one(rows, kind="interaction", name="TDM+DGM minus dense",
              where="loss over the task's classes minus loss over all classes")  # fmt: skip
    sides = [
        difference([p for p in LEVELS if p[:2] == ("tdm+dgm", head)], [p for p in LEVELS if p[:2] == ("dense", head)])
        for head in (True, False)
    ]
    assert float(row["at_high_diff"]) == pytest.approx(sides[0].mean())
    assert float(row["at_low_diff"]) == pytest.approx(sides[1].mean())
    assert float(row["class_il_diff"]) == pytest.approx((sides[0] - sides[1]).mean())
    assert float(row["p"]) == pytest.approx(stats.ttest_1samp(sides[0] - sides[1], 0).pvalue)
    assert float(row["class_il_diff"]) == pytest.approx(-4, abs=1.5)


def test_effects_are_those_of_least_squares_with_effect_coding(rows):
    """Of a balanced design: the coefficient of a two-level factor is half its effect, of an interaction a quarter."""
    frame = pd.DataFrame(
        [(*p, seed, truth(*p, seed)) for p in LEVELS for seed in range(3)],
        columns=["training", "head", "start", "removal", "seed", "value"],
    )
    for key, high in (("head", True), ("start", "second-task"), ("removal", True)):
        frame[key] = np.where(frame[key] == high, 1, -1)
    fit = formula.ols("value ~ C(seed) + C(training, Sum) * (head + start + removal) + (head + start + removal) ** 2",
                      frame).fit().params  # fmt: skip
    loss, replay, removal = (
        "loss over the task's classes minus loss over all classes", "replay from the second task minus replay at once",
        "data removal minus no data removal",
    )  # fmt: skip
    for name, term in ((loss, "head"), (replay, "start"), (removal, "removal")):
        assert float(one(rows, kind="main effect", name=name)["class_il_diff"]) == pytest.approx(2 * fit[term])
    for name, where, term in (
        (loss, replay, "head:start"),
        (loss, removal, "head:removal"),
        (replay, removal, "start:removal"),
    ):
        row = one(rows, kind="interaction", name=name, where=where)
        assert float(row["class_il_diff"]) == pytest.approx(4 * fit[term])
    coded = {level: fit.get(f"C(training, Sum)[S.{level}]", 0.0) for level in ("dense", "rigl", "static")}
    last = -sum(coded.values())
    row = one(rows, kind="main effect", name="TDM+DGM minus dense")
    assert float(row["class_il_diff"]) == pytest.approx(last - coded["dense"])


def test_comparisons_are_of_sparcl_as_published(rows):
    """With its removal against the other without; by its own code against DER's, and by one protocol."""
    ours, dense = ("tdm+dgm", True, "second-task", True), ("dense", False, "immediately", False)
    row = one(rows, name="SparCL minus dense", where=gain.BY_SOURCE)
    assert float(row["class_il_diff"]) == pytest.approx(difference([ours], [dense]).mean())
    row = one(rows, name="SparCL minus RigL", where="both: loss over all classes, replay at once")
    places = [("tdm+dgm", False, "immediately", True)], [("rigl", False, "immediately", False)]
    assert float(row["class_il_diff"]) == pytest.approx(difference(*places).mean())
    assert row["pairs"] == "1"


def test_p_is_adjusted_over_the_table(rows):
    expected = multipletests([float(row["p"]) for row in rows], method="fdr_bh")[1]
    assert [float(row["p_fdr"]) for row in rows] == pytest.approx(list(expected))


def test_two_buffers_are_averaged_over(tmp_path, rows):
    twice = factory.rows(factory.table(collected(tmp_path, items(buffers=(20, 50))), "gain"))
    expected = [float(row["class_il_diff"]) for row in rows]
    assert [float(row["class_il_diff"]) for row in twice] == pytest.approx(expected)
    assert one(twice, name="TDM+DGM minus dense", kind="main effect")["pairs"] == "16"  # of 8 for one


def test_cells_that_are_missing_leave_balanced_pairs(tmp_path):
    """Without RigL's removal its contrast is over the cells that both sides have, and what lacks is named."""
    gone = [entry["path"] for entry in items() if entry["cell"]["method"] == "rigl-ddr-derpp"]
    results = collected(tmp_path, items(), gone)
    table = factory.table(results, "gain")
    row = one(factory.rows(table), kind="main effect", name="TDM+DGM minus RigL")
    places = [[(training, *p[1:]) for p in LEVELS if p[0] == training and not p[3]] for training in ("tdm+dgm", "rigl")]
    assert float(row["class_il_diff"]) == pytest.approx(difference(*places).mean())
    assert row["pairs"] == "4"
    assert not [r for r in factory.rows(table) if r["kind"] == "interaction" and r["name"] == "TDM+DGM minus RigL"
                and r["where"].startswith("data")]  # fmt: skip
    assert len(table.missing) == 4


def test_the_group_is_in_no_comparison_between_methods(crossed):
    names = catalog.tables(crossed.plan.document)
    assert {"gain", "sweep_gain"} <= set(names)
    assert "primary" not in names
    assert factory.figures(crossed.plan.document) == ["gain"]
    assert not crossed.frame.main.any()


def test_the_figure_shows_the_tables_differences(crossed, rows):
    with style.context():
        drawing = figure.draw(Scene(crossed))
    left, right = drawing.figure.axes
    for ax, chosen in ((left, rows[:15]), (right, rows[15:])):
        drawn = sorted(
            line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() not in ("None", "", None, "|")
        )
        assert drawn == pytest.approx(sorted(float(row["class_il_diff"]) for row in chosen))
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels[::6] == ["SparCL minus dense", "SparCL minus Static", "SparCL minus RigL"]
    assert labels[1] == "each by its source"
    assert left.get_xlabel() == "Class-IL, difference (points)"
    style.close(drawing.figure)


def test_the_first_claim_refers_to_it(crossed, rows):
    (claim,) = claims.claims(crossed)
    assert "+1.7 points" in claim.claim
    assert "table gain" in claim.answer
    names = [line.partition(":")[0] for line in claim.highlights]
    assert len(names) == 5 + 6
    assert names[0].startswith("SparCL minus dense (each by its source")
    value = float(one(rows, name="SparCL minus dense", where=gain.BY_SOURCE)["class_il_diff"])
    assert f": {value:+.2f}".replace("-", "\u2212") in claim.highlights[0]
    told = {f"{row['name']} ({row['where']})" if row["where"] else row["name"]: row for row in rows}
    for line in claim.highlights:  # one effect has one p and one verdict, in table and report
        (row,) = (row for what, row in told.items() if line.startswith(f"{what}: "))
        assert f" points, {row['verdict']} ({p_equals(float(row['p_fdr']))}, n = {row['n']})" in line


@pytest.mark.parametrize("sparse", [("rigl-derpp", "rigl-erk-derpp"), ("rigl-erk-derpp", "rigl-derpp")])
def test_bundles_of_the_same_policies_are_two_ways_of_training(tmp_path, sparse):
    """RigL-ERK is RigL with another allocation: neither hides the other, in any order."""
    entries = [
        factory.entry(factory.cell(method, 0.9 * ("-" in method), 50, seed), ["gain"])
        for method in ("derpp", *sparse) for seed in range(2)
    ]  # fmt: skip
    results = factory.collected(factory.write(tmp_path, factory.plan(entries, sweeps={"gain": [HEAD, REPLAY]})))
    cells, labels = gain.cells_of(results)
    assert sorted(labels.values()) == ["RigL", "RigL-ERK", "dense"]
    assert {c.label for c in cells.values()} == {"DER++", "RigL-DER++", "RigL-ERK-DER++"}


def test_without_sparcls_cells_there_is_no_comparison_but_the_effects(tmp_path):
    plan = factory.plan(items())
    for number, names in enumerate((["sparcl-derpp"], ["sparcl-derpp", "tdm-dgm-derpp"])):
        gone = [entry["path"] for entry in plan["cells"] if entry["cell"]["method"] in names]
        kinds = {
            row["kind"] for row in factory.rows(factory.table(collected(tmp_path / str(number), items(), gone), "gain"))
        }
        assert kinds == {"main effect", "interaction"}
