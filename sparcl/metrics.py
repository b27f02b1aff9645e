"""Metrics of the accuracy matrix a[t][k]: accuracy in percent on task k after training task t.

"Forgetting" means three things in three tools, so every key names its formula: Chaudhry et al. 2018 take the maximum
over earlier rows, the last one excluded (it may be negative); mammoth includes the last row (never negative).
"""

from __future__ import annotations

from collections.abc import Sequence

Matrix = Sequence[Sequence[float | None]]


def _mean(values: Sequence[float | None]) -> float | None:
    if not values or any(value is None for value in values):
        return None
    return sum(values) / len(values)  # type: ignore[arg-type]


def _column(matrix: Matrix, task: int) -> list[float | None]:
    return [row[task] for row in matrix]


def average(matrix: Matrix) -> float | None:
    """Mean of the last row: the average accuracy over all tasks at the end."""
    return _mean(matrix[-1])


def forgetting(matrix: Matrix, last_row: bool = False) -> float | None:
    """Mean over k < T-1 of (max_t a[t][k]) - a[T-1][k].

    t runs over the earlier rows t < T-1 (Chaudhry et al. 2018); with ``last_row`` over k <= t <= T-1 (mammoth).
    """
    drops: list[float | None] = []
    for task in range(len(matrix) - 1):
        column = _column(matrix, task)
        best = [value for value in (column[task:] if last_row else column[:-1]) if value is not None]
        drops.append(max(best) - column[-1] if best and column[-1] is not None and column[task] is not None else None)
    return _mean(drops)


def backward_transfer(matrix: Matrix) -> float | None:
    """Mean over k < T-1 of a[T-1][k] - a[k][k]."""
    pairs = [(matrix[-1][k], matrix[k][k]) for k in range(len(matrix) - 1)]
    return _mean([None if a is None or b is None else a - b for a, b in pairs])


def forward_transfer(matrix: Matrix, untrained: Sequence[float | None]) -> float | None:
    """Mean over k > 0 of a[k-1][k] - untrained[k], against the untrained network."""
    pairs = [(matrix[k - 1][k], untrained[k]) for k in range(1, len(matrix))]
    return _mean([None if a is None or b is None else a - b for a, b in pairs])


def learning(matrix: Matrix) -> float | None:
    """Mean of the diagonal: how well each task was learned when it was its turn."""
    return _mean([matrix[k][k] for k in range(len(matrix))])


def summary(class_il: Matrix, task_il: Matrix, untrained_task_il: Sequence[float | None]) -> dict[str, float | None]:
    """Return all metrics of a run by name (percent, or points of percent for differences; None where undefined)."""
    result: dict[str, float | None] = {}
    for kind, matrix in (("class_il", class_il), ("task_il", task_il)):
        result[kind] = average(matrix)
        result[f"forgetting_{kind}"] = forgetting(matrix)
        result[f"forgetting_{kind}_mammoth"] = forgetting(matrix, last_row=True)
        result[f"bwt_{kind}"] = backward_transfer(matrix)
        result[f"learning_{kind}"] = learning(matrix)
    result["fwt_task_il"] = forward_transfer(task_il, untrained_task_il)
    return result
