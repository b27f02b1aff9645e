"""Equal budgets: accuracy against executed training FLOPs, dense and shorter beside sparse and longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import frames
from analysis.configurations import Configuration, configurations
from analysis.figures import style
from analysis.figures.scene import Drawing, Scene, errors, finish, look, summary
from analysis.figures.style import BLACK, GREY, LIGHT
from sparcl.groups import budgets


def draw(scene: Scene) -> Drawing | None:
    """A panel for each budget, learner and buffer."""
    panels: dict[tuple[str, str, int], list[Configuration]] = {}
    for group in budgets(scene.results.plan.config):
        for c in configurations(frames.in_group(scene.results.frame, group)):
            if c.n:
                panels.setdefault((group, c.learner, c.buffer), []).append(c)
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = style.subplots(rows, columns, 3.9 * columns + 1.9, 3.0 * rows + 0.7)
    flat = [ax for line in axes for ax in line]
    drawn: list[Configuration] = []
    for ax, ((group, learner, buffer), line) in zip(flat, panels.items(), strict=False):
        drawn += _panel(ax, scene, line)
        title = scene.results.plan.config["groups"][group].get("title") or group
        levels = {c.sparsity for c in line if c.sparsity}
        level = f", sparsity {min(levels):.2f}" if len(levels) == 1 else ""
        ax.set_title(f"{title}: {scene.learner_label(learner)}, buffer {buffer}{level}", fontsize=8.5)
        ax.set_xlabel("Executed training FLOPs")
        ax.set_ylabel("Class-IL accuracy (%)")
        style.log_ticks(ax)
    for ax in flat[len(panels) :]:
        ax.axis("off")
    names: dict[str, Line2D] = {}
    for c in (c for line in panels.values() for c in line):
        label = scene.results.plan.bundles[c.bundle] if c.bundle else "dense learner"
        names.setdefault(c.bundle, Line2D([], [], linestyle="none", label=label, **_filled(scene, c)))
    handles = [
        *names.values(),
        Line2D([], [], color=BLACK, marker="o", linestyle="none", label="at the equal budget"),
        Line2D([], [], color=BLACK, marker="o", linestyle="none", markerfacecolor="white", label="at equal epochs"),
        Line2D([], [], color=GREY, linestyle=":", label="dense at the budget"),
    ]
    figure.legend(handles=handles, loc="outside right upper")
    caption = (
        "Final Class-IL accuracy against executed training FLOPs (log axis), mean and 95 % t-interval. Filled: every "
        "method with about the same FLOPs, sparse ones trained longer than the dense learner; hollow, joined to it: "
        "the same method at the epochs of the main comparison, where it was run. Dotted: the dense learner at the "
        "budget. Beside the panel, where there are several, the sparsities."
    )
    return finish(scene, "Equal budgets of training FLOPs", caption, figure, drawn)


def _filled(scene: Scene, c: Configuration) -> dict[str, Any]:
    """Marks that are filled whatever the learner: what is hollow here is at equal epochs."""
    found = scene.look(c)
    return replace(found, hollow=False, half="").marks


def _panel(ax: Axes, scene: Scene, line: Sequence[Configuration]) -> list[Configuration]:
    """Draw the cells of a budget, each joined to the plain cell of the same setting; return all that are drawn."""
    drawn = list(line)
    for c in line:
        s, marks = summary(c, "class_il"), _filled(scene, c)
        at = c.mean("flops_executed")
        plain = scene.find(c.method, c.sparsity, c.buffer)
        if plain is not None and plain.key != c.key:
            before = plain.mean("flops_executed"), plain.mean("class_il")
            ax.plot(*zip(before, (at, s.mean), strict=True), color=LIGHT, linewidth=1.0, zorder=2)
            ax.plot(*before, linestyle="none", zorder=3, **marks | {"markerfacecolor": "white"})
            drawn.append(plain)
        ax.errorbar(at, s.mean, yerr=errors(s), linewidth=0.9, zorder=4, **marks)
        if not c.bundle:
            ax.axhline(s.mean, color=GREY, linestyle=":", linewidth=1.0, zorder=1)
    ax.set_xscale("log")
    _levels(ax, [c for c in line if c.sparsity])
    return drawn


def _levels(ax: Axes, sparse: Sequence[Configuration]) -> None:
    """Write sparsities beside the panel, at the height of their points, where there are several."""
    if len({c.sparsity for c in sparse}) < 2:
        return
    low, high = ax.get_ylim()
    for c, place in zip(sparse, style.spread([c.mean("class_il") for c in sparse], 0.04 * (high - low)), strict=True):
        ax.annotate(f"{c.sparsity:.2f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=6.5,
                    color=look(c).color)  # fmt: skip
