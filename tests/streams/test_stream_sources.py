"""Every data set in its official layout, whole and damaged."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import pickle
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparcl import streams
from sparcl.errors import UserError
from sparcl.streams import source
from sparcl.streams.sources import folder


def refusal(name, root, options=None):
    """Return the one line with which the stream is refused."""
    with pytest.raises(UserError) as caught:
        streams.load(name, root, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


class Bomb:
    """Unpickling an object of this class makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_cifar(cifar_root, cifar_pixels):
    stream = streams.load("split-cifar10", cifar_root)
    assert stream.info.train_sizes == (6,) * 5
    assert stream.info.test_sizes == (4,) * 5
    assert np.array_equal(stream.train_images[:6].numpy(), cifar_pixels)
    assert stream.train_labels.tolist() == [i % 10 for i in range(30)]
    assert stream.test_labels.tolist() == list(range(10)) * 2
    assert stream.tasks[1].train_index.tolist() == [2, 3, 12, 13, 22, 23]


def test_a_file_with_the_wrong_checksum_is_never_unpickled(cifar_root, offline):
    place = cifar_root / "executed"
    for name in ("data_batch_3", "batches.meta"):
        path = cifar_root / "cifar-10-batches-py" / name
        good = path.read_bytes()
        path.write_bytes(pickle.dumps(Bomb(place)))
        message = refusal("split-cifar10", cifar_root)
        assert name in message
        assert "MD5" in message
        path.write_bytes(good)
    assert not place.exists()


def test_files_damaged_after_the_cache_was_made_are_noticed(cifar_root, offline):
    streams.load("split-cifar10", cifar_root)
    path = cifar_root / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(path.read_bytes()[:-1])
    assert "data_batch_1" in refusal("split-cifar10", cifar_root)


def test_the_cache_serves_when_the_files_are_gone(cifar_root, offline):
    digest = streams.load("split-cifar10", cifar_root).digest
    shutil.rmtree(cifar_root / "cifar-10-batches-py")
    assert streams.load("split-cifar10", cifar_root).digest == digest


@pytest.mark.parametrize("name", ["split-cifar10", "split-cifar100", "split-mnist", "split-fashion-mnist"])
def test_missing_data_without_a_network(name, tmp_path, offline, capsys):
    message = refusal(name, tmp_path)
    assert str(tmp_path) in message
    assert "missing" in message
    assert "no network" in message
    assert "http" in message
    assert capsys.readouterr().out == ""


def test_a_download_that_is_cut_off_is_told_in_one_line(tmp_path, monkeypatch):
    def cut(*_, **__):
        raise http.client.IncompleteRead(b"", 10)

    monkeypatch.setattr("urllib.request.urlopen", cut)
    assert "the download failed (IncompleteRead" in refusal("split-mnist", tmp_path)


def test_mnist(mnist_root):
    stream = streams.load("split-mnist", mnist_root)
    assert stream.train_images.shape == (30, 1, 28, 28)
    assert stream.info.train_sizes == (6,) * 5
    raw = (mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()
    assert stream.train_images.numpy().tobytes() == raw[16:]
    labels = (mnist_root / "MNIST" / "raw" / "train-labels-idx1-ubyte").read_bytes()
    assert bytes(stream.train_labels.tolist()) == labels[8:]


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_mnist(mnist_root, offline, file):
    path = mnist_root / "MNIST" / "raw" / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert str(path) in refusal("split-mnist", mnist_root)


def test_fashion_mnist_from_its_archives(fashion_root, offline):
    stream = streams.load("split-fashion-mnist", fashion_root)
    assert stream.info.test_sizes == (4,) * 5
    assert stream.test_images.shape == (20, 1, 28, 28)


def test_fashion_mnist_without_archives_is_checked_by_its_counts(fashion_root, offline):
    from torchvision.datasets.utils import extract_archive

    folder = fashion_root / "FashionMNIST" / "raw"
    for packed in folder.glob("*.gz"):
        extract_archive(packed, remove_finished=True)
    path = folder / "train-labels-idx1-ubyte"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([(good[-1] + 1) % 10]))
    assert str(path) in refusal("split-fashion-mnist", fashion_root)
    path.write_bytes(good[:-1])
    assert "bytes" in refusal("split-fashion-mnist", fashion_root)
    path.write_bytes(b"\x80\x04" + good)
    assert "IDX" in refusal("split-fashion-mnist", fashion_root)
    path.write_bytes(good)
    assert streams.load("split-fashion-mnist", fashion_root).info.train_sizes == (6,) * 5


def test_downloads_go_through_torchvision_with_its_checksum(mnist_root, monkeypatch):
    """The second mirror serves what the first does not; a wrong archive is refused by its MD5."""
    from torchvision.datasets import MNIST, utils

    folder = mnist_root / "MNIST" / "raw"
    good = (folder / "t10k-labels-idx1-ubyte").read_bytes()
    (folder / "t10k-labels-idx1-ubyte").unlink()
    packed, asked = gzip.compress(good, mtime=0), []

    def serve(url, filename, **_):
        asked.append(url)
        if url.startswith("http://first/"):
            raise urllib.error.URLError("down")
        Path(filename).write_bytes(packed)

    monkeypatch.setattr(utils, "_urlretrieve", serve)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(MNIST, "mirrors", ["http://first/", "http://second/"])
    resources = [(f"{path.name}.gz", "0" * 32) for path in folder.iterdir()]
    monkeypatch.setattr(MNIST, "resources", [*resources, ("t10k-labels-idx1-ubyte.gz", "1" * 32)])
    assert "download failed" in refusal("split-mnist", mnist_root)
    right = hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(MNIST, "resources", [*resources, ("t10k-labels-idx1-ubyte.gz", right)])
    asked.clear()
    assert streams.load("split-mnist", mnist_root).info.test_sizes == (4,) * 5
    assert asked == []  # the second attempt finds the archive that the first one left, now with the right checksum
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    shutil.rmtree(mnist_root / ".sparcl-cache")
    streams.load("split-mnist", mnist_root)
    assert [url.split("/")[2] for url in asked] == ["first", "second"]


def test_tiny_imagenet(tiny_root):
    stream = streams.load("split-tiny-imagenet", tiny_root)
    assert stream.info.train_sizes == (40,) * 10
    assert stream.info.test_sizes == (20,) * 10
    assert stream.train_labels.tolist() == [label for label in range(200) for _ in range(2)]
    values = stream.train_images.float().mean((1, 2, 3))
    assert (values - stream.train_labels).abs().max() <= 2  # JPEG rounds
    assert (stream.test_images.float().mean((1, 2, 3)) - stream.test_labels).abs().max() <= 2
    assert torch.equal(stream.train_images[14, 0], stream.train_images[14, 2])  # class 7 is grey


def test_tiny_imagenet_refusals(tiny_root, tmp_path_factory):
    top = tiny_root / "tiny-imagenet-200"
    message = refusal("split-tiny-imagenet", tmp_path_factory.mktemp("empty"))
    assert "tiny-imagenet-200" in message
    assert "http" in message

    def tampered(path, data, *words):
        good = path.read_bytes()
        path.write_bytes(data)
        message = refusal("split-tiny-imagenet", tiny_root)
        path.write_bytes(good)
        for word in words:
            assert word in message

    image = top / "train" / "n00000003" / "images" / "n00000003_1.JPEG"
    tampered(image, image.read_bytes()[:200], str(image))
    tampered(image, b"%!PS-Adobe-3.0 EPSF-3.0\n", str(image))
    annotations = top / "val" / "val_annotations.txt"
    tampered(annotations, b"../../../etc/x.JPEG\tn00000003\n", "val_annotations.txt", "etc")
    tampered(annotations, b"val_0.JPEG\tn99999999\n", "val_annotations.txt")
    tampered(annotations, b"val_999.JPEG\tn00000003\n", "val_999.JPEG", "missing")
    tampered(annotations, b"\xff\xfe", "val_annotations.txt")
    tampered(top / "wnids.txt", b"n00000001\n", "wnids.txt", "200")
    large = tiny_root / "large.jpg"
    Image.new("RGB", (65, 64)).save(large)
    tampered(image, large.read_bytes(), str(image), "64x64", "65x64")
    streams.load("split-tiny-imagenet", tiny_root)


def test_folder(photos, tmp_path):
    options = {"path": str(photos), "size": 16, "tasks": 2}
    info = streams.describe("folder", options)
    assert (info.shape, info.classes, info.train_sizes, info.test_sizes) == ((3, 16, 16), 4, (6, 6), (2, 2))
    assert (info.pad, info.flip, info.label) == (2, True, "Split-photos")
    stream = streams.load("folder", tmp_path / "data", options)
    assert stream.info == info
    for image, label in zip(stream.train_images, stream.train_labels, strict=True):
        assert image.unique().tolist() == [40 * label]
    assert sorted(path.name for path in photos.iterdir()) == ["test", "train"]  # nothing is written there
    assert streams.describe("folder", {**options, "pad": 0, "flip": False}).flip is False
    assert "5 does not divide the 4 classes" in refusal("folder", tmp_path, {"path": str(photos)})


def test_a_changed_folder_is_read_again(photos, tmp_path):
    options = {"path": str(photos), "tasks": 2}
    first = streams.load("folder", tmp_path, options)
    Image.new("RGB", (20, 31), (255,) * 3).save(photos / "train" / "ant" / "0.png")
    second = streams.load("folder", tmp_path, options)
    assert second.digest != first.digest
    assert second.train_images[0].unique().tolist() == [255]
    assert streams.load("folder", tmp_path, {**options, "size": 8}).train_images.shape[-1] == 8
    assert streams.load("folder", tmp_path, options).digest == second.digest


def test_planning_lists_a_folder_once(photos, monkeypatch):
    listed = []
    original = folder._list
    monkeypatch.setattr(folder, "_list", lambda top: listed.append(top) or original(top))
    options = {"path": str(photos), "tasks": 2}
    with streams.remembered():
        assert streams.describe("folder", options) is streams.describe("folder", dict(options))
        assert streams.describe("folder", {**options, "size": 8}).shape == (3, 8, 8)
        assert len(listed) == 2
    streams.describe("folder", options)
    assert len(listed) == 3


def test_folder_refusals(photos, tmp_path):
    options = {"path": str(photos), "tasks": 2}
    broken = photos / "train" / "ant" / "9.png"
    broken.write_bytes(b"no image")
    assert str(broken) in refusal("folder", tmp_path, options)
    Image.new("RGB", (9, 9)).save(broken, format="PCX")  # Pillow knows it, but it is not among the formats
    assert str(broken) in refusal("folder", tmp_path, options)
    Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(broken)
    assert "expected 8 bits a channel, found an image of mode I;16" in refusal("folder", tmp_path, options)
    broken.unlink()
    (photos / "train" / "ant" / "notes.txt").write_text("x")
    assert "notes.txt" in refusal("folder", tmp_path, options)
    (photos / "train" / "ant" / "notes.txt").rename(photos / "train" / "ant" / ".notes.txt")
    (photos / "train" / "eel").mkdir()
    assert "eel" in refusal("folder", tmp_path, options)
    (photos / "train" / "eel").rmdir()
    shutil.move(photos / "test" / "bee", tmp_path / "bee")
    assert str(photos / "test" / "bee") in refusal("folder", tmp_path, options)
    shutil.move(tmp_path / "bee", photos / "test" / "bee")
    streams.load("folder", tmp_path, options)


def test_no_link_leads_out_of_the_folder(photos, tmp_path):
    options = {"path": str(photos), "tasks": 2}
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (9, 9)).save(outside / "secret.png")
    link = photos / "train" / "ant" / "link.png"
    for target in (outside / "secret.png", "../../../outside/secret.png"):
        link.symlink_to(target)
        assert "leads out of it" in refusal("folder", tmp_path, options)
        link.unlink()
    (photos / "train" / "fox").symlink_to(outside)
    assert "leads out of it" in refusal("folder", tmp_path, options)
    (photos / "train" / "fox").unlink()
    link.symlink_to("link.png")  # a link to itself
    assert "link.png" in refusal("folder", tmp_path, options)
    link.unlink()
    link.symlink_to("0.png")  # inside: allowed
    assert streams.load("folder", tmp_path, options).info.train_sizes == (7, 6)


def test_the_data_root(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARCL_DATA", raising=False)
    assert streams.data_root() == Path("data")
    monkeypatch.setenv("SPARCL_DATA", str(tmp_path))
    assert streams.data_root() == tmp_path
    assert streams.data_root("elsewhere") == Path("elsewhere")


class Installed:
    """An entry point of a package installed beside this one."""

    name, value = "beside", "beside.streams"

    def __init__(self, module):
        self.module = module

    def load(self):
        if self.module is None:
            raise ImportError("no module named beside")
        return self.module


@pytest.fixture
def install(monkeypatch):
    def register(module):
        monkeypatch.setattr(source.metadata, "entry_points", lambda group: [Installed(module)])
        source._found.cache_clear()

    yield register
    source._found.cache_clear()


def test_a_package_beside_this_one_adds_a_stream(install, tmp_path):
    class Extra(source.Source):
        name = "split-extra"

        def facts(self, options):
            return source.Facts("Extra", (1, 2, 2), (2, 2), (2, 2), 2, (0.5,), (0.5,))

        def read(self, root, options, allocate):
            for part in ("train", "test"):
                allocate(f"{part}_images", (4, 1, 2, 2))[:] = 7
                allocate(f"{part}_labels", (4,))[:] = [0, 1, 1, 0]

    class Module:
        SOURCES = (Extra(),)

    install(Module)
    assert "split-extra" in streams.names()
    stream = streams.load("split-extra", tmp_path, {"validation": 0.5})
    assert [len(task.test_index) for task in stream.tasks] == [1, 1]


def test_an_entry_point_that_is_wrong_is_named_and_takes_nothing_else_away(install):
    whole = streams.names()
    install(None)
    assert streams.names() == whole
    ((module, reason),) = streams.broken().items()
    assert module == "beside.streams"
    assert reason.startswith("cannot be imported (")

    class Module:
        SOURCES = (source.Source(),)

    Module.SOURCES[0].name = "split-digits"
    install(Module)
    assert streams.names() == whole
    assert "'split-digits' is defined twice" in streams.broken()["beside.streams"]
    assert type(source.find("split-digits")) is not source.Source

    Module.SOURCES = (source.Source(), source.Source())
    for one in Module.SOURCES:
        one.name = "split-new"
    install(Module)
    assert streams.names() == whole
    assert "'split-new' is defined twice" in streams.broken()["beside.streams"]


def test_a_stream_of_this_package_is_defined_once(install, monkeypatch):
    from sparcl.streams.sources import mnist

    monkeypatch.setattr(mnist, "SOURCES", (*mnist.SOURCES, source.find("split-digits")))
    install(None)
    with pytest.raises(UserError, match="'split-digits' is defined twice"):
        streams.names()
