"""Configurations: all seeds of one setting together, and which of them are compared with which."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.frames import DONE, POLICIES, Results, main_rows, missing_lines
from analysis.plan import Plan, shown

FAMILY_ORDER = ("bound", "regularization", "isolation", "sibling", "rehearsal", "sparse-baseline", "ablation", "sparcl")


class Configuration:
    """All seeds of one setting: a row of most tables.

    Attributes:
        key: path of its cells without the seed.
        rows, done: its rows of the frame, and those with a finished run; ``n`` counts the latter.
        name: the method's label, with its settings where another configuration has the same label.
        conditions: what of its protocol differs from the stream's (epochs, loss, ...); compared methods share it.
        params: resolved parameters, as ``component.key``, and the settings that sweeps set.
        is_sparse_training: whether it is SparCL or a sparse-training method that SparCL competes with.
    """

    def __init__(self, rows: pd.DataFrame, ambiguous: bool) -> None:
        first = rows.iloc[0]
        self.key: str = first.configuration
        self.stream: str = first.stream
        self.stream_label: str = first.stream_label
        self.method: str = first.method
        self.label: str = first.label
        self.family: str = first.family
        self.learner: str = first.learner
        self.bundle: str = first.bundle
        self.is_sparse_training: bool = bool(first.is_sparse_training)
        self.policies: dict[str, str] = {kind: first[f"policy_{kind}"] for kind in POLICIES}
        self.task_il_only: bool = bool(first.task_il_only)
        self.sparsity: float = float(first.sparsity)
        self.buffer: int = int(first.buffer)
        self.variant: str = first.variant
        self.setting: str = first.setting
        self.conditions: tuple[tuple[str, Any], ...] = first.conditions
        self.params: dict[str, Any] = first.params
        self.name = f"{self.label} [{self.setting}]" if ambiguous and self.setting else self.label
        self.rows = rows
        self.done = rows[rows.status == DONE]
        self.n = len(self.done)
        self._means: dict[str, float] = {}

    @property
    def place(self) -> tuple:
        """What compared configurations share: learner, buffer, sparsity and conditions."""
        return self.learner, self.buffer, self.sparsity, self.conditions

    @property
    def paths(self) -> list[str]:
        """Paths of its finished cells."""
        return list(self.done.path)

    def seeds(self, metric: str) -> dict[int, float]:
        """Seed to value over the finished cells."""
        return dict(zip(self.done.seed, self.done[metric], strict=True))

    def mean(self, metric: str) -> float:
        """Mean over the finished cells; nan without any."""
        if metric not in self._means:
            self._means[metric] = float(self.done[metric].mean()) if self.n else math.nan
        return self._means[metric]


def configurations(frame: pd.DataFrame) -> list[Configuration]:
    """The rows of ``frame`` by configuration, ordered by buffer, family, method and sparsity."""
    parts = [rows for _, rows in frame.groupby("configuration", sort=False)]
    keys = [(r.label.iloc[0], r.sparsity.iloc[0], r.buffer.iloc[0]) for r in parts]
    planned = {method: index for index, method in enumerate(dict.fromkeys(frame.method))}
    found = [Configuration(rows, keys.count(key) > 1) for rows, key in zip(parts, keys, strict=True)]

    def order(c: Configuration) -> tuple:
        family = FAMILY_ORDER.index(c.family) if c.family in FAMILY_ORDER else len(FAMILY_ORDER) - 2
        return c.buffer, family, planned[c.method], c.sparsity, c.setting

    return sorted(found, key=order)


def plain(results: Results) -> list[Configuration]:
    """Return the configurations of the main comparisons without a setting of their own, finished or not."""
    return [c for c in configurations(main_rows(results.frame)) if not c.setting]


def by_values(rows: Sequence[Configuration], parameters: Sequence[str]) -> list[Configuration]:
    """Return configurations by learner, buffer, sparsity and method, then by their parameters: numbers before texts."""

    def order(value: Any) -> tuple[bool, float, str]:
        is_number = isinstance(value, int | float)
        return not is_number, float(value) if is_number else 0.0, str(value)

    def key(row: Configuration) -> tuple:
        return row.learner, row.buffer, row.sparsity, row.method, [order(row.params.get(name)) for name in parameters]

    return sorted(rows, key=key)


def reference_of(
    row: Configuration, rows: Sequence[Configuration], pool: Sequence[Configuration], planned: Plan, same_learner: bool
) -> Configuration | None:
    """What ``row`` is compared with: the plan's reference method at the same buffer, trained under the same protocol.

    A sparse row's is at the same sparsity, else dense; a dense row's is at its lowest sparsity among ``rows``, those of
    the table. With ``same_learner`` the reference's policies, if any, on the row's own learner (SparCL-ER for RigL-ER).
    None for the reference itself and where the plan has no such cell.
    """
    bundle, learner = planned.reference_parts
    wanted = (bundle, row.learner if same_learner else learner, row.buffer, row.conditions)
    named = [c for c in pool if (c.bundle, c.learner, c.buffer, c.conditions) == wanted and not c.setting and learner]
    if row.sparsity:
        found = [c for level in (row.sparsity, 0.0) for c in named if c.sparsity == level]
    else:
        here = {c.key for c in rows}
        found = sorted((c for c in named if c.key in here), key=lambda c: c.sparsity)
    return found[0] if found and found[0].key != row.key else None


def default_of(row: Configuration, pool: Iterable[Configuration]) -> Configuration | None:
    """Another configuration of the same method, sparsity and buffer, with no setting of its own."""
    wanted = row.method, row.sparsity, row.buffer
    same = (c for c in pool if (c.method, c.sparsity, c.buffer) == wanted)
    return next((c for c in same if not c.setting and c.key != row.key), None)


def dense_of(row: Configuration, pool: Sequence[Configuration]) -> Configuration | None:
    """The dense run of the same learner and buffer, trained under the same protocol."""
    wanted = row.learner, row.buffer, row.conditions
    for c in pool:
        if (c.method, c.buffer, c.conditions) == wanted and c.sparsity == 0 and c.n and not c.setting:
            return c
    return None


def flops_ratio(row: Configuration, pool: Sequence[Configuration], ledger: str) -> float:
    """How many times fewer training FLOPs than the dense method of the same learner; nan where there is none.

    The executed ledger falls back on the row's own dense-equivalent ledger where the plan has no dense run.
    """
    dense, own = dense_of(row, pool), row.mean(ledger)
    if dense is not None and own > 0:
        return dense.mean(ledger) / own
    if ledger == "flops_executed" and own > 0 and row.sparsity > 0:
        return row.mean("flops_dense") / own
    return math.nan


def missing_of(chosen: Iterable[Configuration]) -> tuple[str, ...]:
    """Return a line for each configuration that lacks cells."""
    planned = [one.rows for one in chosen]
    return tuple(missing_lines(pd.concat(planned).drop_duplicates("path"))) if planned else ()


def by_conditions(rows: Iterable[Configuration]) -> str:
    """Return which rows were trained under which protocol; empty where they share one."""
    found: dict[str, list[str]] = {}
    for row in rows:
        text = ", ".join(f"{key} {shown(value)}" for key, value in row.conditions) or "the stream's protocol"
        found.setdefault(text, []).append(row.name)
    lists = [f"{', '.join(dict.fromkeys(names))} ({text})" for text, names in found.items()]
    return "; ".join(lists) if len(lists) > 1 else ""
