"""A run that is killed at any moment continues and ends with the record of an undisturbed run, bit for bit."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import launching
import pytest
from forked import PACKAGE, call, outcome, start, watch

from sparcl import cell, cli, methods, streams, trainer
from sparcl.files import atomic
from sparcl.running import checkpoint, identity, record, runner

USUAL = {"sparcl-derpp": 8, "rigl-erk-derpp": 3, "icarl": 3, "packnet": 3, "lwta": 3}
"""How often methods are killed, one for each kind of state; tests/test_contract.py continues every method."""
OFTEN = ("er", "derpp", "sparcl-er", "sparcl-derpp", "rigl-derpp", "rigl-erk-derpp")
WRITERS = tuple(f"{PACKAGE}/{name}" for name in ("atomic.py", "checkpoint.py", "runner.py", "record.py"))
WRITERS += (shutil.__file__,)


CASES = [pytest.param(name, kills) for name, kills in USUAL.items()] + [
    pytest.param(name, 12 if name in OFTEN else 4, marks=pytest.mark.slow) for name in methods.names()
]


def of(chosen: cell.Cell, results: Path) -> Path:
    return runner.folder_of(chosen, results)


def saved_in(chosen: cell.Cell, results: Path) -> Path:
    return of(chosen, results) / runner.CHECKPOINT / "state.ckpt"


def key_of(whole: dict[str, Any]) -> str:
    return runner.checkpoint_key(whole["identity"], whole["provenance"]["data"])


def check(chosen: cell.Cell, results: Path, whole: dict[str, Any]) -> dict[str, Any]:
    """Check that the record is the undisturbed one and that nothing else is left in the cell's folder."""
    found = record.read(of(chosen, results) / runner.RECORD)
    assert record.reproducible(found) == record.reproducible(whole)
    assert [path.name for path in of(chosen, results).iterdir()] == [runner.RECORD]
    return found


@pytest.mark.parametrize(("method", "kills"), CASES)
def test_killed_at_random_moments(
    method: str, kills: int, small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    """SIGKILL after a random time, again and again, until the run gets through; a new run until all kills are used."""
    chosen = small_cell(method, epochs=2, batch_size=96)
    whole = runner.run_cell(chosen, tmp_path / "whole")
    duration = whole["measured"]["wall_seconds"]
    draw, done, runs = random.Random(method), 0, 0
    while done < kills:
        results, runs = tmp_path / f"killed{runs}", runs + 1
        while True:
            child = start(lambda results=results: runner.run_cell(chosen, results, checkpoint_seconds=0) and 0)
            if done < kills:
                time.sleep(draw.uniform(0, duration / 2))
                os.kill(child, signal.SIGKILL)
            status = outcome(child)
            assert status in (0, -signal.SIGKILL)
            if status == 0:
                break
            done += 1
        check(chosen, results, whole)


@pytest.mark.parametrize(
    ("method", "places", "kills"),
    [
        pytest.param("sparcl-derpp", (PACKAGE,), 6, id="sparcl-derpp anywhere"),
        pytest.param("sparcl-derpp", WRITERS, 12, id="sparcl-derpp while writing"),
        pytest.param("sparcl-derpp", (PACKAGE,), 30, id="sparcl-derpp anywhere, often", marks=pytest.mark.slow),
        pytest.param("rigl-derpp", (PACKAGE,), 20, id="rigl-derpp anywhere, often", marks=pytest.mark.slow),
        pytest.param("sparcl-derpp", WRITERS, 50, id="sparcl-derpp while writing, often", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_lines(
    method: str, places: tuple[str, ...], kills: int, small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    """SIGKILL before a line drawn uniformly from all that a run executes, those of evaluation and writing among them.

    Kills on one run follow each other until it gets through, so that continued runs are killed as well.
    """
    chosen = small_cell(method, epochs=1, batch_size=144)

    def run(results: Path, count: int = 0) -> int:
        lines = watch(count, places)
        runner.run_cell(chosen, results, checkpoint_seconds=0)
        sys.settrace(None)
        return lines()

    whole = runner.run_cell(chosen, tmp_path / "whole")
    lines = call(lambda: run(tmp_path / "counted"))
    check(chosen, tmp_path / "counted", whole)
    draw, done, runs = random.Random(0), 0, 0
    while done < kills:
        results, runs = tmp_path / f"killed{runs}", runs + 1
        while True:
            count = draw.randrange(1, lines) if done < kills else 0
            status = outcome(start(lambda results=results, count=count: run(results, count) and 0))
            assert status in (0, -signal.SIGKILL)
            if status == 0:
                break
            done += 1
        runner.run_cell(chosen, results)  # removes what a kill after the record had been written has left
        check(chosen, results, whole)


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
        if moment == "replaced":
            real(*arguments)
        if calls == occasion:
            os.kill(os.getpid(), signal.SIGKILL)
        return None if moment == "replaced" else real(*arguments)

    def killed() -> None:
        setattr(atomic.os, name, deadly)
        runner.run_cell(chosen, tmp_path / "killed", checkpoint_seconds=0)

    assert outcome(start(killed)) == -signal.SIGKILL
    saved = saved_in(chosen, tmp_path / "killed")
    assert saved.exists() == (occasion > 1 or moment == "replaced")
    if saved.exists():
        checkpoint.load(saved, key_of(whole))
    assert (len(list(saved.parent.iterdir())) > saved.exists()) == (moment != "replaced")  # the unfinished file
    assert outcome(start(lambda: runner.run_cell(chosen, tmp_path / "killed") and 0)) == 0
    parts = check(chosen, tmp_path / "killed", whole)
    assert parts["measured"]["resumed"] == (1 if occasion > 1 or moment == "replaced" else 0)


def test_two_at_once_run_a_cell_once(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    """The second waits for the first; where the first is killed, it continues from its checkpoint."""
    chosen = small_cell("sparcl-derpp", epochs=3)
    whole = runner.run_cell(chosen, tmp_path / "whole")

    def begin() -> int:
        child = start(lambda: runner.run_cell(chosen, tmp_path / "shared", checkpoint_seconds=0) and 0)
        while not saved_in(chosen, tmp_path / "shared").exists():
            time.sleep(0.01)
        return child

    first, second = begin(), begin()
    time.sleep(0.1)
    os.kill(first, signal.SIGKILL)
    third = start(lambda: runner.run_cell(chosen, tmp_path / "shared") and 0)
    assert [outcome(first), outcome(second), outcome(third)] == [-signal.SIGKILL, 0, 0]
    assert check(chosen, tmp_path / "shared", whole)["measured"]["resumed"] == 1


# -- stopped on request ------------------------------------------------------------------------------------------------
def command(chosen: cell.Cell, results: Path, *more: str) -> list[str]:
    return ["run", "--cell", chosen.json(), "--results", str(results), *more]


@contextlib.contextmanager
def printed_to(file: Path) -> Iterator[None]:
    """Send what this process writes to standard error into ``file``."""
    with file.open("w") as target:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(target.fileno(), 2)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        yield
        sys.stderr.flush()
        os.dup2(kept, 2)


def stopped(number: int, ready: Callable[[], bool], work: Callable[[], int], file: Path) -> tuple[int, str]:
    """Start ``work``, send it ``number`` once it is ``ready``, and return its exit status and what it printed."""

    def child() -> int:
        with printed_to(file):
            return work()

    running = start(child)
    while not ready():
        assert os.waitpid(running, os.WNOHANG) == (0, 0), file.read_text()
        time.sleep(0.01)
    os.kill(running, number)
    return outcome(running), file.read_text()


SIGNALS = [
    (signal.SIGTERM, 143),
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_leaves_a_checkpoint(
    number: int, status: int, small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    """The run stops after the step that it is in, and the same command continues it to the undisturbed record."""
    chosen = small_cell("sparcl-derpp", epochs=6)
    whole = runner.run_cell(chosen, tmp_path / "whole")
    saved = saved_in(chosen, tmp_path / "stopped")
    arguments = command(chosen, tmp_path / "stopped", "--quiet", "--checkpoint-every")

    def run() -> int:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        return cli.main([*arguments, "0.05"])  # nohup, under which the tests may run, ignores SIGHUP

    first = stopped(number, saved.exists, run, tmp_path / "printed")
    assert first[0] == status
    assert first[1].endswith(f"interrupted: {chosen.path} left a checkpoint; the same command continues it\n")
    state = checkpoint.load(saved, key_of(whole))
    assert state["position"]["step"] > 0 or state["position"]["epoch"] > 0
    assert outcome(start(lambda: cli.main([*arguments, "60"]))) == 0
    measured = check(chosen, tmp_path / "stopped", whole)["measured"]
    assert measured["resumed"] == 1
    assert state["results"]["seconds"]["wall"] > 0


def test_the_wall_time_of_a_resumed_run_is_that_of_all_legs(
    small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    """A checkpoint that says that an hour went by before it."""
    chosen, asked = small_cell("er", epochs=1), []

    def stop() -> bool:
        asked.append(0)
        return len(asked) > 5

    with pytest.raises(runner.Interrupted):
        runner.run_cell(chosen, tmp_path, stop=stop)
    saved = runner.folder_of(chosen, tmp_path) / runner.CHECKPOINT / "state.ckpt"
    key = runner.checkpoint_key(identity.identity(chosen), streams.load(chosen.stream).digest)
    state = checkpoint.load(saved, key)
    state["results"]["seconds"]["wall"] = 3600.0
    checkpoint.save(saved, key, state)
    assert 3600 < runner.run_cell(chosen, tmp_path)["measured"]["wall_seconds"] < 7200


@pytest.mark.parametrize(("number", "status"), SIGNALS[:2])
def test_a_signal_stops_what_is_no_step(
    number: int, status: int, small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    """A long evaluation is not waited for: it stops where it is, and the task's last step has left a checkpoint."""
    chosen = small_cell("sparcl-derpp", epochs=1)
    whole = runner.run_cell(chosen, tmp_path / "whole")
    mark = tmp_path / "evaluating"

    def run() -> int:
        real = trainer.evaluate

        def endless(run: trainer.Run, seen: int) -> Any:
            if not run.losses:
                return real(run, seen)
            mark.touch()
            while True:
                time.sleep(0.01)

        trainer.evaluate = endless
        runner.TASK_END_SECONDS, cli.STOP_SECONDS = 0.0, 0.2
        return cli.main(command(chosen, tmp_path / "stopped", "--quiet"))

    assert stopped(number, mark.exists, run, tmp_path / "printed") == (
        status, f"interrupted: {chosen.path} left a checkpoint; the same command continues it\n"
    )  # fmt: skip
    runner.run_cell(chosen, tmp_path / "stopped")
    assert check(chosen, tmp_path / "stopped", whole)["measured"]["resumed"] == 1


def test_a_signal_before_the_first_step(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    chosen = small_cell("er", epochs=1)
    with pytest.raises(trainer.Interrupted):
        runner.run_cell(chosen, tmp_path, stop=lambda: True)
    assert not list(of(chosen, tmp_path).iterdir())


def test_a_command_line_leaves_the_signals_as_they_were(
    small_cell: Callable[..., cell.Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    assert cli.main(command(small_cell("finetune", epochs=1), tmp_path, "--quiet")) == 0
    assert [signal.getsignal(number) for number in numbers] == before

    def impatient(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_cell", impatient)
    assert cli.main(command(small_cell("finetune", epochs=1), tmp_path, "--quiet")) == 130


def test_a_killed_command_continues(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    """The command as the workflow starts it, in a child of a zygote: its launcher is killed, and with it the child."""
    chosen = small_cell("sparcl-derpp", epochs=6)
    whole = runner.run_cell(chosen, tmp_path / "whole")
    line = ["sparcl", *command(chosen, tmp_path / "killed", "--quiet")]
    with launching.Run() as run:
        first = run.start(*line, "--checkpoint-every", "0")
        while not saved_in(chosen, tmp_path / "killed").exists():
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
        first.wait()
        assert run.run(*line).returncode == 0  # waits for the child, if need be
    assert check(chosen, tmp_path / "killed", whole)["measured"]["resumed"] == 1
