"""What determines a result: the cell, the code that computes it, the libraries' versions, and a folder's images.

The code digest covers the modules that the cell's computation runs through, and no others: a changed baseline changes
the identity of its own cells only. It is taken over the syntax tree without docstrings, so that comments, docstrings
and formatting may change freely.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparcl.cell import Cell

CORE = (
    "sparcl.components", "sparcl.costs.footprint", "sparcl.costs.ledger", "sparcl.costs.planning",
    "sparcl.learners.base", "sparcl.masks", "sparcl.memory", "sparcl.metrics", "sparcl.models", "sparcl.protocol",
    "sparcl.seeding", "sparcl.trainer",
)  # fmt: skip
LIBRARIES = ("torch", "torchvision", "numpy")


def modules_of(cell: Cell) -> list[str]:
    """Return the modules whose code determines the cell's result."""
    from sparcl import methods, streams

    return sorted({*CORE, *methods.get(cell.method).modules(), *streams.modules(cell.stream)})


@functools.cache
def module_digest(name: str) -> str:
    """Return the SHA-256 of a module's syntax tree without docstrings, or of its bytes where it has no source."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    source = Path(spec.origin).read_bytes()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return hashlib.sha256(source).hexdigest()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        is_scope = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if is_scope and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]  # a docstring that is added changes no more than one that is reworded
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def code_digest(modules: Iterable[str]) -> str:
    """Return one SHA-256 over the digests of ``modules``."""
    lines = [f"{name} {module_digest(name)}" for name in sorted(modules)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": ".".join(platform.python_version_tuple()[:2])} | found


def contents(cell: Cell) -> str | None:
    """Return the mark of the files of the cell's data set, where users make it (:func:`sparcl.streams.contents`)."""
    from sparcl import streams

    return streams.contents(cell.stream, dict(cell.stream_options))


def identity(cell: Cell, files: Callable[[Cell], str | None] = contents) -> str:
    """Return the SHA-256 that a record of ``cell`` carries: cell, code, versions and the files of a folder together.

    Args:
        files: returns the mark of the cell's files; a plan asks once for all its cells.
    """
    content = {"cell": cell.as_dict(), "code": code_digest(modules_of(cell)), "versions": versions()}
    mark = files(cell)
    if mark is not None:
        content["files"] = mark
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
