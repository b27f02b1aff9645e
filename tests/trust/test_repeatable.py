"""The same cell gives the same record: alone, beside others, in a fresh process, in a copy of the code, served."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
import torch
from forked import call
from PIL import Image

from sparcl import cell, components, memory, resolve, streams, trainer
from sparcl.running import checkpoint, environment, record, runner
from sparcl.streams import augment

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the code in another folder, without anything compiled."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("sparcl", "baselines"):
        shutil.copytree(TOP / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_record_names_the_revision_that_it_was_started_at(small_cell, tmp_path: Path, monkeypatch) -> None:
    checked_out = {"revision": "a" * 40, "dirty": False}
    monkeypatch.setattr(environment, "git", lambda: dict(checked_out))
    done = runner.run_cell(
        small_cell("er", epochs=1), tmp_path, watch=lambda run: checked_out.update(revision="b" * 40)
    )
    assert done["measured"]["git"] == {"revision": "a" * 40, "dirty": False}


@pytest.mark.parametrize(
    "method", ["sparcl-derpp", *(pytest.param(m, marks=pytest.mark.slow) for m in ("rigl-er", "lwta"))]
)
def test_everywhere_the_same(method: str, small_cell: Callable[..., cell.Cell], clone: Path, tmp_path: Path) -> None:
    """Processes beside each other, with other surroundings each, and this one after other cells."""
    chosen = small_cell(method, epochs=1, kernel="auto")
    common = {**os.environ, "TMPDIR": str(tmp_path)}
    common.pop("XDG_RUNTIME_DIR", None)
    surroundings = {
        "fresh": ("sparcl.cli", TOP, {"PYTHONHASHSEED": "1"}),
        "again": (
            "sparcl.cli",
            tmp_path,
            {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "HOME": "/"},
        ),
        "clone": ("sparcl.cli", clone, {"PYTHONPATH": str(clone), "MALLOC_PERTURB_": "165"}),
    }
    command = ["run", "--cell", chosen.json(), "--data", str(TOP / "data"), "--results"]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = {}
    for name, (module, folder, variables) in surroundings.items():
        line = [sys.executable, "-m", module, *command, str(tmp_path / name)]
        running[name] = subprocess.Popen(line, env=common | variables, cwd=folder, **streams)
    with launching.Run() as run:
        running["forked"] = run.start("sparcl", *command, str(tmp_path / "forked"), **streams)
        running["forked"].wait()
    for other in ("er", "snip-derpp", "packnet"):
        runner.run_cell(small_cell(other, epochs=1), tmp_path / "others")
    here = record.reproducible(runner.run_cell(chosen, tmp_path / "here"))
    for name, process in running.items():
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert record.reproducible(record.read(runner.folder_of(chosen, tmp_path / name) / "record.json")) == here, name
    another = record.reproducible(
        runner.run_cell(small_cell(method, epochs=1, seed=1, kernel="auto"), tmp_path / "here")
    )
    assert another["results"] != here["results"]


def test_no_global_state_matters(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    """Other seeds of the process's own generators, other threads, other settings that an earlier cell may have left."""
    chosen = small_cell("sparcl-derpp", epochs=1, kernel="auto")
    here = record.reproducible(runner.run_cell(chosen, tmp_path / "here"))

    def disturbed() -> bool:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
        runner.run_cell(small_cell("er", epochs=1, precision="bfloat16"), tmp_path / "there")
        return record.reproducible(runner.run_cell(chosen, tmp_path / "there")) == here

    assert call(disturbed)


def test_methods_share_data_order_and_initial_weights(
    small_cell: Callable[..., cell.Cell],
    run_steps: Callable[..., trainer.Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under one seed every method sees each sample in the same order; one that removes samples skips them only."""
    seen: dict[str, list[list[int]]] = {}
    memories: dict[str, torch.Tensor] = {}
    real = trainer.step
    for method in ("finetune", "derpp", "rigl-derpp", "sparcl-derpp"):
        order = seen.setdefault(method, [])

        def watched(run: trainer.Run, batch: components.Batch, order: list[list[int]] = order) -> None:
            if batch.positions is not None and run.clock.step == 0:
                order.append([])
            order[-1] += batch.positions.tolist()
            real(run, batch)

        monkeypatch.setattr(trainer, "step", watched)
        run = run_steps(small_cell(method))
        memories[method] = run.memory.positions + 10_000 * run.memory.tasks
    assert seen["finetune"] == seen["derpp"] == seen["rigl-derpp"]
    assert torch.equal(memories["derpp"], memories["rigl-derpp"])
    for epoch, (dense, reduced) in enumerate(zip(seen["derpp"], seen["sparcl-derpp"], strict=True)):
        kept = set(reduced)
        assert [position for position in dense if position in kept] == reduced, epoch
    stream = run_steps(small_cell("finetune"), 1).stream
    first, second = (
        dict(trainer.Run(small_cell(method), stream).model.named_parameters())
        for method in ("finetune", "sparcl-derpp")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


# -- augmentation: the digits have none, so on a folder of small images that are moved and mirrored --------------------
PAD = 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[streams.Stream, dict[str, Any]]:
    """Return a stream of two tasks with 40 training images each, no two alike, and its options."""
    top, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("ant", "bee", "cat", "dog"):
        for part, count in (("train", 20), ("test", 2)):
            folder = top / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    options = {"path": str(top), "size": 8, "tasks": 2, "pad": PAD, "flip": True}
    return streams.load("folder", tmp_path_factory.mktemp("data"), options), options


class Watched:
    """What a run saw: each stream image by (task, epoch, position), and each replayed image beside the stored one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: dict[tuple[int, int, int], torch.Tensor] = {}
        self.replayed: list[tuple[torch.Tensor, torch.Tensor]] = []
        step, draw, replay = trainer.step, memory.ReservoirMemory.draw, trainer.Run.draw_replay
        stored: list[torch.Tensor] = []

        def watched_step(run: trainer.Run, batch: components.Batch) -> None:
            for position, image in zip(batch.positions.tolist(), batch.images, strict=True):
                key = run.phase.index, run.clock.epoch, position
                assert key not in self.images
                self.images[key] = image.clone()
            step(run, batch)

        def watched_draw(self: memory.ReservoirMemory, *arguments: Any) -> memory.ReplayBatch:
            found = draw(self, *arguments)
            stored[:] = [found.images]
            return found

        def watched_replay(run: trainer.Run) -> Any:
            found = replay(run)
            self.replayed += zip(stored[0], found[0], strict=True)
            return found

        monkeypatch.setattr(trainer, "step", watched_step)
        monkeypatch.setattr(memory.ReservoirMemory, "draw", watched_draw)
        monkeypatch.setattr(trainer.Run, "draw_replay", watched_replay)


def photo_cell(method: str, options: dict[str, Any], seed: int = 0) -> cell.Cell:
    params = {"ddr.proportion": 0.5, "ddr.cutoff": 2, "ddr.interval": 1} if method.startswith("sparcl") else {}
    sparsity = 0.75 if "-" in method else 0.0
    return resolve.make("folder", method, sparsity, 10, seed, stream_options=options, params=params, model="resnet8",
                     width=4, epochs=4, batch_size=8)  # fmt: skip


def views(image: torch.Tensor, info: streams.StreamInfo) -> list[torch.Tensor]:
    """Return every augmentation of an image (C, H, W), as the network gets it; the untouched one comes first."""
    places = [(dy, dx, flip) for dy in range(2 * PAD + 1) for dx in range(2 * PAD + 1) for flip in (0, 1)]
    places.sort(key=lambda place: place != (PAD, PAD, 0))
    wide = torch.zeros(3, 8 + 2 * PAD, 8 + 2 * PAD, dtype=torch.uint8)
    wide[:, PAD:-PAD, PAD:-PAD] = image
    crops = [wide[:, dy : dy + 8, dx : dx + 8] for dy, dx, _ in places]
    found = [crop.flip(-1) if flip else crop for crop, (_, _, flip) in zip(crops, places, strict=True)]
    return list(augment.normalize(torch.stack(found), info))


def view_of(seen: torch.Tensor, image: torch.Tensor, info: streams.StreamInfo) -> int:
    """Return which augmentation of ``image`` was seen; 0 is none at all."""
    (found,) = [number for number, view in enumerate(views(image, info)) if torch.equal(view, seen)]
    return found


def test_every_method_sees_the_same_augmented_images(
    photos: tuple[streams.Stream, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per sample and epoch, bit for bit, also those that are left after others were removed."""
    stream, options = photos
    seen: dict[str, dict[tuple[int, int, int], torch.Tensor]] = {}
    for method, seed in [(m, 0) for m in ("finetune", "derpp", "rigl-derpp", "sparcl-derpp")] + [("finetune", 1)]:
        with monkeypatch.context() as patch:
            watched = Watched(patch)
            trainer.train(trainer.Run(photo_cell(method, options, seed), stream))
        seen[f"{method} {seed}"] = watched.images
    whole, reduced = seen["finetune 0"], seen["sparcl-derpp 0"]
    assert len(whole) == 2 * 4 * 40
    assert len(reduced) == 2 * (40 + 30 + 20 + 20)
    for name in ("derpp 0", "rigl-derpp 0", "sparcl-derpp 0"):
        assert seen[name].keys() <= whole.keys()
        assert all(torch.equal(image, whole[key]) for key, image in seen[name].items()), name
    assert len(seen["derpp 0"]) == len(seen["rigl-derpp 0"]) == len(whole)

    def drawn(images: dict[tuple[int, int, int], torch.Tensor]) -> dict[tuple[int, int, int], int]:
        index = [task.train_index for task in stream.tasks]
        return {
            (task, epoch, place): view_of(image, stream.train_images[index[task][place]], stream.info)
            for (task, epoch, place), image in images.items()
        }

    # Augmentation of its own for each sample, epoch, task and seed: 320 draws of 50 agree in about 1 of 50.
    first = drawn(whole)
    other = drawn(seen["finetune 1"])
    assert len(set(first.values())) > 40
    assert sum(first[key] == other[key] for key in first) < 32
    assert sum(first[task, epoch, place] == first[task, 0, place] for task, epoch, place in first if epoch) < 24
    assert sum(first[0, epoch, place] == first[1, epoch, place] for task, epoch, place in first if task) < 16


def test_augmentation_goes_on_after_an_interruption(
    photos: tuple[streams.Stream, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Interrupted inside an epoch, after samples were removed: the rest sees what the undisturbed run saw."""
    stream, options = photos
    chosen, path = photo_cell("sparcl-derpp", options), tmp_path / "state.ckpt"
    with monkeypatch.context() as patch:
        whole = Watched(patch)
        trainer.train(trainer.Run(chosen, stream))

    def stop(run: trainer.Run) -> None:
        if (run.phase.index, run.clock.epoch, run.clock.step) == (1, 2, 1):
            checkpoint.save(path, "x", run.state())
            raise trainer.Interrupted

    with monkeypatch.context() as patch:
        before = Watched(patch)
        with pytest.raises(trainer.Interrupted):
            trainer.train(trainer.Run(chosen, stream), stop)
    rest = trainer.Run(chosen, stream)
    rest.load(checkpoint.load(path, "x"))
    assert 0 < int(rest.present.sum()) < rest.pool_size
    with monkeypatch.context() as patch:
        after = Watched(patch)
        trainer.train(rest)
    assert not before.images.keys() & after.images.keys()
    together = before.images | after.images
    assert list(together) == list(whole.images)
    assert all(torch.equal(together[key], whole.images[key]) for key in together)
    replays = before.replayed + after.replayed
    assert len(replays) == len(whole.replayed)
    assert after.replayed
    assert all(torch.equal(a, b) for one, two in zip(replays, whole.replayed, strict=True)
               for a, b in zip(one, two, strict=True))  # fmt: skip


def test_replayed_images_are_augmented_afresh(
    photos: tuple[streams.Stream, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory holds images as they are on disk; each draw moves and mirrors them anew."""
    stream, options = photos
    watched = Watched(monkeypatch)
    run = trainer.Run(photo_cell("derpp", options), stream)
    trainer.train(run)
    on_disk = {image.numpy().tobytes() for image in stream.train_images}
    assert {image.numpy().tobytes() for image in run.memory.images} <= on_disk
    drawn: dict[bytes, list[int]] = {}
    for stored, image in watched.replayed:
        assert stored.numpy().tobytes() in on_disk
        drawn.setdefault(stored.numpy().tobytes(), []).append(view_of(image, stored, stream.info))
    every = [number for numbers in drawn.values() for number in numbers]
    assert len(every) > 200
    assert every.count(0) < len(every) / 10  # as stored: 1 in 50
    assert len(set(every)) > 40
    assert all(len(set(numbers)) > len(numbers) / 3 for numbers in drawn.values())
