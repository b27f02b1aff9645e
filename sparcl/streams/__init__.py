"""Streams: labelled images cut into a sequence of tasks, each with classes of its own.

>>> info = describe("split-cifar10")               # sizes and normalization; needs no data on disk
>>> stream = load("split-cifar10", root="data")    # downloads and decodes on first use

Options (a mapping; every stream takes the first four):

``class_order_seed``
    Integer: the classes are dealt to the tasks in the order
    ``numpy.random.RandomState(seed).permutation(classes)``, the convention of iCaRL and its successors, so
    that their seed 1993 gives their order. NumPy guarantees that this generator never changes. Absent: the
    data set's own order.
``tasks``
    Number of equal tasks; must divide the number of classes.
``train_per_class``
    Number of training images of each class that there are; the test set stays whole. Which ones is fixed: a
    stratified draw that depends neither on a run's seed nor on class order or tasks, so that all methods and seeds
    see the same data set, and fewer images are a part of more. Not the first in file order: neighbours may be alike
    (a folder's files are sorted by name).
``validation``
    Fraction in (0, 1) of the training images, the same in every class, that is held out and *replaces the
    test set* (hyper-parameters are chosen on it; the test images are then not used at all). Which images
    are held out is fixed. With ``train_per_class`` they are a fraction of those.
``path``, ``size``, ``pad``, ``flip``
    Of the ``folder`` stream: see :mod:`sparcl.streams.sources.folder`.

The data root is the argument ``root``, else the environment variable ``SPARCL_DATA``, else ``data`` in the
current folder. Decoded images are cached there once (:mod:`sparcl.streams.cache`) and memory-mapped by
every cell.

**To add a stream**, put one file into ``sparcl/streams/sources/`` that defines ``SOURCES``, a tuple of
:class:`~sparcl.streams.source.Source` objects (:mod:`sparcl.streams.sources.digits` is the shortest
example), or name a module like that in the entry-point group ``sparcl.streams`` of a package installed
beside this one. A source says what the images are and how to read them; class order, tasks, validation,
cache and augmentation come with it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparcl.streams import cache, layout
from sparcl.streams.options import parse
from sparcl.streams.source import broken, data_root, find, names
from sparcl.streams.stream import Stream, StreamInfo, Task

__all__ = ["Stream", "StreamInfo", "Task", "broken", "data_root", "describe", "load", "modules", "names", "protocol",
           "remembered"]  # fmt: skip
_known: dict[str, StreamInfo] | None = None


def describe(name: str, options: Mapping[str, Any] | None = None) -> StreamInfo:
    """Return what is known of a stream before its images are read.

    Sizes are those of the official data set (``folder``: of the files now there). :func:`load` returns the
    sizes of the images it found, which differ only where the data on disk are a subset.

    Raises:
        UserError: unknown stream or option, or a value out of range.
    """
    key = "" if _known is None else json.dumps([name, options], sort_keys=True, default=repr)
    if _known is not None and key in _known:
        return _known[key]
    source = find(name)
    values = parse(source, options)
    found = layout.info(source.name, source.facts(values), values)
    if _known is not None:
        _known[key] = found
    return found


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Describe a stream once: planning asks for every cell, and each time a folder would be listed anew."""
    global _known
    outer, _known = _known, {} if _known is None else _known
    try:
        yield
    finally:
        _known = outer


def modules(name: str) -> list[str]:
    """Return the modules whose code, beside the images' digest, determines what a run sees of a stream."""
    own = type(find(name)).__module__
    return sorted({own, *(f"{__name__}.{part}" for part in ("augment", "image_files", "layout", "stream"))})


def contents(name: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Return a mark of the files of a data set that users make (names and sizes), ``None`` for a published one.

    Raises:
        UserError: unknown stream or option, or no such folder.
    """
    source = find(name)
    return source.contents(parse(source, options))


def protocol(name: str) -> Mapping[str, Any]:
    """Return the protocol that a stream's source defines itself; empty for the streams of this package."""
    return find(name).protocol


def load(name: str, root: str | Path | None = None, options: Mapping[str, Any] | None = None) -> Stream:
    """Return the stream ``name`` with its images (memory-mapped), labels and tasks.

    Args:
        root: data root; ``None`` for :func:`data_root`'s default.
        options: see the module's docstring.

    Raises:
        UserError: unknown stream or option, data missing, damaged or not to be had; the line names the file.
        RunError: the cache of decoded images could not be written (disk full).
    """
    source = find(name)
    values = parse(source, options)
    facts = source.facts(values)
    images = cache.open_images(source, data_root(root), values, facts)
    return layout.assemble(source.name, facts, values, images)
