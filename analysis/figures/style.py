"""One look for all figures: a fixed color, marker and line for each method, and files that come out the same again.

Colors are those of Okabe and Ito (2008), told apart with all common color-vision deficiencies; markers and
lines tell the methods apart in grey. A method's bundle (SparCL, RigL, ...) gives color and marker, its
learner the line and the filling: solid and filled for DER++, dashed and hollow for ER, half filled for any other.
"""

from __future__ import annotations

import hashlib
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#767676"
LIGHT, VIOLET = "#B8B8B8", "#5D3A9B"

BUNDLES = {
    "sparcl": (VERMILION, "o"),
    "sparcl-released": ("#A3195B", "h"),
    "rigl": (BLUE, "s"),
    "rigl-erk": (SKY, "D"),
    "snip": (GREEN, "^"),
    "snip-global": (GREEN, ">"),
    "set": (PURPLE, "v"),
    "set-erk": (PURPLE, "<"),
    "gmp": (ORANGE, "P"),
    "magnitude": ("#8C6D1F", "X"),
    "static": (VIOLET, "<"),
    "tdm": ("#A23B00", "p"),
    "tdm-ddr": ("#F2B48C", "h"),
    "tdm-dgm": ("#E8894A", "8"),
    "ddr": ("#5E8C61", "d"),
    "dgm": ("#7A6FAC", "H"),
    "fixed": (LIGHT, "<"),
}
"""Bundle to color and marker; a bundle that is not here gets its own from its name (:func:`of`)."""

DENSE = "*"
LEARNERS = {
    "finetune": (GREY, "x"),
    "joint": (BLACK, "_"),
    "er": (BLACK, "*"),
    "der": (BLACK, "d"),
    "derpp": (BLACK, "*"),
    "ewc": (GREY, "1"),
    "lwf": (GREY, "2"),
    "agem": (GREY, "+"),
    "agem_r": (GREY, "P"),
    "icarl": (GREY, "3"),
    "fdr": (GREY, "4"),
    "packnet": (GREY, "|"),
    "lps": (GREY, "d"),
    "lightcl": (GREY, "h"),
    "lwta": (GREY, "p"),
}
LINES: dict[str, str | tuple] = {"er": (0, (4, 1.6)), "der": (0, (1, 1.2)), "derpp": "solid"}
HOLLOW = {"er"}
HALVES = {"der": "bottom", "agem": "left", "fdr": "top", "icarl": "right"}
"""Learner to the filled half of its sparse versions' markers; one that is in none of these gets its own by its name."""
OTHER_LINE = (0, (6, 1.6, 1, 1.6))
_SPARE_COLORS = ("#7F3C8D", "#3969AC", "#117733", "#882255", "#44AA99", "#6B4E16", "#332288", "#AA4466")
_SPARE_MARKERS = ("<", ">", "8", "p", "h", "H", "d", "D")

RC: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "legend.frameon": False,
    "svg.hashsalt": "sparcl-bench",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    color: str
    marker: str
    line: str | tuple = "solid"
    hollow: bool = False
    half: str = ""

    @property
    def marks(self) -> dict[str, Any]:
        """Keyword arguments for the marker of ``plot`` and ``errorbar``."""
        halves = {"fillstyle": self.half, "markerfacecoloralt": "white"} if self.half else {}
        return halves | {
            "marker": self.marker,
            "color": self.color,
            "markeredgecolor": self.color,
            "markerfacecolor": "white" if self.hollow else self.color,
            "markeredgewidth": 1.1,
        }


def of(bundle: str, learner: str) -> Look:
    """The look of a method; the same on every call, also for methods that a plug-in brings."""
    if bundle:
        digest = hashlib.sha256(bundle.encode()).digest()
        spare = _SPARE_COLORS[digest[0] % len(_SPARE_COLORS)], _SPARE_MARKERS[digest[1] % len(_SPARE_MARKERS)]
        color, marker = BUNDLES.get(bundle, spare)
    else:
        digest = hashlib.sha256(learner.encode()).digest()
        color, marker = LEARNERS.get(learner, (GREY, _SPARE_MARKERS[digest[1] % len(_SPARE_MARKERS)]))
        return Look(color, marker, LINES.get(learner, "solid"), learner in HOLLOW)
    return _on(color, marker, learner)


def dense(learner: str) -> Look:
    """The look of a dense learner beside its sparse versions: a black star, hollow where they are."""
    return _on(BLACK, DENSE, learner)


def filling(learner: str) -> Look:
    """What a legend shows of a learner whose bundles are apart by color and marker."""
    return _on(GREY, "o", learner)


def _on(color: str, marker: str, learner: str) -> Look:
    """Return a look on a learner: its line, and how it is filled."""
    if learner in HOLLOW or learner == "derpp":
        return Look(color, marker, LINES[learner], learner in HOLLOW)
    sides = sorted(set(HALVES.values()))
    side = HALVES.get(learner, sides[hashlib.sha256(learner.encode()).digest()[2] % len(sides)])
    return Look(color, marker, LINES.get(learner, OTHER_LINE), half=side)


def context():
    """The suite's style, for everything that is drawn inside it."""
    return plt.rc_context(RC)


def subplots(rows: int, columns: int, width: float, height: float, **options) -> tuple[Figure, list[list[Axes]]]:
    """A grid of axes; sizes of the whole figure in inches. Drawn inside :func:`context`."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)
    return figure, [list(row) for row in axes]


def spread(positions: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Move labels apart to at least ``gap``, in order, as little as possible, inside ``[low, high]`` if they fit."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[list[float]] = []  # [sum of (wanted - offset), count]: blocks of labels that touch
    for index in order:
        groups.append([positions[index], 1])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1][0] += total - groups[-1][1] * gap * count
            groups[-1][1] += count
    placed: list[float] = []
    for total, count in groups:
        placed += [total / count + gap * k for k in range(int(count))]
    if placed:
        shift = min(0.0, high - placed[-1])
        shift = max(shift, low - placed[0])
        placed = [value + shift for value in placed]
    result = [0.0] * len(positions)
    for place, index in zip(placed, order, strict=True):
        result[index] = place
    return result


def _top(group: list[float], gap: float) -> float:
    return group[0] / group[1] + gap * (group[1] - 1)


def halo() -> list:
    """Return path effects that keep text legible on top of lines and markers."""
    return [patheffects.withStroke(linewidth=2, foreground="white")]


def log_ticks(ax: Axes) -> None:
    """Label a logarithmic x axis at 1, 2 and 5 of each decade, at 1 alone where it spans more than two decades."""
    low, high = ax.get_xlim()
    steps = (1.0,) if math.log10(high / low) > 2 else (1.0, 2.0, 5.0)
    ax.xaxis.set_major_locator(LogLocator(subs=steps))
    ax.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(math.inf, math.inf)))
    ax.xaxis.set_minor_locator(LogLocator(subs=range(1, 10)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def power_in_label(axis: Axis) -> None:
    """Print an axis's power of ten in its label, not at its end, where it would run into the label."""
    power = math.floor(math.log10(axis.get_view_interval()[1]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10**power:g}"))
    axis.set_label_text(f"{axis.get_label_text()} ($10^{{{power}}}$)")


def _wrap_title(figure: Figure) -> None:
    """Break the figure's title into lines where it would run into a legend or out of the figure."""
    title: Text | None = figure._suptitle  # type: ignore[attr-defined]
    if title is None:
        return
    box = title.get_window_extent()
    edges = [legend.get_window_extent() for legend in figure.legends]
    limit = min([figure.bbox.x1, *(e.x0 for e in edges if e.y1 > box.y0 and e.x0 > box.x0)]) - 4
    if box.x1 > limit:
        text = title.get_text()
        width = max(20, int(len(text) * (limit - box.x0) / box.width))
        title.set_text(textwrap.fill(text, width, break_on_hyphens=False))


def _wrap_footnote(figure: Figure) -> None:
    """Break the lines under the figure where they would run out of it."""
    note: Text | None = figure._supxlabel  # type: ignore[attr-defined]
    if note is None:
        return
    box = note.get_window_extent()
    room = figure.bbox.x1 - box.x0 - 4
    if box.width > room:
        lines = note.get_text().splitlines()
        columns = int(0.95 * max(map(len, lines)) * room / box.width)  # letters are not equally wide
        note.set_text("\n".join(textwrap.fill(line, columns, break_on_hyphens=False) for line in lines))


def footnote(figure: Figure, text: str) -> None:
    """Small grey text under the figure."""
    figure.supxlabel(text, fontsize=6.5, color="#555555", x=0.01, ha="left")


def encode(figure: Figure, kinds: Sequence[str] = ("png", "svg", "pdf")) -> dict[str, bytes]:
    """The figure as PNG (200 dpi), SVG and PDF; the bytes depend on the drawing alone, not on date or order."""
    files = {}
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    with plt.rc_context(RC):
        figure.set_dpi(200)  # texts are not exactly as wide at another resolution
        figure.draw_without_rendering()
        _wrap_title(figure)
        _wrap_footnote(figure)
        for _ in range(2):  # the layout is solved here, once for all formats: each save would move it a little
            figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=200, metadata=metadata[kind], facecolor="white")
            files[kind] = buffer.getvalue()
    return files


def close(figure: Figure) -> None:
    """Free a figure that has been saved."""
    plt.close(figure)
