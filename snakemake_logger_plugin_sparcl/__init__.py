"""What a run of the workflow prints, as a logger plugin of Snakemake (``logger: sparcl`` in a profile).

Snakemake logs several blocks per job, which for hundreds of cells hide everything else. While jobs run these go to its
log file only, and in their place stand: cells done and total, time left, each failure as it happens; at the end what
failed and why, and where the results are. A dry run, a lint and whatever comes before the first job print as ever.

The folder has the name by which Snakemake finds logger plugins, and lies where the other packages lie.
"""

from __future__ import annotations

import sys
import threading
import time
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_sparcl.progress import Progress, clock

POLL_SECONDS, LINE_SECONDS, QUIET_SECONDS = 2.0, 5.0, 60.0
"""Between two looks at what has started; between two lines, if a cell has ended; between two lines in any case."""
MOST_FAILED = 20
MAKING = {
    "data": "checking the stream", "collect": "reading the records", "table": "making tables",
    "figure": "making figures", "report": "making the report", "tune": "choosing hyper-parameters",
}  # fmt: skip
PLACES = {"tables": "tables", "figures": "figures", "report": "report.html", "choice": "tuned.yaml"}
OWN = {
    LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.JOB_ERROR, LogEvent.GROUP_INFO,
    LogEvent.GROUP_ERROR, LogEvent.PROGRESS, LogEvent.RESOURCES_INFO,
}  # fmt: skip
"""Events that own lines stand for."""


class LogHandler(LogHandlerBase):
    """Follows Snakemake's events. The workflow itself says two things, as the attribute ``sparcl`` of a log record:

    ``{"results": folder, "seconds": {cell: estimate}}`` when jobs start and ``{"log": files, "failed": bool,
    "interrupted": bool}`` after the last one.
    """

    writes_to_stream, writes_to_file = True, False
    has_filter, has_formatter, needs_rulegraph = False, False, False

    def __post_init__(self) -> None:
        self.progress: Progress | None = None
        self.results = Path()
        self.cells, self.is_local = 0, False
        self.jobs: dict[int, str] = {}
        self.making: set[str] = set()
        self.failed: dict[str, tuple[str, str]] = {}  # cell or rule -> why, log
        self.ending: dict[str, Any] = {}
        self.printed = (0.0, (0, 0))  # when the last line was, and what had ended then
        self.closed = threading.Event()

    def emit(self, record: LogRecord) -> None:
        """Take note of one event, and print what is to be printed."""
        try:
            event = getattr(record, "event", None)
            told = getattr(record, "sparcl", None)
            if event == LogEvent.RUN_INFO:
                self.cells = record.__dict__["stats"].get("cell", 0)
            elif event == LogEvent.RESOURCES_INFO and hasattr(record, "cores"):
                self.is_local = True
            if told is not None:
                self._told(told, record.created)
            elif event == LogEvent.WORKFLOW_STARTED and not self.common_settings.verbose:
                return
            elif self.progress is None or self.common_settings.verbose:
                self._say(self.format(record))
            elif event in OWN:
                self._follow(event, record.__dict__, record.created)
            elif self._is_news(event, record):
                self._say(self.format(record))
        except Exception:
            self.handleError(record)

    def _is_news(self, event: Any, record: LogRecord) -> bool:
        """Return whether to pass on what Snakemake says while jobs run; that a job failed has its own line."""
        if event == LogEvent.ERROR:
            return record.__dict__.get("exception") != "RuleException" and not self.ending
        return event is not None or record.levelno >= WARNING

    def _told(self, told: dict[str, Any], now: float) -> None:
        if "results" not in told:
            self.ending = told
            return
        self.results = Path(told["results"])
        self.progress = Progress(self.cells, told["seconds"], self.results / "runs", now, self.is_local)
        if self.cells:
            self._say(f"cells to run: {self.cells}; records in {self.results}/runs")
            threading.Thread(target=self._watch, daemon=True).start()

    def _follow(self, event: Any, of: dict[str, Any], now: float) -> None:
        assert self.progress is not None
        if event == LogEvent.JOB_INFO:
            name = of["wildcards"]["cell"] if of["rule_name"] == "cell" else of["rule_name"]
            self.jobs[of["jobid"]] = name
            self.failed.pop(name, None)
            if of["rule_name"] == "cell":
                self.progress.announce(name, now)
            elif name in MAKING and name not in self.making:
                self.making.add(name)
                self._say(MAKING[name])
        elif event in (LogEvent.JOB_FINISHED, LogEvent.JOB_ERROR):
            name = self.jobs.get(of.get("job_id", of.get("jobid", -1)), "")
            if event == LogEvent.JOB_ERROR and name not in self.failed:
                self.failed[name] = reason(of["log"]), ", ".join(of["log"][:1])
                self._say(f"failed: {name}")
            self.progress.end(name, now, failed=event == LogEvent.JOB_ERROR)
            self._line(now)

    def _watch(self) -> None:
        """See what has started on other machines, and say now and then that a long run is going on."""
        while not self.closed.wait(POLL_SECONDS):
            self.acquire()
            try:
                if self.progress is not None and not self.closed.is_set():
                    self.progress.look()
                    self._line(time.time())
            finally:
                self.release()

    def _line(self, now: float) -> None:
        assert self.progress is not None
        ended = (len(self.progress.finished), len(self.progress.failed))
        is_news = ended != self.printed[1]
        waited = now - (self.printed[0] or self.progress.began)
        if waited >= (LINE_SECONDS if is_news else QUIET_SECONDS) or (is_news and sum(ended) == self.cells):
            self.printed = (now, ended)
            self._say(self.progress.line(now))

    def close(self) -> None:
        """Say how the run ended, once; Snakemake closes its handlers after everything else."""
        if self.progress is not None and not self.closed.is_set():
            self.closed.set()
            for line in self._closing():
                self._say(line)
        self.closed.set()
        super().close()

    def _closing(self) -> list[str]:
        assert self.progress is not None
        elapsed = clock(time.time() - self.progress.began)
        lines = [f"log: {', '.join(self.ending.get('log', [])) or '-'}, {elapsed} elapsed"]
        broken = {name: why for name, why in self.failed.items() if name in self.progress.failed}
        if self.ending.get("interrupted"):
            lines.append("interrupted; the same command continues where the cells left checkpoints")
        elif broken:
            lines.append("1 cell failed:" if len(broken) == 1 else f"{len(broken)} cells failed:")
            lines += [f"  {name}: {why} (log: {log})" for name, (why, log) in list(broken.items())[:MOST_FAILED]]
            if len(broken) > MOST_FAILED:
                lines.append(f"  and {len(broken) - MOST_FAILED} more")
            lines.append("the same command runs them again; 'make partial' makes tables of the records there are")
        elif not self.ending.get("failed", True):
            made = {name: self.results / place for name, place in PLACES.items()}
            lines += [f"{name + ':':<9}{place}" for name, place in made.items() if place.exists()]
        if not self.ending.get("interrupted"):
            for name, (why, log) in self.failed.items():
                if name not in broken:
                    lines.append(why if why.startswith("error: ") else f"{name} failed: {why} (log: {log})")
        return lines

    def _say(self, text: str | None) -> None:
        if text and text != "None":  # what Snakemake's formatter makes of an event without a message
            print(text, file=sys.stdout if self.common_settings.stdout else sys.stderr, flush=True)


def reason(logs: list[str]) -> str:
    """Return why a job failed, in one line: its log's ``error:`` line, else the last one."""
    for log in logs[:1]:
        try:
            lines = [line.strip() for line in Path(log).read_text("utf-8", "replace").splitlines() if line.strip()]
        except OSError:
            break
        if lines:
            return next((line for line in lines if line.startswith("error: ")), lines[-1])[:400]
    return "ended without a message; was it killed?"
