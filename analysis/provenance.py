"""Where the numbers come from: versions, hardware, revisions, dates and times of the runs behind them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from analysis.frames import DONE, FAILED, NOT_RUN, Results

LIBRARIES = ("numpy", "pandas", "scipy", "matplotlib", "jinja2")


def provenance(results: Results) -> dict[str, Any]:
    """What stands in ``provenance.json``: JSON-able, the same for the same plan, records and library versions."""
    records = [results.records[path] for path in sorted(results.records)]
    measured = [record["measured"] for record in records]
    status = results.frame.status
    cells = hashlib.sha256("\n".join(record["checksum"] for record in records).encode()).hexdigest()
    return {
        "schema": "sparcl-provenance/1",
        "name": results.plan.name,
        "title": results.plan.title,
        "reference": results.plan.reference,
        "plan_sha256": hashlib.sha256(results.plan.path.read_bytes()).hexdigest(),
        "records_sha256": cells,
        "cells": {
            "planned": len(results.frame), "done": int((status == DONE).sum()), "failed": int((status == FAILED).sum()),
            "not_run": int((status == NOT_RUN).sum()), "not_of_this_plan": list(results.foreign),
        },
        "seeds": sorted({int(seed) for seed in results.frame.seed}),
        "streams": sorted({record["stream"]["label"] for record in records}),
        "data": _distinct(f"{r['cell']['stream']}: {r['provenance']['data']}" for r in records),
        "code": _distinct(record["provenance"]["code"] for record in records),
        "versions": {
            name: _distinct(record["provenance"]["versions"].get(name) for record in records)
            for name in _distinct(key for record in records for key in record["provenance"]["versions"])
        },
        "precision": _distinct(record["cell"]["precision"] for record in records),
        "device": _distinct(record["cell"]["device"] for record in records),
        "hardware": {
            name: _distinct(one["hardware"].get(name) for one in measured) for name in ("cpu", "cores", "gpu")
        },
        "threads": _distinct(one.get("threads") for one in measured),
        "git": _distinct(_revision(one.get("git") or {}) for one in measured),
        "started": {
            "first": min((one["started"] for one in measured), default=None),
            "last": max((one["started"] for one in measured), default=None),
        },
        "seconds": {
            key: round(sum(one.get(f"{key}_seconds") or 0.0 for one in measured), 1)
            for key in ("wall", "train", "evaluation")
        },
        "peak_rss_bytes": max((one.get("peak_rss_bytes") or 0 for one in measured), default=0),
        "resumed_runs": sum(1 for one in measured if one.get("resumed")),
        "analysis": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
    }  # fmt: skip


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted({value for value in values if value is not None}, key=str)


def _revision(git: dict[str, Any]) -> str | None:
    revision = git.get("revision")
    return None if revision is None else revision[:12] + (" with local changes" if git.get("dirty") else "")


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
    if cells["failed"] or cells["not_run"]:
        done += f" ({cells['failed']} failed, {cells['not_run']} not run)"
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
