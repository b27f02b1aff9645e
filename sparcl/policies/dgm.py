"""DGM, dynamic gradient masking (Wang et al. 2022, "SparCL", section 3.4).

Continual gradient importance, equation (3), on the existing weights:

    CGI(w) = alpha |dL_cur/dw| + beta |dL_mem/dw|

Only the top 1 - g of a layer's weights receive gradient, g being counted over the whole layer (g >= s). The mask is
refreshed every ``refresh`` steps from that step's own gradients, beginning with the first step of every epoch, so it
also follows every change of the weight masks at once. g defaults to 1 - 0.8 (1 - s): 0.80 at s = 0.75, 0.92 at 0.90
and 0.96 at 0.95, as in the paper. ``importance: merged`` scores with the gradient of the whole loss, as the released
code does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparcl import masks
from sparcl.components import Clock, Density, GradientPolicy, Run, accounting
from sparcl.masks import MaskSet
from sparcl.methods import policy
from sparcl.parameters import parameter


def importance(current: Tensor | None, memory: Tensor | None, alpha: float, beta: float) -> Tensor:
    """Continual gradient importance, equation (3); a gradient that does not exist counts as 0."""
    parts = [c * g.abs() for c, g in ((alpha, current), (beta, memory)) if g is not None]
    return torch.stack(parts).sum(0)


@policy("dgm", "DGM", family="ablation")
class DGM(GradientPolicy):
    """Dynamic gradient masking; see the module's docstring for the rule and its source."""

    by_term = True
    alpha: float = parameter(0.5, "coefficient of the current task's gradient", low=0)
    beta: float = parameter(1.0, "coefficient of the memory's gradient", low=0)
    sparsity: float | None = parameter(
        None,
        "share of a layer's weights that receive no gradient; by default 1 - 0.8 (1 - s)",
        low=0,
        high=1,
        optional=True,
    )
    refresh: int = parameter(30, "steps between refreshes, counted from the start of each epoch", low=1)
    importance: str = parameter(
        "two-term", "the paper's two terms or the code's merged one", choices=("two-term", "merged")
    )

    @classmethod
    def resolve(cls, values: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        if values.get("sparsity") is None:
            values["sparsity"] = round(1 - 0.8 * (1 - fields["sparsity"]), 10)
        return values

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        if self.sparsity is not None and self.sparsity < fields["sparsity"]:
            return (
                f"dgm.sparsity: expected at least the cell's sparsity {fields['sparsity']:g} "
                f"(it counts the weights that do not exist), got {self.sparsity:g}"
            )
        if name := next((key for key in fields if key.endswith(".distribution") and fields[key] == "erk"), None):
            return f"{name}: dgm needs uniform (it masks the same share of every layer)"
        if fields["protocol.momentum"]:
            return "protocol.momentum: dgm needs 0 (momentum would move weights whose gradient is masked)"
        return None

    def gradients_wanted(self, sparsity: float, clock: Clock) -> dict[str, Density]:
        return {"gradient_refresh": "weights"} if clock.step % self.refresh == 0 else {}

    def on_gradients(self, run: Run) -> None:
        if not self.gradients_wanted(run.cell.sparsity, run.clock):
            return
        chosen = {}
        for name, exists in run.masks.weight.items():
            score = self._importance({term: g[name] for term, g in run.term_gradients.items()})
            count = min(masks.keep_count(exists.numel(), self.sparsity), run.masks.counts()[name])
            chosen[name] = masks.top_k(score, count, run.generator("gradient-mask"), among=exists)
        run.masks.restrict_gradients(chosen)
        run.note_gradients()

    def _importance(self, gradients: Mapping[str, Tensor]) -> Tensor:
        if self.importance == "merged":
            return importance(torch.stack(list(gradients.values())).sum(0), None, 1.0, 0.0)
        return importance(gradients.get("stream"), gradients.get("memory"), self.alpha, self.beta)

    def planned_counts(self, container: MaskSet, weights: dict[str, int], clock: Clock) -> dict[str, int]:
        return {
            name: min(weights[name], masks.keep_count(parameter.numel(), self.sparsity))
            for name, parameter in container.parameters.items()
        }

    @accounting
    def published_sparsity(self, sparsity: float) -> float:
        assert self.sparsity is not None
        return self.sparsity
