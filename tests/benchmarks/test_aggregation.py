"""How long it takes to read 1,000 records and to make every table of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "analysis"))
import factory

from analysis import frames, tables


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    plan = factory.default_plan(seeds=8)
    plan["cells"] = plan["cells"][:1000]
    assert len(plan["cells"]) == 1000
    return factory.write(tmp_path_factory.mktemp("thousand"), plan)


def test_collect_1000_records(benchmark, thousand):
    results = benchmark.pedantic(frames.collect, args=(thousand,), rounds=3)
    assert len(results.frame) == 1000


def test_tables_of_1000_records(benchmark, thousand):
    results = frames.collect(thousand)
    made = benchmark.pedantic(tables.build, args=(results,), rounds=3)
    assert "continual_learning" in made
