"""What a run prints: the logger plugin on simulated events, and how right its time left is."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

from snakemake_logger_plugin_sparcl import LogHandler
from snakemake_logger_plugin_sparcl.progress import Progress, clock


class Simulation:
    """A run of cells on ``slots`` at a time, ``submitted`` of which are sent to a cluster's queue at once.

    True times are the estimates times a speed that the run cannot know, with noise; log files and records get the times
    of the simulated clock.
    """

    def __init__(self, folder: Path, cells: int, slots: int, submitted: int = 0, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.runs, self.slots, self.submitted = folder, slots, submitted or slots
        seconds = {f"method{n % 7}/seed{n}": 10.0 * (1 + n % 7) for n in range(cells)}
        self.true = {cell: 3.0 * estimate * draw.uniform(0.8, 1.2) for cell, estimate in seconds.items()}
        self.progress = Progress(cells, seconds, folder, 1000.0, is_local=not submitted)

    def touch(self, cell: str, name: str, now: float) -> None:
        path = self.runs / cell / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (now, now))

    def run(self) -> Iterator[tuple[float, float | None]]:
        """Yield the time and the time left that is told, at each end of a cell; last of all the end itself."""
        now, order = 1000.0, iter(self.true)
        queue: list[str] = []
        running: list[tuple[float, str]] = []
        while True:
            for cell in itertools.islice(order, self.submitted - len(queue) - len(running)):
                self.progress.announce(cell, now)
                queue.append(cell)
            while queue and len(running) < self.slots:
                cell = queue.pop(0)
                heapq.heappush(running, (now + self.true[cell], cell))
                self.touch(cell, "log.txt", now)
            if not running:
                yield now, None
                return
            now, cell = heapq.heappop(running)
            self.progress.look()
            self.touch(cell, "record.json", now)
            self.progress.end(cell, now)
            yield now, self.progress.left(now)


@pytest.mark.parametrize(
    ("cells", "slots", "submitted"),
    [
        pytest.param(600, 2, 0, id="two cores"),
        pytest.param(40, 2, 0, id="two cores, few cells"),
        pytest.param(30, 16, 0, id="hardly more cells than cores"),
        pytest.param(200, 200, 200, id="200 jobs at once"),
        pytest.param(1000, 200, 200, id="200 jobs at a time"),
        pytest.param(600, 50, 200, id="200 jobs in a queue for 50 places"),
    ],
)
def test_time_left_is_right(cells: int, slots: int, submitted: int, tmp_path: Path) -> None:
    told = list(Simulation(tmp_path, cells, slots, submitted).run())
    end = told[-1][0]
    duration = end - 1000.0
    wrong = [
        abs(left - (end - now)) / duration
        for now, left in told[:-1]
        if left is not None and now - 1000.0 > duration / 4
    ]
    assert len(wrong) > cells / 4
    assert max(wrong) < (0.3 if cells < 2 * slots else 0.2)  # then the order of the last ones counts


def test_the_end_of_several_cells_of_one_job_is_their_records(tmp_path: Path) -> None:
    """A cluster's job of several cells is told when the last has ended."""
    simulation = Simulation(tmp_path, 8, 1, submitted=8)
    progress, now = simulation.progress, 1000.0
    group = list(simulation.true)[:4]
    for cell in group:
        progress.announce(cell, now)
    for cell in group:
        simulation.touch(cell, "log.txt", now)
        progress.look()
        now += simulation.true[cell]
        simulation.touch(cell, "record.json", now)
    for cell in group:
        progress.end(cell, now + 5)
    assert progress.took == pytest.approx(sum(simulation.true[cell] for cell in group))


def test_cells_without_a_record_come_first() -> None:
    progress = Progress(2, {"short": 1.0, "long": 9.0}, Path("nowhere"), 10.0, is_local=True)
    assert progress.left(11.0) is None
    progress.announce("short", 10.0)
    progress.end("short", 12.0)
    assert progress.left(12.0) == pytest.approx(18.0)


def test_durations() -> None:
    assert [clock(s) for s in (-1, 0, 45.4, 723, 12_000)] == ["0:00", "0:00", "0:45", "12:03", "3:20:00"]


# -- the handler -------------------------------------------------------------------------------------------------------
SETTINGS: dict[str, Any] = {
    "printshellcmds": False, "nocolor": True, "quiet": None, "debug_dag": False, "verbose": False,
    "show_failed_logs": False, "stdout": False, "dryrun": False,
}  # fmt: skip


def handler(**settings: Any) -> LogHandler:
    made = LogHandler(SimpleNamespace(**SETTINGS | settings), None)
    made.setFormatter(logging.Formatter("%(message)s"))
    return made


def tell(to: LogHandler, text: str | None = None, level: int = logging.INFO, **more: Any) -> None:
    record = logging.LogRecord("snakemake.logging", level, "", 0, text, None, None)
    record.__dict__.update(more)
    to.handle(record)


def begin(to: LogHandler, results: Path, cells: dict[str, float]) -> None:
    tell(to, event=LogEvent.RESOURCES_INFO, cores=2)
    tell(to, "Job stats", event=LogEvent.RUN_INFO, stats={"cell": len(cells), "total": len(cells) + 2})
    tell(to, "plan: p", sparcl={"results": str(results), "seconds": cells})


def announce(to: LogHandler, job: int, rule: str, **wildcards: str) -> None:
    tell(to, f"Rule: {rule}", event=LogEvent.JOB_INFO, jobid=job, rule_name=rule, wildcards=wildcards)


def test_snakemake_finds_the_plugin() -> None:
    assert LoggerPluginRegistry().get_plugin("sparcl").log_handler is LogHandler


def test_a_run_that_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    (results / "tables").mkdir(parents=True)
    (results / "report.html").touch()
    made = handler()
    tell(made, "Building DAG of jobs...")
    begin(made, results, {"a/seed0": 1.0, "a/seed1": 1.0})
    tell(made, "Select jobs to execute...")
    for job, cell in enumerate(("a/seed0", "a/seed1")):
        announce(made, job, "cell", cell=cell)
        tell(made, "Shell command", event=LogEvent.JOB_STARTED, jobs=[job])
        tell(made, "Finished", event=LogEvent.JOB_FINISHED, job_id=job)
        tell(made, None, event=LogEvent.PROGRESS, done=1, total=4)
    announce(made, 2, "collect")
    announce(made, 3, "table", table="primary")
    announce(made, 4, "table", table="memory")
    tell(made, "a warning", logging.WARNING)
    tell(made, "results", sparcl={"log": ["the.log"], "failed": False})
    tell(made, "Complete log(s): the.log")
    made.close()
    made.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["Building DAG of jobs...", "Job stats", f"cells to run: 2; records in {results}/runs"]
    assert lines[3].startswith("cells 2/2 (100 %), 0:0")
    assert lines[4:7] == ["reading the records", "making tables", "a warning"]
    assert lines[7].startswith("log: the.log, 0:0")
    assert lines[8:] == [f"tables:  {results}/tables", f"report:  {results}/report.html"]


def test_a_cell_that_fails_is_told_at_once_and_again_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = handler()
    begin(made, tmp_path, {"a/seed0": 1.0, "a/seed1": 1.0})
    log = tmp_path / "log.txt"
    log.write_text("one\nfailed: a/seed0: no space left\n\n")
    for job, cell in enumerate(("a/seed0", "a/seed1")):
        announce(made, job, "cell", cell=cell)
    tell(made, "RuleException", logging.ERROR, event=LogEvent.ERROR, exception="RuleException")
    for job, path in ((0, log), (1, tmp_path / "none")):
        tell(made, "Error in rule cell", logging.ERROR, event=LogEvent.JOB_ERROR, jobid=job, log=[str(path)])
    assert "failed: a/seed0\nfailed: a/seed1\n" in capsys.readouterr().err
    announce(made, 1, "cell", cell="a/seed1")  # retried
    tell(made, "Finished", event=LogEvent.JOB_FINISHED, job_id=1)
    tell(made, "MissingOutputException", logging.ERROR, event=LogEvent.ERROR, exception="MissingOutputException")
    tell(made, "results", sparcl={"log": ["the.log"], "failed": True, "interrupted": False})
    tell(made, "WorkflowError: At least one", logging.ERROR, event=LogEvent.ERROR, exception="WorkflowError")
    made.close()
    text = capsys.readouterr().err
    assert "WorkflowError" not in text
    assert "MissingOutputException" in text
    assert f"1 cell failed:\n  a/seed0: failed: a/seed0: no space left (log: {log})\n" in text
    assert "cells 2/2 (100 %), 1 failed" in text
    assert "'make partial'" in text


def test_a_refusal_is_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = handler()
    begin(made, tmp_path, {})
    log = tmp_path / "collect.txt"
    log.write_text("warning: x\nerror: runs/a/record.json: damaged\n")
    announce(made, 1, "collect")
    tell(made, "Error in rule collect", logging.ERROR, event=LogEvent.JOB_ERROR, jobid=1, log=[str(log)])
    tell(made, "results", sparcl={"log": [], "failed": True, "interrupted": False})
    made.close()
    assert capsys.readouterr().err.splitlines()[-1] == "error: runs/a/record.json: damaged"


def test_what_is_no_run_prints_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    dry = handler(dryrun=True, stdout=True)
    tell(dry, "Job stats", event=LogEvent.RUN_INFO, stats={"cell": 2, "total": 2})
    announce(dry, 0, "cell", cell="a")
    dry.close()
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("Job stats\nRule: cell\n", "")
    verbose = handler(verbose=True)
    begin(verbose, Path(), {})
    announce(verbose, 0, "cell", cell="a")
    assert "Rule: cell" in capsys.readouterr().err


def test_a_long_run_says_now_and_then_that_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = handler()
    begin(made, tmp_path, {"a": 1.0})
    announce(made, 0, "cell", cell="a")
    capsys.readouterr()
    made._line(time.time() + 30)
    assert capsys.readouterr().err == ""
    made._line(time.time() + 3700)
    assert capsys.readouterr().err == "cells 0/1 (0 %), 1:01:40 elapsed\n"
    made.close()
