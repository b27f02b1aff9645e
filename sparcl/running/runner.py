"""One cell from its settings to its record on disk: load, train or continue, evaluate, write."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparcl import methods, metrics, streams
from sparcl.cell import Cell
from sparcl.costs import footprint
from sparcl.costs.planning import dense_ledger, paper_ledger
from sparcl.errors import RunError, UserError, one_line
from sparcl.files import atomic
from sparcl.running import checkpoint, environment, identity, record
from sparcl.trainer import Interrupted, Run, train

RECORD, FAILED, CHECKPOINT = "record.json", "failed.json", "checkpoint"
CHECKPOINT_SECONDS = 60.0
TASK_END_SECONDS = 5.0
"""A task's last step leaves a checkpoint if the last one is older: what follows may take long and cannot be saved."""
LOST = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


def folder_of(cell: Cell, results: Path) -> Path:
    """Return the cell's folder below ``results``.

    Raises:
        UserError: a link would lead elsewhere, or the system refuses such a path.
    """
    folder = results / "runs" / cell.path
    try:
        root = results.resolve()
        for part in (folder, folder / CHECKPOINT, folder / RECORD):
            if not part.resolve().is_relative_to(root):
                raise UserError(f"{part}: expected a place inside {results}, a link leads out of it")
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                part.lstat()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: expected a folder that can be made ({one_line(error, 160)})") from error
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

    A finished record of the same cell, code, library versions and data is returned as it is. An interrupted run
    continues from its checkpoint, bit for bit. ``stop`` is asked after every step; once it says yes the run leaves a
    checkpoint and raises Interrupted. Of two processes that are to run the same cell one runs it and the other waits.

    Raises:
        UserError: bad data, a record of something else in the way, a damaged checkpoint, an unwritable folder.
        RunError: the run could not be finished; ``failed.json`` beside the record says why and where.
        Interrupted: stopped on request.
    """
    folder = folder_of(cell, results)
    wanted = identity.identity(cell)
    earlier = None if force else _finished(folder / RECORD, cell, wanted)
    environment.prepare(cell, threads)
    stream = streams.load(cell.stream, data_root, dict(cell.stream_options))
    if earlier is None:
        with _claimed(folder, stop):
            earlier = None if force else _finished(folder / RECORD, cell, wanted)  # while this process waited
            if earlier is None:
                return _run(cell, stream, folder, wanted, threads, checkpoint_seconds, watch, watch_task, stop)
    elif (folder / CHECKPOINT).exists():
        with _claimed(folder, stop):  # left by a run that was killed after it wrote its record
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    if earlier["provenance"]["data"] != stream.digest:
        raise UserError(f"{folder / RECORD}: a record of other data is here; --force replaces it")
    return earlier


def _finished(target: Path, cell: Cell, wanted: str) -> dict[str, Any] | None:
    """Return the record at ``target``, or None where there is none; refuse one of another identity."""
    if not target.exists():
        return None
    found = record.read(target)
    if found["identity"] == wanted:
        return found
    what = "of other code or data"
    for here, there in ((cell.as_dict(), found["cell"]), (identity.versions(), found["provenance"]["versions"])):
        different = sorted(key for key in {*here, *there} if here.get(key) != there.get(key))
        if different:
            key = different[0]
            values = f"{one_line(there.get(key), 80)}, not {one_line(here.get(key), 80)}"
            what = f"with another {key} ({values})"
            break
    raise UserError(f"{target}: a record {what} is here; --force replaces it")


@contextlib.contextmanager
def _claimed(folder: Path, stop: Callable[[], bool]) -> Iterator[None]:
    """Make the cell's folder and hold it for this process alone; the system lets go when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{folder}: expected a folder that can be written to ({error.strerror or error})") from error
    try:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: expected a folder that can be written to")
        told = False
        while not _locked(handle):
            if stop():
                raise Interrupted(folder)
            if not told:
                print(f"{folder}: waiting for another process that runs this cell", file=sys.stderr, flush=True)
            told = True
            time.sleep(0.1)
        for place in (folder, folder / CHECKPOINT):
            atomic.remove_leftovers(place)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock an open folder; return whether it is ours. A file system without locks counts as locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _run(
    cell: Cell,
    stream: streams.Stream,
    folder: Path,
    wanted: str,
    threads: int,
    checkpoint_seconds: float,
    watch: Callable[[Run], None],
    watch_task: Callable[[Run], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    target, saved, key = folder / RECORD, folder / CHECKPOINT / "state.ckpt", checkpoint_key(wanted, stream.digest)
    if stop():
        raise Interrupted(cell.path)
    run = Run(cell, stream)
    if saved.exists():
        try:
            _continue(run, saved, checkpoint.load(saved, key))
        except checkpoint.StaleCheckpoint as stale:
            print(f"{stale}: starting over")
    last_saved = time.monotonic()

    def after_step(run: Run) -> None:
        nonlocal last_saved
        watch(run)
        stopping, now = stop(), run.clock
        ends = now.step == now.steps and now.epoch == now.epochs - 1
        limit = min(checkpoint_seconds, TASK_END_SECONDS) if ends else checkpoint_seconds
        if stopping or time.monotonic() - last_saved >= limit:
            checkpoint.save(saved, key, run.state())
            last_saved = time.monotonic()
        if stopping:
            raise Interrupted(cell.path)

    try:
        with contextlib.suppress(OSError):
            (folder / FAILED).unlink(missing_ok=True)
        train(run, after_step, watch_task)
        _check_weights(run)
    except RunError as error:
        with contextlib.suppress(RunError, UserError):  # where the disk is full, that is what must be told
            atomic.write_text(folder / FAILED, json.dumps(_failure(run, error), indent=1) + "\n")
        raise
    complete = record.write(target, _record(run, wanted, started, time.perf_counter() - clock, threads))
    shutil.rmtree(saved.parent, ignore_errors=True)
    return complete


def checkpoint_key(wanted: str, data: str) -> str:
    """Return what a checkpoint must have been saved under to continue a run: its identity and its data's digest."""
    return f"{wanted} {data}"


def _continue(run: Run, saved: Path, state: Mapping[str, Any]) -> None:
    try:
        run.load(state)
    except LOST as error:
        raise UserError(
            f"{saved}: checkpoint does not fit this run ({one_line(repr(error), 120)}); delete it to start over"
        ) from error


def _check_weights(run: Run) -> None:
    """Refuse weights that the last step, whose loss nobody looks at any more, left not finite."""
    for name, value in run.model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise RunError(f"{run.cell.path}: {name} is not finite after the last step")


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
