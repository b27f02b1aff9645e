"""What the executed training FLOPs were spent on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from analysis.figures import style
from analysis.figures.scene import Drawing, Scene, finish, level_label
from analysis.typeset import scientific

SHADES = {
    "stream": ("#4A4A4A", None), "replay": ("#ABABAB", None), "importance": ("#332288", "//"),
    "gradient_refresh": ("#44AA99", ".."), "dense_gradient": ("#AA4499", None), "saliency": ("#999933", "xx"),
    "distillation": (style.YELLOW, "\\\\"), "old_outputs": ("#7F3C8D", "**"), "memory_outputs": ("#6B4E16", "oo"),
    "herding": ("#D6D6D6", "++"), "fisher": ("#661100", "--"), "regulation": (style.BLACK, "||"),
}  # fmt: skip
"""Face and hatch of the ledger's lines in this figure, in their order.

No method has these colors.
"""
OTHER_SHADES = ((style.GREY, "xx"), (style.LIGHT, "//"), ("#6B4E16", "--"), ("#7F3C8D", ".."))


def shades_of(lines: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Face and hatch of each line of the ledger; known ones first and always the same."""
    others = sorted(set(lines) - set(SHADES))
    extra = {line: OTHER_SHADES[index % len(OTHER_SHADES)] for index, line in enumerate(others)}
    return {line: face for line, face in (SHADES | extra).items() if line in set(lines)}


def draw(scene: Scene) -> Drawing | None:
    """What the executed FLOPs were spent on."""
    buffer = scene.buffers[-1]
    shown = sorted(scene.shown_methods(buffer), key=lambda c: c.mean("flops_executed"))
    if not shown:
        return None
    spent = [scene.results.line_flops(c.paths) for c in shown]
    power = math.floor(math.log10(max(sum(parts.values()) for parts in spent)))
    shades = shades_of([line for parts in spent for line in parts])
    lines = list(shades)
    figure, axes = style.subplots(1, 2, 10.5, 0.19 * len(shown) + 1.7, gridspec_kw={"width_ratios": [3, 2]})
    for ax, relative in zip(axes[0], (False, True), strict=True):
        for place, parts in enumerate(spent):
            left, total = 0.0, sum(parts.values())
            for line in lines:
                width = parts.get(line, 0.0) / (total / 100 if relative else 10**power)
                face, hatch = shades[line]
                ax.barh(place, width, left=left, height=0.72, color=face, hatch=hatch, edgecolor="white", linewidth=0.3)
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
        ax.set_yticks(range(len(shown)), [level_label(c) for c in shown] if not relative else [])
        ax.tick_params(axis="y", labelsize=6.8, length=0)
        ax.set_xlabel(
            "Share of training FLOPs (%)" if relative else f"Training FLOPs, executed ledger ($10^{{{power}}}$)"
        )
    axes[0][1].set_xlim(0, 100)
    handles = [
        axes[0][0].barh(
            0, 0, color=shades[line][0], hatch=shades[line][1], edgecolor="white", label=line.replace("_", " ")
        )
        for line in lines
    ]
    figure.legend(handles=handles, loc="outside right upper")
    return finish(
        scene,
        f"What training FLOPs are spent on, buffer {buffer}",
        "Executed training FLOPs by purpose, mean over seeds: absolute (left) and as a share (right). One "
        f"multiply-add is 2 FLOPs; evaluation is not training. LightCL's replay is that of the images it holds. Sparse "
        f"methods at {scene.focus:.2f}.",
        figure,
        [*shown, *scene.unfinished(buffer)],
    )
