"""A matrix config: which cells an experiment runs, as lists that are crossed, minus exclusions.

The file is checked against ``sparcl/data/matrix.schema.json`` and against the registered methods, streams and
parameters before anything runs. Every problem is reported, each in one line that names the key. Expansion is
deterministic: the same file gives the same cells in the same order.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sparcl import budget, grids, methods, models, resolve, streams
from sparcl.cell import PROTOCOL, SETTINGS, Cell
from sparcl.errors import UserError, one_line, suggest
from sparcl.files import strict_yaml
from sparcl.protocol import Protocol

SCHEMA_FILE = Path(__file__).parent / "data" / "matrix.schema.json"
MOST_CELLS = 100_000
MOST_PROBLEMS = 20
COMMITTED = "reference"
"""The folder of results/ that is committed; no matrix writes there."""
DENSE = "dense"
"""What a contrast calls a learner without policies."""


class MatrixError(UserError):
    """A config that cannot be used; ``problems`` holds one line for each thing that is wrong."""

    def __init__(self, name: str, problems: list[str]) -> None:
        self.problems = [one_line(f"{name}: {problem}") for problem in problems[:MOST_PROBLEMS]]
        if len(problems) > MOST_PROBLEMS:
            self.problems.append(f"{name}: {len(problems) - MOST_PROBLEMS} more problems")
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True)
class Matrix:
    """A checked config with its cells.

    Attributes:
        groups: cell by cell, the names of the groups it is in.
        analysis: the planned primary analysis: what the file that the config names says; None where it names none.
    """

    config: Mapping[str, Any]
    cells: tuple[Cell, ...]
    groups: tuple[tuple[str, ...], ...]
    analysis: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the experiment and of its results folder."""
        return self.config["name"]


def load(path: str | Path) -> Matrix:
    """Read, check and expand the config file ``path`` (``-``: standard input).

    Raises:
        MatrixError: the config is wrong; UserError: it cannot be read.
    """
    if str(path) == "-":
        return from_dict(strict_yaml.parse(sys.stdin.buffer.read(strict_yaml.LARGEST + 1), "config"), "config")
    return from_dict(strict_yaml.load(path), str(path))


@streams.remembered()
def from_dict(config: Any, name: str = "config") -> Matrix:
    """Check and expand a config that has been read already; ``name`` is what messages call it."""
    strict_yaml.check(config, name)
    problems = list(_schema_problems(config))
    if not problems:
        problems = list(_name_problems(config))
    if not problems:
        config, problems = _with_grids(config)
    if not problems:
        cells, groups, problems = _expand(config)
    if not problems:
        problems = list(_without_effect(config, cells, groups))
    if problems:
        raise MatrixError(name, problems)
    planned = load_analysis(config["analysis"]) if "analysis" in config else None
    return Matrix(config, tuple(cells), tuple(groups), planned)


def load_analysis(path: str | Path) -> Mapping[str, Any]:
    """Read and check the file of a planned primary analysis; ``docs/protocol.md`` says what it means.

    Raises:
        MatrixError: the file is wrong; UserError: it cannot be read.
    """
    analysis = strict_yaml.load(path)
    problems = list(_schema_problems(analysis, "analysis")) or list(_contrast_problems(analysis))
    if problems:
        raise MatrixError(str(path), problems)
    return analysis


# What is wrong with a config.


@functools.cache
def _validator(part: str = "") -> Any:
    """Return what checks a config, or the part of one that the schema defines under that name."""
    import jsonschema

    whole = schema()
    draft = jsonschema.Draft202012Validator  # for which 2.0 is an integer
    types = draft.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    strict = jsonschema.validators.extend(draft, type_checker=types)
    return strict({**whole["$defs"][part], "$defs": whole["$defs"]} if part else whole)


def schema() -> dict[str, Any]:
    """Return the JSON schema of a config: the file, with the settings that a cell declares (``sparcl/cell.py``)."""
    found = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    fields = found["$defs"]["fields"]
    fields["properties"] = {key: SETTINGS[key].schema() for key in PROTOCOL} | fields["properties"]
    fields["expected"] = f"a mapping with any of {', '.join(fields['properties'])}"
    found["$defs"]["swept"]["anyOf"][1]["enum"] = list(PROTOCOL)
    return found


def _schema_problems(config: Any, part: str = "") -> Iterator[str]:
    """Yield a line for each place where ``config`` does not fit the schema, or a part of it."""
    seen: set[tuple[Any, ...]] = set()
    for error in sorted(_validator(part).iter_errors(config), key=lambda e: [str(part) for part in e.absolute_path]):
        where = tuple(error.absolute_path)
        label = _label(where)
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            known = error.schema.get("properties", {})
            for key in error.instance:
                if key not in known:
                    yield f"{_label((*where, key))}: unknown key{suggest(key, known)}"
        elif error.validator == "required":
            for key in error.validator_value:
                if key not in error.instance and (*where, key) not in seen:
                    seen.add((*where, key))
                    yield f"{_label((*where, key))}: missing, expected {_expected(error.schema, key)}"
        elif where not in seen or "propertyNames" in error.absolute_schema_path:
            seen.add(where)
            got = one_line(json.dumps(error.instance), 60)
            yield f"{label}: expected {_expected(error.schema)}, got {got}"


def _expected(schema: Mapping[str, Any], key: str | None = None) -> str:
    """Return what the (sub)schema says is expected, following one reference."""
    if key is not None:
        schema = schema.get("properties", {}).get(key, {})
    if "expected" not in schema and "$ref" in schema:
        schema = _validator().schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema.get("expected", "another value")


def _label(where: tuple[Any, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{one_line(part, 60)}" for part in where)
    return text.lstrip(".") or "top level"


def _name_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each name that nobody registered."""

    known = methods.names()
    if config["name"] == COMMITTED:
        yield f"name: expected another than {COMMITTED!r}, whose folder holds the committed results"
    if config["stream"] not in streams.names():
        yield f"stream: unknown name {config['stream']!r}{suggest(config['stream'], streams.names())}"
    listed: set[str] = set()
    for group, entry in config["groups"].items():
        own: list[str] = []
        for index, method in enumerate(entry["methods"]):
            try:
                own += _matching(method, known)
            except UserError as error:
                yield f"groups.{group}.methods[{index}]: {error}"
        sparse = next((name for name in own if methods.get(name).is_sparse), None)
        if sparse and "sparsities" not in entry:
            yield f"groups.{group}.sparsities: missing, {sparse} needs a list of numbers from 0 (dense) to below 1"
        listed |= set(own)
    reference = config.get("reference")
    if reference is not None and reference not in listed:
        yield f"reference: expected a method of this matrix, got {reference!r}{suggest(reference, listed)}"
    for index, entry in enumerate(config.get("exclude", [])):
        if "group" in entry and entry["group"] not in config["groups"]:
            hint = suggest(entry["group"], config["groups"])
            yield f"exclude[{index}].group: unknown group {entry['group']!r}{hint}"
        if "method" in entry and not any(fnmatchcase(name, entry["method"]) for name in listed):
            hint = suggest(entry["method"], listed)
            yield f"exclude[{index}].method: expected a method of this matrix, got {entry['method']!r}{hint}"
    yield from _search_problems(config)
    places = {"defaults": config.get("defaults", {})}
    places |= {f"groups.{group}.defaults": entry.get("defaults", {}) for group, entry in config["groups"].items()}
    for where, fields in places.items():
        if "model" in fields and fields["model"] not in models.names():
            yield f"{where}.model: unknown name {fields['model']!r}{suggest(fields['model'], models.names())}"


def _search_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that is wrong with how a config searches, or uses what a search has chosen."""
    held_out = "validation" in config.get("stream_options", {})
    grids_of = [f"groups.{group}.grid" for group, entry in config["groups"].items() if "grid" in entry]
    for where in [*(["tune"] if "tune" in config else []), *grids_of]:
        if not held_out:
            yield f"{where}: expected stream_options.validation beside it: a search never sees the test images"
    yield from (
        f"groups.{group}: expected grid or alone, not both"
        for group, entry in config["groups"].items()
        if "grid" in entry and "alone" in entry
    )
    yield from (
        f"groups.{group}: expected {key} in set or in alone, not in both"
        for group, entry in config["groups"].items()
        for key in sorted(entry.get("set", {}).keys() & entry.get("alone", {}).keys())
    )
    for index, name in enumerate(config.get("tune", {}).get("streams", [])):
        if name not in streams.names():
            yield f"tune.streams[{index}]: unknown name {name!r}{suggest(name, streams.names())}"
    file = config.get("hyperparameters")
    if file is not None and not Path(file).is_file():
        yield f"hyperparameters: expected a file that 'make tune' has written, found no {file}"


def _contrast_problems(analysis: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each contrast that names no policies, or says nothing new."""
    known = [DENSE, *methods.bundles()]
    seen: set[frozenset[str]] = set()
    for index, contrast in enumerate(analysis["contrasts"]):
        for side in ("first", "second"):
            if contrast[side] not in known:
                hint = suggest(contrast[side], known)
                yield f"contrasts[{index}].{side}: unknown policies {contrast[side]!r}{hint}"
        sides = frozenset((contrast["first"], contrast["second"]))
        if len(sides) == 1:
            yield f"contrasts[{index}]: expected two different policies, got {contrast['first']!r} twice"
        elif sides in seen:
            yield f"contrasts[{index}]: the same two policies as an earlier contrast"
        seen.add(sides)


def _matching(pattern: str, known: list[str]) -> list[str]:

    if not any(sign in pattern for sign in "*?"):
        return [methods.get(pattern).name]
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found:
        raise UserError(f"no method matches {pattern!r}")
    return found


# From a config to its cells.


def _with_grids(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the config with every ``grid: true`` replaced by each method's values and their source."""

    known, groups, problems = methods.names(), {}, []
    for group, entry in config["groups"].items():
        found: dict[str, Any] = {}
        if entry.get("grid"):
            for name in dict.fromkeys(name for method in entry["methods"] for name in _matching(method, known)):
                try:
                    grid = grids.of(name)
                except UserError as error:
                    problems.append(f"groups.{group}.grid: {error}")
                    continue
                values = {key: list(values) for key, values in grid.values.items()}
                own = entry.get("set", {})
                source = f"{grid.source}; {', '.join(own)} from the config" if own else grid.source
                found[name] = {"set": values | own, "source": source}
        groups[group] = {**entry, "grid": found} if found else entry
    return {**config, "groups": groups}, problems


def _parts(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a group as entries whose methods share one ``set``: itself, or one for each grid or key alone."""
    if "alone" in entry:
        own = entry.get("set", {})
        return [{**entry, "set": own | {key: values}} for key, values in entry["alone"].items()]
    if "grid" not in entry:
        return [entry]
    return [{**entry, "methods": [name], "set": grid["set"]} for name, grid in entry["grid"].items()]


def _expand(config: Mapping[str, Any]) -> tuple[list[Cell], list[tuple[str, ...]], list[str]]:
    """Return the cells without duplicates, the groups of each, and what is wrong."""
    members: dict[Cell, list[str]] = {}
    problems: dict[str, None] = {}
    excluded = [False] * len(config.get("exclude", []))
    total = 0
    for group, entry in config["groups"].items():
        total += sum(math.prod(map(len, _axes(config, part))) for part in _parts(entry))
        if total > MOST_CELLS:
            return [], [], [f"groups.{group}: expected at most {MOST_CELLS} cells in all"]
        for cell in _members(config, group, excluded, problems):
            groups = members.setdefault(cell, [])
            if group not in groups:
                groups.append(group)
    problems |= {
        f"exclude[{index}]: matches no cell (without a memory the buffer is 0, dense the sparsity 0)": None
        for index, used in enumerate(excluded)
        if not used and not problems
    }
    empty = set(config["groups"]).difference(*members.values()) if not problems else ()
    problems |= {f"groups.{group}: expected a cell that exclude leaves": None for group in sorted(empty)}
    paths: dict[str, Cell] = {}
    for cell in members:
        other = paths.setdefault(cell.path, cell)
        if other != cell:
            problems[f"two different cells have the path {cell.path}: {_difference(other, cell)}"] = None
    return list(members), [tuple(groups) for groups in members.values()], list(problems)


def _without_effect(config: Mapping[str, Any], cells: list[Cell], groups: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield a line for each parameter, hyper-parameter file and first fresh seed that is no cell's."""
    scopes = {"defaults": (config, cells)}
    for name, entry in config["groups"].items():
        scopes[f"groups.{name}.defaults"] = entry, [c for c, own in zip(cells, groups, strict=True) if name in own]
    for where, (entry, own) in scopes.items():
        for key in entry.get("defaults", {}).get("params", {}):
            if not any(key in cell.params for cell in own):
                yield f"{where}.params.{key}: no method here has this parameter"
    if (file := config.get("hyperparameters")) and not any(resolve.fits(file, cell) for cell in cells):
        yield f"hyperparameters: {file} has nothing for a cell of this matrix"
    since = config.get("fresh_from")
    if since is not None and all(cell.seed < since for cell in cells):
        yield f"fresh_from: expected a seed of this matrix, got {since}"


def _members(config: Mapping[str, Any], group: str, excluded: list[bool], problems: dict[str, None]) -> list[Cell]:
    """Return the cells of a group, at their equal budget if it has one; add what is wrong to ``problems``."""
    entry, cells, wrong = config["groups"][group], [], dict[str, None]()
    for part in _parts(entry):
        for combination in itertools.product(*_axes(config, part)):
            try:
                cell = _cell(config, part, combination)
            except UserError as error:
                wrong[f"groups.{group}: {error}"] = None
                continue
            if not _is_excluded(config, group, cell, excluded):
                cells.append(cell)
    if "budget" in entry and cells and not wrong:
        try:
            cells = budget.equalize(cells, entry["budget"])
        except UserError as error:
            wrong[f"groups.{group}.budget: {error}"] = None
    problems |= wrong
    return cells


def _axes(config: Mapping[str, Any], entry: Mapping[str, Any]) -> list[list[Any]]:
    """Return the lists that a group crosses: method, sparsity, buffer, swept parameters..., seed."""

    known = methods.names()
    names = list(dict.fromkeys(name for method in entry["methods"] for name in _matching(method, known)))
    seeds = entry.get("seeds", config["seeds"])
    sweeps = [[(key, value) for value in values] for key, values in entry.get("set", {}).items()]
    buffers, sparsities = entry.get("buffers", [0]), entry.get("sparsities", [0.0])
    return [names, sparsities, buffers, *sweeps, seeds if isinstance(seeds, list) else list(range(seeds))]


def _cell(config: Mapping[str, Any], entry: Mapping[str, Any], combination: tuple[Any, ...]) -> Cell:

    name, sparsity, buffer, *swept, seed = combination
    method = methods.get(name)
    fields = {**config.get("defaults", {}), **entry.get("defaults", {}), **dict(swept)}
    # A default goes to the methods that have the parameter; a swept parameter must fit every method.
    shared = {**config.get("defaults", {}).get("params", {}), **entry.get("defaults", {}).get("params", {})}
    known = _parameter_names()
    for key in shared:
        if key not in known:
            raise UserError(f"defaults.params.{key}: unknown parameter{suggest(key, known)}")
    own = {*method.parameters(), *(key for key in known if key.startswith("protocol."))}
    return resolve.make(
        stream=config["stream"],
        method=name,
        sparsity=sparsity if method.is_sparse else 0.0,
        buffer=buffer if method.needs_memory else 0,
        seed=seed,
        stream_options=config.get("stream_options"),
        params={key: value for key, value in shared.items() if key in own}
        | {key: value for key, value in swept if key not in PROTOCOL},
        hyperparameters=config.get("hyperparameters"),
        **{key: fields[key] for key in PROTOCOL if key in fields},
    )


@functools.cache
def _parameter_names() -> frozenset[str]:
    """Return every parameter that some learner, policy or the protocol has."""

    components: list[Any] = [*methods.learners().values(), *methods.policies().values(), Protocol]
    return frozenset(f"{component.name}.{key}" for component in components for key in component.parameters)


def _is_excluded(config: Mapping[str, Any], group: str, cell: Cell, used: list[bool]) -> bool:
    """Return whether an exclusion names the cell, and mark those that do in ``used``."""
    found = False
    for index, entry in enumerate(config.get("exclude", [])):
        matches = (
            entry.get("group", group) == group
            and fnmatchcase(cell.method, entry.get("method", "*"))
            and entry.get("buffer", cell.buffer) == cell.buffer
            and entry.get("sparsity", cell.sparsity) == cell.sparsity
            and entry.get("seed", cell.seed) == cell.seed
        )
        used[index] |= matches
        found |= matches
    return found


def _difference(one: Cell, other: Cell) -> str:
    first, second = one.as_dict(), other.as_dict()
    flat = [{**values, **values.pop("params")} for values in (first, second)]
    keys = sorted(key for key in {*flat[0], *flat[1]} if flat[0].get(key) != flat[1].get(key))
    return ", ".join(f"{key} {flat[0].get(key)!r} and {flat[1].get(key)!r}" for key in keys)
