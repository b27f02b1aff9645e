"""The plan and what the rules ask of it. What can be wrong with a config is found here, before any job exists."""

import json
import math
import os
import shlex
import sys
import time
from pathlib import Path

from snakemake.logging import logger

# Without --configfile the default matrix runs. A config file is never merged into it.
if "groups" not in config and not workflow.config_settings.configfiles:

    configfile: Path(str(workflow.current_basedir)) / "../../config/split-digits.yaml"


SCRIPTS = Path(str(workflow.current_basedir)).parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import planning
import session

import analysis
import sparcl
from analysis import catalog
from sparcl import groups
from sparcl.errors import RunError, UserError

session.prepare()
planning.check_cores(workflow.cores)

# `--config partial=true`: tables and figures of the records that are there; no cell runs.
PARTIAL = planning.switch("partial", config.get("partial", False))
MATRIX = {key: value for key, value in config.items() if key != "partial"}

# The process that the user has started makes the plan, and writes it when the run starts. A job that has a Snakemake
# process of its own, on a node of a cluster for example, reads it there.
if workflow.is_main_process:
    PLAN = planning.make(
        MATRIX,
        workflow.configfiles,
        bool({*workflow.config_settings.config} - {"partial"}),
    )
else:
    default = Path("results", str(config["name"]), "plan.json")
    PLAN = planning.read(os.environ.get(session.PLAN, default))

RESULTS = f"results/{PLAN['name']}"
PLAN_FILE = f"{RESULTS}/plan.json"
CELLS = {entry["path"]: entry for entry in PLAN["cells"]}
TABLES, FIGURES = catalog.tables(PLAN), catalog.figures(PLAN)
# What tables are made by, beside the records: a parameter of the jobs that make them.
PLAN_DIGEST = planning.digest(PLAN)
CODE_DIGEST = planning.code(Path(analysis.__path__[0]), Path(sparcl.__path__[0]))


wildcard_constraints:
    cell=r"[A-Za-z0-9._=+-]+(/[A-Za-z0-9._=+-]+)*",
    table=r"[A-Za-z0-9._+-]+",
    figure=r"[A-Za-z0-9._+-]+",


# What is timed: the main groups' cells, whatever their seed. Another code makes no old measurement stale.
ASIDE = groups.apart(PLAN["config"])
MAIN = [e["cell"] for e in PLAN["cells"] if groups.in_main(e["groups"], ASIDE)]
TIMED = planning.digest(
    sorted({json.dumps(cell | {"seed": 0}, sort_keys=True) for cell in MAIN})
)

# The stream's check, which cells wait for.
DATA = f"{RESULTS}/data.txt"

# Snakemake knows what jobs were made with as long as its folder `.snakemake` is there. Beside results of another clone,
# records of another identity and a tidy table of another plan are found by what they say themselves: their jobs have a
# file among their inputs that is newer than they are.
NOW = ".snakemake/now"
STALE, IS_COLLECTED = set(), True
if workflow.is_main_process and not PARTIAL:
    STALE = planning.stale(PLAN, Path(RESULTS))
    IS_COLLECTED = not STALE and planning.is_collected(PLAN, Path(RESULTS))
    if STALE or not IS_COLLECTED:
        try:
            # Of a small file Snakemake compares the contents, too.
            Path(NOW).parent.mkdir(exist_ok=True)
            Path(NOW).write_text(str(time.time_ns()))
        except OSError:  # a look at somebody else's folder
            STALE, IS_COLLECTED = set(), True


def launch(command):
    """Return the shell command of a job. What stands here is no parameter: no job becomes stale by it."""
    script = shlex.quote(os.path.relpath(SCRIPTS / "launch.py"))
    return f"exec python -I -S {script} {command}"


def analysis_of(command, out=RESULTS):
    """Return the shell command of a job that makes something of the records. The tidy table lies beside the plan."""
    return launch(f"analysis {command} --plan {PLAN_FILE} --out {out} > {{log:q}} 2>&1")


def records():
    """Return the records to collect: all of the plan, or (partial) those that are there."""
    found = [f"{RESULTS}/runs/{path}/record.json" for path in CELLS]
    return [record for record in found if Path(record).exists()] if PARTIAL else found


def checked_data(wildcards):
    """Return what a cell waits for: the stream's check. An old record does not become stale by its absence."""
    if wildcards.cell in STALE:
        return [ancient(DATA), NOW]
    is_old = Path(RESULTS, "runs", wildcards.cell, "record.json").exists()
    return [] if is_old and not Path(DATA).exists() else ancient(DATA)


def outdated(wildcards):
    """Return what makes the tidy table stale where the one that lies there is not of this plan."""
    return [] if IS_COLLECTED else NOW


def stream_options(wildcards):
    """Return the stream's options as `sparcl data` takes them."""
    options = MATRIX.get("stream_options", {})
    return [
        f"--set=stream.{key}={json.dumps(options[key], ensure_ascii=False)}"
        for key in sorted(options)
    ]


def cell_json(wildcards):
    """Return the cell as the JSON text that `sparcl run` takes."""
    return json.dumps(CELLS[wildcards.cell]["cell"], sort_keys=True)


def identity(wildcards):
    """Return the hash of the cell's settings, the code of its method and the versions of the libraries."""
    return CELLS[wildcards.cell]["identity"]


def measured(wildcards):
    """Return the measured times, for the table and the figure that are about them; nothing is timed in a partial run."""
    name, times = (
        wildcards.get("table") or wildcards.get("figure"),
        f"{RESULTS}/timing.json",
    )
    if name != "counted_against_measured" or (PARTIAL and not Path(times).exists()):
        return []
    return [times]


def gpus(wildcards):
    return int(CELLS[wildcards.cell]["cell"]["device"] == "cuda")


def minutes(wildcards, attempt):
    """Return a job's time limit for a cluster: ten minutes and four times the estimate, more at each attempt."""
    seconds = CELLS[wildcards.cell]["resources"]["seconds"]
    return (10 + math.ceil(4 * seconds / 60)) * attempt


def megabytes(wildcards, attempt):
    return math.ceil(CELLS[wildcards.cell]["resources"]["memory_mb"]) * attempt


# What the tidy table is made of, and by.
COLLECTED = {
    "plan": PLAN_DIGEST,
    "code": CODE_DIGEST,
    "records": planning.digest(records()),
}


onstart:
    try:
        is_free = session.start(Path(PLAN_FILE), workflow.local_exec)
        problem = "" if is_free else session.BUSY
        if is_free:
            planning.write(PLAN, Path(PLAN_FILE))
    except (OSError, UserError, RunError) as error:
        problem = str(error)
    if problem:
        logger.error(f"error: {problem}")
        sys.exit(2)
    # For its limit of jobs a second Snakemake goes over all waiting jobs, again and again, the more often the more have
    # ended: half a core after a hundred cells of a large matrix. Only a cluster needs the limit.
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None
    seconds = {path: entry["resources"]["seconds"] for path, entry in CELLS.items()}
    logger.info(
        f"plan: {PLAN_FILE}",
        extra={"sparcl": {"results": RESULTS, "seconds": seconds}},
    )


onsuccess:
    logger.info(
        f"results: {RESULTS}", extra={"sparcl": {"log": list(log), "failed": False}}
    )


onerror:
    logger.info(
        f"results: {RESULTS}",
        extra={
            "sparcl": {
                "log": list(log),
                "failed": True,
                "interrupted": session.was_interrupted(),
            }
        },
    )
    # Bad input has its own exit status, that of the commands; for all else Snakemake's own, 1.
    if session.refused(Path(RESULTS, "logs").glob("*.txt")):
        sys.exit(2)
