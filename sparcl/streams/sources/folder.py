"""``folder``: any images in ``<path>/train/<class>/`` and ``<path>/test/<class>/``.

Options beside the common ones:

``path``
    The folder (required); relative paths start at the current folder. It is only read: the decoded images
    are cached below the data root.
``size``
    Images are scaled to ``size`` x ``size`` RGB pixels, 8 to 512; 32 when absent.
``pad``, ``flip``
    Augmentation: zero padding before the random crop (``size // 8`` when absent) and mirroring (true when
    absent).

Classes are the names of the folders in sorted order. There are 5 tasks unless the option ``tasks`` says
otherwise. Normalization is by ImageNet's channel means and standard deviations.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from sparcl.errors import UserError, one_line
from sparcl.streams.image_files import decode, entries, images_in
from sparcl.streams.options import fail, integer
from sparcl.streams.source import Allocate, Facts, Source, stat_fingerprint

Listing = list[tuple[str, list[Path]]]


class Folder(Source):
    """The classes and images that the folder holds when it is asked."""

    name = "folder"
    extra_options = ("path", "size", "pad", "flip")

    def facts(self, options: Mapping[str, Any]) -> Facts:
        path = options.get("path")
        if not isinstance(path, str) or not path.strip() or not path.isprintable():
            raise fail("path", "a folder with train/<class>/ and test/<class>/", path)
        integer(options, "size", 8, 512)
        size = options.get("size", 32)
        integer(options, "pad", 0, size)
        if not isinstance(options.get("flip", True), bool):
            raise fail("flip", "true or false", options["flip"])
        train, test = _list(Path(path))
        return Facts(
            label=f"Split-{one_line(Path(path).resolve().name, 40)}",
            shape=(3, size, size),
            train_counts=tuple(len(files) for _, files in train),
            test_counts=tuple(len(files) for _, files in test),
            tasks=5,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            pad=options.get("pad", size // 8),
            flip=options.get("flip", True),
        )

    def cache_key(self, options: Mapping[str, Any]) -> str:
        place = f"{Path(options['path']).resolve()}\n{options.get('size', 32)}"
        return f"folder-{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:16]}"

    def fingerprint(self, root: Path, options: Mapping[str, Any]) -> str | None:
        top = Path(options["path"])
        return stat_fingerprint(top, [file for part in _list(top) for _, files in part for file in files])

    def contents(self, options: Mapping[str, Any]) -> str | None:
        top = Path(options["path"])
        digest = hashlib.sha256()
        for file in (file for part in _list(top) for _, files in part for file in files):
            digest.update(f"{file.relative_to(top)}\0{file.stat().st_size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def read(self, root: Path, options: Mapping[str, Any], allocate: Allocate) -> None:
        size = options.get("size", 32)
        for part, listing in zip(("train", "test"), _list(Path(options["path"])), strict=True):
            files = [file for _, members in listing for file in members]
            _refuse_deep(files)
            decode(files, allocate(f"{part}_images", (len(files), 3, size, size)), resize=True)
            allocate(f"{part}_labels", (len(files),))[:] = [
                label for label, (_, members) in enumerate(listing) for _ in members
            ]


def _refuse_deep(files: Iterable[Path]) -> None:
    """Refuse images of more than 8 bits a channel, whose brightness Pillow cuts off instead of scaling it."""
    for file in files:
        try:
            with Image.open(file) as image:
                mode = image.mode
        except Exception:  # what is no image is told of when it is decoded
            continue
        if mode[0] in "IF":
            raise UserError(f"{file}: expected 8 bits a channel, found an image of mode {mode}")


def _list(top: Path) -> tuple[Listing, Listing]:
    """Return (class, files) of both parts, sorted by class."""
    if not os.path.isdir(top):  # unlike Path.is_dir, false for a name that is too long
        raise UserError(
            f"stream_options.path: {one_line(top)}: no such folder; expected one with train/<class>/ and test/<class>/"
        )
    parts = []
    for part in ("train", "test"):
        classes = entries(top / part, top, "a folder with one folder per class")
        for entry in classes:
            if not os.path.isdir(entry.path):
                raise UserError(f"{entry.path}: expected a folder of images of one class")
        parts.append([(entry.name, images_in(Path(entry.path), top)) for entry in classes])
    train, test = parts
    for here, there, place in ((train, test, "test"), (test, train, "train")):
        missing = sorted({name for name, _ in here} - {name for name, _ in there})
        if missing:
            raise UserError(f"{top / place / missing[0]}: missing; expected the same classes in train and test")
    if len(train) < 2:
        raise UserError(f"{top / 'train'}: expected at least 2 classes, found {len(train)}")
    return train, test


SOURCES = (Folder(),)
