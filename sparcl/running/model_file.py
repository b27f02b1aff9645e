"""The trained model of a cell: one safetensors file beside its record, small where weights are masked.

A masked layer NAME of n weights, k of them left, takes two tensors:

``NAME.values``
    float32 (k,): the weights that are left, in row-major order.
``NAME.mask``
    uint8 (ceil(n / 8),): a bit for each position in row-major order, the first the lowest of its byte; 1 where a weight
    is left.

Every other tensor of the network (layers without a mask, or with a full one; biases, batch normalization) is stored as
it is, under its own name. The file's metadata says what it is: ``schema``; ``identity``, that of the record; ``cell``;
``network``: name, width, classes and shape, from which :func:`sparcl.models.build` makes it; ``sparse``, the shapes of
the layers that are stored by mask; and ``sha256``, over all tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sparcl import methods, models
from sparcl.cell import Cell
from sparcl.components import Learner
from sparcl.errors import UserError, one_line
from sparcl.files import atomic
from sparcl.models import Classifier

if TYPE_CHECKING:
    from sparcl.trainer import Run

FILE = "model.safetensors"
SCHEMA = "sparcl-model/1"
VALUES, MASK = ".values", ".mask"


def refuse(cell: Cell) -> None:
    """Raise UserError where one network does not make the cell's predictions."""
    parts, label = methods.parts(cell), methods.get(cell.method).label
    if parts.sparsity.has_views:
        raise UserError(f"method: {label} uses other weights for each task, and one model file cannot hold them")
    if type(parts.learner).predict is not Learner.predict:
        raise UserError(f"method: {label} predicts by more than its network, which is all that a model file holds")


def save(path: Path, run: Run, identity: str) -> None:
    """Write the model of ``run`` atomically to ``path``."""
    tensors, shapes = pack(run.model.state_dict(), run.masks.weight)
    network = {key: getattr(run.model, key) for key in ("name", "width", "classes", "shape")}
    metadata = {
        "schema": SCHEMA,
        "identity": identity,
        "cell": run.cell.json(),
        "network": json.dumps(network),
        "sparse": json.dumps(shapes),
        "sha256": _digest(tensors),
    }
    atomic.write_bytes(path, safetensors.torch.save(tensors, metadata))


def load(path: Path, identity: str) -> Classifier:
    """Return the network saved at ``path``, on the CPU, in eval mode.

    Raises:
        UserError: not readable, no model file, damaged, or of another run.
    """
    try:
        data = path.read_bytes()
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors = safetensors.torch.load(data)
        if metadata["schema"] != SCHEMA or metadata["sha256"] != _digest(tensors):
            raise ValueError("its schema or its checksum is another")
        network, shapes = json.loads(metadata["network"]), json.loads(metadata["sparse"])
        if metadata["identity"] == identity:
            generator = torch.Generator().manual_seed(0)
            model = models.build(**network | {"shape": tuple(network["shape"])}, generator=generator)
            model.load_state_dict(unpack(tensors, shapes))
            return model.eval()
    except OSError as error:
        raise UserError(f"{path}: model cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, RuntimeError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: expected a sound model file, schema {SCHEMA} ({one_line(error, 160)})") from error
    raise UserError(f"{path}: a model of another run, code or library version; --force makes it anew")


def pack(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Return the tensors to store of a network's ``state`` with bool ``masks`` of some weights, and the shapes of those
    that are stored by mask."""
    tensors, shapes = {}, {}
    for name, value in state.items():
        dense = value.detach().cpu().contiguous()
        if name not in masks or bool(masks[name].all()):
            tensors[name] = dense.clone()  # safetensors refuses tensors that share memory
            continue
        mask = masks[name].cpu().contiguous()
        tensors[name + VALUES] = dense[mask]
        tensors[name + MASK] = torch.from_numpy(np.packbits(mask.numpy().reshape(-1), bitorder="little"))
        shapes[name] = list(value.shape)
    return tensors, shapes


def unpack(tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Return the network's state that :func:`pack` was given."""
    stored = {name + part for name in shapes for part in (VALUES, MASK)}
    state = {name: value for name, value in tensors.items() if name not in stored}
    for name, shape in shapes.items():
        values = tensors[name + VALUES]
        dense = torch.zeros(shape, dtype=values.dtype)
        bits = np.unpackbits(tensors[name + MASK].numpy(), count=dense.numel(), bitorder="little")
        dense[torch.from_numpy(bits.astype(bool)).reshape(dense.shape)] = values
        state[name] = dense
    return state


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + value.numpy().tobytes())
    return digest.hexdigest()
