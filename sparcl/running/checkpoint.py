"""Checkpoints: one file that is whole or absent, carries a checksum, and loads without executing code.

Layout: a first line ``sparcl-checkpoint/1``, a second line with the SHA-256 of the rest, then a safetensors file whose
metadata holds everything that is not a tensor, as JSON. Tensors keep their dtype; a continuation is bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sparcl.errors import UserError, one_line
from sparcl.files import atomic

MAGIC = b"sparcl-checkpoint/1\n"
TENSOR = "\x00tensor"


class StaleCheckpoint(UserError):
    """A sound checkpoint of another cell, code, library version or data: it cannot continue this run."""


def save(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write ``state`` (nested dicts and lists of tensors and JSON values, string keys) atomically to ``path``."""
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    metadata = {"identity": identity, "state": json.dumps(plain)}
    payload = safetensors.torch.save(tensors, metadata)
    atomic.write_bytes(path, MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load(path: Path, identity: str) -> dict[str, Any]:
    """Read the state saved at ``path``.

    Raises:
        UserError: not a checkpoint, damaged, or of another file version.
        StaleCheckpoint: of another cell, code, library version or data.
    """
    advice = "delete it to start this cell over"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: checkpoint cannot be read ({error.strerror}); {advice}") from error
    if not data.startswith(MAGIC):
        raise UserError(f"{path}: expected a checkpoint of this version ({MAGIC.decode().strip()}); {advice}")
    digest, _, payload = data[len(MAGIC) :].partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise UserError(f"{path}: checkpoint is damaged (its checksum does not match); {advice}")
    try:
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        found, plain = header["__metadata__"]["identity"], header["__metadata__"]["state"]
        if found == identity:
            return _join(json.loads(plain), safetensors.torch.load(payload))
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: checkpoint is damaged ({one_line(error)}); {advice}") from error
    raise StaleCheckpoint(f"{path}: checkpoint belongs to another cell, code, library version or data; {advice}")


def moved(value: Any, device: torch.device) -> Any:
    """Return nested dicts and lists with their tensors on ``device``; a checkpoint gives them on the CPU."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return [moved(item, device) for item in value] if isinstance(value, list) else value


def _split(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` with its tensors replaced by references, which are collected in ``tensors``."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)}:{key}"
        # Always a copy: safetensors refuses tensors that share memory, and it writes row-major data only.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {TENSOR: name}
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"{key}: checkpoint keys must be texts")
        return {k: _split(v, f"{key}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(v, f"{key}/{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError(f"{key}: cannot be saved in a checkpoint: {type(value).__name__}")


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {TENSOR}:
            return tensors[value[TENSOR]]
        return {k: _join(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    return value
