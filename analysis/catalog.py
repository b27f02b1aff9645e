"""Which tables and figures a plan gives, by name: a module of :mod:`analysis.tables` or :mod:`analysis.figures` each.

Light, so that a workflow can ask while it is being parsed. Every name that is listed is made, whatever cells are
missing; the file then says what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from analysis.plan import Document, in_main, is_sparse_training, swept

PARTS = {"tdm": "sparsity", "ddr": "data", "dgm": "gradient"}
"""SparCL's parts, and the kind of policy that each is."""
ABLATION = "ablation"
"""The group that the ablation is made of, where the matrix has it; else of all main cells."""
SWEEP = "sweep_"
"""What the names of a sweep's table and figure begin with; the group's name follows."""


@dataclass(frozen=True)
class _Cell:
    """What decides: the method's facts, sparsity, buffer and groups of a planned cell; no seed."""

    method: str
    family: str
    learner: str
    parts: frozenset[str]
    is_sparse: bool
    task_il_only: bool
    sparsity: float
    buffer: int
    in_ablation: bool


def _main_cells(plan: Document) -> set[_Cell]:
    sweeps, found = swept(plan["config"]), set()
    for entry in plan["cells"]:
        if in_main(entry["groups"], sweeps):
            cell = entry["cell"]
            facts = plan["methods"][cell["method"]]
            policies = facts["policies"]
            sparse = cell["sparsity"] > 0 and is_sparse_training(facts["family"], policies.get("sparsity"))
            parts = frozenset(part for part, kind in PARTS.items() if policies.get(kind) == part)
            found.add(
                _Cell(
                    cell["method"],
                    facts["family"],
                    facts["learner"],
                    parts,
                    sparse,
                    facts["task_il_only"],
                    cell["sparsity"],
                    cell["buffer"],
                    ABLATION in entry["groups"],
                )
            )
    return found


def _has_rivals(cells: set[_Cell]) -> bool:
    ours = [c for c in cells if c.family == "sparcl" and c.sparsity > 0]
    return any(
        (c.method == own.learner and c.sparsity == 0)
        or (c.is_sparse and c.family != "sparcl" and (c.learner, c.sparsity) == (own.learner, own.sparsity))
        for own in ours
        for c in cells
        if c.buffer == own.buffer
    )


def _ablation(cells: set[_Cell]) -> list[_Cell]:
    named = [c for c in cells if c.in_ablation]
    rows = named or [c for c in cells if c.family in ("ablation", "sparcl")]
    return rows if any(c.family == "ablation" for c in rows) else []


def _has_effects(cells: set[_Cell]) -> bool:
    rows = _ablation(cells)
    return any(
        len(on.parts - off.parts) == 1 and off.parts < on.parts
        for on in rows
        for off in rows
        if (on.learner, on.buffer, on.sparsity) == (off.learner, off.buffer, off.sparsity)
    )


def _has_dense_or_sparcl(cells: set[_Cell]) -> bool:
    return any(c.family not in ("sparse-baseline", "ablation") for c in cells)


def _has_baselines(cells: set[_Cell]) -> bool:
    return any(c.family == "sparse-baseline" and c.sparsity > 0 for c in cells)


def _has_sparse(cells: set[_Cell]) -> bool:
    return any(c.is_sparse for c in cells)


def _has_levels(cells: set[_Cell]) -> bool:
    return len({c.sparsity for c in cells if c.is_sparse}) > 1


def _has_class_il(cells: set[_Cell]) -> bool:
    return any(not c.task_il_only for c in cells)


def _has_tasks(cells: set[_Cell]) -> bool:
    return any(not c.task_il_only and c.method != "joint" for c in cells)


Applies = Callable[[set[_Cell]], bool]
TABLES: dict[str, Applies] = {
    "overall": _has_rivals,
    "continual_learning": _has_dense_or_sparcl,
    "sparse_baselines": _has_baselines,
    "ablation": lambda cells: bool(_ablation(cells)),
    "ablation_effects": _has_effects,
    "memory": bool,
    "sweep": bool,
    "published": lambda cells: True,
    "all_cells": lambda cells: True,
}
FIGURES: dict[str, Applies] = {
    "accuracy_vs_flops": _has_sparse,
    "accuracy_vs_sparsity": _has_levels,
    "accuracy_per_task": _has_tasks,
    "accuracy_matrices": _has_class_il,
    "forgetting_bars": _has_tasks,
    "sweep": bool,
    "mask_dynamics": _has_sparse,
    "flops_breakdown": bool,
}


def _names(plan: Document, known: dict[str, Applies]) -> Iterator[str]:
    cells = _main_cells(plan)
    for name, applies in known.items():
        if name == "sweep":
            yield from (SWEEP + group for group in swept(plan["config"]))
        elif applies(cells):
            yield name


def tables(plan: Document) -> list[str]:
    """Return the names of the tables that a plan (``plan.json`` as it was read) gives, in the report's order."""
    return list(_names(plan, TABLES))


def figures(plan: Document) -> list[str]:
    """Return the names of the figures that a plan gives, in the report's order."""
    return list(_names(plan, FIGURES))


def module_of(name: str) -> str:
    """Return the module that makes a table or figure; all sweeps share one."""
    return "sweep" if name.startswith(SWEEP) else name


def group_of(name: str) -> list[str]:
    """Return what the maker of a table or figure is told beyond the results: a sweep's group, nothing else."""
    return [name.removeprefix(SWEEP)] if name.startswith(SWEEP) else []
