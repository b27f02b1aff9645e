"""The figures that compare methods: accuracy against cost and sparsity, over tasks, by task, forgetting, FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import dynamics, style
from analysis.frames import Results
from analysis.scene import Drawing, Scene, look, missing_of, missing_text, seeds_text, summary
from analysis.statistics import summarize
from analysis.style import BLACK, GREY, LIGHT
from analysis.tables import Configuration
from analysis.typeset import scientific

BAND, BAND_MIN_N = 0.16, 3
REACH = 9.0
"""Points of an interval, on either side of a mean, that the limits of an axis make room for."""
LEADER = {"arrowstyle": "-", "color": LIGHT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}


def _finish(scene: Scene, name: str, title: str, caption: str, figure, chosen: Iterable[Configuration]) -> Drawing:
    chosen = list({c.key: c for c in chosen}.values())
    missing = missing_of(chosen)
    figure.suptitle(f"{title} on {scene.label}", fontsize=10.5, fontweight="bold", x=0.01, ha="left")
    style.footnote(figure, f"{seeds_text(chosen)}{missing_text(missing)}")
    return Drawing(name, title, f"{caption} {scene.label}, {seeds_text(chosen)}.", figure, missing)


def _errors(s) -> np.ndarray | None:
    """Distances from the mean to the ends of its 95 % interval, for ``errorbar``."""
    return None if math.isnan(s.ci_low) else np.array([[s.mean - s.ci_low], [s.ci_high - s.mean]])


def _legend(figure, scene: Scene, handles: Sequence[Artist] = (), **options) -> None:
    """One legend for the bundles (color, marker), to the right of the axes."""
    entries = [
        Line2D([], [], label=scene.bundle_label(bundle), linewidth=1.4, **style.of(bundle, "derpp").marks)
        for bundle in scene.bundles
    ]
    figure.legend(handles=[*entries, *handles], loc="outside right upper", handlelength=2.6, **options)


# -- accuracy against FLOPs
def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in cost (less) and accuracy (more), by rising cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front, best = [], -math.inf
    for index in order:
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front


def accuracy_vs_flops(scene: Scene) -> Drawing | None:
    """Class-IL against executed training FLOPs, with the Pareto front."""
    if not any(c.n for c in scene.sparse):
        return None
    rows, columns = scene.learners, scene.buffers
    figure, axes = style.subplots(len(rows), len(columns), 3.6 * len(columns) + 2.0, 2.7 * len(rows) + 0.9, sharex=True)
    drawn: list[Configuration] = []
    for i, learner in enumerate(rows):
        for j, buffer in enumerate(columns):
            panel = _flops_panel(axes[i][j], scene, learner, buffer)
            _limit(axes[i][j], [summary(c, "class_il") for c in panel if c.learner == learner])
            _others(axes[i][j], [c for c in panel if c.learner not in rows])
            drawn += panel
            axes[i][j].set_title(f"{scene.learner_label(learner)}, buffer {buffer}")
            if i == len(rows) - 1:
                axes[i][j].set_xlabel("Training FLOPs, executed ledger (log)")
        axes[i][0].set_ylabel("Class-IL accuracy (%)")
    for ax in [ax for row in axes for ax in row]:
        style.log_ticks(ax)
    _legend(
        figure,
        scene,
        [
            Line2D([], [], label="dense learner", linestyle="none", marker="*", markersize=9, color=BLACK),
            Line2D([], [], label="other method", linestyle="none", marker="x", color=GREY),
            Line2D([], [], label="Pareto front", color=LIGHT, linewidth=4),
        ],
    )
    return _finish(
        scene,
        "accuracy_vs_flops",
        "Accuracy against training FLOPs",
        "Final Class-IL accuracy (mean, 95 % t-interval) against the training FLOPs that the runs "
        "executed. A line joins one method's sparsity levels, written beside SparCL's; the wide grey line "
        "is the Pareto front of the panel, which may lead off it. Methods off the axis are named with their "
        "accuracy; a number beside one is its sparsity.",
        figure,
        drawn,
    )


def _flops_panel(ax: Axes, scene: Scene, learner: str, buffer: int) -> list[Configuration]:
    ax.set_xscale("log")
    ax.margins(x=0.2)
    drawn: list[Configuration] = []
    for bundle in scene.bundles:
        line = [c for c in scene.sparse if (c.bundle, c.learner, c.buffer) == (bundle, learner, buffer)]
        drawn += line
        line = sorted((c for c in line if c.n), key=lambda c: c.mean("flops_executed"))
        if not line:
            continue
        front = bundle == scene.highlight
        marks = look(line[0]).marks
        x = [c.mean("flops_executed") for c in line]
        ax.plot(
            x,
            [c.mean("class_il") for c in line],
            linewidth=1.6 if front else 0.9,
            markersize=6 if front else 5,
            alpha=1 if front else 0.9,
            zorder=5 if front else 3,
            **marks,
        )
        for c, at in zip(line, x, strict=True):
            s = summary(c, "class_il")
            ax.errorbar(at, s.mean, yerr=_errors(s), color=marks["color"], linewidth=0.7, alpha=0.55, zorder=2)
            if front:
                ax.annotate(
                    f"{c.sparsity:.2f}",
                    (at, s.mean),
                    xytext=(-4, 7),
                    textcoords="offset points",
                    fontsize=7,
                    color=marks["color"],
                    ha="right",
                    zorder=8,
                    path_effects=style.halo(),
                )
    dense = scene.find(learner, 0.0, buffer)
    if dense is not None:
        s = summary(dense, "class_il")
        ax.errorbar(
            dense.mean("flops_executed"),
            s.mean,
            yerr=_errors(s),
            linewidth=0.8,
            markersize=10,
            zorder=4,
            **look(dense).marks,
        )
        ax.annotate(
            dense.label,
            (dense.mean("flops_executed"), s.mean),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=7.5,
            zorder=8,
            path_effects=style.halo(),
        )
        drawn.append(dense)
    others = [
        c
        for c in scene.pool
        if not c.bundle
        and c.buffer in (0, buffer)
        and c.learner not in scene.learners
        and not c.setting
        and not c.task_il_only
    ]
    compared = [c for c in [*drawn, *others] if c.n and c.method != "joint"]
    points = [(c.mean("flops_executed"), c.mean("class_il")) for c in compared]
    frontier = pareto(points)
    ax.plot(
        [points[i][0] for i in frontier],
        [points[i][1] for i in frontier],
        color=LIGHT,
        linewidth=5,
        zorder=1,
        solid_capstyle="round",
        alpha=0.55,
    )
    return drawn + others


def _limit(ax: Axes, summaries: Sequence) -> None:
    """Y limits that show the methods in question with their intervals, not what lies far below."""
    ends = [
        (s.mean, s.mean) if math.isnan(s.ci_low) else (max(s.ci_low, s.mean - REACH), min(s.ci_high, s.mean + REACH))
        for s in summaries
        if s.n
    ]
    if ends:
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
        pad = max(0.05 * (high - low), 0.5)
        ax.set_ylim(max(0, low - pad), min(103, high + 1.6 * pad))


def _others(ax: Axes, others: Sequence[Configuration]) -> None:
    """Grey, directly labeled points of methods with no sparse version; those off the axis in a text below."""
    low, high = ax.get_ylim()
    gap = (high - low) * 0.055
    below: list[Configuration] = []
    inside: list[Configuration] = []
    for c in sorted({c.key: c for c in others if c.n}.values(), key=lambda c: c.mean("class_il")):
        value = c.mean("class_il")
        if math.isnan(value):
            continue
        (inside if low + gap <= value <= high - gap else below).append(c)
    if below:
        ax.set_ylim(low - 1.6 * gap, high)  # room for their text
    places = style.spread([c.mean("class_il") for c in inside], gap, low + gap, high - gap)
    for c, place in zip(inside, places, strict=True):
        x = c.mean("flops_executed")
        ax.plot(
            x,
            c.mean("class_il"),
            linestyle="none",
            markersize=5,
            zorder=2,
            **_grey(c),
        )
        ax.annotate(
            _level_label(c),
            (x, c.mean("class_il")),
            xytext=(1.03, place),
            textcoords=("axes fraction", "data"),
            fontsize=6.8,
            color=GREY,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops=LEADER,
        )
    if below:
        text = "off the axis: " + ", ".join(f"{_level_label(c)}\u00a0{c.mean('class_il'):.0f}" for c in below)
        ax.text(
            0.99,
            0.02,
            _wrapped(text, 50),
            transform=ax.transAxes,
            fontsize=6.3,
            color=GREY,
            ha="right",
            va="bottom",
            zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )


def _grey(c: Configuration) -> dict[str, Any]:
    marker = look(c).marker
    return {"marker": marker, "color": GREY, "markeredgecolor": GREY, "markerfacecolor": "white"}


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


# -- accuracy against sparsity
def accuracy_vs_sparsity(scene: Scene) -> Drawing | None:
    """Class-IL against sparsity, with 95 % bands."""
    levels = sorted({c.sparsity for c in scene.sparse if c.n})
    if len(levels) < 2:
        return None
    rows, columns = scene.learners, scene.buffers
    figure, axes = style.subplots(
        len(rows), len(columns), 3.6 * len(columns) + 1.6, 2.7 * len(rows) + 0.9, sharex=True, sharey="col"
    )
    drawn: list[Configuration] = []
    for i, learner in enumerate(rows):
        for j, buffer in enumerate(columns):
            drawn += _sparsity_panel(axes[i][j], scene, learner, buffer, levels)
            axes[i][j].set_title(f"{scene.learner_label(learner)}, buffer {buffer}")
            if i == len(rows) - 1:
                axes[i][j].set_xlabel("Sparsity of the masked layers (levels evenly spaced)")
        axes[i][0].set_ylabel("Class-IL accuracy (%)")
    bands = [
        Line2D([], [], label="dense learner", color=BLACK, linestyle=":"),
        Patch(label="95 % interval, sparse", facecolor=GREY, alpha=2 * BAND),
        Patch(label="95 % interval, dense", facecolor="white", edgecolor=LIGHT, hatch="////", linewidth=0),
    ]
    _legend(figure, scene, bands)
    return _finish(
        scene,
        "accuracy_vs_sparsity",
        "Accuracy against sparsity",
        "Final Class-IL accuracy against the sparsity of the masked layers: mean over seeds; the shaded "
        "band is the 95 % t-interval (3 or more seeds) of SparCL and of the baseline that is best on "
        "average in the panel, other methods have it as bars. Dotted: the dense learner with its interval.",
        figure,
        drawn,
    )


def _sparsity_panel(ax: Axes, scene: Scene, learner: str, buffer: int, levels: Sequence[float]) -> list[Configuration]:
    drawn: list[Configuration] = []
    positions = {level: index for index, level in enumerate(levels)}
    lines = {}
    for bundle in scene.bundles:
        line = [c for c in scene.sparse if (c.bundle, c.learner, c.buffer) == (bundle, learner, buffer)]
        drawn += line
        if done := sorted((c for c in line if c.n), key=lambda c: c.sparsity):
            lines[bundle] = done
    rivals = sorted((b for b in lines if b != scene.highlight), key=lambda b: -_average(lines[b]))
    banded = {scene.highlight, *rivals[:1]}
    for rank, (bundle, line) in enumerate(lines.items()):
        sums = [summary(c, "class_il") for c in line]
        shift = 0.0 if bundle in banded else 0.035 * (rank - len(lines) / 2)
        x = [positions[c.sparsity] + shift for c in line]
        marks = look(line[0]).marks
        front = bundle == scene.highlight
        ax.plot(
            x,
            [s.mean for s in sums],
            linewidth=2 if front else 1.1,
            markersize=6 if front else 4.5,
            zorder=5 if front else 3,
            **marks,
        )
        if bundle in banded and not any(s.n < BAND_MIN_N for s in sums):
            ax.fill_between(
                x,
                [s.ci_low for s in sums],
                [s.ci_high for s in sums],
                color=marks["color"],
                alpha=BAND,
                linewidth=0,
                zorder=1,
            )
        else:
            for at, s in zip(x, sums, strict=True):
                ax.errorbar(at, s.mean, yerr=_errors(s), color=marks["color"], linewidth=0.7, alpha=0.6, zorder=2)
    dense = scene.find(learner, 0.0, buffer)
    if dense is not None:
        s = summary(dense, "class_il")
        ax.axhline(s.mean, color=BLACK, linestyle=":", linewidth=1.2, zorder=2)
        if not math.isnan(s.ci_low):
            ax.axhspan(s.ci_low, s.ci_high, facecolor="none", edgecolor="#E0E0E0", hatch="////", linewidth=0, zorder=0)
        drawn.append(dense)
    ax.set_xticks(range(len(levels)), [f"{level:.2f}" for level in levels])
    if names := [scene.bundle_label(bundle) for bundle in lines if bundle in banded]:
        ax.annotate(
            f"bands: {', '.join(names)}",
            (0.02, 0.02),
            xycoords="axes fraction",
            fontsize=6.8,
            color=GREY,
            zorder=8,
            path_effects=style.halo(),
        )
    return drawn


def _average(line: Sequence[Configuration]) -> float:
    return float(np.nanmean([c.mean("class_il") for c in line]))


# -- average accuracy after each task
def running_average(scene: Scene, c: Configuration, kind: str = "class_il") -> np.ndarray:
    """Average accuracy over the tasks seen so far, after each task; ``(seeds, tasks)``, percent, nan where unknown."""
    curves = []
    for path in c.done.path:
        matrix = scene.results.records[path]["results"]["accuracy"][kind]
        curve = [
            float("nan") if any(v is None for v in row[: t + 1]) else float(np.mean(row[: t + 1]))
            for t, row in enumerate(matrix)
        ]
        curves.append(curve)
    return np.array(curves)


def accuracy_per_task(scene: Scene) -> Drawing | None:
    """Average Class-IL accuracy over the tasks seen, after each task."""
    learners = scene.learners or [""]
    panels = [(learner, buffer) for learner in learners for buffer in scene.buffers]
    columns = len(scene.buffers)
    figure, axes = style.subplots(
        len(learners), columns, 4.6 * columns + 0.4, 3.3 * len(learners) + 0.9, sharex=True, sharey=True
    )
    drawn: list[Configuration] = []
    for number, (learner, buffer) in enumerate(panels):
        ax = axes[number // columns][number % columns]
        shown = [
            c
            for c in scene.shown_methods(buffer)
            if not c.task_il_only
            and c.method != "joint"
            and (c.learner == learner or (not c.bundle and c.learner not in learners))
        ]
        labels = []
        for c in shown:
            curves = running_average(scene, c)
            if np.isnan(curves).any():
                continue
            drawn.append(c)
            labels.append((c, *_task_curve(ax, scene, c, curves)))
        _end_labels(ax, labels)
        ax.set_title(f"{scene.learner_label(learner)}, buffer {buffer}" if learner else f"buffer {buffer}")
        if number // columns == len(learners) - 1:
            ax.set_xlabel("After training task")
        if number % columns == 0:
            ax.set_ylabel("Average Class-IL accuracy\nover tasks seen (%)")
    if not drawn:
        style.close(figure)
        return None
    tasks = running_average(scene, drawn[0]).shape[1]
    for row in axes:
        for ax in row:
            ax.set_xticks(range(1, tasks + 1))
            ax.set_xlim(0.8, tasks + 0.15)
    level = f" Sparse methods at {scene.focus:.2f}." if scene.sparse else ""
    title = f"Average accuracy after each task, sparse methods at {scene.focus:.2f}," if scene.sparse else ""
    return _finish(
        scene,
        "accuracy_per_task",
        title or "Average accuracy after each task",
        "Class-IL accuracy averaged over the tasks seen so far, after training each of them; band (3 or "
        f"more seeds): 95 % t-interval of SparCL and of the dense learner.{level}",
        figure,
        drawn,
    )


def _task_curve(ax: Axes, scene: Scene, c: Configuration, curves: np.ndarray) -> tuple[float, str, str]:
    sums = [summarize(list(column)) for column in curves.T]
    x = np.arange(1, len(sums) + 1)
    means = [s.mean for s in sums]
    reference = c.bundle == scene.highlight
    context = not c.bundle and c.learner not in scene.learners
    marks = look(c).marks
    color = GREY if context else marks["color"]
    ax.plot(
        x,
        means,
        linewidth=2 if reference else 0.9 if context else 1.2,
        markersize=5 if reference else 3.5,
        zorder=5 if reference else 1 if context else 3,
        alpha=0.75 if context else 1,
        **(marks | {"color": color, "markeredgecolor": color}),
    )
    if (reference or (not c.bundle and not context)) and not any(s.n < BAND_MIN_N for s in sums):
        ax.fill_between(x, [s.ci_low for s in sums], [s.ci_high for s in sums], color=color, alpha=BAND, linewidth=0)
    name = scene.bundle_label(c.bundle) if c.bundle else _level_label(c)
    return means[-1], f"{name}", color


def _end_labels(ax: Axes, labels: Sequence[tuple]) -> None:
    """Names at the right end of the lines, moved apart."""
    if not labels:
        return
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()]
    low = max(0.0, 10 * math.floor(min(float(curve.min()) for curve in curves) / 10 - 0.5))
    if not ax.get_autoscaley_on():  # another panel, on the same scale, has set it
        low = min(low, ax.get_ylim()[0])
    ax.set_ylim(low, 102)
    span = 102 - low
    last = max(float(np.max(line.get_xdata())) for line in ax.get_lines())
    places = style.spread([value for _, value, _, _ in labels], span * 0.047, low + 0.02 * span, 101)
    for (c, value, name, color), place in zip(labels, places, strict=True):
        ax.annotate(
            name,
            (last, value),
            xytext=(1.03, place),
            textcoords=("axes fraction", "data"),
            fontsize=6.8,
            color=color,
            va="center",
            annotation_clip=False,
            fontweight="bold" if c.family == "sparcl" else "normal",
            arrowprops=LEADER,
        )


# -- accuracy matrices
def accuracy_matrices(scene: Scene) -> Drawing | None:
    """Heat maps of accuracy by training task and test task: one row per learner."""
    buffer = scene.buffers[-1]
    grid = _matrix_methods(scene, buffer)
    columns = max(map(len, grid), default=0)
    if not columns:
        return None
    figure, axes = style.subplots(len(grid), columns, 2.1 * columns + 0.9, 2.45 * len(grid) + 0.7, layout="compressed")
    image = None
    for i, row in enumerate(grid):
        for j in range(columns):
            ax = axes[i][j]
            ax.grid(False)
            if j >= len(row):
                ax.axis("off")
                continue
            c = row[j]
            image = _heat_map(ax, scene, c)
            ax.set_title(f"{c.label}, {c.sparsity:.2f}" if c.sparsity else c.label, fontsize=8.5)
            ax.set_xlabel("Tested on task" if i == len(grid) - 1 else "")
            ax.set_ylabel("After training task" if j == 0 else "")
    panels = [ax for row in axes for ax in row]
    assert image is not None
    figure.colorbar(image, ax=panels, shrink=0.7, label="Class-IL accuracy (%)", pad=0.01)
    return _finish(
        scene,
        "accuracy_matrices",
        f"Accuracy matrices with a buffer of {buffer}",
        "Class-IL accuracy on each task's test images (columns) after training each task (rows), mean over"
        " seeds: the dense method, SparCL and the two sparse-training baselines with the best mean; a "
        "number beside a method is its sparsity. Forgetting shows as a column that darkens downwards. "
        "Joint training is tested once, after all tasks.",
        figure,
        [c for row in grid for c in row],
    )


def _matrix_methods(scene: Scene, buffer: int) -> list[list[Configuration]]:
    """A bound, the dense learner, SparCL and the two best baselines, per learner; without sparse methods, all."""
    bounds = [scene.find("finetune", 0.0, 0), scene.find("joint", 0.0, 0)]
    if not scene.learners:
        dense = [c for c in scene.shown_methods(buffer) if not c.task_il_only]
        return [dense[start : start + 5] for start in range(0, min(len(dense), 15), 5)]
    grid = []
    for number, learner in enumerate(scene.learners):
        level = [
            c
            for c in scene.sparse
            if c.learner == learner and c.buffer == buffer and c.n and abs(c.sparsity - scene.focus) < 1e-9
        ]
        ours = [c for c in level if c.bundle == scene.highlight]
        others = sorted((c for c in level if c not in ours), key=lambda c: -c.mean("class_il"))
        row = [bounds[number] if number < 2 else None, scene.find(learner, 0.0, buffer), *ours[:1], *others[:2]]
        grid.append([c for c in row if c is not None])
    return grid


def _heat_map(ax: Axes, scene: Scene, c: Configuration):
    matrices = [scene.results.records[path]["results"]["accuracy"]["class_il"] for path in c.done.path]
    values = np.array([[[np.nan if v is None else v for v in row] for row in matrix] for matrix in matrices])
    mean = values.mean(axis=0)
    tasks = len(mean)
    mean = np.where(np.tril(np.ones((tasks, tasks), bool)), mean, np.nan)
    image = ax.imshow(mean, cmap="cividis", vmin=0, vmax=100, aspect="equal")
    for t in range(tasks):
        for k in range(t + 1):
            if not np.isnan(mean[t, k]):
                ax.text(
                    k,
                    t,
                    f"{mean[t, k]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5 if tasks <= 6 else 5,
                    color="white" if mean[t, k] < 55 else "black",
                )
    ax.set_xticks(range(tasks), [str(task + 1) for task in range(tasks)])
    ax.set_yticks(range(tasks), [str(task + 1) for task in range(tasks)])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


# -- bars
def forgetting_bars(scene: Scene) -> Drawing | None:
    """Forgetting of each method, one panel per buffer."""
    return _bars(
        scene,
        "forgetting_bars",
        "Forgetting",
        "forgetting_class_il",
        "Forgetting, Class-IL (points; less is better)",
        "Forgetting (Chaudhry et al. 2018: mean drop from a task's best earlier Class-IL accuracy to its "
        "final one), mean and 95 % t-interval; sparse methods at {focus}.",
    )


def _bars(scene: Scene, name: str, title: str, metric: str, axis: str, caption: str) -> Drawing | None:
    panels = [
        [c for c in scene.shown_methods(buffer) if not c.task_il_only and not math.isnan(c.mean(metric))]
        for buffer in scene.buffers
    ]
    if not any(panels):
        return None
    tallest = max(map(len, panels))
    figure, axes = style.subplots(1, len(panels), 4.4 * len(panels) + 0.5, 0.19 * tallest + 1.5, sharex=True)
    for ax, buffer, shown in zip(axes[0], scene.buffers, panels, strict=True):
        shown = sorted(shown, key=lambda c: -c.mean(metric))
        for place, c in enumerate(shown):
            s, face = summary(c, metric), look(c)
            ours = c.bundle == scene.highlight
            ax.barh(
                place,
                s.mean,
                height=0.72,
                color=face.color if c.bundle else GREY if c.learner not in scene.learners else BLACK,
                alpha=1 if ours else 0.8,
                hatch="//" if face.hollow else None,
                edgecolor="white",
                linewidth=0.4,
            )
            ax.errorbar(s.mean, place, xerr=_errors(s), color="#333333", linewidth=0.8, capsize=1.5,
                        path_effects=style.halo())  # fmt: skip
            end = s.mean if math.isnan(s.ci_high) else s.ci_high
            ax.annotate(
                f"{s.mean:.1f}",
                (end, place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
        ax.set_yticks(range(len(shown)), [_level_label(c) for c in shown])
        ax.tick_params(axis="y", labelsize=6.8, length=0)
        for tick, c in zip(ax.get_yticklabels(), shown, strict=True):
            if c.bundle == scene.highlight:
                tick.set_fontweight("bold")
        ax.set_ylim(-0.6, len(shown) - 0.4)
        ax.grid(False, axis="y")
        ax.set_title(f"buffer {buffer}")
        ax.set_xlabel(axis)
    focus = f"{scene.focus:.2f}"
    drawn = [c for panel in panels for c in panel]
    return _finish(scene, name, title, caption.format(focus=focus), figure, drawn)


def _level_label(c: Configuration) -> str:
    return f"{c.label} {c.sparsity:.2f}" if c.sparsity else c.label


def flops_breakdown(scene: Scene) -> Drawing | None:
    """What the executed FLOPs were spent on."""
    buffer = scene.buffers[-1]
    shown = sorted(scene.shown_methods(buffer), key=lambda c: c.mean("flops_executed"))
    if not shown:
        return None
    spent = [dynamics.line_flops(scene, c) for c in shown]
    power = math.floor(math.log10(max(sum(parts.values()) for parts in spent)))
    shades = dynamics.shades([line for parts in spent for line in parts])
    lines = list(shades)
    figure, axes = style.subplots(1, 2, 10.5, 0.19 * len(shown) + 1.7, gridspec_kw={"width_ratios": [3, 2]})
    for ax, relative in zip(axes[0], (False, True), strict=True):
        for place, parts in enumerate(spent):
            left, total = 0.0, sum(parts.values())
            for line in lines:
                width = parts.get(line, 0.0) / (total / 100 if relative else 10**power)
                face, hatch = shades[line]
                ax.barh(
                    place,
                    width,
                    left=left,
                    height=0.72,
                    color=face,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0.3,
                )
                left += width
            if not relative:
                ax.annotate(
                    scientific(total),
                    (left, place),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6.3,
                )
        ax.set_ylim(-0.6, len(shown) - 0.4)
        ax.grid(False, axis="y")
        ax.set_yticks(range(len(shown)), [_level_label(c) for c in shown] if not relative else [])
        ax.tick_params(axis="y", labelsize=6.8, length=0)
        ax.set_xlabel(
            "Share of training FLOPs (%)" if relative else f"Training FLOPs, executed ledger ($10^{{{power}}}$)"
        )
    axes[0][1].set_xlim(0, 100)
    handles = [
        axes[0][0].barh(
            0,
            0,
            color=shades[line][0],
            hatch=shades[line][1],
            edgecolor="white",
            label=line.replace("_", " "),
        )
        for line in lines
    ]
    figure.legend(handles=handles, loc="outside right upper")
    return _finish(
        scene,
        "flops_breakdown",
        f"What training FLOPs are spent on, buffer {buffer}",
        "Executed training FLOPs by purpose, mean over seeds: absolute (left) and as a share (right). One "
        f"multiply-add is 2 FLOPs; evaluation is not training. LightCL's replay is that of the images it holds. Sparse "
        f"methods at {scene.focus:.2f}.",
        figure,
        shown,
    )


FIGURES: dict[str, Callable[[Scene], Drawing | None]] = {
    "accuracy_vs_flops": accuracy_vs_flops,
    "accuracy_vs_sparsity": accuracy_vs_sparsity,
    "accuracy_per_task": accuracy_per_task,
    "accuracy_matrices": accuracy_matrices,
    "forgetting_bars": forgetting_bars,
    "ddr_proportion": dynamics.ddr_proportion,
    "ddr_cutoff": dynamics.ddr_cutoff,
    "dgm_sparsity": dynamics.dgm_sparsity,
    "mask_dynamics": dynamics.mask_dynamics,
    "flops_breakdown": flops_breakdown,
}


def names(results: Results) -> list[str]:
    """Every figure's name for this plan; a plan of several streams has each figure once per stream."""
    streams = list(dict.fromkeys(results.frame.stream))
    return list(FIGURES) if len(streams) == 1 else [f"{name}-{stream}" for name in FIGURES for stream in streams]


def draw(results: Results, name: str) -> Drawing | None:
    """Draw one figure; None where the plan has no cells for it or none of them is done."""
    streams = list(dict.fromkeys(results.frame.stream))
    for stream in streams:
        base = name if len(streams) == 1 else name.removesuffix(f"-{stream}")
        if base in FIGURES and (len(streams) == 1 or base != name):
            with style.context():
                drawing = FIGURES[base](Scene(results, stream))
            if drawing is None:
                return None
            return Drawing(name, drawing.title, drawing.caption, drawing.figure, drawing.missing)
    raise KeyError(name)
