"""Equal budgets: rows against the dense learner at the same budget, and the figure of accuracy against FLOPs."""

from __future__ import annotations

import factory
import numpy as np
import pytest
from scipy import stats
from test_tables import one

from analysis import catalog
from analysis.figures import budget, style
from analysis.figures.scene import Scene

LONGER = {"derpp": 10, "sparcl-derpp": 76, "static-derpp": 70}
SPARSE = ("sparcl-derpp", "static-derpp")


def items(seeds=3):
    """Plain cells, and those of a group in which sparse methods train longer; the dense ones are in both."""
    for method, epochs in LONGER.items():
        for buffer in (20, 50):
            for seed in range(seeds):
                sparsity = 0.9 if method in SPARSE else 0.0
                yield factory.entry(factory.cell(method, sparsity, buffer, seed), ["main"])
                variant = {} if epochs == 10 else {"epochs": epochs}
                longer = factory.cell(method, sparsity, buffer, seed, epochs=epochs)
                yield factory.entry(longer, ["equal"], variant)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    plan = factory.plan(items())
    plan["config"]["groups"]["equal"] |= {"budget": "flops-of-dearest", "title": "FLOPs of DER++"}
    return factory.collected(factory.write(tmp_path_factory.mktemp("budget"), plan))


def test_only_a_plan_with_a_budget_has_them(results):
    plan = factory.plan(items())
    assert "budget" not in catalog.tables(plan) + catalog.figures(plan)
    plan = results.plan.document
    assert "budget" in catalog.tables(plan)
    assert "budget" in catalog.figures(plan)
    assert {row.epochs for row in results.frame[results.frame.main].itertuples()} == {10}


def test_rows_are_compared_with_the_dense_learner_at_the_budget(results):
    rows = factory.rows(factory.table(results, "budget"))
    assert [(row["buffer"], row["method"], row["epochs"]) for row in rows] == [
        (buffer, method, str(LONGER[method]))
        for buffer in ("20", "50") for method in ("derpp", "static-derpp", "sparcl-derpp")
    ]  # fmt: skip
    records = factory.Records(results)
    own, dense = (
        [records[f"split-digits/{name}/seed{s}"] for s in range(3)]
        for name in ("static-derpp/s0.90/b50/epochs=70", "derpp/s0.00/b50")
    )
    row = one(rows, method="static-derpp", buffer="50")
    assert row["reference"] == "split-digits/derpp/s0.00/b50"
    gaps = np.array([factory.final(a) - factory.final(b) for a, b in zip(own, dense, strict=True)])
    assert float(row["class_il_diff"]) == pytest.approx(gaps.mean())
    assert float(row["class_il_p"]) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    ratio = own[0]["results"]["executed"]["training"] / dense[0]["results"]["executed"]["training"]
    assert float(row["share"]) == pytest.approx(ratio)
    assert row["title"] == "FLOPs of DER++"
    assert one(rows, method="derpp", buffer="50")["reference"] == ""
    assert float(one(rows, method="derpp", buffer="50")["share"]) == 1


def test_without_a_dense_learner_nothing_is_compared(tmp_path):
    plan = factory.plan(item for item in items(2) if item["cell"]["method"] != "derpp")
    plan["config"]["groups"]["equal"]["budget"] = "flops-of-cheapest"
    rows = factory.rows(factory.table(factory.collected(factory.write(tmp_path, plan)), "budget"))
    assert len(rows) == 4
    assert {(row["share"], row["reference"]) for row in rows} == {("", "")}


def test_the_figure_joins_each_method_to_its_plain_cell(results):
    with style.context():
        drawing = budget.draw(Scene(results))
    panels = [ax for ax in drawing.figure.axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in panels] == [
        f"FLOPs of DER++: DER++, buffer {b}, sparsity 0.90" for b in (20, 50)
    ]
    rows = factory.rows(factory.table(results, "budget"))
    for ax, buffer in zip(panels, ("20", "50"), strict=True):
        assert ax.get_xscale() == "log"
        assert ax.get_xlabel() == "Executed training FLOPs"
        drawn = {(round(float(x)), round(float(y), 6)) for line in ax.get_lines()
                 for x, y in zip(*line.get_data(), strict=True)}  # fmt: skip
        for row in rows:
            if row["buffer"] == buffer:
                assert (round(float(row["flops_executed"])), round(float(row["class_il_mean"]), 6)) in drawn
        hollow = [
            line for line in ax.get_lines() if line.get_markerfacecolor() == "white" and line.get_marker() != "None"
        ]
        assert len(hollow) == len(SPARSE)  # the dense learner keeps its epochs
    style.close(drawing.figure)
