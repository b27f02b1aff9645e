"""YAML read strictly: plain data of bounded size, every key once, every number finite, errors in one line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from sparcl.errors import UserError, one_line

LARGEST = 1 << 20
"""Bytes; a larger file is no config of this suite."""
MOST = 50_000
"""Values in a file, aliases counted as often as they are used."""
DEEPEST = 32
"""Levels of nesting."""


class _Loader(yaml.SafeLoader):
    """Plain data only; a key that stands twice and merge keys (``<<``) are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "expected a text as key", key.start_mark)
            if key.value in seen:
                problem = f"key {one_line(key.value, 60)!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave merge keys alone: they cannot pass :meth:`construct_mapping`."""


# Dates are of no use in a config: left as text, a mistyped value keeps the look that its author gave it.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 wants a point in a number with an exponent; JSON and everybody who types 1e-5 do not.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), None)
_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True))


def load(path: str | Path) -> Any:
    """Return the data in the YAML (or JSON) file ``path``.

    Raises:
        UserError: the file cannot be read, is too large, is no YAML, or holds more than plain data.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: expected a file of at most {LARGEST >> 10} KiB")
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)  # a device or pipe has no size
    except OSError as error:
        raise UserError(f"{path}: expected a YAML file that can be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{one_line(path, 80)}: expected the name of a file ({error})") from error
    return parse(raw, str(path))


def parse(raw: bytes | str, name: str) -> Any:
    """Return the data in ``raw``; ``name`` is what messages call it."""
    if len(raw) > LARGEST:
        raise UserError(f"{name}: expected at most {LARGEST >> 10} KiB")
    try:
        data = yaml.load(raw, Loader=_Loader)  # a subclass of SafeLoader: no tags that construct objects
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{name}:{where} expected plain YAML: {one_line(error.problem, 120)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: expected plain YAML: {one_line(error, 120)}") from error
    except (ValueError, RecursionError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"{name}: expected plain YAML: {one_line(error, 120)}") from error
    check(data, name)
    return data


def check(data: Any, name: str) -> None:
    """Raise UserError unless ``data`` is plain, finite and of bounded size and depth."""
    left = MOST
    stack: list[tuple[Any, str, int]] = [(data, "", 0)]
    while stack:
        value, where, depth = stack.pop()
        left -= 1
        label = f"{name}: {where.lstrip('.')}" if where else name
        if left < 0:
            raise UserError(f"{name}: expected at most {MOST} values")
        if depth > DEEPEST:
            raise UserError(f"{label[:120]}: expected at most {DEEPEST} levels")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise UserError(f"{label}: expected a text as key, got {one_line(repr(key), 60)}")
            stack += [(item, f"{where}.{one_line(key, 40)}", depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            stack += [(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{label}: expected a finite number, got {value}")
        elif not isinstance(value, str | int | float | bool | None):
            raise UserError(f"{label}: expected plain data, got a {type(value).__name__}")
