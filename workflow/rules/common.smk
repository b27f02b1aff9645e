"""The matrix and its cells. Everything that can be wrong with a config is found here, before any job exists."""

import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Without --configfile the default matrix runs. A config file is never merged into it.
if "groups" not in config:

    configfile: Path(str(workflow.current_basedir)) / "../../config/split-digits.yaml"


SCRIPTS = Path(str(workflow.current_basedir)).parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
# Relative, so that a checkout that was moved or cloned has the same parameters.
CHECK = os.path.relpath(SCRIPTS / "check.py")

import progress
import startup

# `--config partial=true`: tables and figures of the records that are there; no cell runs.
PARTIAL = bool(config.get("partial", False))
MATRIX = {key: value for key, value in config.items() if key != "partial"}

startup.prepare()
try:
    PLAN = startup.plan(
        MATRIX, workflow.configfiles, bool(workflow.config_settings.config)
    )
except ValueError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{PLAN['name']}"
# The analysis reads the plan as a file, written when a run starts; what it says is a parameter of its jobs.
PLAN_DIGEST = startup.digest(PLAN)
CELLS = {entry["path"]: entry for entry in PLAN["cells"]}


wildcard_constraints:
    cell=r"[A-Za-z0-9._=,+-]+(/[A-Za-z0-9._=,+-]+)*",


def cell_json(wildcards):
    """Return the cell as the JSON text that `sparcl run` takes; with it every setting is a rerun trigger."""
    return json.dumps(CELLS[wildcards.cell]["cell"], sort_keys=True)


def identity(wildcards):
    """Return the hash of the cell's settings, the code of its method and the versions of the libraries."""
    return CELLS[wildcards.cell]["identity"]


def results_folder(wildcards, output):
    """Return the results folder of a record, which `sparcl run` takes as --results."""
    return Path(output[0]).parents[wildcards.cell.count("/") + 2]


def gpus(wildcards):
    return int(CELLS[wildcards.cell]["cell"]["device"] == "cuda")


def records(wildcards):
    """Return the records to aggregate: all of the plan, or (partial) those that are there."""
    found = [f"{RESULTS}/runs/{path}/record.json" for path in CELLS]
    return [record for record in found if Path(record).exists()] if PARTIAL else found


onstart:
    startup.write(PLAN, Path(RESULTS) / "plan.json")
    progress.start(workflow, Path(RESULTS))


onsuccess:
    progress.finish(Path(RESULTS), ", ".join(log), failed=False)


onerror:
    progress.finish(Path(RESULTS), ", ".join(log), failed=True)
