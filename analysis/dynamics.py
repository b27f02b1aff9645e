"""The figures of what the policies do: sweeps of DDR and DGM, masks over time, FLOPs by purpose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import frames, style
from analysis.scene import Drawing, Scene, look, missing_of, missing_text, seeds_text, summary
from analysis.style import BLACK, GREY
from analysis.tables import Configuration, configurations, is_number

BOUNDARY = "task boundary"
SHADES = {
    "stream": ("#4A4A4A", None), "replay": ("#ABABAB", None), "importance": ("#332288", "//"),
    "gradient_refresh": ("#44AA99", ".."), "dense_gradient": ("#AA4499", None), "saliency": ("#999933", "xx"),
    "distillation": (style.YELLOW, "\\\\"), "old_outputs": ("#7F3C8D", "**"), "memory_outputs": ("#6B4E16", "oo"),
    "herding": ("#D6D6D6", "++"), "fisher": ("#661100", "--"), "regulation": (style.BLACK, "||"),
}  # fmt: skip
"""Face and hatch of the ledger's lines in :func:`analysis.figures.flops_breakdown`, in their order.

No method has these colors.
"""
OTHER_SHADES = ((style.GREY, "xx"), (style.LIGHT, "//"), ("#6B4E16", "--"), ("#7F3C8D", ".."))


def shades(lines: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Face and hatch of each line of the ledger; known ones first and always the same."""
    others = sorted(set(lines) - set(SHADES))
    extra = {line: OTHER_SHADES[index % len(OTHER_SHADES)] for index, line in enumerate(others)}
    return {line: face for line, face in (SHADES | extra).items() if line in set(lines)}


def line_flops(scene: Scene, c: Configuration) -> dict[str, float]:
    """Executed training FLOPs by line of the ledger, mean over seeds; evaluation left out."""
    totals: dict[str, float] = {}
    for path in c.done.path:
        for line, kinds in scene.results.records[path]["results"]["flops"]["executed"]["lines"].items():
            if line != "evaluation":
                totals[line] = totals.get(line, 0.0) + sum(kinds.values()) / c.n
    return totals


# -- sweeps
def ddr_proportion(scene: Scene) -> Drawing | None:
    """Accuracy and FLOPs against the share of a task's data that DDR removes."""
    return _sweep(
        scene,
        "ddr_proportion",
        "ddr-proportion",
        "DDR: how much data is removed",
        "Proportion of each task's images removed",
        "data",
    )


def ddr_cutoff(scene: Scene) -> Drawing | None:
    """Accuracy and FLOPs against the stage after which DDR stops removing."""
    return _sweep(
        scene,
        "ddr_cutoff",
        "ddr-cutoff",
        "DDR: when removal stops",
        "Cutoff (number of stages at whose end data is removed)",
        "data",
    )


def dgm_sparsity(scene: Scene) -> Drawing | None:
    """Accuracy and FLOPs against DGM's gradient sparsity."""
    return _sweep(
        scene,
        "dgm_sparsity",
        "dgm-sparsity",
        "DGM: how many gradients are masked",
        "Gradient sparsity (fraction of a layer's weights without a gradient)",
        "gradient",
    )


def _sweep(scene: Scene, name: str, group: str, title: str, axis: str, kind: str) -> Drawing | None:
    parameter = frames.SWEEPS[group]
    rows = [c for c in configurations(frames.in_group(scene.rows, group)) if is_number(c.params.get(parameter))]
    lines: dict[tuple, list[Configuration]] = {}
    for c in rows:
        lines.setdefault((c.method, c.buffer, c.sparsity), []).append(c)
    lines = {key: line for key, line in lines.items() if sum(c.n > 0 for c in line) > 1}
    if not lines:
        return None
    figure, axes = style.subplots(1, 2, 9.0, 3.5, sharex=True)
    drawn: list[Configuration] = []
    for line in lines.values():
        line.sort(key=lambda c: float(c.params[parameter]))
        drawn += line
        off = _without(scene, line[0], kind)
        drawn += [off] if off is not None else []
        for ax, metric in zip(axes[0], ("class_il", "flops_executed"), strict=True):
            _sweep_line(ax, line, parameter, metric, off, len(lines) > 1)
    values = sorted({float(c.params[parameter]) for line in lines.values() for c in line})
    for ax in axes[0]:
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.set_xlabel(axis)
    axes[0][0].set_ylabel("Class-IL accuracy (%)")
    axes[0][1].set_ylabel("Training FLOPs, executed ledger")
    axes[0][1].set_ylim(0, 1.08 * axes[0][1].get_ylim()[1])
    low, high = axes[0][0].get_ylim()
    axes[0][0].set_ylim(max(0, min(low, high - 4)), min(high, 102))
    settings = {(c.label, c.buffer, c.sparsity) for line in lines.values() for c in line}
    text = "; ".join(
        f"{label}, sparsity {sparsity:.2f}, buffer {buffer}" for label, buffer, sparsity in sorted(settings)
    )
    missing = missing_of({c.key: c for c in drawn}.values())
    figure.suptitle(f"{title} ({text}) on {scene.label}", fontsize=10, fontweight="bold", x=0.01, ha="left")
    part = (kind == "data" and "DDR") or "DGM"
    style.footnote(figure, f"{seeds_text(drawn)}; small dots: single seeds{missing_text(missing)}")
    caption = (
        "Final Class-IL accuracy (left; mean, 95 % t-band from 3 seeds on, single seeds as dots) and "
        f"executed training FLOPs (right) against {parameter}, all else equal: {text}. Dotted: the same "
        f"method without {part}, where the plan has it. {scene.label}, {seeds_text(drawn)}."
    )
    return Drawing(name, title, caption, figure, missing)


def _without(scene: Scene, c: Configuration, kind: str) -> Configuration | None:
    """The configuration that differs from ``c`` in one policy being off."""
    wanted = c.policies | {kind: ""}
    for other in scene.pool:
        same = (other.learner, other.buffer, other.sparsity) == (c.learner, c.buffer, c.sparsity)
        if same and other.policies == wanted and other.n and not other.setting:
            return other
    return None


def _sweep_line(
    ax: Axes,
    line: Sequence[Configuration],
    parameter: str,
    metric: str,
    off: Configuration | None,
    several: bool,
) -> None:
    done = [c for c in line if c.n]
    x = [float(c.params[parameter]) for c in done]
    sums = [summary(c, metric) for c in done]
    marks = look(done[0]).marks
    label = f"{done[0].label}, {done[0].sparsity:.2f}, buffer {done[0].buffer}" if several else done[0].label
    ax.plot(x, [s.mean for s in sums], linestyle=look(done[0]).line, zorder=4, label=label, **marks)
    if not any(s.n < 3 for s in sums):
        ax.fill_between(
            x, [s.ci_low for s in sums], [s.ci_high for s in sums], color=marks["color"], alpha=0.16, linewidth=0
        )
    if metric == "class_il":
        for at, c in zip(x, done, strict=True):
            values = list(c.seeds(metric).values())
            ax.plot(
                [at] * len(values),
                values,
                linestyle="none",
                marker=".",
                markersize=3,
                color=marks["color"],
                alpha=0.6,
                zorder=3,
            )
    if off is not None:
        ax.axhline(off.mean(metric), color=BLACK, linestyle=":", linewidth=1.2, label=off.label)
    if metric != "class_il" and (several or off is not None):
        ax.legend(loc="lower left")


# -- masks over time
def mask_dynamics(scene: Scene) -> Drawing | None:
    """Density of weights and gradients, and churn, over the stream."""
    buffer = scene.buffers[-1]
    learner = scene.learners[-1] if scene.learners else ""
    shown = [
        c
        for c in scene.sparse
        if (c.learner, c.buffer) == (learner, buffer) and abs(c.sparsity - scene.focus) < 1e-9 and c.n
    ]
    shown.sort(key=lambda c: scene.bundles.index(c.bundle))
    if not any(_history(scene, c) for c in shown):
        return None
    figure, axes = style.subplots(3, 1, 9.0, 6.2, sharex=True, gridspec_kw={"height_ratios": [3, 1.6, 3]})
    density, gradient, churn = (row[0] for row in axes)
    tasks, epochs = _extent(scene, shown[0])
    still: list[str] = []
    for c in shown:
        marks, ours = look(c).marks, c.bundle == scene.highlight
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
                **(marks | {"markerfacecolor": "none"} if c.bundle == "rigl" else marks),
            )
        if not moved:
            still.append(scene.bundle_label(c.bundle))
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
    density.set_yscale("log")
    gradient.set_ylabel("Gradient density\n(fraction)")
    if not len(_values(gradient)):
        gradient.annotate(
            "no method shown masks gradients", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY
        )
    elif any(not c.policies["gradient"] for c in shown):
        _remark(gradient, "all others: every weight that exists receives its gradient", 0.08)
    gradient.set_ylim(bottom=0)
    if still:
        _remark(churn, f"one mask throughout, no updates: {', '.join(still)}", 0.95)
    churn.set_ylabel("Churn: weights pruned\nin an update (%, log)")
    churn.set_yscale("log")
    _percent_axis(churn)
    _log_density_axis(density)
    churn.set_xlabel("Epoch, over the whole stream")
    handles = [
        Line2D(
            [],
            [],
            label=scene.bundle_label(c.bundle),
            linewidth=2 if c.bundle == scene.highlight else 1.2,
            **look(c).marks,
        )
        for c in shown
    ]
    figure.legend(handles=handles, loc="outside right upper")
    title = f"Masks over time, {scene.learner_label(learner)}, sparsity {scene.focus:.2f}, buffer {buffer}"
    missing = missing_of(shown)
    figure.suptitle(f"{title}, on {scene.label}", fontsize=10, fontweight="bold", x=0.01, ha="left")
    style.footnote(figure, f"one run of each method: its lowest finished seed{missing_text(missing)}")
    caption = (
        "Share of the maskable weights that exist (top), of those that receive a gradient (middle, methods"
        " that mask gradients), and of those pruned at each mask update (bottom), from one run of each "
        f"method. Dashed: task boundaries. Methods with fixed masks have no churn. {scene.label}."
    )
    return Drawing("mask_dynamics", title, caption, figure, missing)


def _remark(ax: Axes, text: str, height: float) -> None:
    """Small grey text at the right end of a panel."""
    ax.annotate(
        text,
        (0.99, height),
        xycoords="axes fraction",
        ha="right",
        va="top" if height > 0.5 else "bottom",
        fontsize=7,
        color=GREY,
        zorder=8,
        path_effects=style.halo(),
    )


def _history(scene: Scene, c: Configuration) -> list[dict]:
    """The mask updates of the lowest finished seed, with ``x`` in epochs over the whole stream."""
    record = scene.results.records[c.done.sort_values("seed").path.iloc[0]]
    cell, sizes = record["cell"], record["stream"]["train_sizes"]
    events = []
    for event in record["results"]["masks"]["history"]:
        steps = math.ceil(sizes[min(event["task"], len(sizes) - 1)] / cell["batch_size"])
        within = min(event["step"] / steps, 1.0)
        events.append(event | {"x": event["task"] * cell["epochs"] + event["epoch"] + within})
    return sorted(events, key=lambda event: event["x"])


def _initial_density(scene: Scene, c: Configuration, events: Sequence[dict]) -> float:
    """Density before the first update; a mask that is never updated has the final one all along."""
    record = scene.results.records[c.done.sort_values("seed").path.iloc[0]]
    layers = record["results"]["masks"]["layers"].values()
    size = sum(layer["size"] for layer in layers)
    if not size:
        return 1.0
    if not events:
        return sum(layer["weights"] for layer in layers) / size
    return events[0]["density"] + (events[0]["pruned"] - events[0]["grown"]) / size


def _extent(scene: Scene, c: Configuration) -> tuple[int, int]:
    record = scene.results.records[c.done.path.iloc[0]]
    return record["stream"]["tasks"], record["cell"]["epochs"]


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


def _log_density_axis(ax: Axes) -> None:
    values = _values(ax)
    values = values[values > 0]
    low, high = (values.min(), values.max()) if len(values) else (0.1, 1.0)
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0) if low * 0.7 <= t <= high * 1.3]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(low * 0.85, min(high * 1.15, 1.1))
