"""Small data sets on disk, in the official layouts."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparcl import streams
from sparcl.streams.sources import mnist


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    """A data root in which the digits are cached."""
    root = tmp_path_factory.mktemp("digits")
    streams.load("split-digits", root)
    return root


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """A CIFAR-10 of 3 training and 2 test images of each class, with torchvision's checksums changed to
    match."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    numbers = np.random.default_rng(0)

    def write(name: str, labels: list[int]) -> list[str]:
        pixels = numbers.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
        return [name, md5(folder / name)]

    train = [write(f"data_batch_{number}", [(6 * number + i) % 10 for i in range(6)]) for number in range(5)]
    test = [write("test_batch", list(range(10)) * 2)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    source = streams.source.find("split-cifar10")
    monkeypatch.setattr(source, "files", (*(name for name, _ in train), "test_batch", "batches.meta"))
    return tmp_path


@pytest.fixture
def cifar_pixels(cifar_root):
    """The pixels of the first training file, (6, 3, 32, 32)."""
    entry = pickle.loads((cifar_root / "cifar-10-batches-py" / "data_batch_0").read_bytes())
    return entry["data"].reshape(6, 3, 32, 32)


def idx(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, train: int, test: int) -> dict[str, np.ndarray]:
    """Write the four IDX files with ``train`` and ``test`` images of every class; return the arrays by file
    name."""
    folder.mkdir(parents=True)
    numbers, arrays = np.random.default_rng(1), {}
    for part, each in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = numbers.integers(0, 256, (10 * each, 28, 28))
        arrays[f"{part}-labels-idx1-ubyte"] = numbers.permutation(np.repeat(np.arange(10), each))
    for name, array in arrays.items():
        (folder / name).write_bytes(idx(array))
    return arrays


@pytest.fixture
def mnist_root(tmp_path, monkeypatch):
    """An MNIST of 3 training and 2 test images of each class, with the checksums changed to match."""
    folder = tmp_path / "MNIST" / "raw"
    for name in write_mnist(folder, 3, 2):
        monkeypatch.setitem(mnist.MNIST_MD5, name, md5(folder / name))
    return tmp_path


@pytest.fixture
def fashion_root(tmp_path, monkeypatch):
    """A Fashion-MNIST of 3 training and 2 test images of each class: only the .gz files, checksums
    changed."""
    from torchvision.datasets import FashionMNIST

    folder = tmp_path / "FashionMNIST" / "raw"
    resources = []
    for name in write_mnist(folder, 3, 2):
        packed = folder / f"{name}.gz"
        packed.write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
        resources.append((packed.name, md5(packed)))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setattr(streams.source.find("split-fashion-mnist"), "counts", ((3,) * 10, (2,) * 10))
    return tmp_path


@pytest.fixture
def tiny_root(tmp_path):
    """A Tiny-ImageNet of 2 training and 1 test image of each class; class k has pixels of value k."""
    top = tmp_path / "tiny-imagenet-200"
    names = [f"n{number:08d}" for number in range(200)]
    (top / "val" / "images").mkdir(parents=True)
    (top / "wnids.txt").write_text("\n".join(reversed(names)) + "\n")
    lines = []
    for label, name in enumerate(names):
        folder = top / "train" / name / "images"
        folder.mkdir(parents=True)
        image = Image.new("L" if label == 7 else "RGB", (64, 64), label if label == 7 else (label,) * 3)
        for number in range(2):
            image.save(folder / f"{name}_{number}.JPEG")
        image.save(top / "val" / "images" / f"val_{label}.JPEG")
        lines.append(f"val_{label}.JPEG\t{name}\t0\t0\t63\t63\n")
    (top / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def photos(tmp_path):
    """A folder stream of 4 classes with 3 training and 1 test image each; class k has pixels of value 40
    k."""
    top = tmp_path / "photos"
    for label, name in enumerate(("ant", "bee", "cat", "dog")):
        for part, number in (("train", 3), ("test", 1)):
            folder = top / part / name
            folder.mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (20 + index, 31), (40 * label,) * 3).save(folder / f"{index}.png")
    return top
