"""Where the numbers come from: versions, hardware, revisions, dates and times of the runs behind them."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from analysis.plan import Plan
from sparcl.errors import UserError
from sparcl.running.record import Record

SCHEMA = "sparcl-provenance/2"
LIBRARIES = ("numpy", "pandas", "scipy", "matplotlib", "jinja2")
DISTINCT = ("data", "code", "precision", "device", "cpu", "cores", "gpu", "threads", "git")


class Facts:
    """What ``provenance.json`` says, added up record by record."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.statuses: Counter[str] = Counter()
        self.checksums: dict[str, str] = {}
        self.distinct: dict[str, set[Any]] = {name: set() for name in DISTINCT}
        self.versions: dict[str, set[str]] = {}
        self.started: tuple[str, str] | None = None
        self.seconds = dict.fromkeys(("wall", "train", "evaluation"), 0.0)
        self.peak_rss_bytes = self.resumed_runs = 0
        self.missing: list[str] = []
        self.not_planned: list[str] = []
        self._first: tuple[str, Path] | None = None

    def count(self, status: str, missing: str = "") -> None:
        """Count a planned cell; ``missing`` says which and why where it has no record."""
        self.statuses[status] += 1
        self.missing += [missing] if missing else []

    def foreign(self, paths: list[str]) -> list[str]:
        """Note and return the records that the plan does not name."""
        self.not_planned = paths
        return paths

    def add(self, path: str, file: Path, record: Record) -> None:
        """Add the record of a cell.

        Raises:
            UserError: its images are not those of the first record.
        """
        digest = record["provenance"]["data"]
        first, where = self._first = self._first or (digest, file)
        if digest != first:
            raise UserError(f"{file}: record of other data (digest {digest[:12]}) than {where} ({first[:12]})")
        cell, measured = record["cell"], record["measured"]
        hardware, git = measured["hardware"], measured["git"]
        self.checksums[path] = record["checksum"]
        values = {
            "data": f"{cell['stream']}: {digest}", "code": record["provenance"]["code"],
            "precision": str(cell.get("precision")), "device": str(cell.get("device")), **hardware,
            "threads": measured["threads"], "git": _revision(git["revision"], git["dirty"]),
        }  # fmt: skip
        for name, value in values.items():
            self.distinct[name].add(value)
        for name, version in record["provenance"]["versions"].items():
            self.versions.setdefault(name, set()).add(version)
        earlier = self.started or (measured["started"],) * 2
        self.started = min(earlier[0], measured["started"]), max(earlier[1], measured["started"])
        self.seconds["wall"] += measured["wall_seconds"]
        self.seconds["train"] += measured["train_seconds"]
        self.seconds["evaluation"] += measured["evaluation_seconds"]
        self.peak_rss_bytes = max(self.peak_rss_bytes, measured["peak_rss_bytes"])
        self.resumed_runs += measured["resumed"] > 0

    def result(self) -> dict[str, Any]:
        """Return what stands in ``provenance.json``: the same for the same plan, records and library versions."""
        plan, found = self.plan, {name: _ordered(values) for name, values in self.distinct.items()}
        checksums = "\n".join(self.checksums[path] for path in sorted(self.checksums))
        return {
            "schema": SCHEMA,
            "name": plan.name,
            "title": plan.title,
            "reference": plan.reference,
            "plan_sha256": hashlib.sha256(plan.path.read_bytes()).hexdigest(),
            "records_sha256": hashlib.sha256(checksums.encode()).hexdigest(),
            "cells": {
                "planned": len(plan.cells),
                **{name.replace(" ", "_"): self.statuses[name] for name in ("done", "diverged", "failed", "not run")},
                "not_of_this_plan": self.not_planned,
            },
            "seeds": sorted({entry["cell"]["seed"] for entry in plan.cells}),
            "streams": [plan.stream["label"]],
            "data": found["data"],
            "code": found["code"],
            "versions": {name: _ordered(self.versions[name]) for name in sorted(self.versions)},
            "precision": found["precision"],
            "device": found["device"],
            "hardware": {name: found[name] for name in ("cpu", "cores", "gpu")},
            "threads": found["threads"],
            "git": found["git"],
            "started": dict(zip(("first", "last"), self.started or (None, None), strict=True)),
            "seconds": {name: round(total, 1) for name, total in self.seconds.items()},
            "peak_rss_bytes": self.peak_rss_bytes,
            "resumed_runs": self.resumed_runs,
            "analysis": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
        }


def _ordered(values: Iterable[Any]) -> list[Any]:
    return sorted((value for value in values if value is not None), key=str)


def _revision(revision: str | None, dirty: bool | None) -> str | None:
    return None if revision is None else revision[:12] + (" with local changes" if dirty else "")


def duration(seconds: float) -> str:
    """``1 h 05 min``, ``12 min 03 s`` or ``8.4 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The same, as labeled lines for people."""

    def joined(values: Iterable[Any]) -> str:
        return ", ".join(str(value) for value in values) or "unknown"

    cells, seconds = facts["cells"], facts["seconds"]
    done = f"{cells['done']} of {cells['planned']} planned"
    others = {"diverged": "diverged", "failed": "failed", "not_run": "not run"}
    if absent := [f"{cells[key]} {text}" for key, text in others.items() if cells[key]]:
        done += f" ({', '.join(absent)})"
    hardware = joined(facts["hardware"]["cpu"])
    if facts["hardware"]["cores"]:
        hardware += f", {joined(facts['hardware']['cores'])} cores"
    if facts["hardware"]["gpu"]:
        hardware += f", {joined(facts['hardware']['gpu'])}"
    return [
        ("Cells", done),
        ("Seeds", joined(facts["seeds"])),
        ("Streams", joined(facts["streams"])),
        ("Reference method", facts["reference"] or "none named"),
        ("Hardware", hardware),
        ("Device, precision, threads a run", f"{joined(facts['device'])}, {joined(facts['precision'])}, "
                                             f"{joined(facts['threads'])}"),
        ("Versions of the runs", ", ".join(f"{name} {joined(v)}" for name, v in facts["versions"].items())),
        ("Versions of the analysis", ", ".join(f"{name} {v}" for name, v in facts["analysis"].items())),
        ("Git revision of the runs", joined(facts["git"])),
        ("Runs started", f"{facts['started']['first'] or 'unknown'} to {facts['started']['last'] or 'unknown'}"),
        ("Wall time of all runs, added up", f"{duration(seconds['wall'])} (training {duration(seconds['train'])}, "
                                            f"evaluation {duration(seconds['evaluation'])})"),
        ("Highest memory of a run", f"{facts['peak_rss_bytes'] / 1e6:.0f} MB"),
        ("Runs that were interrupted and resumed", str(facts["resumed_runs"])),
        ("SHA-256 of plan, of records", f"{facts['plan_sha256'][:16]}…, {facts['records_sha256'][:16]}…"),
    ]  # fmt: skip
