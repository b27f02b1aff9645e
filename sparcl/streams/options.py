"""Stream options: names, types and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparcl.errors import UserError, one_line, suggest
from sparcl.streams.source import Source

COMMON = ("class_order_seed", "tasks", "train_per_class", "validation")


def parse(source: Source, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options that are set, checked; a value of ``None`` means "not set".

    Whether ``tasks`` divides the classes, and whether a class has ``train_per_class`` images, is checked where the
    classes are known.

    Raises:
        UserError: unknown key, wrong type or value out of range.
    """
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"stream_options: expected a mapping, got {one_line(repr(options), 60)}")
    known = (*COMMON, *source.extra_options)
    for key in options or {}:
        if key not in known:
            raise UserError(
                f"stream_options: unknown key {one_line(repr(key), 60)} for {source.name}"
                f"{suggest(key, known)}; expected one of {', '.join(known)}"
            )
    values = {key: value for key, value in (options or {}).items() if value is not None}
    integer(values, "class_order_seed", 0, 2**32 - 1)
    integer(values, "tasks", 1, None)
    integer(values, "train_per_class", 1, None)
    fraction = values.get("validation", 0.5)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise fail("validation", "a fraction between 0 and 1 (both excluded)", fraction)
    return values


def integer(values: Mapping[str, Any], key: str, low: int, high: int | None) -> None:
    """Raise UserError unless ``values[key]``, where present, is an integer in [low, high]."""
    if key not in values:
        return
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise fail(key, f"an integer of at least {low}" + (f" and at most {high}" if high else ""), value)


def fail(key: str, expected: str, value: object) -> UserError:
    """Return the error for a value that is not what was expected."""
    return UserError(f"stream_options.{key}: expected {expected}, got {one_line(repr(value), 60)}")
