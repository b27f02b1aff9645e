"""Accuracy against executed training FLOPs, with the Pareto front."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.configurations import Configuration
from analysis.figures import style
from analysis.figures.scene import LEADER, Drawing, Scene, errors, finish, legend, level_label, look, protocols, summary
from analysis.figures.style import GREY, LIGHT

REACH = 9.0
"""Points of an interval, on either side of a mean, that the limits of an axis make room for."""


def pareto(points: Sequence[tuple[float, Mapping[int, float]]]) -> list[int]:
    """Indices of the points that no other beats in cost (less) and accuracy (more), by rising cost.

    A point is a cost and accuracies by seed; two points are compared by the means over the seeds that they share.
    """

    def beats(one: int, other: int) -> bool:
        (cost, here), (least, there) = points[one], points[other]
        shared = here.keys() & there.keys()
        gap = sum(here[seed] - there[seed] for seed in sorted(shared))
        return bool(shared) and ((cost <= least and gap > 0) or (cost < least and gap == 0))

    indices = range(len(points))
    return sorted((i for i in indices if not any(beats(j, i) for j in indices)), key=lambda i: points[i][0])


def draw(scene: Scene) -> Drawing | None:
    """Class-IL against executed training FLOPs, with the Pareto front."""
    if not any(c.n for c in scene.sparse):
        return None
    rows, columns = scene.learners, scene.buffers
    figure, axes = style.subplots(len(rows), len(columns), 3.6 * len(columns) + 2.0, 2.7 * len(rows) + 0.9, sharex=True)
    places = [(i, j, learner, buffer) for i, learner in enumerate(rows) for j, buffer in enumerate(columns)]
    panels = [_flops_panel(axes[i][j], scene, learner, buffer) for i, j, learner, buffer in places]
    drawn = [c for panel in panels for c in panel]
    for (i, j, learner, buffer), panel in zip(places, panels, strict=True):  # the panels share the x axis
        _limit(axes[i][j], [summary(c, "class_il") for c in panel if c.learner == learner])
        _others(axes[i][j], [c for c in panel if c.learner not in rows])
        axes[i][j].set_title(f"{scene.learner_label(learner)}, buffer {buffer}")
        if i == len(rows) - 1:
            axes[i][j].set_xlabel("Training FLOPs, executed ledger (log)")
        axes[i][0].set_ylabel("Class-IL accuracy (%)")
    for ax in [ax for row in axes for ax in row]:
        style.log_ticks(ax)
    star = style.dense(scene.face).marks | {"markeredgewidth": 1.0}
    legend(
        figure,
        scene,
        [
            Line2D([], [], label="dense learner", linestyle="none", markersize=9, **star),
            Line2D([], [], label="Pareto front", color=LIGHT, linewidth=4),
        ],
    )
    beside = f", written beside {scene.highlighted}'s" if scene.highlighted else ""
    return finish(
        scene,
        "Accuracy against training FLOPs",
        "Final Class-IL accuracy (mean, 95 % t-interval) against the training FLOPs that the runs "
        f"executed. A line joins one method's sparsity levels{beside}; the wide grey line "
        "is the Pareto front of the panel, which may lead off it (two methods are compared on the seeds that they "
        "share). Other methods are grey and named, those that lie far off in words with "
        f"their accuracy; a number beside one is its sparsity.{protocols(drawn)}",
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
            ax.errorbar(at, s.mean, yerr=errors(s), color=marks["color"], linewidth=0.7, alpha=0.55, zorder=2)
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
            yerr=errors(s),
            linewidth=0.8,
            markersize=10,
            zorder=4,
            **scene.look(dense).marks,
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
    compared = [c for c in [*drawn, *others] if c.n and c.method != "joint" and c.conditions == scene.conditions]
    points = [(c.mean("flops_executed"), c.mean("class_il")) for c in compared]
    frontier = pareto([(c.mean("flops_executed"), c.seeds("class_il")) for c in compared])
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
    """Grey, directly labeled points of methods with no sparse version; those not drawn in a text at the foot."""
    low, high = ax.get_ylim()
    gap = (high - low) * 0.055
    above: list[Configuration] = []
    inside: list[Configuration] = []
    below: list[Configuration] = []
    for c in sorted({c.key: c for c in others if c.n}.values(), key=lambda c: c.mean("class_il")):
        value = c.mean("class_il")
        if not math.isnan(value):
            (above if value > high - gap else below if value < low + gap else inside).append(c)
    texts = [f"not drawn, {name}: {_listed(off)}" for name, off in (("higher", above), ("lower", below)) if off]
    lines = [line for text in texts for line in textwrap.wrap(text, 58)]
    foot = 0.045 * len(lines) + 0.02 * bool(lines)
    ax.set_ylim((low - foot * high) / (1 - foot), high)  # room for them, under every point
    places = style.spread([c.mean("class_il") for c in inside], gap, low + gap, high - gap)
    for c, place in zip(inside, places, strict=True):
        x = c.mean("flops_executed")
        ax.plot(x, c.mean("class_il"), linestyle="none", markersize=5, zorder=2, **_grey(c))
        ax.annotate(
            level_label(c),
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
    if lines:
        ax.text(
            0.99,
            0.01,
            "\n".join(lines),
            transform=ax.transAxes,
            fontsize=6.3,
            color=GREY,
            ha="right",
            va="bottom",
            zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )


def _listed(off: Sequence[Configuration]) -> str:
    return ", ".join(f"{level_label(c)}\u00a0{c.mean('class_il'):.0f}" for c in off)


def _grey(c: Configuration) -> dict[str, Any]:
    marker = look(c).marker
    return {"marker": marker, "color": GREY, "markeredgecolor": GREY, "markerfacecolor": "white"}
