"""What a figure looks at: one stream's configurations, which buffers, learners and sparsity level to show."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from analysis import frames, style
from analysis.frames import Results
from analysis.statistics import Summary, summarize
from analysis.tables import Configuration, bundle_of, configurations, is_sparse_training

MATCHED_TO = 1e-9


@dataclass(frozen=True)
class Scene:
    """One stream of a plan."""

    results: Results
    stream: str

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        return self.results.frame[self.results.frame.stream == self.stream]

    @functools.cached_property
    def pool(self) -> list[Configuration]:
        """Configurations of the comparisons between methods; sweeps left out."""
        return configurations(frames.main_rows(self.rows))

    @property
    def label(self) -> str:
        return str(self.rows.stream_label.iloc[0])

    @functools.cached_property
    def sparse(self) -> list[Configuration]:
        """SparCL and the sparse-training baselines."""
        return [c for c in self.pool if c.sparsity > 0 and is_sparse_training(c) and not c.setting]

    @functools.cached_property
    def buffers(self) -> list[int]:
        chosen = sorted({c.buffer for c in self.sparse}) or sorted({c.buffer for c in self.pool if c.buffer})
        return chosen or [0]

    @functools.cached_property
    def learners(self) -> list[str]:
        """Learners that have sparse versions, in the plan's order."""
        return list(dict.fromkeys(c.learner for c in sorted(self.sparse, key=lambda c: self._planned[c.method])))

    @functools.cached_property
    def _planned(self) -> dict[str, int]:
        return {method: index for index, method in enumerate(dict.fromkeys(self.rows.method))}

    @functools.cached_property
    def bundles(self) -> list[str]:
        """Bundles of the sparse methods, the highlighted one first, then as planned."""
        found = list(dict.fromkeys(c.bundle for c in sorted(self.sparse, key=lambda c: self._planned[c.method])))
        return sorted(found, key=lambda bundle: bundle != self.highlight)

    @property
    def highlight(self) -> str:
        """The bundle that figures bring forward: the reference's, SparCL where the plan names none."""
        return bundle_of(self.results.plan.reference) or "sparcl"

    @functools.cached_property
    def focus(self) -> float:
        """The sparsity that figures with one level show: 0.90 where the plan has it, else its middle level."""
        levels = sorted({c.sparsity for c in self.sparse})
        if not levels:
            return 0.0
        near = [level for level in levels if abs(level - 0.9) < MATCHED_TO]
        return near[0] if near else levels[len(levels) // 2]

    def bundle_label(self, bundle: str) -> str:
        """``rigl-erk`` -> ``RigL-ERK``: the label of a bundle's methods without the learner."""
        for c in self.pool:
            if c.bundle == bundle:
                learner = self.learner_label(c.learner)
                return c.label.removesuffix(f"-{learner}")
        return bundle

    def learner_label(self, learner: str) -> str:
        """Return what figures call a learner."""
        for c in self.pool:
            if c.method == learner:
                return c.label
        return {"er": "ER", "der": "DER", "derpp": "DER++"}.get(learner, learner)

    def find(self, method: str, sparsity: float, buffer: int) -> Configuration | None:
        """The plain configuration of a method; None where the plan has none or none of its cells is done."""
        for c in self.pool:
            if (c.method, c.buffer) == (method, buffer) and abs(c.sparsity - sparsity) < MATCHED_TO and not c.setting:
                return c if c.n else None
        return None

    def shown_methods(self, buffer: int) -> list[Configuration]:
        """One configuration per method for figures with one sparsity level: dense ones and the level in focus."""
        chosen = []
        for c in self.pool:
            fits = c.buffer in (0, buffer) and not c.setting and c.n and c.family != "ablation"
            level = c.sparsity == 0 or abs(c.sparsity - self.focus) < MATCHED_TO or not is_sparse_training(c)
            if fits and level:
                chosen.append(c)
        return chosen


@dataclass(frozen=True)
class Drawing:
    """A figure with what a reader needs beneath it."""

    name: str
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


def missing_of(chosen: Iterable[Configuration]) -> tuple[str, ...]:
    """Return a line for each configuration that lacks seeds."""
    rows = [c.rows for c in chosen]
    return tuple(frames.missing_lines(pd.concat(rows))) if rows else ()


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
