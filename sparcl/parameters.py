"""Parameters: declared once, where they are used, with a default, what is allowed, and what they mean.

A class that has parameters names them as typed attributes::

    class RigL(SparsityPolicy):
        alpha: float = parameter(0.3, "share of a layer's weights replaced at first", low=0, high=1)

Its instances have the values; ``RigL.parameters`` has the declarations, from which the command line, the matrix, its
schema and the lists of the documentation follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, TypeVar, cast

from sparcl.errors import UserError, suggest

HUGE = 10**18
Value = TypeVar("Value")


@dataclass(frozen=True)
class Parameter:
    """A declared parameter: default, what is allowed, and what it means. A default of None is a number's absence.

    ``duration`` marks a number of steps or epochs of a task, which is stretched with the task (:mod:`sparcl.budget`).
    """

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: Sequence[Any] | None = None
    optional: bool = False
    duration: bool = False

    @property
    def kind(self) -> type:
        """The type of its values: bool, int, float or str."""
        return float if self.default is None else type(self.default)

    def check(self, key: str, value: Any) -> Any:
        """Return ``value`` in the parameter's type, or raise a UserError that names ``key``."""
        if value is None and self.optional:
            return None
        if isinstance(value, int) and abs(value) >= HUGE:
            raise UserError(f"{key}: expected a number of at most 18 digits")
        if self.choices is not None:
            if value not in self.choices or isinstance(value, bool) != isinstance(self.choices[0], bool):
                expected = ", ".join(map(str, self.choices))
                raise UserError(
                    f"{key}: expected one of {expected}, got {value!r}{suggest(value, map(str, self.choices))}"
                )
            return value
        kind = self.kind
        if kind is bool:
            if not isinstance(value, bool):
                raise UserError(f"{key}: expected true or false, got {value!r}")
            return value
        if kind is str:
            if not isinstance(value, str):
                raise UserError(f"{key}: expected a text, got {value!r}")
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{key}: expected a number{self._range()}, got {value!r}")
        if kind is int and value != int(value):
            raise UserError(f"{key}: expected a whole number{self._range()}, got {value!r}")
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            raise UserError(f"{key}: expected a {'whole ' if kind is int else ''}number{self._range()}, got {value!r}")
        return kind(value)

    def schema(self) -> dict[str, Any]:
        """Return the parameter as a JSON schema; ``expected`` is what messages say."""
        found: dict[str, Any] = {"description": self.help}
        if self.choices is not None:
            return found | {"enum": list(self.choices), "expected": " or ".join(map(str, self.choices))}
        kind = {bool: "boolean", int: "integer", float: "number", str: "string"}[self.kind]
        found |= {"type": kind}
        found |= {key: limit for key, limit in (("minimum", self.low), ("maximum", self.high)) if limit is not None}
        word = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "a text"}[kind]
        return found | {"expected": word + self._range()}

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {_amount(self.low)} to {_amount(self.high)}"
        if self.low is not None:
            return f" of at least {_amount(self.low)}"
        return "" if self.high is None else f" of at most {_amount(self.high)}"


def _amount(limit: float) -> str:
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


def parameter(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    optional: bool = False,
    duration: bool = False,
) -> Value:
    """Declare a parameter as an attribute of a class; see :class:`Parameter` for the arguments.

    To a type checker it is the default value, which is what an instance has unless it was given another.
    """
    return cast(Value, Parameter(default, help, low, high, choices, optional, duration))


class Parameterized:
    """A class with a name and declared parameters, whose instances have checked values of them."""

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    parameters: ClassVar[Mapping[str, Parameter]] = {}
    """What the class and its bases declare, by name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = {key: value for key, value in vars(cls).items() if isinstance(value, Parameter)}
        cls.parameters = {**cls.parameters, **own}

    def __init__(self, **values: Any):
        for key in values:
            if key not in self.parameters:
                raise UserError(f"{self.name}.{key}: unknown parameter{suggest(key, self.parameters)}")
        for key, declared in self.parameters.items():
            setattr(self, key, declared.check(f"{self.name}.{key}", values.get(key, declared.default)))

    @classmethod
    def resolve(cls, values: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fill parameters whose default depends on the cell's ``fields`` (sparsity, epochs, ...)."""
        return values

    @classmethod
    def stretch(cls, values: Mapping[str, Any], factor: Fraction) -> dict[str, Any]:
        """Return ``values`` for tasks that are ``factor`` times as long: every duration so many times as long.

        Rounded up, so that what happens once in so many steps or epochs does not happen more often in a task.
        """
        return {
            key: math.ceil(value * factor) if cls.parameters[key].duration else value for key, value in values.items()
        }

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        """Return why this makes no sense in a cell with these ``fields`` and parameters, or None."""
        return None
