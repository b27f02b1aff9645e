"""Whether tasks are learned: what dense learners reach right after a task, and what more epochs would change."""

from __future__ import annotations

from analysis import regime
from analysis.configurations import missing_of
from analysis.frames import Results
from analysis.regime import BELOW, LATE, METRICS, MOVED, Check
from analysis.tables import columns as shared
from analysis.tables.comparison import measures
from analysis.typeset import Column, Row, Table

ANSWERS = {True: "yes", False: "no", None: ""}


def _learned(check: Check) -> str:
    by_means = check.is_learned and check.doubled and not check.is_shown
    return "yes, by the means" if by_means else ANSWERS[check.is_learned]


def table(results: Results) -> Table:
    """The dense learners of the matrix, and of its pilot, with the checks of the regime."""
    checks = regime.checks(results)
    found = measures([check.learner for check in checks], METRICS)
    made = []
    for index, check in enumerate(checks):
        c = check.learner
        values = shared.identity_values(c) | {metric: column[index] for metric, column in found.items()}
        values |= {
            "epochs": check.epochs, "own": check.is_own, "late": 100 * check.late, "above": check.above,
            "learned": _learned(check), "forgotten": ANSWERS[check.is_forgotten],
            "pilot_n": min((paired.n for paired in check.moved.values()), default=None),
            "above_diff": check.above.mean if check.above else None,
        }  # fmt: skip
        for metric in METRICS:
            moved = check.moved.get(metric)
            values |= {f"moved_{metric}": moved, f"moved_{metric}_diff": moved.mean if moved else None}
        made.append(Row(values, f"{c.method}, {c.buffer}"))
    columns = [
        *shared.identity_columns(), shared.LABEL, shared.BUFFER, Column("epochs", "Epochs", "integer"),
        Column("own", "The matrix's", "flag"),
        Column("learning_class_il", "Learning accuracy, Class-IL", "measure", "%"),
        Column("learning_task_il", "Learning accuracy, Task-IL", "measure", "%"),
        Column("moved_learning_class_il", "Epochs doubled, Class-IL", "difference", "points"),
        Column("moved_learning_task_il", "Epochs doubled, Task-IL", "difference", "points"),
        Column("pilot_n", "Epochs doubled, n", "integer"),
        Column("late", "Loss, last quarter", "number", "% of its fall", digits=1), Column("learned", "Learned"),
        Column("above", "Above fine-tuning, Class-IL", "difference", "points"),
        Column("forgotten", "Forgotten without replay"),
        *(Column(f"moved_{metric}_diff", "", "number", csv_only=True) for metric in METRICS),
        Column("above_diff", "", "number", csv_only=True), shared.SEEDS,
    ]  # fmt: skip
    notes = [
        "Learning accuracy: accuracy on each task right after training it, mean over tasks. Learned: doubling the "
        f"epochs, or where that was not run the last doubling up to them, moves it by less than {MOVED:g} points in "
        "both metrics (pilot; by the means: one seed, or intervals that reach beyond); without a pilot, the last "
        f"quarter of a task's epochs makes less than {100 * LATE:g} % of the loss's fall since the first epoch. "
        f"Forgotten without replay: at least {BELOW:g} points of Class-IL above fine-tuning.",
        *regime.problems(checks), *regime.notes(results),
    ]  # fmt: skip
    missing = missing_of([c for kind in regime.learners(results) for c in kind])
    return Table("regime", "Whether tasks are learned", columns, made, notes, missing)
