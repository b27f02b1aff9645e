"""The tidy table as data: a row per planned cell, and what lies behind it, as the records say."""

from __future__ import annotations

import gzip
import math

import factory
import numpy as np
import pytest

from analysis import frames
from sparcl.errors import UserError


def test_frame_has_one_row_per_planned_cell(matrix, small_plan):
    assert list(matrix.frame.path) == [cell["path"] for cell in small_plan["cells"]]
    row = matrix.frame[matrix.frame.path == "split-digits/sparcl-derpp/s0.90/b50/seed1"].iloc[0]
    record = factory.Records(matrix)[row.path]
    assert row.class_il == factory.final(record)
    assert row.flops_executed == record["results"]["executed"]["training"]
    assert (row.label, row.learner, row.bundle) == ("SparCL-DER++", "derpp", "sparcl")
    assert (row.policy_sparsity, row.policy_gradient, row.policy_data) == ("tdm", "dgm", "ddr")
    assert row.kernel == "dense"  # a field of cells that nothing here names


def test_what_lies_behind_a_cell_is_as_recorded(matrix):
    paths = [f"split-digits/sparcl-derpp/s0.90/b50/seed{seed}" for seed in (2, 0)]
    records = factory.Records(matrix)
    for kind in ("class_il", "task_il"):
        expected = [records[path]["results"]["accuracy"][kind] for path in paths]
        assert np.array_equal(matrix.matrices(paths, kind), np.array(expected, dtype=float))
    assert matrix.history(paths[0]) == records[paths[0]]["results"]["masks"]["history"]
    layers = records[paths[0]]["results"]["masks"]["layers"].values()
    assert matrix.layers(paths[0]) == tuple(sum(layer[key] for layer in layers) for key in ("size", "weights"))
    joint = matrix.matrices(["split-digits/joint/s0.00/b0/seed0"])[0]
    assert np.isnan(joint[:-1]).all()
    assert np.isfinite(joint[-1]).all()


def test_null_becomes_nan(matrix):
    joint = matrix.frame[matrix.frame.method == "joint"]
    assert joint.forgetting_class_il.isna().all()
    assert joint.class_il.notna().all()


def test_task_il_only_methods_have_no_class_il(tmp_path):
    plan = factory.plan([factory.entry(factory.cell("packnet", 0.5, 0, 0))])
    frame = factory.collected(factory.write(tmp_path, plan)).frame
    assert math.isnan(frame.class_il[0])
    assert math.isnan(frame.forgetting_class_il[0])
    assert frame.task_il[0] > 0


def test_a_cell_without_a_record_is_described_by_the_plan(tmp_path):
    plan = factory.plan([factory.entry(factory.cell("rigl-er", 0.9, 50, 0))])
    results = factory.collected(factory.write(tmp_path, plan, skip=[plan["cells"][0]["path"]]))
    row = results.frame.iloc[0]
    assert (row.label, row.family, row.learner, row.bundle) == ("RigL-ER", "sparse-baseline", "er", "rigl")
    assert (row.status, row.reason) == (frames.NOT_RUN, "not run")


def test_settings_tell_configurations_apart(matrix):
    sweep = frames.in_group(matrix.frame, "ddr-proportion")
    assert set(sweep.setting) == {"", "ddr.proportion=0.1", "ddr.proportion=0.5", "ddr.proportion=0.7"}
    main = frames.main_rows(matrix.frame)
    assert not [s for s in main.setting if s]
    assert len(main) < len(matrix.frame)


def test_a_sweep_does_not_rename_what_is_compared(tmp_path):
    """The matrix's own value differs from the default and from a swept one: the main cell has no setting of its own."""
    own = [factory.entry(factory.cell("rigl-er", 0.9, 50, 0, {"rigl.alpha": 0.2}), ["main"], {"rigl.alpha": 0.2})]
    own += [
        factory.entry(factory.cell("rigl-er", 0.9, 50, 0, {"rigl.alpha": a}), ["mine"], {"rigl.alpha": a} if a else {})
        for a in (0.0, 0.1)
    ]
    results = factory.collected(factory.write(tmp_path, factory.plan(own, sweeps={"mine": ["rigl.alpha"]})))
    assert list(results.frame.main) == [True, False, False]
    assert list(results.frame.setting) == ["", "", "rigl.alpha=0.1"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20], lambda data: b"", lambda data: b"x" * 50, lambda data: gzip.compress(b"a,b\n1,2\n"),
               lambda data: gzip.compress(gzip.decompress(data).replace(b",done,", b",fine,"))],
)  # fmt: skip
def test_a_damaged_table_is_refused_in_one_line(tmp_path, damage):
    file = factory.write(tmp_path, factory.plan([factory.entry(factory.cell("er", 0.0, 50, 0))]))
    factory.collected(file)
    table = tmp_path / "results.csv.gz"
    table.write_bytes(damage(table.read_bytes()))
    with pytest.raises(UserError, match=r"results\.csv\.gz") as caught:
        frames.read(file, table)
    assert "\n" not in str(caught.value)


def test_a_table_of_another_plan_is_refused(tmp_path):
    files = [
        factory.write(tmp_path / method, factory.plan([factory.entry(factory.cell(method, 0.0, 50, 0))]))
        for method in ("er", "derpp")
    ]
    factory.collected(files[0])
    with pytest.raises(UserError, match="table of another plan"):
        frames.read(files[1], files[0].parent / "results.csv.gz")
    with pytest.raises(UserError, match="analysis collect"):
        frames.read(files[1], files[1].parent / "results.csv.gz")
