"""Locks on files and folders, which the system lets go of when their process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

RUN = "run.lock"
"""In the folder of a matrix: held by the run that is at work there."""


def lock(handle: int) -> bool:
    """Lock an open file or folder for this process alone; return whether it is ours.

    A file system without locks counts as locked.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_free(path: Path) -> bool:
    """Return whether no process holds the file ``path``."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return lock(handle)
    finally:
        os.close(handle)
