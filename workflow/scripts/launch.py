"""Run a job's command: ``python -I -S launch.py [--gpus N] MODULE ARGUMENTS``, as ``python -m MODULE ARGUMENTS`` would.

Standard library only, so that it starts at once. Where the run has a zygote (``zygote.py``) the command runs in a child
of it; else, and on a GPU, this process becomes the command. A job stops when Snakemake is killed. A job with a GPU sees
one that no other job of this run in this folder has.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import json
import os
import signal
import socket
import sys

READY_SECONDS = 180.0
"""The first job waits for the zygote's imports, which a cold disk makes long."""


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; it outlasts exec
        if os.getppid() != parent:
            return 128 + signal.SIGTERM
    gpus = 0
    if arguments[0] == "--gpus":
        gpus, arguments = int(arguments[1]), arguments[2:]
    if gpus:
        choose_device()
    else:
        status = delegate(os.environ.get("SPARCL_ZYGOTE", ""), arguments)
        if status is not None:
            return status
    os.execv(sys.executable, [sys.executable, "-m", *arguments])


def choose_device() -> None:
    """Set CUDA_VISIBLE_DEVICES to one device that is free, of those that it lists.

    A lock on the device lasts until the command ends. A cluster's choice of one device is left as it is.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [] if listed is None else listed.split(",")
    job = os.environ.get("SLURM_JOB_ID", "")
    if len(devices) == 1 or (job and not devices):
        return
    folder = os.path.join(".snakemake", "gpus", f"{socket.gethostname()}-{job}")
    os.makedirs(folder, exist_ok=True)
    for slot in itertools.count():
        lock = os.open(os.path.join(folder, str(slot)), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        os.set_inheritable(lock, True)
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)] if devices else str(slot)
        return


def delegate(path: str, arguments: list[str]) -> int | None:
    """Run the command in a child of the zygote; ``None`` if it takes no job, and then nothing has been run."""
    if not path:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as zygote:
        zygote.settimeout(READY_SECONDS)
        try:
            zygote.connect(path)
            send(zygote, arguments)
            if zygote.recv(1) != b"+":
                return None
        except OSError:
            return None
        for number in (signal.SIGINT, signal.SIGTERM, *([] if no_hangup() else [signal.SIGHUP])):
            signal.signal(number, lambda number, _frame: zygote.sendall(bytes([number])))
        zygote.settimeout(None)
        try:
            status = zygote.recv(1)
        except OSError:
            status = b""
    if not status:
        print("failed: the process was killed; was it out of memory?", file=sys.stderr)
        return 1
    return status[0]


def no_hangup() -> bool:
    """Return whether the run was started to outlive its terminal (``nohup``)."""
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def send(zygote: socket.socket, arguments: list[str]) -> None:
    """Send the job: its standard streams with the length of the message, then the message as JSON."""
    message = {
        "module": arguments[0],
        "arguments": arguments[1:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "python": sys.executable,
        "no_hangup": no_hangup(),
    }
    data = json.dumps(message).encode()
    socket.send_fds(zygote, [len(data).to_bytes(8, "big")], [0, 1, 2])
    zygote.sendall(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
