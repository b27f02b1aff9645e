"""What determines a result: the cell, the code and the kernel that compute it, versions, and a folder's images.

The code is what the run imports: the modules that the trainer, the method's components and the stream reach by import
statements, and no others, so that a changed baseline changes the identity of its own cells only. Modules that only
check, count or register are left out (:data:`NEUTRAL`). The digest is taken over the syntax tree without docstrings,
help texts of parameters and hooks that only count (:func:`sparcl.components.accounting`), so that comments,
documentation, formatting, metrics and published conventions may change freely. Of the kernel's C sources every byte
counts.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

from sparcl import methods, streams
from sparcl.cell import Cell
from sparcl.costs import planning
from sparcl.errors import UserError
from sparcl.kernels import attach, build

TRAINER = "sparcl.trainer"
NEUTRAL = {
    "sparcl.cell": "a value, which the identity holds itself",
    "sparcl.costs.convention": "published counts of FLOPs",
    "sparcl.errors": "messages",
    "sparcl.methods": "the registry; what it gives is the components",
    "sparcl.parameters": "declares and checks what the cell holds resolved",
    "sparcl.streams": "modules of one stream are named by sparcl.streams.modules",
}
"""Modules that a run imports and whose code does not change what it does, each with the reason."""
LIBRARIES = ("torch", "torchvision", "numpy")
KERNELS = "sparcl.kernels"
"""Modules of the sparse kernel: no part of a cell that runs the dense one."""


def modules_of(cell: Cell) -> list[str]:
    """Return the modules whose code determines the cell's result."""
    return list(_modules_of(cell.method, cell.stream, kernel_of(cell)["kernel"] == "sparse"))


@functools.cache
def _modules_of(method: str, stream: str, is_sparse: bool) -> tuple[str, ...]:
    components = methods.get(method).components
    found = reached([TRAINER, *(c.__module__ for c in components)]) | set(streams.modules(stream))
    return tuple(sorted(name for name in found if is_sparse or not name.startswith(KERNELS)))


def kernel_of(cell: Cell) -> dict[str, str | None]:
    """Return {"kernel", "instruction_set"}: what computes the cell's convolutions on this machine.

    Raises:
        UserError: the cell wants the sparse kernel where it cannot run.
    """
    return _kernel_of(dataclasses.replace(cell, seed=0))


@functools.cache
def _kernel_of(cell: Cell) -> dict[str, str | None]:
    model = planning.setting(cell).model
    try:
        return attach.resolved(model, cell.kernel, cell.sparsity, cell.precision, cell.device)
    except ValueError as error:
        raise UserError(str(error)) from error


def reached(starts: Iterable[str]) -> set[str]:
    """Return ``starts`` and every module that they reach by imports within their own packages."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name in found or name in NEUTRAL or name.startswith("sparcl.streams."):
            continue
        found.add(name)
        waiting += imported(name)
    return found


@functools.cache
def imported(name: str) -> tuple[str, ...]:
    """Return the modules of sparcl, and of the package of ``name``, that the module ``name`` imports anywhere."""
    tree = _tree(name)
    wanted: set[str] = set()
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), _package(name))
            parts = {f"{base}.{alias.name}" for alias in node.names}
            wanted |= {part for part in parts if _file(part)}
            if not all(_file(part) for part in parts):
                wanted.add(base)
    own = {"sparcl", "baselines", name.partition(".")[0]}  # a plug-in may build on either
    return tuple(sorted(w for w in wanted if w.partition(".")[0] in own and _file(w)))


def _package(name: str) -> str:
    file = _file(name)
    return name if file is not None and file.name == "__init__.py" else name.rpartition(".")[0]


@functools.cache
def _file(name: str) -> Path | None:
    """Return the file of a module of Python code, or None where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    return None if spec is None or spec.origin is None or spec.origin == "built-in" else Path(spec.origin)


def _tree(name: str) -> ast.Module | None:
    file = _file(name)
    if file is None:
        raise ModuleNotFoundError(name)
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return None


@functools.cache
def module_digest(name: str) -> str:
    """Return the SHA-256 of what a module does, or of its bytes where it has no source."""
    tree = _tree(name)
    if tree is None:
        file = _file(name)
        assert file is not None
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return hashlib.sha256(ast.dump(_Essence().visit(tree)).encode()).hexdigest()


class _Essence(ast.NodeTransformer):
    """Leaves of a syntax tree what a run does: no docstrings, no help texts, no functions that only count."""

    def visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST | None:
        if any(getattr(decorator, "id", None) == "accounting" for decorator in node.decorator_list):
            return None
        return self.generic_visit(node)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_function

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Leave out docstrings, those of a module's and a class's names among them."""
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Leave out the text in which a parameter says what it is."""
        if getattr(node.func, "id", None) == "parameter":
            node.args = [*node.args[:1], *(text for text in node.args[1:2] if not _is_text(text)), *node.args[2:]]
            node.keywords = [word for word in node.keywords if word.arg != "help" or not _is_text(word.value)]
        return self.generic_visit(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def code_digest(modules: Iterable[str]) -> str:
    """Return one SHA-256 over the digests of ``modules``."""
    lines = [f"{name} {module_digest(name)}" for name in sorted(modules)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": ".".join(platform.python_version_tuple()[:2])} | found


def code_of(cell: Cell) -> str:
    """Return the digest of the code that determines the cell's result."""
    is_sparse = kernel_of(cell)["kernel"] == "sparse"
    return _digest_of(_modules_of(cell.method, cell.stream, is_sparse), is_sparse)


@functools.cache
def _digest_of(modules: tuple[str, ...], is_sparse: bool) -> str:
    digest = code_digest(modules)
    return hashlib.sha256(f"{digest} {_loops_digest()}".encode()).hexdigest() if is_sparse else digest


@functools.cache
def _loops_digest() -> str:
    """Return the SHA-256 of the C sources of the sparse kernel."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in build.SOURCES + build.HEADERS)).hexdigest()


def contents(cell: Cell) -> str | None:
    """Return the mark of the files of the cell's data set, where users make it (:func:`sparcl.streams.contents`)."""
    return streams.contents(cell.stream, dict(cell.stream_options))


def identity(cell: Cell, files: Callable[[Cell], str | None] = contents) -> str:
    """Return the SHA-256 that a record of ``cell`` carries: cell, code, versions, kernel and a folder's files together.

    Args:
        files: returns the mark of the cell's files; a plan asks once for all its cells.
    """
    content = {"cell": cell.as_dict(), "code": code_of(cell), "versions": versions(), **kernel_of(cell)}
    mark = files(cell)
    if mark is not None:
        content["files"] = mark
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
