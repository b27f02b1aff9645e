"""Average accuracy after each task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis.configurations import Configuration
from analysis.figures import style
from analysis.figures.scene import BAND, BAND_MIN_N, LEADER, Drawing, Scene, finish, level_label, protocols
from analysis.figures.style import GREY
from analysis.statistics import summarize


def running_average(scene: Scene, c: Configuration, kind: str = "class_il") -> np.ndarray:
    """Average accuracy over the tasks seen so far, after each task; ``(seeds, tasks)``, percent, nan where unknown."""
    matrices = scene.results.matrices(c.paths, kind)
    return np.array([[float(np.mean(matrix[t, : t + 1])) for t in range(len(matrix))] for matrix in matrices])


def draw(scene: Scene) -> Drawing | None:
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
    title = "Average accuracy after each task" + (f" (sparse methods at {scene.focus:.2f})" if scene.sparse else "")
    banded = " and of ".join(filter(None, (scene.highlighted, "the dense learner")))
    band = f"; band (3 or more seeds): 95 % t-interval of {banded}" if scene.learners else ""
    return finish(
        scene,
        title,
        f"Class-IL accuracy averaged over the tasks seen so far, after training each of them{band}.{level}"
        f"{protocols(drawn)}",
        figure,
        [*drawn, *scene.unfinished(*scene.buffers)],
    )


def _task_curve(ax: Axes, scene: Scene, c: Configuration, curves: np.ndarray) -> tuple[float, str, str]:
    sums = [summarize(list(column)) for column in curves.T]
    x = np.arange(1, len(sums) + 1)
    means = [s.mean for s in sums]
    reference = c.bundle == scene.highlight
    context = not c.bundle and c.learner not in scene.learners
    marks = scene.look(c).marks
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
    name = scene.results.plan.bundles[c.bundle] if c.bundle else level_label(c)
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
