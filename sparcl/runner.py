"""One cell from its settings to its record on disk: load, train or continue, evaluate, write."""

from __future__ import annotations

import datetime
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparcl import atomic, checkpoint, environment, footprint, identity, methods, metrics, record, streams
from sparcl.cell import Cell
from sparcl.errors import RunError, UserError
from sparcl.planning import dense_ledger, paper_ledger
from sparcl.trainer import Interrupted, Run, train

RECORD, FAILED, CHECKPOINT = "record.json", "failed.json", "checkpoint"
CHECKPOINT_SECONDS = 60.0


def folder_of(cell: Cell, results: Path) -> Path:
    """Return the cell's folder below ``results``, refusing one that a link would lead elsewhere."""
    folder = results / "runs" / cell.path
    root = results.resolve()
    if not folder.resolve().is_relative_to(root):
        raise UserError(f"{folder}: expected a folder inside {results}, a link leads out of it")
    return folder


def run_cell(
    cell: Cell,
    results: Path,
    *,
    data_root: str | Path | None = None,
    threads: int = 1,
    force: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    watch: Callable[[Run], None] = lambda run: None,
    watch_task: Callable[[Run], None] = lambda run: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run ``cell`` and write its record below ``results``; return the record.

    A finished record of the same identity is returned as it is. An interrupted run continues from its checkpoint, bit
    for bit. ``stop`` is asked after every step; once it says yes the run leaves a checkpoint and raises Interrupted.

    Raises:
        UserError: bad data, a record of another identity in the way, a damaged checkpoint, an unwritable folder.
        RunError: the run could not be finished; ``failed.json`` beside the record says why and where.
        Interrupted: stopped on request.
    """
    folder = folder_of(cell, results)
    target, saved = folder / RECORD, folder / CHECKPOINT / "state.ckpt"
    wanted = identity.identity(cell)
    if target.exists() and not force:
        found = record.read(target)
        if found["identity"] == wanted:
            return found
        raise UserError(f"{target}: a record of another code or library version is here; --force replaces it")
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    environment.prepare(cell, threads)
    stream = streams.load(cell.stream, data_root, dict(cell.stream_options))
    run = Run(cell, stream)
    if saved.exists():
        try:
            run.load(checkpoint.load(saved, wanted))
        except checkpoint.StaleCheckpoint as stale:
            print(f"{stale}: starting over")
    last_saved = time.monotonic()

    def after_step(run: Run) -> None:
        nonlocal last_saved
        watch(run)
        stopping = stop()
        if stopping or time.monotonic() - last_saved >= checkpoint_seconds:
            checkpoint.save(saved, wanted, run.state())
            last_saved = time.monotonic()
        if stopping:
            raise Interrupted(cell.path)

    try:
        (folder / FAILED).unlink(missing_ok=True)
        train(run, after_step, watch_task)
    except RunError as error:
        atomic.write_text(folder / FAILED, json.dumps(_failure(run, error), indent=1) + "\n")
        raise
    complete = record.write(target, _record(run, wanted, started, time.perf_counter() - clock, threads))
    shutil.rmtree(saved.parent, ignore_errors=True)
    return complete


def _failure(run: Run, error: Exception) -> dict[str, Any]:
    """Return what helps to look into a failed run: where it stopped, its cell, its losses and masks so far."""
    clock = run.clock
    return {
        "error": str(error),
        "at": {"task": clock.task, "epoch": clock.epoch, "step": clock.step},
        "cell": run.cell.as_dict(),
        "losses": run.losses,
        "mask_history": run.mask_history[-20:],
        "weights": {
            name: {"finite": bool(p.isfinite().all()), "largest": repr(float(p.detach().abs().max()))}
            for name, p in run.model.named_parameters()
        },
    }


def _record(run: Run, wanted: str, started: str, seconds: float, threads: int) -> dict[str, Any]:
    cell, info, method = run.cell, run.info, methods.get(run.cell.method)
    run.sync_ledger()
    lines = run.ledger.as_record()
    costs = run.ledger.costs
    return {
        "schema": record.SCHEMA,
        "identity": wanted,
        "cell": cell.as_dict(),
        "variant": cell.variant,
        "method": {
            "label": method.label,
            "family": method.family,
            "learner": method.learner,
            "policies": {kind: method.policies.get(kind) for kind in methods.KINDS},
            "task_il_only": run.task_il_only,
        },
        "stream": {
            "label": info.label,
            "tasks": info.tasks,
            "classes": [list(task.classes) for task in run.stream.tasks],
            "train_sizes": [len(task.train_index) for task in run.stream.tasks],
            "test_sizes": [len(task.test_index) for task in run.stream.tasks],
            "shape": list(info.shape),
        },
        "results": {
            "accuracy": {**run.accuracy, "untrained": run.untrained},
            "metrics": metrics.summary(run.accuracy["class_il"], run.accuracy["task_il"], run.untrained["task_il"]),
            "flops": {
                "executed": lines,
                "paper": paper_ledger(cell, info, costs),
                "dense": dense_ledger(cell, info, costs),
            },
            "memory": {
                "suite": footprint.suite_of(run),
                "paper": footprint.paper_of(run),
            },
            "masks": {
                "layers": {
                    name: {"size": parameter.numel(), "weights": run.masks.counts()[name]}
                    for name, parameter in run.masks.parameters.items()
                },
                "history": run.mask_history,
            },
            "data": {"removed": run.removed, "presented": run.presented},
            "losses": run.losses,
        },
        "provenance": {
            "code": identity.code_digest(identity.modules_of(cell)),
            "data": run.stream.digest,
            "versions": identity.versions(),
        },
        "measured": {
            "started": started,
            "wall_seconds": round(seconds, 3),
            "train_seconds": round(run.seconds["train"], 3),
            "evaluation_seconds": round(run.seconds["evaluation"], 3),
            "peak_rss_bytes": environment.peak_rss_bytes(),
            "resumed": run.resumed,
            "threads": threads,
            "hardware": environment.hardware(),
            "git": environment.git(),
        },
    }
