"""Decoded images, made once per data root and memory-mapped by every cell that needs them.

``<data root>/.sparcl-cache/<source>/`` holds four ``.npy`` files, each named after the SHA-256 of its
contents, and ``manifest.json``, written last: a cache without a manifest does not exist. Building happens
under a file lock, in a folder of its own, so that parallel cells build once and never see a part.

Trust. The manifest (which carries a checksum of itself) records size and SHA-256 of every array. Every load
hashes the contents, a fraction of a second for CIFAR-10: a cache whose contents are not what the manifest
says is built anew from the original files, even if a failing disk, which leaves times alone, changed one
bit. The stream's digest is made of those hashes. Where the original files are there and have changed since,
the cache is built anew as well.

Where no cache can be written (a read-only data folder), images are decoded into memory instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparcl.errors import RunError, UserError
from sparcl.files import atomic
from sparcl.streams.source import Facts, Source

FOLDER = ".sparcl-cache"
SCHEMA = "sparcl-images/1"
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in memory or memory-mapped: images uint8 (N, C, H, W), labels int64 (N,) in the data set's
    own class order, and the SHA-256 (hex) of all four arrays."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    digest: str


def open_images(source: Source, root: Path, options: Mapping[str, Any], facts: Facts) -> Images:
    """Return the decoded images of ``source``, from the cache where it is good.

    Raises:
        UserError: the original files are needed and are missing, damaged or not to be had.
        RunError: the cache could not be written for another reason than permissions (disk full).
    """
    folder = root / FOLDER / source.cache_key(options)
    for part in (folder.parent, folder):
        if os.path.islink(part):  # unlike Path.is_symlink, false for a name that is too long
            raise UserError(f"{part}: expected a folder, found a symbolic link")
    fingerprint = source.fingerprint(root, options)
    cached = _read(folder, source.code(), fingerprint)
    if cached is not None:
        return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise UserError(f"{folder}: expected a folder that can be written to ({error.strerror})") from error
        log.warning("%s: not writable; %s is decoded into memory", folder, source.name)
        return _decode_into_memory(source, root, options, facts)
    with _locked(lock, folder / "lock"):
        cached = _read(folder, source.code(), fingerprint)
        if cached is None:
            log.info("decoding the images of %s into %s", source.name, folder)
            _build(source, root, options, facts, folder)
            cached = _read(folder, source.code(), source.fingerprint(root, options))
    if cached is None:
        raise RunError(f"{folder}: the data files of {source.name} changed while they were read; start again")
    return cached


@contextlib.contextmanager
def _locked(handle: int, path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system lets go of when the process dies, however it dies."""
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise RunError(f"{path}: could not be locked ({error.strerror})") from error
        yield
    finally:
        os.close(handle)


def _decode_into_memory(source: Source, root: Path, options: Mapping[str, Any], facts: Facts) -> Images:
    arrays: dict[str, np.ndarray] = {}

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        arrays[name] = np.zeros(shape, _dtype(name))
        return arrays[name]

    source.read(root, options, allocate)
    _check(source, arrays, facts)
    return Images(**arrays, digest=_digest({name: array_hash(arrays[name], name) for name in ARRAYS}))


def _build(source: Source, root: Path, options: Mapping[str, Any], facts: Facts, folder: Path) -> None:
    """Decode into a folder of its own, move the arrays in, then write the manifest. Needs the lock."""
    for stale in folder.glob(".build-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with _writing(folder):
        scratch = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
    arrays: dict[str, np.ndarray] = {}

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        path = scratch / f"{name}.npy"
        with _writing(path):
            arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=_dtype(name), shape=shape)
            # Claim the space: a full disk is then an error here, not a bus error while decoding.
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return arrays[name]

    try:
        source.read(root, options, allocate)
        fingerprint = source.fingerprint(root, options)
        _check(source, arrays, facts)
        entries: dict[str, dict[str, Any]] = {}
        for name in ARRAYS:
            array = arrays.pop(name)
            path = scratch / f"{name}.npy"
            with _writing(path):
                array.flush()  # type: ignore[attr-defined]
                digest = array_hash(array, name)
                target = folder / _file_name(name, digest)
                del array
                os.replace(path, target)
            entries[name] = {"bytes": target.stat().st_size, "sha256": digest}
    finally:
        arrays.clear()
        shutil.rmtree(scratch, ignore_errors=True)
    _write_manifest(folder, {"schema": SCHEMA, "code": source.code(), "fingerprint": fingerprint, "arrays": entries})
    keep = {_file_name(name, entries[name]["sha256"]) for name in ARRAYS}
    for old in folder.glob("*.npy"):
        if old.name not in keep:
            old.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror or error})") from error


def _check(source: Source, arrays: Mapping[str, np.ndarray], facts: Facts) -> None:
    """Refuse labels out of range, images without labels and classes without images."""
    classes = len(facts.train_counts)
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.shape[1:] != facts.shape or len(images) != len(labels):
            raise UserError(
                f"{source.name}: expected {part} images of shape {facts.shape} with one label each, got"
                f" {images.shape} and {len(labels)} labels"
            )
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{source.name}: expected {part} labels from 0 to {classes - 1} in the data files")
        empty = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
        if len(empty):
            raise UserError(f"{source.name}: expected {part} images of every class, class {empty[0]} has none")


def _read(folder: Path, code: str, fingerprint: str | None) -> Images | None:
    """Return the cached images, or ``None`` where there is no cache, or one that is damaged or out of
    date."""
    manifest = _read_manifest(folder)
    if manifest is None or manifest["code"] != code:
        return None
    if fingerprint is not None and manifest["fingerprint"] != fingerprint:
        return None
    arrays, hashes = {}, {}
    for name in ARRAYS:
        entry = manifest["arrays"][name]
        hashes[name] = entry["sha256"]
        path = folder / _file_name(name, entry["sha256"])
        try:
            if path.stat().st_size != entry.get("bytes"):
                return None
            # Copy-on-write: all cells share the pages, and a stray write stays in its own process.
            array = np.load(path, mmap_mode="c" if name.endswith("images") else None, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if array.dtype != _dtype(name) or array_hash(array, name) != entry["sha256"]:
            return None
        arrays[name] = array
    return Images(**arrays, digest=_digest(hashes))


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        good = manifest.pop("checksum") == _checksum(manifest) and manifest["schema"] == SCHEMA
        entries = [manifest["arrays"][name] for name in ARRAYS]
        good &= all(re.fullmatch("[0-9a-f]{64}", entry["sha256"]) for entry in entries)
        return manifest if good and {"code", "fingerprint"} <= set(manifest) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=1, sort_keys=True)
    atomic.write_text(folder / "manifest.json", text + "\n")


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def array_hash(array: np.ndarray, name: str) -> str:
    """Return the SHA-256 (hex) of an array: its name, type and shape, then its values in C order."""
    digest = hashlib.sha256(f"{name} {array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256("\n".join(hashes[name] for name in ARRAYS).encode()).hexdigest()


def _dtype(name: str) -> np.dtype:
    return np.dtype(np.uint8) if name.endswith("images") else np.dtype("<i8")


def _file_name(name: str, digest: str) -> str:
    return f"{name}-{digest[:16]}.npy"
