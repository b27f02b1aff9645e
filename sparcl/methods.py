"""Methods as compositions: a learner, and at most one sparsity, gradient and data policy.

A method's name is ``[bundle-]learner``: ``derpp``, ``sparcl-derpp``, ``rigl-erk-er``. A bundle is a named choice of
policies (``sparcl`` = tdm + dgm + ddr); every registered policy is a bundle of its own name. Bundles and whole methods
with a name of their own are data: ``sparcl/data/methods.yaml``, or :func:`bundle` in a baseline's file.

Where methods come from: this package, and every module of the packages listed in the entry-point group
``sparcl.methods`` (the suite's ``baselines`` is one of them). A module that cannot be imported, or that registers a
name which exists, registers nothing, nor does a bundle that names an unknown policy; :func:`broken` keeps the error,
which is shown when methods are listed or somebody asks for a name that is not there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sparcl.cell import Cell
from sparcl.components import Component, DataPolicy, GradientPolicy, Learner, Policy, SparsityPolicy
from sparcl.errors import UserError, one_line, suggest
from sparcl.protocol import Protocol

KINDS = {"sparsity": SparsityPolicy, "gradient": GradientPolicy, "data": DataPolicy}
ENTRY_POINTS = "sparcl.methods"
L = TypeVar("L", bound=Learner)
P = TypeVar("P", bound=Policy)


@dataclass(frozen=True)
class Bundle:
    """A named choice of policies, with parameter values that belong to the name."""

    name: str
    label: str
    family: str
    policies: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A composition: learner and policies by name. ``label`` is what tables and figures print."""

    name: str
    label: str
    family: str
    learner: str
    policies: Mapping[str, str]
    values: Mapping[str, Any]
    task_il_only: bool = False

    @property
    def components(self) -> list[type[Component]]:
        return [learners()[self.learner], *(policies()[name] for name in self.policies.values())]

    @property
    def needs_memory(self) -> bool:
        return learners()[self.learner].uses_memory

    @property
    def is_sparse(self) -> bool:
        return "sparsity" in self.policies

    def parameters(self) -> dict[str, Any]:
        """Return ``{"component.key": Parameter}`` of its components, and of the protocol what belongs to its name."""
        known = {f"{c.name}.{key}": parameter for c in self.components for key, parameter in c.parameters.items()}
        protocol = {f"protocol.{key}": parameter for key, parameter in Protocol.parameters.items()}
        return known | {key: protocol[key] for key in self.values if key in protocol}


_learners: dict[str, type[Learner]] = {}
_policies: dict[str, type[Policy]] = {}
_bundles: dict[str, Bundle] = {}
_aliases: dict[str, Method] = {}
_broken: dict[str, str] = {}


def learner(name: str, label: str) -> Callable[[type[L]], type[L]]:
    """Register a :class:`~sparcl.components.Learner` under ``name``."""

    def register(cls: type[L]) -> type[L]:
        if "-" in name:
            raise ValueError(f"{name}: a learner's name has no '-'")
        _free(name, _bundles, _aliases)
        _claim(_learners, name, cls)
        cls.name, cls.label = name, label
        return cls

    return register


def policy(name: str, label: str, family: str = "sparse-baseline") -> Callable[[type[P]], type[P]]:
    """Register a policy under ``name``; what it is follows from its base class. It is a bundle of the same name."""

    def register(cls: type[P]) -> type[P]:
        _free(name, _learners, _aliases)
        _claim(_policies, name, cls)
        cls.name, cls.label = name, label
        bundle(name, label, family, None, **{kind_of(cls): name})
        return cls

    return register


def bundle(name: str, label: str, family: str, values: Mapping[str, Any] | None = None, **policies: str) -> None:
    """Register a named choice of policies: ``bundle("rigl-erk", "RigL-ERK", ..., sparsity="rigl")``."""
    for kind in policies:
        if kind not in KINDS:
            raise ValueError(f"{name}: a bundle has sparsity, gradient and data policies, not {kind!r}")
    old = _bundles.get(name)
    new = Bundle(name, label, family, policies, dict(values or {}))
    if old is not None and old != new:
        raise ValueError(f"{name}: this bundle exists already")
    _bundles[name] = new


def method(name: str, label: str, family: str, learner: str, task_il_only: bool = False,
           values: Mapping[str, Any] | None = None, **policies: str) -> None:  # fmt: skip
    """Register a whole method under a name of its own (``packnet``)."""
    if name not in (learner, *policies.values()):
        _free(name, _learners, _bundles)
    new = Method(name, label, family, learner, policies, dict(values or {}), task_il_only)
    if _aliases.setdefault(name, new) != new:
        raise ValueError(f"{name}: a method of this name exists already")


def kind_of(cls: type[Component]) -> str:
    """Return "sparsity", "gradient" or "data"."""
    for kind, base in KINDS.items():
        if issubclass(cls, base):
            return kind
    raise TypeError(f"{cls.__name__}: expected a SparsityPolicy, GradientPolicy or DataPolicy")


def _free(name: str, *registries: Mapping[str, Any]) -> None:
    if any(name in registry for registry in registries):
        raise ValueError(f"{name}: this name is taken")


def _claim(registry: dict[str, Any], name: str, cls: type) -> None:
    old = registry.get(name)
    if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{name}: registered twice, by {old.__module__} and by {cls.__module__}")
    registry[name] = cls


@functools.cache
def discover() -> None:
    """Import every module that may register methods. Called by everything below; safe to call again."""
    for module in ("static", "tdm", "ddr", "dgm"):
        importlib.import_module(f"sparcl.policies.{module}")
    for module in ("bounds", "rehearsal"):
        importlib.import_module(f"sparcl.learners.{module}")
    for found in sorted(pkgutil.iter_modules([str(Path(__file__).parent / "learners")]), key=lambda m: m.name):
        importlib.import_module(f"sparcl.learners.{found.name}")
    _load_data(Path(__file__).parent / "data" / "methods.yaml")
    points = {p.value.partition(":")[0].strip() for p in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    extra = [name for name in os.environ.get("SPARCL_METHODS", "").split(os.pathsep) if name]
    for name in dict.fromkeys(["baselines", *sorted(points), *extra]):
        _import_all(name)
    _drop_unfinished()


def _drop_unfinished() -> None:
    """Take away bundles and methods of parts that nobody has registered; :func:`broken` keeps why."""
    known = {kind: [name for name, cls in _policies.items() if kind_of(cls) == kind] for kind in KINDS}
    known["learner"] = list(_learners)
    registries: tuple[dict[str, Any], ...] = (_bundles, _aliases)
    for registry in registries:
        for name, entry in list(registry.items()):
            wanted = {**entry.policies, **({"learner": entry.learner} if isinstance(entry, Method) else {})}
            for kind, part in wanted.items():
                if part not in known[kind]:
                    registry.pop(name, None)
                    what = "learner" if kind == "learner" else f"{kind} policy"
                    _broken[name] = f"names an unknown {what} {part!r}{suggest(part, known[kind])}"


def _import_all(name: str) -> None:
    registries: tuple[dict[str, Any], ...] = (_learners, _policies, _bundles, _aliases)
    before, loaded = [dict(registry) for registry in registries], set(sys.modules)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the command's: a plan, a list in JSON
            module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        for registry, entries in zip(registries, before, strict=True):  # a module joins as a whole or not at all
            registry.clear()
            registry.update(entries)
        for other in set(sys.modules) - loaded:  # what it imported of its own package may still join by itself
            if other.partition(".")[0] == name.partition(".")[0]:
                del sys.modules[other]
        if not (isinstance(error, ModuleNotFoundError) and error.name == name == "baselines"):
            _broken[name] = one_line(f"{type(error).__name__}: {error}")
        return
    for found in sorted(pkgutil.iter_modules(getattr(module, "__path__", [])), key=lambda m: m.name):
        _import_all(f"{name}.{found.name}")


def _load_data(path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, entry in data["bundles"].items():
        bundle(name, entry["label"], entry["family"], entry.get("values"), **entry["policies"])


def broken() -> dict[str, str]:
    """Return what was to register methods and could not, modules and bundles, each with its error in one line."""
    discover()
    return dict(_broken)


def learners() -> dict[str, type[Learner]]:
    """Return all learners by name."""
    discover()
    return _learners


def policies() -> dict[str, type[Policy]]:
    """Return all policies by name."""
    discover()
    return _policies


def bundles() -> dict[str, Bundle]:
    """Return all named choices of policies by name."""
    discover()
    return _bundles


def names() -> list[str]:
    """Return every method name: learners, methods of their own, and every bundle on every learner that takes it."""
    discover()
    own = [name for name in _learners if name not in _aliases]
    crossed = [
        f"{b.name}-{name}" for b in _bundles.values() for name, cls in _learners.items() if refusal(b, cls) is None
    ]
    return sorted({*own, *_aliases, *crossed})


def refusal(bundle: Bundle, learner: type[Learner]) -> str | None:
    """Return why ``bundle`` on ``learner`` makes no method, or None."""
    if learner.offline:
        return "joint training has no stream for the policies to act on"
    for kind, name in bundle.policies.items():
        if kind in learner.refuses:
            return f"{learner.name} takes no {kind} policy: {learner.refuses[kind]}"
        accepts = _policies[name].learners
        if accepts is not None and learner.name not in accepts:
            return f"{name} works with {', '.join(accepts) or 'no other learner: it is a method of its own'}"
    if learner.bundles is not None and bundle.name not in learner.bundles:
        return f"{learner.name} {learner.bundles_reason}"
    return None


def get(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        UserError: there is none, or its parts make no method together; the nearest name is suggested.
    """
    discover()
    if not isinstance(name, str):
        raise UserError(f"method: expected a name, got {name!r}")
    if name in _aliases:
        return _aliases[name]
    if name in _learners:
        cls = _learners[name]
        return Method(name, cls.label, cls.family, name, {}, {}, cls.task_il_only)
    prefix, _, last = name.rpartition("-")
    if prefix in _bundles and last in _learners:
        bundle, cls = _bundles[prefix], _learners[last]
        reason = refusal(bundle, cls)
        if reason is not None:
            raise UserError(f"method: {name} makes no sense: {reason}")
        return Method(name, f"{bundle.label}-{cls.label}", bundle.family, last, bundle.policies, bundle.values,
                      cls.task_il_only)  # fmt: skip
    broken = "".join(f"; {what} could not be registered ({error})" for what, error in _broken.items())
    raise UserError(f"method: unknown name {name!r}{suggest(name, names())}; 'sparcl methods' lists them{broken}")


def matching(patterns: Iterable[str]) -> list[Method]:
    """Return the methods whose names match any of the shell-style ``patterns`` (all for none)."""
    import fnmatch

    wanted = list(patterns) or ["*"]
    return [get(name) for name in names() if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]


@dataclass(frozen=True)
class Parts:
    """The components of a cell's method, each with the cell's parameters; a policy that it lacks does nothing."""

    learner: Learner
    sparsity: SparsityPolicy
    gradient: GradientPolicy
    data: DataPolicy

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies, in the order in which a run asks them."""
        return self.sparsity, self.gradient, self.data

    @property
    def every(self) -> tuple[Component, ...]:
        """The learner, then the policies."""
        return self.learner, *self.policies


def parts(cell: Cell) -> Parts:
    """Construct the components of ``cell``."""
    chosen = get(cell.method)
    made: dict[str, Any] = {kind: cell.component(policies()[name]) for kind, name in chosen.policies.items()}
    return Parts(
        cell.component(learners()[chosen.learner]),
        made.get("sparsity") or SparsityPolicy(),
        made.get("gradient") or GradientPolicy(),
        made.get("data") or DataPolicy(),
    )
