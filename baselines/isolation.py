"""What PackNet and LPS share: a partition of the maskable weights into one part per task, and all that freezes.

Every maskable weight belongs to the task that kept it or is free. A task trains the free weights of a layer beside
the frozen ones, keeps ``round((1 - s) free)`` of them at the cell's sparsity ``s`` and leaves the others, at 0, to the
next task. With ``n`` weights in a layer, exactly:

    free_0 = n        kept_t = round((1 - s) free_t)        free_{t+1} = free_t - kept_t

When a layer has no free weight left, its kept counts are 0 and the task uses what is there.

What is not maskable (stem, shortcuts, biases of hidden layers) is trained in the first task and frozen after it.
Batch normalization is frozen with it (``batch_norm: frozen``, the source's choice) or kept once per task
(``batch_norm: per-task``). Of the classifier a task trains the rows of its own classes alone. So the function that
computes task k's logits is the same, bit for bit, after every later task.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparcl import masks
from sparcl.cell import Cell
from sparcl.components import Clock, Run, SparsityPolicy, accounting
from sparcl.costs.convention import isolation_paper_flops
from sparcl.costs.ledger import LayerCost
from sparcl.models import Classifier
from sparcl.parameters import parameter

FREE = -1


def partition(size: int, sparsity: float, task: int) -> tuple[int, int, int]:
    """Return (frozen, kept, free): weights of a layer of earlier tasks, of ``task``, and left over after it."""
    free = size
    for _ in range(task):
        free -= masks.keep_count(free, sparsity)
    kept = masks.keep_count(free, sparsity)
    return size - free, kept, free - kept


def own_rows(head: nn.Linear, classes: range) -> None:
    """Make the gradient of the head's rows and biases of all other classes than ``classes`` exactly 0."""
    for own in (head.weight, head.bias):
        if own is not None and own.grad is not None:
            own.grad[: classes.start] = 0
            own.grad[classes.stop :] = 0


def norm_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return scale, shift and statistics of every batch normalization by name."""
    return {
        f"{name}.{key}": tensor
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }


def freeze_dense(model: Classifier, freeze_norms: bool) -> None:
    """Freeze every parameter but the maskable weights and the head, and batch normalization if ``freeze_norms``."""
    norms = norm_tensors(model)
    for name, tensor in model.named_parameters():
        learns = name in model.maskable_names or name.startswith("head.") or (name in norms and not freeze_norms)
        if not learns:
            tensor.requires_grad_(False)
            tensor.grad = None
    if freeze_norms:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def dense_layers(model: Classifier) -> set[str]:
    """Return the convolution and linear weights that freeze after the first task."""
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return layers - set(model.maskable_names) - {"head.weight"}


class Isolation(SparsityPolicy):
    """A task's weights are its own: subclasses say how they are found.

    Attributes:
        owner: int16 tensor per layer: the task that keeps the weight, or ``FREE``.
        norms: batch normalization per task, if ``batch_norm`` is "per-task".
    """

    learners: ClassVar = ()
    retrain: float = parameter(
        1 / 3, "fraction of a task's steps that train the kept weights after pruning", low=0, high=1
    )
    batch_norm: str = parameter(
        "frozen", "batch normalization: frozen after the first task, or one per task", choices=("frozen", "per-task")
    )

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.owner: dict[str, Tensor] = {}
        self.norms: dict[str, dict[str, Tensor]] = {}

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        if fields["sparsity"] == 0:
            return f"sparsity: {self.name} needs more than 0 (at 0 the first task keeps every weight), got 0"
        return None

    # -- the run ---------------------------------------------------------------------------------------------------
    def start(self, run: Run) -> None:
        self.owner = {name: torch.full_like(mask, FREE, dtype=torch.int16) for name, mask in run.masks.weight.items()}

    def freeze(self, model: Classifier, cell: Cell, task: int) -> None:
        if task:
            freeze_dense(model, self.batch_norm == "frozen")

    def begin_task(self, run: Run) -> None:
        churn = run.masks.replace(self.trained_with(run.phase.index))
        if churn.pruned or churn.grown:
            run.note_update(churn.pruned, churn.grown)
        if run.phase.index:
            run.masks.restrict_gradients(self.free())

    def on_gradients(self, run: Run) -> bool:
        own_rows(run.model.head, run.phase.classes)
        return True

    def after_step(self, run: Run) -> None:
        if run.clock.task_step + 1 == self.prune_step(run.clock):
            self.prune(run)

    def end_task(self, run: Run) -> None:
        task = run.phase.index
        for name, owner in self.owner.items():
            owner[run.masks.weight[name] & (owner == FREE)] = task
        if self.batch_norm == "per-task":
            self.norms[str(task)] = {n: t.detach().clone() for n, t in norm_tensors(run.model).items()}

    def prune(self, run: Run) -> None:
        """Decide which free weights the task keeps, make the others 0, and let only the kept ones learn."""
        raise NotImplementedError

    def free(self) -> dict[str, Tensor]:
        """Return per layer the bool mask of the weights that no earlier task keeps."""
        return {name: owner == FREE for name, owner in self.owner.items()}

    def largest(self, run: Run, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return per layer the mask of the free weights with the largest ``scores`` that this task keeps."""
        sparsity, task = run.cell.sparsity, run.phase.index
        kept = {}
        for name, free in self.free().items():
            count = partition(free.numel(), sparsity, task)[1]
            kept[name] = masks.top_k(scores[name], count, run.generator("prune"), among=free)
        return kept

    def trained_with(self, task: int) -> dict[str, Tensor]:
        """Return per layer the mask of the weights in the forward pass before ``task`` is pruned."""
        return {name: torch.ones_like(owner, dtype=torch.bool) for name, owner in self.owner.items()}

    def prune_step(self, clock: Clock) -> int:
        """Return after how many of its steps the task of ``clock`` is pruned."""
        return max(1, clock.task_steps - round(self.retrain * clock.task_steps))

    def is_pruned(self, clock: Clock) -> bool:
        """Return whether the step at ``clock`` comes after pruning."""
        return clock.task_step >= self.prune_step(clock)

    # -- evaluation ------------------------------------------------------------------------------------------------
    def shown(self, task: int) -> dict[str, Tensor]:
        """Return per layer the mask of the weights that ``task`` uses at evaluation."""
        return {name: (owner != FREE) & (owner <= task) for name, owner in self.owner.items()}

    @contextlib.contextmanager
    def view(self, run: Run, task: int) -> Iterator[None]:
        if not self.owner:
            yield
            return
        weights = run.masks.parameters
        masked = self.shown(task)
        saved = {name: weights[name].detach().clone() for name in masked}
        norms = self.norms.get(str(task), {})
        own = norm_tensors(run.model)
        saved_norms = {name: own[name].detach().clone() for name in norms}
        with torch.no_grad():
            for name, mask in masked.items():
                weights[name].masked_fill_(~mask, 0)
            for name, tensor in norms.items():
                own[name].copy_(tensor)
        run.ledger.set_weight_counts({name: int(mask.sum()) for name, mask in masked.items()})
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in saved.items():
                    weights[name].copy_(tensor)
                for name, tensor in saved_norms.items():
                    own[name].copy_(tensor)
            run.ledger.set_weight_counts(run.masks.counts())

    # -- plan and checkpoint ---------------------------------------------------------------------------------------
    def planned_frozen(self, model: Classifier, sparsity: float, clock: Clock) -> set[str]:
        return dense_layers(model) if clock.task else set()

    @accounting
    def published_flops(self, cell: Cell, costs: Sequence[LayerCost], sizes: Sequence[int]) -> float:
        return isolation_paper_flops(costs, sizes, cell.epochs, cell.sparsity)

    def state(self) -> dict[str, Any]:
        return {"owner": self.owner, "norms": self.norms}

    def load(self, state: Mapping[str, Any]) -> None:
        self.owner = dict(state["owner"])
        self.norms = {task: dict(tensors) for task, tensors in state["norms"].items()}
