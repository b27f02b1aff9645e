"""Downloads by torchvision, with an error that helps when there is no network."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparcl.errors import UserError, one_line

TIMEOUT = 30.0


@contextlib.contextmanager
def explained(folder: Path, missing: Sequence[str], url: str) -> Iterator[None]:
    """Run a torchvision download: give up on a server silent for 30 seconds, keep its chatter off standard
    output.

    Raises:
        UserError: the download failed; the line names the folder, the missing files and where they come from.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{folder}: {', '.join(missing)} missing, and the download failed ({one_line(error, 120)});"
            f" download {url} where there is a network and unpack it, or name another data root (SPARCL_DATA)"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
