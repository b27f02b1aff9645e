"""JSON that is read strictly: of bounded size, every key once, every number finite, and of a declared type.

A type is said once, as a :class:`typing.TypedDict`: mypy reads it, and :func:`problem` checks values against it, in
about 0.2 ms for a run record of 25 kB.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparcl.errors import UserError, one_line

LARGEST_INTEGER = 2**63
Check = Callable[[Any], str | None]
"""Says what is wrong with a value, as ``.key.key: expected ...``; None where nothing is."""


def read(path: Path, what: str, largest: int) -> Any:
    """Return the JSON value in ``path``; ``what`` it is called in messages.

    Raises:
        UserError: not a file of at most ``largest`` bytes, no JSON, a key twice, a number that is not finite.
    """
    try:
        if path.stat().st_size > largest or not path.is_file():
            raise UserError(f"{path}: expected a {what}, a file of at most {largest >> 20} MiB")
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_twins)
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {what} is damaged, expected JSON ({one_line(error, 120)})") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{one_line(text, 40)} is no finite number")
    return value


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {one_line(twin, 40)!r} stands twice")
    return result


def problem(value: Any, kind: Any, closed: bool = True) -> str | None:
    """Say where ``value`` is not of type ``kind``, as ``key.key: expected ...``; None if it is.

    Args:
        kind: a TypedDict, or ``list``, ``dict[str, ...]``, ``Literal``, unions, ``str``, ``int``, ``float``, ``bool``,
            ``None`` and ``Any`` inside one. An int is a float; integers are of at most 64 bits; texts can be encoded.
        closed: whether keys that a TypedDict does not name are wrong.
    """
    found = _checker(kind, closed)(value)
    return None if found is None else one_line(found.lstrip("."), 200)


@functools.cache
def _checker(kind: Any, closed: bool) -> Check:
    if typing.is_typeddict(kind):
        return _fields(kind, closed)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return _items(_checker(arguments[0], closed))
    if origin is dict:
        return _mapping(_checker(arguments[1], closed))
    if origin in (typing.Union, types.UnionType):
        return _either([_checker(one, closed) for one in arguments])
    if origin is typing.Literal:
        return _leaf(lambda value: type(value) is str and value in arguments, " or ".join(map(repr, arguments)))
    return _LEAVES[kind]


def _leaf(fits: Callable[[Any], bool], expected: str) -> Check:
    def check(value: Any) -> str | None:
        return None if fits(value) else f": expected {expected}, found {one_line(repr(value), 40)}"

    return check


def _is_integer(value: Any) -> bool:
    return type(value) is int and -LARGEST_INTEGER <= value < LARGEST_INTEGER


def _is_text(value: Any) -> bool:
    return type(value) is str and (value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value))


_LEAVES: dict[Any, Check] = {
    Any: lambda value: None,
    str: _leaf(_is_text, "a text"),
    bool: _leaf(lambda value: type(value) is bool, "true or false"),
    int: _leaf(_is_integer, "a whole number"),
    float: _leaf(lambda value: type(value) is float or _is_integer(value), "a number"),
    types.NoneType: _leaf(lambda value: value is None, "null"),
}


def _fields(kind: Any, closed: bool) -> Check:
    checks = [(key, _checker(hint, closed)) for key, hint in typing.get_type_hints(kind).items()]
    names, required = {key for key, _ in checks}, kind.__required_keys__

    def check(value: Any) -> str | None:
        if type(value) is not dict:
            return f": expected an object, found {one_line(repr(value), 40)}"
        if value.keys() != names:
            for key in sorted(required - value.keys()):
                return f".{key}: missing"
            for key in sorted(value.keys() - names) if closed else ():
                return f".{one_line(key, 40)}: unknown key"
        for key, one in checks:
            if key in value and (found := one(value[key])) is not None:
                return f".{key}{found}"
        return None

    return check


def _items(one: Check) -> Check:
    def check(value: Any) -> str | None:
        if type(value) is not list:
            return f": expected a list, found {one_line(repr(value), 40)}"
        for index, item in enumerate(value):
            if (found := one(item)) is not None:
                return f"[{index}]{found}"
        return None

    return check


def _mapping(one: Check) -> Check:
    def check(value: Any) -> str | None:
        if type(value) is not dict:
            return f": expected an object, found {one_line(repr(value), 40)}"
        for key, item in value.items():
            if not key.isprintable():
                return f".{one_line(repr(key), 40)}: expected a printable key"
            if (found := one(item)) is not None:
                return f".{one_line(key, 40)}{found}"
        return None

    return check


def _either(choices: list[Check]) -> Check:
    def check(value: Any) -> str | None:
        found = None
        for one in choices:
            found = one(value)
            if found is None:
                return None
            if not found.startswith(":"):  # of the right kind, wrong further down
                return found
        return found

    return check
