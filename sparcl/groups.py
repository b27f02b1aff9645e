"""The groups of a matrix config: which of them answer a question of their own, and what they sweep. Light: no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

PILOT = "pilot"
"""The group that trains dense learners longer, to show that tasks are learned."""
GAIN = "gain"
"""The group that crosses what a gain of SparCL over dense training may be made of."""
LOSSES = "published-losses"
"""The group, or what the names of groups begin with, whose rows are each under the loss of its source."""
APART = (PILOT, GAIN)
"""Groups with a table of their own that answers another question than which method is best."""


class Grid(TypedDict):
    """Values to try for each parameter."""

    set: dict[str, list[Any]]
    source: str


class Group(TypedDict, total=False):
    """A group of the config."""

    title: str
    set: dict[str, list[Any]]
    alone: dict[str, list[Any]]
    grid: dict[str, Grid]
    budget: str


class Config(TypedDict, total=False):
    """The config as it was read, as far as the analysis looks at it."""

    stream: str
    stream_options: dict[str, Any]
    fresh_from: int
    groups: dict[str, Group]
    tune: dict[str, list[str]]


def swept(config: Config) -> dict[str, list[str]]:
    """Return the sweeps of a config: group to what its ``set``, its ``alone`` or its methods' grids change."""
    found: dict[str, list[str]] = {}
    for name, group in config.get("groups", {}).items():
        sets = [group.get("set", {}), group.get("alone", {}), *(grid["set"] for grid in group.get("grid", {}).values())]
        if any(sets):
            found[name] = list(dict.fromkeys(key for one in sets for key in one))
    return found


def is_losses(group: str) -> bool:
    """Whether a group holds methods under the losses that their sources used."""
    return group == LOSSES or group.startswith(f"{LOSSES}-")


def budgets(config: Config) -> list[str]:
    """Return the groups whose cells have equal budgets."""
    return [name for name, group in config.get("groups", {}).items() if "budget" in group]


def apart(config: Config) -> set[str]:
    """Return the groups whose cells are in no comparison between methods unless another group names them, too."""
    groups = config.get("groups", {})
    return {name for name in groups if name in APART or is_losses(name) or "budget" in groups[name]} | swept(
        config
    ).keys()


def sweep_title(config: Config, group: str) -> str:
    """Return what the config calls a sweep, or its name and what it sweeps."""
    return config["groups"][group].get("title") or f"Sweep {group}: {', '.join(swept(config)[group])}"


def in_main(groups: Iterable[str], aside: set[str]) -> bool:
    """Whether a cell of these groups is part of the comparisons between methods: some group of it is not ``apart``."""
    return not set(groups) or not set(groups) <= aside
