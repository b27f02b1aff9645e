"""The tables: which rows, which columns, compared with what. See ``docs/tables.md`` for how to read them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import frames, statistics
from analysis.frames import DONE, Results
from analysis.typeset import DASH, Column, Measure, Row, Table

FAMILY_ORDER = (
    "bound",
    "regularization",
    "isolation",
    "sibling",
    "rehearsal",
    "sparse-baseline",
    "ablation",
    "sparcl",
)
COMPARED = {"class_il": "higher", "task_il": "higher", "forgetting_class_il": "lower"}
ALPHA = 0.05
MEGABYTE = 1e6


class Configuration:
    """All seeds of one setting: a row of most tables.

    Attributes:
        key: path of its cells without the seed.
        rows, done: its rows of the frame, and those with a record; ``n`` counts the latter.
        name: the method's label, with its settings where another configuration has the same label.
        params: resolved parameters, as ``component.key``.
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
        self.policies: dict[str, str] = {kind: first[f"policy_{kind}"] for kind in ("sparsity", "gradient", "data")}
        self.task_il_only: bool = bool(first.task_il_only)
        self.sparsity: float = float(first.sparsity)
        self.buffer: int = int(first.buffer)
        self.variant: str = first.variant
        self.setting: str = first.setting
        self.params: dict = first.params
        self.name = f"{self.label} [{self.setting}]" if ambiguous and self.setting else self.label
        self.rows = rows
        self.done = rows[rows.status == DONE]
        self.n = len(self.done)
        self._means: dict[str, float] = {}

    def seeds(self, metric: str) -> dict[int, float]:
        """Seed to value over the finished cells."""
        return dict(zip(self.done.seed, self.done[metric], strict=True))

    def mean(self, metric: str) -> float:
        """Mean over the finished cells; nan without any."""
        if metric not in self._means:
            self._means[metric] = float(self.done[metric].mean()) if self.n else math.nan
        return self._means[metric]


def configurations(frame: pd.DataFrame) -> list[Configuration]:
    """The rows of ``frame`` by configuration, ordered by stream, buffer, family, method and sparsity."""
    parts = [rows for _, rows in frame.groupby("configuration", sort=False)]
    keys = [(r.stream.iloc[0], r.label.iloc[0], r.sparsity.iloc[0], r.buffer.iloc[0]) for r in parts]
    planned = {method: index for index, method in enumerate(dict.fromkeys(frame.method))}
    streams = {stream: index for index, stream in enumerate(dict.fromkeys(frame.stream))}
    found = [Configuration(rows, keys.count(key) > 1) for rows, key in zip(parts, keys, strict=True)]

    def order(c: Configuration) -> tuple:
        family = FAMILY_ORDER.index(c.family) if c.family in FAMILY_ORDER else len(FAMILY_ORDER) - 2
        return streams[c.stream], c.buffer, family, planned[c.method], c.sparsity, c.setting

    return sorted(found, key=order)


# -- references, comparisons, ties
def bundle_of(method: str) -> str:
    """``sparcl-derpp`` -> ``sparcl``: a reference's policies, to be looked for on another learner."""
    return method.rpartition("-")[0]


def reference_of(
    row: Configuration, pool: Sequence[Configuration], reference: str, same_learner: bool
) -> Configuration | None:
    """What ``row`` is compared with: the reference method on the same stream and buffer.

    At the same sparsity where the reference has it, else at its lowest. With ``same_learner`` the reference's
    policies on the row's own learner (SparCL-ER for RigL-ER). None for the reference itself and where the
    plan has no such cell.
    """
    if not reference:
        return None
    wanted = reference
    if same_learner and bundle_of(reference):
        wanted = f"{bundle_of(reference)}-{row.learner}"
    candidates = [
        c for c in pool if (c.stream, c.method, c.buffer) == (row.stream, wanted, row.buffer) and not c.setting
    ]
    if not candidates:
        return None
    same = [c for c in candidates if c.sparsity == row.sparsity]
    chosen = same[0] if same else min(candidates, key=lambda c: c.sparsity)
    return None if chosen.key == row.key else chosen


def measures(
    rows: Sequence[Configuration],
    metrics: Iterable[str],
    against: Callable[[Configuration], Configuration | None] = lambda row: None,
    block: Callable[[Configuration], str] | None = None,
) -> dict[str, list[Measure]]:
    """Per metric, the measure of each row: summary, bootstrap, comparison with ``against(row)``, bold.

    Holm's correction is over all rows of the table, per metric. Bold is per block and only for metrics that
    have a better end (:data:`COMPARED`); joint training, which sees all data at once, does not compete.
    """
    references = [against(row) for row in rows]
    result: dict[str, list[Measure]] = {}
    for metric in metrics:
        values = [row.seeds(metric) for row in rows]
        found = [
            Measure(
                statistics.summarize(list(v.values())),
                statistics.bootstrap_interval(list(v.values())),
                statistics.compare(v, reference.seeds(metric)) if reference is not None else None,
            )
            for v, reference in zip(values, references, strict=True)
        ]
        adjusted = statistics.holm([m.paired.p if m.paired else math.nan for m in found])
        winners: set[int] = set()
        if block is not None and metric in COMPARED:
            blocks: dict[str, dict[int, dict[int, float]]] = {}
            for index, row in enumerate(rows):
                if row.method != "joint":
                    blocks.setdefault(block(row), {})[index] = values[index]
            for competing in blocks.values():
                if len(competing) > 1:
                    winners |= statistics.best_with_ties(competing, COMPARED[metric] == "higher", ALPHA)
        result[metric] = [
            replace(m, p_holm=p, best=i in winners) for i, (m, p) in enumerate(zip(found, adjusted, strict=True))
        ]
    return result


def dense_of(row: Configuration, pool: Sequence[Configuration]) -> Configuration | None:
    """The dense run of the same learner, stream and buffer."""
    for c in pool:
        if (
            (c.stream, c.method, c.buffer) == (row.stream, row.learner, row.buffer)
            and c.sparsity == 0
            and c.n
            and not c.setting
        ):
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


# -- notes that several tables share
FORGETTING_NOTE = (
    "Forgetting: mean over all tasks but the last of (highest Class-IL accuracy on the task after any "
    "training task but the last, minus the final one), in points (Chaudhry et al. 2018); the variant that "
    "includes the last row is in the CSV as forgetting_class_il_mammoth. Learning accuracy: mean over tasks of the "
    "Class-IL accuracy on a task right after training it; what was never learned is not forgotten either."
)
FLOPS_NOTE = (
    "Training FLOPs (one multiply-add = 2): executed = what the run did, every replayed batch forward and "
    "backward; paper = the published convention, which charges a replayed batch a forward pass only. "
    "Ratio: FLOPs of the dense method of the same learner over the row's; where the plan has none, the executed "
    "ratio is to the run's own dense count and the paper's is a dash."
)


def spread_note(rows: Sequence[Configuration]) -> str:
    """Return the note that says what stands behind ±."""
    counts = sorted({row.n for row in rows})
    text = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts == [1]:
        return "n = 1 seed: a single run has no deviation, no interval and no test."
    spread = f"Mean ± sample standard deviation over n = {text} seeds."
    return f"{spread} 95 % intervals (t and bootstrap) are in the CSV."


def bold_note(rows: Sequence[Configuration], block: str) -> str:
    """Return the note that says what is bold."""
    least = min((row.n for row in rows if row.n), default=0)
    if least < 2:
        return f"Bold: highest mean within {block}; with fewer than 2 seeds no test and no ties."
    return (
        f"Bold: best within {block} and every row that a paired t-test does not tell from it (Holm over the"
        f" block, {ALPHA:.2f}); few seeds tell only large differences apart. Joint training does not "
        "compete."
    )


def reference_note(text: str) -> str:
    """Return the note on differences to the reference method, called ``text``."""
    return (
        f"Difference: Class-IL minus that of {text} on the same seeds, in points, with its 95 % t-interval; "
        "p: paired t-test, Holm-corrected over the table. Sign-flip p-values and effect sizes are in the CSV."
    )


def identity_columns(streams: int) -> list[Column]:
    """Columns for machines, and the stream where the table has more than one."""
    return [
        Column("configuration", "Configuration", csv_only=True),
        Column("method", "Method name", csv_only=True),
        Column("learner", "Learner", csv_only=True),
        Column("variant", "Variant", csv_only=True),
        Column("stream", "Stream", csv_only=streams < 2),
    ]


def identity_values(row: Configuration) -> dict[str, Any]:
    """Return what names a row in the CSV."""
    return {
        "configuration": row.key, "method": row.method, "learner": row.learner, "variant": row.variant,
        "stream": row.stream_label, "label": row.name, "sparsity": float(row.sparsity),
        "buffer": int(row.buffer), "n": row.n,
    }  # fmt: skip


METRIC_COLUMNS = {
    "class_il": Column("class_il", "Class-IL", "measure", "%"),
    "task_il": Column("task_il", "Task-IL", "measure", "%"),
    "forgetting_class_il": Column("forgetting_class_il", "Forgetting", "measure", "points"),
    "learning_class_il": Column("learning_class_il", "Learning accuracy", "measure", "%"),
    "forgetting_task_il": Column("forgetting_task_il", "Forgetting, Task-IL", "measure", "points", csv_only=True),
    "forgetting_class_il_mammoth": Column(
        "forgetting_class_il_mammoth", "Forgetting, last row included", "measure", "points", csv_only=True
    ),
}
LABEL, SPARSITY = Column("label", "Method"), Column("sparsity", "Sparsity", "number")
BUFFER, SEEDS = Column("buffer", "Buffer", "integer", "images"), Column("n", "n", "integer")
FLOPS = [
    Column("flops_executed", "FLOPs, executed", "flops"),
    Column("flops_paper", "FLOPs, paper", "flops"),
    Column("ratio_executed", "Ratio, executed", "ratio", digits=1),
    Column("ratio_paper", "Ratio, paper", "ratio", digits=1),
]
AGAINST = Column("reference", "Reference", csv_only=True)
DIFFERENCE = Column("difference", "Difference", "difference", "points")
P_HOLM = Column("p_holm", "p", "p", csv_only=False)


def flops_values(row: Configuration, pool: Sequence[Configuration]) -> dict[str, float]:
    """Return mean training FLOPs in two ledgers, each with its ratio to the dense method in ``pool``."""
    return {
        "flops_executed": row.mean("flops_executed"),
        "flops_paper": row.mean("flops_paper"),
        "ratio_executed": flops_ratio(row, pool, "flops_executed"),
        "ratio_paper": flops_ratio(row, pool, "flops_paper"),
    }


def _comparison(
    results: Results, name: str, title: str, rows: list[Configuration], columns: list[Column],
    block: Callable[[Configuration], str], block_text: str, same_learner: bool, notes: Sequence[str] = (),
    extra: Callable[[Configuration, Sequence[Configuration]], dict] = lambda row, pool: {},
    order: Callable | None = None,
) -> Table | None:  # fmt: skip
    """A table of configurations with metrics, FLOPs, and paired differences to the reference."""
    if not rows:
        return None
    if order is not None:
        rows = sorted(rows, key=order)
    title += f" on {', '.join(dict.fromkeys(row.stream_label for row in rows))}"
    pool = configurations(frames.main_rows(results.frame))
    reference = results.plan.reference

    def against(row: Configuration) -> Configuration | None:
        return reference_of(row, pool, reference, same_learner)

    found = measures(rows, METRIC_COLUMNS, against, block)
    made = []
    for index, row in enumerate(rows):
        values: dict[str, Any] = identity_values(row) | flops_values(row, pool) | extra(row, pool)
        values |= {metric: column[index] for metric, column in found.items()}
        if row.task_il_only:
            values |= {metric: None for metric in METRIC_COLUMNS if "class_il" in metric}
        first, other = found["class_il"][index], against(row)
        values |= {"difference": first.paired, "p_holm": first.p_holm}
        values["reference"] = "" if other is None else other.key
        made.append(Row(values, block(row)))
    streams = len({row.stream for row in rows})
    labels = {c.label for c in pool if c.method == reference}
    text = next(iter(labels), reference)
    if not reference:
        text = "the reference (this matrix names none)"
    elif same_learner and bundle_of(reference):
        text = f"{text.rpartition('-')[0]} on the same learner, buffer and sparsity"
    else:
        text += ", same buffer and sparsity (its lowest sparsity for dense rows)"
    all_notes = [
        spread_note(rows), bold_note(rows, block_text), reference_note(text), FORGETTING_NOTE, FLOPS_NOTE,
        *notes,
    ]  # fmt: skip
    planned = pd.concat([row.rows for row in rows])
    head = identity_columns(streams)
    return Table(name, title, head + columns, made, all_notes, tuple(frames.missing_lines(planned)))


def continual_learning(results: Results) -> Table | None:
    """Dense continual-learning methods against SparCL, per buffer."""
    rows = configurations(frames.main_rows(results.frame))
    rows = [row for row in rows if row.family not in ("sparse-baseline", "ablation")]
    columns = [BUFFER, LABEL, SPARSITY, *METRIC_COLUMNS.values(), *FLOPS, AGAINST, DIFFERENCE, P_HOLM, SEEDS]
    notes = []
    if any(row.buffer == 0 for row in rows):
        notes.append("Buffer 0: methods without a memory; they have no reference at equal memory.")
    if any(row.task_il_only for row in rows):
        notes.append(f"Methods that need the task's identity at test time have no Class-IL accuracy ({DASH}).")
    return _comparison(
        results, "continual_learning", "Continual-learning methods and SparCL", rows, columns,
        lambda row: f"{row.stream}, buffer {row.buffer}", "a buffer", False, notes,
    )  # fmt: skip


def is_sparse_training(row: Configuration) -> bool:
    """Whether a row is SparCL or a sparse-training method it competes with (plug-ins of any family name too)."""
    if row.family in ("sparse-baseline", "sparcl"):
        return True
    return bool(row.policies["sparsity"]) and row.family not in ("ablation", "isolation", "sibling")


def sparse_baselines(results: Results) -> Table | None:
    """Sparse-training baselines against SparCL, per buffer, learner and sparsity."""
    rows = configurations(frames.main_rows(results.frame))
    rows = [row for row in rows if row.sparsity > 0 and is_sparse_training(row)]
    if not any(row.family == "sparse-baseline" for row in rows):
        return None
    learners = {learner: index for index, learner in enumerate(dict.fromkeys(row.learner for row in rows))}
    rows.sort(key=lambda row: (row.stream, row.buffer, learners[row.learner], row.sparsity))
    columns = [BUFFER, SPARSITY, LABEL, *METRIC_COLUMNS.values(), *FLOPS, AGAINST, DIFFERENCE, P_HOLM, SEEDS]
    return _comparison(
        results, "sparse_baselines", "Sparse-training baselines and SparCL", rows, columns,
        lambda row: f"{row.stream}, buffer {row.buffer}, {row.learner}, sparsity {row.sparsity}",
        "a learner, buffer and sparsity", True,
    )  # fmt: skip


# -- ablation
PARTS = {"tdm": "sparsity", "ddr": "data", "dgm": "gradient"}


def has_part(row: Configuration, part: str) -> bool:
    """Return whether a configuration has the part ``part`` ("tdm", "ddr", "dgm") of SparCL."""
    return row.policies[PARTS[part]] == part


def ablation_rows(results: Results) -> list[Configuration]:
    """The ablation group; without one, SparCL's parts at whatever sparsities the plan has."""
    group = frames.in_group(results.frame, "ablation")
    rows = configurations(group if len(group) else frames.main_rows(results.frame))
    if not len(group):
        rows = [row for row in rows if row.family in ("ablation", "sparcl")]
    return rows if any(row.family == "ablation" for row in rows) else []


def ablation(results: Results) -> Table | None:
    """TDM x DDR x DGM."""
    rows = ablation_rows(results)
    columns = [
        BUFFER, LABEL, SPARSITY,
        *(Column(part, part.upper(), "flag") for part in PARTS),
        *METRIC_COLUMNS.values(), *FLOPS,
        Column("memory", "Memory, paper", "number", "MB"), AGAINST, DIFFERENCE, P_HOLM, SEEDS,
    ]  # fmt: skip

    def extra(row: Configuration, pool: Sequence[Configuration]) -> dict:
        return {part: has_part(row, part) for part in PARTS} | {"memory": row.mean("paper_memory_ablation") / MEGABYTE}

    def order(row: Configuration) -> tuple:
        switched = [has_part(row, part) for part in PARTS]
        return row.stream, row.buffer, row.learner, row.sparsity, sum(switched), [not s for s in switched]

    return _comparison(
        results, "ablation", "Ablation: TDM, DDR and DGM", rows, columns,
        lambda row: f"{row.stream}, buffer {row.buffer}, {row.learner}", "a learner and buffer", True,
        ["TDM off at a sparsity above 0: a fixed mask. Memory by the paper's convention (table memory)."],
        extra, order,
    )  # fmt: skip


def ablation_effects(results: Results) -> Table | None:
    """What switching on one of TDM, DDR, DGM changes, with all else equal."""
    rows = ablation_rows(results)
    pairs = []
    for part in PARTS:
        for off, on in itertools.permutations(rows, 2):
            same = (off.stream, off.buffer, off.learner, off.sparsity) == (
                on.stream,
                on.buffer,
                on.learner,
                on.sparsity,
            )
            others = all(has_part(off, other) == has_part(on, other) for other in PARTS if other != part)
            if same and others and has_part(on, part) and not has_part(off, part):
                pairs.append((part, off, on))
    if not pairs:
        return None
    found = {
        metric: [statistics.compare(on.seeds(metric), off.seeds(metric)) for _, off, on in pairs]
        for metric in ("class_il", "task_il")
    }
    adjusted = statistics.holm([paired.p for paired in found["class_il"]])
    made = []
    for index, (part, off, on) in enumerate(pairs):
        paired = found["class_il"][index]
        made.append(
            Row(
                {
                    "part": part.upper(), "off": off.name, "on": on.name, "sparsity": float(on.sparsity),
                    "buffer": int(on.buffer), "class_il": paired, "class_il_diff": paired.mean, "p": paired.p,
                    "ci_low": paired.ci_low, "ci_high": paired.ci_high, "p_permutation": paired.p_permutation,
                    "p_holm": adjusted[index], "hedges_gz": paired.hedges_gz,
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
        Column("p_permutation", "", "number", csv_only=True), Column("p_holm", "p", "p"),
        Column("hedges_gz", "Hedges g", "number"),
        Column("task_il", "Change in Task-IL", "difference", "points"),
        Column("task_il_diff", "", "number", csv_only=True),
        Column("flops", "FLOPs, executed", "ratio"), SEEDS,
    ]  # fmt: skip
    planned = pd.concat([row.rows for row in rows])
    notes = [
        "Paired on the same seeds, all else equal, 95 % t-interval; p: paired t-test, Holm-corrected over "
        "the table. Hedges g: mean difference over the deviation of the differences, corrected for small "
        "samples.",
    ]
    return Table("ablation_effects", "Ablation: effect of each part", columns, made, notes,
                 tuple(frames.missing_lines(planned)))  # fmt: skip


# -- memory
def memory(results: Results) -> Table | None:
    """Training memory footprint in bytes, by the suite's rules and by the paper's."""
    rows = [row for row in configurations(frames.main_rows(results.frame)) if row.method != "joint" or row.n]
    pool = rows
    names = {
        "weights": "Weights", "indices": "Indices", "gradients": "Gradients", "activations": "Activations",
        "replay_memory": "Replay memory", "optimizer": "Optimizer", "total": "Total",
    }  # fmt: skip
    columns = [BUFFER, LABEL, SPARSITY]
    columns += [Column(f"memory_{key}", header, "number", "MB", digits=3) for key, header in names.items()]
    columns += [
        Column("saving", "Saved", "number", "%", digits=1),
        Column("paper_ablation", "Paper, ablation table", "number", "MB", digits=3),
        Column("paper_phone", "Paper, phone", "number", "MB", digits=3),
        Column("saving_phone", "Saved, phone", "number", "%", digits=1),
        SEEDS,
    ]

    def saved(row: Configuration, key: str) -> float:
        dense = dense_of(row, pool)
        if dense is None or dense is row or dense.key == row.key:
            return math.nan
        return 100 * (1 - row.mean(key) / dense.mean(key))

    made = []
    for row in rows:
        values: dict[str, Any] = identity_values(row)
        values |= {f"memory_{key}": row.mean(f"memory_{key}") / MEGABYTE for key in names}
        values |= {
            "saving": saved(row, "memory_total"),
            "paper_ablation": row.mean("paper_memory_ablation") / MEGABYTE,
            "paper_phone": row.mean("paper_memory_phone") / MEGABYTE,
            "saving_phone": saved(row, "paper_memory_phone"),
        }
        made.append(Row(values, f"{row.stream}, {row.buffer}"))
    notes = [
        "Computed from shapes and masks, not measured; MB = 10^6 bytes; mean over seeds. Suite: weights "
        "that are not zero and their indices, gradients that are kept, activations kept for the backward "
        "pass, replay memory, optimizer state. Saved: against the dense method of the same learner and "
        "buffer.",
        "Paper: activations of one batch (twice in the ablation table, once in the phone figures) plus "
        "weights and gradients at their densities; inferred from the published figures (docs/flops.md).",
    ]
    head = identity_columns(len({row.stream for row in rows}))
    planned = pd.concat([row.rows for row in rows])
    return Table("memory", "Memory footprint of training", head + columns, made, notes,
                 tuple(frames.missing_lines(planned)))  # fmt: skip


# -- sweeps
def is_number(value: Any) -> bool:
    """Whether a parameter's value is one that a sweep can be drawn over."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sweeps(results: Results) -> Table | None:
    """DDR's proportion and cutoff, DGM's sparsity: one block each."""
    made, chosen, everything = [], [], []
    pool = configurations(frames.main_rows(results.frame))
    for group, parameter in frames.SWEEPS.items():
        rows = [
            row for row in configurations(frames.in_group(results.frame, group)) if is_number(row.params.get(parameter))
        ]
        order = [(r.stream, r.learner, r.buffer, r.sparsity, r.params[parameter], i) for i, r in enumerate(rows)]
        rows = [rows[place[-1]] for place in sorted(order)]
        chosen += [(group, parameter, row) for row in rows]
    if not chosen:
        return None
    rows = [row for _, _, row in chosen]
    found = measures(
        rows, METRIC_COLUMNS,
        lambda row: next((c for c in pool if not c.setting and c.key != row.key
                          and (c.stream, c.method, c.sparsity, c.buffer)
                          == (row.stream, row.method, row.sparsity, row.buffer)), None),
    )  # fmt: skip
    for index, (group, parameter, row) in enumerate(chosen):
        values: dict[str, Any] = identity_values(row) | flops_values(row, pool)
        values |= {metric: column[index] for metric, column in found.items()}
        values |= {"sweep": group, "parameter": parameter, "value": row.params[parameter], "label": row.label,
                   "data_fraction": row.mean("data_fraction"), "difference": found["class_il"][index].paired,
                   "p_holm": found["class_il"][index].p_holm}  # fmt: skip
        made.append(Row(values, group))
        everything.append(row.rows)
    columns = [
        Column("sweep", "Sweep", csv_only=True), Column("parameter", "Parameter"), Column("value", "Value"),
        LABEL, SPARSITY, BUFFER, *METRIC_COLUMNS.values(), *FLOPS,
        Column("data_fraction", "Data presented", "number", "fraction", digits=3), DIFFERENCE, P_HOLM, SEEDS,
    ]  # fmt: skip
    notes = [spread_note(rows), reference_note("the default setting"), FORGETTING_NOTE, FLOPS_NOTE]
    head = identity_columns(len({row.stream for row in rows}))
    return Table("sweeps", "Sweeps of DDR and DGM", head + columns, made, notes,
                 tuple(frames.missing_lines(pd.concat(everything))))  # fmt: skip


# -- everything
def all_cells(results: Results) -> Table:
    """Every planned cell, one row each, with what became of it."""
    frame = results.frame
    columns = [
        Column("path", "Cell"), Column("groups", "Groups", csv_only=True), Column("status", "Status"),
        *(Column(key, key, csv_only=True) for key in frames.CELL_FIELDS),
        *(Column(key, key, csv_only=True) for key in ("variant", "label", "family", "learner")),
        *(Column(key, key, "number", digits=4, csv_only=key not in COMPARED) for key in frames.METRICS),
        Column("flops_executed", "FLOPs, executed", "flops"), Column("flops_paper", "FLOPs, paper", "flops"),
        Column("flops_dense", "FLOPs, dense", "flops", csv_only=True),
        Column("flops_evaluation", "FLOPs, evaluation", "flops", csv_only=True),
        Column("memory_total", "Memory", "number", "bytes", digits=0, csv_only=True),
        Column("wall_seconds", "Wall time", "number", "s", digits=1),
        Column("peak_rss_bytes", "Peak memory", "number", "bytes", digits=0, csv_only=True),
        Column("reason", "Reason", csv_only=True),
    ]  # fmt: skip
    printed = {"class_il": "Class-IL", "task_il": "Task-IL", "forgetting_class_il": "Forgetting"}
    columns = [
        replace(c, header=printed[c.key], unit="points" if "forgetting" in c.key else "%", digits=2)
        if c.key in printed
        else c
        for c in columns
    ]
    made = []
    for record in frame.to_dict("records"):
        values = {column.key: record.get(column.key) for column in columns}
        values["groups"] = " ".join(record["groups"])
        made.append(Row(values, str(record["stream"])))
    missing = list(frames.missing_lines(frame))
    missing += [f"{path}: not of this plan, left out" for path in results.foreign]
    return Table("all_cells", "All cells", columns, made, [FORGETTING_NOTE], tuple(missing))


def build(results: Results) -> dict[str, Table]:
    """All tables that the plan has cells for, by name, in the order of the report."""
    from analysis.overall import overall
    from analysis.published import published

    makers = {
        "overall": overall, "continual_learning": continual_learning, "sparse_baselines": sparse_baselines,
        "ablation": ablation, "ablation_effects": ablation_effects, "memory": memory, "sweeps": sweeps,
        "published": published, "all_cells": all_cells,
    }  # fmt: skip
    made = {name: maker(results) for name, maker in makers.items()}
    return {name: table for name, table in made.items() if table is not None}


NAMES = (
    "overall", "continual_learning", "sparse_baselines", "ablation", "ablation_effects", "memory", "sweeps",
    "published", "all_cells",
)  # fmt: skip
