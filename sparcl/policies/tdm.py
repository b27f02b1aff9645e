"""TDM, task-aware dynamic masking (Wang et al. 2022, "SparCL", section 3.2 and algorithm 1).

Continual weight importance, equation (1):

    CWI(w) = |w| + alpha |dL_cur/dw| + beta |dL_mem/dw|

with L_cur the single-head loss on the current task's data and L_mem the rehearsal loss. Every ``interval`` epochs the
least important weights of each layer are removed and as many grow back at random positions, starting at 0; at the
first epoch of every task but the first the network expands by ``p_inter`` and shrinks back one interval later. It ends
every phase at exactly the cell's sparsity s and is never denser than s - p_inter.

The gradients are those of the last ``batches`` training steps of the epoch before an update, taken per loss term while
training (no extra pass over the data) and averaged before the absolute value.

What the released code does instead is available by name: ``importance: merged`` is |w| + alpha |g| with the gradient
of the whole loss on one batch after gradient masking; ``schedule: released`` expands in the first task too, uses
``p_inter`` for both proportions there, and stops growing in a task's last interval; ``init: magnitude`` draws the
initial mask by the magnitude of the random weights; ``zeros: drop`` takes a weight that exists and is exactly 0 at an
update for one that does not (its position may be grown again at once), so that an update without growth leaves fewer
weights than the schedule says. The bundle ``sparcl-released`` has them all. The paper asks of the initial mask only
that it has the right density; a random one is the default, since magnitudes of random weights say nothing and cost
accuracy on Split-Digits (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparcl import masks
from sparcl.components import Clock, Density, Run, SparsityPolicy
from sparcl.masks import MaskSet
from sparcl.methods import policy
from sparcl.parameters import parameter
from sparcl.policies.static import DISTRIBUTION, initial_masks


def importance(weight: Tensor, current: Tensor | None, memory: Tensor | None, alpha: float, beta: float) -> Tensor:
    """Continual weight importance, equation (1); a gradient that does not exist counts as 0."""
    score = weight.detach().abs()
    if current is not None:
        score = score + alpha * current.abs()
    if memory is not None:
        score = score + beta * memory.abs()
    return score


@policy("tdm", "TDM", family="ablation")
class TDM(SparsityPolicy):
    """Task-aware dynamic masking; see the module's docstring for the rule and its source."""

    by_term = True
    alpha: float = parameter(0.5, "coefficient of the current task's gradient", low=0)
    beta: float = parameter(1.0, "coefficient of the memory's gradient", low=0)
    p_inter: float = parameter(0.01, "share of a layer's weights that a new task adds", low=0, high=1)
    p_intra: float = parameter(
        0.005, "share of a layer's weights replaced at each update of the paper's schedule", low=0, high=1
    )
    interval: int = parameter(5, "epochs between updates", low=1, duration=True)
    batches: int = parameter(1, "last training steps of an epoch whose gradients enter the importance", low=1)
    importance: str = parameter(
        "two-term", "the paper's two terms or the code's merged one", choices=("two-term", "merged")
    )
    schedule: str = parameter("paper", "the paper's schedule or the released code's", choices=("paper", "released"))
    init: str = parameter("random", "initial mask", choices=("random", "magnitude"))
    zeros: str = parameter(
        "keep",
        "weights that exist and are exactly 0 at an update, which the released code drops",
        choices=("keep", "drop"),
    )
    distribution: str = DISTRIBUTION

    def __init__(self, **values: Any):
        super().__init__(**values)
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._batches = 0

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        name = "p_inter" if self.schedule == "released" else "p_intra"
        left, replaced = round(1 - fields["sparsity"], 10), getattr(self, name)
        if fields["sparsity"] and replaced >= left:
            return (
                f"tdm.{name}: expected less than the share {left:g} of the weights that exists at sparsity "
                f"{fields['sparsity']:g}, all of which an update would replace otherwise, got {replaced:g}"
            )
        return None

    # -- schedule --------------------------------------------------------------------------------------------------
    def update_at(self, task: int, epoch: int, epochs: int, sparsity: float) -> tuple[float, float] | None:
        """Return (prune to, grow to), two sparsities, for the update that opens ``epoch``, or None."""
        if epoch % self.interval:
            return None
        released = self.schedule == "released"
        p_intra = self.p_inter if released else self.p_intra
        denser, sparser = max(sparsity - self.p_inter, 0.0), min(sparsity + p_intra, 1.0)
        if sparsity == 0:
            return None
        if epoch == 0:
            return (sparsity, denser) if task > 0 or released else None
        if released and epoch + self.interval >= epochs:
            return sparsity, sparsity
        return sparser, sparsity

    def sparsity_at(self, task: int, epoch: int, epochs: int, sparsity: float) -> float:
        """Return the sparsity in force during ``epoch``."""
        last = epoch - epoch % self.interval
        update = self.update_at(task, last, epochs, sparsity)
        return sparsity if update is None else update[1]

    # -- the run ---------------------------------------------------------------------------------------------------
    def start(self, run: Run) -> None:
        initial_masks(run, self.init, self.distribution)

    def begin_epoch(self, run: Run) -> None:
        clock = run.clock
        update = self.update_at(clock.task, clock.epoch, clock.epochs, run.cell.sparsity)
        if update is not None:
            self._update(run, *update)
        self._forget()

    def gradients_wanted(self, sparsity: float, clock: Clock) -> dict[str, Density]:
        return {"importance": "weights"} if self._ranks(sparsity, clock) else {}

    def on_gradients(self, run: Run) -> bool:
        if self._ranks(run.cell.sparsity, run.clock):
            for term, gradients in run.term_gradients.items():
                sums = self._sums.setdefault(term, {n: torch.zeros_like(g) for n, g in gradients.items()})
                for name, gradient in gradients.items():
                    sums[name] += gradient
            self._batches += 1
        return True

    def end_task(self, run: Run) -> None:
        if self._expanded(run):
            self._update(run, run.cell.sparsity, run.cell.sparsity)
        self._forget()

    def _expanded(self, run: Run) -> bool:
        clock = run.clock
        return self.sparsity_at(clock.task, clock.epoch, clock.epochs, run.cell.sparsity) != run.cell.sparsity

    def _update(self, run: Run, prune_to: float, grow_to: float) -> None:
        """Prune every layer to ``prune_to`` by lowest importance, then grow to ``grow_to`` at random.

        Where both are equal nothing grows, also not in place of what ``zeros: drop`` has taken.
        """
        shapes = run.masks.shapes
        kept = masks.allocate(shapes, prune_to, self.distribution)
        grown = masks.allocate(shapes, grow_to, self.distribution)
        smaller = {}
        for name, mask in run.masks.weight.items():
            score = self._importance(run, name)
            count = min(kept[name], int(mask.sum()))
            smaller[name] = masks.top_k(score, count, run.generator("prune"), among=mask)
            if self.zeros == "drop":
                smaller[name] &= run.masks.parameters[name].detach() != 0
        pruned = run.masks.replace(smaller).pruned
        if prune_to == grow_to:
            run.note_update(pruned, 0)
            return
        larger = {
            name: mask | masks.random_k(~mask, max(grown[name] - int(mask.sum()), 0), run.generator("grow"))
            for name, mask in smaller.items()
        }
        run.note_update(pruned, run.masks.replace(larger).grown)

    def _importance(self, run: Run, name: str) -> Tensor:
        weight = run.masks.parameters[name]
        current, memory = (
            self._sums[term][name] / self._batches if term in self._sums else None for term in ("stream", "memory")
        )
        if self.importance == "two-term":
            return importance(weight, current, memory, self.alpha, self.beta)
        parts = [gradient for gradient in (current, memory) if gradient is not None]
        merged = torch.stack(parts).sum(0) if parts else None
        if merged is not None and run.masks.gradient is not None:
            merged = merged * run.masks.gradient[name]
        return importance(weight, merged, None, self.alpha, 0.0)

    def _forget(self) -> None:
        self._sums, self._batches = {}, 0

    # -- plan and checkpoint ---------------------------------------------------------------------------------------
    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int] | None:
        if self.zeros == "drop" and self._without_growth(sparsity, clock):
            return None
        ended = clock.epoch >= clock.epochs
        in_force = sparsity if ended else self.sparsity_at(clock.task, clock.epoch, clock.epochs, sparsity)
        return masks.allocate(container.shapes, in_force, self.distribution)

    def _without_growth(self, sparsity: float, clock: Clock) -> bool:
        """Return whether the last update before ``clock`` grew nothing."""
        epoch = min(clock.epoch, clock.epochs - 1)
        if epoch < clock.epoch and self.sparsity_at(clock.task, epoch, clock.epochs, sparsity) != sparsity:
            return True  # expanded to the end of the task, which took the expansion back
        update = self.update_at(clock.task, epoch - epoch % self.interval, clock.epochs, sparsity)
        return update is not None and update[0] == update[1]

    def _ranks(self, sparsity: float, clock: Clock) -> bool:
        """Return whether the gradients of the step at ``clock`` enter the importance of the next update."""
        if sparsity == 0 or clock.steps - clock.step > self.batches:
            return False
        if clock.epoch + 1 == clock.epochs:
            return self.sparsity_at(clock.task, clock.epoch, clock.epochs, sparsity) != sparsity
        return self.update_at(clock.task, clock.epoch + 1, clock.epochs, sparsity) is not None

    def state(self) -> dict[str, Any]:
        return {"batches": self._batches, "sums": self._sums}

    def load(self, state: Mapping[str, Any]) -> None:
        self._batches, self._sums = state["batches"], {t: dict(g) for t, g in state["sums"].items()}
