"""Counted against measured: what is read of ``timing.json``, the ratios by hand, and what is refused."""

from __future__ import annotations

import json

import factory
import pytest
from test_tables import one

from analysis import __main__ as command
from analysis import timing
from analysis.figures import counted_against_measured as figure
from analysis.figures import style
from analysis.figures.scene import Scene
from analysis.typeset import to_markdown
from sparcl.costs.published import load
from sparcl.errors import UserError

LEVELS = (0.75, 0.9)
METHODS = ("sparcl-derpp", "rigl-derpp")


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


def test_ratios_by_hand(results):
    put(results, times())
    rows = factory.rows(factory.table(results, "counted_against_measured"))
    found = one(rows, label="SparCL-DER++", sparsity="0.9", threads="1")
    numbers = {key: float(found[key]) for key in ("step_flops", "step_time", "inference_flops", "inference_time")}
    assert numbers == pytest.approx({"step_flops": 5, "step_time": 3, "inference_flops": 8, "inference_time": 2.5})
    assert (float(found["dense_model"]), float(found["sparse_model"])) == (0.8, 0.12)
    records = factory.records(results)
    own, dense = (records[f"split-digits/{name}/b50/seed0"] for name in ("sparcl-derpp/s0.90", "derpp/s0.00"))
    trained = [record["results"]["executed"]["training"] for record in (own, dense)]
    assert float(found["run_flops"]) == pytest.approx(trained[1] / trained[0])
    assert float(found["run_time"]) == pytest.approx(1.0)  # all synthetic runs take as long
    assert float(found["memory"]) == pytest.approx(400)


def test_whole_runs_stand_where_they_had_as_many_threads(results):
    """The records had one."""
    put(results, times())
    rows = factory.rows(factory.table(results, "counted_against_measured"))
    assert {row["run_time"] == "" for row in rows if row["threads"] == "1"} == {False}
    assert {(row["run_time"], row["run_flops"]) for row in rows if row["threads"] == "2"} == {("", "")}


def test_the_papers_phone_stands_beside(results):
    put(results, times())
    table = factory.table(results, "counted_against_measured")
    paper = [row for row in factory.rows(table) if "paper" in row["label"]]
    published = {f.sparsity: f.value for f in load() if f.metric == "speedup"}
    assert {float(row["sparsity"]): float(row["step_time"]) for row in paper} == published == {0.9: 2.3, 0.95: 3.1}
    assert any("Samsung Galaxy S20" in note for note in table.notes)
    assert "Synthetic CPU" in to_markdown(table)


def test_a_method_that_the_plan_has_not_is_left_out(results):
    put(results, times(row("set-derpp", 0.9, 1), row("sparcl-derpp", 0.5, 1)))
    rows = factory.rows(factory.table(results, "counted_against_measured"))
    assert len(rows) == 8 + 2


def test_without_the_file_the_table_says_what_makes_it(results):
    table = factory.table(results, "counted_against_measured")
    assert table.missing == ("timing.json: not there; the workflow's rule timing, or 'sparcl time', writes it",)
    assert [row["threads"] for row in factory.rows(table)] == ["", ""]
    with style.context():
        assert figure.draw(Scene(results)) is None


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
