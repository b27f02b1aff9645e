"""One cell from its settings to its record on disk: load, train or continue, evaluate, write."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparcl import streams
from sparcl.cell import Cell
from sparcl.components import Clock
from sparcl.errors import RunError, UserError, one_line
from sparcl.files import atomic, locks
from sparcl.running import checkpoint, environment, identity, model_file, record
from sparcl.running.record import Record
from sparcl.trainer import Diverged, Interrupted, Run, train

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
    planned: str | None = None,
    data_root: str | Path | None = None,
    threads: int = 1,
    force: bool = False,
    keep_model: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    watch: Callable[[Run], None] = lambda run: None,
    watch_task: Callable[[Run], None] = lambda run: None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Run ``cell`` and write its record below ``results``; return the record.

    ``planned`` is the identity that the cell was planned with: another one here is refused before anything runs. A
    record of something else is then replaced once the new one is complete. A loss that is no finite number any more is
    a result: the record says ``diverged`` and where.

    A finished record of the same cell, code, library versions and data is returned as it is. An interrupted run
    continues from its checkpoint, bit for bit. ``stop`` is asked after every step; once it says yes the run leaves a
    checkpoint and raises Interrupted. Of two processes that are to run the same cell one runs it and the other waits.

    With ``keep_model`` the trained model stands beside the record (:mod:`sparcl.running.model_file`), unless the run
    diverged; a finished record without its model does not count, and the cell runs again.

    Raises:
        UserError: bad data, code or data that changed since planning, a record of something else in the way, a damaged
            checkpoint, an unwritable folder.
        RunError: the run could not be finished; ``failed.json`` beside the record says why and where.
        Interrupted: stopped on request.
    """
    if cell.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: expected a CUDA device for 'cuda', found none")
    if keep_model:
        model_file.refuse(cell)
    folder = folder_of(cell, results)
    wanted = identity.identity(cell)
    if planned is not None and planned != wanted:
        raise UserError(
            f"{cell.path}: code, library versions, data or instruction set have changed since the cell was planned "
            f"(identity {wanted[:12]}, planned {planned[:12]}); start the run again"
        )
    finished = functools.partial(_finished, folder, cell, wanted, keep_model, planned is not None)
    earlier = None if force else finished()
    environment.prepare(cell, threads)
    stream = streams.load(cell.stream, data_root, dict(cell.stream_options))
    if earlier is None:
        with _claimed(folder, stop):
            earlier = None if force else finished()  # while this process waited
            if earlier is None:
                return _run(
                    cell, stream, folder, wanted, threads, keep_model, checkpoint_seconds, watch, watch_task, stop
                )
    elif (folder / CHECKPOINT).exists():
        with _claimed(folder, stop):  # left by a run that was killed after it wrote its record
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    if earlier["provenance"]["data"] != stream.digest:
        raise UserError(f"{folder / RECORD}: a record of other data is here; --force replaces it")
    with contextlib.suppress(OSError):  # of a later attempt, with a mistake that has been undone
        (folder / FAILED).unlink(missing_ok=True)
    return earlier


def _finished(folder: Path, cell: Cell, wanted: str, with_model: bool, replaces: bool) -> Record | None:
    """Return the record in ``folder``, or None where it, or the model that is asked for, is not there.

    One of another identity is refused, or, with ``replaces``, none.
    """
    target = folder / RECORD
    if not target.exists():
        return None
    try:
        found = record.read(target)
    except UserError:
        if replaces:
            return None
        raise
    if found["identity"] == wanted:
        has_model = (folder / model_file.FILE).exists() or found["diverged"] is not None
        return found if has_model or not with_model else None
    if replaces:
        return None
    what = "of other code or data"
    provenance = {
        **found["provenance"]["versions"],
        **{k: found["provenance"].get(k) for k in identity.kernel_of(cell)},
    }
    for here, there in (
        (cell.as_dict(), found["cell"]),
        ({**identity.versions(), **identity.kernel_of(cell)}, provenance),
    ):
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
        while not locks.lock(handle):
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


def _run(
    cell: Cell,
    stream: streams.Stream,
    folder: Path,
    wanted: str,
    threads: int,
    keep_model: bool,
    checkpoint_seconds: float,
    watch: Callable[[Run], None],
    watch_task: Callable[[Run], None],
    stop: Callable[[], bool],
) -> Record:
    started = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": environment.git(),  # now: another revision may be checked out before the run ends
    }
    began = time.perf_counter()
    target, saved, key = folder / RECORD, folder / CHECKPOINT / "state.ckpt", checkpoint_key(wanted, stream.digest)
    if stop():
        raise Interrupted(cell.path)
    run = Run(cell, stream)
    if saved.exists():
        try:
            _continue(run, saved, checkpoint.load(saved, key))
        except checkpoint.StaleCheckpoint as stale:
            print(f"{stale}: starting over")
    began -= run.seconds.get("wall", 0.0)  # what earlier legs took
    last_saved = time.monotonic()

    def after_step(run: Run) -> None:
        nonlocal last_saved
        watch(run)
        stopping, now = stop(), run.clock
        ends = now.step == now.steps and now.epoch == now.epochs - 1
        limit = min(checkpoint_seconds, TASK_END_SECONDS) if ends else checkpoint_seconds
        if stopping or time.monotonic() - last_saved >= limit:
            run.seconds["wall"] = time.perf_counter() - began
            checkpoint.save(saved, key, run.state())
            last_saved = time.monotonic()
        if stopping:
            raise Interrupted(cell.path)

    try:
        for left in (FAILED, model_file.FILE):
            with contextlib.suppress(OSError):
                (folder / left).unlink(missing_ok=True)
        diverged = None
        try:
            train(run, after_step, watch_task)
            _check_weights(run)
            for line in idle(run):
                print(f"warning: {line}", file=sys.stderr, flush=True)
        except Diverged as found:
            diverged = found
            print(f"diverged: {found}")
        seconds = time.perf_counter() - began
        if keep_model and diverged is None:
            model_file.save(folder / model_file.FILE, run, wanted)
        complete = record.write(target, _record(run, wanted, diverged, started, seconds, threads))
    except (UserError, Interrupted):
        raise
    except Exception as error:  # a mistake in a baseline's code, too, is told beside the record
        with contextlib.suppress(RunError, UserError):  # where the disk is full, that is what must be told
            failure = {"identity": wanted, **_failure(run, error)}
            atomic.write_text(folder / FAILED, json.dumps(failure, indent=1) + "\n")
        raise
    shutil.rmtree(saved.parent, ignore_errors=True)
    return complete


def checkpoint_key(wanted: str, data: str) -> str:
    """Return what a checkpoint must have been saved under to continue a run: its identity and its data's digest."""
    return f"{wanted} {data}"


def _continue(run: Run, saved: Path, state: Mapping[str, Any]) -> None:
    try:
        components = {part: checkpoint.moved(state[part], run.device) for part in ("learner", "policies")}
        run.load({**state, **components})
    except LOST as error:
        raise UserError(
            f"{saved}: checkpoint does not fit this run ({one_line(repr(error), 120)}); delete it to start over"
        ) from error


def idle(run: Run) -> list[str]:
    """Return a line for each policy with an ``interval`` in whose whole run nothing happened: it was too long."""
    lines = []
    length = f"{run.cell.epochs} epochs of {run.clock.task_steps // run.cell.epochs} steps"
    moved = any(entry["pruned"] or entry["grown"] for entry in run.mask_history)
    for policy, happened, what in (
        (run.sparsity, moved or not run.cell.sparsity, "no mask update"),
        (run.data, any(run.removed), "no data removal"),
    ):
        if "interval" in type(policy).parameters and not happened:
            name = f"{policy.name}.interval"
            lines.append(f"{name}: {what} in tasks of {length}, with an interval of {run.cell.params[name]}")
    return lines


def _check_weights(run: Run) -> None:
    """Refuse weights that the last step, whose loss nobody looks at any more, left not finite."""
    last = replace(run.clock, task=run.phases[-1].index, epoch=run.cell.epochs - 1, step=run.clock.steps - 1)
    for name, value in run.model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise Diverged(name, last)


def _failure(run: Run, error: Exception) -> dict[str, Any]:
    """Return what helps to look into a failed run: where it stopped, its cell, its losses and masks so far."""
    return {
        "error": str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}",
        "at": _at(run.clock),
        "cell": run.cell.as_dict(),
        "losses": run.losses,
        "mask_history": run.mask_history[-20:],
    }


def _at(clock: Clock) -> dict[str, int]:
    return {"task": clock.task, "epoch": clock.epoch, "step": clock.step}


def _record(
    run: Run, wanted: str, diverged: Diverged | None, started: Mapping[str, Any], seconds: float, threads: int
) -> dict[str, Any]:
    """Return what only the run can know; what follows from the settings stands in the plan."""
    cell = run.cell
    run.sync_ledger()
    weights, learning = run.masks.counts(), run.masks.gradient_counts()
    states = [run.learner.state(), *(policy.state() for policy in run.policies), list(run.optimizer.momenta.values())]
    return {
        "schema": record.SCHEMA,
        "identity": wanted,
        "cell": cell.as_dict(),
        "status": "done" if diverged is None else "diverged",
        "diverged": None if diverged is None else _at(diverged.clock),
        "results": {
            "accuracy": {**run.accuracy, "untrained": run.untrained},
            "executed": run.ledger.as_record(),
            "masks": {
                "layers": {
                    name: {
                        "size": parameter.numel(),
                        "weights": weights[name],
                        "learning": learning[name] if parameter.requires_grad else 0,
                    }
                    for name, parameter in run.masks.parameters.items()
                },
                "history": run.mask_history,
            },
            "data": {"removed": run.removed, "presented": run.presented},
            "losses": run.losses,
            "held_bytes": {
                "memory": tensor_bytes(run.memory.state()),
                "state": tensor_bytes(states) + run.learner.held_bytes(run),
            },
        },
        "provenance": {
            "code": identity.code_of(cell),
            "data": run.stream.digest,
            "versions": identity.versions(),
            **identity.kernel_of(cell),
        },
        "measured": {
            **started,
            "wall_seconds": round(seconds, 3),
            "train_seconds": round(run.seconds["train"], 3),
            "evaluation_seconds": round(run.seconds["evaluation"], 3),
            "peak_rss_bytes": environment.peak_rss_bytes(),
            "resumed": run.resumed,
            "threads": threads,
            "hardware": environment.hardware(),
        },
    }


def tensor_bytes(state: Any) -> int:
    """Return the bytes of all tensors in nested mappings and sequences."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(tensor_bytes(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(tensor_bytes(value) for value in state)
    return 0
