"""How long it takes to collect 10,000 records into one table, and to read that table and make a table of it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "analysis"))
import factory

from analysis import collect, frames, plan

MOST_BYTES = 2 * 2**30


@pytest.fixture(scope="module")
def many(request, tmp_path_factory) -> tuple[Path, int]:
    """A plan with 10,000 records where benchmarks are on, else with a hundred: of the rule, not of the time."""
    asked = [request.config.getoption(f"benchmark_{name}") for name in ("enable", "only")]
    measured = any(asked) or not request.config.getoption("benchmark_disable")
    small = factory.default_plan(seeds=78 if measured else 1)
    small["cells"] = small["cells"][: 10_000 if measured else 100]
    return factory.write(tmp_path_factory.mktemp("many"), small), len(small["cells"])


@pytest.fixture(scope="module")
def collected(many) -> Path:
    collect.collect(plan.read(many[0]), many[0].parent)
    return many[0]


def test_collect(benchmark, many):
    """In a process of its own, whose highest memory is looked at."""
    file, count = many
    command = [sys.executable, "-m", "analysis", "collect", "--plan", str(file), "--out", str(file.parent)]
    benchmark.pedantic(subprocess.run, args=(command,), kwargs={"check": True, "cwd": factory.TOP}, rounds=1)
    assert json.loads((file.parent / "provenance.json").read_text())["cells"]["done"] == count
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MOST_BYTES


def test_read_the_table(benchmark, collected, many):
    results = benchmark.pedantic(frames.read, args=(collected, collected.parent / collect.TABLE), rounds=1)
    assert len(results.frame) == many[1]


def test_a_table_of_it(benchmark, collected):
    results = frames.read(collected, collected.parent / collect.TABLE)
    made = benchmark.pedantic(factory.table, args=(results, "continual_learning"), rounds=1)
    assert made.rows
