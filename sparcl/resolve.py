"""From what is given of a run to a cell: every setting filled in from the data files, checked, or refused."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparcl import methods, models, streams
from sparcl.cell import FIELDS, PROTOCOL, SETTINGS, Cell
from sparcl.components import Clock, DataPolicy
from sparcl.errors import UserError, suggest
from sparcl.files import strict_yaml
from sparcl.parameters import Parameter, Parameterized
from sparcl.protocol import Protocol

HYPERPARAMETERS = Path(__file__).parent / "data" / "hyperparameters.yaml"
NEEDED = ("model", "width", "epochs", "batch_size", "learning_rate")
"""What the protocol of a stream has to say; the other settings of a cell have defaults of their own."""


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
        overrides: settings that the stream has defaults of (:data:`sparcl.cell.PROTOCOL`).

    Raises:
        UserError: an unknown name or key, a value out of range, or a combination that makes no sense.
    """
    for key in overrides:
        if key not in PROTOCOL:
            raise UserError(f"{key}: unknown key{suggest(key, FIELDS)}")
    if stream not in streams.names():
        raise UserError(
            f"stream: unknown name {stream!r}{suggest(stream, streams.names())}; 'sparcl streams' lists them"
        )
    chosen = methods.get(method)
    if chosen.needs_memory and buffer == 0 and not isinstance(buffer, bool):
        raise UserError(f"buffer: {method} replays from memory and needs a buffer of at least 1, got 0")
    options = {key: value for key, value in (stream_options or {}).items() if value is not None}
    info = streams.describe(stream, options)

    default = protocol_of(stream)
    values = default | overrides | {"sparsity": sparsity, "buffer": buffer, "seed": seed}
    if isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool) and not 0 <= sparsity < 1:
        raise UserError(f"sparsity: expected a number from 0 to below 1, got {sparsity!r}")
    checked = {key: setting.check(key, values[key]) for key, setting in SETTINGS.items()}
    if checked["sparsity"] > 0 and not chosen.is_sparse:
        raise UserError(f"sparsity: {method} has no sparsity policy and needs sparsity 0, got {sparsity!r}")
    if not chosen.needs_memory:
        checked["buffer"] = 0
    if checked["precision"] == "tf32" and checked["device"] == "cpu":
        raise UserError("precision: tf32 is a mode of GPUs, without effect on a CPU: expected float32 or bfloat16")
    if checked["model"] not in models.names():
        raise UserError(f"model: unknown name {checked['model']!r}{suggest(checked['model'], models.names())}")
    plain = {"stream": stream, "method": method} | checked

    resolved, variant = _parameters(chosen, plain, dict(params or {}), hyperparameters)
    variant |= {f"stream.{key}": value for key, value in options.items()}
    variant |= {key: plain[key] for key in default if plain[key] != default[key]}
    cell = Cell(**plain, stream_options=options, params=resolved, variant=variant)
    if resolved["protocol.last_batch"] == "drop":
        least = sum(info.train_sizes) if methods.learners()[chosen.learner].offline else min(info.train_sizes)
        least -= _removed(cell, chosen, least)
        if cell.batch_size > least:
            raise UserError(
                f"batch_size: expected at most {least}, the images that the smallest task ends with, as "
                f"protocol.last_batch=drop leaves no batch of them, got {cell.batch_size}"
            )
    parts: list[type[Parameterized]] = [Protocol, *chosen.components]
    for part in parts:
        reason = cell.component(part).refuse(plain | resolved)
        if reason:
            raise UserError(reason)
    return cell


def _removed(cell: Cell, chosen: methods.Method, size: int) -> int:
    """Return how many of a task's ``size`` images its data policy removes before the last epoch."""
    policies = [cell.component(part) for part in chosen.components if issubclass(part, DataPolicy)]
    clocks = [Clock(epoch=epoch, epochs=cell.epochs) for epoch in range(cell.epochs)]
    return sum(policy.planned_removals(size, clock) for policy in policies for clock in clocks)


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
    """Return the settings that all methods share on a stream: model, width, epochs, ...

    Raises:
        UserError: neither the data file nor the stream's source says.
    """
    entry = _hyperparameters(HYPERPARAMETERS)["streams"].get(stream, {})
    given = entry.get("values") or streams.protocol(stream)
    if not given:
        raise UserError(
            f"stream: {stream} has no protocol; expected 'protocol' of its source, or an entry of streams in "
            f"{HYPERPARAMETERS.name}, with {', '.join(NEEDED)}"
        )
    for key in NEEDED:
        if key not in given:
            raise UserError(f"stream: the protocol of {stream} has no {key}; expected {', '.join(NEEDED)}")
    for key in given:
        if key not in PROTOCOL:
            raise UserError(f"stream: the protocol of {stream} has an unknown key {key!r}{suggest(key, PROTOCOL)}")
    return {key: given.get(key, SETTINGS[key].default) for key in PROTOCOL}


@functools.cache
def _hyperparameters(path: Path) -> dict[str, Any]:
    data = strict_yaml.load(path)
    entries = data.get("components") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("where"), dict) and isinstance(e.get("values"), dict) for e in entries
    ):
        raise UserError(f"{path}: expected a list 'components' of entries with 'where' and 'values'")
    return data


@functools.cache
def _check_names(path: Path) -> None:
    """Refuse an entry that could never say anything, because no setting or parameter has such a name."""
    parts: list[type[Parameterized]] = [Protocol, *methods.learners().values(), *methods.policies().values()]
    names = {"where": list(FIELDS), "values": [f"{part.name}.{key}" for part in parts for key in part.parameters]}
    for index, entry in enumerate(_hyperparameters(path)["components"]):
        for place, known in names.items():
            for key in entry[place]:
                if key not in known:
                    raise UserError(f"{path}: components[{index}].{place}: unknown name {key!r}{suggest(key, known)}")


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
    known = _known(method)
    for key in given:
        if key not in known:
            raise UserError(f"{key}: unknown parameter of {method.name}{suggest(key, known)}")
    base = {key: parameter.default for key, parameter in known.items()}
    base |= _fitting(HYPERPARAMETERS, plain, known) | dict(method.values)
    if extra:
        _check_names(Path(extra))
        given = _fitting(Path(extra), plain, known) | given
    base, full = (_resolve(method, values, known, plain) for values in (base, base | given))
    return full, {key: value for key, value in full.items() if value != base[key]}


def fits(path: str | Path, cell: Cell) -> bool:
    """Return whether a hyper-parameter file says anything of a cell."""
    return bool(_fitting(Path(path), cell.as_dict(), _known(methods.get(cell.method))))


def _known(method: methods.Method) -> dict[str, Parameter]:
    """Return the parameters that a cell of ``method`` has, by "component.key"."""
    return method.parameters() | {f"protocol.{key}": value for key, value in Protocol.parameters.items()}


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
    parts: list[type[Parameterized]] = [Protocol, *method.components]
    for part in parts:
        own = {
            k: known[f"{part.name}.{k}"].check(f"{part.name}.{k}", values[f"{part.name}.{k}"]) for k in part.parameters
        }
        result |= {f"{part.name}.{key}": value for key, value in part.resolve(own, plain).items()}
    return dict(sorted(result.items()))
