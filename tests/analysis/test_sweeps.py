"""Sweeps: any group that sets parameters has its own table and figure and is in no comparison between methods."""

from __future__ import annotations

import itertools

import factory
import pytest

from analysis import catalog, claims, frames
from analysis.figures import style, sweep
from analysis.figures.scene import Scene
from sparcl import groups

MAIN = [("er", 0.0), ("derpp", 0.0), ("sparcl-derpp", 0.9), ("rigl-derpp", 0.9), ("set-derpp", 0.9)]


def main_items(seeds=3):
    return [factory.entry(factory.cell(m, s, 50, seed), ["main"]) for m, s in MAIN for seed in range(seeds)]


def swept(method, values, group="mine", sparsity=0.9, seeds=3, default=None):
    """Cells of a sweep: one for each combination of values, the default one without a variant."""
    items = []
    for combination in itertools.product(*values.values()):
        params = dict(zip(values, combination, strict=True))
        variant = {} if params == default else params
        items += [factory.entry(factory.cell(method, sparsity, 50, s, params), [group], variant) for s in range(seeds)]
    return items


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same matrix without and with a user's own sweep of RigL's alpha, one of whose methods nothing else has."""
    made = []
    own = swept("rigl-derpp", {"rigl.alpha": [0.1, 0.2, 0.5]}) + swept("rigl-er", {"rigl.alpha": [0.1, 0.3]})
    for items, sweeps in ((main_items(), {}), (main_items() + own, {"mine": ["rigl.alpha"]})):
        folder = tmp_path_factory.mktemp("pair")
        made.append(factory.collected(factory.write(folder, factory.plan(items, sweeps=sweeps))))
    return made


def test_a_users_sweep_changes_no_comparison(pair):
    """Rows, differences, corrections, bold: all as if the sweep were not there."""
    without, with_sweep = pair
    names = set(catalog.tables(without.plan.document))
    assert set(catalog.tables(with_sweep.plan.document)) - names == {"sweep_mine"}
    for name in names - {"all_cells"}:
        assert factory.rows(factory.table(without, name)) == factory.rows(factory.table(with_sweep, name)), name


def test_a_users_sweep_changes_no_claim_and_no_figure(pair):
    first, second = (claims.claims(results) for results in pair)
    assert first == second
    assert len(first) == 3
    drawn = []
    for results in pair:
        scene = Scene(results)
        drawn.append([(c.key, c.mean("class_il"), c.mean("flops_executed")) for c in scene.pool])
        assert not [c for c in scene.pool if "alpha" in c.key]
    assert drawn[0] == drawn[1]  # what the Pareto front and every other figure look at


def test_the_sweep_has_its_table(pair):
    rows = factory.rows(factory.table(pair[1], "sweep_mine"))
    assert [(row["method"], row["rigl.alpha"]) for row in rows] == [
        ("rigl-derpp", "0.1"), ("rigl-derpp", "0.2"), ("rigl-derpp", "0.5"), ("rigl-er", "0.1"), ("rigl-er", "0.3"),
    ]  # fmt: skip
    own = "split-digits/rigl-derpp/s0.90/b50"
    assert [row["reference"] for row in rows] == [own, own, own, "", ""]  # the plain cell of the main groups
    records = factory.Records(pair[1])
    gap = [
        factory.final(records[f"{own}/rigl.alpha=0.5/seed{s}"]) - factory.final(records[f"{own}/seed{s}"])
        for s in range(3)
    ]
    assert float(rows[2]["class_il_diff"]) == pytest.approx(sum(gap) / 3)


def test_a_cell_that_another_group_names_is_compared_too(tmp_path):
    """The swept value that is the default one: the same cell as in the main group."""
    values = {"ddr.proportion": [0.1, 0.3]}
    items = main_items() + swept("sparcl-derpp", values, default={"ddr.proportion": 0.3})
    results = factory.collected(factory.write(tmp_path, factory.plan(items, sweeps={"mine": ["ddr.proportion"]})))
    both = results.frame[[groups == ("main", "mine") for groups in results.frame.groups]]
    assert len(both) == 3
    assert both.main.all()
    compared = {row["configuration"] for row in factory.rows(factory.table(results, "sparse_baselines"))}
    assert "split-digits/sparcl-derpp/s0.90/b50" in compared
    rows = factory.rows(factory.table(results, "sweep_mine"))
    assert [row["ddr.proportion"] for row in rows] == ["0.1", "0.3"]
    assert [bool(row["class_il_diff"]) for row in rows] == [True, False]  # the default is the reference


def test_grids_are_sweeps():
    grid = {"er": {"set": {"er.x": [1]}, "source": "s"}, "ewc": {"set": {}, "source": "s"}}
    config = {"groups": {"a": {"grid": grid}, "b": {"set": {"k.l": [1], "k.m": [2]}}, "c": {}}}
    assert groups.swept(config) == {"a": ["er.x"], "b": ["k.l", "k.m"]}
    assert [groups.in_main(names, groups.apart(config)) for names in (["a"], ["a", "b"], ["a", "c"], [])] == [
        False, False, True, True,
    ]  # fmt: skip


@pytest.fixture
def draw():
    made = []

    def run(tmp_path, values, methods=("sparcl-derpp",), skip=()):
        items = [
            item for method in methods for item in swept(method, values, sparsity=0.5 if method == "packnet" else 0.9)
        ]
        file = factory.write(tmp_path, factory.plan(items, sweeps={"mine": list(values)}), skip)
        with style.context():
            drawing = sweep.draw(Scene(factory.collected(file)), "mine")
        if drawing is not None:
            made.append(drawing.figure)
        return drawing

    yield run
    for figure in made:
        style.close(figure)


def curves(ax):
    return [line for line in ax.get_lines() if len(line.get_xdata()) > 1 and line.get_marker() == "o"]


def test_one_parameter_is_a_line(draw, tmp_path):
    drawing = draw(tmp_path, {"ddr.proportion": [0.7, 0.1, 0.3]})
    accuracy, flops = drawing.figure.axes
    for ax in (accuracy, flops):
        assert ax.get_xlabel() == "ddr.proportion"
        assert [list(line.get_xdata()) for line in curves(ax)] == [[0.1, 0.3, 0.7]]
    assert accuracy.get_ylabel() == "Class-IL accuracy (%)"


@pytest.mark.parametrize("values", [[0, 0.001, 0.1], [1.0, 10.0, 100.0, 10000.0], [0.1, 0.11, 5]])
def test_labels_of_values_do_not_touch(draw, tmp_path, values):
    """Values that lie too near to one another on the axis are evenly spaced on it, and it says so."""
    figure = draw(tmp_path, {"ddr.proportion": values}).figure
    style.encode(figure, ["svg"])
    for ax in figure.axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert [label.get_text() for label in ax.get_xticklabels()] == [f"{value:g}" for value in values]
        assert all(right.x0 - left.x1 > 2 for left, right in itertools.pairwise(boxes))
        assert [list(line.get_xdata()) for line in curves(ax)] == [[float(at) for at in range(len(values))]]
        assert ax.get_xlabel() == "ddr.proportion (values evenly spaced)"


def test_of_two_parameters_one_is_the_axis(draw, tmp_path):
    drawing = draw(tmp_path, {"derpp.alpha": [0.1, 0.2], "derpp.beta": [0.25, 0.5, 1.0]}, ["derpp"])
    _, flops = drawing.figure.axes
    assert flops.get_xlabel() == "derpp.beta"
    assert [text.get_text() for text in flops.get_legend().get_texts()] == ["derpp.alpha 0.1", "derpp.alpha 0.2"]


@pytest.mark.parametrize(
    "values", [{"tdm.init": ["random", "magnitude"]}, {"a.x": [1, 2], "a.y": [True, False], "a.z": ["p", "q"]}]
)
def test_texts_and_many_parameters_are_listed(draw, tmp_path, values):
    drawing = draw(tmp_path, values)
    accuracy, flops = drawing.figure.axes
    names = [tick.get_text() for tick in accuracy.get_yticklabels()]
    assert len(names) == len(set(names)) == len(list(itertools.product(*values.values())))
    assert all(key in name for key in values for name in names)
    assert flops.get_xlabel() == "Training FLOPs, executed ledger ($10^{10}$)"


def test_one_change_at_a_time_is_named_in_a_column_and_listed(tmp_path):
    default = factory.cell("sparcl-derpp", 0.9, 50)["params"]
    items = main_items()
    for seed in range(3):
        items.append(factory.entry(factory.cell("sparcl-derpp", 0.9, 50, seed), ["mine"]))
        for change in ({"ddr.proportion": 0.1}, {"tdm.init": "magnitude"}):
            items.append(factory.entry(factory.cell("sparcl-derpp", 0.9, 50, seed, default | change), ["mine"], change))
    document = factory.plan(items)
    document["config"]["groups"]["mine"]["alone"] = {"ddr.proportion": [0.3, 0.1], "tdm.init": ["magnitude"]}
    results = factory.collected(factory.write(tmp_path, document))
    rows = factory.rows(factory.table(results, "sweep_mine"))
    assert [row["setting"] for row in rows] == ["default", "ddr.proportion=0.1", "tdm.init=magnitude"]
    assert [bool(row["class_il_diff"]) for row in rows] == [False, True, True]
    with style.context():
        drawing = sweep.draw(Scene(results), "mine")
        names = [tick.get_text() for tick in drawing.figure.axes[0].get_yticklabels()]
        style.close(drawing.figure)
    assert names == ["tdm.init magnitude", "ddr.proportion 0.1", "default"]  # from below


def test_methods_without_class_il_show_task_il(draw, tmp_path):
    drawing = draw(tmp_path, {"packnet.retrain": [0.2, 0.5]}, ["packnet"])
    assert drawing.figure.axes[0].get_ylabel() == "Task-IL accuracy (%)"


def test_a_sweep_says_what_it_lacks(draw, tmp_path):
    gone = "split-digits/sparcl-derpp/s0.90/b50/ddr.proportion=0.1/seed1"
    drawing = draw(tmp_path, {"ddr.proportion": [0.1, 0.3]}, skip=[gone])
    assert drawing.missing == ("split-digits/sparcl-derpp/s0.90/b50/ddr.proportion=0.1: seed 1: not run",)


def test_the_default_sweeps(matrix):
    rows = factory.rows(factory.table(matrix, "sweep_ddr-proportion"))
    assert [row["ddr.proportion"] for row in rows] == ["0.1", "0.3", "0.5", "0.7"]
    assert [bool(row["class_il_diff"]) for row in rows] == [True, False, True, True]
    assert len(frames.in_group(matrix.frame, "ddr-proportion")) == 4 * 3
