"""FLOPs saved against time saved: what is counted, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter

from analysis import timing
from analysis.figures import style
from analysis.figures.scene import Drawing, Scene, finish, legend, look
from analysis.figures.style import GREY, LIGHT
from analysis.timing import Timed

WHAT = {"step": "training step", "inference": "inference"}


def draw(scene: Scene) -> Drawing | None:
    """Ratio of time against ratio of FLOPs, of a training step and of inference, by threads."""
    machine, found = timing.read(scene.results)
    if not any(timed.configuration.n for timed in found):
        return None
    threads = sorted({timed.row["threads"] for timed in found})
    figure, axes = style.subplots(len(threads), 2, 8.4, 3.2 * len(threads) + 0.9, sharex=True, sharey=True)
    for i, count in enumerate(threads):
        rows = [timed for timed in found if timed.row["threads"] == count]
        for j, (what, title) in enumerate(WHAT.items()):
            _panel(axes[i][j], scene, rows, what)
            axes[i][j].set_title(f"{title}, {count} thread{'s' if count > 1 else ''}")
            if i == len(threads) - 1:
                axes[i][j].set_xlabel("times fewer FLOPs, counted (log)")
        axes[i][0].set_ylabel("times less time, measured (log)")
    _limits(axes[0][0], found)  # of all panels, which share their axes
    legend(figure, scene, seeds=False)
    return finish(
        scene,
        "FLOPs counted and time measured",
        "How many times less time a training step (left) and a prediction (right) take than the dense learner's by "
        "PyTorch, against how many times fewer FLOPs they execute; a point for each sparsity of a method. On the grey "
        "diagonal every saved FLOP saves its time. "
        f"Measured on {machine.get('cpu')} ({machine.get('instruction_set')}).",
        figure,
        [timed.configuration for timed in found],
        "one run each, medians over its steps and batches",
    )


def _panel(ax: Axes, scene: Scene, rows: list[Timed], what: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_box_aspect(1)
    for bundle in scene.bundles:
        for learner in scene.learners:
            line = [t for t in rows if (t.configuration.bundle, t.configuration.learner) == (bundle, learner)]
            if not line:
                continue
            x, y = [t.flops(what) for t in line], [t.time(what) for t in line]
            ax.plot(x, y, linewidth=0.9, markersize=5, alpha=0.9, **look(line[0].configuration).marks)
    ax.plot([0.01, 1000], [0.01, 1000], color=LIGHT, linewidth=3, zorder=0)
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(partial(_minor, axis)))


def _minor(axis: Axis, value: float, _: int) -> str:
    """Label a minor tick at 2, 3 and 5 of a decade, at every digit where the axis spans little."""
    low, high = axis.get_view_interval()
    return f"{value:g}" if f"{value:g}"[0] in "235" or high < 2 * low else ""


def _limits(ax: Axes, found: Sequence[Timed]) -> None:
    """Show every point, equal times and the diagonal, by one scale for both axes."""
    ratios = [get(timed, what) for timed in found for what in WHAT for get in (Timed.flops, Timed.time)]
    ax.set_xlim(min(1, *ratios) / 1.15, 1.15 * max(ratios))
    ax.set_ylim(ax.get_xlim())
