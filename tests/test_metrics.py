"""Metrics on written-out accuracy matrices: every formula of forgetting by its own number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl import metrics

GAP = None
MATRIX = [[90.0, GAP, GAP], [95.0, 80.0, GAP], [92.0, 85.0, 70.0]]
"""Accuracy in percent; what lies above the diagonal was not looked at."""
FULL = [[90.0, 10.0, 20.0], [95.0, 80.0, 30.0], [92.0, 85.0, 70.0]]


def test_forgetting_is_three_different_numbers() -> None:
    """Earlier rows: (95 - 92 + 80 - 85) / 2; all rows: (95 - 92 + 85 - 85) / 2; first minus last: (-2 - 5) / 2."""
    for matrix in (MATRIX, FULL):
        assert metrics.forgetting(matrix) == pytest.approx(-1.0)
        assert metrics.forgetting(matrix, last_row=True) == pytest.approx(1.5)
        assert -metrics.backward_transfer(matrix) == pytest.approx(-3.5)


def test_rows_before_a_task_count_for_chaudhry_alone() -> None:
    """An accuracy above chance before training (99 here) is an earlier row, but none from the task on."""
    matrix = [[50.0, 99.0], [50.0, 60.0]]
    assert metrics.forgetting([[50.0, GAP, GAP], [40.0, 60.0, GAP], [30.0, 50.0, 70.0]]) == pytest.approx(15.0)
    assert metrics.forgetting(matrix, last_row=True) == 0


def test_averages() -> None:
    assert metrics.average(MATRIX) == pytest.approx((92 + 85 + 70) / 3)
    assert metrics.learning(MATRIX) == pytest.approx((90 + 80 + 70) / 3)
    assert metrics.backward_transfer(MATRIX) == pytest.approx((2 + 5) / 2)
    assert metrics.forward_transfer(FULL, [50.0, 4.0, 5.0]) == pytest.approx(((10 - 4) + (30 - 5)) / 2)


def test_what_is_not_there_is_undefined() -> None:
    joint = [[GAP] * 3, [GAP] * 3, [80.0, 70.0, 60.0]]
    assert metrics.average(joint) == 70
    assert metrics.forgetting(joint) is None
    assert metrics.forgetting(joint, last_row=True) is None
    assert metrics.backward_transfer(joint) is None
    assert metrics.learning(joint) is None
    assert metrics.forward_transfer(MATRIX, [0.0, 0, 0]) is None
    assert metrics.average([[GAP, GAP], [80.0, GAP]]) is None
    assert metrics.forgetting([[80.0]]) is None


def test_summary_names_its_formulas() -> None:
    summary = metrics.summary(MATRIX, FULL, [50.0, 4.0, 5.0])
    assert summary == {
        "class_il": pytest.approx(247 / 3), "forgetting_class_il": pytest.approx(-1),
        "forgetting_class_il_mammoth": pytest.approx(1.5), "bwt_class_il": pytest.approx(3.5),
        "learning_class_il": pytest.approx(80), "task_il": pytest.approx(247 / 3),
        "forgetting_task_il": pytest.approx(-1), "forgetting_task_il_mammoth": pytest.approx(1.5),
        "bwt_task_il": pytest.approx(3.5), "learning_task_il": pytest.approx(80),
        "fwt_task_il": pytest.approx(15.5),
    }  # fmt: skip


@given(
    st.integers(2, 6).flatmap(
        lambda n: st.lists(st.lists(st.floats(0, 100), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_relations_that_always_hold(matrix: list[list[float]]) -> None:
    """Including the last row is never negative nor smaller than the drop since the task was learned."""
    mammoth = metrics.forgetting(matrix, last_row=True)
    assert mammoth >= 0
    assert mammoth >= -metrics.backward_transfer(matrix) - 1e-9
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - 1e-9
