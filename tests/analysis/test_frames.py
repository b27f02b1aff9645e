"""Reading a plan and its records: everything that must be refused is, and nothing is dropped."""

from __future__ import annotations

import json
import math

import factory
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import frames
from sparcl.errors import UserError


@pytest.fixture
def tiny(tmp_path):
    """Three cells of one method; returns the plan as data and the path of its file."""
    plan = factory.plan([factory.entry(factory.cell("sparcl-derpp", 0.9, 50, seed)) for seed in range(3)])
    return plan, factory.write(tmp_path, plan)


def rewrite(path, change, seal=True):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(factory.sealed(record) if seal else record))


def record_path(plan_file, plan, index=0):
    return plan_file.parent / "runs" / plan["cells"][index]["path"] / "record.json"


def test_frame_has_one_row_per_planned_cell(matrix, small_plan):
    assert list(matrix.frame.path) == [cell["path"] for cell in small_plan["cells"]]
    row = matrix.frame[matrix.frame.path == "split-digits/sparcl-derpp/s0.90/b50/seed1"].iloc[0]
    record = matrix.records[row.path]
    assert row.class_il == record["results"]["metrics"]["class_il"]
    assert row.flops_executed == record["results"]["flops"]["executed"]["training"]
    assert (row.label, row.learner, row.bundle) == ("SparCL-DER++", "derpp", "sparcl")
    assert (row.policy_sparsity, row.policy_gradient, row.policy_data) == ("tdm", "dgm", "ddr")
    assert row.memory_total == record["results"]["memory"]["suite"]["total"]


def test_null_becomes_nan(matrix):
    joint = matrix.frame[matrix.frame.method == "joint"]
    assert joint.forgetting_class_il.isna().all()
    assert joint.class_il.notna().all()


def test_task_il_only_methods_have_no_class_il(tmp_path):
    plan = factory.plan([factory.entry(factory.cell("packnet", 0.5, 0, 0))])
    frame = frames.collect(factory.write(tmp_path, plan)).frame
    assert math.isnan(frame.class_il[0])
    assert math.isnan(frame.forgetting_class_il[0])
    assert frame.task_il[0] > 0


def test_missing_and_failed_cells_stay(tiny):
    plan, file = tiny
    record_path(file, plan, 0).unlink()
    record_path(file, plan, 1).unlink()
    failed = record_path(file, plan, 1).with_name("failed.json")
    failed.write_text(json.dumps({"error": "loss is not finite\nat step 3"}))
    results = frames.collect(file)
    assert list(results.frame.status) == [frames.NOT_RUN, frames.FAILED, frames.DONE]
    assert list(results.frame.label) == ["SparCL-DER++"] * 3  # known from the seed that was run
    assert frames.missing_lines(results.frame) == [
        "split-digits/sparcl-derpp/s0.90/b50: seed 0: not run",
        "split-digits/sparcl-derpp/s0.90/b50: seed 1: failed: loss is not finite at step 3",
    ]
    failed.write_text("{")
    assert "failed.json cannot be read" in frames.collect(file).frame.reason[1]


def test_a_method_without_any_record_is_still_a_row(tmp_path):
    entries = [
        factory.entry(factory.cell("sparcl-derpp", 0.9, 50, 0)),
        factory.entry(factory.cell("rigl-er", 0.9, 50, 0)),
    ]
    plan = factory.plan(entries)
    results = frames.collect(factory.write(tmp_path, plan, skip=[entries[1]["path"]]))
    row = results.frame.iloc[1]
    assert (row.label, row.family, row.learner, row.bundle) == ("rigl-er", "sparse-baseline", "er", "rigl")


def test_nothing_run_at_all(tmp_path):
    plan = factory.plan([factory.entry(factory.cell("er", 0.0, 50, 0))])
    results = frames.collect(factory.write(tmp_path, plan, skip=[plan["cells"][0]["path"]]))
    assert len(results.missing) == 1
    assert (results.frame.family[0], results.frame.bundle[0]) == ("rehearsal", "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: r.update(identity="0" * 64), "identity 000000000000"),
        (lambda r: r["cell"].update(epochs=11), "another cell: 'epochs' is 11, the plan says 10"),
        (lambda r: r["cell"].update(seed=7), "another cell: 'seed' is 7"),
        (lambda r: r["cell"]["params"].update({"ddr.proportion": 0.5}), "another cell: 'params'"),
    ],
)
def test_records_of_something_else_are_refused(tiny, change, expected):
    plan, file = tiny
    rewrite(record_path(file, plan, 1), change)
    with pytest.raises(UserError) as caught:
        frames.collect(file)
    message = str(caught.value)
    assert "seed1" in message
    assert expected in message
    assert "\n" not in message


def test_edited_and_damaged_records_are_refused(tiny):
    plan, file = tiny
    path = record_path(file, plan)
    whole = path.read_text()
    rewrite(path, lambda r: r["results"]["metrics"].update(class_il=99.0), seal=False)
    with pytest.raises(UserError, match="checksum"):
        frames.collect(file)
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="seed0"):
        frames.collect(file)


def test_every_refusal_is_counted(tiny):
    plan, file = tiny
    for index in range(3):
        rewrite(record_path(file, plan, index), lambda r: r.update(identity="0" * 64))
    with pytest.raises(UserError, match="and 2 more records are refused"):
        frames.collect(file)


def test_records_swapped_between_cells_are_refused(tiny):
    plan, file = tiny
    first, second = record_path(file, plan, 0), record_path(file, plan, 1)
    a, b = first.read_text(), second.read_text()
    first.write_text(b)
    second.write_text(a)
    with pytest.raises(UserError, match="another cell"):
        frames.collect(file)


def test_records_of_two_data_sets_are_not_mixed(tiny):
    plan, file = tiny
    rewrite(record_path(file, plan, 1), lambda r: r["provenance"].update(data="0" * 64))
    with pytest.raises(UserError, match=r"record of other data \(digest 000000000000\)"):
        frames.collect(file)


def test_link_out_of_the_folder_is_refused(tiny, tmp_path):
    plan, file = tiny
    path = record_path(file, plan)
    outside = tmp_path.parent / f"{tmp_path.name}-outside.json"
    outside.write_text(path.read_text())
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(UserError, match="link to somewhere else"):
        frames.collect(file)


def test_foreign_records_are_listed_and_left_out(tiny):
    _, file = tiny
    other = file.parent / "runs/split-digits/er/s0.00/b50/seed0"
    other.mkdir(parents=True)
    (other / "record.json").write_text("whatever")
    results = frames.collect(file)
    assert results.foreign == ("split-digits/er/s0.00/b50/seed0/record.json",)
    assert len(results.frame) == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p.update(schema="sparcl-plan/9"), "sparcl-plan/9"),
        (lambda p: p.update(cells=[]), "at least one cell"),
        (lambda p: p.update(cells={}), "'cells'"),
        (lambda p: p.update(name=3), "'name'"),
        (lambda p: p.update(reference=3), "'reference'"),
        (lambda p: p["cells"].append(3), r"cells\[3\]: expected an object"),
        (lambda p: p["cells"].append(dict(p["cells"][0])), r"cells\[3\]: the same cell as cells\[0\]"),
        (lambda p: p["cells"].append(p["cells"][0] | {"path": "a/b/seed9"}), "the same cell"),
        (lambda p: p["cells"][0].update(path="../seed0"), "without '..'"),
        (lambda p: p["cells"][0].update(path="/etc/seed0"), "without '..'"),
        (lambda p: p["cells"][0].update(path="a//b"), "without '..'"),
        (lambda p: p["cells"][0].update(groups="sparcl"), "'groups'"),
        (lambda p: p["cells"][0]["cell"].pop("seed"), "lacks seed"),
        (lambda p: p["cells"][0]["cell"].update(sparsity="0.9"), "'cell.sparsity'"),
        (lambda p: p["cells"][0]["cell"].update(method=None), "'cell.method'"),
    ],
)
def test_bad_plans_are_refused(tiny, change, expected):
    plan, file = tiny
    plan = json.loads(json.dumps(plan))
    change(plan)
    file.write_text(json.dumps(plan))
    with pytest.raises(UserError, match=expected) as caught:
        frames.collect(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100_000, '"plan"', "nul", "NaN", '"\\ud800"'])
def test_no_plan_at_all(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"plan\.json"):
        frames.read_plan(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_change_of_a_plan_is_read_or_refused_in_one_line(tmp_path, data):
    plan = factory.plan([factory.entry(factory.cell("er", 0.0, 50, seed)) for seed in range(2)])
    target, depth = plan, data.draw(st.integers(0, 3))
    for _ in range(depth):
        inner = [value for value in (target.values() if isinstance(target, dict) else target) if value]
        inner = [value for value in inner if isinstance(value, dict | list)]
        if not inner:
            break
        target = data.draw(st.sampled_from(inner))
    key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
    target[key] = data.draw(JSON)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    message = ""
    try:
        frames.missing_lines(frames.collect(path).frame)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_absent_plan(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        frames.read_plan(tmp_path / "plan.json")


def test_settings_tell_configurations_apart(matrix):
    sweep = matrix.frame[["ddr-proportion" in groups for groups in matrix.frame.groups]]
    assert set(sweep.setting) == {"", "ddr.proportion=0.1", "ddr.proportion=0.5", "ddr.proportion=0.7"}
    main = frames.main_rows(matrix.frame)
    assert not [s for s in main.setting if s]
    assert len(main) < len(matrix.frame)
