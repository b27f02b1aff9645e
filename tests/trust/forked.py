"""Runs in forked children: they share what is imported, so that one run can be started and killed many times."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PACKAGE = os.fspath(Path(__file__).resolve().parents[2] / "sparcl")
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "pickle.find_class", "ctypes.dlopen", "socket.connect", "socket.bind", "webbrowser.open",
    "urllib.Request",
)  # fmt: skip
CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)


def start(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked child and return the child's process id; a number that it returns is its status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            result = work()
            status = result if isinstance(result, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def outcome(child: int) -> int:
    """Wait for a child and return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def call(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a forked child (JSON values); its exception is an AssertionError here."""
    with tempfile.TemporaryFile("w+") as answer:

        def told() -> None:
            try:
                result = {"value": work()}
            except BaseException:
                result = {"error": traceback.format_exc()}
            json.dump(result, answer)
            answer.flush()

        assert outcome(start(told)) == 0
        answer.seek(0)
        result = json.load(answer)
    assert "error" not in result, result["error"]
    return result["value"]


def watch(count: int, places: Sequence[str] = (PACKAGE,)) -> Callable[[], int]:
    """Kill this process when it is about to run its ``count``-th line of Python in ``places`` (0: never).

    Returns a function that says how many such lines have been run.
    """
    done = 0

    def line(_frame: Any, event: str, _argument: Any) -> Any:
        nonlocal done
        if event == "line":
            done += 1
            if done == count:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def entered(frame: Any, _event: str, _argument: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(tuple(places)) else None

    sys.settrace(entered)
    return lambda: done


def guard(folder: Path) -> list[str]:
    """Note from now on, in this process, what a file may not make it do: run things, or write outside ``folder``."""
    sys.dont_write_bytecode = True  # a late import is no write of the reader's
    seen: list[str] = []
    inside = os.path.realpath(folder)

    def is_outside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return os.path.commonpath([real, inside]) != inside and real != os.devnull

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and is_outside(arguments[0]):
            seen.append(f"write {arguments[0]!r:.200}")
        elif event in CHANGES and is_outside(arguments[0]):
            seen.append(f"{event} {arguments!r:.200}")

    sys.addaudithook(hook)
    return seen
