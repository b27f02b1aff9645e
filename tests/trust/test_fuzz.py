"""Damaged copies of a good file for each reader: one line or a sound value, and nothing else happens.

The readers run in a child that notes every attempt to start a program, to unpickle, to connect, or to write outside the
test's folder. A reader that takes longer than ``PATIENCE`` seconds over one small file is ended.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import itertools
import json
import random
import re
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutate
import pytest
import torch
from forked import call, guard

from analysis import plan as plans
from sparcl import cell, cli, matrix, resolve, streams, trainer
from sparcl import plan as planning
from sparcl.errors import UserError
from sparcl.running import checkpoint, record, runner
from sparcl.streams import cache

PATIENCE = 60
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
CELL = """
stream: split-digits
method: sparcl-derpp
sparsity: 0.75
buffer: 20
seed: 3
epochs: 2
stream_options: {class_order_seed: 1}
params: {ddr.proportion: 0.3, protocol.momentum: 0}
"""
SEARCHED = """
components:
  - where: {stream: split-digits, method: derpp}
    values: {derpp.alpha: 0.2, derpp.beta: 0.5}
    source: a search
    evidence: [{values: {derpp.alpha: 0.2}, mean: 50.0, std: 1.0, seeds: 3}]
"""
SAFE = re.compile(r"[A-Za-z0-9._=,+-]+(/[A-Za-z0-9._=,+-]+)*")


@pytest.fixture(params=[300, pytest.param(10_000, marks=pytest.mark.slow)])
def count(request: pytest.FixtureRequest) -> int:
    """How many inputs a reader gets; the first ones are the same in both."""
    return request.param


@contextlib.contextmanager
def patience() -> Iterator[None]:
    def over(*_: object) -> None:
        raise AssertionError(f"a reader took longer than {PATIENCE} s")

    previous = signal.signal(signal.SIGALRM, over)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def tried(folder: Path, count: int, make: Callable[[int], Any], read: Callable[[Any], bool]) -> int:
    """Give ``count`` inputs to ``read`` in a child; return how many it accepted (it says so by True)."""

    def work() -> dict[str, Any]:
        accepted = 0
        with contextlib.suppress(UserError):
            read(make(0))  # imports on the first use
        seen = guard(folder)
        for number in range(count):
            changed = make(number)
            try:
                with patience():
                    accepted += read(changed)
            except UserError as error:
                if "\n" in str(error):
                    raise AssertionError(f"input {number}: more than one line for {changed!r:.2000}") from error
            except Exception as error:
                raise AssertionError(f"input {number}: {changed!r:.2000}") from error
        return {"accepted": accepted, "seen": seen}

    result = call(work)
    assert result["seen"] == []
    assert not list(folder.rglob("hacked"))
    return result["accepted"]


def yaml_texts(good: str, parsed: Any, seed: int) -> Callable[[int], str]:
    """Return a maker of damaged configs: half damaged as text, half in their values."""
    draw = random.Random(seed)

    def make(number: int) -> str:
        return mutate.text(good, draw) if number % 2 else mutate.written(mutate.value(parsed, draw))

    return make


def parsed(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def test_the_matrix_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "config.yaml"

    def read(text: str) -> bool:
        target.write_text(text, encoding="utf-8", errors="surrogatepass")
        loaded = matrix.load(target)
        for chosen in loaded.cells:
            assert SAFE.fullmatch(chosen.path), chosen.path
            assert not {".", ".."} & set(chosen.path.split("/")), chosen.path
        json.dumps(loaded.config, allow_nan=False)
        return True

    accepted = tried(tmp_path, count, yaml_texts(CONFIG, parsed(CONFIG), 0), read)
    assert count / 100 < accepted < count / 2


@pytest.fixture
def _one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the command line's parser once: it depends on nothing, and takes longer to make than to use."""
    monkeypatch.setattr(cli, "parser", functools.cache(cli.parser))


@pytest.mark.usefixtures("_one_parser")
def test_the_cell_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """``sparcl run --config FILE``, up to the cell."""
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "cell.yaml"
    found: list[cell.Cell] = []
    monkeypatch.setitem(cli.COMMANDS, "run", lambda options: found.append(cli._cell(options)) or 0)

    def read(text: str) -> bool:
        target.write_text(text, encoding="utf-8", errors="surrogatepass")
        return commanded(["run", "--config", str(target)], found)

    accepted = tried(tmp_path, count, yaml_texts(CELL, parsed(CELL), 1), read)
    assert count / 100 < accepted < count / 2


@pytest.mark.usefixtures("_one_parser")
def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """``--cell``, ``--set`` and every option of a cell, with damaged and foreign values."""
    monkeypatch.chdir(tmp_path)
    found: list[cell.Cell] = []
    monkeypatch.setitem(cli.COMMANDS, "run", lambda options: found.append(cli._cell(options)) or 0)
    draw = random.Random(2)
    good = json.dumps(parsed(CELL))
    options = ("--stream", "--method", "--sparsity", "--buffer", "--seed", "--epochs", "--learning-rate", "--device")
    keys = ("ddr.proportion", "tdm.init", "stream.tasks", "stream.path", "protocol.momentum", "x")

    def make(number: int) -> list[str]:
        if number % 4 == 0:
            return ["--cell", mutate.text(good, draw)]
        if number % 4 == 1:
            return ["--cell", mutate.written(mutate.value(parsed(CELL), draw))]
        odd = draw.choice([*mutate.FRAGMENTS, *(str(v) for v in mutate.VALUES if not isinstance(v, int))])
        if number % 4 == 2:
            return ["--cell", good, f"{draw.choice(options)}={odd}"]
        return ["--cell", good, "--set", f"{draw.choice(keys)}={mutate.text(odd, draw)}"]

    accepted = tried(tmp_path, count, make, lambda arguments: commanded(["run", *arguments], found))
    assert count / 100 < accepted < count / 2


def commanded(arguments: list[str], found: list[cell.Cell]) -> bool:
    """Run the command line; return whether it took its arguments, after checking what it did."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        status = cli.main(arguments)
    if status == 2:
        assert len(printed.getvalue().splitlines()) == 1
        return False
    assert status == 0
    assert printed.getvalue() == ""
    assert SAFE.fullmatch(found[-1].path), found[-1].path
    return True


def test_the_reader_of_search_results(tmp_path: Path, count: int) -> None:
    numbers = itertools.count()

    def read(text: str) -> bool:
        target = tmp_path / str(next(numbers))  # what a name held is remembered
        target.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            resolve.make("split-digits", "derpp", 0.0, 20, hyperparameters=target)
        finally:
            target.unlink()
        return True

    assert tried(tmp_path, count, yaml_texts(SEARCHED, parsed(SEARCHED), 3), read) > count / 100


# -- records and plans -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(small_cell: Callable[..., cell.Cell], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a record, shortened where it only repeats itself."""
    chosen = small_cell("sparcl-derpp", epochs=1)
    data = copy.deepcopy(runner.run_cell(chosen, tmp_path_factory.mktemp("fuzz")))
    data["results"]["executed"]["layers"] = {}
    masks = data["results"]["masks"]
    masks["layers"] = dict(list(masks["layers"].items())[:1])
    masks["history"] = masks["history"][:1]
    data["checksum"] = record.checksum(data)
    return data


def test_the_record_reader(finished: dict[str, Any], tmp_path: Path, count: int) -> None:
    """Damage of any kind: what is read is the record as it was written, or nothing."""
    text, target, draw = json.dumps(finished), tmp_path / "record.json", random.Random(4)

    def make(number: int) -> bytes:
        if number % 3:
            return mutate.text(text, draw).encode(errors="surrogatepass")
        return mutate.data(text.encode(), draw)

    def read(raw: bytes) -> bool:
        target.write_bytes(raw)
        assert record.read(target) == finished
        return True

    assert tried(tmp_path, count, make, read) < count / 10


def test_the_record_reader_on_sound_checksums(finished: dict[str, Any], tmp_path: Path, count: int) -> None:
    """Values of the wrong kind whose checksum is right: refused, or of the right kind."""
    target, draw = tmp_path / "record.json", random.Random(5)

    def read(changed: Any) -> bool:
        if isinstance(changed, dict):
            with contextlib.suppress(ValueError):
                changed = {**changed, "checksum": record.checksum(changed)}
        target.write_text(mutate.written(changed))
        found = record.read(target)
        assert set(found) == set(finished)
        return True

    assert tried(tmp_path, count, lambda _: mutate.value(finished, draw), read) < count / 2


def test_the_plan_reader(tmp_path: Path, count: int) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    made = planning.make(matrix.load(tmp_path / "config.yaml"))
    good = json.loads(planning.write(made, tmp_path).read_text())
    good["config"], good["cells"] = {}, good["cells"][:2]
    target, draw = tmp_path / "plan.json", random.Random(6)

    def read(changed: Any) -> bool:
        target.write_text(changed if isinstance(changed, str) else mutate.written(changed), errors="surrogatepass")
        plans.read(target)
        return True

    def make(number: int) -> Any:
        return mutate.text(json.dumps(good), draw) if number % 2 else mutate.value(good, draw)

    assert tried(tmp_path, count, make, read) < count / 2


# -- checkpoints and the cache of images -------------------------------------------------------------------------------
STATE = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])},
    "list": [1, 2.5, None, "x", {"deep": torch.tensor([7], dtype=torch.uint8)}],
}


def sealed(payload: bytes) -> bytes:
    return checkpoint.MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def test_the_checkpoint_reader(tmp_path: Path, count: int) -> None:
    """Any damage is noticed; with a checksum forged over it, it is refused or read as the plain data that it is."""
    target = tmp_path / "state.ckpt"
    checkpoint.save(target, "identity", STATE)
    good, draw = target.read_bytes(), random.Random(7)
    payload = good.partition(b"\n")[2].partition(b"\n")[2]
    size = struct.unpack("<Q", payload[:8])[0]
    header, body = json.loads(payload[8 : 8 + size]), payload[8 + size :]
    plain = json.loads(header["__metadata__"]["state"])

    def forged() -> bytes:
        kind = draw.randrange(3)
        if kind == 0:
            return sealed(mutate.data(payload, draw))
        if kind == 1:
            changed = mutate.value(header, draw)
        else:
            state = mutate.written(mutate.value(plain, draw))
            changed = {**header, "__metadata__": {"identity": "identity", "state": state}}
        text = mutate.written(changed).encode()
        return sealed(struct.pack("<Q", len(text)) + text + body)

    def read(raw: bytes) -> bool:
        target.write_bytes(raw)
        found = checkpoint.load(target, "identity")
        assert raw == good or raw[len(checkpoint.MAGIC) :][:64] != good[len(checkpoint.MAGIC) :][:64]
        checkpoint._split(found, "", {})  # nothing but tensors and JSON values
        return True

    assert tried(tmp_path, count, lambda _: mutate.data(good, draw), read) < count / 100
    assert tried(tmp_path, count, lambda _: forged(), read) > count / 100


def test_a_run_that_is_given_a_forged_state(
    small_cell: Callable[..., cell.Cell], digits: streams.Stream, tmp_path: Path
) -> None:
    """A state whose checksum is right and whose values are not is refused in one line, or loads."""
    chosen = small_cell("sparcl-derpp", epochs=1)
    run = trainer.Run(chosen, digits)
    with contextlib.suppress(trainer.Interrupted):
        trainer.train(run, stop_now)
    good: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    good = checkpoint._split(run.state(), "", tensors)
    draw = random.Random(8)

    def read(changed: Any) -> bool:
        try:
            state = checkpoint._join(changed, tensors)
        except (KeyError, TypeError):
            return False
        runner._continue(trainer.Run(chosen, digits), tmp_path / "state.ckpt", state)
        return True

    assert tried(tmp_path, 1000, lambda _: mutate.value(good, draw), read) > 10


def stop_now(_: trainer.Run) -> None:
    raise trainer.Interrupted


def test_the_reader_of_cached_images(tmp_path: Path, count: int) -> None:
    streams.load("split-digits", tmp_path, {})
    folder = tmp_path / cache.FOLDER / "split-digits"
    source = streams.source.find("split-digits")
    code, mark = source.code(), source.fingerprint(tmp_path, {})
    target, draw = folder / "manifest.json", random.Random(9)
    good = json.loads(target.read_text())
    digest = cache._read(folder, code, mark).digest

    def make(number: int) -> str:
        if number % 2:
            return mutate.text(json.dumps(good), draw)
        changed = mutate.value({key: value for key, value in good.items() if key != "checksum"}, draw)
        if isinstance(changed, dict):
            with contextlib.suppress(ValueError):
                changed = {**changed, "checksum": cache._checksum(changed)}
        return mutate.written(changed)

    def read(text: str) -> bool:
        target.write_text(text, errors="surrogatepass")
        found = cache._read(folder, code, mark)
        assert found is None or found.digest == digest
        return found is not None

    assert tried(tmp_path, count, make, read) < count / 2
