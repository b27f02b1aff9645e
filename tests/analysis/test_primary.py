"""The planned contrasts and the exploratory ones, against hand-made and recomputed numbers."""

from __future__ import annotations

import math
from importlib import import_module

import factory
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired
from test_tables import one, values

from analysis import __main__ as command
from analysis import catalog, claims, contrasts, frames
from analysis.configurations import configurations
from analysis.contrasts import Contrast, Finding
from analysis.figures import style
from analysis.figures.scene import Scene
from analysis.statistics import Paired
from analysis.typeset import to_markdown

SETTINGS = [(learner, s, b) for learner in ("er", "derpp") for s in ("0.75", "0.90", "0.95") for b in (20, 50)]
PLANNED = {"dense": "dense", "static": "Static", "rigl": "RigL", "snip": "SNIP"}
ANALYSIS = {
    "metric": "class_il", "smallest_difference": 2, "alpha": 0.05, "power": 0.8, "correction": "holm",
    "contrasts": [{"first": "sparcl", "second": name} for name in PLANNED],
}  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory, small_plan):
    """The shared matrix, with a planned analysis of four contrasts."""
    return factory.collected(factory.write(tmp_path_factory.mktemp("planned"), small_plan | {"analysis": ANALYSIS}))


def averages(results, name, metric="class_il"):
    """SparCL's and the rival's averages over the settings, seed by seed, recomputed from the records."""
    sides = [[], []]
    for learner, s, b in SETTINGS:
        other = f"{learner}/s0.00" if name == "dense" else f"{name.lower()}-{learner}/s{s}"
        sides[0].append(values(results, f"split-digits/sparcl-{learner}/s{s}/b{b}", metric))
        sides[1].append(values(results, f"split-digits/{other}/b{b}", metric))
    return np.array(sides)


def test_differences_are_averaged_over_settings_within_each_seed():
    """Two settings: differences 1, 3 in seed 0 and 4, 6 in seed 1, so 2 and 5; seed 2 lacks a value in one."""
    first = ({0: 11.0, 1: 24.0, 2: 90.0}, {0: 10.0, 1: 20.0, 2: 1.0})
    second = ({0: 53.0, 1: 66.0, 2: math.nan}, {0: 50.0, 1: 60.0, 2: 1.0})
    found = contrasts.pooled([first, second])
    assert found.n == 2
    assert found.mean == 3.5
    assert found.sd == pytest.approx(3 / math.sqrt(2))
    assert found.p == pytest.approx(stats.ttest_1samp([2, 5], 0).pvalue)


def test_nothing_in_common_is_no_comparison():
    assert contrasts.pooled([]).n == 0
    assert contrasts.pooled([({0: 1.0}, {1: 1.0})]).n == 0


def test_rows_are_recomputed_from_the_records(planned):
    rows = factory.rows(factory.table(planned, "primary"))
    names = [*PLANNED.values(), "Magnitude", "GMP", "SET", "RigL-ERK"]
    assert [row["contrast"] for row in rows] == [f"SparCL minus {name}" for name in names]
    assert [row["planned"] for row in rows] == ["1"] * 4 + ["0"] * 4
    p_values, within, records = [], [], factory.Records(planned)
    for name, row in zip(names, rows, strict=True):
        ours, theirs = averages(planned, name)
        gaps = ours - theirs
        assert int(row["settings"]) == 12
        assert int(row["below"]) == (gaps.mean(axis=1) < 0).sum()
        expected = stats.ttest_1samp(gaps.mean(axis=0), 0)
        assert float(row["class_il_diff"]) == pytest.approx(gaps.mean())
        assert float(row["class_il_sd"]) == pytest.approx(gaps.mean(axis=0).std(ddof=1))
        assert float(row["p"]) == pytest.approx(expected.pvalue)
        assert float(row["class_il_ci_low"]) == pytest.approx(expected.confidence_interval().low)
        p_values.append(expected.pvalue)
        within.append(ttost_paired(ours.mean(axis=0), theirs.mean(axis=0), -2, 2)[0])
        training = [
            records[f"split-digits/rigl-{learner}/s{s}/b{b}/seed0"]["results"]["executed"]["training"]
            / records[f"split-digits/sparcl-{learner}/s{s}/b{b}/seed0"]["results"]["executed"]["training"]
            for learner, s, b in SETTINGS
        ]
        if name == "RigL":
            assert float(row["flops"]) == pytest.approx(stats.gmean(training), rel=0.02)
    for column, raw in (("p_corrected", p_values), ("p_within", within)):
        expected = [*multipletests(raw[:4], method="holm")[1], *multipletests(raw[4:], method="fdr_bh")[1]]
        assert [float(row[column]) for row in rows] == pytest.approx(expected)


def test_fresh_seeds_are_tested_and_corrected_by_themselves(tmp_path, small_plan):
    config = small_plan["config"] | {"fresh_from": 1}
    results = factory.collected(factory.write(tmp_path, small_plan | {"analysis": ANALYSIS, "config": config}))
    table = factory.table(results, "primary")
    rows = factory.rows(table)[: len(PLANNED)]
    gaps = {name: np.subtract(*averages(results, name)).mean(axis=0)[1:] for name in PLANNED.values()}
    tests = [stats.ttest_1samp(gap, 0) for gap in gaps.values()]
    corrected = multipletests([test.pvalue for test in tests], method="holm")[1]
    for row, gap, test, p in zip(rows, gaps.values(), tests, corrected, strict=True):
        assert row["fresh_n"] == "2"
        assert float(row["fresh_diff"]) == pytest.approx(gap.mean())
        assert float(row["fresh_ci_high"]) == pytest.approx(test.confidence_interval().high)
        assert float(row["fresh_p"]) == pytest.approx(p)
    assert "the seeds from 1 on" in to_markdown(table)
    finding = contrasts.findings(results)[0]
    assert finding.line().endswith(f"; fresh seeds alone: {finding.fresh.line().partition(': ')[2]}")
    assert claims.claims(results)[2].highlights[0].count("n = ") == 2


def test_without_fresh_seeds_no_column_speaks_of_them(planned):
    assert "resh" not in to_markdown(factory.table(planned, "primary"))


def test_a_planned_p_does_not_depend_on_exploratory_rows(planned, tmp_path, small_plan):
    """Without the rivals that nobody planned the planned rows are the same to the last digit."""
    names = {"sparcl", *PLANNED, ""}
    cells = [e for e in small_plan["cells"] if e["cell"]["method"].removesuffix("derpp").removesuffix("er").rstrip("-")
             in names]  # fmt: skip
    fewer = factory.collected(factory.write(tmp_path, small_plan | {"analysis": ANALYSIS, "cells": cells}))
    assert factory.rows(factory.table(fewer, "primary")) == factory.rows(factory.table(planned, "primary"))[:4]


def test_without_a_planned_analysis_all_is_exploratory(matrix):
    table = factory.table(matrix, "primary")
    rows = factory.rows(table)
    assert {row["planned"] for row in rows} == {"0"}
    assert len(rows) == 8
    expected = multipletests([float(row["p"]) for row in rows], method="fdr_bh")[1]
    assert [float(row["p_corrected"]) for row in rows] == pytest.approx(list(expected))
    assert any("No analysis was planned" in note for note in table.notes)


@pytest.mark.parametrize(
    ("p", "p_within", "mean", "verdict"),
    [
        (0.01, 0.9, 3.0, "higher"),
        (0.01, 0.9, -3.0, "lower"),
        (0.3, 0.04, -0.2, "within 2 points"),
        (0.01, 0.01, -0.7, "lower, but within 2 points"),
        (0.3, 0.3, -1.0, "not told apart"),
        (0.05, 0.05, 1.0, "not told apart"),
        (math.nan, math.nan, 1.0, "not tested"),
    ],
)
def test_verdicts(p, p_within, mean, verdict):
    finding = Finding(Contrast("a", "b", ("A", "B"), True, ()), Paired(5, mean), p, p_within, 2.0, 0.05)
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "excluded"),
    [
        (-1.0, 1.5, "a gain of 2 points; a loss of 2 points"),
        (-6.0, 1.0, "a gain of 2 points"),
        (-5.0, -0.1, "no difference; a gain of 2 points"),
        (2.5, 4.0, "no difference; a loss of 2 points"),
        (-4.0, 4.0, "none of them"),
        (-2.2, 1.0, "a gain of 2 points; a loss of 2 points"),  # by the 90 % interval: -0.6 +- 1.6 * 2.13 / 2.78
        (math.nan, math.nan, "\u2013"),
    ],
)
def test_what_an_interval_excludes(low, high, excluded):
    paired = Paired(5, (low + high) / 2, 1.0, low, high)
    assert Finding(Contrast("a", "b", ("A", "B"), True, ()), paired, 0.5, 0.5, 2.0, 0.05).excluded == excluded


def test_a_contrast_may_be_between_any_two_bundles_in_either_order(matrix):
    pool = [c for c in configurations(frames.main_rows(matrix.frame)) if not c.setting]
    labels = {"dense": "dense", **matrix.plan.bundles}
    pair = contrasts._contrast("rigl", "set", True, pool, labels)
    assert len(pair.pairs) == 12
    assert {(a.bundle, b.bundle) for a, b in pair.pairs} == {("rigl", "set")}
    one_way, back = (
        contrasts._contrast(*sides, True, pool, labels) for sides in (("rigl", "dense"), ("dense", "rigl"))
    )
    assert back.pooled("class_il").mean == pytest.approx(-one_way.pooled("class_il").mean)


def test_methods_of_different_protocols_are_not_compared(tmp_path):
    """A dense learner of 20 epochs and a static mask with another loss stand in tables, and against nothing."""
    items = [
        factory.entry(factory.cell(method, 0.9 * ("-" in method), 50, seed, **fields), variant=variant)
        for method, fields, variant in (
            ("sparcl-derpp", {}, {}), ("rigl-derpp", {}, {}), ("derpp", {"epochs": 20}, {"epochs": 20}),
            ("static-derpp", {"params": {"protocol.single_head": False}}, {"protocol.single_head": False}),
            ("set-derpp", {}, {"set.interval": 63, "kernel": "dense"}),
        ) for seed in range(3)
    ]  # fmt: skip
    results = factory.collected(factory.write(tmp_path, factory.plan(items)))
    rows = factory.rows(factory.table(results, "primary"))
    assert [row["contrast"] for row in rows] == ["SparCL minus RigL", "SparCL minus SET"]
    made = factory.table(results, "sparse_baselines")
    references = {row["method"]: row["reference"] for row in factory.rows(made)}
    assert references["static-derpp"] == ""
    assert references["rigl-derpp"].startswith("split-digits/sparcl-derpp")
    assert any(note.endswith("Static-DER++ (protocol.single_head false).") for note in made.notes)
    assert factory.rows(factory.table(results, "continual_learning"))[0]["reference"] == ""
    assert not [claim for claim in claims.claims(results) if "DER++ against DER++" in str(claim)]


def test_a_sparse_method_without_zeros_is_in_no_contrast(tmp_path):
    items = [
        factory.entry(factory.cell(method, sparsity, 50, seed))
        for method, sparsity in (("derpp", 0.0), ("sparcl-derpp", 0.0), ("sparcl-derpp", 0.9)) for seed in range(3)
    ]  # fmt: skip
    (row,) = factory.rows(factory.table(factory.collected(factory.write(tmp_path, factory.plan(items))), "primary"))
    assert (row["contrast"], row["settings"]) == ("SparCL minus dense", "1")


def test_a_planned_contrast_that_nothing_was_run_for_keeps_its_row(tmp_path):
    items = [factory.entry(factory.cell(m, s, 50, seed)) for m, s in (("sparcl-er", 0.9), ("er", 0.0))
             for seed in range(3)]  # fmt: skip
    results = factory.collected(factory.write(tmp_path, factory.plan(items, analysis=ANALYSIS)))
    rows = factory.rows(factory.table(results, "primary"))
    assert [(row["contrast"], row["settings"], row["n"]) for row in rows] == [
        ("SparCL minus dense", "1", "3"), ("SparCL minus Static", "0", "0"), ("SparCL minus RigL", "0", "0"),
        ("SparCL minus SNIP", "0", "0"),
    ]  # fmt: skip
    assert one(rows, second="rigl")["verdict"] == "not tested"
    # One test: nothing to correct for.
    assert rows[0]["p_corrected"] == rows[0]["p"]


def test_no_table_without_sparcl_and_an_empty_one_without_runs(tmp_path):
    items = [factory.entry(factory.cell("rigl-er", 0.9, 50, seed)) for seed in range(2)]
    assert "primary" not in catalog.tables(factory.plan(items, reference=""))
    assert "primary" in catalog.tables(factory.plan(items, reference="", analysis=ANALYSIS))
    plan = factory.plan([*items, factory.entry(factory.cell("sparcl-er", 0.9, 50, 0))], reference="")
    assert "primary" in catalog.tables(plan)
    results = factory.collected(factory.write(tmp_path, plan, skip=[item["path"] for item in plan["cells"]]))
    made = factory.table(results, "primary")
    assert not made.rows
    assert len(made.missing) == 2


def test_the_report_tells_planned_from_exploratory(planned):
    gain, _, baselines, _ = claims.claims(planned)
    (dense,) = [f for f in contrasts.findings(planned) if f.contrast.second == "dense"]
    assert dense.line() in gain.answer
    assert "exploratory" not in dense.line()
    assert [line.split(":")[0] for line in baselines.highlights if "exploratory" not in line] == [
        "SparCL minus Static", "SparCL minus RigL", "SparCL minus SNIP",
    ]  # fmt: skip
    assert len(baselines.highlights) == 7
    assert "exploratory" in gain.answer
    text = to_markdown(factory.table(planned, "primary"))
    assert "Holm-corrected over these rows alone" in text


# -- power
def chance(effect, n, alpha):
    """Power of a two-sided t-test by the noncentral F distribution, its square."""
    return stats.ncf.sf(stats.t.ppf(1 - alpha / 2, n - 1) ** 2, 1, n - 1, n * effect**2)


def test_power_is_recomputed_from_the_records(planned):
    rows = factory.rows(factory.table(planned, "power"))
    assert [row["contrast"] for row in rows] == [f"SparCL minus {name}" for name in PLANNED.values()]
    for row, name in zip(rows, PLANNED.values(), strict=True):
        ours, theirs = averages(planned, name)
        sd = (ours - theirs).mean(axis=0).std(ddof=1)
        assert float(row["sd"]) == pytest.approx(sd)
        assert float(row["alpha"]) == pytest.approx(0.05 / 4)
        told = float(row["detectable"])
        assert chance(told / sd, 3, 0.05 / 4) == pytest.approx(0.8, abs=1e-4)
        seeds = int(row["seeds"])
        assert chance(2 / sd, seeds, 0.05 / 4) >= 0.8
        assert seeds == 2 or chance(2 / sd, seeds - 1, 0.05 / 4) < 0.8
        assert int(row["seeds_high"]) >= seeds


def test_power_is_for_a_planned_analysis(matrix, planned, tmp_path):
    assert "power" not in catalog.tables(matrix.plan.document)
    plan = planned.plan.document
    assert factory.tables(plan)[:2] == ["primary", "power"]
    nothing = factory.collected(factory.write(tmp_path, plan, skip=[entry["path"] for entry in plan["cells"]]))
    made = factory.table(nothing, "power")
    for line in to_markdown(made).splitlines():
        if line.startswith("| SparCL"):
            assert line.count("\u2013") == 5, line
    assert "split-digits/rigl-er/s0.90/b50: seeds 0, 1, 2: not run" in made.missing
    assert set(made.missing) < set(factory.table(nothing, "primary").missing)


def test_what_has_no_finished_cell_is_named(planned, tmp_path):
    plan = planned.plan.document
    gone = [entry["path"] for entry in plan["cells"] if entry["cell"]["method"] == "rigl-derpp"]
    results = factory.collected(factory.write(tmp_path, plan, skip=gone))
    made = factory.table(results, "primary")
    assert one(factory.rows(made), second="rigl")["settings"] == "6"
    assert sum("rigl-derpp" in line for line in made.missing) == 6
    (drawn,) = [f for f in catalog.figures(plan) if f == "forgetting_bars"]
    drawing = import_module(f"analysis.figures.{drawn}").draw(Scene(results))
    assert sum("rigl-derpp" in line for line in drawing.missing) == 2
    style.close(drawing.figure)


@pytest.mark.parametrize("methods", [["er"], ["er", "rigl-er"]])
def test_a_matrix_without_sparcl_has_a_report(methods, tmp_path):
    cells = [factory.cell(m, 0.9 if "-" in m else 0.0, 20, seed) for m in methods for seed in range(2)]
    plan = factory.plan([factory.entry(cell) for cell in cells], reference="er")
    file = factory.write(tmp_path, plan)
    assert contrasts.findings(factory.collected(file)) == []
    for kind in ("table", "figure", "report"):
        out = tmp_path / ("report.html" if kind == "report" else f"{kind}s")
        assert command.main([kind, "--plan", str(file), "--results", str(file.parent), "--out", str(out)]) == 0
