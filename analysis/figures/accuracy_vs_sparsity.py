"""Accuracy against sparsity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.configurations import Configuration
from analysis.contrasts import RELEASED
from analysis.figures import style
from analysis.figures.scene import BAND, BAND_MIN_N, Drawing, Scene, errors, finish, legend, look, protocols, summary
from analysis.figures.style import BLACK, GREY, LIGHT


def draw(scene: Scene) -> Drawing | None:
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
    legend(figure, scene, bands)
    banded = f"{scene.highlighted}, and of the baseline with as many seeds," if scene.highlighted else "the method"
    return finish(
        scene,
        "Accuracy against sparsity",
        "Final Class-IL accuracy against the sparsity of the masked layers: mean over seeds; the shaded "
        f"band is the 95 % t-interval (3 or more seeds) of {banded} that is best on "
        "average in the panel, other methods have it as bars. Dotted: the dense learner with its interval."
        f"{protocols(drawn)}",
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
    most = max((c.n for line in lines.values() for c in line), default=0)
    ours = (scene.highlight, RELEASED)
    whole = [b for b, line in lines.items() if b not in ours and min(c.n for c in line) == most]
    rivals = sorted(whole, key=lambda b: -_average(lines[b]))
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
                ax.errorbar(at, s.mean, yerr=errors(s), color=marks["color"], linewidth=0.7, alpha=0.6, zorder=2)
    dense = scene.find(learner, 0.0, buffer)
    if dense is not None:
        s = summary(dense, "class_il")
        ax.axhline(s.mean, color=BLACK, linestyle=":", linewidth=1.2, zorder=2)
        if not math.isnan(s.ci_low):
            ax.axhspan(s.ci_low, s.ci_high, facecolor="none", edgecolor="#E0E0E0", hatch="////", linewidth=0, zorder=0)
        drawn.append(dense)
    ax.set_xticks(range(len(levels)), [f"{level:.2f}" for level in levels])
    if names := [scene.results.plan.bundles[bundle] for bundle in lines if bundle in banded]:
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
