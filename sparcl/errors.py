"""The two ways a command can fail, and how mistyped names and options are answered."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn


class UserError(Exception):
    """Bad input: one line that names the key or file and says what was expected. Exit status 2."""


class RunError(Exception):
    """A run that started and could not be finished (non-finite loss, full disk, ...). Exit status 1."""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UserError` with ``message`` in one line, where argparse would print its usage and exit."""
        raise UserError(one_line(f"{self.prog}: {message}; '{self.prog} --help' lists the options"))


MOST_THREADS = 256
"""What any option that starts threads accepts."""


def check_count(option: str, value: int | None, high: int = MOST_THREADS) -> None:
    """Refuse a count that is given and not from 1 to ``high``.

    Raises:
        UserError: it is not; the line names the option.
    """
    if value is not None and not 1 <= value <= high:
        raise UserError(f"{option}: expected a whole number from 1 to {high}, got {value}")


def suggest(name: object, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest of ``choices``, or an empty string."""
    nearest = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


def one_line(text: object, limit: int = 300) -> str:
    """Fold any text into one printable line of at most ``limit`` characters."""
    folded = " ".join(str(text).split())
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"
