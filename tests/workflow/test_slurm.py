"""The workflow on a cluster: a one-node Slurm that is set up on this machine, or a reason why it cannot be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparcl.running import record

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]

TOP = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("slurm-localhost.sh")
LONG = """
  long: {methods: [lingers-derpp], buffers: [20], sparsities: [0.75], seeds: [3]}
"""
SHORT = """
name: short
title: Short
stream: split-digits
seeds: 4
defaults: {epochs: 1, width: 4}
groups:
  one: {methods: [er], buffers: [20]}
"""
STOPPED = """
name: stopped
title: Stopped
stream: split-digits
seeds: 1
defaults: {epochs: 3, batch_size: 32, width: 4}
groups:
  one: {methods: [lingers-er], buffers: [20], sparsities: [0.75]}
"""
OPTIONS = [
    "--workflow-profile", "profiles/slurm", "--slurm-status-command", "squeue", "--slurm-no-account",
    "--latency-wait", "20", "--seconds-between-status-checks", "2", "--slurm-init-seconds-before-status-checks", "2",
]  # fmt: skip


def skip(reason: str) -> None:
    pytest.skip(f"no Slurm here: {reason}")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm that runs jobs."""
    if os.getuid() != 0:
        skip("it is set up by root alone")
    if not shutil.which("slurmctld") and not shutil.which("apt-get"):
        skip("slurmctld is not installed, and there is no apt-get")
    folder = str(tmp_path_factory.mktemp("slurm"))
    try:
        up = subprocess.run([SCRIPT, "up", folder], capture_output=True, text=True, timeout=300)
        if up.returncode:
            skip((up.stderr.strip().splitlines() or [f"exit status {up.returncode}"])[-1])
        yield
    except subprocess.TimeoutExpired:
        skip("it was not up after five minutes")
    finally:
        subprocess.run([SCRIPT, "down", folder], capture_output=True)


def squeue(form: str) -> list[str]:
    """Return a line for each job, those that have ended among them."""
    command = ["squeue", "--all", "--noheader", "--states=all", "--sort=i", f"--format={form}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def detail(job: str, name: str) -> str:
    """Return one field of what Slurm knows of a job."""
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return re.search(rf"\b{name}=(\S+)", shown)[1]


def until_trained(process: subprocess.Popen, folder: Path) -> None:
    """Wait until a cell below ``folder`` has done its first task."""
    deadline = time.monotonic() + 1800
    while not any("task 1/5" in log.read_text() for log in folder.glob("**/log.txt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def runs(checkout: Any, name: str) -> dict[str, Any]:
    """Return what of each record must be the same wherever and however the cell was run."""
    folder = checkout.folder / "results" / name / "runs"
    return {path: record.reproducible(record.read(folder / path / "record.json")) for path in checkout.records(name)}


def test_a_cancelled_job_resumes_and_every_record_is_that_of_a_local_run(slurm: None, checkout: Any) -> None:
    smoke = (TOP / "config/smoke.yaml").read_text()
    local = checkout.write("local.yaml", smoke.replace("name: smoke", "name: local") + LONG)
    name = checkout.write("smoke.yaml", smoke + LONG)
    with checkout.lingering():
        process = checkout.start("-m", "snakemake", *OPTIONS, "--configfile", name)
        until_trained(process, checkout.folder / "results/smoke/runs/split-digits/lingers-derpp")
        (job,) = (line.split()[0] for line in squeue("%i %k") if "lingers" in line)
        subprocess.run(["scancel", job], check=True)
        while detail(job, "JobState") == "RUNNING":
            time.sleep(0.2)
    output = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, output
    checkout.snakemake(local, "--", "cells")
    expected = runs(checkout, "local")
    (long,) = (path for path in expected if path.endswith("seed3"))
    assert f"failed: {long}\n" in output
    assert f"cells {len(expected)}/{len(expected)} (100 %)" in output

    assert runs(checkout, "smoke") == expected
    assert record.read(checkout.folder / f"results/smoke/runs/{long}/record.json")["measured"]["resumed"] == 1
    first, second = (line.split()[0] for line in squeue("%i %k") if line.endswith(long.replace("/", "_")))
    assert detail(first, "JobState") == "CANCELLED"
    hours, minutes, seconds = map(int, detail(first, "TimeLimit").split(":"))
    once = 3600 * hours + 60 * minutes + seconds
    hours, minutes, seconds = map(int, detail(second, "TimeLimit").split(":"))
    assert 3600 * hours + 60 * minutes + seconds == 2 * once
    assert (checkout.folder / "results/smoke/report.html").exists()


def test_several_short_cells_in_one_job(slurm: None, checkout: Any) -> None:
    before = len(squeue("%i"))
    name = checkout.write("short.yaml", SHORT)
    groups = ("--groups", "cell=cells", "--group-components", "cells=4")
    checkout.run("-m", "snakemake", *OPTIONS, *groups, "--configfile", name, "--", "cells")
    assert len(checkout.records("short")) == 4
    (job,) = squeue("%i")[before:]
    assert detail(job, "NumCPUs") == "1"

    # A mistake in the code costs no record, and the same command runs the cells again.
    files = list((checkout.folder / "results/short").glob("runs/**/record.json"))
    old = {path: path.read_bytes() for path in files}
    checkout.replace("sparcl/trainer.py", "    replays = run.learner.replay(run)\n", "    replays = run.nothing\n")
    for _ in range(2):
        command = ("-m", "snakemake", *OPTIONS, *groups, "--retries", "0", "--configfile", name, "--", "cells")
        assert "cells to run: 4" in checkout.run(*command, status=1)
        assert {path: path.read_bytes() for path in files} == old
    checkout.replace("sparcl/trainer.py", "    replays = run.nothing\n", "    replays = run.learner.replay(run)\n")


def test_an_interrupt_cancels_the_jobs_which_leave_checkpoints(slurm: None, checkout: Any) -> None:
    name = checkout.write("stopped.yaml", STOPPED)
    results = checkout.folder / "results/stopped"
    with checkout.lingering():
        process = checkout.start("-m", "snakemake", *OPTIONS, "--configfile", name, "--", "cells")
        until_trained(process, results)
        process.terminate()
        output = process.communicate(timeout=600)[0]
    assert process.returncode == 1, output
    assert output.endswith("interrupted; the same command continues where the cells left checkpoints\n")
    deadline = time.monotonic() + 600
    while not list(results.glob("runs/**/checkpoint/state.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_script_says_how_it_is_used() -> None:
    done = subprocess.run([SCRIPT, "sideways", "folder"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"usage: {SCRIPT} up|down FOLDER\n")
    assert sys.platform != "linux" or os.access(SCRIPT, os.X_OK)
