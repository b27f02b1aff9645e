"""Published figures, chosen, and compared as they are printed."""

from __future__ import annotations

from decimal import Decimal

from analysis import published
from analysis.published import Figure


def select(**wanted: object) -> list[Figure]:
    """Return the published figures whose attributes are all as ``wanted``, in file order."""
    return [figure for figure in published.load() if all(getattr(figure, key) == wanted[key] for key in wanted)]


def resolution(figure: Figure) -> float:
    """Return one unit of the last printed digit: 1e14 for ``2.5e15``, 0.01 for ``74.09``."""
    return float(Decimal(1).scaleb(int(Decimal(figure.text).as_tuple().exponent)))


def rounds_from(number: float, figure: Figure) -> bool:
    """Return whether ``number`` prints as the figure does when rounded to as many digits."""
    return abs(number - figure.value) <= resolution(figure) * 0.5 * (1 + 1e-9)
