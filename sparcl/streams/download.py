"""Downloads by torchvision, with an error that helps when there is no network."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sparcl.errors import UserError, one_line

TIMEOUT = 30.0
FAILURES = (OSError, RuntimeError, EOFError, http.client.HTTPException)
"""What a download that fails raises, from no network to a body that is cut off."""


@contextlib.contextmanager
def explained(folder: Path, missing: Iterable[str], url: str) -> Iterator[None]:
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
    except FAILURES as error:
        raise UserError(
            f"{folder}: {', '.join(missing)} missing, and the download failed ({one_line(error, 120)});"
            f" get them from {url} where there is a network, or name another data root (SPARCL_DATA)"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def archives(folder: Path, checksums: Mapping[str, str], mirrors: Sequence[str]) -> None:
    """Download and unpack archives into ``folder``, each from the first of ``mirrors`` that gives it with
    its MD5.

    Args:
        checksums: file name -> MD5 (hex).

    Raises:
        UserError: no mirror gave one of the files.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    with explained(folder, checksums, mirrors[0]):
        for file, md5 in checksums.items():
            for rank, mirror in enumerate(mirrors, start=1):
                try:
                    download_and_extract_archive(f"{mirror}{file}", str(folder), filename=file, md5=md5)
                    break
                except FAILURES:
                    if rank == len(mirrors):
                        raise
