"""The values that a hyper-parameter search tries for a method: ``sparcl/data/grids.yaml``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sparcl.errors import UserError
from sparcl.files import strict_yaml

GRIDS = Path(__file__).parent / "data" / "grids.yaml"


@dataclass(frozen=True)
class Grid:
    """Values to cross, by "component.key", and where they come from."""

    values: Mapping[str, tuple[Any, ...]]
    source: str


def of(method: str, path: Path = GRIDS) -> Grid:
    """Return the grid of a method: the first entry of the file with a pattern that fits the method's name.

    Raises:
        UserError: the method has no grid, or the file is none of grids.
    """
    for patterns, grid in _entries(path):
        if any(fnmatchcase(method, pattern) for pattern in patterns):
            if not grid.values:
                raise UserError(f"{method} has nothing to search for ({grid.source})")
            return grid
    raise UserError(f"{method} has no grid in {path.name}; give the values to try with 'set' instead")


@functools.cache
def _entries(path: Path) -> tuple[tuple[tuple[str, ...], Grid], ...]:
    data = strict_yaml.load(path)
    try:
        return tuple(
            (
                tuple(entry["methods"]),
                Grid({key: tuple(values) for key, values in entry["set"].items()}, str(entry["source"])),
            )
            for entry in data["grids"]
        )
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: expected a list 'grids' of entries with 'methods', 'set' and 'source'") from error
