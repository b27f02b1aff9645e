"""PackNet (Mallya & Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning").

Section 3: train the task on the weights that no earlier task keeps, with the earlier tasks' weights in the forward
pass but fixed; prune the given share of these free weights by magnitude, layer by layer; retrain the kept ones for
some epochs; fix them. The pruned ones are 0 and free for the next task. Evaluating task k uses the weights of the
tasks 0 .. k, so its accuracy cannot change any more. Task-IL only: the task says which weights to use.

The cell's sparsity is the pruned share of the free weights: 0.50 and 0.75 in the paper, 0.50 in SparCL's Table 1.
``retrain`` is 1/3 of a task's steps as in the paper, which trains 20 epochs and retrains 10. Biases and batch
normalization are fixed after the first task: the paper's default, where learning them per task brought nothing. From
scratch on ResNet-18 it brings five points and keeps the loss finite, so that its streams set ``batch_norm: per-task``
(docs/siblings.md). The authors retrain at a tenth of the first learning rate and leave the last task unpruned; here the
rate stays and every task is pruned. The paper prunes every convolution and starts from ImageNet weights; here the
maskable layers are partitioned, the others freeze after the first task, and there is no pre-training. A task's free
weights start at 0, as in the authors' code.

FLOPs. Executed: before pruning all weights are in the forward pass and the free ones have weight gradients, after it
the frozen and the kept ones and the kept ones; the dense layers have no weight gradient after the first task. Paper:
:func:`sparcl.costs.convention.isolation_paper_flops`.
"""

from __future__ import annotations

from baselines.isolation import FREE, Isolation, partition
from sparcl.components import Clock, Run
from sparcl.masks import MaskSet
from sparcl.methods import method, policy


@policy("packnet", "PackNet", family="isolation")
class PackNet(Isolation):
    """Iterative pruning: keep the largest ``|w|`` of a layer's free weights; see the module's docstring."""

    def prune(self, run: Run) -> None:
        scores = {name: weight.detach().abs() for name, weight in run.masks.parameters.items()}
        kept = self.largest(run, scores)
        exist = {name: (owner != FREE) | kept[name] for name, owner in self.owner.items()}
        pruned = run.masks.replace(exist).pruned
        run.masks.restrict_gradients(kept)
        run.note_update(pruned, 0)

    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int]:
        sizes = {name: parameter.numel() for name, parameter in container.parameters.items()}
        if not self.is_pruned(clock):
            return sizes
        return {name: sum(partition(size, sparsity, clock.task)[:2]) for name, size in sizes.items()}

    def planned_learning(
        self, container: MaskSet, weights: dict[str, int], sparsity: float, clock: Clock
    ) -> dict[str, int]:
        pruned = self.is_pruned(clock)
        parts = {name: partition(p.numel(), sparsity, clock.task) for name, p in container.parameters.items()}
        return {name: kept if pruned else kept + free for name, (_, kept, free) in parts.items()}

    def planned_view(self, container: MaskSet, sparsity: float, clock: Clock, task: int) -> dict[str, int]:
        last = min(task, clock.task)
        return {n: sum(partition(p.numel(), sparsity, last)[:2]) for n, p in container.parameters.items()}


method("packnet", "PackNet", "isolation", "finetune", task_il_only=True, sparsity="packnet")
