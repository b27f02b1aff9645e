"""What a gain of SparCL over dense training is made of: comparisons by protocol, main effects, interactions."""

from __future__ import annotations

from typing import Any

from analysis import frames, gain, regime
from analysis.configurations import configurations, missing_of
from analysis.contrasts import verdict
from analysis.frames import Results
from analysis.tables.columns import SEEDS
from analysis.typeset import Column, Row, Table
from sparcl.groups import GAIN

KINDS = {"comparison": "SparCL as compared", "main": "main effect", "interaction": "interaction"}


def table(results: Results) -> Table:
    """The effects of the crossed design."""
    made = []
    for effect in gain.effects(results):
        paired, other = effect.found["class_il"], effect.found["task_il"]
        values: dict[str, Any] = {
            "kind": KINDS[effect.kind], "name": effect.name, "where": effect.where, "class_il": paired,
            "task_il": other, "at_high": effect.at_high, "at_low": effect.at_low, "p": paired.p,
            "p_fdr": effect.p_fdr, "verdict": verdict(paired.mean, effect.p_fdr), "pairs": effect.pairs,
            "class_il_sd": paired.sd, "n": paired.n,
        }  # fmt: skip
        for key in ("class_il", "task_il", "at_high", "at_low"):
            if (one := values[key]) is not None:
                values |= {f"{key}_diff": one.mean, f"{key}_ci_low": one.ci_low, f"{key}_ci_high": one.ci_high}
        made.append(Row(values, effect.kind))
    numbers = [f"{key}_{number}" for key in ("class_il", "task_il", "at_high", "at_low")
               for number in ("diff", "ci_low", "ci_high")]  # fmt: skip
    columns = [
        Column("kind", "Effect"), Column("name", "Difference"), Column("where", "Protocol, or second factor"),
        Column("class_il", "Class-IL", "difference", "points"), Column("p_fdr", "p", "p"),
        Column("verdict", "Verdict"), Column("at_high", "At the second's first level", "difference", "points"),
        Column("at_low", "At its other level", "difference", "points"),
        Column("task_il", "Task-IL", "difference", "points"), Column("pairs", "Pairs", "integer"),
        *(Column(key, "", "number", csv_only=True) for key in (*numbers, "class_il_sd", "p")), SEEDS,
    ]  # fmt: skip
    notes = [
        *regime.notes(results),
        "Crossed on the same seeds: training (dense, static, ...), the classes of the stream's loss, the start of "
        "replay, data removal. SparCL as compared: with data removal, minus the other without; each by its source is "
        "SparCL by its released code against the other by DER's, from which the published dense figures are; what the "
        "paper's RigL and SNIP used is not known.",
        "Main effect: averaged over all levels of the other factors within a seed. Interaction: how much larger the "
        "difference is at the first level of the second factor than at its other one (a difference of differences); "
        "both stand beside it. Pairs: of cells that a seed's value is averaged over.",
        "95 % t-interval over seeds; p: paired t-test, exploratory, with false-discovery-rate control over the table.",
    ]
    missing = missing_of(configurations(frames.in_group(results.frame, GAIN)))
    title = f"What the gain is made of, on {results.plan.stream['label']}"
    return Table("gain", title, columns, made, notes, missing)
