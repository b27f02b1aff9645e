"""Which tables and figures a plan gives, by name: a module of :mod:`analysis.tables` or :mod:`analysis.figures` each.

Light, so that a workflow can ask while it is being parsed. Every name that is listed is made, whatever cells are
missing; the file then says what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from analysis import published
from analysis.plan import Document, bundle, is_sparse_training
from sparcl.groups import APART, GAIN, PILOT, apart, budgets, in_main, is_losses, swept

PARTS = {"tdm": "sparsity", "ddr": "data", "dgm": "gradient"}
"""SparCL's parts, and the kind of policy that each is."""
ABLATED = ("", "static", "tdm")
"""Sparsity policies of SparCL with and without TDM; RigL with data removal is no SparCL without it."""
ABLATION = "ablation"
"""The group that the ablation is made of, where the matrix has it; else of all main cells."""
SWEEP = "sweep_"
"""What the names of a sweep's table and figure begin with; the group's name follows."""

Cells = list[dict[str, Any]]
"""The cells of the comparisons between methods without their seeds: what decides about a table or figure."""


def _main_cells(plan: Document) -> Cells:
    aside, found = apart(plan["config"]), {}
    for entry in plan["cells"]:
        if in_main(entry["groups"], aside):
            method, sparsity, buffer = (entry["cell"][key] for key in ("method", "sparsity", "buffer"))
            facts = plan["methods"][method]
            policies = facts["policies"]
            found[method, sparsity, buffer] = {
                "method": method,
                "family": facts["family"],
                "is_ours": bundle(method, facts["learner"]) == "sparcl" and sparsity > 0,
                "task_il_only": facts["task_il_only"],
                "sparsity": sparsity,
                "setting": (facts["learner"], buffer, sparsity),
                "dense": (method, buffer, sparsity),
                "is_sparse": sparsity > 0 and is_sparse_training(plan, method),
                "parts": {part for part, kind in PARTS.items() if policies.get(kind) == part},
                "may_ablate": (policies.get("sparsity") or "") in ABLATED,
                "in_ablation": ABLATION in entry["groups"],
            }
    return list(found.values())


def _rivals(cells: Cells) -> bool:
    """SparCL, and the dense learner or another sparse-training method in its setting."""
    ours = {c["setting"] for c in cells if c["is_ours"]}
    dense = {(learner, buffer, 0) for learner, buffer, _ in ours}
    return any(c["dense"] in dense or (c["is_sparse"] and not c["is_ours"] and c["setting"] in ours) for c in cells)


def _ablation(cells: Cells) -> Cells:
    rows = [c for c in cells if c["in_ablation"]] or [c for c in cells if c["family"] in ("ablation", "sparcl")]
    rows = [c for c in rows if c["may_ablate"]]
    return rows if any(c["family"] == "ablation" for c in rows) else []


def _effects(cells: Cells, plan: Document) -> bool:
    """Two cells of the ablation that differ in one part."""
    rows = _ablation(cells)
    pairs = ((on, off) for on in rows for off in rows if on["setting"] == off["setting"])
    return any(off["parts"] < on["parts"] and len(on["parts"] - off["parts"]) == 1 for on, off in pairs)


def _sparse(cells: Cells, plan: Document) -> bool:
    return any(c["is_sparse"] for c in cells)


def _has(plan: Document, group: str) -> bool:
    return any(group in entry["groups"] for entry in plan["cells"])


def _any(cells: Cells, plan: Document) -> bool:
    return bool(cells)


def _by_task(cells: Cells, plan: Document) -> bool:
    return any(not c["task_il_only"] and c["method"] != "joint" for c in cells)


Applies = Callable[[Cells, Document], object]
TABLES: dict[str, Applies] = {
    "primary": lambda cells, plan: plan["analysis"] or _rivals(cells),
    "power": lambda cells, plan: plan["analysis"],
    "regime": lambda cells, plan: (
        _has(plan, PILOT) or any(c["family"] == "rehearsal" and not c["sparsity"] for c in cells)
    ),
    "gain": lambda cells, plan: _has(plan, GAIN),
    "continual_learning": lambda cells, plan: any(c["family"] not in ("sparse-baseline", "ablation") for c in cells),
    "sparse_baselines": lambda cells, plan: any(c["family"] == "sparse-baseline" and c["sparsity"] > 0 for c in cells),
    "ablation": lambda cells, plan: _ablation(cells),
    "ablation_effects": _effects,
    "counted_against_measured": _sparse,
    "memory": _any,
    "sweep": _any,
    "budget": lambda cells, plan: budgets(plan["config"]),
    "losses_as_published": lambda cells, plan: any(map(is_losses, plan["config"]["groups"])),
    "published": lambda cells, plan: plan["stream"]["name"] in {figure.stream for figure in published.load()},
    "all_cells": lambda cells, plan: True,
}
FIGURES: dict[str, Applies] = {
    "accuracy_vs_flops": _sparse,
    "counted_against_measured": _sparse,
    "accuracy_vs_sparsity": lambda cells, plan: len({c["sparsity"] for c in cells if c["is_sparse"]}) > 1,
    "gain": lambda cells, plan: _has(plan, GAIN),
    "budget": lambda cells, plan: budgets(plan["config"]),
    "accuracy_per_task": _by_task,
    "accuracy_matrices": lambda cells, plan: any(not c["task_il_only"] for c in cells),
    "forgetting_bars": _by_task,
    "sweep": _any,
    "mask_dynamics": _sparse,
    "flops_breakdown": _any,
}


def tables(plan: Document) -> list[str]:
    """Return the names of the tables that a plan (``plan.json`` as it was read) gives, in the report's order."""
    return _names(plan, TABLES, (PILOT,))


def figures(plan: Document) -> list[str]:
    """Return the names of the figures that a plan gives, in the report's order."""
    return _names(plan, FIGURES, APART)


def _names(plan: Document, known: dict[str, Applies], elsewhere: Iterable[str]) -> list[str]:
    """Return the names of ``known`` that apply; the groups ``elsewhere`` are shown in other ways than as sweeps."""
    cells, found = _main_cells(plan), []
    for name, applies in known.items():
        if name == "sweep":
            found += [SWEEP + group for group in swept(plan["config"]) if group not in elsewhere]
        elif applies(cells, plan):
            found.append(name)
    return found


def module_of(name: str) -> str:
    """Return the module that makes a table or figure; all sweeps share one."""
    return "sweep" if name.startswith(SWEEP) else name


def group_of(name: str) -> list[str]:
    """Return what the maker of a table or figure is told beyond the results: a sweep's group, nothing else."""
    return [name.removeprefix(SWEEP)] if name.startswith(SWEEP) else []
