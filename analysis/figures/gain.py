"""What a gain of SparCL over dense training is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from analysis import frames, gain
from analysis.configurations import configurations
from analysis.figures import style
from analysis.figures.scene import Drawing, Scene, finish
from analysis.figures.style import BLACK, GREY, VERMILION
from analysis.gain import BY_SOURCE, Effect
from analysis.statistics import Paired
from sparcl.groups import GAIN


def draw(scene: Scene) -> Drawing | None:
    """SparCL minus each rival by protocol (left); main effects and interactions of the crossed factors (right)."""
    found = gain.effects(scene.results)
    if not found:
        return None
    compared = [effect for effect in found if effect.kind == "comparison"]
    others = [effect for effect in found if effect.kind != "comparison"]
    rows = max(len(others), len(compared) + len({effect.name for effect in compared}))
    figure, axes = style.subplots(1, 2, 11.0, 0.2 * rows + 1.5)
    left, right = axes[0]
    _compared(left, compared)
    _crossed(right, others)
    for ax, title in ((left, "SparCL as compared, by protocol"), (right, "Main effects and interactions")):
        ax.axvline(0, color=GREY, linewidth=0.9, zorder=1)
        ax.tick_params(axis="y", labelsize=7.2, length=0)
        ax.set_xlabel("Class-IL, difference (points)")
        ax.set_title(title)
    caption = (
        "Differences in final Class-IL accuracy on the same seeds, mean and 95 % t-interval. Left: SparCL with data "
        "removal minus the dense learner and the baselines without it, each by the code that its published figures "
        "come from, and both by one protocol. Right: main effects, averaged over all levels of the other factors "
        "(filled), and interactions, differences of differences (hollow)."
    )
    drawn = configurations(frames.in_group(scene.results.frame, GAIN))
    return finish(scene, "What the gain is made of", caption, figure, drawn)


def _compared(ax: Axes, effects: Sequence[Effect]) -> None:
    """A row for each rival's name, and one for each protocol under it."""
    labels: list[str] = []
    heads = []
    for effect in effects:
        if effect.name not in labels:
            heads.append(len(labels))
            labels.append(effect.name)
        is_mixed = effect.where == BY_SOURCE
        _mark(
            ax, effect.found["class_il"], len(labels), VERMILION if is_mixed else BLACK, "D" if is_mixed else "o", True
        )
        labels.append("each by its source" if is_mixed else effect.where)
    _rows(ax, labels)
    for place in heads:
        ax.get_yticklabels()[place].set_fontweight("bold")


def _crossed(ax: Axes, effects: Sequence[Effect]) -> None:
    """A row for each effect."""
    for place, effect in enumerate(effects):
        _mark(ax, effect.found["class_il"], place, BLACK, "o", effect.kind == "main")
    _rows(ax, [effect.short for effect in effects])
    mains = sum(effect.kind == "main" for effect in effects)
    if 0 < mains < len(effects):
        ax.axhline(mains - 0.5, color=GREY, linewidth=0.6, linestyle=":")


def _rows(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)


def _mark(ax: Axes, paired: Paired, place: float, color: str, marker: str, is_filled: bool) -> None:
    half = None if math.isnan(paired.ci_low) else [[paired.mean - paired.ci_low], [paired.ci_high - paired.mean]]
    ax.errorbar(
        paired.mean, place, xerr=half, color=color, linewidth=1.0, marker=marker, markersize=4.5, zorder=3,
        markerfacecolor=color if is_filled else "white", markeredgewidth=1.1,
    )  # fmt: skip
