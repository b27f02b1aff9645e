"""The matrix and its cells. Everything that can be wrong with a config is found here, before any job exists."""

import json
import os
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Without --configfile the default matrix runs. A config file is never merged into it.
if "groups" not in config:

    configfile: Path(str(workflow.current_basedir)) / "../config/split-digits.yaml"


sys.path.insert(0, str(Path(str(workflow.current_basedir)).parent / "scripts"))

import progress

# Jobs run with the interpreter that runs Snakemake, unless Snakemake activates an environment for them.
os.environ["PATH"] = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
)

# Cells share one start-up (see sparcl/worker.py); each computes with one thread. Snakemake sets the same variables
# for its jobs, so that the process that plans and the processes that run are children of one server.
os.environ.setdefault("SPARCL_WORKER", "fork")
for _library in ("OMP", "GOTO", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

# `--config partial=true`: tables and figures of the records that are there; no cell runs.
PARTIAL = bool(config.get("partial", False))
MATRIX = {key: value for key, value in config.items() if key != "partial"}


def make_plan():
    """Return the checked matrix as the plan that `sparcl plan` makes of it."""
    files = [os.path.relpath(file) for file in workflow.configfiles]
    names = files if len(files) == 1 and not workflow.config_settings.config else ["-"]
    done = subprocess.run(
        [sys.executable, "-m", "sparcl.worker", "plan", "--json", "--config", *names],
        input=json.dumps(MATRIX),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise WorkflowError(done.stderr.strip())
    return json.loads(done.stdout)


PLAN = make_plan()
RESULTS = f"results/{PLAN['name']}"
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
    return output[0].removesuffix(f"/runs/{wildcards.cell}/record.json")


def gpus(wildcards):
    return int(CELLS[wildcards.cell]["cell"]["device"] == "cuda")


def records(wildcards):
    """Return the records to aggregate: all of the plan, or (partial) those that are there."""
    found = [f"{RESULTS}/runs/{path}/record.json" for path in CELLS]
    return [record for record in found if Path(record).exists()] if PARTIAL else found


onstart:
    progress.start(workflow, Path(RESULTS))


onsuccess:
    progress.finish(Path(RESULTS), failed=False)


onerror:
    progress.finish(Path(RESULTS), failed=True)
