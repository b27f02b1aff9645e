"""The tables of a synthetic matrix, against numbers recomputed from the records in the test itself."""

from __future__ import annotations

import json

import factory
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis import catalog, typeset
from analysis.figures.scene import Scene
from analysis.published import Figure, load
from analysis.tables.published import LABELS, QUANTITY
from analysis.tables.published import table as published
from sparcl import methods


@pytest.fixture(scope="module")
def made(matrix):
    return build(matrix)


def build(results):
    """All tables of a plan, by name."""
    return {name: factory.table(results, name) for name in catalog.tables(results.plan.document)}


def values(results, configuration, metric="class_il"):
    records = factory.Records(results)
    return np.array([factory.final(records[f"{configuration}/seed{seed}"], metric) for seed in range(3)])


def planned(results, configuration):
    """What the plan says of a configuration's first cell."""
    return next(e["planned"] for e in results.plan.cells if e["path"].startswith(f"{configuration}/"))


def one(rows, **wanted):
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def test_every_table_has_its_name_and_rows(made):
    for name, table in made.items():
        assert table.name == name
        assert table.rows, name


def test_continual_learning_rows(made, matrix):
    rows = factory.rows(made["continual_learning"])
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
    rows = factory.rows(made["continual_learning"])
    assert one(rows, configuration="split-digits/derpp/s0.00/b20")["reference"] == "split-digits/sparcl-derpp/s0.75/b20"
    assert one(rows, configuration="split-digits/finetune/s0.00/b0")["reference"] == ""
    assert one(rows, configuration="split-digits/sparcl-derpp/s0.75/b20")["reference"] == ""
    rows = factory.rows(made["sparse_baselines"])
    assert one(rows, configuration="split-digits/rigl-er/s0.95/b20")["reference"] == "split-digits/sparcl-er/s0.95/b20"


def test_a_dense_row_has_its_reference_in_the_same_table(tmp_path):
    """The ablation at one sparsity, in a matrix whose SparCL has others: that of 0.75 is not in this table."""

    def item(method, sparsity, *groups):
        return [factory.entry(factory.cell(method, sparsity, 20, seed), groups) for seed in range(3)]

    items = [*item("derpp", 0.0, "main", "ablation"), *item("sparcl-derpp", 0.75, "main"),
             *item("sparcl-derpp", 0.9, "main", "ablation"), *item("tdm-derpp", 0.9, "ablation")]  # fmt: skip
    results = factory.collected(factory.write(tmp_path, factory.plan(items)))
    table = factory.table(results, "ablation")
    found = {row.values["configuration"]: row.values["reference"] for row in table.rows}
    ours = "split-digits/sparcl-derpp/s0.90/b20"
    assert found == {
        "split-digits/derpp/s0.00/b20": ours, "split-digits/tdm-derpp/s0.90/b20": ours, ours: ""
    }  # fmt: skip
    assert any("(for dense rows: its lowest sparsity here)" in note for note in table.notes)


@pytest.mark.parametrize("reference", ["sparcl-derpp", "derpp"])
def test_a_sparse_row_has_a_reference_of_its_sparsity_or_a_dense_one(tmp_path, reference):
    def item(method, sparsity):
        return [factory.entry(factory.cell(method, sparsity, 20, seed)) for seed in range(3)]

    items = [*item("derpp", 0.0), *item("er", 0.0), *item("sparcl-derpp", 0.9), *item("rigl-derpp", 0.9),
             *item("rigl-derpp", 0.95), *item("rigl-er", 0.9)]  # fmt: skip
    table = factory.table(
        factory.collected(factory.write(tmp_path, factory.plan(items, reference))), "sparse_baselines"
    )
    found = {(row.values["method"], row.values["sparsity"]): row.values["reference"] for row in table.rows}
    dense = reference == "derpp"
    assert found == {
        ("rigl-derpp", 0.9): "split-digits/derpp/s0.00/b20" if dense else "split-digits/sparcl-derpp/s0.90/b20",
        ("rigl-derpp", 0.95): "split-digits/derpp/s0.00/b20" if dense else "",
        ("rigl-er", 0.9): "split-digits/er/s0.00/b20" if dense else "",
        ("sparcl-derpp", 0.9): "split-digits/derpp/s0.00/b20" if dense else "",
    }
    text = (
        "the dense learner, same learner and buffer" if dense else "SparCL on the same learner, buffer and sparsity on"
    )
    assert any(text in note for note in table.notes)


def test_the_false_discovery_rate_is_held_over_the_table(made):
    rows = [row for row in factory.rows(made["sparse_baselines"]) if row["class_il_p"]]
    expected = multipletests([float(row["class_il_p"]) for row in rows], method="fdr_bh")[1]
    assert [float(row["class_il_p_fdr"]) for row in rows] == pytest.approx(list(expected))
    assert len(rows) == 2 * 2 * 3 * 7  # learners x buffers x sparsities x baselines


def test_flops_ratio_is_against_the_dense_learner(made, matrix):
    row = one(factory.rows(made["sparse_baselines"]), configuration="split-digits/rigl-derpp/s0.95/b20")
    paths = "split-digits/derpp/s0.00/b20", "split-digits/rigl-derpp/s0.95/b20"
    records = factory.Records(matrix)
    dense, own = (records[f"{path}/seed0"]["results"]["executed"]["training"] for path in paths)
    assert float(row["ratio_executed"]) == pytest.approx(dense / own)
    dense, own = (planned(matrix, path)["flops_paper"] for path in paths)
    assert float(row["ratio_paper"]) == pytest.approx(dense / own)


def test_bold_is_a_row_that_is_told_from_all_others_of_its_block(made, matrix):
    rows = factory.rows(made["continual_learning"])
    for buffer in ("20", "50"):
        block = [row for row in rows if row["buffer"] == buffer]
        top = max(block, key=lambda row: float(row["class_il_mean"]))
        gaps = [
            stats.ttest_rel(values(matrix, top["configuration"]), values(matrix, row["configuration"])).pvalue
            for row in block
            if row is not top
        ]
        is_told = max(multipletests(gaps, method="holm")[1]) < 0.05
        assert [row["configuration"] for row in block if row["class_il_best"] == "1"] == (
            [top["configuration"]] if is_told else []
        )
    assert one(rows, method="joint")["class_il_best"] == "0"  # does not compete


def test_ablation_flags_and_order(made):
    rows = factory.rows(made["ablation"])
    flags = {row["method"]: (row["tdm"], row["ddr"], row["dgm"]) for row in rows}
    assert flags["derpp"] == ("0", "0", "0")
    assert flags["fixed-derpp"] == ("0", "0", "0")
    assert flags["tdm-ddr-derpp"] == ("1", "1", "0")
    assert flags["sparcl-derpp"] == ("1", "1", "1")
    assert rows[0]["method"] == "derpp"
    assert rows[-1]["method"] == "sparcl-derpp"


def test_ablation_effects_are_paired_with_all_else_equal(made, matrix):
    rows = factory.rows(made["ablation_effects"])
    row = one(rows, part="DDR", off="TDM-DER++", on="TDM+DDR-DER++")
    on = values(matrix, "split-digits/tdm-ddr-derpp/s0.75/b50")
    off = values(matrix, "split-digits/tdm-derpp/s0.75/b50")
    assert float(row["class_il_diff"]) == pytest.approx((on - off).mean())
    assert float(row["p"]) == pytest.approx(stats.ttest_rel(on, off).pvalue)
    assert not [row for row in rows if row["off"] == "DER++" and row["on"].startswith("TDM")]  # other sparsity
    pairs = [(row["off"], row["on"]) for row in rows if row["part"] == "DDR" and row["on"]]
    assert len(pairs) > 1
    names = {row["label"]: row["configuration"] for row in factory.rows(made["ablation"])}
    ons, offs = (sum(values(matrix, names[pair[side]]) for pair in pairs) / len(pairs) for side in (1, 0))
    average = one(rows, part="DDR", on="")
    assert average["off"] == f"average of {len(pairs)} pairs"
    assert float(average["class_il_diff"]) == pytest.approx((ons - offs).mean())
    assert float(average["p"]) == pytest.approx(stats.ttest_rel(ons, offs).pvalue)
    assert float(average["p_within"]) >= max(
        stats.ttest_1samp(ons - offs, -2, alternative="greater").pvalue,
        stats.ttest_1samp(ons - offs, 2, alternative="less").pvalue,
    )


def test_other_sparse_training_is_no_sparcl_without_a_part(tmp_path):
    """RigL with data removal has the family of an ablation, and a group may name RigL itself."""
    methods = ("rigl-derpp", "rigl-ddr-derpp", "static-derpp", "sparcl-derpp")
    items = [factory.entry(factory.cell(method, 0.9, 50, seed), ["ablation"]) for method in methods for seed in (0, 1)]
    results = factory.collected(factory.write(tmp_path, factory.plan(items)))
    assert {row["method"] for row in factory.rows(factory.table(results, "ablation"))} == set(methods[2:])
    effects = factory.rows(factory.table(results, "ablation_effects"))
    assert [(row["off"], row["on"]) for row in effects] == [("Static-DER++", "SparCL-DER++")]
    assert "ablation" not in catalog.tables(factory.plan(items[:4]))


def test_a_pair_of_the_ablation_differs_in_more_where_nothing_is_between():
    """TDM and DGM were run together only: from a static mask to both is one step."""
    from analysis.tables import ablation_effects

    class Part:
        def __init__(self, *parts):
            self.policies = {kind: part if part in parts else None for part, kind in catalog.PARTS.items()}
            self.place = "derpp", 200, 0.9, ()

    static, both, all_three = Part(), Part("tdm", "dgm"), Part("tdm", "ddr", "dgm")
    assert ablation_effects.steps([all_three, static, both]) == [
        ("DDR", both, all_three),
        ("TDM+DGM", static, both),
    ]


def test_memory(made, matrix):
    """By hand: 4 bytes a value; of a pruned layer the smaller of a bitmap and int32 positions, twice."""
    row = one(factory.rows(made["memory"]), configuration="split-digits/sparcl-derpp/s0.95/b50")
    records = factory.Records(matrix)

    def total(path):
        results = records[path]["results"]
        size, left, learning = results["masks"]["layers"]["layer1.conv1.weight"].values()
        where = sum(0 if b == a else min(-(-a // 8), 4 * b) for a, b in ((size, left), (left, learning)))
        values = 4 * 2 * 1_000 + 480 + 4 * (left + learning)
        return values + where + 1_200_000 + results["held_bytes"]["memory"] + results["held_bytes"]["state"]

    own, dense = total("split-digits/sparcl-derpp/s0.95/b50/seed0"), total("split-digits/derpp/s0.00/b50/seed0")
    assert float(row["memory_total"]) == pytest.approx(own / 1e6)
    assert float(row["saving"]) == pytest.approx(100 * (1 - own / dense))
    own, dense = (
        planned(matrix, f"split-digits/{name}/b50")["paper_memory_phone"]
        for name in ("sparcl-derpp/s0.95", "derpp/s0.00")
    )
    assert float(row["saving_phone"]) == pytest.approx(100 * (1 - own / dense))


def test_all_cells_has_every_cell(made, small_plan):
    assert [row["path"] for row in factory.rows(made["all_cells"])] == [cell["path"] for cell in small_plan["cells"]]


def test_missing_cells_are_under_their_tables(tmp_path):
    plan = factory.default_plan(seeds=2, buffers=(50,), more=False)
    gone = ["split-digits/rigl-er/s0.90/b50/seed0", "split-digits/rigl-er/s0.90/b50/seed1"]
    file = factory.write(tmp_path, plan, skip=gone, fail={"split-digits/er/s0.00/b50/seed1": "disk is full"})
    made = build(factory.collected(file))
    line = "split-digits/rigl-er/s0.90/b50: seeds 0, 1: not run"
    assert line in made["sparse_baselines"].missing
    assert line not in made["continual_learning"].missing
    assert "split-digits/er/s0.00/b50: seed 1: failed: disk is full" in made["continual_learning"].missing
    assert {line, *made["continual_learning"].missing} <= set(made["all_cells"].missing)
    row = one(factory.rows(made["sparse_baselines"]), configuration="split-digits/rigl-er/s0.90/b50")
    assert (row["n"], row["class_il_mean"]) == ("0", "")
    assert one(factory.rows(made["continual_learning"]), configuration="split-digits/er/s0.00/b50")["n"] == "1"


def test_single_seed_has_no_tests(tmp_path):
    plan = factory.default_plan(seeds=1, buffers=(50,), more=False)
    table = factory.table(factory.collected(factory.write(tmp_path, plan)), "sparse_baselines")
    rows = factory.rows(table)
    assert all(row["class_il_p"] == "" and row["class_il_sd"] == "" for row in rows)
    for sparsity in ("0.75", "0.9", "0.95"):
        block = [row for row in rows if row["sparsity"] == sparsity and row["learner"] == "er"]
        assert not any(row["class_il_best"] == "1" for row in block)
    assert any("No row is bold" in note for note in table.notes)


def test_task_il_only_prints_a_dash(tmp_path):
    entries = [
        factory.entry(factory.cell(method, sparsity, 0, seed))
        for method, sparsity in (("packnet", 0.5), ("ewc", 0.0))
        for seed in range(2)
    ]
    table = build(factory.collected(factory.write(tmp_path, factory.plan(entries))))["continual_learning"]
    line = next(line for line in typeset.to_markdown(table).splitlines() if "PackNet" in line)
    assert line.split("|")[4].strip() == "\u2013"
    assert "±" in line.split("|")[5]
    row = one(factory.rows(table), method="packnet")
    assert row["class_il_mean"] == ""
    assert row["task_il_mean"] != ""


def test_plan_without_a_reference(tmp_path):
    plan = factory.plan([factory.entry(factory.cell("er", 0.0, 50, seed)) for seed in range(2)]) | {"reference": None}
    made = build(factory.collected(factory.write(tmp_path, plan)))
    assert "sparse_baselines" not in made
    assert factory.rows(made["continual_learning"])[0]["reference"] == ""


def test_a_reference_with_a_name_of_its_own_is_a_bundle_as_in_the_plan(tmp_path):
    """It is the reference of methods of its own learner, not of others; figures bring it forward."""
    cells = [(method, 0.5, 0, seed) for method in ("packnet", "static-finetune", "static-lwf") for seed in range(2)]
    document = factory.plan([factory.entry(factory.cell(*cell)) for cell in cells], reference="packnet")
    document["methods"]["packnet"] |= {"learner": "finetune"}
    document["bundles"]["packnet"] = "PackNet"
    results = factory.collected(factory.write(tmp_path, document))
    made = factory.table(results, "sparse_baselines")
    assert {row["method"]: row["reference"] for row in factory.rows(made)} == {
        "static-finetune": "split-digits/packnet/s0.50/b0", "static-lwf": "",
    }  # fmt: skip
    assert any("minus that of PackNet on the same learner" in note for note in made.notes)
    assert results.frame.bundle.iloc[0] == Scene(results).highlight == "packnet"


@pytest.mark.parametrize(("sparse", "text"), [("sparcl-er", " and SparCL"), ("gmp-derpp", "")])
def test_titles_name_sparcl_where_it_is(tmp_path, sparse, text):
    methods = ("derpp", sparse, "rigl-derpp")
    items = [factory.entry(factory.cell(method, 0.9 if "-" in method else 0.0, 50)) for method in methods]
    results = factory.collected(factory.write(tmp_path, factory.plan(items, reference=sparse)))
    for name, start in (
        ("continual_learning", "Continual-learning methods"), ("sparse_baselines", "Sparse-training baselines"),
    ):  # fmt: skip
        assert factory.table(results, name).title == f"{start}{text} on Split-Digits"


def test_two_settings_of_a_method_are_told_apart(tmp_path):
    entries = []
    for value in (0.1, 0.3):
        variant = {} if value == 0.3 else {"rigl.fraction": 0.1}
        cells = [factory.cell("rigl-er", 0.9, 50, seed, {"rigl.fraction": value}) for seed in (0, 1)]
        entries += [factory.entry(cell, variant=variant) for cell in cells]
    table = build(factory.collected(factory.write(tmp_path, factory.plan(entries))))["sparse_baselines"]
    assert [row["label"] for row in factory.rows(table)] == ["RigL-ER", "RigL-ER [rigl.fraction=0.1]"]


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
    return factory.collected(factory.write(tmp_path, factory.plan(entries)))


def test_published_beside_measured(cifar):
    figures = [figure(), figure("training_flops", "2.5e15", "corroborated", std=None), figure(method="rigl-derpp")]
    rows = factory.rows(published(cifar, lambda: figures))
    own = [factory.final(r) for r in factory.Records(cifar).values()]
    assert float(rows[0]["measured_value"]) == pytest.approx(np.mean(own))
    assert float(rows[0]["difference_value"]) == pytest.approx(np.mean(own) - 74.09)
    assert rows[0]["status"] == "recalled, unverified"
    assert "width 20 (published 64)" in rows[0]["protocol"]
    assert "n = 2 (published 3)" in rows[0]["protocol"]
    assert "loss" not in rows[0]["protocol"]  # SparCL's own
    paper = [entry["planned"]["flops_paper"] for entry in cifar.plan.cells]
    assert float(rows[1]["measured_value"]) == pytest.approx(np.mean(paper))
    assert (rows[2]["measured"], rows[2]["measured_value"]) == ("not run", "")


def test_published_names_the_loss_among_the_differences(tmp_path):
    """DER's for dense rows, SparCL's for its own, not known for RigL; and the runs that come nearest are compared."""
    head, replay = "protocol.single_head", "protocol.replay_start"

    def entries(method, sparsity, group, **params):
        variant = {f"protocol.{key}": value for key, value in params.items()}
        return [factory.entry(factory.cell(method, sparsity, 500, seed, variant, stream="split-cifar10", width=64),
                              [group], variant) for seed in range(2)]  # fmt: skip

    def differences(items, *figures):
        results = factory.collected(factory.write(tmp_path / str(len(items)), factory.plan(items)))
        return [row["protocol"] for row in factory.rows(published(results, lambda: figures))]

    plain = entries("derpp", 0.0, "main") + entries("rigl-derpp", 0.75, "main")
    dense, rigl = figure(method="derpp", sparsity=None), figure(method="rigl-derpp", table="table2")
    text = "loss over the task's classes (published: loss over all classes)"
    found = differences(plain, dense, rigl, figure("training_flops", "13.9e15", method="derpp", sparsity=None))
    assert text in found[0]
    assert "replay from the second task (published: replay at once)" in found[0]
    assert "loss over the task's classes, replay from the second task (published: not known)" in found[1]
    assert "loss" not in found[2]
    theirs = entries("derpp", 0.0, "published-losses-der", single_head=False, replay_start="immediately")
    (found,) = differences(plain + theirs, dense)
    assert "loss" not in found
    assert "replay" not in found
    assert head not in found
    assert replay not in found


def test_losses_as_published_say_what_each_learner_does(tmp_path):
    """Without a memory nothing is replayed; LwF's loss is over the classes seen; iCaRL has a loss of its own."""
    variant = {"protocol.single_head": False, "protocol.replay_start": "immediately"}
    items = [factory.entry(factory.cell(method, 0.0, buffer, 0, variant), ["published-losses-der"], variant)
             for method, buffer in (("finetune", 0), ("lwf", 0), ("icarl", 50), ("er", 50))]  # fmt: skip
    plan = factory.plan(items, reference="er")
    rows = factory.table(factory.collected(factory.write(tmp_path, plan)), "losses_as_published").rows
    assert {row.values["method"]: (row.values["loss"], row.values["replay"]) for row in rows} == {
        "finetune": ("loss over all classes", ""),
        "lwf": ("loss over the classes seen", ""),
        "icarl": ("", "replay at once"),
        "er": ("loss over all classes", "replay at once"),
    }


def test_losses_as_published_are_rows_by_group_and_no_comparison(tmp_path):
    variant = {"protocol.single_head": False, "protocol.replay_start": "immediately"}
    items = [factory.entry(factory.cell(m, s, 50, seed), ["main"]) for m, s in (("er", 0.0), ("sparcl-er", 0.9))
             for seed in range(2)]  # fmt: skip
    der = [factory.entry(factory.cell(m, 0.0, 50, seed, variant), ["published-losses-der"], variant)
           for m in ("er", "derpp") for seed in range(2)]  # fmt: skip
    own = [factory.entry(factory.cell("sparcl-er", 0.9, 50, seed), ["published-losses-sparcl"]) for seed in range(2)]
    assert "losses_as_published" not in catalog.tables(factory.plan(items))
    plan = factory.plan([*items, *der, *own])
    plan["config"]["groups"]["published-losses-der"]["title"] = "DER's code"
    assert "losses_as_published" in catalog.tables(plan)
    results = factory.collected(factory.write(tmp_path, plan))
    assert {row.method for row in results.frame[results.frame.main].itertuples()} == {"er", "sparcl-er"}
    assert set(results.frame[results.frame.main].variant) == {""}
    table = factory.table(results, "losses_as_published")
    rows = sorted(factory.rows(table), key=lambda row: row["source"])
    assert [(row["source"], row["method"], row["loss"], row["replay"]) for row in rows] == [
        ("DER's code", "er", "loss over all classes", "replay at once"),
        ("DER's code", "derpp", "loss over all classes", "replay at once"),
        ("published-losses-sparcl", "sparcl-er", "loss over the task's classes", "replay from the second task"),
    ]  # fmt: skip
    records = factory.Records(results)
    paths = [entry["path"] for entry in der if entry["cell"]["method"] == "derpp"]
    assert float(rows[1]["class_il_mean"]) == pytest.approx(np.mean([factory.final(records[p]) for p in paths]))
    assert not any("_p" in key for key in rows[0])
    assert any("No equal comparison" in note for note in table.notes)


def test_published_needs_the_same_stream_buffer_and_sparsity(cifar):
    figures = [figure(buffer=200), figure(sparsity=0.9), figure(stream="split-tiny-imagenet")]
    rows = factory.rows(published(cifar, lambda: figures))
    assert len(rows) == 2
    assert {row["measured"] for row in rows} == {"not run"}


def test_published_buffer_of_a_method_without_memory(tmp_path):
    """LightCL's 15 images are no replay memory, so its cells have buffer 0 and are compared all the same."""
    lightcl = [factory.cell("lightcl", sparsity, 0, seed, stream="split-cifar10", width=64)
               for sparsity in (0.0, 0.9) for seed in range(2)]  # fmt: skip
    derpp = [factory.cell("derpp", 0.0, 500, 0, stream="split-cifar10")]
    results = factory.collected(factory.write(tmp_path, factory.plan(map(factory.entry, lightcl + derpp))))
    figures = [f for f in load() if f.table == "lightcl" and f.stream == "split-cifar10"]
    assert {f.buffer for f in figures if f.method == "lightcl"} == {15}
    rows = factory.rows(published(results, lambda: figures))
    for sparsity in (0.0, 0.9):
        for metric in ("class_il", "task_il"):
            row = one([r for r in rows if float(r["sparsity"] or 0) == sparsity], method="lightcl", metric=metric)
            own = [factory.final(r, metric) for r in factory.Records(results).values()
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
        rows = factory.rows(published(results))
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
    assert {row["measured"] for row in factory.rows(table)} == {"not run"}
    assert any("not run" in note for note in table.notes)


def test_every_recalled_number_says_so(matrix):
    rows = factory.rows(published(matrix))
    recalled = [f for f in load() if f.status == "recalled" and f.stream]
    assert sum(row["status"] == "recalled, unverified" for row in rows) == len(recalled) > 0


def test_other_counts_of_flops_are_not_compared(cifar):
    rows = factory.rows(published(cifar, lambda: [figure("training_flops", "1.5e15", table="lightcl")]))
    assert (rows[0]["measured_value"], rows[0]["difference_value"]) == ("", "")
    assert "not comparable" in rows[0]["protocol"]


def test_tables_do_not_depend_on_the_order_of_the_plan(tmp_path):
    plan = factory.default_plan(seeds=2, buffers=(50,), more=False)
    shuffled = json.loads(json.dumps(plan))
    np.random.default_rng(0).shuffle(shuffled["cells"])
    a = factory.table(factory.collected(factory.write(tmp_path / "a", plan)), "sparse_baselines")
    b = factory.table(factory.collected(factory.write(tmp_path / "b", shuffled)), "sparse_baselines")

    def key(row):
        return row["configuration"]

    for x, y in zip(sorted(factory.rows(a), key=key), sorted(factory.rows(b), key=key), strict=True):
        assert x["class_il_p_fdr"] == y["class_il_p_fdr"]
        assert float(x["class_il_mean"]) == pytest.approx(float(y["class_il_mean"]))
