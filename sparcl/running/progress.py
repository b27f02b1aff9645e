"""Progress of one run: a bar on a terminal; elsewhere a line per task, and one a minute within long ones."""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from sparcl.cell import Cell
    from sparcl.trainer import Run


EVERY = 60.0
"""Seconds between lines within a task."""


class Progress:
    """Watches a run: ``with Progress(cell) as p: run_cell(..., watch=p.step, watch_task=p.task)``."""

    def __init__(self, cell: Cell, quiet: bool = False):
        self._cell, self._quiet = cell, quiet
        self._bar: Bar | None = None
        self._started: tuple[float, float, int] | None = None  # seconds, progress and images of the first step seen
        self._told = time.monotonic()
        if sys.stderr.isatty() and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                       TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))  # fmt: skip
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._row = self._bar.add_task(cell.path, total=1.0, speed="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()

    def step(self, run: Run) -> None:
        """Called after each training step."""
        clock, now, images = run.clock, time.monotonic(), sum(run.presented)
        if self._started is None:
            self._started = now, clock.progress, images
        started, progress, first = self._started
        where, speed = f"task {clock.task + 1}/{clock.tasks}", (images - first) / max(now - started, 1e-9)
        if self._bar is not None:
            self._bar.update(self._row, completed=clock.progress, description=where, speed=f"{speed:.0f} images/s")
        elif not self._quiet and now - self._told >= EVERY and clock.progress > progress:
            left = timedelta(seconds=round((now - started) * (1 - clock.progress) / (clock.progress - progress)))
            rate = f"{speed:.0f} images/s of the stream, about {left} left"
            self._say(f"{where}, epoch {clock.epoch + 1}/{clock.epochs}: {rate}")
            self._told = now

    def task(self, run: Run) -> None:
        """Called after each task: its accuracies so far."""
        if self._quiet:
            return
        shown = {kind: _average(run.accuracy[kind][run.phase.row][: run.phase.row + 1]) for kind in run.accuracy}
        where = f"task {run.phase.index + 1}/{len(run.phases)}"
        self._say(f"{where}: Class-IL {shown['class_il']} %, Task-IL {shown['task_il']} %")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a closed pipe or a full disk is no reason to lose a run
            (self._bar.console.print if self._bar is not None else print)(line)
            sys.stdout.flush()


def _average(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else "-"
