"""SparCL against each rival over all settings they share.

One comparison per setting has little power with few seeds, and many of them need a correction. Here the differences are
averaged over the settings first, seed by seed, and the seeds' averages are tested: one paired test per rival.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis import statistics
from analysis.configurations import Configuration, dense_of
from analysis.statistics import Paired

DENSE = "dense"


@dataclass(frozen=True)
class Rival:
    """What SparCL is compared with, and the settings that both have: pairs of (SparCL, rival).

    Attributes:
        name: :data:`DENSE`, or the rival's label without its learner's ("RigL").
    """

    name: str
    pairs: tuple[tuple[Configuration, Configuration], ...]

    def pooled(self, metric: str) -> Paired:
        """Compare by the seeds' averages of the difference over all settings, on the seeds that all settings have."""
        return pooled([(own.seeds(metric), other.seeds(metric)) for own, other in self.pairs])

    def below(self, metric: str = "class_il") -> int:
        """Return in how many settings SparCL's mean is the lower one."""
        return sum(own.mean(metric) < other.mean(metric) for own, other in self.pairs)

    def flops(self) -> float:
        """Return the rival's executed training FLOPs over SparCL's, geometric mean over settings."""
        ratios = [other.mean("flops_executed") / own.mean("flops_executed") for own, other in self.pairs]
        return math.exp(sum(map(math.log, ratios)) / len(ratios))


def pooled(pairs: Sequence[tuple[dict[int, float], dict[int, float]]]) -> Paired:
    """Compare two methods over several settings, with seeds as the unit of replication.

    Args:
        pairs: per setting, seed to value of either method; nan values are left out.
    """
    finite = [tuple({s: v for s, v in side.items() if not math.isnan(v)} for side in pair) for pair in pairs]
    if not finite:
        return Paired(0)
    seeds = set.intersection(*(set(side) for pair in finite for side in pair))
    means = [{seed: sum(pair[side][seed] for pair in finite) / len(finite) for seed in seeds} for side in (0, 1)]
    return statistics.compare(means[0], means[1])


def rivals(pool: Sequence[Configuration]) -> list[Rival]:
    """Return the dense learner and every other sparse-training method, each with the settings it shares with SparCL."""
    pool = [c for c in pool if c.n and not c.setting]
    ours = [c for c in pool if c.family == "sparcl" and c.sparsity > 0]
    dense = tuple((c, other) for c in ours if (other := dense_of(c, pool)) is not None)
    found: dict[str, list[tuple[Configuration, Configuration]]] = {}
    for other in pool:
        if other.sparsity == 0 or other.family == "sparcl" or not other.is_sparse_training:
            continue
        for own in ours:
            if (own.learner, own.buffer, own.sparsity) == (other.learner, other.buffer, other.sparsity):
                found.setdefault(_bundle_label(other, pool), []).append((own, other))
    made = [Rival(DENSE, dense)] if dense else []
    return made + [Rival(name, tuple(pairs)) for name, pairs in found.items()]


def _bundle_label(c: Configuration, pool: Sequence[Configuration]) -> str:
    learner = next((other.label for other in pool if other.method == c.learner), c.learner)
    return c.label.removesuffix(f"-{learner}")
