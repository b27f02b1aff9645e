"""FLOPs saved against time saved: ratios worked out by hand, and what is said where nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path

import factory
import pytest

from analysis import __main__ as command
from analysis import timing
from analysis.figures import counted_against_measured as figure
from analysis.figures import style
from analysis.figures.scene import Scene
from sparcl.errors import UserError

LEVELS = (0.75, 0.9)
METHODS = ("sparcl-derpp", "rigl-derpp")


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
    records = factory.Records(results)
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


# -- a file of its own
def row(method, sparsity, threads, **changes):
    """A step of 2 ms against the dense learner's 6, with a fifth of its FLOPs; an eighth and 2.5 in inference."""
    return {
        "method": method, "sparsity": sparsity, "buffer": 50, "kernel": "sparse", "threads": threads,
        "step_seconds": 0.002, "dense_step_seconds": 0.006, "step_time_saved": 3.0 * (1 + sparsity) / 1.9,
        "step_flops": 2e8 * (1 - sparsity) / 0.1, "dense_step_flops": 1e9, "inference_seconds": 1e-5,
        "dense_inference_seconds": 2.5e-5, "inference_time_saved": 2.5 if threads == 1 else 1.5,
        "inference_flops": 1e6 * (1 - sparsity) / 0.1, "dense_inference_flops": 8e6, "dense_bytes": 800_000,
        "sparse_bytes": 120_000,
    } | changes  # fmt: skip


def times(*changed, **more):
    rows = [row(m, s, t) for t in (1, 2) for m in METHODS for s in LEVELS]
    machine = {"cpu": "Synthetic CPU", "instruction_set": "AVX2", "torch": "2.14.1"}
    return {"machine": machine, "rows": [*rows, *changed], **more}


@pytest.fixture
def results(tmp_path):
    cells = [("derpp", 0.0), *((m, s) for m in METHODS for s in LEVELS)]
    items = [factory.entry(factory.cell(m, s, 50, seed)) for m, s in cells for seed in range(2)]
    return factory.collected(factory.write(tmp_path, factory.plan(items)))


def put(results, value):
    (results.folder / timing.FILE).write_text(value if isinstance(value, str) else json.dumps(value))


def test_whole_runs_stand_where_they_had_as_many_threads(results):
    """The records had one."""
    put(results, times())
    rows = factory.rows(factory.table(results, "counted_against_measured"))
    assert {row["run_time"] == "" for row in rows if row["threads"] == "1"} == {False}
    assert {(row["run_time"], row["run_flops"]) for row in rows if row["threads"] == "2"} == {("", "")}


def test_a_method_that_the_plan_has_not_is_left_out(results):
    put(results, times(row("set-derpp", 0.9, 1), row("sparcl-derpp", 0.5, 1)))
    rows = factory.rows(factory.table(results, "counted_against_measured"))
    assert len(rows) == 8 + 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{", "file of times is damaged"),
        ("[]", "expected an object"),
        ({"machine": {}}, "rows: missing"),
        ({"machine": {}, "rows": [{"method": "er"}]}, r"rows\[0\]\.buffer: missing"),
        (times(row("sparcl-derpp", 0.9, 1, step_flops="many")), r"rows\[8\]\.step_flops: expected a number"),
    ],
)
def test_what_is_no_file_of_times_is_refused_in_one_line(results, value, expected, capsys):
    put(results, value)
    with pytest.raises(UserError, match=expected) as caught:
        timing.read(results)
    assert str(results.folder / timing.FILE) in str(caught.value)
    plan = str(results.plan.path)
    assert command.main(["table", "counted_against_measured", "--plan", plan, "--out", str(results.folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_figure_plots_the_ratios(results):
    put(results, times())
    with style.context():
        drawing = figure.draw(Scene(results))
    step, inference = drawing.figure.axes[:2]
    for ax, what in ((step, "step"), (inference, "inference")):
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        expected = {(round(t.flops(what), 6), round(t.time(what), 6)) for t in timing.read(results)[1]
                    if t.row["threads"] == 1}  # fmt: skip
        marked = [line.get_data() for line in ax.get_lines() if line.get_marker() not in ("None", None)]
        drawn = {(round(float(x), 6), round(float(y), 6)) for data in marked for x, y in zip(*data, strict=True)}
        assert drawn == expected
        low, high = ax.get_ylim()
        assert low < 1 < high
        assert all(low < y < high for _, y in expected)
        assert all(ax.get_xlim()[0] < x < ax.get_xlim()[1] for x, _ in expected)
    assert step.get_ylabel().startswith("times less time")
    style.close(drawing.figure)
