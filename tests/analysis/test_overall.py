"""SparCL against each rival over all settings, against hand-made and recomputed numbers."""

from __future__ import annotations

import math

import factory
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_tables import one, values

from analysis import catalog, rivals

SETTINGS = [(learner, s, b) for learner in ("er", "derpp") for s in ("0.75", "0.90", "0.95") for b in (20, 50)]


def test_differences_are_averaged_over_settings_within_each_seed():
    """Two settings: differences 1, 3 in seed 0 and 4, 6 in seed 1, so 2 and 5; seed 2 lacks a value in one."""
    first = ({0: 11.0, 1: 24.0, 2: 90.0}, {0: 10.0, 1: 20.0, 2: 1.0})
    second = ({0: 53.0, 1: 66.0, 2: math.nan}, {0: 50.0, 1: 60.0, 2: 1.0})
    found = rivals.pooled([first, second])
    assert found.n == 2
    assert found.mean == 3.5
    assert found.sd == pytest.approx(3 / math.sqrt(2))
    assert found.p == pytest.approx(stats.ttest_1samp([2, 5], 0).pvalue)


def test_nothing_in_common_is_no_comparison():
    assert rivals.pooled([]).n == 0
    assert rivals.pooled([({0: 1.0}, {1: 1.0})]).n == 0


def test_rows_are_recomputed_from_the_records(matrix):
    rows = factory.rows(factory.table(matrix, "overall"))
    names = ["dense", "Static", "Magnitude", "GMP", "SNIP", "SET", "RigL", "RigL-ERK"]
    assert [row["rival"] for row in rows] == names
    p_values, records = [], factory.records(matrix)
    for name in names:
        row = one(rows, rival=name)
        sides = []
        for learner, s, b in SETTINGS:
            own = f"split-digits/sparcl-{learner}/s{s}/b{b}"
            other = f"split-digits/{name.lower()}-{learner}/s{s}/b{b}"
            sides.append((own, f"split-digits/{learner}/s0.00/b{b}" if name == "dense" else other))
        gaps = np.array([values(matrix, own) - values(matrix, other) for own, other in sides])
        assert int(row["settings"]) == 12
        assert int(row["below"]) == (gaps.mean(axis=1) < 0).sum()
        expected = stats.ttest_1samp(gaps.mean(axis=0), 0)
        assert float(row["class_il_diff"]) == pytest.approx(gaps.mean())
        assert float(row["p"]) == pytest.approx(expected.pvalue)
        assert float(row["class_il_ci_low"]) == pytest.approx(expected.confidence_interval().low)
        p_values.append(expected.pvalue)
        training = [[records[f"{side}/seed0"]["results"]["executed"]["training"] for side in pair] for pair in sides]
        assert float(row["flops"]) == pytest.approx(stats.gmean([other / own for own, other in training]), rel=0.02)
    adjusted = multipletests(p_values, method="holm")[1]
    assert [float(row["p_holm"]) for row in rows] == pytest.approx(list(adjusted))


def test_no_table_without_sparcl_and_an_empty_one_without_runs(tmp_path):
    items = [factory.entry(factory.cell("rigl-er", 0.9, 50, seed)) for seed in range(2)]
    assert "overall" not in catalog.tables(factory.plan(items, reference=""))
    plan = factory.plan([*items, factory.entry(factory.cell("sparcl-er", 0.9, 50, 0))], reference="")
    assert "overall" in catalog.tables(plan)
    results = factory.collected(factory.write(tmp_path, plan, skip=[item["path"] for item in plan["cells"]]))
    made = factory.table(results, "overall")
    assert not made.rows
    assert len(made.missing) == 2
