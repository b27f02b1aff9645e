"""A run that is killed at any moment continues and ends with the record of an undisturbed run, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sparcl import atomic, cell, checkpoint, record, runner

METHODS = ["er", "derpp", "sparcl-derpp", "sparcl-er", "rigl-derpp", "gmp-derpp", "snip-derpp"]
KILLS = 8
"""Per method: 56 in all."""


def in_child(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked child and return the child's process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def outcome(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_moments(method: str, small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    chosen = small_cell(method, epochs=2, batch_size=96)
    started = time.perf_counter()
    whole = runner.run_cell(chosen, tmp_path / "whole")
    duration = time.perf_counter() - started
    draw, kills = random.Random(method), 0
    while kills < KILLS:
        child = in_child(lambda: runner.run_cell(chosen, tmp_path / "killed", checkpoint_seconds=0))
        time.sleep(draw.uniform(0, duration / 4))
        os.kill(child, signal.SIGKILL)
        if outcome(child) == 0:
            break
        kills += 1
    else:
        assert outcome(in_child(lambda: runner.run_cell(chosen, tmp_path / "killed", checkpoint_seconds=0))) == 0
    assert kills >= 3
    parts = record.read(runner.folder_of(chosen, tmp_path / "killed") / "record.json")
    assert record.reproducible(parts) == record.reproducible(whole)
    folder = runner.folder_of(chosen, tmp_path / "killed")
    assert not (folder / runner.CHECKPOINT).exists()


@pytest.mark.parametrize("moment", ["fsync", "replace", "replaced"])
@pytest.mark.parametrize("occasion", [1, 2, 9])
def test_killed_while_a_checkpoint_is_written(
    moment: str, occasion: int, small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    chosen = small_cell("sparcl-derpp", epochs=1, batch_size=96)
    whole = runner.run_cell(chosen, tmp_path / "whole")
    name = "fsync" if moment == "fsync" else "replace"
    real = getattr(os, name)
    calls = 0

    def deadly(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        result = real(*arguments) if moment == "replaced" else None
        if calls == occasion:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments) if moment != "replaced" else result

    def killed() -> None:
        setattr(atomic.os, name, deadly)
        runner.run_cell(chosen, tmp_path / "killed", checkpoint_seconds=0)

    assert outcome(in_child(killed)) == -signal.SIGKILL
    saved = runner.folder_of(chosen, tmp_path / "killed") / runner.CHECKPOINT / "state.ckpt"
    if saved.exists():
        checkpoint.load(saved, runner.checkpoint_key(whole["identity"], whole["provenance"]["data"]))
    assert outcome(in_child(lambda: runner.run_cell(chosen, tmp_path / "killed", checkpoint_seconds=0))) == 0
    parts = record.read(runner.folder_of(chosen, tmp_path / "killed") / "record.json")
    assert record.reproducible(parts) == record.reproducible(whole)
    assert parts["measured"]["resumed"] == (1 if occasion > 1 or moment == "replaced" else 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint(
    number: int, status: int, small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    chosen = small_cell("sparcl-derpp", epochs=400)
    command = [sys.executable, "-m", "sparcl.cli", "run", "--cell", chosen.json(), "--results", str(tmp_path)]
    process = subprocess.Popen([*command, "--checkpoint-every", "0.2"], stderr=subprocess.PIPE, text=True)
    saved = runner.folder_of(chosen, tmp_path) / runner.CHECKPOINT / "state.ckpt"
    while not saved.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status
    assert printed.startswith("interrupted: ")
    assert "Traceback" not in printed
    state = checkpoint.load(saved, runner.identity.identity(chosen))
    assert state["position"]["step"] > 0 or state["position"]["epoch"] > 0
