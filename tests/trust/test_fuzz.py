"""Ten thousand mutations of a valid file, for each reader: only UserError, never a traceback of anything else."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparcl import cell, checkpoint, matrix, record, runner
from sparcl.errors import UserError

COUNT = 10_000
CONFIG = """
name: fuzz
title: Fuzz
stream: split-digits
seeds: [0, 1]
reference: derpp
groups:
  dense: {methods: [derpp], buffers: [20]}
  sparse: {methods: [sparcl-derpp], buffers: [20], sparsities: [0.75], set: {ddr.proportion: [0.1]}}
exclude: [{method: derpp, seed: 1}]
"""
FRAGMENTS = [
    "!!python/object/apply:os.system ['true']", "&a [*a, *a]", "{? [] : x}", "~", "1e999", "-1", ".nan", "0x10", "'",
    '"',
    "\t", "\x00", "\ud7ff", "../..", "/etc/passwd", "$(true)", "`true`", "; true", "[[[[[[[[", "null", "true", "9" * 40,
    "{}", "[]", "seeds: 1e9", "methods: '*'", "- -", "<<: *x", "%YAML 1.1", "---\n---", "a: a: a",
]  # fmt: skip


def mutations(text: str, draw: random.Random) -> Iterator[str]:
    """Yield mutated copies of ``text``: pieces cut, doubled, moved, replaced by fragments or single characters."""
    for _ in range(COUNT):
        mutated = text
        for _ in range(draw.randint(1, 3)):
            start = draw.randrange(len(mutated) + 1)
            end = min(len(mutated), start + draw.choice((0, 1, 3, 12)))
            piece = draw.choice(("", draw.choice(FRAGMENTS), chr(draw.randrange(1, 0x2FF)), mutated[start:end] * 2))
            mutated = mutated[:start] + piece + mutated[end:]
        yield mutated


def test_the_config_reader(tmp_path: Path) -> None:
    target, refused = tmp_path / "config.yaml", 0
    for mutated in mutations(CONFIG, random.Random(0)):
        target.write_text(mutated, encoding="utf-8", errors="surrogatepass")
        try:
            loaded = matrix.load(target)
        except UserError:
            refused += 1
        else:
            assert all(re.fullmatch(r"[A-Za-z0-9._=,+/-]+", chosen.path) for chosen in cells_of(loaded))
    assert COUNT / 4 < refused < COUNT


def cells_of(loaded: matrix.Matrix) -> list[cell.Cell]:
    return [entry if isinstance(entry, cell.Cell) else entry[0] for entry in getattr(loaded, "cells", [])]


@pytest.fixture(scope="module")
def finished(small_cell: Callable[..., cell.Cell], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    chosen = small_cell("sparcl-derpp", epochs=1)
    runner.run_cell(chosen, folder)
    return runner.folder_of(chosen, folder) / "record.json"


def test_the_record_reader(finished: Path, tmp_path: Path) -> None:
    data = json.loads(finished.read_text())
    data["results"]["flops"]["executed"]["layers"] = {}
    data["results"]["masks"] = {"layers": {}, "history": []}
    data["checksum"] = record.checksum(data)
    text = json.dumps(data)
    target, accepted = tmp_path / "record.json", 0
    for mutated in mutations(text, random.Random(1)):
        target.write_text(mutated, encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(UserError):
            assert record.read(target) == data
            accepted += 1
    assert accepted < COUNT / 10


def test_the_record_reader_on_sound_checksums(finished: Path, tmp_path: Path) -> None:
    """Values of the wrong kind whose checksum is right: the schema refuses them."""
    draw = random.Random(2)
    text = finished.read_text()
    odd = [None, True, -1, 0.5, "x", [], {}, [[]], {"a": {}}, 10**30, "\ud7ff"]
    target = tmp_path / "record.json"
    for _ in range(500):
        data = json.loads(text)
        place, key = data, draw.choice(list(data))
        while isinstance(place[key], (dict, list)) and place[key] and draw.random() < 0.8:
            place = place[key]
            key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
        place[key] = draw.choice(odd)
        data["checksum"] = record.checksum(data)
        target.write_text(json.dumps(data))
        with contextlib.suppress(UserError):
            record.read(target)


def test_the_checkpoint_reader(tmp_path: Path) -> None:
    target = tmp_path / "state.ckpt"
    checkpoint.save(target, "identity", {"a": {"b": [1, 2.5, "x"]}})
    data, draw = target.read_bytes(), random.Random(3)
    for _ in range(COUNT):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        target.write_bytes(damaged[: draw.randrange(len(damaged) + 1)] if draw.random() < 0.3 else damaged)
        if target.read_bytes() != data:
            with pytest.raises(UserError):
                checkpoint.load(target, "identity")
