"""A sweep: accuracy and FLOPs against what a group of the matrix sets.

One parameter of numbers is the axis of a line for each method, buffer and sparsity. Of two, the one with more values is
the axis and the other tells the lines apart. Texts, and more than two, are listed: a row for each setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from analysis import frames
from analysis.configurations import Configuration, by_values, configurations, default_of, missing_of
from analysis.figures import style
from analysis.figures.scene import (
    BAND,
    BAND_MIN_N,
    Drawing,
    Scene,
    errors,
    foot,
    level_label,
    look,
    seeds_text,
    summary,
)
from analysis.figures.style import BLACK
from analysis.plan import shown
from sparcl.groups import sweep_title, swept

PANELS = {"class_il": "Class-IL accuracy (%)", "flops_executed": "Training FLOPs, executed ledger"}
AXIS, LETTER = 240, 5.0
"""Points: from the first value of an axis to the last, and a letter of its labels, both on the safe side."""
TASK_IL = "Task-IL accuracy (%)"


def draw(scene: Scene, group: str) -> Drawing | None:
    """Accuracy and FLOPs of every setting of a sweep."""
    parameters = swept(scene.results.plan.config)[group]
    rows = configurations(frames.in_group(scene.results.frame, group))
    done = [c for c in rows if c.n]
    if not done:
        return None
    values = {key: list(dict.fromkeys(c.params.get(key) for c in done)) for key in parameters}
    numeric = [key for key in parameters if all(_is_number(value) for value in values[key])]
    axis = max(numeric, key=lambda key: len(values[key]), default="")
    one_at_a_time = "alone" in scene.results.plan.config["groups"][group]
    listed = one_at_a_time or len(parameters) > 2 or not axis or len(values[axis]) < 2
    panels = PANELS
    if all(c.task_il_only for c in done):
        panels = {"task_il": TASK_IL} | {key: text for key, text in PANELS.items() if key != "class_il"}
    drawn, off = list(rows), {}
    if listed:  # beside what they are compared with
        defaults = {c.key: c for one in done if (c := default_of(one, (*scene.pool, *rows))) and c.n}
        done = [*done, *(c for key, c in defaults.items() if key not in {one.key for one in done})]
        drawn += done
    height = 0.22 * len(done) + 1.4 if listed else 3.5
    figure, axes = style.subplots(1, 2, 9.0, height, sharex=not listed)
    pairs = list(zip(axes[0], panels.items(), strict=True))
    if listed:
        named = [] if one_at_a_time else parameters
        _listed(pairs, by_values(done, named), named)
    else:
        others = [key for key in parameters if key != axis]
        off = {c.key: found for c in done if (found := _without(scene, c, axis))}
        drawn += off.values()
        _lines(pairs, done, axis, others, off)
    settings = sorted({(c.label, c.buffer, c.sparsity) for c in done})
    text = "; ".join(f"{label}, sparsity {sparsity:.2f}, buffer {buffer}" for label, buffer, sparsity in settings)
    text = text if len(settings) < 4 else f"{len(settings)} configurations"
    title = sweep_title(scene.results.plan.config, group)
    missing = missing_of(drawn)
    subject = title if listed and len(settings) > 1 else f"{title} ({text})"  # else each row names its own
    figure.suptitle(f"{subject} on {scene.label}", fontsize=10, fontweight="bold", x=0.01, ha="left")
    foot(scene, figure, f"{seeds_text(drawn)}; small dots: single seeds", missing)
    dotted = ", ".join(sorted({c.label for c in off.values()}))
    caption = (
        f"Final accuracy (left; mean, 95 % t-interval, single seeds as dots) and executed training FLOPs (right) "
        f"{'of each setting' if listed else 'against'} {'of ' if listed else ''}{', '.join(parameters)}, all else "
        f"equal: {text}. {f'Dotted: {dotted}. ' if dotted else ''}{scene.label}, {seeds_text(drawn)}."
    )
    return Drawing(title, caption, figure, missing)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without(scene: Scene, c: Configuration, parameter: str) -> Configuration | None:
    """The configuration that differs from ``c`` in the policy of ``parameter`` being off."""
    component = parameter.partition(".")[0]
    wanted = {kind: "" if policy == component else policy for kind, policy in c.policies.items()}
    if wanted == c.policies:
        return None
    for other in scene.pool:
        same = (other.learner, other.buffer, other.sparsity) == (c.learner, c.buffer, c.sparsity)
        if same and other.policies == wanted and other.n and not other.setting:
            return other
    return None


def _lines(
    pairs: Sequence[tuple[Axes, tuple[str, str]]],
    done: Sequence[Configuration],
    axis: str,
    others: Sequence[str],
    off: Mapping[str, Configuration],
) -> None:
    """A line for each method, buffer, sparsity and value of the other parameter."""
    lines: dict[tuple, list[Configuration]] = {}
    for c in by_values(done, [*others, axis]):
        lines.setdefault((c.label, c.buffer, c.sparsity, *(c.params.get(key) for key in others)), []).append(c)
    several = len({key[:3] for key in lines}) > 1
    values = sorted({float(c.params[axis]) for c in done})
    spaced = _too_close(values)
    places = {value: float(index) if spaced else value for index, value in enumerate(values)}
    shades = dict.fromkeys(key[3:] for key in lines)
    colors = colormaps["viridis"](np.linspace(0, 0.85, len(shades)))
    palette = dict(zip(shades, colors, strict=True)) if others else {}
    for ax, (metric, label) in pairs:
        for key, line in lines.items():
            parts = [f"{level_label(line[0])}, buffer {line[0].buffer}" if several else line[0].label]
            parts += [f"{name} {shown(value)}" for name, value in zip(others, key[3:], strict=True)]
            name = ", ".join(parts[1:] if others and not several else parts)
            _line(
                ax,
                line,
                [places[float(c.params[axis])] for c in line],
                metric,
                name,
                palette.get(key[3:]),
                band=len(lines) < 3,
            )
        for other in {c.key: c for c in off.values()}.values():
            ax.axhline(other.mean(metric), color=BLACK, linestyle=":", linewidth=1.2, label=other.label)
        ax.set_xticks([places[value] for value in values], [f"{value:g}" for value in values])
        ax.set_xlabel(f"{axis} (values evenly spaced)" if spaced else axis)
        ax.set_ylabel(label)
    accuracy, flops = (ax for ax, _ in pairs)
    flops.set_ylim(0, 1.08 * flops.get_ylim()[1])
    style.power_in_label(flops.yaxis)
    low, high = accuracy.get_ylim()
    accuracy.set_ylim(max(0, min(low, high - 4)), min(high, 102))
    if len(lines) > 1 or off:
        flops.legend(loc="lower left")


def _too_close(values: Sequence[float]) -> bool:
    """Whether labels of values at their places on the axis would touch: 0, 0.001 and 0.1, or several decades."""
    width = AXIS / (values[-1] - values[0])
    return any(
        (high - low) * width < LETTER * (len(f"{low:g}") + len(f"{high:g}") + 2) / 2
        for low, high in itertools.pairwise(values)
    )


def _line(
    ax: Axes, line: Sequence[Configuration], x: Sequence[float], metric: str, label: str, color: Any, band: bool
) -> None:
    """One line at the places ``x``; its 95 % intervals as a band where few lines share the panel, else as bars."""
    sums = [summary(c, metric) for c in line]
    marks = look(line[0]).marks
    if color is not None:
        marks |= {"color": color, "markeredgecolor": color, "markerfacecolor": color}
    ax.plot(x, [s.mean for s in sums], linestyle=look(line[0]).line, zorder=4, label=label, **marks)
    if not band:
        for at, s in zip(x, sums, strict=True):
            ax.errorbar(at, s.mean, yerr=errors(s), color=marks["color"], linewidth=0.7, alpha=0.6)
    elif not any(s.n < BAND_MIN_N for s in sums):
        low, high = [s.ci_low for s in sums], [s.ci_high for s in sums]
        ax.fill_between(x, low, high, color=marks["color"], alpha=BAND, linewidth=0)
    if metric == "flops_executed":
        return
    for at, c in zip(x, line, strict=True):
        values = list(c.seeds(metric).values())
        ax.plot(
            [at] * len(values), values, color=marks["color"], linestyle="none", marker=".", markersize=3, alpha=0.6,
            zorder=3,
        )  # fmt: skip


def _listed(
    pairs: Sequence[tuple[Axes, tuple[str, str]]], done: Sequence[Configuration], parameters: Sequence[str]
) -> None:
    """A row for each setting: the values of ``parameters``, or without any what differs from the default."""
    several = len({(c.label, c.buffer, c.sparsity) for c in done}) > 1
    names = []
    for c in done:
        text = ", ".join(f"{key} {shown(c.params[key])}" for key in parameters if key in c.params)
        text = text or c.setting.replace("=", " ") or "default"
        names.append(f"{level_label(c)}, buffer {c.buffer}: {text}" if several else text)
    for ax, (metric, label) in pairs:
        for place, c in enumerate(reversed(done)):
            s, marks = summary(c, metric), look(c).marks
            ax.errorbar(s.mean, place, xerr=errors(s), linewidth=0.8, zorder=4, **marks)
            values = list(c.seeds(metric).values())
            ax.plot(values, [place] * len(values), linestyle="none", marker=".", markersize=3, color=marks["color"])
        ax.set_yticks(range(len(done)), names[::-1] if ax is pairs[0][0] else [])
        ax.tick_params(axis="y", labelsize=6.8, length=0)
        ax.set_ylim(-0.6, len(done) - 0.4)
        ax.set_xlabel(label)
    flops = pairs[1][0]
    flops.set_xlim(0, 1.04 * flops.get_xlim()[1])
    style.power_in_label(flops.xaxis)
