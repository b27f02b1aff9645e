"""FLOPs saved against time saved: ratios worked out by hand, and what is said where nothing was measured."""

from __future__ import annotations

from pathlib import Path

import factory
import pytest

from sparcl.errors import UserError


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    cells = [("er", 0.0, 50), ("rigl-er", 0.75, 50), ("rigl-er", 0.9, 50)]
    items = [factory.entry(factory.cell(*setting, seed)) for setting in cells for seed in range(2)]
    return factory.write(tmp_path, factory.plan(items))


def test_ratios(plan_file: Path) -> None:
    results = factory.collected(plan_file)
    rows = factory.rows(factory.table(results, "counted_against_measured"))
    assert [(row["label"], float(row["sparsity"]), row["threads"]) for row in rows[:4]] == [
        ("RigL-ER", 0.75, "1"), ("RigL-ER", 0.75, "2"), ("RigL-ER", 0.9, "1"), ("RigL-ER", 0.9, "2"),
    ]  # fmt: skip
    first = {key: float(rows[2][key]) for key in ("step_flops", "step_time", "step_ms", "sparse_model", "dense_model")}
    assert first == pytest.approx({"step_flops": 10, "step_time": 1 / 0.3, "step_ms": 3.0, "sparse_model": 525e-6,
                                   "dense_model": 4000e-6})  # fmt: skip
    records = factory.records(results)
    flops = {sparsity: records[f"split-digits/{method}/s{sparsity}/b50/seed0"]["results"]["executed"]["training"]
             for method, sparsity in (("er", "0.00"), ("rigl-er", "0.90"))}  # fmt: skip
    assert float(rows[2]["run_flops"]) == pytest.approx(flops["0.00"] / flops["0.90"])
    assert float(rows[2]["run_time"]) == pytest.approx(1.0)  # every synthetic run trains for 5 seconds


def test_the_papers_phone_stands_beside_and_is_named(plan_file: Path) -> None:
    made = factory.table(factory.collected(plan_file), "counted_against_measured")
    phone = [row.values for row in made.rows if row.block == "paper"]
    assert [(row["sparsity"], row["step_time"]) for row in phone] == [(0.9, 2.3), (0.95, 3.1)]
    assert any("Galaxy S20" in note for note in made.notes)


def test_without_a_measurement_the_table_says_so(plan_file: Path) -> None:
    (plan_file.parent / "timing.json").unlink()
    made = factory.table(factory.collected(plan_file), "counted_against_measured")
    assert [row.block for row in made.rows] == ["paper", "paper"]
    assert "timing.json" in made.missing[0]


def test_a_file_of_something_else_is_one_line(plan_file: Path) -> None:
    (plan_file.parent / "timing.json").write_text("[]")
    with pytest.raises(UserError, match="sparcl time"):
        factory.table(factory.collected(plan_file), "counted_against_measured")
