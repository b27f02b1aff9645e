"""The plan: what is read, what is refused, and which tables and figures it gives."""

from __future__ import annotations

import json
import subprocess
import sys

import factory
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import catalog, frames
from analysis import plan as plans
from sparcl.errors import UserError


@pytest.fixture
def tiny(tmp_path):
    """Three cells of one method; returns the plan as data and the path of its file."""
    plan = factory.plan([factory.entry(factory.cell("sparcl-derpp", 0.9, 50, seed)) for seed in range(3)])
    return plan, factory.write(tmp_path, plan)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p.update(schema="sparcl-plan/9"), "sparcl-plan/9"),
        (lambda p: p.update(cells=[]), "at least one cell"),
        (lambda p: p.update(cells={}), "cells: expected a list"),
        (lambda p: p.update(name=3), "name: expected a text"),
        (lambda p: p.update(reference=3), "reference: expected"),
        (lambda p: p["cells"].append(3), r"cells\[3\]: expected an object"),
        (lambda p: p["cells"].append(dict(p["cells"][0])), r"cells\[3\]: the same cell as cells\[0\]"),
        (lambda p: p["cells"].append(p["cells"][0] | {"path": "a/b/seed9"}), "the same cell"),
        (lambda p: p["cells"][0].update(path="../seed0"), "without '..'"),
        (lambda p: p["cells"][0].update(path="/etc/seed0"), "without '..'"),
        (lambda p: p["cells"][0].update(path="a//b"), "without '..'"),
        (lambda p: p["cells"][0].update(groups="sparcl"), "groups: expected a list"),
        (lambda p: p["cells"][0]["cell"].pop("seed"), r"cells\[0\]\.cell\.seed: missing"),
        (lambda p: p["cells"][0]["cell"].update(sparsity="0.9"), r"cell\.sparsity: expected a number"),
        (lambda p: p["cells"][1]["cell"].update(kernel2=1), r"cells\[1\]\.cell\.kernel2: expected the same settings"),
        (lambda p: p["methods"].clear(), "methods: expected 'sparcl-derpp'"),
        (lambda p: p["stream"].update(tasks=4), "train_sizes"),
        (lambda p: p["cells"][0]["planned"].pop("flops_paper"), "flops_paper: missing"),
        (lambda p: p["cells"][0]["cell"].update(method=None), r"cell\.method: expected a text"),
    ],
)
def test_bad_plans_are_refused(tiny, change, expected):
    plan, file = tiny
    plan = json.loads(json.dumps(plan))
    change(plan)
    file.write_text(json.dumps(plan))
    with pytest.raises(UserError, match=expected) as caught:
        plans.read(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100_000, '"plan"', "nul", "NaN", '"\\ud800"'])
def test_no_plan_at_all(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"plan\.json"):
        plans.read(path)


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
        frames.missing_lines(factory.collected(path).frame)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_absent_plan(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        plans.read(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("method", "learner", "expected"),
    [
        ("rigl-erk-er", "er", "rigl-erk"), ("derpp", "derpp", ""), ("packnet", "finetune", "packnet"),
        ("my-own", "finetune", "my-own"), ("superer", "er", "superer"),
    ],
)  # fmt: skip
def test_the_bundle_of_a_method(method, learner, expected):
    """One answer, of a method in a cell and of the reference."""
    assert plans.bundle(method, learner) == expected
    plan = factory.plan([factory.entry(factory.cell("derpp", 0.0, 50))], reference=method)
    plan["methods"][method] = plan["methods"]["derpp"] | {"learner": learner}
    fields = {"reference": method, "methods": plan["methods"]}
    nothing = dict.fromkeys(("path", "document", "name", "title", "description", "config", "stream", "bundles"))
    assert plans.Plan(**nothing | fields, cells=()).reference_parts == (expected, learner)


# -- which tables and figures it gives
def test_the_catalog_has_these_in_this_order():
    assert [name for name in catalog.TABLES if name in factory.TABLES] == factory.TABLES
    assert [name for name in catalog.FIGURES if name in factory.FIGURES] == factory.FIGURES


def test_the_default_matrix_gives_everything():
    plan = factory.default_plan(seeds=1)
    sweeps = [f"sweep_{group}" for group in factory.SWEEPS]
    assert factory.tables(plan) == [
        "primary", "regime", "continual_learning", "sparse_baselines", "ablation", "ablation_effects",
        "counted_against_measured", "memory", *sweeps, "all_cells",
    ]  # fmt: skip
    assert factory.figures(plan) == [
        "accuracy_vs_flops", "counted_against_measured", "accuracy_vs_sparsity", "accuracy_per_task",
        "accuracy_matrices", "forgetting_bars", *sweeps, "mask_dynamics", "flops_breakdown",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "tables", "figures"),
    [
        ([("er", 0.0, 50)], ["regime", "continual_learning", "memory"],
         ["accuracy_per_task", "accuracy_matrices", "forgetting_bars", "flops_breakdown"]),
        ([("packnet", 0.5, 0)], ["continual_learning", "memory"], ["flops_breakdown"]),
        ([("joint", 0.0, 0)], ["continual_learning", "memory"], ["accuracy_matrices", "flops_breakdown"]),
        ([("rigl-er", 0.9, 50), ("rigl-er", 0.5, 50)], ["sparse_baselines", "counted_against_measured", "memory"],
         ["accuracy_vs_flops", "counted_against_measured", "accuracy_vs_sparsity", "accuracy_per_task",
          "accuracy_matrices", "forgetting_bars", "mask_dynamics", "flops_breakdown"]),
        ([("sparcl-er", 0.9, 50), ("tdm-ddr-er", 0.9, 50)],
         ["continual_learning", "ablation", "ablation_effects", "counted_against_measured", "memory"],
         ["accuracy_vs_flops", "counted_against_measured", "accuracy_per_task", "accuracy_matrices", "forgetting_bars",
          "mask_dynamics", "flops_breakdown"]),
        ([("sparcl-er", 0.9, 50), ("er", 0.0, 20)],
         ["regime", "continual_learning", "counted_against_measured", "memory"], None),
        ([("sparcl-er", 0.9, 50), ("er", 0.0, 50)],
         ["primary", "regime", "continual_learning", "counted_against_measured", "memory"], None),
    ],
)  # fmt: skip
def test_a_plan_gives_what_its_cells_are_for(cells, tables, figures):
    plan = factory.plan([factory.entry(factory.cell(*cell)) for cell in cells], reference="")
    assert factory.tables(plan) == [*tables, "all_cells"]
    assert figures is None or factory.figures(plan) == figures


def test_published_figures_are_for_their_streams():
    plan = factory.plan([factory.entry(factory.cell("er", 0.0, 50, stream="split-cifar10"))])
    assert "published" in factory.tables(plan)


def test_every_name_has_its_module():
    for room, names in (("tables", catalog.TABLES), ("figures", catalog.FIGURES)):
        files = {path.stem for path in (factory.TOP / "analysis" / room).glob("*.py")}
        assert set(names) <= files


def test_asking_is_light():
    """A workflow asks while it is being parsed."""
    heavy = {"numpy", "pandas", "scipy", "matplotlib", "torch", "jsonschema"}
    code = f"import sys, analysis.catalog; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=factory.TOP).returncode == 0
