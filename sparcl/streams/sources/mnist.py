"""Split-MNIST and Split-Fashion-MNIST: 28x28 grey images in IDX files, downloaded and checked by torchvision.

A file is read only after one of these checks: the unpacked file has its known MD5; or the ``.gz`` that
torchvision downloaded lies beside it and has torchvision's MD5 (then that one is read); or, where neither
is known, header, length and number of images of every class are those of the official file. An IDX file is
plain numbers: reading one executes nothing.

Sources: Y. LeCun, C. Cortes, C. Burges, The MNIST Database, 1998; H. Xiao, K. Rasul, R. Vollgraf,
Fashion-MNIST, 2017.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparcl.errors import UserError
from sparcl.streams import download
from sparcl.streams.source import Allocate, Facts, Source, stat_fingerprint

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class Mnist(Source):
    """One of the two data sets.

    Args:
        dataset: name of the torchvision class, which is also the folder below the data root.
        md5: checksums of the unpacked files, as far as they are known.
    """

    def __init__(
        self,
        name: str,
        label: str,
        dataset: str,
        counts: tuple[tuple[int, ...], tuple[int, ...]],
        mean: float,
        std: float,
        md5: Mapping[str, str],
    ) -> None:
        self.name, self.label, self.dataset, self.md5 = name, label, dataset, md5
        self.counts, self.mean, self.std = counts, mean, std

    def facts(self, options: Mapping[str, Any]) -> Facts:
        return Facts(
            label=self.label,
            shape=(1, 28, 28),
            train_counts=self.counts[0],
            test_counts=self.counts[1],
            tasks=5,
            mean=(self.mean,),
            std=(self.std,),
        )

    def fingerprint(self, root: Path, options: Mapping[str, Any]) -> str | None:
        folder = root / self.dataset / "raw"
        return stat_fingerprint(folder, [folder / file for file in FILES.values()])

    def read(self, root: Path, options: Mapping[str, Any], allocate: Allocate) -> None:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        dataset = getattr(datasets, self.dataset)
        folder = root / self.dataset / "raw"
        absent = {
            file: md5
            for file, md5 in dict(dataset.resources).items()
            if not (folder / file.removesuffix(".gz")).exists() and not check_integrity(str(folder / file), md5)
        }
        if absent:
            download.archives(folder, absent, dataset.mirrors)
        for part, counts in zip(("train", "test"), self.counts, strict=True):
            images = parse_idx(
                folder / FILES[f"{part}_images"], self._contents(folder, f"{part}_images", dataset.resources)
            )
            labels = parse_idx(
                folder / FILES[f"{part}_labels"], self._contents(folder, f"{part}_labels", dataset.resources)
            )
            if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
                raise UserError(
                    f"{folder}: expected {part} images of 28x28 with one label each,"
                    f" got {images.shape} and {labels.shape}"
                )
            if FILES[f"{part}_labels"] not in self.md5 and np.bincount(labels).tolist() != list(counts):
                raise UserError(f"{folder / FILES[f'{part}_labels']}: expected {counts} images of the classes")
            allocate(f"{part}_images", (len(images), 1, 28, 28))[:] = images[:, None]
            allocate(f"{part}_labels", (len(labels),))[:] = labels

    def _contents(self, folder: Path, name: str, resources: Sequence[tuple[str, str]]) -> bytes:
        """Return the bytes of an IDX file after the checks that the module's docstring lists."""
        file = FILES[name]
        plain, packed = folder / file, folder / f"{file}.gz"
        try:
            data = plain.read_bytes() if plain.exists() else b""
            if data and file in self.md5 and _md5(data) == self.md5[file]:
                return data
            archive = packed.read_bytes() if packed.exists() else b""
        except OSError as error:
            raise UserError(f"{plain}: could not be read ({error.strerror})") from error
        if archive and _md5(archive) == dict(resources)[packed.name]:
            return gzip.decompress(archive)
        if not data or file in self.md5:
            raise UserError(
                f"{plain if data else packed}: damaged or not the official file (another MD5 checksum);"
                " remove it and its .gz to download it again"
            )
        return data


def parse_idx(path: Path, data: bytes) -> np.ndarray:
    """Return the uint8 array in the bytes of an IDX file: two zeros, type 8, number of dimensions, sizes,
    values.

    Raises:
        UserError: header or length is wrong; the line names ``path``.
    """
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise UserError(f"{path}: expected an IDX file of bytes (header 00 00 08)")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], dtype=">u4"))
    expected = start + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise UserError(f"{path}: expected {expected} bytes after its header {shape}, found {len(data)}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


SOURCES = (
    Mnist(
        name="split-mnist",
        label="Split-MNIST",
        dataset="MNIST",
        counts=(
            (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
            (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        ),
        mean=0.1307,
        std=0.3081,
        md5=MNIST_MD5,
    ),
    Mnist(
        name="split-fashion-mnist",
        label="Split-Fashion-MNIST",
        dataset="FashionMNIST",
        counts=((6000,) * 10, (1000,) * 10),
        mean=0.2860,
        std=0.3530,
        md5={},
    ),
)
