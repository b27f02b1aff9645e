"""What a run of the pipeline prints: cells done and total, time left, then what failed and where results are.

Snakemake logs several blocks per job, which for hundreds of cells hide everything else. While a run lasts
they go to Snakemake's log file only, and these lines take their place. A dry run is left as it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

SECONDS = 5.0
"""Between two lines."""
CHATTER = {"job_info", "job_started", "job_finished", "progress", "shellcmd", "resources_info"}
SELECTING = "Select jobs to execute..."
LAST = ("Complete log(s): ", "Elapsed time: ")
"""What Snakemake says after the last hook; :func:`finish` says it before, so that the results come last."""
CELL_COMMAND = "sparcl.worker run --cell"
CHECK_COMMAND = "scripts/check.py"
GIVING_UP = ("Exiting because a job execution failed", "WorkflowError:\nAt least one job did not complete")
REFUSED = Path(".snakemake/refused")
"""Where ``run.py`` finds the line about a refused record, if there was one."""
LOGGER = "snakemake.logging"
MOST_FAILED = 20


class Progress(logging.Handler):
    """Follows Snakemake's events and prints one line every few seconds."""

    def __init__(self, total: int, cores: int) -> None:
        super().__init__()
        self.total, self.cores = total, max(cores, 1)
        self.cells: dict[int, str] = {}
        self.started: dict[int, float] = {}
        self.seconds: dict[str, list[float]] = {}
        self.finished: set[str] = set()
        self.failed: dict[str, None] = {}
        self.unchecked = False
        self.begun = self.printed = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of one event of Snakemake."""
        event = str(getattr(getattr(record, "event", None), "value", ""))
        if event == "job_info":
            self._announced(record)
        elif event == "job_finished":
            self._ended(getattr(record, "job_id", -1), failed=False)
        elif event == "job_error":
            self.unchecked |= getattr(record, "rule_name", "") == "check"
            self._ended(getattr(record, "jobid", -1), failed=True)

    def _announced(self, record: Any) -> None:
        if record.rule_name == "cell":
            self.cells[record.jobid] = record.wildcards["cell"]
            self.started[record.jobid] = time.monotonic()
        elif record.rule_name in ("tables", "figures", "report"):
            say(f"making {record.rule_name}")

    def _ended(self, job: int, failed: bool) -> None:
        cell = self.cells.get(job)
        if cell is None or (failed and cell in self.failed):
            return
        if failed:
            self.failed[cell] = None
            say(f"failed: {cell}")
        else:
            self.finished.add(cell)
            self.failed.pop(cell, None)
            elapsed = time.monotonic() - self.started.get(job, self.begun)
            self.seconds.setdefault(kind(cell), []).append(elapsed)
        now = time.monotonic()
        if now - self.printed >= SECONDS or len(self.finished) + len(self.failed) == self.total:
            self.printed = now
            say(self.line())

    def line(self) -> str:
        """Return "cells 120/600 (20 %), 1 failed, 4:10 elapsed, about 16:40 left"."""
        done = len(self.finished) + len(self.failed)
        parts = [f"cells {done}/{self.total} ({100 * done // max(self.total, 1)} %)"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        parts.append(f"{clock(time.monotonic() - self.begun)} elapsed")
        if self.finished and done < self.total:
            parts.append(f"about {clock(self.left(self.total - done))} left")
        return ", ".join(parts)

    def left(self, cells: int) -> float:
        """Return the seconds that ``cells`` more take: the mean of the means of the methods seen so far."""
        means = [sum(values) / len(values) for values in self.seconds.values()]
        return cells * sum(means) / len(means) / self.cores


def kind(cell: str) -> str:
    """Return what cells of about the same length have in common: stream and method."""
    return "/".join(cell.split("/")[:2])


def clock(seconds: float) -> str:
    """Return a duration as 0:45, 12:03 or 3:20:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


current: Progress | None = None


def start(workflow: Any, results: Path) -> None:
    """Replace Snakemake's chatter by progress lines, and let signals reach the running cells."""
    global current
    todo = sum(job.rule.name == "cell" for job in workflow.dag.needrun_jobs())
    current = Progress(todo, workflow.resource_settings.cores or 1)
    logger = logging.getLogger(LOGGER)
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            handler.addFilter(_is_wanted)
    logger.addHandler(current)
    if todo:
        say(f"cells to run: {todo}; records in {results}/runs")
    for number in (signal.SIGINT, signal.SIGTERM):
        _also_stop_cells(number)


def _also_stop_cells(number: int) -> None:
    """Have the signal reach the running cells too; Snakemake alone would wait until they have ended."""
    previous = signal.getsignal(number)

    def stop(number: int, frame: Any) -> None:
        _terminate_cells()
        if callable(previous):
            previous(number, frame)

    signal.signal(number, stop)


def _is_wanted(record: logging.LogRecord) -> bool:
    event = str(getattr(getattr(record, "event", None), "value", ""))
    text = record.getMessage()
    if event in CHATTER or text == SELECTING or CELL_COMMAND in text or CHECK_COMMAND in text or text.startswith(LAST):
        return False
    if current and current.unchecked and text.startswith(GIVING_UP):
        return False
    return event != "job_error" or getattr(record, "rule_name", "") not in ("cell", "check")


def _terminate_cells() -> None:
    """Ask every running job to stop; a cell leaves a checkpoint and continues when it is started again."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(child.pid) == os.getsid(0):  # not the fork server, which serves others too
                child.terminate()


def finish(results: Path, log: str, failed: bool) -> None:
    """Say where the results are, and which cells failed and why."""
    say(f"log: {log}, {clock(time.monotonic() - current.begun)} elapsed" if current else f"log: {log}")
    for line in closing(results, list(current.failed) if current else [], failed):
        say(line)
    if current and current.unchecked:
        line = refusal(results)
        say(line)
        if line.startswith("error: "):
            with contextlib.suppress(OSError):
                REFUSED.write_text(line + "\n", encoding="utf-8")


def closing(results: Path, failed_cells: list[str], failed: bool) -> list[str]:
    """Return the last lines of a run."""
    lines = []
    if failed_cells:
        lines.append("1 cell failed:" if len(failed_cells) == 1 else f"{len(failed_cells)} cells failed:")
        for cell in failed_cells[:MOST_FAILED]:
            folder = results / "runs" / cell
            lines.append(f"  {cell}: {reason(folder).removeprefix(f'{cell}: ')} (log: {folder / 'log.txt'})")
        if len(failed_cells) > MOST_FAILED:
            lines.append(f"  and {len(failed_cells) - MOST_FAILED} more")
        lines.append("run the same command again to repeat them; finished cells are kept")
    if not failed:
        places = [("tables", "tables"), ("figures", "figures"), ("report", "report.html"), ("choice", "tuned.yaml")]
        lines += [f"{name + ':':<9}{results / path}" for name, path in places if (results / path).exists()]
    return lines


def reason(folder: Path) -> str:
    """Return why the cell of ``folder`` failed, in one line: from failed.json, else the log's last line."""
    try:
        error = json.loads((folder / "failed.json").read_text(encoding="utf-8"))["error"]
        return " ".join(str(error).split())[:300]
    except (OSError, ValueError, LookupError, TypeError):
        pass
    try:
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return "no log"
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no message")


def refusal(results: Path) -> str:
    """Return the line that says which record is refused and why."""
    log = results / "logs" / "check.txt"
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    unknown = f"the records could not be checked (log: {log})"
    return next((line for line in lines if line.startswith("error: ")), unknown)
