"""Choose hyper-parameters from a matrix that sweeps them on held-out training images.

    python -m sparcl.search --plan results/tune-split-digits/plan.json --out results/tune-split-digits/chosen.yaml

A search is an ordinary matrix: its ``stream_options`` hold ``validation`` (the test images are then not used at
all) and its groups sweep parameters with ``set``. For each method, sparsity and buffer the combination with the
highest mean final average accuracy over the seeds is chosen (Class-IL; Task-IL for methods that have no Class-IL),
the earlier one in the plan if two are equal. The file that is written says what was compared, and any matrix uses
it through one line: ``hyperparameters: results/tune-split-digits/chosen.yaml``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparcl import atomic, record
from sparcl.errors import UserError, one_line

Setting = tuple[str, float, int]
"""Method, sparsity, buffer: what a choice is made for."""


def choose(plan: Mapping[str, Any], runs: Path) -> dict[str, Any]:
    """Return the chosen hyper-parameters of a finished search, as :func:`sparcl.cell.make` reads them.

    Args:
        runs: the folder of the plan's records.

    Raises:
        UserError: the plan is no search, or a record is missing, damaged or of another plan.
    """
    config = plan["config"]
    held_out = config.get("stream_options", {}).get("validation")
    swept = {group: sorted(entry["set"]) for group, entry in config["groups"].items() if entry.get("set")}
    if not held_out or not swept:
        raise UserError(f"{plan['name']}: a search needs stream_options.validation and a group with 'set'")
    scores: dict[Setting, dict[str, list[float]]] = {}
    metrics: dict[Setting, str] = {}
    for entry in plan["cells"]:
        keys = sorted({key for group in entry["groups"] for key in swept.get(group, ())})
        if not keys:
            continue
        found = _record(runs / entry["path"] / "record.json", entry["identity"])
        cell = entry["cell"]
        setting = (cell["method"], cell["sparsity"], cell["buffer"])
        metrics[setting] = "task_il" if found["method"]["task_il_only"] else "class_il"
        values = json.dumps({key: cell["params"][key] for key in keys}, sort_keys=True)
        score = found["results"]["metrics"][metrics[setting]]
        scores.setdefault(setting, {}).setdefault(values, []).append(score)
    source = f"search {plan['name']}: {{}} on {held_out:.0%} of the training images, held out"
    names = {"class_il": "Class-IL", "task_il": "Task-IL"}
    return {
        "components": [
            _choice(config["stream"], setting, found, source.format(names[metrics[setting]]))
            for setting, found in scores.items()
        ]
    }


def _record(path: Path, identity: str) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: expected the record of a finished cell; run the search first")
    found = record.read(path)
    if found["identity"] != identity:
        raise UserError(f"{path}: expected a record of this plan, found one of another config, code or library version")
    return found


def _choice(stream: str, setting: Setting, scores: Mapping[str, Sequence[float]], source: str) -> dict[str, Any]:
    """Return an entry of the hyper-parameter file: for whom, what, and what it was compared with."""
    means = {values: statistics.fmean(found) for values, found in scores.items()}
    best = max(means, key=lambda values: means[values])  # the first of equals
    method, sparsity, buffer = setting
    return {
        "where": {"stream": stream, "method": method, "sparsity": sparsity, "buffer": buffer},
        "values": json.loads(best),
        "source": source,
        "evidence": [
            {
                "values": json.loads(values),
                "mean": round(means[values], 4),
                "std": round(statistics.stdev(found), 4) if len(found) > 1 else None,
                "seeds": len(found),
            }
            for values, found in sorted(scores.items(), key=lambda item: -means[item[0]])
        ],
    }


def _plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a plan that 'sparcl plan' wrote ({one_line(error, 100)})") from error
    if not isinstance(plan, dict) or plan.get("schema") != "sparcl-plan/1":
        raise UserError(f"{path}: expected a plan with schema 'sparcl-plan/1'")
    return plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sparcl.search", description="Choose hyper-parameters.")
    parser.add_argument("--plan", type=Path, required=True, help="plan.json of the search; records lie beside it")
    parser.add_argument("--out", type=Path, required=True, help="YAML file to write")
    options = parser.parse_args(argv)
    try:
        chosen = choose(_plan(options.plan), options.plan.parent / "runs")
        text = "# Chosen by python -m sparcl.search; a matrix uses it with 'hyperparameters: <this file>'.\n"
        atomic.write_text(options.out, text + yaml.safe_dump(chosen, sort_keys=False, width=110))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for entry in chosen["components"]:
        where, values = entry["where"], ", ".join(f"{key} = {value}" for key, value in entry["values"].items())
        print(f"{where['method']}, sparsity {where['sparsity']:g}, buffer {where['buffer']}: {values}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
