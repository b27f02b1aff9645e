"""The cache of decoded images: made once, shared, and never trusted when it is not what it says."""

from __future__ import annotations

import errno
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest

from sparcl import streams
from sparcl.errors import RunError, UserError
from sparcl.streams import cache
from sparcl.streams.source import Facts, Source

FACTS = Facts("Fake", (1, 4, 4), (3, 3), (2, 2), 2, (0.0,), (1.0,))


class Fake(Source):
    """Two classes of random pixels; counts how often it is read in ``<root>/reads``."""

    name = "fake"

    def __init__(self, seed=0, delay=0.0):
        self.seed, self.delay, self.mark = seed, delay, None

    def facts(self, options):
        return FACTS

    def fingerprint(self, root, options):
        return self.mark

    def read(self, root, options, allocate):
        with open(root / "reads", "a") as log:
            log.write("read\n")
        numbers = np.random.default_rng(self.seed)
        for part, each in (("train", 3), ("test", 2)):
            allocate(f"{part}_images", (2 * each, 1, 4, 4))[:] = numbers.integers(0, 256, (2 * each, 1, 4, 4))
            time.sleep(self.delay)
            allocate(f"{part}_labels", (2 * each,))[:] = np.repeat([0, 1], each)


def opened(source, root):
    return cache.open_images(source, root, {}, FACTS)


def reads(root):
    return len((root / "reads").read_text().splitlines())


def files(root):
    return sorted(path.name for path in (root / ".sparcl-cache" / "fake").iterdir())


def image_file(root):
    (path,) = (root / ".sparcl-cache" / "fake").glob("train_images-*.npy")
    return path


def test_images_are_decoded_once_and_mapped(tmp_path):
    first = opened(Fake(), tmp_path)
    second = opened(Fake(), tmp_path)
    assert reads(tmp_path) == 1
    assert first.digest == second.digest
    assert isinstance(second.train_images, np.memmap)
    assert second.train_images.dtype == np.uint8
    assert second.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(first.train_images, np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4)))
    assert len(files(tmp_path)) == 6  # four arrays, the manifest and the lock


def test_a_stray_write_stays_in_its_process(tmp_path):
    first = opened(Fake(), tmp_path)
    before = first.train_images[0].copy()
    first.train_images[0] = 255 - before
    assert np.array_equal(opened(Fake(), tmp_path).train_images[0], before)
    assert reads(tmp_path) == 1


def test_the_digest_is_that_of_the_contents(tmp_path):
    roots = [tmp_path / name for name in "abc"]
    for root in roots:
        root.mkdir()
    same, again, other = (opened(Fake(seed), root) for seed, root in zip((0, 0, 1), roots, strict=True))
    assert same.digest == again.digest != other.digest


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "rot", "pickle", "remove", "manifest", "edited manifest", "empty manifest"]
)
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    good = opened(Fake(), tmp_path)
    path, manifest = image_file(tmp_path), tmp_path / ".sparcl-cache" / "fake" / "manifest.json"
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "rot":  # a bit that changed without anybody writing
        times = path.stat()
        data[-1] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "pickle":
        np.save(path, np.array([print], dtype=object), allow_pickle=True)
        path.write_bytes(path.read_bytes().ljust(len(data), b"\0")[: len(data)])
    elif damage == "remove":
        path.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "empty manifest":
        manifest.write_text("{}")
    else:  # a digest that nothing but the manifest's own checksum contradicts
        content = json.loads(manifest.read_text())
        content["arrays"]["train_images"]["sha256"] = "0" * 64
        path.rename(path.with_name(f"train_images-{'0' * 16}.npy"))
        manifest.write_text(json.dumps(content))
    again = opened(Fake(), tmp_path)
    assert reads(tmp_path) == 2
    assert again.digest == good.digest
    assert np.array_equal(again.train_images, np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4)))


def test_a_copied_cache_is_kept(tmp_path):
    good = opened(Fake(), tmp_path)
    os.utime(image_file(tmp_path), ns=(1, 1))
    assert opened(Fake(), tmp_path).digest == good.digest
    assert reads(tmp_path) == 1


def test_changed_files_or_a_changed_reader_make_it_anew(tmp_path):
    source = Fake()
    source.mark = "a"
    opened(source, tmp_path)
    source.mark = None  # the original files are gone: the cache still serves
    opened(source, tmp_path)
    assert reads(tmp_path) == 1
    source.mark, source.seed = "b", 1
    changed = opened(source, tmp_path)
    assert reads(tmp_path) == 2
    assert np.array_equal(changed.train_images, np.random.default_rng(1).integers(0, 256, (6, 1, 4, 4)))
    assert len(files(tmp_path)) == 6  # nothing of the old cache is left
    source.code = lambda: "that of another reader"
    opened(source, tmp_path)
    assert reads(tmp_path) == 3


def test_the_code_of_a_source_is_that_of_its_module(tmp_path, monkeypatch):
    """Another ``read`` is other code; a comment is not."""
    module = tmp_path / "mine.py"
    text = "from sparcl.streams.source import Source\nclass Mine(Source):\n    def read(self, *a):\n        return 1\n"
    monkeypatch.syspath_prepend(tmp_path)
    module.write_text(text)
    source = importlib.import_module("mine").Mine()
    first = source.code()
    module.write_text(f"# a comment\n{text}")
    assert source.code() == first
    module.write_text(text.replace("return 1", "return 2"))
    assert source.code() != first


def _open_and_tell(root, queue):
    queue.put(opened(Fake(delay=0.2), root).digest)


def test_parallel_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_open_and_tell, args=(tmp_path, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    digests = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert reads(tmp_path) == 1
    assert digests == {opened(Fake(), tmp_path).digest}


def test_a_killed_builder_leaves_nothing_that_is_believed(tmp_path):
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_open_and_tell, args=(tmp_path, context.Queue()))
    worker.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "reads").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert "manifest.json" not in files(tmp_path)
    opened(Fake(), tmp_path)
    assert reads(tmp_path) == 2
    assert not [name for name in files(tmp_path) if name.startswith(".build-")]


def test_a_full_disk_is_a_failed_run_that_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match="No space left"):
        opened(Fake(), tmp_path)
    assert files(tmp_path) == ["lock"]


def test_without_permission_images_are_decoded_into_memory(tmp_path, monkeypatch):
    good = opened(Fake(), tmp_path)
    other = tmp_path / "read-only"
    other.mkdir()

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache.os, "open", refuse)
    assert opened(Fake(), other).digest == good.digest
    assert opened(Fake(), other).digest == good.digest
    assert reads(other) == 2


def test_a_cache_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".sparcl-cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        opened(Fake(), tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_data_root_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder"):
        opened(Fake(), tmp_path / "file")


def test_a_source_that_gives_nonsense_is_refused(tmp_path):
    class Bad(Fake):
        def read(self, root, options, allocate):
            super().read(root, options, lambda name, shape: arrays.setdefault(name, allocate(name, shape)))
            self.spoil()

        def spoil(self):
            arrays["train_labels"][:] = 1

    arrays = {}
    with pytest.raises(UserError, match="class 0 has none"):
        opened(Bad(), tmp_path)
    arrays = {}
    Bad.spoil = lambda self: arrays["test_labels"].fill(2)
    with pytest.raises(UserError, match="labels from 0 to 1"):
        opened(Bad(), tmp_path)
    assert "manifest.json" not in files(tmp_path)


def test_the_second_load_needs_neither_torchvision_nor_scikit_learn(cifar_root, digits_root, monkeypatch):
    first = streams.load("split-cifar10", cifar_root)
    for module in ("torchvision", "sklearn", "PIL"):
        monkeypatch.setitem(sys.modules, module, None)
    assert streams.load("split-cifar10", cifar_root).digest == first.digest
    streams.load("split-digits", digits_root)
    with pytest.raises(ImportError):
        import torchvision  # noqa: F401
