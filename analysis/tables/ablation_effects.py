"""What switching on TDM, DDR or DGM changes, with all else equal and averaged over all else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import geometric_mean

from analysis import statistics
from analysis.catalog import PARTS
from analysis.configurations import Configuration, missing_of
from analysis.contrasts import analysis_of, pooled
from analysis.frames import Results
from analysis.tables.ablation import ablation_rows, parts_of
from analysis.tables.columns import BUFFER, SEEDS, SPARSITY
from analysis.typeset import Column, Row, Table

METRICS = ("class_il", "task_il")

Step = tuple[str, Configuration, Configuration]
"""What is switched on ("TDM"), and the configuration without and with it."""


def steps(rows: Sequence[Configuration]) -> list[Step]:
    """Return each configuration with every next larger one of the same learner, buffer and sparsity.

    Where all eight are there the two differ in one part; where one between them was not run, in more ("TDM+DGM").
    """
    found = []
    for off, on in itertools.permutations(rows, 2):
        same = [row for row in rows if row.place == off.place]
        is_next = not any(parts_of(off) < parts_of(row) < parts_of(on) for row in same)
        if on in same and parts_of(off) < parts_of(on) and is_next:
            found.append(("+".join(p.upper() for p in PARTS if p in parts_of(on) - parts_of(off)), off, on))
    order = [part.upper() for part in PARTS]
    return sorted(found, key=lambda step: order.index(step[0]) if step[0] in order else len(order))


def table(results: Results) -> Table:
    """What switching on a part changes: averaged over all settings that have it both ways, then one by one."""
    rows = ablation_rows(results)
    found = steps(rows)
    groups: dict[str, list[Step]] = {}
    for step in found:
        groups.setdefault(step[0], []).append(step)
    averages = {part: of_part for part, of_part in groups.items() if len(of_part) > 1}
    margin = analysis_of(results)["smallest_difference"]
    made = [*_rows(list(averages.values()), margin), *_rows([[step] for step in found], margin)]
    columns = [
        Column("part", "Switched on"), Column("off", "From"), Column("on", "To"), BUFFER, SPARSITY,
        Column("class_il", "Change in Class-IL", "difference", "points"),
        Column("class_il_diff", "", "number", csv_only=True), Column("ci_low", "", "number", csv_only=True),
        Column("ci_high", "", "number", csv_only=True), Column("p", "", "number", csv_only=True),
        Column("p_fdr", "p", "p"), Column("p_within", f"p, within {margin:g} points", "p"),
        Column("task_il", "Change in Task-IL", "difference", "points"),
        Column("task_il_diff", "", "number", csv_only=True),
        Column("flops", "FLOPs, executed", "ratio"), SEEDS,
    ]  # fmt: skip
    notes = [
        "Paired on the same seeds, all else equal, 95 % t-interval; p: paired t-test, exploratory, with "
        f"false-discovery-rate control over the single pairs; p, within {margin:g} points: two one-sided tests against "
        f"{margin:g} points either way, with the same control.",
        *(["The first rows are averages over the pairs within a seed, with control over these rows."] * bool(averages)),
    ]
    return Table("ablation_effects", "Ablation: effect of each part", columns, made, notes, missing_of(rows))


def _rows(groups: Sequence[Sequence[Step]], margin: float) -> list[Row]:
    """Return a row for each group of pairs, corrected among themselves."""
    found = {m: [pooled([(on.seeds(m), off.seeds(m)) for _, off, on in group]) for group in groups] for m in METRICS}
    p_fdr = statistics.fdr([paired.p for paired in found["class_il"]])
    within = statistics.fdr([statistics.equivalence_p(paired, margin) for paired in found["class_il"]])
    made = []
    for index, group in enumerate(groups):
        (part, off, on), is_single = group[0], len(group) == 1
        paired, task_il = found["class_il"][index], found["task_il"][index]
        values = {
            "part": part, "off": off.name if is_single else f"average of {len(group)} pairs",
            "on": on.name if is_single else None, "sparsity": float(on.sparsity) if is_single else None,
            "buffer": int(on.buffer) if is_single else None, "class_il": paired, "class_il_diff": paired.mean,
            "p": paired.p, "ci_low": paired.ci_low, "ci_high": paired.ci_high, "p_fdr": p_fdr[index],
            "p_within": within[index], "task_il": task_il, "task_il_diff": task_il.mean,
            "flops": geometric_mean(on.mean("flops_executed") / off.mean("flops_executed") for _, off, on in group),
            "n": paired.n,
        }  # fmt: skip
        made.append(Row(values, part if is_single else "average"))
    return made
