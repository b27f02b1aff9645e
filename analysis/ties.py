"""Removals of data that ties decided: where most scores are the same, "the easiest samples" are random ones."""

from __future__ import annotations

from analysis.configurations import configurations
from analysis.frames import Results

HALF = 0.5
"""Share of a removal's samples that ties decide, beyond which it is more random than not."""


def lines(results: Results) -> list[str]:
    """Return a line for each configuration with removals that ties decided for the larger part."""
    found = []
    for c in configurations(results.frame):
        shares = results.of("removed_tied", c.paths).value
        if many := int((shares > HALF).sum()):
            found.append(
                f"{c.key}: ties decided more than half of the samples in {many} of {len(shares)} removals (on average "
                f"{100 * shares.mean():.0f} %): in these, random samples left rather than the easiest"
            )
    return found
