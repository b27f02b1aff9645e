"""Removals of data that ties decided: where most scores are the same, "the easiest samples" are random ones."""

from __future__ import annotations

from analysis.configurations import configurations
from analysis.frames import Results

HALF = 0.5
"""Share of a removal's samples that ties decide, beyond which it is more random than not."""


def summary(results: Results) -> str:
    """Return in one sentence in how many removals ties decided for the larger part; empty where in none."""
    of = [results.of("removed_tied", c.paths).value for c in configurations(results.frame)]
    of = [shares for shares in of if len(shares)]
    many, every = sum(int((shares > HALF).sum()) for shares in of), sum(map(len, of))
    settings = sum(shares.mean() > HALF for shares in of)
    if not many:
        return ""
    return (
        f"In {many:,} of {every:,} removals (on average in {settings} of {len(of)} settings with data removal) more "
        "than half of the removed samples tied with others that stayed: not the counts chose them but ddr.ties, which "
        "is random by default."
    )


def lines(results: Results) -> list[str]:
    """Return a line for each configuration with removals that ties decided for the larger part."""
    found = []
    for c in configurations(results.frame):
        shares = results.of("removed_tied", c.paths).value
        if many := int((shares > HALF).sum()):
            found.append(
                f"{c.key}: more than half in {many} of {len(shares)} removals, on average {100 * shares.mean():.0f} %"
            )
    return found
