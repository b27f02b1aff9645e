"""What happens before there are any jobs: the environment of the jobs, and the plan of the matrix."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparcl.files import atomic

THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL")


def prepare() -> None:
    """Set the environment that jobs inherit.

    Jobs run with the interpreter that runs Snakemake, unless Snakemake activates an environment for them. Cells
    share one start-up (``sparcl/worker.py``). Snakemake sets the thread counts of its jobs; the process that plans
    gets the same, so that it and the cells are children of one server.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ.setdefault("SPARCL_WORKER", "fork")
    for library in THREADS:
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def plan(matrix: Mapping[str, Any], files: Sequence[str | Path], overridden: bool) -> dict[str, Any]:
    """Return the plan of a matrix as ``sparcl plan`` makes it.

    A single config file that nothing overrides is read by ``sparcl plan`` itself, which sees more than the merged
    result: a key that stands twice, for example.

    Raises:
        ValueError: the matrix is wrong; the message has one line for each problem.
    """
    name = os.path.relpath(files[0]) if len(files) == 1 and not overridden else "-"
    done = subprocess.run(
        [sys.executable, "-m", "sparcl.worker", "plan", "--json", "--config", name],
        input=json.dumps(matrix),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return json.loads(done.stdout)


def digest(plan_: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything that a plan says."""
    return hashlib.sha256(json.dumps(plan_, sort_keys=True).encode()).hexdigest()


def write(plan_: Mapping[str, Any], path: Path) -> None:
    """Write a plan as ``sparcl plan`` does."""
    atomic.write_text(path, json.dumps(plan_, indent=1, sort_keys=True, allow_nan=False) + "\n")
