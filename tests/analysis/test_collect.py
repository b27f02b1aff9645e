"""Reading records into one table: everything that must be refused is, and nothing is dropped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc

import factory
import pandas as pd
import pytest

from analysis import collect, frames, plan
from sparcl import metrics
from sparcl.costs import memory
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


def rows_of(plan_file):
    """Collect, and read the table as any CSV reader would."""
    collect.collect(plan.read(plan_file), plan_file.parent)
    text = gzip.decompress((plan_file.parent / "results.csv.gz").read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(text)))


# -- what the table holds
def test_every_number_of_a_record_is_in_the_table(tiny):
    plan, file = tiny
    path = record_path(file, plan)
    record = json.loads(path.read_text())
    record["results"]["data"]["removed"][1] = [{"epoch": 3, "removed": 20, "remaining": 268, "tied": 0.75}]
    path.write_text(json.dumps(factory.sealed(record)))
    cell, results = plan["cells"][0], record["results"]
    rows = [row for row in rows_of(file) if row["path"] == cell["path"]]

    def found(quantity, *keys):
        chosen = [row for row in rows if row["quantity"] == quantity]
        return {tuple(row[key] for key in keys): float(row["value"]) for row in chosen}

    expected = {}
    for kind in ("class_il", "task_il"):
        matrix, untrained = results["accuracy"][kind], results["accuracy"]["untrained"][kind]
        expected = {(str(t), str(k)): value for t, row in enumerate(matrix) for k, value in enumerate(row)}
        expected |= {("", str(k)): value for k, value in enumerate(untrained)}
        assert found(f"accuracy_{kind}", "task", "on") == expected
    lines = results["executed"]["lines"]
    assert found("flops", "line", "kind") == {
        (line, kind): value for line, kinds in lines.items() for kind, value in kinds.items()
    }
    assert found("flops_layer", "layer") == {(k,): v for k, v in results["executed"]["layers"].items()}
    for key in ("size", "weights", "learning"):
        layers = results["masks"]["layers"]
        assert found(f"layer_{key}", "layer") == {(name,): layer[key] for name, layer in layers.items()}
    for key in ("density", "gradient_density", "pruned", "grown", "churn"):
        assert found(f"mask_{key}", "task", "epoch", "step") == {
            tuple(str(event[k]) for k in ("task", "epoch", "step")): event[key] for event in results["masks"]["history"]
        }
    assert found("removed", "task", "epoch") == {("1", "3"): 20}
    assert found("remaining", "task", "epoch") == {("1", "3"): 268}
    assert found("removed_tied", "task", "epoch") == {("1", "3"): 0.75}
    assert list(found("presented", "task").values()) == results["data"]["presented"]
    assert found("loss", "task", "epoch") == {
        (str(t), str(e)): loss for t, losses in enumerate(results["losses"]) for e, loss in enumerate(losses)
    }
    accuracy = results["accuracy"]
    computed = metrics.summary(accuracy["class_il"], accuracy["task_il"], accuracy["untrained"]["task_il"])
    layer = results["masks"]["layers"]["layer1.conv1.weight"]
    suite = memory.suite(1_000, 480, [tuple(layer.values())], 1_200_000, 65 * 50, 0)
    single = computed | {f"memory_{key}": value for key, value in suite.items()}
    single |= {key: value for key, value in cell["planned"].items() if key != "memory"}
    single |= {"flops_executed": results["executed"]["training"], "flops_evaluation": results["executed"]["evaluation"]}
    single |= {key: record["measured"][key] for key in collect.TIMES}
    places = ("task", "on", "epoch", "step", "line", "kind", "layer")
    alone = [row for row in rows if not any(row[key] for key in places)]
    assert {row["quantity"]: float(row["value"]) for row in alone} == single


def test_a_user_reads_and_filters_it(tiny):
    _, file = tiny
    collect.collect(plan.read(file), file.parent)
    table = pd.read_csv(file.parent / "results.csv.gz")
    assert tuple(table.columns) == collect.COLUMNS
    assert set(table.status) == {"done"}
    final = table[(table.quantity == "accuracy_class_il") & (table.task == 4)].groupby("seed").value.mean()
    mean = table[table.quantity == "class_il"].set_index("seed").value
    assert final.to_numpy() == pytest.approx(mean.loc[final.index].to_numpy())


def test_the_same_records_give_the_same_bytes(tiny, monkeypatch):
    _, file = tiny
    written = [file.parent / name for name in ("results.csv.gz", "provenance.json")]
    collect.collect(plan.read(file), file.parent)
    first = [path.read_bytes() for path in written]
    monkeypatch.setattr("time.time", lambda: 4e9)  # nothing of it is in the file
    collect.collect(plan.read(file), file.parent)
    assert [path.read_bytes() for path in written] == first


def test_names_with_commas_and_quotes_stay_whole(tiny):
    plan, file = tiny
    odd = 'a,"b"'
    rewrite(record_path(file, plan), lambda r: r["results"]["executed"]["layers"].update({odd: 7}))
    row = next(row for row in rows_of(file) if row["layer"] == odd)
    assert (row["quantity"], row["value"]) == ("flops_layer", "7")
    results = frames.read(file, file.parent / "results.csv.gz")
    assert odd in set(results.of("flops_layer", [plan["cells"][0]["path"]]).layer)


def test_a_changed_metric_changes_the_table_of_the_same_records(tiny, monkeypatch):
    """Metrics and memory rules are no part of a record: what changes in them changes tables, and runs no cell again."""
    _, file = tiny
    before = factory.collected(file)
    monkeypatch.setattr(metrics, "average", lambda matrix: 12.5)
    monkeypatch.setattr(memory, "FLOAT", 2)
    after = factory.collected(file)
    assert set(after.frame.class_il) == {12.5}
    assert not set(before.frame.class_il) & {12.5}
    own = "split-digits/sparcl-derpp/s0.90/b50"
    assert factory.rows(factory.table(after, "continual_learning"))[0]["class_il_mean"] == "12.5"
    weights = [factory.rows(factory.table(results, "memory"))[0] for results in (before, after)]
    assert [row["configuration"] for row in weights] == [own, own]
    assert float(weights[1]["memory_gradients"]) == pytest.approx(float(weights[0]["memory_gradients"]) / 2)


def test_memory_does_not_grow_with_the_number_of_records(tmp_path):
    """Ten times the records: of each, no more than its line of the plan and its compressed rows are held."""
    peaks = []
    for seeds in (30, 300):
        items = [factory.entry(factory.cell("sparcl-derpp", 0.9, 50, seed)) for seed in range(seeds)]
        file = factory.write(tmp_path / str(seeds), factory.plan(items))
        planned = plan.read(file)
        collect.collect(planned, file.parent)  # what is made once
        tracemalloc.start()
        collect.collect(planned, file.parent)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = len((file.parent / "runs" / items[0]["path"] / "record.json").read_bytes())
    assert peaks[1] - peaks[0] < 270 * size / 2


# -- what is not there
def test_missing_failed_and_diverged_cells_stay(tiny, tmp_path):
    plan, _ = tiny
    paths = [item["path"] for item in plan["cells"]]
    file = factory.write(
        tmp_path / "again", plan, skip=paths[:1], fail={paths[1]: "disk is full\nat step 3"},
        diverge={paths[2]: (3, 1, 2)},
    )  # fmt: skip
    results = factory.collected(file)
    assert list(results.frame.status) == [frames.NOT_RUN, frames.FAILED, frames.DIVERGED]
    assert frames.missing_lines(results.frame) == [
        "split-digits/sparcl-derpp/s0.90/b50: seed 0: not run",
        "split-digits/sparcl-derpp/s0.90/b50: seed 1: failed: disk is full at step 3",
        "split-digits/sparcl-derpp/s0.90/b50: seed 2: diverged in task 3, epoch 1, step 2",
    ]
    rows = rows_of(file)
    assert [row["quantity"] for row in rows if row["status"] in ("not run", "failed")] == ["", ""]
    reached = {row["task"] for row in rows if row["quantity"] == "accuracy_class_il"}
    assert reached == {"", "0", "1", "2"}  # what a run measured before it diverged is kept
    cells = json.loads((file.parent / "provenance.json").read_text())["cells"]
    assert cells == {
        "planned": 3, "done": 0, "diverged": 1, "failed": 1, "not_run": 1, "not_of_this_plan": [],
    }  # fmt: skip
    (file.parent / "runs" / paths[1] / "failed.json").write_text("{")
    assert "failed.json cannot be read" in factory.collected(file).frame.reason[1]


def test_a_diverged_cell_is_in_no_mean(tmp_path):
    items = [factory.entry(factory.cell(method, 0.0, 50, seed)) for method in ("er", "derpp") for seed in range(3)]
    gone = "split-digits/er/s0.00/b50/seed1"
    results = factory.collected(factory.write(tmp_path, factory.plan(items), diverge={gone: (4, 0, 0)}))
    made = factory.table(results, "continual_learning")
    row = next(row for row in factory.rows(made) if row["method"] == "er")
    own = [factory.final(r) for path, r in factory.Records(results).items() if "/er/" in path and path != gone]
    assert (row["n"], float(row["class_il_mean"])) == ("2", pytest.approx(sum(own) / 2))
    assert made.missing == ("split-digits/er/s0.00/b50: seed 1: diverged in task 4, epoch 0, step 0",)


# -- what is refused
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: r.update(identity="0" * 64), "identity 000000000000"),
        (lambda r: r["cell"].update(epochs=11), "another cell: 'epochs' is 11, the plan says 10"),
        (lambda r: r["cell"].update(seed=7), "another cell: 'seed' is 7"),
        (lambda r: r["cell"]["params"].update({"ddr.proportion": 0.5}), "another cell: 'ddr.proportion' is 0.5"),
    ],
)
def test_records_of_something_else_are_refused(tiny, change, expected):
    plan, file = tiny
    rewrite(record_path(file, plan, 1), change)
    with pytest.raises(UserError) as caught:
        factory.collected(file)
    message = str(caught.value)
    assert "seed1" in message
    assert expected in message
    assert "\n" not in message


def test_edited_and_damaged_records_are_refused(tiny):
    plan, file = tiny
    path = record_path(file, plan)
    whole = path.read_text()
    rewrite(path, lambda r: r["results"]["executed"].update(training=1), seal=False)
    with pytest.raises(UserError, match="checksum"):
        factory.collected(file)
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="seed0"):
        factory.collected(file)


def test_every_refusal_is_counted(tiny):
    plan, file = tiny
    for index in range(3):
        rewrite(record_path(file, plan, index), lambda r: r.update(identity="0" * 64))
    with pytest.raises(UserError, match="and 2 more records are refused"):
        factory.collected(file)


def test_records_swapped_between_cells_are_refused(tiny):
    plan, file = tiny
    first, second = record_path(file, plan, 0), record_path(file, plan, 1)
    a, b = first.read_text(), second.read_text()
    first.write_text(b)
    second.write_text(a)
    with pytest.raises(UserError, match="another cell"):
        factory.collected(file)


def test_records_of_two_data_sets_are_not_mixed(tiny):
    plan, file = tiny
    rewrite(record_path(file, plan, 1), lambda r: r["provenance"].update(data="0" * 64))
    with pytest.raises(UserError, match=r"record of other data \(digest 000000000000\)"):
        factory.collected(file)


def test_link_out_of_the_folder_is_refused(tiny, tmp_path):
    plan, file = tiny
    path = record_path(file, plan)
    outside = tmp_path.parent / f"{tmp_path.name}-outside.json"
    outside.write_text(path.read_text())
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(UserError, match="link to somewhere else"):
        factory.collected(file)


def test_foreign_records_are_listed_and_left_out(tiny):
    _, file = tiny
    other = file.parent / "runs/split-digits/er/s0.00/b50/seed0"
    other.mkdir(parents=True)
    (other / "record.json").write_text("whatever")
    results = factory.collected(file)
    assert results.foreign == ("split-digits/er/s0.00/b50/seed0/record.json",)
    assert len(results.frame) == 3


def test_a_record_of_other_tasks_is_refused(tiny):
    """Its checksum is right, its matrices do not fit the plan's stream."""
    plan, file = tiny
    for change in (
        lambda r: r["results"]["accuracy"]["class_il"].pop(),
        lambda r: r["results"]["accuracy"]["task_il"][2].append(1.0),
        lambda r: r["results"]["accuracy"]["untrained"]["task_il"].pop(),
    ):
        whole = record_path(file, plan).read_text()
        rewrite(record_path(file, plan), change)
        with pytest.raises(UserError, match="expected 5 rows of 5 tasks"):
            factory.collected(file)
        record_path(file, plan).write_text(whole)


def test_a_refusal_leaves_the_old_files_untouched(tiny):
    plan, file = tiny
    factory.collected(file)
    written = [file.parent / name for name in ("results.csv.gz", "provenance.json")]
    before = [path.read_bytes() for path in written]
    rewrite(record_path(file, plan, 2), lambda r: r["cell"].update(seed=9))
    with pytest.raises(UserError):
        factory.collected(file)
    assert [path.read_bytes() for path in written] == before
    assert not list(file.parent.glob("*.tmp"))
