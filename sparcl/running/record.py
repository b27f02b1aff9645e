"""The run record: one JSON file per cell, written once, atomically, with a schema and a checksum.

Imports neither torch nor anything that does, so that the analysis can read records quickly. The schema is
``sparcl/data/record.schema.json``; ``docs/records.md`` explains every key.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparcl.errors import UserError, one_line
from sparcl.files import atomic

SCHEMA = "sparcl-record/1"
LARGEST = 64 * 2**20
"""Bytes; a larger file is no record of this suite."""


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 over everything in ``record`` but its own checksum."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "checksum"}).encode()).hexdigest()


def reproducible(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of ``record`` on which two runs of a cell agree bit for bit: all but times and checksum."""
    return {k: v for k, v in record.items() if k not in ("measured", "checksum")}


def write(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Check ``record`` against the schema, add its checksum, write it atomically, and return it as written."""
    complete = {**record, "checksum": checksum(record)}
    problem = _problem(complete)
    if problem:
        raise ValueError(f"record does not fit its schema: {problem}")
    atomic.write_text(path, json.dumps(complete, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return complete


def read(path: str | Path) -> dict[str, Any]:
    """Read and check a record.

    Raises:
        UserError: not readable, no JSON, another schema, values that do not fit it, or a checksum that does not match.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST or not path.is_file():
            raise UserError(f"{path}: expected a run record, a file of at most {LARGEST >> 20} MiB")
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except OSError as error:
        raise UserError(f"{path}: run record cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: run record is damaged, expected JSON ({one_line(error, 120)})") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{path}: expected a run record with schema '{SCHEMA}', found {one_line(repr(found), 60)}")
    try:
        matches = data.get("checksum") == checksum(data)
    except (ValueError, RecursionError):
        matches = False
    if not matches:
        raise UserError(f"{path}: run record was changed after it was written (its checksum does not match)")
    problem = _problem(data)
    if problem:
        raise UserError(f"{path}: run record does not fit its schema: {problem}")
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {one_line(key, 40)!r} stands twice")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{one_line(key, 40)!r} is no finite number")
        result[key] = value
    return result


@functools.cache
def _validator() -> Any:
    import jsonschema

    schema = json.loads((Path(__file__).parents[1] / "data" / "record.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _problem(record: Mapping[str, Any]) -> str | None:
    import jsonschema

    error = jsonschema.exceptions.best_match(_validator().iter_errors(record))
    return (
        None
        if error is None
        else one_line(f"{'.'.join(map(str, error.absolute_path)) or 'record'}: {error.message}", 200)
    )
