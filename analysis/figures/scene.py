"""What a figure looks at: a plan's configurations, which buffers, learners and sparsity level to show; shared parts."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import frames, regime
from analysis.configurations import Configuration, by_conditions, configurations, missing_of
from analysis.contrasts import OURS
from analysis.figures import style
from analysis.figures.style import LIGHT
from analysis.frames import Results
from analysis.statistics import Summary, summarize

MATCHED_TO = 1e-9
BAND, BAND_MIN_N = 0.16, 3
LEADER = {"arrowstyle": "-", "color": LIGHT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}


@dataclass(frozen=True)
class Scene:
    """A plan with its results."""

    results: Results

    @functools.cached_property
    def pool(self) -> list[Configuration]:
        """Configurations of the comparisons between methods; sweeps left out."""
        return configurations(frames.main_rows(self.results.frame))

    @property
    def label(self) -> str:
        return self.results.plan.stream["label"]

    @functools.cached_property
    def sparse(self) -> list[Configuration]:
        """SparCL and the sparse-training baselines; SparCL without a part only where the reference is one."""
        return [c for c in self.pool if c.sparsity > 0 and c.is_sparse_training and not c.setting]

    @functools.cached_property
    def buffers(self) -> list[int]:
        chosen = sorted({c.buffer for c in self.sparse}) or sorted({c.buffer for c in self.pool if c.buffer})
        return chosen or [0]

    @functools.cached_property
    def learners(self) -> list[str]:
        """Learners that have sparse versions, in the plan's order."""
        return list(dict.fromkeys(c.learner for c in sorted(self.sparse, key=lambda c: self._planned[c.method])))

    @property
    def learner(self) -> str:
        """The learner that figures with one learner show: the reference's, else the last; empty without any."""
        own = self.results.plan.reference_parts[1]
        return own if own in self.learners else (self.learners or [""])[-1]

    @functools.cached_property
    def _planned(self) -> dict[str, int]:
        return {method: index for index, method in enumerate(dict.fromkeys(self.results.frame.method))}

    @property
    def face(self) -> str:
        """The learner that legends draw the bundles on: DER++ where it is, so that they are filled."""
        return "derpp" if "derpp" in self.learners else self.learner

    def look(self, c: Configuration) -> style.Look:
        """Return the look of a configuration; a dense learner with sparse versions has one, whatever its name."""
        return look(c) if c.bundle or c.learner not in self.learners else style.dense(c.learner)

    @functools.cached_property
    def bundles(self) -> list[str]:
        """Bundles of the sparse methods, the highlighted one first, then as planned."""
        found = list(dict.fromkeys(c.bundle for c in sorted(self.sparse, key=lambda c: self._planned[c.method])))
        return sorted(found, key=lambda bundle: bundle != self.highlight)

    @property
    def highlight(self) -> str:
        """The bundle that figures bring forward: the reference's, SparCL where the plan names none."""
        return self.results.plan.reference_parts[0] or OURS

    @property
    def highlighted(self) -> str:
        """What captions call the highlighted bundle; empty where no sparse method has it."""
        return self.results.plan.bundles[self.highlight] if self.highlight in self.bundles else ""

    @functools.cached_property
    def focus(self) -> float:
        """The sparsity that figures with one level show: 0.90 where the plan has it, else its middle level."""
        levels = sorted({c.sparsity for c in self.sparse})
        if not levels:
            return 0.0
        near = [level for level in levels if abs(level - 0.9) < MATCHED_TO]
        return near[0] if near else levels[len(levels) // 2]

    def learner_label(self, learner: str) -> str:
        """Return what figures call a learner."""
        for c in self.pool:
            if c.method == learner:
                return c.label
        return {"er": "ER", "der": "DER", "derpp": "DER++"}.get(learner, learner)

    @functools.cached_property
    def conditions(self) -> tuple[tuple[str, Any], ...]:
        """The protocol of the sparse methods, the highlighted bundle's where they differ; of others without any."""
        ranked = sorted(self.sparse or self.pool, key=lambda c: c.bundle != self.highlight)
        return ranked[0].conditions if ranked else ()

    def find(self, method: str, sparsity: float, buffer: int) -> Configuration | None:
        """The plain configuration of a method, trained as the sparse ones; None where none of its cells is done."""
        wanted = method, buffer, self.conditions
        for c in self.pool:
            same = (c.method, c.buffer, c.conditions) == wanted and abs(c.sparsity - sparsity) < MATCHED_TO
            if same and not c.setting:
                return c if c.n else None
        return None

    def shown_methods(self, buffer: int) -> list[Configuration]:
        """One finished configuration per method for figures with one sparsity: dense ones and the level in focus."""
        return [c for c in self._fitting(buffer) if c.n]

    def unfinished(self, *buffers: int) -> list[Configuration]:
        """Return what figures of these buffers would show too, had any of its cells finished."""
        return [c for buffer in buffers for c in self._fitting(buffer) if not c.n]

    def _fitting(self, buffer: int) -> list[Configuration]:
        chosen = []
        for c in self.pool:
            is_left_out = c.family == "ablation" and not c.is_sparse_training
            fits = c.buffer in (0, buffer) and not c.setting and not is_left_out
            level = c.sparsity == 0 or abs(c.sparsity - self.focus) < MATCHED_TO or not c.is_sparse_training
            if fits and level:
                chosen.append(c)
        return chosen


@dataclass(frozen=True)
class Drawing:
    """A figure with what a reader needs beneath it."""

    title: str
    caption: str
    figure: Figure = field(repr=False)
    missing: Sequence[str] = ()


def look(c: Configuration) -> style.Look:
    """Return color, marker and line of a configuration."""
    return style.of(c.bundle, c.learner)


def summary(c: Configuration, metric: str) -> Summary:
    """Summarize a metric over the seeds of a configuration."""
    return summarize(list(c.seeds(metric).values()))


def seeds_text(chosen: Iterable[Configuration]) -> str:
    """Return how many seeds a figure's configurations have, as text."""
    counts = sorted({c.n for c in chosen if c.n})
    if not counts:
        return "n = 0 seeds"
    if counts == [1]:
        return "n = 1 seed"
    return f"n = {counts[0]} seeds" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} seeds"


def missing_text(lines: Sequence[str]) -> str:
    """What a figure prints of its missing cells: all of up to three lines, else the first two and how many more."""
    if not lines:
        return ""
    shown = lines if len(lines) <= 3 else [*lines[:2], f"and {len(lines) - 2} more configurations (see the report)"]
    return "\nMissing: " + "; ".join(shown)


def level_label(c: Configuration) -> str:
    """Return a configuration's label with its sparsity, where it has any."""
    return f"{c.label} {c.sparsity:.2f}" if c.sparsity else c.label


def finish(scene: Scene, title: str, caption: str, figure, chosen: Iterable[Configuration], basis: str = "") -> Drawing:
    """Give a figure its title and what stands under it.

    ``chosen`` are the configurations that it shows; ``basis`` says what its points are of, if not of all their seeds.
    """
    chosen = list({c.key: c for c in chosen}.values())
    missing, basis = missing_of(chosen), basis or seeds_text(chosen)
    figure.suptitle(f"{title} on {scene.label}", fontsize=10.5, fontweight="bold", x=0.01, ha="left")
    foot(scene, figure, basis, missing)
    return Drawing(title, f"{caption} {scene.label}, {basis}.", figure, missing)


def foot(scene: Scene, figure, basis: str, missing: Sequence[str]) -> None:
    """Say under a figure which matrix and what seeds it is of, whether tasks are learned, and what is missing."""
    unlearned = "".join(f"\n{note}" for note in regime.notes(scene.results))
    style.footnote(figure, f"{scene.results.plan.title}; {basis}{unlearned}{missing_text(missing)}")


def protocols(chosen: Iterable[Configuration]) -> str:
    """Return what a caption adds where methods were trained under different protocols."""
    text = by_conditions(chosen)
    return f" Trained under different protocols: {text}." if text else ""


def errors(s) -> np.ndarray | None:
    """Distances from the mean to the ends of its 95 % interval, for ``errorbar``."""
    return None if math.isnan(s.ci_low) else np.array([[s.mean - s.ci_low], [s.ci_high - s.mean]])


def legend(figure, scene: Scene, handles: Sequence[Artist] = (), seeds: bool = True, **options) -> None:
    """One legend for the bundles (color, marker) and, where there are others than ER and DER++, learners (filling).

    With ``seeds`` a bundle that has fewer than others says how many.
    """
    most = max((c.n for c in scene.sparse), default=0)
    entries = []
    for bundle in scene.bundles:
        n = max(c.n for c in scene.sparse if c.bundle == bundle)
        label = scene.results.plan.bundles[bundle] + (f" (n = {n})" if seeds and 0 < n < most else "")
        entries.append(Line2D([], [], label=label, linewidth=1.4, **style.of(bundle, scene.face).marks))
    fillings = [
        Line2D([], [], label=f"on {scene.learner_label(learner)}", linestyle="none", **style.filling(learner).marks)
        for learner in scene.learners
        if set(scene.learners) - {"er", "derpp"}
    ]
    figure.legend(handles=[*entries, *fillings, *handles], loc="outside right upper", handlelength=2.6, **options)


def nothing(scene: Scene, name: str) -> Drawing:
    """A figure that says that the plan has no finished cells for it."""
    figure, axes = style.subplots(1, 1, 6.0, 1.6)
    axes[0][0].axis("off")
    title, missing = name.replace("_", " ").capitalize(), missing_of(scene.pool)
    figure.suptitle(f"{title} on {scene.label}", fontsize=10.5, fontweight="bold", x=0.01, ha="left")
    axes[0][0].text(0.5, 0.5, "no finished cells for this figure", ha="center", va="center", color=style.GREY)
    style.footnote(figure, missing_text(missing).strip())
    return Drawing(title, f"There are no finished cells for this figure. {scene.label}.", figure, missing)
