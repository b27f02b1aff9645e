"""What ``make tables`` does once there is a virtual environment: check, run, and make what the finished cells allow.

    python workflow/scripts/run.py [--config FILE] [--cores N] TARGET [SNAKEMAKE OPTIONS]

Exit status 2 for a config that cannot be used (one line per problem, nothing is run) or a record that cannot be used
(one line, and old tables, figures and report stay), 1 when cells failed (the others ran, and what was asked for is made
of the records there are) or the run was interrupted, else 0.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

STATE = Path(".snakemake")
REFUSED = STATE / "refused"
"""Written by the workflow (``progress.py``) when it refuses a run record."""


def main(argv: list[str] | None = None) -> int:
    """Run one target; return the exit status."""
    parser = argparse.ArgumentParser(description="Run a matrix and make its tables, figures and report.")
    parser.add_argument("--config", default="config/split-digits.yaml", help="matrix config")
    parser.add_argument("--cores", default="all", help="cells at a time, a number or 'all'")
    parser.add_argument("target", choices=("all", "cells", "tables", "figures", "report", "tune"))
    options, further = parser.parse_known_args(argv)
    try:
        lock = _lock()
    except BlockingIOError:
        print("error: another run is at work in this folder; wait for it or stop it", file=sys.stderr)
        return 2
    except OSError as error:
        problem = f"expected a folder that can be written to ({error.strerror or error})"
        print(f"error: {STATE}: {problem}", file=sys.stderr)
        return 2
    with lock:
        return _run(options, further)


def _lock() -> TextIO:
    """Take the lock that all runs in this folder share; it lasts until the file is closed."""
    STATE.mkdir(exist_ok=True)
    if not os.access(STATE, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    lock = (STATE / "run.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        REFUSED.unlink(missing_ok=True)
    except OSError:
        lock.close()
        raise
    return lock


def _run(options: argparse.Namespace, further: list[str]) -> int:
    worker = {**os.environ, "SPARCL_WORKER": "fork"}
    checking = [sys.executable, "-m", "sparcl.worker", "plan", "--config", options.config]
    checked = subprocess.run(checking, env=worker).returncode
    if checked:
        return checked
    if options.target == "tune" and not _is_search(options.config):
        problem = "stream_options.validation: missing, a search holds training images out"
        print(f"error: {options.config}: {problem}", file=sys.stderr)
        return 2
    snakemake = [sys.executable, "-m", "snakemake", "--cores", options.cores]
    snakemake += ["--configfile", options.config, *further]
    if any((STATE / "locks").glob("*")):
        # We hold the lock of all such runs: Snakemake's own was left behind by one that was killed.
        unlocked = subprocess.run([*snakemake, "--quiet", "all", "--unlock"]).returncode
        if unlocked:
            print(f"error: {STATE / 'locks'}: left by a killed run, cannot be removed", file=sys.stderr)
            return 2
    job = Interruptible([*snakemake, "--", options.target])
    status = job.wait()
    if status == 0 or job.interrupted:
        return min(status, 1)
    if REFUSED.exists():
        return 2
    if options.target != "cells":
        print("making what the finished cells allow", file=sys.stderr, flush=True)
        Interruptible([*snakemake, "--config", "partial=true", "--", options.target]).wait()
    return 2 if REFUSED.exists() else 1


def _is_search(config: str) -> bool:
    from sparcl.files import strict_yaml

    return bool(strict_yaml.load(config).get("stream_options", {}).get("validation"))


class Interruptible:
    """A child process that gets the signals that we get, and that we wait for in any case."""

    def __init__(self, command: list[str]) -> None:
        self.interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._forward)
        self.process = subprocess.Popen(command)

    def _forward(self, number: int, _frame: Any) -> None:
        if not self.interrupted and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.interrupted = True

    def wait(self) -> int:
        """Return the child's exit status."""
        return self.process.wait()


if __name__ == "__main__":
    sys.exit(main())
