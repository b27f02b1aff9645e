"""Locks on files and folders, which the system lets go of when their process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock(handle: int, wait: bool = False) -> bool:
    """Lock an open file or folder for this process alone; return whether it is ours.

    A file system without locks counts as locked. With ``wait`` the answer comes when another process has let go.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_free(folder: Path) -> bool:
    """Return whether no process holds ``folder``."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return lock(handle)
    finally:
        os.close(handle)
