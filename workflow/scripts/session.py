"""One run of the workflow, in the process that the user has started: its lock, its signals, its zygote."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ZYGOTE = "SPARCL_ZYGOTE"
"""Environment variable of the jobs: the socket of the run's zygote (``zygote.py``)."""
PLAN = "SPARCL_PLAN"
"""Environment variable of the jobs: the run's plan. A config that is edited meanwhile names no other."""
BUSY = "another run is at work in this folder; wait for it or stop it"
_kept: list[Any] = []  # open until the process ends


@dataclass
class _State:
    interrupted: bool = False
    began: float = 0.0


_state = _State()


def prepare() -> None:
    """Have jobs run with the interpreter that runs Snakemake, unless it activates an environment for them."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def start(plan: Path, is_local: bool) -> bool:
    """Begin a run: take the locks, heed signals, and start the zygote where jobs run on this machine.

    Args:
        plan: plan.json in the folder of the results, which other clones may share.

    Returns:
        Whether both folders are free; where another run is at work, nothing has been begun.

    Raises:
        OSError: a folder cannot be made.
    """
    _state.began = time.time()
    plan.parent.mkdir(parents=True, exist_ok=True)
    Path(".snakemake").mkdir(exist_ok=True)
    if not (_lock(Path(".snakemake")) and _lock(plan.parent)):
        return False
    os.environ[PLAN] = str(plan.resolve())
    _heed_signals(is_local)
    os.environ.pop(ZYGOTE, None)
    if is_local:
        _start_zygote()
    return True


def was_interrupted() -> bool:
    """Return whether the run has been asked to stop."""
    return _state.interrupted


def refused(logs: Iterable[Path]) -> bool:
    """Return whether one of these logs of jobs of this run says that an input cannot be used."""
    for log in logs:
        with contextlib.suppress(OSError):
            if log.stat().st_mtime >= _state.began - 1.0 and "\nerror: " in "\n" + log.read_text("utf-8", "replace"):
                return True
    return False


def _lock(folder: Path) -> bool:
    """Take the lock of a folder, in place of Snakemake's own, which outlives a Snakemake that is killed."""
    from sparcl.files import locks

    handle = os.open(folder / locks.RUN, os.O_RDWR | os.O_CREAT)
    _kept.append(handle)
    return locks.lock(handle)


def _heed_signals(is_local: bool) -> None:
    """Have a signal reach the running jobs too; Snakemake alone would wait until they have ended.

    Here the jobs are asked to stop, and Snakemake then ends as it does after SIGTERM. On a cluster its own way of an
    interrupt is taken, which cancels the jobs.
    """
    graceful = signal.getsignal(signal.SIGTERM)

    def stop(number: int, _frame: Any) -> None:
        is_first, _state.interrupted = not _state.interrupted, True
        if is_local:
            _terminate_jobs()
            if callable(graceful):  # it takes a lock that the interrupted code may hold: not in this thread
                threading.Thread(target=graceful, args=(number, None)).start()
        elif is_first:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)


def _terminate_jobs() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()  # the zygote itself does not heed it


def _start_zygote() -> None:
    """Start the zygote; it ends with this process, when its standard input does."""
    if sys.platform != "linux":
        return
    folder = tempfile.mkdtemp(prefix="sparcl-")  # nobody else may enter it
    path = f"{folder}/socket"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(1024)
            command = [sys.executable, str(Path(__file__).with_name("zygote.py")), str(listener.fileno()), folder]
            zygote = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()]
            )
    except OSError:  # too long a path for a socket, for example: jobs start by themselves
        shutil.rmtree(folder, ignore_errors=True)
        return
    _kept.append(zygote)
    os.environ[ZYGOTE] = path
