"""How long a training step takes with either kernel.

    python -m pytest tests/benchmarks/test_kernels.py --benchmark-enable --benchmark-group-by=group

The numbers in parentheses are ratios to the fastest of the group; there are no absolute bounds. ``sparcl bench``
measures the same steps interleaved, which is more exact on a busy machine.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparcl.kernels import bench, library

pytestmark = pytest.mark.skipif(not library.available(), reason="the sparse kernel is not compiled here")
CASES = {case.name: case for case in bench.CASES if case.width < 64}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sparsity", [None, 0.0, *bench.SPARSITIES], ids=lambda s: "dense" if s is None else f"{s:g}")
def test_training_step(benchmark: Callable, case: str, sparsity: float | None) -> None:
    benchmark.group = f"training step, {case}"
    work = bench.Workload(CASES[case], sparsity or 0.0)
    step = work.dense if sparsity is None else work.sparse
    step()
    benchmark(step)


@pytest.mark.parametrize("case", CASES)
def test_mask_update(benchmark: Callable, case: str) -> None:
    benchmark.group = f"mask update with indices, {case}"
    work = bench.Workload(CASES[case], 0.9)
    work.sparse()
    benchmark(work.update)


def test_the_table_has_every_variant() -> None:
    rows = bench.measure(CASES["digits"], 2, (0.9,), 1e9)
    rows.append(bench.measure_update(CASES["digits"], 1))
    assert [row.variant for row in rows][:2] == ["dense", "sparse"]
    assert rows[0].ratio == 1
    assert len(bench.table(rows).splitlines()) == len(rows) + 1
