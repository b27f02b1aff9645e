"""Files that are either whole or absent: write beside the target, flush to disk, rename over it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from sparcl.errors import RunError, UserError


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step; a reader sees the old file or the new one, never a part.

    Raises:
        UserError: the folder cannot be created or written to.
        RunError: the write itself failed (disk full, quota); the old file is untouched.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # less the umask
    except OSError as error:
        raise UserError(
            f"{target.parent}: expected a folder that can be written to ({error.strerror or error})"
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"{target}: could not be written ({error.strerror or error})") from error
        raise


def check(option: str, path: Path) -> None:
    """Refuse, before long work, a file that could not be written after it; missing folders will be made.

    Raises:
        UserError: it is a folder, or lies where nothing can be written; the line names the option.
    """
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{option}: expected a file in a folder that can be written to, got {path}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Like :func:`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder``; for the one process that may write there."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if re.fullmatch(r"\..+\.\d+-[0-9a-f]{8}\.tmp", path.name):
                path.unlink(missing_ok=True)
