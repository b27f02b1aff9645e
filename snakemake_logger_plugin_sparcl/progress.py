"""How far a run is and how long the rest takes, from when its cells began and ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OVERRUN = 0.1
"""A cell that takes longer than it should is taken to need this fraction of what it has taken, more."""


def clock(seconds: float) -> str:
    """Return a duration as 0:45, 12:03 or 3:20:00."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class _Running:
    announced: float
    began: float | None  # None: as far as can be seen it waits in a queue


class Progress:
    """Cells of a run. Only ratios of ``seconds`` count: how fast this machine is shows when cells end.

    Args:
        total: number of cells that run.
        seconds: each planned cell's estimated time.
        runs: folder of the cells' logs and records, from whose times it shows when a cell began and ended.
        now: time of the start, seconds.
        is_local: whether a cell begins when it is announced; else it may wait in a cluster's queue.
    """

    def __init__(self, total: int, seconds: Mapping[str, float], runs: Path, now: float, is_local: bool) -> None:
        self.total, self.runs, self.is_local = total, runs, is_local
        self.began = now
        self.seconds = dict(seconds)
        self.mean = sum(seconds.values()) / len(seconds) if seconds else 1.0
        self.ahead = {cell for cell in seconds if not (runs / cell / "record.json").exists()}
        self.running: dict[str, _Running] = {}
        self.failed: set[str] = set()
        self.finished: set[str] = set()
        self.took, self.weight = 0.0, 0.0  # of the cells that have ended: their time, and their estimates

    @property
    def done(self) -> int:
        """Number of cells that have ended, failed ones among them."""
        return len(self.finished) + len(self.failed)

    def announce(self, cell: str, now: float) -> None:
        """Note that a cell is started, or sent to a cluster; again after a failure, if it is retried."""
        self.failed.discard(cell)
        self.ahead.discard(cell)
        self.running[cell] = _Running(now, now if self.is_local else None)

    def look(self) -> None:
        """See which of the announced cells have begun, which is when their log file is made."""
        for cell, state in self.running.items():
            if state.began is None:
                changed = _changed(self.runs / cell / "log.txt")
                if changed >= state.announced - 1.0:
                    state.began = max(changed, state.announced)

    def end(self, cell: str, now: float, failed: bool = False) -> None:
        """Note that a cell has ended; its record says when, since several cells of one job are told together."""
        state = self.running.pop(cell, None)
        if state is None:
            return
        (self.failed if failed else self.finished).add(cell)
        if failed:
            return
        began = state.announced if state.began is None else state.began
        written = _changed(self.runs / cell / "record.json")
        self.took += (written if began <= written <= now else now) - began
        self.weight += self._weight(cell)

    def left(self, now: float) -> float | None:
        """Return about how many seconds the rest takes, or ``None`` before the first cell has ended.

        The work that is left is shared by as many cells at a time as run now, or ran on average. At the end places are
        idle while the last cells run: for half of the longest one's time, on average.
        """
        if not self.weight:
            return None
        speed = self.took / self.weight
        working = {cell: now - state.began for cell, state in self.running.items() if state.began is not None}
        rests = [max(speed * self._weight(cell) - spent, OVERRUN * spent) for cell, spent in working.items()]
        queued = [self._weight(cell) for cell in self.running if cell not in working]
        at_once = max(len(working), (self.took + sum(working.values())) / max(now - self.began, 1e-9), 1.0)
        ahead = self._unannounced()
        work = sum(rests) + speed * (sum(queued) + sum(ahead))
        tail = speed * max([*queued, *ahead], default=0.0) / 2 * (1 - 1 / at_once)
        return max([work / at_once + tail, *rests])

    def _weight(self, cell: str) -> float:
        return self.seconds.get(cell, self.mean)

    def _unannounced(self) -> list[float]:
        """Return the estimates of cells that no job has been started for: those without a record come first."""
        count = max(self.total - self.done - len(self.running), 0)
        known = [self._weight(cell) for cell in self.ahead]
        if len(known) > count:
            return [sum(known) / len(known)] * count
        return known + [self.mean] * (count - len(known))

    def line(self, now: float) -> str:
        """Return "cells 120/600 (20 %), 1 failed, 4:10 elapsed, about 16:40 left"."""
        parts = [f"cells {self.done}/{self.total} ({100 * self.done // max(self.total, 1)} %)"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        parts.append(f"{clock(now - self.began)} elapsed")
        left = self.left(now)
        if left is not None and self.done < self.total:
            parts.append(f"about {clock(left)} left")
        return ", ".join(parts)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
