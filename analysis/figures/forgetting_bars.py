"""Forgetting of each method."""

from __future__ import annotations

import math

from analysis.figures import style
from analysis.figures.scene import Drawing, Scene, errors, finish, level_label, look, protocols, summary
from analysis.figures.style import BLACK, GREY

METRIC = "forgetting_class_il"


def draw(scene: Scene) -> Drawing | None:
    """Forgetting of each method, one panel per buffer."""
    panels = [
        [c for c in scene.shown_methods(buffer) if not c.task_il_only and not math.isnan(c.mean(METRIC))]
        for buffer in scene.buffers
    ]
    if not any(panels):
        return None
    tallest = max(map(len, panels))
    figure, axes = style.subplots(1, len(panels), 4.4 * len(panels) + 0.5, 0.19 * tallest + 1.5, sharex=True)
    for ax, buffer, shown in zip(axes[0], scene.buffers, panels, strict=True):
        shown = sorted(shown, key=lambda c: -c.mean(METRIC))
        for place, c in enumerate(shown):
            s, face = summary(c, METRIC), look(c)
            ours = c.bundle == scene.highlight
            ax.barh(
                place,
                s.mean,
                height=0.72,
                color=face.color if c.bundle else GREY if c.learner not in scene.learners else BLACK,
                alpha=1 if ours else 0.8,
                hatch="//" if face.hollow else ".." if c.bundle and face.half else None,
                edgecolor="white",
                linewidth=0.4,
            )
            ax.errorbar(s.mean, place, xerr=errors(s), color="#333333", linewidth=0.8, capsize=1.5,
                        path_effects=style.halo())  # fmt: skip
            end = s.mean if math.isnan(s.ci_high) else s.ci_high
            ax.annotate(
                f"{s.mean:.1f}", (end, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5
            )
        ax.set_yticks(range(len(shown)), [level_label(c) for c in shown])
        ax.tick_params(axis="y", labelsize=6.8, length=0)
        for tick, c in zip(ax.get_yticklabels(), shown, strict=True):
            if c.bundle == scene.highlight:
                tick.set_fontweight("bold")
        ax.set_ylim(-0.6, len(shown) - 0.4)
        ax.grid(False, axis="y")
        ax.set_title(f"buffer {buffer}")
        ax.set_xlabel("Forgetting, Class-IL (points; less is better)")
    drawn = [*(c for panel in panels for c in panel), *scene.unfinished(*scene.buffers)]
    caption = (
        "Forgetting (Chaudhry et al. 2018: mean drop from a task's best earlier Class-IL accuracy to its "
        f"final one), mean and 95 % t-interval; sparse methods at {scene.focus:.2f}.{protocols(drawn)}"
    )
    return finish(scene, "Forgetting", caption, figure, drawn)
