"""A cell is one run of the matrix: a frozen value with every setting resolved (:func:`sparcl.resolve.make` makes it).

Two cells are the same run exactly if they are equal; :attr:`Cell.path` is their readable place in a results folder.
A setting is declared here, once: :data:`SETTINGS` has what it means and what is allowed, and the command line, the
matrix with its schema, the plan and the table of results follow.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeVar

from sparcl.parameters import Parameter, Parameterized

SAFE = re.compile(r"[A-Za-z0-9._=-]+")
"""Values that stand in a path as they are. Snakemake splits its own command lines at commas."""
LONGEST = 200
"""Characters of a variant, which is a folder's name."""
Part = TypeVar("Part", bound=Parameterized)


def _setting(default: Any, help: str, protocol: bool = True, **limits: Any) -> Any:
    return field(metadata={"parameter": Parameter(default, help, **limits), "protocol": protocol})


@dataclass(frozen=True)
class Cell:
    """One run. ``params`` holds every component's parameters as "component.key".

    ``variant`` holds what differs from what stream and method alone give; it follows from the other settings.
    """

    stream: str
    method: str
    sparsity: float = _setting(0.0, "fraction of zero weights in the masked layers", False, low=0, high=1)
    buffer: int = _setting(0, "capacity of the replay memory, samples", False, low=0, high=10**7)
    seed: int = _setting(0, "seed of every random draw", False, low=0, high=2**31 - 1)
    model: str = _setting("", "network ('resnet18', 'resnet8', ...)")
    width: int = _setting(16, "channels of the first stage", low=1, high=4096)
    epochs: int = _setting(1, "epochs per task", low=1, high=10**6)
    batch_size: int = _setting(32, "samples of a stream batch; replay batches are as large", low=1, high=10**6)
    learning_rate: float = _setting(0.03, "learning rate of SGD", low=1e-12, high=1e6)
    precision: str = _setting("float32", "arithmetic of the model", choices=("float32", "tf32", "bfloat16"))
    kernel: str = _setting(
        "auto", "convolutions: sparse on the CPU, PyTorch's, or by a rule", choices=("auto", "dense", "sparse")
    )
    device: str = _setting("cpu", "where the run computes", choices=("cpu", "cuda"))
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    variant: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("stream_options", "params", "variant"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __hash__(self) -> int:
        return hash(self.json())

    @property
    def path(self) -> str:
        """Relative path: stream/method/sS.SS/bN/[variant/]seedN."""
        sparsity = f"s{self.sparsity:.2f}" if round(self.sparsity, 2) == self.sparsity else f"s{self.sparsity:g}"
        parts = [self.stream, self.method, sparsity, f"b{self.buffer}", _text(self.variant), f"seed{self.seed}"]
        return "/".join(part for part in parts if part)

    def as_dict(self) -> dict[str, Any]:
        """Return the cell as plain JSON values, without the derived ``variant``."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "variant"}
        return plain | {"stream_options": dict(self.stream_options), "params": dict(self.params)}

    def json(self) -> str:
        """Return the canonical JSON text that identifies the cell."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def component(self, cls: type[Part]) -> Part:
        """Construct a learner or policy from the cell's parameters."""
        prefix = f"{cls.name}."
        return cls(**{k.removeprefix(prefix): v for k, v in self.params.items() if k.startswith(prefix)})


FIELDS = tuple(f.name for f in fields(Cell) if f.name != "variant")
SETTINGS: dict[str, Parameter] = {f.name: f.metadata["parameter"] for f in fields(Cell) if f.metadata}
"""The single settings of a cell, with what they mean and what is allowed."""
PROTOCOL = tuple(f.name for f in fields(Cell) if f.metadata.get("protocol"))
"""Those that a matrix sets for all cells or for a group, and a stream has defaults of."""


def shown(value: Any) -> str:
    """Return a setting's value as a path and a table print it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}".replace("e+", "e")
    text = str(value)
    return text if SAFE.fullmatch(text) else f"h{_digest(text)}"


def _text(variant: Mapping[str, Any]) -> str:
    text = "+".join(f"{key}={shown(value)}" for key, value in sorted(variant.items()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 10]}+h{_digest(text)}"


def _digest(text: str) -> str:
    """Return 8 hex digits for a text that cannot stand in a path."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
