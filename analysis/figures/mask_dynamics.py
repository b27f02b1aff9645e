"""Masks over time: density of weights and gradients, and churn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.configurations import Configuration, missing_of
from analysis.figures import style
from analysis.figures.scene import Drawing, Scene, foot, look
from analysis.figures.style import GREY

BOUNDARY = "task boundary"
NEAR = 0.08
"""Share of the axis that two ticks are apart at least."""


def draw(scene: Scene) -> Drawing | None:
    """Density of weights and gradients, and churn, over the stream."""
    buffer = scene.buffers[-1]
    learner = scene.learner
    planned = [
        c for c in scene.sparse if (c.learner, c.buffer) == (learner, buffer) and abs(c.sparsity - scene.focus) < 1e-9
    ]
    shown = [c for c in planned if c.n]
    shown.sort(key=lambda c: scene.bundles.index(c.bundle))
    if not any(_history(scene, c) for c in shown):
        return None
    figure, axes = style.subplots(3, 1, 9.0, 6.2, sharex=True, gridspec_kw={"height_ratios": [3, 1.6, 3]})
    density, gradient, churn = (row[0] for row in axes)
    density.set_yscale("log")
    density.autoscale(enable=False, axis="y")  # its limits are set below; a single density gives none
    tasks, epochs = scene.results.plan.stream["tasks"], int(shown[0].rows.iloc[0].epochs)
    still: list[str] = []
    for c in shown:
        marks, ours = _marks(c), c.bundle == scene.highlight
        events = _history(scene, c)
        x = [event["x"] for event in events]
        width, order = (2.0, 5) if ours else (1.1, 3)
        step = {"linewidth": width, "zorder": order, "color": marks["color"], "drawstyle": "steps-post"}
        ends = [0.0, *x, tasks * epochs]
        start = _initial_density(scene, c, events)
        density.plot(ends, [start, *(e["density"] for e in events), events[-1]["density"] if events else start], **step)
        if c.policies["gradient"] and events:
            values = [e["gradient_density"] for e in events]
            gradient.plot(ends, [values[0], *values, values[-1]], **step)
        moved = [e for e in events if e["churn"] > 0]
        for task in sorted({e["task"] for e in moved}):  # no line from one task's last update to the next one's first
            churn.plot(
                [e["x"] for e in moved if e["task"] == task],
                [e["churn"] for e in moved if e["task"] == task],
                linewidth=width * 0.5,
                zorder=order,
                markersize=4.5 if ours else 6 if c.bundle == "rigl" else 3.2,
                **marks,
            )
        if not moved:
            still.append(scene.results.plan.bundles[c.bundle])
    for ax in (density, gradient, churn):
        ax.set_xlim(0, tasks * epochs)
        for boundary in range(1, tasks):
            ax.axvline(boundary * epochs, color=GREY, linewidth=0.7, linestyle="--", zorder=1, gid=BOUNDARY)
    for task in range(tasks):
        density.annotate(
            f"task {task + 1}",
            ((task + 0.5) * epochs, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=GREY,
        )
    density.set_ylabel("Weight density\n(fraction, log)")
    gradient.set_ylabel("Gradient density\n(fraction)")
    if not len(_values(gradient)):
        gradient.annotate(
            "no method shown masks gradients", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY
        )
    elif any(not c.policies["gradient"] for c in shown):
        _remark(gradient, "all others: every weight that exists receives its gradient", 0.08)
    gradient.set_ylim(bottom=0)
    if still:
        _remark(churn, f"one mask throughout, no updates: {', '.join(still)}", 1.01)  # above what moves
    churn.set_ylabel("Churn: weights pruned\nin an update (%, log)")
    churn.set_yscale("log")
    _percent_axis(churn)
    _log_density_axis(density, round(1 - scene.focus, 9))
    churn.set_xlabel("Epoch, over the whole stream")
    handles = [
        Line2D(
            [],
            [],
            label=scene.results.plan.bundles[c.bundle],
            linewidth=2 if c.bundle == scene.highlight else 1.2,
            **_marks(c),
        )
        for c in shown
    ]
    figure.legend(handles=handles, loc="outside right upper")
    title = f"Masks over time, {scene.learner_label(learner)}, sparsity {scene.focus:.2f}, buffer {buffer}"
    missing = missing_of(planned)
    figure.suptitle(f"{title}, on {scene.label}", fontsize=10, fontweight="bold", x=0.01, ha="left")
    foot(scene, figure, "one run of each method: its lowest finished seed", missing)
    caption = (
        "Share of the maskable weights that exist (top), of those that receive a gradient (middle, methods"
        " that mask gradients), and of those pruned at each mask update (bottom), from one run of each "
        f"method. Dashed: task boundaries. Methods with fixed masks have no churn. {scene.label}."
    )
    return Drawing(title, caption, figure, missing)


def _marks(c: Configuration) -> dict:
    """How a method is drawn; RigL, whose updates are many, in open markers."""
    return look(c).marks | ({"markerfacecolor": "none"} if c.bundle == "rigl" else {})


def _remark(ax: Axes, text: str, height: float) -> None:
    """Small grey text at the right end of a panel, at a height in shares of it."""
    ax.annotate(
        text,
        (0.99, height),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=7,
        color=GREY,
        zorder=8,
        path_effects=style.halo(),
    )


def _first(c: Configuration) -> str:
    """Return the path of the lowest finished seed."""
    return str(c.done.sort_values("seed").path.iloc[0])


def _history(scene: Scene, c: Configuration) -> list[dict[str, float]]:
    """The mask updates of the lowest finished seed, with ``x`` in epochs over the whole stream."""
    cell, sizes = c.rows.iloc[0], scene.results.plan.stream["train_sizes"]
    events = []
    for event in scene.results.history(_first(c)):
        steps = math.ceil(sizes[min(int(event["task"]), len(sizes) - 1)] / cell.batch_size)
        within = min(event["step"] / steps, 1.0)
        events.append(event | {"x": event["task"] * cell.epochs + event["epoch"] + within})
    return sorted(events, key=lambda event: event["x"])


def _initial_density(scene: Scene, c: Configuration, events: Sequence[dict[str, float]]) -> float:
    """Density before the first update; a mask that is never updated has the final one all along."""
    size, left = scene.results.layers(_first(c))
    if not size:
        return 1.0
    if not events:
        return left / size
    return events[0]["density"] + (events[0]["pruned"] - events[0]["grown"]) / size


def _values(ax: Axes) -> np.ndarray:
    """All heights of the curves in ``ax``, task boundaries left out."""
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines() if line.get_gid() != BOUNDARY]
    return np.concatenate(curves or [np.empty(0)])


def _percent_axis(ax: Axes) -> None:
    values = _values(ax)
    low, high = (values.min(), values.max()) if len(values) else (0.001, 0.1)
    ticks = [t for t in (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if low / 2 <= t <= high * 2]
    ax.set_yticks(ticks, [f"{100 * t:g}" for t in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(low / 1.6, high * 1.6)


def _log_density_axis(ax: Axes, level: float) -> None:
    """Limits around the curves; ticks at the planned level, the highest, and round densities not too near to these."""
    values = _values(ax)
    values = values[values > 0]
    low, high = (values.min(), values.max()) if len(values) else (0.1, 1.0)
    bottom, top = low * 0.85, min(high * 1.15, 1.1)
    level = level if bottom <= level <= top else float(f"{low:.2g}")
    near = NEAR * math.log(top / bottom)
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0) if low * 0.7 <= t <= high * 1.3]
    ends = [level, *([high] if abs(math.log(high / level)) > near else [])]
    ticks = sorted([*ends, *(t for t in ticks if all(abs(math.log(t / end)) > near for end in ends))])
    ax.set_yticks(ticks, [f"{t:.3g}" for t in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(bottom, top)
