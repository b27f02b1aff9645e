"""LPS (Wang, Jian, Chowdhury, Wang, Dy & Ioannidis 2020, "Learn-Prune-Share for Lifelong Learning").

Every task gets a part of the network of its own, found by ADMM pruning, and learns which weights of the earlier tasks
it shares. With W the task's free weights of a layer, W' the frozen weights of all earlier tasks and M the sharing
mask, the forward pass uses W + M * W' and the problem is

    min  L(W, M)    s.t.  W has kept_t non-zeros,  M in {0, 1} with round(share |W'|) ones

A task begins with its free weights drawn anew from the initial distribution. They first train plainly, with every
earlier weight shared (M = 1); then comes ADMM (scaled form, one layer; rho grows tenfold from round to round, a round
starts with U = K = 0):

    W <- W - lr (dL/dW + rho (W - Z + U))         M <- M - lr (dL/dM + rho (M - Y + K)),   dL/dM = W' * dL/d(M W')
    Z <- the kept_t largest |W + U| of W + U, else 0      Y <- 1 at the round(share |W'|) largest M + K, else 0
    U <- U + W - Z                                        K <- K + M - Y

The W and M updates are one SGD step each; Z, U, Y, K are updated between the ``updates`` parts of a round. After the
last round W is pruned to its largest entries and M set to its largest entries, and the kept weights are retrained
with both masks fixed. Task-IL only: the task says which weights, and which sharing mask, to use.

What comes from where. The problem, the updates, fresh weights for each task, plain training before ADMM, M starting at
1, rho 0.01 with three tenfold rounds, a sharing ratio of 0.9, and plain training and retraining each as long as one
round (200 epochs each, so a fifth of the task) are those of the authors' code (neu-spiral/LPSforLifelong). Our reading:
3 updates of Z and Y a round, 2 of U and K, which start at 0 (the code updates Z and U every 3 epochs, Y and K every
10), since a task is far shorter here; the kept share of a layer's free weights is the same for every task, as
PackNet's, so that their rows compare (the code gives later tasks equal shares of the layer); the last task is pruned
like the others (the code keeps its plainly trained weights); what is not maskable freezes after the first task, but
batch normalization is one per task, since fresh weights change what it sees (the authors' networks have none; frozen
after the first task, the loss diverges on Split-CIFAR-10 within 4 steps of the second); the suite's SGD, without Adam,
cosine schedule, mixup and label smoothing; the last weights count, not those of the best test accuracy.
``sharing: all`` shares every earlier weight (as PackNet does), ``sharing: none`` none.

FLOPs. Executed: as PackNet, but where M is learned, during ADMM, every weight has a gradient (that of M at the frozen
ones), and after pruning only shared frozen weights are in the forward pass. Paper: as PackNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from baselines.isolation import FREE, Isolation, partition
from sparcl import masks
from sparcl.components import Clock, Run
from sparcl.masks import MaskSet
from sparcl.methods import method, policy
from sparcl.models import fresh_weights
from sparcl.parameters import parameter


def project_weights(values: Tensor, k: int, among: Tensor, generator: torch.Generator) -> Tensor:
    """Return the nearest tensor with ``k`` non-zeros, all in the mask ``among``: the Z update."""
    return values * masks.top_k(values.abs(), k, generator, among=among)


def project_share(values: Tensor, k: int, among: Tensor, generator: torch.Generator) -> Tensor:
    """Return the 0/1 tensor with ones at the ``k`` largest ``values`` of the mask ``among``: the Y update."""
    return masks.top_k(values, k, generator, among=among).to(values.dtype)


@policy("lps", "LPS", family="isolation")
class LPS(Isolation):
    """Learn, prune, share; see the module's docstring for the problem, the updates and their source.

    Attributes:
        frozen: values of the earlier tasks' weights per layer; 0 elsewhere.
        shared: per task (as text) and layer, bool mask of the earlier weights that the task shares.
        auxiliary: the ADMM variables "U", "Z", and "M", "K", "Y" while a task learns what to share, per layer.
    """

    warm: float = parameter(0.2, "fraction of a task's steps that train plainly before ADMM", low=0, high=1)
    retrain: float = parameter(0.2, "fraction of a task's steps that train the kept weights", low=0, high=1)
    batch_norm: str = parameter(
        "per-task", "batch normalization: one per task, or frozen after the first", choices=("per-task", "frozen")
    )
    rho: float = parameter(0.01, "ADMM's penalty in the first round", low=0)
    rounds: int = parameter(3, "ADMM rounds; rho grows tenfold from one to the next", low=1, high=10)
    updates: int = parameter(3, "parts of a round: each begins with Z and Y, all but the first with U and K too", low=1)
    sharing: str = parameter("learned", "which earlier weights a task uses", choices=("learned", "all", "none"))
    share: float = parameter(0.9, "fraction of the earlier weights that a task shares", low=0, high=1)

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.frozen: dict[str, Tensor] = {}
        self.shared: dict[str, dict[str, Tensor]] = {}
        self.auxiliary: dict[str, dict[str, Tensor]] = {}

    # -- schedule --------------------------------------------------------------------------------------------------
    def admm(self, clock: Clock) -> range:
        """Return the steps of the task of ``clock`` that are ADMM's: after plain training, before pruning."""
        end = self.prune_step(clock)
        return range(min(round(self.warm * clock.task_steps), end), end)

    def part_at(self, step: int, steps: int) -> int:
        """Return the part of ADMM that ``step`` of its ``steps`` lies in; ``updates`` parts make a round."""
        return step * self.rounds * self.updates // steps

    def rho_at(self, step: int, steps: int) -> float:
        """Return rho in force at ``step`` of ``steps``."""
        return self.rho * 10.0 ** (self.part_at(step, steps) // self.updates)

    def share_count(self, earlier: int) -> int:
        """Return how many of ``earlier`` frozen weights of a layer a task shares."""
        fraction = {"learned": self.share, "all": 1.0, "none": 0.0}[self.sharing]
        return round(earlier * Fraction(str(fraction)))

    # -- the run ---------------------------------------------------------------------------------------------------
    def start(self, run: Run) -> None:
        super().start(run)
        self.frozen = {name: torch.zeros_like(p.detach()) for name, p in run.masks.parameters.items()}

    @torch.no_grad()
    def begin_task(self, run: Run) -> None:
        super().begin_task(run)
        self.auxiliary = {}
        if run.phase.index:
            for name, free in self.free().items():
                weight = run.masks.parameters[name]
                weight[free] = fresh_weights(weight, int(free.sum()), run.generator("fresh-weights"))
        if 0 in self.admm(run.clock):
            self._start_admm(run)

    def trained_with(self, task: int) -> dict[str, Tensor]:
        return self.free() if self.sharing == "none" else super().trained_with(task)

    def after_step(self, run: Run) -> None:
        super().after_step(run)
        admm, following = self.admm(run.clock), run.clock.task_step + 1
        if following not in admm:
            return
        if following == admm.start:
            self._start_admm(run)
            return
        old, new = (self.part_at(step - admm.start, len(admm)) for step in (following - 1, following))
        if new // self.updates != old // self.updates:
            self._start_round(run)
        elif new != old:
            self._update_duals(run)

    def _start_admm(self, run: Run) -> None:
        if run.phase.index and self.sharing == "learned":
            run.masks.restrict_gradients(None)
            self.auxiliary["M"] = {name: torch.ones_like(p) for name, p in self.frozen.items()}
        self._start_round(run)

    def _start_round(self, run: Run) -> None:
        for letter in "UK"[: 1 + ("M" in self.auxiliary)]:
            self.auxiliary[letter] = {name: torch.zeros_like(p) for name, p in self.frozen.items()}
        self._project(run)

    def _project(self, run: Run) -> None:
        """Update Z, and Y if M is learned."""
        generator = run.generator("prune")
        self.auxiliary["Z"] = {}
        if "M" in self.auxiliary:
            self.auxiliary["Y"] = {}
        for name, free in self.free().items():
            earlier, kept, _ = partition(free.numel(), run.cell.sparsity, run.phase.index)
            values = run.masks.parameters[name].detach() + self.auxiliary["U"][name]
            self.auxiliary["Z"][name] = project_weights(values, kept, free, generator)
            if "M" in self.auxiliary:
                values = self.auxiliary["M"][name] + self.auxiliary["K"][name]
                self.auxiliary["Y"][name] = project_share(values, self.share_count(earlier), ~free, generator)

    def _update_duals(self, run: Run) -> None:
        """Update Z and Y, then U and K."""
        self._project(run)
        for name in self.owner:
            weight = run.masks.parameters[name].detach()
            self.auxiliary["U"][name] += weight - self.auxiliary["Z"][name]
            if "M" in self.auxiliary:
                self.auxiliary["K"][name] += self.auxiliary["M"][name] - self.auxiliary["Y"][name]

    def on_gradients(self, run: Run) -> bool:
        if run.clock.task_step in self.admm(run.clock):
            self._augment(run)
        return super().on_gradients(run)

    @torch.no_grad()
    def _augment(self, run: Run) -> None:
        """Add the gradient of the augmented Lagrangian at the free weights; take M's step at the frozen ones."""
        admm = self.admm(run.clock)
        rho = self.rho_at(run.clock.task_step - admm.start, len(admm))
        a = self.auxiliary
        for name, weight in run.masks.parameters.items():
            gradient, free = weight.grad, self.owner[name] == FREE
            assert gradient is not None
            if "M" in a:
                m, y, k = a["M"][name], a["Y"][name], a["K"][name]
                step = gradient * self.frozen[name] + rho * (m - y + k)
                m.sub_(step.masked_fill_(free, 0), alpha=run.cell.learning_rate)
                weight.copy_(torch.where(free, weight, m * self.frozen[name]))
            pull = rho * (weight - a["Z"][name] + a["U"][name])
            gradient.add_(pull).mul_(free)

    def prune(self, run: Run) -> None:
        scores = {name: weight.detach().abs() for name, weight in run.masks.parameters.items()}
        kept = self.largest(run, scores)
        shared = {}
        for name, free in self.free().items():
            count = self.share_count(int((~free).sum()))
            values = self.auxiliary["M"][name] if "M" in self.auxiliary else torch.ones_like(self.frozen[name])
            shared[name] = masks.top_k(values, count, run.generator("prune"), among=~free)
            with torch.no_grad():
                weight = run.masks.parameters[name]
                weight.copy_(torch.where(free, weight, self.frozen[name]))
        self.shared[str(run.phase.index)] = shared
        pruned = run.masks.replace({name: kept[name] | shared[name] for name in kept}).pruned
        run.masks.restrict_gradients(kept)
        run.note_update(pruned, 0)
        self.auxiliary = {}

    @torch.no_grad()
    def end_task(self, run: Run) -> None:
        super().end_task(run)
        for name, weight in run.masks.parameters.items():
            own = self.owner[name] == run.phase.index
            self.frozen[name] = torch.where(own, weight.detach(), self.frozen[name])
            weight.copy_(self.frozen[name])
        run.masks.adopt({name: owner != FREE for name, owner in self.owner.items()})
        run.masks.restrict_gradients({name: owner == run.phase.index for name, owner in self.owner.items()})

    def shown(self, task: int) -> dict[str, Tensor]:
        last = min(task, len(self.shared) - 1)
        if last < 0:
            return super().shown(task)
        return {name: (owner == last) | self.shared[str(last)][name] for name, owner in self.owner.items()}

    # -- plan and checkpoint ---------------------------------------------------------------------------------------
    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int]:
        sizes = {name: parameter.numel() for name, parameter in container.parameters.items()}
        if not self.is_pruned(clock):
            if clock.task and self.sharing == "none":
                return {name: size - partition(size, sparsity, clock.task)[0] for name, size in sizes.items()}
            return sizes
        return self.planned_view(container, sparsity, clock, clock.task)

    def planned_learning(
        self, container: MaskSet, weights: dict[str, int], sparsity: float, clock: Clock
    ) -> dict[str, int]:
        pruned = self.is_pruned(clock)
        if clock.task_step in self.admm(clock) and self.sharing == "learned":
            return weights
        parts = {name: partition(p.numel(), sparsity, clock.task) for name, p in container.parameters.items()}
        return {name: kept if pruned else kept + free for name, (_, kept, free) in parts.items()}

    def planned_view(self, container: MaskSet, sparsity: float, clock: Clock, task: int) -> dict[str, int]:
        last = min(task, clock.task)
        parts = {name: partition(p.numel(), sparsity, last) for name, p in container.parameters.items()}
        return {name: kept + self.share_count(earlier) for name, (earlier, kept, _) in parts.items()}

    def state(self) -> dict[str, Any]:
        return super().state() | {"frozen": self.frozen, "shared": self.shared, "auxiliary": self.auxiliary}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.frozen = dict(state["frozen"])
        self.shared = {task: dict(layers) for task, layers in state["shared"].items()}
        self.auxiliary = {letter: dict(layers) for letter, layers in state["auxiliary"].items()}


method("lps", "LPS", "isolation", "finetune", task_il_only=True, sparsity="lps")
