"""Split-CIFAR-10 and Split-CIFAR-100, read and downloaded by torchvision.

The official files are Python pickles. Each is compared with torchvision's MD5 checksum first, here and
again by torchvision, and a file that is not the official one is never unpickled. (MD5 is weak
against somebody who makes both files; the official file is fixed, and nobody is known to be able to make
another one with its MD5.)

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparcl.errors import UserError
from sparcl.streams import download
from sparcl.streams.source import Allocate, Facts, Source, stat_fingerprint


class Cifar(Source):
    """One of the two data sets: 50,000 training and 10,000 test images of 3x32x32, balanced.

    Args:
        classes: 10 or 100; also the torchvision class ``CIFAR<classes>``.
        folder: the folder below the data root, as torchvision names it.
        files: the files in it that are read.
    """

    def __init__(
        self,
        classes: int,
        tasks: int,
        folder: str,
        files: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.name = f"split-cifar{classes}"
        self.classes, self.tasks, self.folder, self.files = classes, tasks, folder, files
        self.mean, self.std = mean, std

    def facts(self, options: Mapping[str, Any]) -> Facts:
        return Facts(
            label=f"Split-CIFAR-{self.classes}",
            shape=(3, 32, 32),
            train_counts=(50_000 // self.classes,) * self.classes,
            test_counts=(10_000 // self.classes,) * self.classes,
            tasks=self.tasks,
            mean=self.mean,
            std=self.std,
            pad=4,
            flip=True,
        )

    def fingerprint(self, root: Path, options: Mapping[str, Any]) -> str | None:
        folder = root / self.folder
        return stat_fingerprint(folder, [folder / file for file in self.files])

    def read(self, root: Path, options: Mapping[str, Any], allocate: Allocate) -> None:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        dataset = getattr(datasets, f"CIFAR{self.classes}")
        checksums = dict([*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])])
        folder = root / dataset.base_folder
        bad = [file for file, md5 in checksums.items() if not check_integrity(str(folder / file), md5)]
        damaged = [file for file in bad if (folder / file).exists()]
        if damaged and not check_integrity(str(root / dataset.filename), dataset.tgz_md5):
            raise UserError(
                f"{folder / damaged[0]}: damaged or not the official file"
                f" (expected MD5 {checksums[damaged[0]]}); remove {folder} to download it again"
            )
        if bad:  # torchvision unpacks its archive where that is whole, and downloads it otherwise
            with download.explained(folder, bad, dataset.url):
                dataset(root, download=True)
        for part in ("train", "test"):
            data = dataset(root, train=part == "train")
            images = data.data.transpose(0, 3, 1, 2)
            allocate(f"{part}_images", images.shape)[:] = images
            allocate(f"{part}_labels", (len(images),))[:] = np.asarray(data.targets)


SOURCES = (
    Cifar(
        classes=10,
        tasks=5,
        folder="cifar-10-batches-py",
        files=(*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2615),
    ),
    Cifar(
        classes=100,
        tasks=10,
        folder="cifar-100-python",
        files=("train", "test", "meta"),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
)
