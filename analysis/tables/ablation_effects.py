"""What switching on one of TDM, DDR, DGM changes."""

from __future__ import annotations

import itertools

from analysis import statistics
from analysis.catalog import PARTS
from analysis.configurations import missing_of
from analysis.frames import Results
from analysis.tables.ablation import ablation_rows, has_part
from analysis.tables.columns import BUFFER, SEEDS, SPARSITY
from analysis.typeset import Column, Row, Table


def table(results: Results) -> Table:
    """What switching on one of TDM, DDR, DGM changes, with all else equal."""
    rows = ablation_rows(results)
    pairs = []
    for part in PARTS:
        for off, on in itertools.permutations(rows, 2):
            same = (off.buffer, off.learner, off.sparsity) == (on.buffer, on.learner, on.sparsity)
            others = all(has_part(off, other) == has_part(on, other) for other in PARTS if other != part)
            if same and others and has_part(on, part) and not has_part(off, part):
                pairs.append((part, off, on))
    found = {
        metric: [statistics.compare(on.seeds(metric), off.seeds(metric)) for _, off, on in pairs]
        for metric in ("class_il", "task_il")
    }
    adjusted = statistics.fdr([paired.p for paired in found["class_il"]])
    made = []
    for index, (part, off, on) in enumerate(pairs):
        paired = found["class_il"][index]
        made.append(
            Row(
                {
                    "part": part.upper(), "off": off.name, "on": on.name, "sparsity": float(on.sparsity),
                    "buffer": int(on.buffer), "class_il": paired, "class_il_diff": paired.mean, "p": paired.p,
                    "ci_low": paired.ci_low, "ci_high": paired.ci_high, "p_fdr": adjusted[index],
                    "task_il": found["task_il"][index],
                    "task_il_diff": found["task_il"][index].mean,
                    "flops": on.mean("flops_executed") / off.mean("flops_executed"),
                    "n": paired.n,
                },
                part,
            )
        )  # fmt: skip
    columns = [
        Column("part", "Switched on"), Column("off", "From"), Column("on", "To"), BUFFER, SPARSITY,
        Column("class_il", "Change in Class-IL", "difference", "points"),
        Column("class_il_diff", "", "number", csv_only=True), Column("ci_low", "", "number", csv_only=True),
        Column("ci_high", "", "number", csv_only=True), Column("p", "", "number", csv_only=True),
        Column("p_fdr", "p", "p"),
        Column("task_il", "Change in Task-IL", "difference", "points"),
        Column("task_il_diff", "", "number", csv_only=True),
        Column("flops", "FLOPs, executed", "ratio"), SEEDS,
    ]  # fmt: skip
    notes = [
        "Paired on the same seeds, all else equal, 95 % t-interval; p: paired t-test, exploratory, with "
        "false-discovery-rate control over the table."
    ]
    return Table("ablation_effects", "Ablation: effect of each part", columns, made, notes, missing_of(rows))
