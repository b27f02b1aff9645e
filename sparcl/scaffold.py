"""``sparcl new-baseline``: the files of a new method, complete and passing, with a rule to replace.

The templates (``sparcl/templates``) are methods that keep every promise of ``tests/test_contract.py``; only the name
is filled in. Everything is checked before anything is written, and what was written is taken back when a later file
cannot be.
"""

from __future__ import annotations

import contextlib
import importlib.util
import keyword
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from sparcl import methods
from sparcl.errors import UserError, one_line
from sparcl.files import atomic, strict_yaml

TEMPLATES = Path(__file__).parent / "templates"
LONGEST = 30
RESERVED = ("protocol", "stream")
"""First parts of parameter keys that belong to the suite."""
TAKEN_CLASSES = (
    *("Any", "Clock", "DataPolicy", "GradientPolicy", "Mapping", "MaskSet", "Run"),
    *("SparsityPolicy", "Tensor", "UserError"),
)
TESTED = {
    "sparsity": ("masks, resolve, streams, trainer", "{cls}, redrawn"),
    "gradient": ("resolve, streams, trainer", "{cls}, learning"),
    "data": ("resolve, streams, trainer", "{cls}, removed_after"),
}


@dataclass(frozen=True)
class Draft:
    """What a new method is called; ``kind`` is "sparsity", "gradient" or "data".

    Raises:
        UserError: the name is no identifier of lower-case letters, or is taken by a method, learner or module.
    """

    name: str
    kind: str = "sparsity"
    label_: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9 .+-]{0,22}[A-Za-z0-9.+])?", self.label):
            raise UserError(
                f"--label {one_line(self.label, 60)!r}: expected up to 24 letters, digits, '.', '+', '-' and blanks"
            )
        if self.label in {bundle.label for bundle in methods.bundles().values()}:
            raise UserError(f"--label {self.label}: a method with this label exists")

    @property
    def cls(self) -> str:
        """Name of the policy's class."""
        joined = "".join(part[:1].upper() + part[1:] for part in self.name.split("_"))
        return f"{joined}Rule" if joined in TAKEN_CLASSES else joined

    @property
    def label(self) -> str:
        """What tables and figures print."""
        return self.cls if self.label_ is None else self.label_


def create(draft: Draft, folder: Path, package: Path | None = None, config: Path | None = None) -> str:
    """Write the files of ``draft`` and return what to tell its author.

    Args:
        folder: package folder of the module (``baselines``); its test goes into ``tests/<folder>`` beside it.
        package: folder of an installable package of its own, written instead; it must not exist or be empty.
        config: matrix config that the method is added to, as a group of its own.

    Raises:
        UserError: a file exists already, or ``config`` cannot be edited; nothing has been written.
        RunError: a file could not be written; nothing is left of the others.
    """
    if config is not None and config.is_symlink():
        config = config.resolve()  # the file is replaced as a whole, and the link is to stay
    text = None if config is None else _read(config)
    group = _group(draft, {} if text is None else _groups(text, str(config)))
    files = _in_folder(draft, folder) if package is None else _in_package(draft, package, group)
    _refuse_existing(draft, files, package)
    module, test = (path for path in files if path.suffix == ".py")
    if config is not None and text is not None:
        files[config] = _insert(text, draft.name, group, str(config))
    _write_all(files)

    said = [f"wrote    {path}" for path in files if path != config]
    said.append(f"added    {group}" if config is not None else f"config   {group}")
    said.append(f"         to {config}" if config is not None else "         goes into the groups of a matrix config")
    if package is None:
        said.append(f"check    python -m pytest {test} && python -m pytest tests/test_contract.py -k {draft.name}")
    else:
        said.append(f"install  python -m pip install --no-deps --editable {package}")
        said.append(f"check    python -m pytest {package} && python -m pytest tests/test_contract.py -k {draft.name}")
    said.append(f"edit     {module}: the docstring's equation and source, then the rule")
    return "\n".join(said)


def _check_name(name: str) -> None:
    shown = one_line(repr(name), 60)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        better = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789")
        hint = f" (did you mean '{better}'?)" if better and better != name and len(better) <= LONGEST else ""
        raise UserError(f"NAME: expected a Python identifier of lower-case letters, digits and '_', got {shown}{hint}")
    if len(name) > LONGEST:
        raise UserError(f"NAME: expected at most {LONGEST} characters, got {len(name)}")
    for what, names in (("learner", methods.learners()), ("method", methods.bundles()), ("policy", methods.policies())):
        if name in names:
            raise UserError(f"NAME: {name} is taken, a {what} has this name")
    if name in methods.names() or name in RESERVED:
        raise UserError(f"NAME: {name} is taken")
    if name in sys.stdlib_module_names or any(_is_module(other) for other in (name, f"sparcl.{name}")):
        raise UserError(f"NAME: {name} is taken, a Python module has this name")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return True


# -- files -------------------------------------------------------------------------------------------------------------
def _in_folder(draft: Draft, folder: Path) -> dict[Path, str]:
    if not (folder / "__init__.py").is_file():
        raise UserError(
            f"{folder}: expected a package folder with __init__.py; run this in a checkout of the suite, name a folder "
            "with --folder, or write a package of its own with --package"
        )
    parts, top = [folder.resolve().name], folder.resolve().parent
    while (top / "__init__.py").is_file():
        parts, top = [top.name, *parts], top.parent
    test = top.joinpath("tests", *parts)
    if not folder.is_absolute():
        test = Path(os.path.relpath(test))
    module = ".".join([*parts, draft.name])
    return {
        folder / f"{draft.name}.py": _fill(f"{draft.kind}.py", draft),
        test / f"test_{draft.name}.py": _fill(f"{draft.kind}_test.py", draft, imports=_imports(draft, module)),
    }


def _in_package(draft: Draft, package: Path, line: str) -> dict[Path, str]:
    if package.exists() and (not package.is_dir() or any(package.iterdir())):
        raise UserError(f"--package {package}: expected a folder that does not exist yet, or an empty one")
    test = _fill(f"{draft.kind}_test.py", draft, imports=_imports(draft, draft.name))
    return {
        package / f"{draft.name}.py": _fill(f"{draft.kind}.py", draft),
        package / "tests" / f"test_{draft.name}.py": test,
        package / "pyproject.toml": _fill("pyproject.toml", draft),
        package / "README.md": _fill("README.md", draft, line=line),
    }


def _imports(draft: Draft, module: str) -> str:
    """Return a test's imports of this suite and of ``module``, in isort's order."""
    suite, own = TESTED[draft.kind]
    names = sorted(own.format(cls=draft.cls).split(", "), key=lambda n: (n.islower(), n))
    lines = [f"from {module} import {', '.join(names)}", f"from sparcl import {suite}",
             "from sparcl.costs import planning", "from sparcl.errors import UserError"]  # fmt: skip
    if draft.kind == "data":
        lines.append("from sparcl.components import Clock")
    return "\n".join(sorted(lines, key=lambda line: line.split()[1]))


def _fill(template: str, draft: Draft, **more: str) -> str:
    text = (TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
    values = {"name": draft.name, "cls": draft.cls, "label": draft.label, "dashed": draft.name.replace("_", "-")}
    return Template(text).substitute(values | more)


def _refuse_existing(draft: Draft, files: dict[Path, str], package: Path | None) -> None:
    for path in files:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path}: exists already; nothing is overwritten")
    if package is None:  # pytest wants different names in different folders
        test = next(path for path in files if path.name.startswith("test_"))
        tests = next(parent for parent in test.parents if parent.name == "tests")
        for other in sorted(tests.rglob(test.name)):
            raise UserError(f"NAME: {draft.name} is taken, there is a test {other}")


def _write_all(files: dict[Path, str]) -> None:
    before = {path: path.read_bytes() if path.exists() else None for path in files}
    folders = {parent for path in files for parent in path.parents if not parent.exists()}
    done = []
    try:
        for path, text in files.items():
            done.append(path)
            atomic.write_text(path, text)
    except BaseException:
        for path in done:
            old = before[path]
            with contextlib.suppress(OSError, UserError):  # what cannot be written has not been
                if old is None:
                    path.unlink(missing_ok=True)
                elif path.read_bytes() != old:
                    atomic.write_bytes(path, old)
        for created in sorted(folders, key=lambda f: -len(f.parts)):
            if created.is_dir() and not any(created.iterdir()):
                created.rmdir()
        raise


# -- the config line ---------------------------------------------------------------------------------------------------
def _read(config: Path) -> str:
    strict_yaml.load(config)  # says in one line what is wrong with it
    try:
        with config.open(encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{config}: expected UTF-8 text to add a line to ({error.reason})") from error


def _groups(text: str, name: str) -> dict[str, Any]:
    data = strict_yaml.parse(text, name)
    groups = data.get("groups") if isinstance(data, dict) else None
    if not isinstance(groups, dict) or not groups:
        raise UserError(f"{name}: expected a matrix config with groups")
    return groups


def _group(draft: Draft, groups: dict[str, Any]) -> str:
    """Return the line that adds a method to a matrix: learners, buffers, sparsities as in its largest sparse group."""
    learners: list[str] = ["derpp"]
    buffers: list[Any] = [50]
    sparsities: list[Any] = [0.9]
    most = 0
    for entry in groups.values():
        named, held, levels = (
            entry.get(key, []) if isinstance(entry, dict) else [] for key in ("methods", "buffers", "sparsities")
        )
        if not all(isinstance(values, list) and values for values in (named, held, levels)) or entry.get("grid"):
            continue
        own = [str(name).rpartition("-")[2] for name in named if "-" in str(name)]
        found = [learner for learner in dict.fromkeys(own) if learner in methods.learners()]
        if len(held) * len(levels) > most and found:
            learners, buffers, sparsities, most = found, held, levels, len(held) * len(levels)
    listed = ", ".join(f"{draft.name}-{learner}" for learner in learners)
    line = f"{draft.name}: {{methods: [{listed}], buffers: {_flow(buffers)}"
    return f"{line}, sparsities: {_flow(sparsities)}}}" if draft.kind == "sparsity" else f"{line}}}"


def _flow(values: list[Any]) -> str:
    return f"[{', '.join(f'{v:.2f}' if isinstance(v, float) and round(v, 2) == v else str(v) for v in values)}]"


def _insert(text: str, name: str, group: str, file: str) -> str:
    """Return the config with ``group`` as the last of its groups, everything else as it was."""
    before = strict_yaml.parse(text, file)
    if name in before["groups"]:
        raise UserError(f"{file}: groups.{name} exists already")
    by_hand = UserError(f"{file}: groups could not be edited safely; add this line to them by hand: {group}")
    lines = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if re.fullmatch(r"groups:\s*(#.*)?", line.rstrip())), None)
    if start is None:
        raise by_hand
    body = [(i, line) for i, line in enumerate(lines[start + 1 :], start + 1)]
    end = next((i for i, line in body if line[:1] not in (" ", "#", "\r", "\n", "")), len(lines))
    inside = [i for i, line in body if i < end and line.strip() and not line.strip().startswith("#")]
    if not inside:
        raise by_hand
    first, last = lines[inside[0]], lines[inside[-1]]
    indent = first[: len(first) - len(first.lstrip())]
    newline = "\r\n" if first.endswith("\r\n") else "\n"
    if not last.endswith(("\n", "\r")):
        lines[inside[-1]] = last + newline
    lines.insert(inside[-1] + 1, f"{indent}{group}{newline}")
    after = "".join(lines)
    try:
        expected = {**before, "groups": {**before["groups"], name: strict_yaml.parse(group, file)[name]}}
        whole = strict_yaml.parse(after, file) == expected
    except UserError:
        whole = False
    if not whole:
        raise by_hand
    return after
