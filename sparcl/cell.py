"""A cell is one run of the matrix: a frozen, validated value with every setting resolved.

:func:`make` fills what is not given from the hyper-parameter data files, checks every value, and refuses what makes
no sense. Two cells are the same run exactly if they are equal; :attr:`Cell.path` is their readable place in a results
folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from sparcl import methods, streams
from sparcl.components import Component, Parameter
from sparcl.errors import UserError, suggest
from sparcl.files import strict_yaml
from sparcl.protocol import Protocol

HYPERPARAMETERS = Path(__file__).parent / "data" / "hyperparameters.yaml"
SAFE = re.compile(r"[A-Za-z0-9._=,+-]+")
LONGEST = 200
"""Characters of a variant, which is a folder's name."""
Part = TypeVar("Part", bound=Component)

LIMITS: dict[str, Parameter] = {
    "sparsity": Parameter(0.0, "fraction of each masked layer's weights that are zero", low=0, high=1),
    "buffer": Parameter(0, "capacity of the replay memory, samples", low=0, high=10**7),
    "seed": Parameter(0, "seed of every random draw", low=0, high=2**31 - 1),
    "width": Parameter(16, "channels of the first stage", low=1, high=4096),
    "epochs": Parameter(1, "epochs per task", low=1, high=10**6),
    "batch_size": Parameter(32, "samples of a stream batch", low=1, high=10**6),
    "learning_rate": Parameter(0.03, "learning rate of SGD", low=1e-12, high=1e6),
    "precision": Parameter("float32", "arithmetic of the model", choices=("float32", "tf32", "bfloat16")),
    "device": Parameter("cpu", "where the run computes", choices=("cpu", "cuda")),
}


@dataclass(frozen=True)
class Cell:
    """One run; make it with :func:`make`. ``params`` holds every component's parameters as "component.key"."""

    stream: str
    method: str
    sparsity: float
    buffer: int
    seed: int
    model: str
    width: int
    epochs: int
    batch_size: int
    learning_rate: float
    precision: str
    device: str
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stream_options", MappingProxyType(dict(self.stream_options)))
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))

    def __hash__(self) -> int:
        return hash(self.json())

    @property
    def path(self) -> str:
        """Relative path: stream/method/sS.SS/bN/[variant/]seedN."""
        sparsity = f"s{self.sparsity:.2f}" if round(self.sparsity, 2) == self.sparsity else f"s{self.sparsity:g}"
        parts = [self.stream, self.method, sparsity, f"b{self.buffer}", self.variant, f"seed{self.seed}"]
        return "/".join(part for part in parts if part)

    def as_dict(self) -> dict[str, Any]:
        """Return the cell as plain JSON values, without the derived ``variant``."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "variant"}
        return plain | {"stream_options": dict(self.stream_options), "params": dict(self.params)}

    def json(self) -> str:
        """Return the canonical JSON text that identifies the cell."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def component(self, cls: type[Part]) -> Part:
        """Construct a learner or policy from the cell's parameters."""
        prefix = f"{cls.name}."
        return cls(**{k.removeprefix(prefix): v for k, v in self.params.items() if k.startswith(prefix)})


FIELDS = [f.name for f in fields(Cell) if f.name != "variant"]


def make(
    stream: str,
    method: str,
    sparsity: float = 0.0,
    buffer: int = 0,
    seed: int = 0,
    stream_options: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    hyperparameters: str | Path | None = None,
    **overrides: Any,
) -> Cell:
    """Resolve and check a cell.

    Args:
        params: component parameters to set, as "component.key".
        hyperparameters: a file of ``components`` entries (search results); ``params`` goes before it.
        overrides: protocol fields (model, width, epochs, batch_size, learning_rate, precision, device).

    Raises:
        UserError: an unknown name or key, a value out of range, or a combination that makes no sense.
    """
    if stream not in streams.names():
        raise UserError(
            f"stream: unknown name {stream!r}{suggest(stream, streams.names())}; 'sparcl streams' lists them"
        )
    chosen = methods.get(method)
    if chosen.needs_memory and buffer == 0 and not isinstance(buffer, bool):
        raise UserError(f"buffer: {method} replays from memory and needs a buffer of at least 1, got 0")
    options = dict(stream_options or {})
    streams.describe(stream, options)

    values = protocol_of(stream)
    for key in overrides:
        if key not in (*values, "precision", "device"):
            raise UserError(f"{key}: unknown key{suggest(key, FIELDS)}")
    values |= overrides
    values = {"precision": "float32", "device": "cpu"} | values
    values |= {"sparsity": sparsity, "buffer": buffer, "seed": seed}
    if isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool) and not 0 <= sparsity < 1:
        raise UserError(f"sparsity: expected a number from 0 to below 1, got {sparsity!r}")
    checked = {key: limit.check(key, values[key]) for key, limit in LIMITS.items()}
    if checked["sparsity"] > 0 and not chosen.is_sparse:
        raise UserError(f"sparsity: {method} has no sparsity policy and needs sparsity 0, got {sparsity!r}")
    if not chosen.needs_memory:
        checked["buffer"] = 0
    from sparcl import models

    if values["model"] not in models.names():
        raise UserError(f"model: unknown name {values['model']!r}{suggest(values['model'], models.names())}")
    plain = {"stream": stream, "method": method, "model": values["model"]} | checked

    resolved, variant = _parameters(chosen, plain, dict(params or {}), hyperparameters)
    if options:
        variant |= {f"stream.{key}": value for key, value in options.items()}
    default = protocol_of(stream) | {"precision": "float32", "device": "cpu"}
    variant |= {key: plain[key] for key in default if plain[key] != default[key]}
    cell = Cell(**plain, stream_options=options, params=resolved, variant=_variant_text(variant))
    for part in (Protocol, *chosen.components):
        reason = cell.component(part).refuse(plain)
        if reason:
            raise UserError(reason)
    if "dgm.sparsity" in resolved and cell.component(Protocol).momentum:
        raise UserError("protocol.momentum: dgm needs 0 (momentum would move weights whose gradient is masked)")
    return cell


def from_dict(data: Mapping[str, Any]) -> Cell:
    """Make the cell that :meth:`Cell.as_dict` describes, checking it again."""
    if not isinstance(data, Mapping):
        raise UserError("cell: expected a mapping of settings")
    for key in data:
        if key not in FIELDS:
            raise UserError(f"cell.{key}: unknown key{suggest(key, FIELDS)}")
    missing = [key for key in ("stream", "method") if key not in data]
    if missing:
        raise UserError(f"cell.{missing[0]}: missing")
    for key in ("stream_options", "params"):
        if not isinstance(data.get(key, {}), Mapping):
            raise UserError(f"cell.{key}: expected a mapping")
    return make(**data)


def protocol_of(stream: str) -> dict[str, Any]:
    """Return model, width, epochs, batch_size and learning_rate of a stream."""
    entries = _hyperparameters(HYPERPARAMETERS)["streams"]
    entry = entries.get(stream, entries["folder"])
    return dict(entry["values"])


@functools.cache
def _hyperparameters(path: Path) -> dict[str, Any]:
    data = strict_yaml.load(path)
    entries = data.get("components") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("where"), dict) and isinstance(e.get("values"), dict) for e in entries
    ):
        raise UserError(f"{path}: expected a list 'components' of entries with 'where' and 'values'")
    return data


def defaults(method: methods.Method, stream: str | None = None) -> dict[str, Any]:
    """Return the parameters that the method's name alone gives, with the values of ``stream`` for all its cells.

    Values for one buffer, sparsity or model only are left out; a cell's ``params`` has them.
    """
    known = method.parameters()
    values = {key: parameter.default for key, parameter in known.items()}
    if stream is not None:
        values |= _fitting(HYPERPARAMETERS, {"stream": stream, "method": method.name}, known)
    return values | dict(method.values)


def _parameters(
    method: methods.Method, plain: Mapping[str, Any], given: dict[str, Any], extra: str | Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return every parameter of the method's components, and those that differ from what the name alone gives."""
    known = method.parameters() | {f"protocol.{k}": p for k, p in Protocol.parameters.items()}
    for key in given:
        if key not in known:
            raise UserError(f"{key}: unknown parameter of {method.name}{suggest(key, known)}")
    base = {key: parameter.default for key, parameter in known.items()}
    base |= _fitting(HYPERPARAMETERS, plain, known) | dict(method.values)
    if extra:
        given = _fitting(Path(extra), plain, known) | given
    base, full = (_resolve(method, values, known, plain) for values in (base, base | given))
    return full, {key: value for key, value in full.items() if value != base[key]}


def _fitting(path: Path, plain: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the parameters that a hyper-parameter file gives to a cell; later entries win."""
    found: dict[str, Any] = {}
    for entry in _hyperparameters(path)["components"]:
        if all(plain.get(key) == value for key, value in entry["where"].items()):
            found |= {key: value for key, value in entry["values"].items() if key in known}
    return found


def _resolve(
    method: methods.Method, values: dict[str, Any], known: Mapping[str, Parameter], plain: Mapping[str, Any]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in (Protocol, *method.components):
        own = {
            k: known[f"{part.name}.{k}"].check(f"{part.name}.{k}", values[f"{part.name}.{k}"]) for k in part.parameters
        }
        result |= {f"{part.name}.{key}": value for key, value in part.resolve(own, plain).items()}
    return dict(sorted(result.items()))


def _variant_text(variant: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return f"{value:g}"
        text = str(value)
        return text if SAFE.fullmatch(text) else "h" + format(_short_digest(text), "08x")

    text = ",".join(f"{key}={shown(value)}" for key, value in sorted(variant.items()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 10]}+h{_short_digest(text):08x}"


def _short_digest(text: str) -> int:
    """Return a 32-bit digest of a text that cannot stand in a path."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def load_json(text: str) -> Cell:
    """Make the cell described by a JSON text."""
    try:
        return from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cell: expected JSON ({error})") from error
