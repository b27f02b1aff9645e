"""Where a stream's images come from, and the registry of such sources."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sparcl.errors import UserError, one_line, suggest

ENTRY_POINTS = "sparcl.streams"

Allocate = Callable[[str, tuple[int, ...]], np.ndarray]
"""``allocate("train_images", (N, C, H, W))`` returns the array to fill: uint8 for images, int64 for labels
(N,)."""


@dataclass(frozen=True)
class Facts:
    """What is fixed about a data set, in its own class order; the attributes of StreamInfo mean the same
    here.

    Attributes:
        train_counts: training images of each class.
        test_counts: test images of each class.
        tasks: number of tasks when the options do not say.
    """

    label: str
    shape: tuple[int, int, int]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    tasks: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: int = 255
    pad: int = 0
    flip: bool = False


class Source:
    """A data set that can be cut into a stream: subclass, set ``name``, write ``facts`` and ``read``.

    Attributes:
        name: name in the registry.
        extra_options: option names beside those that every stream has.
        protocol: model, width, epochs, batch_size and learning_rate of a stream that is not of this package; those of
            this package stand in ``sparcl/data/hyperparameters.yaml``.
    """

    name: str = ""
    extra_options: tuple[str, ...] = ()
    protocol: ClassVar[Mapping[str, Any]] = {}

    def facts(self, options: Mapping[str, Any]) -> Facts:
        """Return the data set's facts without reading an image, after checking ``extra_options``."""
        raise NotImplementedError

    def read(self, root: Path, options: Mapping[str, Any], allocate: Allocate) -> None:
        """Fill the arrays train_images, train_labels, test_images and test_labels, downloading if need be.

        Raises:
            UserError: data missing or damaged; one line naming the file and what was expected.
        """
        raise NotImplementedError

    def cache_key(self, options: Mapping[str, Any]) -> str:
        """Return the cache folder's name: equal options for equal pixels, nothing else."""
        return self.name

    def fingerprint(self, root: Path, options: Mapping[str, Any]) -> str | None:
        """Return a cheap mark of the files that would be read, or ``None`` where they are not (all) there.

        A cache made from files with another mark is made anew; ``None`` accepts the cache as it is.
        """
        return None

    def contents(self, options: Mapping[str, Any]) -> str | None:
        """Return a mark of the data set's files that is the same on every machine, for a data set that users make.

        ``None`` for a published data set, which has one content. A record's identity holds the mark, so that a cell
        runs again when its files change.
        """
        return None

    def code(self) -> str:
        """Return the SHA-256 (hex) of what the module of this source does, comments and layout aside.

        A cache that other code made is made anew.
        """
        text = Path(inspect.getfile(type(self))).read_bytes()
        return hashlib.sha256(ast.dump(ast.parse(text)).encode()).hexdigest()


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the data root: ``root``, else the environment variable SPARCL_DATA, else ``data``."""
    return Path(root or os.environ.get("SPARCL_DATA") or "data")


def stat_fingerprint(top: Path, files: Sequence[Path]) -> str | None:
    """Return a mark of the names below ``top``, sizes and times of ``files``; ``None`` when one is
    missing."""
    digest = hashlib.sha256()
    try:
        for file in files:
            stat = os.stat(file)
            name = os.fspath(file).removeprefix(os.fspath(top))
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    except OSError:
        return None
    return digest.hexdigest()


def names() -> list[str]:
    """Return the names of all streams, those of this package first."""
    return list(_table())


def find(name: str) -> Source:
    """Return the source called ``name``.

    Raises:
        UserError: no such stream.
    """
    table = _table()
    if not isinstance(name, str) or name not in table:
        raise UserError(
            f"stream: unknown name {one_line(repr(name), 60)}{suggest(name, table)}; expected one of {', '.join(table)}"
        )
    return table[name]


def broken() -> dict[str, str]:
    """Return the entry points that were to bring streams and could not, each with the reason in one line."""
    return dict(_found()[1])


def _table() -> dict[str, Source]:
    return _found()[0]


@functools.cache
def _found() -> tuple[dict[str, Source], dict[str, str]]:
    """Return the sources by name, those of this package first, and what could not be used."""
    from sparcl.streams import sources

    table: dict[str, Source] = {}
    for module in sorted(found.name for found in pkgutil.iter_modules(sources.__path__)):
        _add(table, importlib.import_module(f"{sources.__name__}.{module}"))
    wrong: dict[str, str] = {}
    for entry in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        joined = dict(table)  # a package joins as a whole or not at all
        try:
            _add(joined, entry.load())
        except UserError as error:
            wrong[entry.value] = str(error)
        except Exception as error:
            wrong[entry.value] = f"cannot be imported ({one_line(f'{type(error).__name__}: {error}')})"
        else:
            table = joined
    return table, wrong


def _add(table: dict[str, Source], module: Any) -> None:
    for source in getattr(module, "SOURCES", ()):
        if source.name in table:
            raise UserError(f"stream '{source.name}' is defined twice; expected another name")
        table[source.name] = source
