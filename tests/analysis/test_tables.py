"""The tables of a synthetic matrix, against numbers recomputed from the records in the test itself."""

from __future__ import annotations

import csv
import io
import json

import factory
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis import frames, tables, typeset
from analysis.published import LABELS, QUANTITY, published
from sparcl import methods
from sparcl.costs.published import Figure, load


@pytest.fixture(scope="module")
def made(matrix):
    return tables.build(matrix)


def rows_of(table):
    return list(csv.DictReader(io.StringIO(typeset.to_csv(table))))


def values(results, configuration, metric="class_il"):
    return np.array([results.records[f"{configuration}/seed{seed}"]["results"]["metrics"][metric] for seed in range(3)])


def one(rows, **wanted):
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def test_all_tables_are_made(made):
    assert set(made) == set(tables.NAMES)


def test_continual_learning_rows(made, matrix):
    rows = rows_of(made["continual_learning"])
    methods = {row["method"] for row in rows}
    assert methods == {"finetune", "joint", "er", "der", "derpp", "sparcl-er", "sparcl-derpp"}
    assert len([row for row in rows if row["method"] == "sparcl-er"]) == 6  # 3 sparsities x 2 buffers; no sweep setting
    row = one(rows, configuration="split-digits/sparcl-er/s0.90/b50")
    own = values(matrix, "split-digits/sparcl-er/s0.90/b50")
    other = values(matrix, "split-digits/sparcl-derpp/s0.90/b50")
    assert float(row["class_il_mean"]) == pytest.approx(own.mean())
    assert float(row["class_il_sd"]) == pytest.approx(own.std(ddof=1))
    assert row["class_il_n"] == "3"
    expected = stats.ttest_rel(own, other)
    assert row["reference"] == "split-digits/sparcl-derpp/s0.90/b50"
    assert float(row["class_il_diff"]) == pytest.approx((own - other).mean())
    assert float(row["class_il_p"]) == pytest.approx(expected.pvalue)
    assert float(row["class_il_diff_ci_low"]) == pytest.approx(expected.confidence_interval().low)


def test_reference_is_at_the_same_buffer_and_sparsity_or_its_lowest(made):
    rows = rows_of(made["continual_learning"])
    assert one(rows, configuration="split-digits/derpp/s0.00/b20")["reference"] == "split-digits/sparcl-derpp/s0.75/b20"
    assert one(rows, configuration="split-digits/finetune/s0.00/b0")["reference"] == ""
    assert one(rows, configuration="split-digits/sparcl-derpp/s0.75/b20")["reference"] == ""
    rows = rows_of(made["sparse_baselines"])
    assert one(rows, configuration="split-digits/rigl-er/s0.95/b20")["reference"] == "split-digits/sparcl-er/s0.95/b20"


def test_holm_is_over_the_table(made):
    rows = [row for row in rows_of(made["sparse_baselines"]) if row["class_il_p"]]
    expected = multipletests([float(row["class_il_p"]) for row in rows], method="holm")[1]
    assert [float(row["class_il_p_holm"]) for row in rows] == pytest.approx(list(expected))
    assert len(rows) == 2 * 2 * 3 * 7  # learners x buffers x sparsities x baselines


def test_flops_ratio_is_against_the_dense_learner(made, matrix):
    row = one(rows_of(made["sparse_baselines"]), configuration="split-digits/rigl-derpp/s0.95/b20")
    own = matrix.records["split-digits/rigl-derpp/s0.95/b20/seed0"]["results"]["flops"]
    dense = matrix.records["split-digits/derpp/s0.00/b20/seed0"]["results"]["flops"]
    assert float(row["ratio_executed"]) == pytest.approx(dense["executed"]["training"] / own["executed"]["training"])
    assert float(row["ratio_paper"]) == pytest.approx(dense["paper"]["training"] / own["paper"]["training"])


def test_bold_is_the_best_of_its_block_with_ties(made):
    rows = rows_of(made["continual_learning"])
    for buffer in ("20", "50"):
        block = [row for row in rows if row["buffer"] == buffer]
        top = max(block, key=lambda row: float(row["class_il_mean"]))
        assert top["class_il_best"] == "1"
        low = min(block, key=lambda row: float(row["forgetting_class_il_mean"]))
        assert low["forgetting_class_il_best"] == "1"
    assert one(rows, method="joint")["class_il_best"] == "0"  # does not compete


def test_ablation_flags_and_order(made):
    rows = rows_of(made["ablation"])
    flags = {row["method"]: (row["tdm"], row["ddr"], row["dgm"]) for row in rows}
    assert flags["derpp"] == ("0", "0", "0")
    assert flags["fixed-derpp"] == ("0", "0", "0")
    assert flags["tdm-ddr-derpp"] == ("1", "1", "0")
    assert flags["sparcl-derpp"] == ("1", "1", "1")
    assert rows[0]["method"] == "derpp"
    assert rows[-1]["method"] == "sparcl-derpp"


def test_ablation_effects_are_paired_with_all_else_equal(made, matrix):
    rows = rows_of(made["ablation_effects"])
    row = one(rows, part="DDR", off="TDM-DER++", on="TDM+DDR-DER++")
    on = values(matrix, "split-digits/tdm-ddr-derpp/s0.75/b50")
    off = values(matrix, "split-digits/tdm-derpp/s0.75/b50")
    assert float(row["class_il_diff"]) == pytest.approx((on - off).mean())
    assert float(row["p"]) == pytest.approx(stats.ttest_rel(on, off).pvalue)
    assert not [row for row in rows if row["off"] == "DER++" and row["on"].startswith("TDM")]  # other sparsity


def test_memory(made, matrix):
    row = one(rows_of(made["memory"]), configuration="split-digits/sparcl-derpp/s0.95/b50")
    own = matrix.records["split-digits/sparcl-derpp/s0.95/b50/seed0"]["results"]["memory"]
    dense = matrix.records["split-digits/derpp/s0.00/b50/seed0"]["results"]["memory"]
    assert float(row["memory_total"]) == pytest.approx(own["suite"]["total"] / 1e6)
    assert float(row["saving"]) == pytest.approx(100 * (1 - own["suite"]["total"] / dense["suite"]["total"]))
    assert float(row["saving_phone"]) == pytest.approx(100 * (1 - own["paper"]["phone"] / dense["paper"]["phone"]))


def test_sweeps(made):
    rows = rows_of(made["sweeps"])
    assert [row["value"] for row in rows if row["sweep"] == "ddr-proportion"] == ["0.1", "0.3", "0.5", "0.7"]
    assert one(rows, sweep="ddr-proportion", value="0.3")["class_il_diff"] == ""  # the default is the reference
    assert one(rows, sweep="ddr-proportion", value="0.7")["class_il_diff"] != ""


def test_all_cells_has_every_cell(made, small_plan):
    assert [row["path"] for row in rows_of(made["all_cells"])] == [cell["path"] for cell in small_plan["cells"]]


def test_missing_cells_are_under_their_tables(tmp_path):
    plan = factory.default_plan(seeds=2, buffers=(50,), more=False)
    gone = ["split-digits/rigl-er/s0.90/b50/seed0", "split-digits/rigl-er/s0.90/b50/seed1"]
    file = factory.write(tmp_path, plan, skip=gone, fail={"split-digits/er/s0.00/b50/seed1": "disk is full"})
    made = tables.build(frames.collect(file))
    line = "split-digits/rigl-er/s0.90/b50: seeds 0, 1: not run"
    assert line in made["sparse_baselines"].missing
    assert line not in made["continual_learning"].missing
    assert "split-digits/er/s0.00/b50: seed 1: failed: disk is full" in made["continual_learning"].missing
    assert {line, *made["continual_learning"].missing} <= set(made["all_cells"].missing)
    row = one(rows_of(made["sparse_baselines"]), configuration="split-digits/rigl-er/s0.90/b50")
    assert (row["n"], row["class_il_mean"]) == ("0", "")
    assert one(rows_of(made["continual_learning"]), configuration="split-digits/er/s0.00/b50")["n"] == "1"


def test_single_seed_has_no_tests(tmp_path):
    plan = factory.default_plan(seeds=1, buffers=(50,), more=False)
    table = tables.build(frames.collect(factory.write(tmp_path, plan)))["sparse_baselines"]
    rows = rows_of(table)
    assert all(row["class_il_p"] == "" and row["class_il_sd"] == "" for row in rows)
    for sparsity in ("0.75", "0.9", "0.95"):
        block = [row for row in rows if row["sparsity"] == sparsity and row["learner"] == "er"]
        assert sum(row["class_il_best"] == "1" for row in block) == 1
    assert any("fewer than 2 seeds" in note for note in table.notes)


def test_task_il_only_prints_a_dash(tmp_path):
    entries = [
        factory.entry(factory.cell(method, sparsity, 0, seed))
        for method, sparsity in (("packnet", 0.5), ("ewc", 0.0))
        for seed in range(2)
    ]
    table = tables.build(frames.collect(factory.write(tmp_path, factory.plan(entries))))["continual_learning"]
    line = next(line for line in typeset.to_markdown(table).splitlines() if "PackNet" in line)
    assert line.split("|")[4].strip() == "\u2013"
    assert "±" in line.split("|")[5]
    row = one(rows_of(table), method="packnet")
    assert row["class_il_mean"] == ""
    assert row["task_il_mean"] != ""


def test_plan_without_a_reference(tmp_path):
    plan = factory.plan([factory.entry(factory.cell("er", 0.0, 50, seed)) for seed in range(2)]) | {"reference": None}
    made = tables.build(frames.collect(factory.write(tmp_path, plan)))
    assert "sparse_baselines" not in made
    assert rows_of(made["continual_learning"])[0]["reference"] == ""


def test_two_settings_of_a_method_are_told_apart(tmp_path):
    entries = []
    for value in (0.1, 0.3):
        variant = "" if value == 0.3 else "rigl.fraction=0.1"
        cells = [factory.cell("rigl-er", 0.9, 50, seed, {"rigl.fraction": value}) for seed in (0, 1)]
        entries += [factory.entry(cell, variant=variant) for cell in cells]
    table = tables.build(frames.collect(factory.write(tmp_path, factory.plan(entries))))["sparse_baselines"]
    assert [row["label"] for row in rows_of(table)] == ["RigL-ER", "RigL-ER [rigl.fraction=0.1]"]


# -- published
def figure(metric="class_il", text="74.09", status="recalled", method="sparcl-derpp", **fields):
    base = {
        "table": "table1", "stream": "split-cifar10", "buffer": 500, "method": method, "sparsity": 0.75,
        "metric": metric,
        "text": text, "std": 0.84, "runs": 3, "status": status, "source": "a paper", "note": "",
    }  # fmt: skip
    return Figure(**(base | fields))


@pytest.fixture
def cifar(tmp_path):
    entries = [
        factory.entry(factory.cell("sparcl-derpp", 0.75, 500, seed, stream="split-cifar10", width=20))
        for seed in range(2)
    ]
    return frames.collect(factory.write(tmp_path, factory.plan(entries)))


def test_published_beside_measured(cifar):
    figures = [figure(), figure("training_flops", "2.5e15", "corroborated", std=None), figure(method="rigl-derpp")]
    rows = rows_of(published(cifar, lambda: figures))
    own = [r["results"]["metrics"]["class_il"] for r in cifar.records.values()]
    assert float(rows[0]["measured_value"]) == pytest.approx(np.mean(own))
    assert float(rows[0]["difference_value"]) == pytest.approx(np.mean(own) - 74.09)
    assert rows[0]["status"] == "recalled, unverified"
    assert "width 20 (published 64)" in rows[0]["protocol"]
    assert "n = 2 (published 3)" in rows[0]["protocol"]
    paper = [r["results"]["flops"]["paper"]["training"] for r in cifar.records.values()]
    assert float(rows[1]["measured_value"]) == pytest.approx(np.mean(paper))
    assert (rows[2]["measured"], rows[2]["measured_value"]) == ("not run", "")


def test_published_needs_the_same_stream_buffer_and_sparsity(cifar):
    figures = [figure(buffer=200), figure(sparsity=0.9), figure(stream="split-tiny-imagenet")]
    rows = rows_of(published(cifar, lambda: figures))
    assert len(rows) == 2
    assert {row["measured"] for row in rows} == {"not run"}


def test_published_buffer_of_a_method_without_memory(tmp_path):
    """LightCL's 15 images are no replay memory, so its cells have buffer 0 and are compared all the same."""
    lightcl = [factory.cell("lightcl", sparsity, 0, seed, stream="split-cifar10", width=64)
               for sparsity in (0.0, 0.9) for seed in range(2)]  # fmt: skip
    derpp = [factory.cell("derpp", 0.0, 500, 0, stream="split-cifar10")]
    results = frames.collect(factory.write(tmp_path, factory.plan(map(factory.entry, lightcl + derpp))))
    figures = [f for f in load() if f.table == "lightcl" and f.stream == "split-cifar10"]
    assert {f.buffer for f in figures if f.method == "lightcl"} == {15}
    rows = rows_of(published(results, lambda: figures))
    for sparsity in (0.0, 0.9):
        for metric in ("class_il", "task_il"):
            row = one([r for r in rows if float(r["sparsity"] or 0) == sparsity], method="lightcl", metric=metric)
            own = [r["results"]["metrics"][metric] for r in results.records.values()
                   if (r["cell"]["method"], r["cell"]["sparsity"]) == ("lightcl", sparsity)]  # fmt: skip
            assert len(own) == 2
            assert float(row["measured_value"]) == pytest.approx(np.mean(own))
            assert float(row["difference_value"]) == pytest.approx(np.mean(own) - float(row["published_value"]))
            assert row["buffer"] == "15"
            assert "buffer 0, no replay memory (published 15)" in row["protocol"]
            assert "n = 2 (published 5)" in row["protocol"]
            assert "pre-trained on ImageNet32" in row["protocol"]
    others = [r for r in rows if r["method"] != "lightcl"]
    assert {r["measured"] for r in others} == {"not run"}  # DER++ ran with another buffer
    assert any(r["method"] == "derpp" and r["buffer"] == "15" for r in others)


def test_published_methods_have_their_labels(matrix, cifar):
    """Whether or not the plan has the method, and whether or not it has run."""
    for results in (matrix, cifar):
        rows = rows_of(published(results))
        assert {row["label"] for row in rows} <= set(LABELS.values())
        assert all(row["label"] == LABELS[row["method"]] for row in rows)


def test_the_labels_of_published_methods_are_the_registered_ones():
    figures = {f.method for f in load() if f.stream and f.metric in QUANTITY}
    assert set(LABELS) == figures
    assert figures - set(methods.names()) == {"pnn"}
    assert {name: methods.get(name).label for name in figures - {"pnn"}} == {
        name: label for name, label in LABELS.items() if name != "pnn"
    }


def test_published_on_another_stream_is_all_not_run(matrix):
    table = published(matrix)
    assert {row["measured"] for row in rows_of(table)} == {"not run"}
    assert any("not run" in note for note in table.notes)


def test_every_recalled_number_says_so(matrix):
    rows = rows_of(published(matrix))
    recalled = [f for f in load() if f.status == "recalled" and f.stream]
    assert sum(row["status"] == "recalled, unverified" for row in rows) == len(recalled) > 0


def test_other_counts_of_flops_are_not_compared(cifar):
    rows = rows_of(published(cifar, lambda: [figure("training_flops", "1.5e15", table="lightcl")]))
    assert (rows[0]["measured_value"], rows[0]["difference_value"]) == ("", "")
    assert "not comparable" in rows[0]["protocol"]


def test_tables_do_not_depend_on_the_order_of_the_plan(tmp_path):
    plan = factory.default_plan(seeds=2, buffers=(50,), more=False)
    shuffled = json.loads(json.dumps(plan))
    np.random.default_rng(0).shuffle(shuffled["cells"])
    a = tables.build(frames.collect(factory.write(tmp_path / "a", plan)))["sparse_baselines"]
    b = tables.build(frames.collect(factory.write(tmp_path / "b", shuffled)))["sparse_baselines"]

    def key(row):
        return row["configuration"]

    for x, y in zip(sorted(rows_of(a), key=key), sorted(rows_of(b), key=key), strict=True):
        assert x["class_il_p_holm"] == y["class_il_p_holm"]
        assert float(x["class_il_mean"]) == pytest.approx(float(y["class_il_mean"]))
