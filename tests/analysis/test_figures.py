"""Figures: what they plot, that they come out the same again, and that they say what they lack."""

from __future__ import annotations

import itertools
import json
from importlib import import_module
from types import SimpleNamespace

import factory
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import catalog
from analysis.figures import accuracy_per_task, accuracy_vs_flops, flops_breakdown, mask_dynamics, style
from analysis.figures.scene import Scene, nothing

ALL = catalog.figures(factory.default_plan(seeds=1, more=False))


@pytest.fixture(scope="module")
def scene(matrix):
    return Scene(matrix)


@pytest.fixture
def draw(matrix):
    made = []

    def run(name, results=matrix):
        module = import_module(f"analysis.figures.{catalog.module_of(name)}")
        with style.context():
            drawing = module.draw(Scene(results), *catalog.group_of(name))
        if drawing is not None:
            made.append(drawing.figure)
        return drawing

    yield run
    for figure in made:
        style.close(figure)


@pytest.mark.parametrize("name", ALL)
def test_every_figure_is_drawn(draw, name):
    drawing = draw(name)
    assert drawing.caption.endswith(".")
    assert drawing.missing == ()
    assert b"<svg" in style.encode(drawing.figure, ["svg"])["svg"][:1000]
    width, height = drawing.figure.get_size_inches()
    assert width > height  # landscape
    panels = [ax for ax in drawing.figure.axes if ax.axison and ax.get_label() != "<colorbar>"]
    assert any(ax.get_xlabel() for ax in panels)
    assert any(ax.get_ylabel() or ax.get_yticklabels() for ax in panels)


@pytest.mark.parametrize("name", ["sweep_ddr-cutoff", "mask_dynamics"])
def test_files_depend_on_the_data_alone(draw, name):
    first, second = (style.encode(draw(name).figure) for _ in range(2))
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert first["pdf"].startswith(b"%PDF")
    assert b"dc:date" not in first["svg"]
    assert b"CreationDate" not in first["pdf"]


def test_a_method_looks_the_same_everywhere():
    assert style.of("sparcl", "derpp") == style.of("sparcl", "derpp")
    assert style.of("my-new-thing", "er") == style.of("my-new-thing", "er")
    assert style.of("sparcl", "er").color == style.of("sparcl", "derpp").color
    assert style.of("sparcl", "er").hollow != style.of("sparcl", "derpp").hollow


def test_looks_differ_in_grey_by_marker():
    looks = [
        style.of(bundle, "derpp")
        for bundle in ("sparcl", "static", "magnitude", "gmp", "snip", "set", "rigl", "rigl-erk")
    ]
    assert len({look.marker for look in looks}) == len({look.color for look in looks}) == len(looks)


def test_pareto_front():
    points = [(cost, {0: value}) for cost, value in ((1, 50), (2, 60), (3, 55), (4, 70), (2, 58), (5, 70))]
    assert accuracy_vs_flops.pareto(points) == [0, 1, 3]
    assert accuracy_vs_flops.pareto([]) == []


def test_the_front_compares_on_the_seeds_that_two_methods_share():
    """The third's mean is that of its one lucky seed, on which the cheaper second has more. The last shares none."""
    points = [(1, {0: 80, 1: 50}), (2, {0: 90, 1: 70}), (3, {0: 85}), (4, {7: 10})]
    assert accuracy_vs_flops.pareto(points) == [0, 1, 3]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8))
def test_pareto_by_definition(points):
    front = {points[i] for i in accuracy_vs_flops.pareto([(cost, {0: value}) for cost, value in points])}
    expected = {
        p for p in points
        if not any((q[0] <= p[0] and q[1] >= p[1]) and q != p for q in points)
    }  # fmt: skip
    assert front == expected


@given(st.lists(st.floats(0, 100), max_size=10), st.floats(0.5, 5))
def test_spread_keeps_order_and_gap(positions, gap):
    placed = style.spread(positions, gap)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    for a, b in itertools.pairwise(order):
        assert placed[b] - placed[a] >= gap - 1e-6
    if all(b - a >= gap for a, b in itertools.pairwise(sorted(positions))):
        assert placed == pytest.approx(positions)


def test_running_average_by_hand(scene):
    c = scene.find("derpp", 0.0, 50)
    curves = accuracy_per_task.running_average(scene, c)
    matrix = factory.Records(scene.results)[c.paths[1]]["results"]["accuracy"]["class_il"]
    assert curves.shape == (3, 5)
    assert curves[1, 0] == matrix[0][0]
    assert curves[1, 2] == pytest.approx(np.mean(matrix[2][:3]))


def test_line_flops_add_up_to_training(scene):
    for c in scene.sparse:
        assert sum(scene.results.line_flops(c.paths).values()) == pytest.approx(c.mean("flops_executed"))


def test_flops_figure_plots_the_means(draw, scene):
    drawing = draw("accuracy_vs_flops")
    drawn = {
        (round(float(x), 3), round(float(y), 6))
        for ax in drawing.figure.axes
        for line in ax.get_lines()
        for x, y in zip(*line.get_data(), strict=True)
    }
    for c in scene.sparse:
        assert (round(c.mean("flops_executed"), 3), round(c.mean("class_il"), 6)) in drawn
    assert all(ax.get_xscale() == "log" for ax in drawing.figure.axes)


@pytest.mark.parametrize(("reference", "shown"), [("tdm-dgm-derpp", ["tdm-dgm", "static", "tdm"]), ("", ["static"])])
def test_a_matrix_of_parts_shows_them_as_methods(tmp_path, reference, shown):
    """Where the reference is SparCL without a part; beside SparCL itself they have their table alone."""
    methods = ["derpp", *(f"{bundle}-derpp" for bundle in ("static", "tdm", "tdm-dgm"))]
    entries = [factory.entry(factory.cell(method, 0.9 if "-" in method else 0.0, 50, 0)) for method in methods]
    results = factory.collected(factory.write(tmp_path, factory.plan(entries, reference)))
    scene = Scene(results)
    sparse = [f"{bundle}-derpp" for bundle in sorted(shown, key=["static", "tdm", "tdm-dgm"].index)]
    assert scene.bundles == shown
    assert [c.method for c in scene.shown_methods(50)] == ["derpp", *sparse]
    for name, rows in (("sparse_baselines", sparse), ("continual_learning", ["derpp", *filter(None, [reference])])):
        assert [row["method"] for row in factory.rows(factory.table(results, name))] == rows


def test_mask_history_is_placed_in_epochs(tmp_path):
    entry = factory.entry(factory.cell("rigl-derpp", 0.9, 50, 0))
    record = factory.record(entry)
    event = {"density": 0.1, "gradient_density": 0.1, "pruned": 1, "grown": 1, "churn": 0.1}
    record["results"]["masks"]["history"] = [event | {"task": 1, "epoch": 3, "step": 9}]
    file = factory.write(tmp_path, factory.plan([entry]))
    (file.parent / "runs" / entry["path"] / "record.json").write_text(json.dumps(factory.sealed(record)))
    results = factory.collected(file)
    scene = Scene(results)
    # 10 epochs a task, 18 steps of 16 images an epoch (288 images)
    assert mask_dynamics._history(scene, scene.pool[0])[0]["x"] == pytest.approx(10 + 3 + 9 / 18)


def test_density_before_the_first_update():
    events = [{"density": 0.9, "pruned": 7_700, "grown": 0}]
    scene = SimpleNamespace(results=SimpleNamespace(layers=lambda path: (77_000, 7_700)))
    configuration = SimpleNamespace(done=pd.DataFrame({"seed": [0], "path": ["a/seed0"]}))
    assert mask_dynamics._initial_density(scene, configuration, events) == pytest.approx(1.0)
    assert mask_dynamics._initial_density(scene, configuration, []) == pytest.approx(0.1)


def test_lines_of_the_ledger_keep_their_faces():
    few, many = (
        flops_breakdown.shades_of(["replay", "stream"]),
        flops_breakdown.shades_of(["zeta", "replay", "importance", "stream"]),
    )
    assert list(few) == ["stream", "replay"]
    assert all(many[line] == face for line, face in few.items())
    assert len(set(many.values())) == 4


def test_nothing_finished_draws_nothing(tmp_path, draw):
    plan = factory.default_plan(seeds=1, buffers=(50,), more=False)
    results = factory.collected(factory.write(tmp_path, plan, skip=[cell["path"] for cell in plan["cells"]]))
    names = catalog.figures(results.plan.document)
    assert names == ALL
    assert [name for name in names if draw(name, results) is not None] == []
    empty = nothing(Scene(results), "mask_dynamics")
    assert "no finished cells" in empty.caption
    assert len(empty.missing) == len({row.configuration for row in results.frame[results.frame.main].itertuples()})
    style.close(empty.figure)


def test_figures_say_what_they_lack(tmp_path, draw):
    plan = factory.default_plan(seeds=2, buffers=(50,), more=False)
    gone = "split-digits/rigl-derpp/s0.90/b50/seed1"
    results = factory.collected(factory.write(tmp_path, plan, skip=[gone]))
    drawing = draw("accuracy_vs_sparsity", results)
    assert drawing.missing == ("split-digits/rigl-derpp/s0.90/b50: seed 1: not run",)
    texts = [text.get_text() for text in drawing.figure.findobj(lambda item: hasattr(item, "get_text"))]
    assert any("Missing: split-digits/rigl-derpp" in text for text in texts)


def test_the_note_under_a_figure_stays_in_it():
    figure, _ = style.subplots(1, 1, 4.0, 2.0)
    missing = "; ".join(
        f"split-cifar10/method-{n}/s0.90/b500/epochs=10+width=20: seeds 1, 2: not run" for n in range(3)
    )
    style.footnote(figure, f"n = 1 seed\nMissing: {missing}")
    style.encode(figure, ["png"])
    (note,) = [text for text in figure.texts if text.get_text().startswith("n = 1 seed\nMissing: ")]
    assert note.get_window_extent().x1 <= figure.bbox.x1
    assert " ".join(note.get_text().split()) == f"n = 1 seed Missing: {missing}"


@pytest.mark.parametrize(("reference", "name"), [("sparcl-derpp", "SparCL"), ("rigl-derpp", "RigL"), ("derpp", "")])
def test_captions_name_the_method_that_is_brought_forward(tmp_path, draw, reference, name):
    """SparCL is named where it is there, and no other method by its name."""
    sparse = ["rigl-derpp", "set-derpp", *(["sparcl-derpp"] if name == "SparCL" else [])]
    cells = [("derpp", 0.0), *((method, level) for method in sparse for level in (0.75, 0.9))]
    items = [factory.entry(factory.cell(method, level, 50)) for method, level in cells]
    results = factory.collected(factory.write(tmp_path, factory.plan(items, reference=reference)))
    drawn = {one: draw(one, results).caption for one in catalog.figures(results.plan.document) if "counted" not in one}
    named = ("accuracy_vs_flops", "accuracy_vs_sparsity", "accuracy_per_task", "accuracy_matrices")
    for one in named:
        assert ("SparCL" in drawn[one]) == (name == "SparCL"), one
        assert not name or name in drawn[one], one
    assert ("written beside" in drawn["accuracy_vs_flops"]) == bool(name)
    assert not [one for one in drawn if one not in named and "SparCL" in drawn[one]]


def test_lines_of_the_ledger_have_no_methods_color():
    methods = {color for color, _ in style.BUNDLES.values()}
    assert not methods & {face for face, _ in flops_breakdown.SHADES.values()}


def test_the_dense_learner_is_drawn_as_the_legend_says(draw):
    """Its marker is in the legend, and no other method's."""
    drawing = draw("accuracy_vs_flops")
    handles = {text.get_text(): handle for text, handle in zip(
        drawing.figure.legends[0].get_texts(), drawing.figure.legends[0].legend_handles, strict=True
    )}  # fmt: skip
    marker = handles["dense learner"].get_marker()
    assert marker not in {m for _, m in style.BUNDLES.values()}
    assert {style.of("", learner).marker for learner in ("er", "derpp")} == {marker}
    for ax in drawing.figure.axes:
        drawn = [line for line in ax.get_lines() if line.get_marker() == marker]
        assert len(drawn) == 1


def test_churn_is_not_joined_across_tasks(draw):
    churn = draw("mask_dynamics").figure.axes[2]
    boundaries = [line.get_xdata()[0] for line in churn.get_lines() if line.get_gid() == mask_dynamics.BOUNDARY]
    for line in churn.get_lines():
        if line.get_gid() != mask_dynamics.BOUNDARY:
            x = np.asarray(line.get_xdata(), dtype=float)
            assert not any(x.min() < boundary < x.max() for boundary in boundaries)


@pytest.mark.parametrize("name", ["accuracy_per_task", "accuracy_vs_sparsity"])
def test_no_mean_is_off_the_axis(draw, name):
    for ax in draw(name).figure.axes:
        low, high = ax.get_ylim()
        for line in ax.get_lines():
            values = np.asarray(line.get_ydata(), dtype=float)
            assert low <= values.min(), name
            assert values.max() <= high, name


@pytest.fixture
def small(tmp_path):
    """A matrix of some methods at one sparsity, with their dense learners."""

    def run(methods, sparsity, reference):
        learners = dict.fromkeys(method.rpartition("-")[2] for method in methods)
        cells = [*((learner, 0.0) for learner in learners), *((method, sparsity) for method in methods)]
        items = [factory.entry(factory.cell(*cell, 50)) for cell in cells]
        return factory.collected(factory.write(tmp_path, factory.plan(items, reference=reference)))

    return run


@pytest.mark.parametrize("name", ["accuracy_vs_flops", "accuracy_vs_sparsity"])
def test_a_dense_learner_of_another_protocol_is_not_the_one_to_compare_with(draw, tmp_path, name):
    other = {"protocol.single_head": False}
    items = [factory.entry(factory.cell(method, sparsity, 50, seed, other if method == "derpp" else None),
                           variant=other if method == "derpp" else None)
             for method, sparsity in (("derpp", 0.0), ("sparcl-derpp", 0.75), ("sparcl-derpp", 0.9))
             for seed in range(2)]  # fmt: skip
    results = factory.collected(factory.write(tmp_path, factory.plan(items)))
    drawing = draw(name, results)
    lines = drawing.figure.axes[0].get_lines()
    assert not [line for line in lines if line.get_marker() == "*" or line.get_linestyle() == ":"]
    assert "different protocols" not in drawing.caption  # it is not drawn at all
    assert any("DER++ (protocol.single_head false)" in note for note in factory.table(results, "primary").notes)


def test_methods_of_different_protocols_are_named(draw, tmp_path):
    items = [factory.entry(factory.cell(method, 0.0, 50, epochs=epochs), variant=variant)
             for method, epochs, variant in (("derpp", 10, {}), ("er", 20, {"epochs": 20}))]  # fmt: skip
    results = factory.collected(factory.write(tmp_path, factory.plan(items, reference="derpp")))
    drawing = draw("forgetting_bars", results)
    assert "under different protocols: DER++ (the stream's protocol); ER (epochs 20)." in drawing.caption


@pytest.mark.parametrize("sparsity", [0.25, 0.75, 0.9, 0.97])
def test_the_level_has_a_tick(draw, small, sparsity):
    density = draw("mask_dynamics", small(["static-derpp", "rigl-derpp"], sparsity, "static-derpp")).figure.axes[0]
    low, high = density.get_ylim()
    ticks = [tick for tick in density.get_yticks() if low <= tick <= high]
    assert min(abs(tick - (1 - sparsity)) for tick in ticks) < 1e-6
    assert all(np.log(b / a) > 0.05 * np.log(high / low) for a, b in itertools.pairwise(ticks))


def test_masks_are_the_references_learners(draw, small):
    methods = ["sparcl-derpp", "rigl-derpp", "sparcl-er", "rigl-er"]
    drawing = draw("mask_dynamics", small(methods, 0.75, "sparcl-derpp"))
    assert drawing.title == "Masks over time, DER++, sparsity 0.75, buffer 50"


@pytest.mark.parametrize("learner", ["der", "agem", "my-learner"])
def test_another_learner_has_a_look_of_its_own(learner):
    looks = [style.of("sparcl", other) for other in ("er", "derpp", learner)]
    assert {(look.color, look.marker) for look in looks} == {(looks[0].color, looks[0].marker)}
    assert len({str(look.marks) for look in looks}) == len({look.line for look in looks}) == 3


def test_the_legend_has_what_is_drawn_of_another_learner(draw, small):
    methods = [f"{bundle}-{learner}" for learner in ("er", "derpp", "agem") for bundle in ("sparcl", "rigl")]
    results = small(methods, 0.75, "sparcl-derpp")
    drawing = draw("accuracy_vs_flops", results)
    legend = drawing.figure.legends[0]
    handles = dict(zip([text.get_text() for text in legend.get_texts()], legend.legend_handles, strict=True))
    assert list(handles)[2:5] == ["on ER", "on DER++", "on A-GEM"]
    assert len({(handle.get_fillstyle(), handle.get_markerfacecolor()) for handle in list(handles.values())[2:5]}) == 3
    dense = [[line for line in ax.get_lines() if line.get_marker() == "*"] for ax in drawing.figure.axes]
    assert [len(lines) for lines in dense] == [1, 1, 1]
    assert {line.get_color() for (line,) in dense} == {handles["dense learner"].get_color()}


def test_bundles_are_filled_in_the_legend_as_on_the_only_learner(draw, small):
    legend = draw("accuracy_vs_flops", small(["sparcl-er", "rigl-er"], 0.75, "sparcl-er")).figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["SparCL", "RigL", "dense learner", "Pareto front"]
    assert {handle.get_markerfacecolor() for handle in legend.legend_handles[:3]} == {"white"}
