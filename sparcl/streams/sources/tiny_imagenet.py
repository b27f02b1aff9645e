"""Split-Tiny-ImageNet: 200 classes of 64x64 images, from the official folder.

``tiny-imagenet-200/`` lies below the data root: ``wnids.txt`` names the classes (taken in sorted order),
``train/<wnid>/images/*.JPEG`` are the training images, and ``val/images`` with ``val/val_annotations.txt``
is the test set, as is usual (the labels of the official test set were never published). A folder with fewer
images per class is accepted; the stream's sizes are then what is there.

Source: Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparcl.errors import UserError, one_line
from sparcl.streams.image_files import confine, decode, images_in
from sparcl.streams.source import Allocate, Facts, Source, stat_fingerprint

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
CLASSES = 200

Listing = tuple[list[Path], list[int]]


class TinyImageNet(Source):
    """10 tasks of 20 classes; 500 training and 50 test images of each class. No download: the archive has no
    published checksum."""

    name = "split-tiny-imagenet"

    def facts(self, options: Mapping[str, Any]) -> Facts:
        return Facts(
            label="Split-Tiny-ImageNet",
            shape=(3, 64, 64),
            train_counts=(500,) * CLASSES,
            test_counts=(50,) * CLASSES,
            tasks=10,
            mean=(0.4802, 0.4480, 0.3975),
            std=(0.2770, 0.2691, 0.2821),
            pad=8,
            flip=True,
        )

    def fingerprint(self, root: Path, options: Mapping[str, Any]) -> str | None:
        top = root / FOLDER
        if not top.exists():
            return None
        (train, _), (test, _) = _list(top)
        return stat_fingerprint(top, [top / "wnids.txt", top / "val" / "val_annotations.txt", *train, *test])

    def read(self, root: Path, options: Mapping[str, Any], allocate: Allocate) -> None:
        top = root / FOLDER
        if not top.exists():
            raise UserError(
                f"{top}: no such folder; expected the official one (wnids.txt, train/<wnid>/images, val);"
                f" download {URL} and unpack it there, or name another data root (SPARCL_DATA)"
            )
        for part, (files, labels) in zip(("train", "test"), _list(top), strict=True):
            decode(files, allocate(f"{part}_images", (len(files), 3, 64, 64)), resize=False)
            allocate(f"{part}_labels", (len(files),))[:] = labels


def _list(top: Path) -> tuple[Listing, Listing]:
    """Return the training and the test files with their classes."""
    classes = sorted(line.strip() for line in _lines(top / "wnids.txt", top))
    if len(set(classes)) != CLASSES or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        raise UserError(f"{top / 'wnids.txt'}: expected {CLASSES} different WordNet ids (n and 8 digits)")
    train: Listing = ([], [])
    for label, name in enumerate(classes):
        files = images_in(top / "train" / name / "images", top)
        train[0].extend(files)
        train[1].extend([label] * len(files))
    number, test = {name: label for label, name in enumerate(classes)}, dict[str, int]()
    annotations = top / "val" / "val_annotations.txt"
    for line in _lines(annotations, top):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in number or not re.fullmatch(r"[\w-]+\.JPEG", fields[0]):
            raise UserError(
                f"{annotations}: expected lines '<name>.JPEG<tab><wnid>...', found {one_line(repr(line), 60)}"
            )
        test[fields[0]] = number[fields[1]]
    folder = top / "val" / "images"
    present = {path.name for path in images_in(folder, top)}
    for name in test:
        if name not in present:
            raise UserError(f"{folder / name}: missing, but {annotations.name} names it")
    return train, ([folder / name for name in test], list(test.values()))


def _lines(path: Path, top: Path) -> list[str]:
    confine(path, top)
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected the official text file ({one_line(error, 120)})") from error


SOURCES = (TinyImageNet(),)
