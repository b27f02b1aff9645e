"""Statistics against SciPy, statsmodels, and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from analysis import statistics

A = [78.0, 80.0, 79.0, 82.0, 81.0]
B = [76.0, 79.5, 77.0, 79.0, 80.5]
NAN = float("nan")
samples = st.lists(st.floats(0, 100).map(lambda v: round(v, 3)), min_size=2, max_size=8)


def seeded(values):
    return dict(enumerate(values))


def test_summary_by_hand():
    # mean 80; deviations -2, 0, -1, 2, 1; sum of squares 10; sd sqrt(10/4); t(0.975, 4) = 2.776445
    found = statistics.summarize(A)
    assert found.n == 5
    assert found.mean == 80
    assert found.sd == pytest.approx(math.sqrt(2.5))
    half = 2.7764451052 * math.sqrt(2.5) / math.sqrt(5)
    assert (found.ci_low, found.ci_high) == pytest.approx((80 - half, 80 + half))


def test_summary_of_few_values():
    assert statistics.summarize([]).n == 0
    one = statistics.summarize([NAN, 3.0])
    assert (one.n, one.mean) == (1, 3.0)
    assert math.isnan(one.sd)
    assert math.isnan(one.ci_low)


@given(samples)
def test_interval_agrees_with_scipy(values):
    found = statistics.summarize(values)
    if found.sd > 0:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.ci_low, found.ci_high) == pytest.approx((low, high))


def test_paired_by_hand():
    # differences 2, 0.5, 2, 3, 0.5: mean 1.6; deviations 0.4, -1.1, 0.4, 1.4, -1.1; squares sum 4.7
    found = statistics.compare(seeded(A), seeded(B))
    sd = math.sqrt(4.7 / 4)
    assert found.n == 5
    assert found.mean == pytest.approx(1.6)
    assert found.sd == pytest.approx(sd)
    assert found.t == pytest.approx(1.6 / (sd / math.sqrt(5)))


@given(samples, samples)
def test_paired_agrees_with_scipy(a, b):
    n = min(len(a), len(b))
    found = statistics.compare(seeded(a[:n]), seeded(b[:n]))
    if found.sd > 1e-9:
        expected = stats.ttest_rel(a[:n], b[:n])
        assert found.t == pytest.approx(expected.statistic)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
        low, high = expected.confidence_interval(0.95)
        assert (found.ci_low, found.ci_high) == pytest.approx((low, high))


def test_only_shared_seeds_are_compared():
    found = statistics.compare({1: 5.0, 2: 6.0, 3: NAN, 9: 100.0}, {2: 4.0, 1: 4.0, 3: 1.0, 8: 0.0})
    assert (found.n, found.mean) == (2, 1.5)
    assert statistics.compare({1: 1.0}, {2: 1.0}).n == 0
    single = statistics.compare({1: 3.0}, {1: 1.0})
    assert single.mean == 2
    assert math.isnan(single.p)


def test_constant_differences_as_in_scipy():
    same = statistics.compare(seeded(A), seeded(A))
    assert (same.p, same.mean) == (1.0, 0.0)
    shifted = statistics.compare(seeded([v + 0.1 for v in A]), seeded(A))
    assert shifted.p == 0.0
    assert shifted.t == math.inf


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; running maximum
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_holm_agrees_with_statsmodels(p_values):
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_does_not_count_what_was_not_tested():
    found = statistics.holm([0.02, NAN, 0.03])
    assert found[0] == pytest.approx(0.04)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.04)


def test_fdr_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.5 times 4/1, 4/2, 4/3, 4/4 = 0.04, 0.04, 0.04, 0.5; running minimum from the end
    assert statistics.fdr([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.04, 0.5, 0.04, 0.04])
    found = statistics.fdr([0.02, NAN, 0.03])
    assert [found[0], found[2]] == pytest.approx([0.03, 0.03])
    assert math.isnan(found[1])
    assert statistics.fdr([]) == []
    assert math.isnan(statistics.fdr([NAN])[0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_fdr_agrees_with_statsmodels(p_values):
    assert statistics.fdr(p_values) == pytest.approx(multipletests(p_values, method="fdr_bh")[1])


# -- equivalence and power
@given(samples, samples, st.floats(0.5, 20))
@settings(max_examples=50, deadline=None)
def test_equivalence_agrees_with_statsmodels(a, b, margin):
    n = min(len(a), len(b))
    found = statistics.compare(seeded(a[:n]), seeded(b[:n]))
    if found.sd > 1e-6:
        expected = ttost_paired(np.array(a[:n]), np.array(b[:n]), -margin, margin)[0]
        assert statistics.equivalence_p(found, margin) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_equivalence_at_its_ends():
    same, far = (statistics.compare(seeded(A), seeded([v + d for v in A])) for d in (0.5, 3.0))
    assert (statistics.equivalence_p(same, 2), statistics.equivalence_p(far, 2)) == (0.0, 1.0)
    assert math.isnan(statistics.equivalence_p(statistics.compare({1: 1.0}, {1: 1.0}), 2))


@pytest.mark.parametrize(("n", "difference", "alpha"), [(5, 1.0, 0.05), (10, 1.0, 0.05 / 6), (30, 0.3, 0.01)])
def test_power_agrees_with_statsmodels(n, difference, alpha):
    expected = TTestPower().power(difference / 2.5, n, alpha)
    assert statistics.power(difference, 2.5, n, alpha) == pytest.approx(expected)


def test_power_by_simulation():
    """2,000 experiments of 6 seeds with a true difference of 3 and a deviation of 2."""
    drawn = np.random.default_rng(0).normal(3, 2, (2000, 6))
    share = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    assert statistics.power(3, 2, 6) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6, 0.05 / 50])
def test_the_detectable_difference_has_its_power(alpha):
    for n in (2, 3, 5, 30, 200):
        assert statistics.power(statistics.detectable(2.5, n, alpha), 2.5, n, alpha) == pytest.approx(0.8, abs=1e-6)


def test_the_seeds_needed_are_the_least():
    # A deviation as large as the difference: 10 seeds at 0.05 (tables of Cohen), 9 are too few.
    assert statistics.seeds_needed(2, 2) == 10
    for sd in (0.3, 1.0, 4.0, 11.0):
        n = statistics.seeds_needed(sd, 2, 0.01)
        assert statistics.power(2, sd, n, 0.01) >= 0.8
        assert n == 2 or statistics.power(2, sd, n - 1, 0.01) < 0.8
    assert statistics.seeds_needed(1000, 0.1) == math.inf


def test_power_without_a_deviation():
    assert (statistics.detectable(0, 5), statistics.seeds_needed(0, 2)) == (0, 2)
    assert math.isnan(statistics.detectable(NAN, 5))
    assert math.isnan(statistics.detectable(2, 1))
    assert math.isnan(statistics.seeds_needed(NAN, 2))


def test_the_interval_of_a_deviation():
    # n = 5: chi-squared quantiles of 4 degrees are 0.484419 and 11.143287
    low, high = statistics.deviation_interval(2.0, 5)
    assert (low, high) == pytest.approx((2 * math.sqrt(4 / 11.143287), 2 * math.sqrt(4 / 0.484419)), rel=1e-6)
    assert all(map(math.isnan, statistics.deviation_interval(2.0, 1)))


# -- the best row
def test_the_best_is_told_from_every_other_row():
    rows = {
        "best": seeded([90, 91, 92, 93, 94]),
        "next": seeded([88, 89.2, 90.1, 90.9, 92.2]),
        "worse": seeded([80, 81.1, 82.2, 82.9, 84.1]),
    }
    assert statistics.best(rows) == "best"


def test_nothing_is_best_where_one_row_ties_with_it():
    """The next row is told from the first, a row below it that varies more is not."""
    rows = {
        "first": seeded([90, 91, 92, 93, 94]),
        "next": seeded([88, 89.2, 90.1, 90.9, 92.2]),
        "wild": seeded([60, 100, 70, 100, 95]),
    }
    assert statistics.best({key: rows[key] for key in ("first", "next")}) == "first"
    assert statistics.best(rows) is None


def test_nothing_is_best_that_is_worse_on_the_seeds_in_common():
    rows = {"more": seeded([70.0, 71.1, 70.2, 92, 91, 93]), "fewer": seeded([75.1, 76.0, 75.3])}
    assert statistics.compare(rows["more"], rows["fewer"]).p < 0.001
    assert statistics.best(rows) is None


def test_nothing_is_best_without_a_test():
    assert statistics.best({"a": {0: 90.0}, "b": {0: 89.9}}) is None
    assert statistics.best({"a": {0: 90.0, 1: 91.0}, "b": {2: 80.0, 3: 80.9}}) is None
    assert statistics.best({"a": {0: 90.0, 1: 91.0}, "b": {0: NAN}}) is None
    assert statistics.best({"a": {}, "b": {0: NAN}}) is None
    assert statistics.best({"a": seeded(A), "b": seeded(A)}) is None
