"""The plan of a run: made once, by the process that the user has started, and read by the processes of its jobs."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

LIGHT = ("groups.py", "metrics.py", "costs/memory.py", "running/record.py")
"""What of the library tables are made with; none of it changes what a cell's run does."""


def switch(key: str, value: object) -> bool:
    """Return what a value of ``--config`` says, in the words of YAML; :class:`SystemExit` with 2 for another word."""
    word = str(value).lower()
    if word not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
        refuse(f"{key}: expected true or false, got {value!r}")
    return word in ("true", "yes", "on", "1")


def check_config(path: str) -> None:
    """Refuse a config file that Snakemake could not read: it ends with a traceback, or without naming the file."""
    from sparcl.errors import UserError
    from sparcl.files import strict_yaml

    try:
        if not isinstance(strict_yaml.load(path), dict):
            refuse(f"{path}: expected a matrix config, 'key: value' lines")
    except UserError as error:
        refuse(str(error))


def check_cores(cores: int | None) -> None:
    """Refuse a number of cores with which no job would ever start."""
    if cores is not None and cores < 1:
        refuse(f"cores: expected at least 1, got {cores}")


def refuse(problem: str) -> NoReturn:
    """Print what is wrong in one line and end with status 2."""
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)


def make(matrix: Mapping[str, Any], files: Sequence[str | Path], is_overridden: bool) -> dict[str, Any]:
    """Return the plan of a matrix, as ``sparcl plan`` makes it.

    A single config file that nothing overrides is read by ``sparcl plan`` itself, which sees more than the merged
    result: a key that stands twice, for example.

    Raises:
        SystemExit: with status 2, when the matrix is wrong; one line for each problem has been printed.
    """
    name = os.path.relpath(files[0]) if len(files) == 1 and not is_overridden else "-"
    command = [sys.executable, "-m", "sparcl", "plan", "--json", "--config", name]
    merged = json.dumps(matrix, default=str) if name == "-" else None
    done = subprocess.run(command, input=merged, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def read(path: str | Path) -> dict[str, Any]:
    """Return the plan that the main process has written before it started any job."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def stale(plan: Mapping[str, Any], results: Path) -> set[str]:
    """Return the cells whose record is of another identity than the plan's.

    One that cannot be read is left to the analysis, which refuses it by name.
    """
    found = set()
    for entry in plan["cells"]:
        try:
            identity = json.loads((results / "runs" / entry["path"] / "record.json").read_bytes())["identity"]
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            continue
        if identity != entry["identity"]:
            found.add(entry["path"])
    return found


def is_collected(plan: Mapping[str, Any], results: Path) -> bool:
    """Return whether the tidy table, where there is one, is of this plan, and every record that it needs is there."""
    try:
        of = json.loads((results / "collected/provenance.json").read_bytes())["plan_sha256"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        of = None
    there = all((results / "runs" / entry["path"] / "record.json").exists() for entry in plan["cells"])
    return of == hashlib.sha256(_text(plan).encode()).hexdigest() and there


def write(plan: Mapping[str, Any], path: Path) -> None:
    """Write a plan as ``sparcl plan`` does, unless it stands there already."""
    from sparcl.files import atomic

    text = _text(plan)
    if not path.exists() or path.read_bytes() != text.encode():
        atomic.write_text(path, text)


def _text(plan: Mapping[str, Any]) -> str:
    return json.dumps(plan, indent=1, sort_keys=True, allow_nan=False) + "\n"


def digest(value: Any) -> str:
    """Return the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code(analysis: Path, library: Path) -> str:
    """Return the SHA-256 of what makes tables and figures of records, comments and formatting left out."""
    files = [path for path in sorted(analysis.rglob("*")) if path.suffix in (".py", ".j2", ".csv")]
    return digest(list(_contents([*files, *(library / name for name in LIGHT)])))


def _contents(files: Iterable[Path]) -> Iterable[tuple[str, str]]:
    for path in files:
        if path.exists():
            text = path.read_text(encoding="utf-8")
            yield path.name, ast.dump(ast.parse(text)) if path.suffix == ".py" else text


if __name__ == "__main__":
    check_config(sys.argv[1])
