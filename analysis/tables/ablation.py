"""The ablation: TDM, DDR and DGM, each on and off."""

from __future__ import annotations

from collections.abc import Sequence

from analysis import frames
from analysis.catalog import ABLATED, ABLATION, PARTS
from analysis.configurations import Configuration, configurations
from analysis.frames import Results
from analysis.tables.columns import BUFFER, LABEL, MEGABYTE, SPARSITY
from analysis.tables.comparison import comparison
from analysis.typeset import Column, Table


def has_part(row: Configuration, part: str) -> bool:
    """Return whether a configuration has the part ``part`` ("tdm", "ddr", "dgm") of SparCL."""
    return row.policies[PARTS[part]] == part


def parts_of(row: Configuration) -> frozenset[str]:
    """Return which of "tdm", "ddr", "dgm" a configuration has."""
    return frozenset(part for part in PARTS if has_part(row, part))


def ablation_rows(results: Results) -> list[Configuration]:
    """The ablation group; without one, SparCL's parts and the static mask at whatever sparsities the plan has.

    Other ways to train sparsely are left out: RigL with data removal is no SparCL without TDM.
    """
    group = frames.in_group(results.frame, ABLATION)
    rows = configurations(group if len(group) else frames.main_rows(results.frame))
    rows = [row for row in rows if row.policies["sparsity"] in ABLATED]
    return rows if len(group) else [r for r in rows if r.family in ("ablation", "sparcl") or r.bundle == "static"]


def table(results: Results) -> Table:
    """TDM x DDR x DGM."""
    rows = ablation_rows(results)
    leading = [BUFFER, LABEL, SPARSITY, *(Column(part, part.upper(), "flag") for part in PARTS)]
    trailing = [Column("memory", "Memory, paper", "number", "MB")]

    def extra(row: Configuration, pool: Sequence[Configuration]) -> dict:
        return {part: has_part(row, part) for part in PARTS} | {"memory": row.mean("paper_memory_ablation") / MEGABYTE}

    def order(row: Configuration) -> tuple:
        switched = [has_part(row, part) for part in PARTS]
        return row.buffer, row.learner, row.sparsity, sum(switched), [not s for s in switched]

    return comparison(
        results, "ablation", "Ablation: TDM, DDR and DGM", rows, leading,
        lambda row: f"buffer {row.buffer}, {row.learner}", "a learner and buffer", True,
        ["TDM off at a sparsity above 0: a fixed mask. Memory by the paper's convention (table memory)."],
        extra, order, trailing,
    )  # fmt: skip
