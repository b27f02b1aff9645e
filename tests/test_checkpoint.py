"""Checkpoints: round trip by bits; damage of any kind is refused in one line; nothing in a file is executed."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl.errors import RunError, UserError
from sparcl.running import checkpoint, runner
from sparcl.running.checkpoint import MAGIC, StaleCheckpoint, load, save

STATE = {
    "weights": {"a.b": torch.arange(6.0).reshape(2, 3), "scalar": torch.tensor(2.5, dtype=torch.float64)},
    "mask": torch.tensor([True, False]),
    "nothing": torch.zeros(0, 4, dtype=torch.int32),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "list": [1, 2.5, None, "text \u00e9", True, {"deep": torch.tensor([7], dtype=torch.uint8)}],
    "empty": {},
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "folder" / "state.ckpt"
    path.parent.mkdir()
    save(path, "me", STATE)
    return path


def test_round_trip(saved) -> None:
    assert same(load(saved, "me"), STATE)
    assert [p.name for p in saved.parent.iterdir()] == ["state.ckpt"]


def test_strided_and_shared_tensors(tmp_path) -> None:
    base = torch.arange(24.0).reshape(1, 2, 3, 4)
    state = {"last": base.to(memory_format=torch.channels_last), "view": base[0, :, 1], "same": base, "again": base}
    save(tmp_path / "x", "me", state)
    assert same(load(tmp_path / "x", "me"), state)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_plain_state_goes_round(tmp_path_factory, value) -> None:
    path = tmp_path_factory.mktemp("plain") / "x"
    save(path, "me", {"value": value})
    assert same(load(path, "me"), {"value": value})


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": float("nan")}, {"a": {1, 2}}, {"a": b"bytes"}])
def test_what_cannot_be_restored_is_not_saved(tmp_path, value) -> None:
    with pytest.raises(TypeError, match=r"checkpoint keys must be texts|cannot be saved in a checkpoint"):
        save(tmp_path / "x", "me", value)
    assert list(tmp_path.iterdir()) == []


def test_components_get_their_tensors_on_the_runs_device(saved) -> None:
    """So that no baseline has to think of it; the other parts place what they load themselves."""
    loaded = {}
    run = SimpleNamespace(device=torch.device("meta"), load=loaded.update)
    runner._continue(run, saved, {"learner": STATE, "policies": {"0": STATE, "1": {}}, "model": STATE})
    for part in (loaded["learner"], loaded["policies"]["0"]):
        assert part["weights"]["a.b"].device.type == part["list"][5]["deep"].device.type == "meta"
        assert part["list"][:5] == STATE["list"][:5]
    assert loaded["policies"]["1"] == {}
    assert loaded["model"] is STATE


def test_of_another_run(saved) -> None:
    with pytest.raises(StaleCheckpoint, match="another cell, code, library version or data"):
        load(saved, "somebody else")


def test_missing(tmp_path) -> None:
    with pytest.raises(UserError, match="checkpoint cannot be read"):
        load(tmp_path / "none", "me")


def refused(path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load(path, "me")
    message = str(caught.value)
    assert not isinstance(caught.value, StaleCheckpoint)
    assert "\n" not in message
    assert path.name in message
    return message


def test_every_truncation_is_refused(saved) -> None:
    data = saved.read_bytes()
    for length in [*range(120), *range(120, len(data), 37), len(data) - 1]:
        refused(saved, data[:length])


def test_every_flipped_bit_is_refused(saved) -> None:
    """All bits of the first lines, and 400 random ones of the rest."""
    data = saved.read_bytes()
    head = 8 * (len(MAGIC) + 65)
    draw = random.Random(0)
    for bit in [*range(head), *(draw.randrange(head, 8 * len(data)) for _ in range(400))]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(saved, bytes(damaged))


def test_of_another_version_or_no_checkpoint_at_all(saved) -> None:
    data = saved.read_bytes()
    assert "of this version" in refused(saved, data.replace(MAGIC, b"sparcl-checkpoint/2\n", 1))
    assert "of this version" in refused(saved, b"PK\x03\x04 a pickle in a zip")
    assert "of this version" in refused(saved, b"")
    assert "damaged" in refused(saved, data + b"x")


def with_checksum(payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def safetensors_file(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00" * 8,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 5) + b"\xff\xfe{}!",
        safetensors_file([]),
        safetensors_file({}),
        safetensors_file({"__metadata__": {}}),
        safetensors_file({"__metadata__": {"identity": "me"}}),
        safetensors_file({"__metadata__": {"identity": "me", "state": "{"}}),
        safetensors_file({"__metadata__": {"identity": "me", "state": '{"a": {"\\u0000tensor": "0:gone"}}'}}),
        safetensors_file({"__metadata__": {"identity": "me", "state": "{}"},
                          "x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
    ],
)  # fmt: skip
def test_a_forged_checksum_gets_a_foreign_file_no_further(saved, payload: bytes) -> None:
    refused(saved, with_checksum(payload))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(tmp_path_factory, data: bytes, disguised: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.ckpt"
    refused(path, with_checksum(data) if disguised else data)


def test_nothing_is_unpickled(saved, monkeypatch) -> None:
    import pickle

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    assert same(load(saved, "me"), STATE)


def test_a_failed_write_leaves_the_old_checkpoint(saved, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint.atomic.os, "fsync", full)
    with pytest.raises(RunError, match="could not be written"):
        save(saved, "me", {"other": torch.zeros(3)})
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["state.ckpt"]
    assert same(load(saved, "me"), STATE)
