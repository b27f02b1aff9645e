"""Statistics for few seeds: intervals, paired comparisons, equivalence, power, corrections for many.

Seeds are the unit of replication. Two methods under one seed see the same initial weights, the same order of
images and the same draws, so methods are compared by their differences seed by seed. All functions take plain
sequences of numbers; ``nan`` stands for a value that does not exist.

What few seeds allow, and what they do not:

* One seed has a mean and nothing else: no deviation, no interval, no test.
* Student's t (interval and paired test) is the main tool. It assumes that seed-to-seed differences are about
  normal.
* "Not told apart" is not "equal": with few seeds only large differences can be told apart. That two methods are
  within so many points of each other is a claim of its own (:func:`equivalence_p`), and how large a difference a number
  of seeds could tell is computed (:func:`detectable`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import special

ALPHA = 0.05
"""Level of exploratory verdicts and of bold; a planned analysis names its own."""
MOST_SEEDS = 10_000
"""Where the search for a number of seeds ends."""
NAN = float("nan")
Row = TypeVar("Row", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """Mean of ``n`` values, sample standard deviation (``n - 1``) and the t-interval of the mean."""

    n: int
    mean: float = NAN
    sd: float = NAN
    ci_low: float = NAN
    ci_high: float = NAN


@dataclass(frozen=True)
class Paired:
    """Differences ``values - reference`` over the seeds that both have.

    Attributes:
        n: seeds in common.
        mean, sd: of the differences, in the values' own unit.
        ci_low, ci_high: t-interval of the mean difference.
        t, p: paired t-test, two-sided.
    """

    n: int
    mean: float = NAN
    sd: float = NAN
    ci_low: float = NAN
    ci_high: float = NAN
    t: float = NAN
    p: float = NAN


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array[~np.isnan(array)]


def t_quantile(n: int, confidence: float = 0.95) -> float:
    """Half-width of the t-interval in standard errors, for ``n`` values."""
    return float(special.stdtrit(n - 1, 0.5 + confidence / 2))


def _two_sided_t(t: float, n: int) -> float:
    return float(2 * special.stdtr(n - 1, -abs(t)))


def _deviation(values: np.ndarray) -> float:
    """Sample standard deviation; exactly 0 when the values agree up to rounding."""
    sd = float(values.std(ddof=1))
    return 0.0 if sd <= 1e-12 * max(1.0, float(np.abs(values).max())) else sd


def summarize(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Summary:
    """Mean, sample deviation and t-interval of ``values`` (nan left out)."""
    sample = _finite(values)
    n = len(sample)
    if n == 0:
        return Summary(0)
    mean = float(sample.mean())
    if n == 1:
        return Summary(1, mean)
    sd = _deviation(sample)
    half = t_quantile(n, confidence) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def compare(values: Mapping[Any, float], reference: Mapping[Any, float]) -> Paired:
    """Compare two methods by their differences on the seeds they share.

    Args:
        values, reference: seed to value; nan values are left out.

    Where every difference is the same and not 0 the t-statistic is infinite and ``p`` is 0, as in SciPy;
    where all are 0, ``p`` is 1.
    """
    seeds = sorted(
        (
            seed
            for seed in values
            if seed in reference and not (math.isnan(values[seed]) or math.isnan(reference[seed]))
        ),
        key=str,
    )
    if not seeds:
        return Paired(0)
    differences = np.array([values[seed] - reference[seed] for seed in seeds], dtype=float)
    summary = summarize(differences)
    if summary.n == 1:
        return Paired(1, summary.mean)
    if summary.sd == 0:
        same = abs(summary.mean) <= 1e-12
        t = 0.0 if same else math.copysign(math.inf, summary.mean)
        p = 1.0 if same else 0.0
    else:
        t = summary.mean / (summary.sd / math.sqrt(summary.n))
        p = _two_sided_t(t, summary.n)
    return Paired(summary.n, summary.mean, summary.sd, summary.ci_low, summary.ci_high, t, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; nan entries are no comparisons, stay nan and do not count."""
    adjusted = [NAN] * len(p_values)
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    running = 0.0
    for rank, (p, index) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[index] = running
    return adjusted


def fdr(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the false-discovery rate (Benjamini and Hochberg 1995); nan ones do not count."""
    from scipy import stats

    adjusted = np.array(p_values, dtype=float)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(adjusted[tested])
    return [float(p) for p in adjusted]


def equivalence_p(paired: Paired, margin: float) -> float:
    """Return the p-value of two one-sided tests (Schuirmann 1987): small where a difference is within ``margin``.

    The null hypothesis is a difference of at least ``margin`` (in the values' unit, above 0) either way; the larger of
    the two one-sided p-values. nan below 2 seeds.
    """
    if paired.n < 2:
        return NAN
    if paired.sd == 0:
        return 0.0 if abs(paired.mean) < margin else 1.0
    t = (abs(paired.mean) - margin) / (paired.sd / math.sqrt(paired.n))
    return float(special.stdtr(paired.n - 1, t))


def power(difference: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """Return the chance that a two-sided paired t-test over ``n`` seeds tells a true mean difference (noncentral t).

    Args:
        sd: of the differences over seeds, in the unit of ``difference``; above 0.
    """
    from scipy import stats

    shift = abs(difference) / sd * math.sqrt(n)
    critical = special.stdtrit(n - 1, 1 - alpha / 2)
    wrong_sign = stats.nct.cdf(-critical, n - 1, shift)  # nan far out, where it is below 1e-6
    return float(stats.nct.sf(critical, n - 1, shift) + np.nan_to_num(wrong_sign))


def detectable(sd: float, n: int, alpha: float = ALPHA, wanted: float = 0.8) -> float:
    """Return the difference that ``n`` seeds tell with a chance of ``wanted``; nan below 2 seeds or without ``sd``."""
    from scipy import optimize

    if n < 2 or math.isnan(sd):
        return NAN
    if sd == 0:
        return 0.0
    high = 1.0
    while power(high, 1.0, n, alpha) < wanted:
        high *= 2
    return sd * float(optimize.brentq(lambda d: power(d, 1.0, n, alpha) - wanted, 0.0, high))


def seeds_needed(sd: float, difference: float, alpha: float = ALPHA, wanted: float = 0.8) -> float:
    """Return the least number of seeds that tell ``difference`` with a chance of ``wanted``.

    nan without ``sd``, inf where :data:`MOST_SEEDS` are not enough.
    """
    if math.isnan(sd):
        return NAN
    if sd == 0:
        return 2
    low, high = 1, 2
    while power(difference, sd, high, alpha) < wanted:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, sd, middle, alpha) >= wanted else (middle, high)
    return high


def deviation_interval(sd: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the chi-squared interval of a standard deviation that ``n`` about normal values gave."""
    if n < 2:
        return NAN, NAN
    tail = (1 - confidence) / 2
    low, high = (sd * math.sqrt((n - 1) / special.chdtri(n - 1, p)) for p in (tail, 1 - tail))
    return float(low), float(high)


def best(rows: Mapping[Row, Mapping[Any, float]], alpha: float = ALPHA) -> Row | None:
    """Return the row with the highest mean if it is told apart from every other row; else None.

    The best is compared with each other row by a paired t-test on the seeds they share, Holm-corrected over these
    comparisons, and has to be the better one on them. A row that shares fewer than 2 seeds with it gives no test, so
    nothing is best. Which row came out best is chosen by the data, and the test is conditional on it.

    Args:
        rows: row to (seed to value); rows without a value do not take part.
    """
    samples = {row: _finite(list(values.values())) for row, values in rows.items()}
    means = {row: float(sample.mean()) for row, sample in samples.items() if len(sample)}
    if len(means) < 2:
        return None
    first = max(means, key=lambda row: means[row])
    found = [compare(rows[first], rows[row]) for row in means if row != first]
    p_values = holm([paired.p for paired in found])
    told = (paired.mean > 0 and p < alpha for paired, p in zip(found, p_values, strict=True))
    return first if all(told) else None
