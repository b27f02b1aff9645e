"""The training loop: one walk through the stream, the same for every method.

:class:`Run` is the state of a run (model, masks, memory, clock, random generators, ledger, results so far);
:func:`train` is the loop. Everything a run draws at random comes from generators named after their purpose
(:mod:`sparcl.seeding`): data order and augmentation depend on (seed, task, epoch) alone, per sample, so they are the
same for every method; sequential draws (memory, replay, masks) have a generator each, whose state is checkpointed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparcl import components, methods, models, seeding
from sparcl.cell import Cell
from sparcl.components import (
    Batch,
    Clock,
    DataPolicy,
    GradientPolicy,
    Learner,
    Phase,
    Policy,
    Replay,
    SparsityPolicy,
)
from sparcl.costs.ledger import EVALUATION, Ledger, layer_costs
from sparcl.errors import RunError
from sparcl.kernels.attach import attach
from sparcl.masks import DENSITIES, Density, MaskSet
from sparcl.memory import ReservoirMemory
from sparcl.models import EVALUATION_BATCH, evaluation_mode
from sparcl.optimizer import SGD
from sparcl.protocol import Protocol
from sparcl.streams import Stream, augment


class Interrupted(Exception):
    """The run was asked to stop and has left a checkpoint."""


class Diverged(RunError):
    """The loss or a weight is no finite number any more: a result, with the clock at which it came out."""

    def __init__(self, what: str, clock: Clock):
        self.clock = clock
        super().__init__(f"{what} is not finite in task {clock.task}, epoch {clock.epoch}, step {clock.step}")


class Run(components.Run):
    """The state of one run of a cell on its stream."""

    state_version: ClassVar[int] = 1

    def __init__(self, cell: Cell, stream: Stream):
        self.cell, self.stream, self.info = cell, stream, stream.info
        self.device = torch.device(cell.device)
        method = methods.get(cell.method)
        self.protocol: Protocol = cell.component(Protocol)
        parts = methods.parts(cell)
        self.learner: Learner = parts.learner
        self.sparsity: SparsityPolicy = parts.sparsity
        self.gradient: GradientPolicy = parts.gradient
        self.data: DataPolicy = parts.data
        self.policies: list[Policy] = [self.sparsity, self.gradient, self.data]
        self.task_il_only = method.task_il_only

        initial = seeding.generator(cell.seed, "initial-weights")
        model = models.build(cell.model, cell.width, self.info.classes, self.info.shape, initial)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.protocol.bn_momentum
        self.ledger = Ledger(layer_costs(model, self.info.shape))
        self.learner.equip(model, cell, self.info)
        self.model: models.Classifier = model.to(self.device).to(memory_format=torch.channels_last)
        weights = dict(self.model.named_parameters())
        self.masks = MaskSet({name: weights[name] for name in models.maskable(self.model)})
        self.network = attach(self.model, cell.kernel, cell.sparsity, cell.precision, cell.device)
        if self.network is not None:
            self.network.accumulate = self.learner.outputs_only
        self.memory = ReservoirMemory(cell.buffer, self.info.shape, self.info.classes, self.device)
        self.term_gradients: dict[str, dict[str, Tensor]] = {}
        self._together = True
        self.phases = phases(stream, self.learner.offline)
        self.phase = self.phases[0]
        self.clock = Clock()
        self.resuming = False
        self._generators: dict[str, torch.Generator] = {}
        self._ledger_version = -1

        tasks = len(stream.tasks)
        self.accuracy: dict[str, list[list[float | None]]] = {
            kind: [[None] * tasks for _ in range(tasks)] for kind in ("class_il", "task_il")
        }
        self.untrained: dict[str, list[float | None]] = {}
        self.mask_history: list[dict[str, Any]] = []
        self.removed: list[list[dict[str, float]]] = []
        self.presented: list[int] = []
        self.losses: list[list[float]] = []
        self.seconds = {"train": 0.0, "evaluation": 0.0}
        self.resumed = 0

    # -- what policies and learners use ----------------------------------------------------------------------------
    def generator(self, purpose: str) -> torch.Generator:
        """Return the run's sequential generator for ``purpose``; its state survives a checkpoint."""
        if purpose not in self._generators:
            self._generators[purpose] = seeding.generator(self.cell.seed, purpose)
        return self._generators[purpose]

    def draw_replay(self) -> Replay:
        """Draw one replayed batch of the stream batch's nominal size: augmented afresh and normalized."""
        drawn = self.memory.draw(self.cell.batch_size, self.generator("replay"), self._drawable())
        draws = augment.draw(len(drawn.images), self.info, self.generator("replay-augment"))
        return self.network_input(drawn.images, draws), drawn.labels, drawn.logits

    def _drawable(self) -> Tensor | None:
        """Return which memory slots may be replayed: not those of samples that this task's data policy removed."""
        if not self.removed[-1] or self.data.replays_removed:
            return None
        here = (self.memory.tasks == self.phase.index) & (self.memory.positions >= 0)
        return ~here | self.present[torch.where(here, self.memory.positions, 0)]

    def network_input(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return uint8 ``images`` (N, C, H, W), augmented by ``draws`` if given, as the model's input."""
        if draws is not None and (self.info.pad or self.info.flip):
            images = augment.apply(images, draws, self.info)
        return augment.normalize(images, self.info, self.device)

    @property
    def pool_size(self) -> int:
        """Number of samples in the current task's pool, removed ones included."""
        return len(self.pool_labels)

    def remove_samples(self, which: Tensor, tied: float = 0.0) -> None:
        """Remove the samples of the bool mask ``which`` (pool,) for the rest of the task."""
        self.present &= ~which
        count, remaining = int(which.sum()), int(self.present.sum())
        self.removed[-1].append({"epoch": self.clock.epoch, "removed": count, "remaining": remaining, "tied": tied})

    def note_update(self, pruned: int, grown: int) -> None:
        """Write a mask update into the record: how many weights left and how many came."""
        clock, size = self.clock, max(self.masks.size(), 1)
        self.mask_history.append(
            {
                "task": clock.task, "epoch": clock.epoch, "step": clock.step, "density": self.masks.density(),
                "gradient_density": self.masks.gradient_density(), "pruned": pruned, "grown": grown,
                "churn": pruned / size,
            }
        )  # fmt: skip

    def note_gradients(self) -> None:
        """Write the density of a new gradient mask into the record: into this epoch's update, or on its own."""
        clock, last = self.clock, self.mask_history[-1] if self.mask_history else None
        density = self.masks.gradient_density()
        if last is not None and (last["task"], last["epoch"]) == (clock.task, clock.epoch):
            last["gradient_density"] = density
        elif last is None or last["gradient_density"] != density:
            self.note_update(pruned=0, grown=0)

    def sync_ledger(self) -> None:
        """Tell the ledger how many weights exist and learn, if that has changed."""
        if self._ledger_version != self.masks.version:
            self.ledger.set_weight_counts(self.masks.counts())
            self.ledger.set_gradient_counts(self.masks.gradient_counts())
            self._ledger_version = self.masks.version

    def gradients_wanted(self) -> dict[str, Density]:
        """Return what the policies want of this step's weight gradients beyond what it applies: line to density."""
        return {
            line: density
            for policy in self.policies
            for line, density in policy.gradients_wanted(self.cell.sparsity, self.clock).items()
        }

    def wants_terms(self) -> bool:
        """Return whether a policy wants this step's gradients by loss term."""
        return any(p.by_term and p.gradients_wanted(self.cell.sparsity, self.clock) for p in self.policies)

    def logits(self, *passes: Tensor) -> list[Tensor]:
        """Return the logits (n, classes) of every pass (n, C, H, W), each with its own batch statistics in training.

        The sparse kernel takes all passes through the network together, unless terms are differentiated one by one.
        """
        if self.network is None or not self.network.usable(passes[0]):
            return [self.model(images) for images in passes]
        self.network.follow(self.masks)
        calls = [passes] if self._together else [(images,) for images in passes]
        return [
            logits
            for call in calls
            for logits in self.model.head(self.network.joined(call)).split([len(images) for images in call])
        ]

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, D) of ``images`` (N, C, H, W)."""
        if self.network is None or not self.network.usable(images):
            return self.model.features(images)
        self.network.follow(self.masks)
        return self.network.joined([images])

    def backward(
        self, batch: Batch, replays: list[Replay], positions: Density = "dense", by_term: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the summed loss in ``parameter.grad``; return the loss () and stream logits (N, C).

        ``positions`` says at which maskable weights the gradients are needed: the sparse kernel computes no others.
        With ``by_term`` the terms are differentiated one by one and ``term_gradients`` holds each term's gradient of
        every maskable weight; their sum is the step's gradient either way.
        """
        self.batch, self._together = batch, not by_term
        if self.network is None:
            self.optimizer.zero_grad()
        else:
            self.network.positions = positions
            self.network.zero_gradients(self.optimizer)
        with self.autocast():
            terms, logits = self.learner.terms(self, batch.images, batch.labels, replays)
        self.term_gradients = {}
        if not by_term:
            torch.stack(list(terms.values())).sum().backward()
        else:
            before: dict[str, Tensor] = {}
            for name, term in terms.items():
                term.backward()
                total = {n: p.grad.detach().clone() for n, p in self.masks.parameters.items() if p.grad is not None}
                self.term_gradients[name] = {n: g - before[n] if n in before else g for n, g in total.items()}
                before = total
        self._together = True
        loss = torch.stack([term.detach().double() for term in terms.values()]).sum()
        return loss, logits.detach().float()

    def update(self) -> None:
        """One step of the optimizer: learning weights move, masked weights stay exactly 0."""
        if self.network is None:
            self.masks.mask_gradients()
            self.optimizer.step()
            self.masks.project()
        else:
            self.network.follow(self.masks)
            self.network.step(self.optimizer)

    def autocast(self) -> torch.autocast:
        """Return the context in which the model computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cell.precision == "bfloat16")

    # -- state -----------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Return all that a continuation needs: nested dicts of tensors and JSON values."""
        return {
            "version": self.state_version,
            "model": dict(self.model.state_dict()),
            "optimizer": {n: self.optimizer.momenta[p] for n, p in self.model.named_parameters()
                          if p in self.optimizer.momenta},
            "masks": self.masks.state(),
            "memory": self.memory.state(),
            "learner": self.learner.state(),
            "policies": {str(i): policy.state() for i, policy in enumerate(self.policies)},
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
            "ledger": self.ledger.state(),
            "present": self.present,
            "loss_sum": self.loss_sum,
            "position": {"task": self.phase.index, "epoch": self.clock.epoch, "step": self.clock.step},
            "results": {
                "accuracy": self.accuracy, "untrained": self.untrained, "mask_history": self.mask_history,
                "removed": self.removed, "presented": self.presented, "losses": self.losses,
                "seconds": self.seconds, "resumed": self.resumed,
            },
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`: the loop goes on with the step after the one that was saved."""
        for name, value in state["results"].items():
            setattr(self, name, value)
        position = state["position"]
        self.phase = self.phases[position["task"]]
        self.masks.load(state["masks"])
        self.memory.load(state["memory"])
        self._generators = {}
        for name, saved in state["generators"].items():
            self.generator(name).set_state(saved.cpu())
        self.learner.load(state["learner"])
        for index, policy in enumerate(self.policies):
            policy.load(state["policies"][str(index)])
        self.model.load_state_dict(state["model"])
        self.ledger.load(state["ledger"])
        self._ledger_version = -1
        self.enter_phase()
        for name, parameter in self.model.named_parameters():
            if name in state["optimizer"]:
                self.optimizer.momenta[parameter] = torch.empty_like(parameter).copy_(state["optimizer"][name]).detach()
        self.present.copy_(state["present"])
        self.loss_sum.copy_(state["loss_sum"])
        self.resumed += 1
        self.resuming = True
        self.clock = self.clock_at(position["epoch"], position["step"])
        self.freeze()
        for part in self.parts:
            part.resume(self)

    @property
    def parts(self) -> tuple[components.Component, ...]:
        """The learner, then the policies."""
        return (self.learner, *self.policies)

    def freeze(self) -> None:
        """Take the gradients from what is not trained during the task."""
        for part in self.parts:
            part.freeze(self.model, self.cell, self.phase.index)

    def enter_phase(self) -> None:
        """Bring the current phase's pool to the device and make its optimizer."""
        index = self.phase.train_index
        images = self.stream.train_images[index].to(self.device)
        labels = self.stream.train_labels[index].to(self.device)
        self.pool_images, self.pool_labels = self.learner.pool(self, images, labels)
        self.present = torch.ones(len(self.pool_labels), dtype=torch.bool, device=self.device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.optimizer = SGD(self.model.parameters(), self.cell.learning_rate, self.protocol.momentum)
        self.masks.momenta = self.optimizer.momenta

    def clock_at(self, epoch: int, step: int = 0) -> Clock:
        """Return the clock of a step of the phase; ``steps`` are those of the samples that are still there."""
        nominal = self.protocol.steps(self.pool_size, self.cell.batch_size)
        steps = self.protocol.steps(int(self.present.sum()), self.cell.batch_size)
        return Clock(
            task=self.phase.index, tasks=len(self.phases), epoch=epoch, epochs=self.cell.epochs, step=step,
            steps=steps, task_step=epoch * nominal + step, task_steps=self.cell.epochs * nominal,
        )  # fmt: skip


def phases(stream: Stream, offline: bool) -> list[Phase]:
    """Return the stretches of training of a stream: its tasks, or one of everything."""
    tasks = stream.tasks
    if not offline:
        return [Phase(t.index, t.index, t.classes, t.train_index) for t in tasks]
    everything = torch.cat([t.train_index for t in tasks])
    return [Phase(0, len(tasks) - 1, range(stream.info.classes), everything)]


# -- the loop ----------------------------------------------------------------------------------------------------------
Watch = Callable[[Run], None]


def train(run: Run, after_step: Watch = lambda run: None, after_task: Watch = lambda run: None) -> None:
    """Train ``run`` through its stream, evaluating all tasks after each one.

    ``after_step`` and ``after_task`` watch (progress, checkpoints, stop requests) and change nothing.

    Raises:
        Diverged: a loss that is not finite, with task, epoch and step.
    """
    if not run.resuming:
        run.untrained = evaluate(run, seen=run.info.classes)
        run.learner.start(run)
        for policy in run.policies:
            policy.start(run)
    for phase in run.phases[run.phase.index :]:
        if not run.resuming:
            begin_task(run, phase)
        for epoch in range(run.clock.epoch, run.cell.epochs):
            if not run.resuming:
                begin_epoch(run, epoch)
            run.resuming = False
            for batch in batches(run):
                step(run, batch)
                after_step(run)
            end_epoch(run)
        end_task(run)
        after_task(run)


def begin_task(run: Run, phase: Phase) -> None:
    """Enter a phase: prepare the network and its data, then the hooks ``begin_task``, the learner's first."""
    run.phase = phase
    run.enter_phase()
    run.clock = run.clock_at(0)
    run.removed.append([])
    run.presented.append(0)
    run.losses.append([])
    run.freeze()
    run.ledger.set_frozen(components.frozen(run.parts, run.model, run.cell.sparsity, run.clock))
    for part in run.parts:
        part.begin_task(run)


def begin_epoch(run: Run, epoch: int) -> None:
    """Start an epoch: its clock, an empty loss, then the policies' hooks ``begin_epoch``."""
    run.clock = run.clock_at(epoch)
    run.loss_sum.zero_()
    for policy in run.policies:
        policy.begin_epoch(run)


def batches(run: Run) -> Iterator[Batch]:
    """Yield the epoch's remaining batches; order and augmentation depend on (seed, task, epoch, sample) alone."""
    cell, clock = run.cell, run.clock
    key = (run.phase.index, clock.epoch)
    order = torch.randperm(run.pool_size, generator=seeding.generator(cell.seed, "order", *key)).to(run.device)
    order = order[run.present[order]]
    samples = len(order)
    draws = augment.draw(run.pool_size, run.info, seeding.generator(cell.seed, "augment", *key)).to(run.device)
    for index in range(clock.step, clock.steps):
        start, stop = run.protocol.bounds(samples, cell.batch_size, index)
        positions = order[start:stop]
        raw = run.pool_images[positions]
        yield Batch(positions, raw, run.network_input(raw, draws[positions]), run.pool_labels[positions])


def step(run: Run, batch: Batch) -> None:
    """One training step: loss, backward, which weights learn, update, which weights exist, which samples stay."""
    started = time.perf_counter()
    replays = run.learner.replay(run)
    wanted = run.gradients_wanted()
    positions = max(("masked", *wanted.values()), key=DENSITIES.index)
    loss, logits = run.backward(batch, replays, positions, run.wants_terms())
    run.loss_sum += loss
    if run.device.type == "cpu" and not bool(torch.isfinite(loss)):
        raise Diverged("the loss", run.clock)
    run.learner.remember(run, batch, logits)

    run.learner.adjust_gradients(run)
    add_weight_decay(run)
    proceed = run.sparsity.on_gradients(run)
    run.gradient.on_gradients(run)
    run.sync_ledger()
    run.ledger.step(len(batch.labels), sum(len(images) for images, _, _ in replays), wanted)
    if proceed:
        run.update()
        run.learner.after_step(run)
    run.sparsity.after_step(run)

    run.data.observe(run, batch.positions, logits, batch.labels)
    run.presented[-1] += len(batch.labels)
    clock = run.clock
    run.clock = replace(clock, step=clock.step + 1, task_step=clock.task_step + 1)
    run.seconds["train"] += time.perf_counter() - started


def add_weight_decay(run: Run) -> None:
    """Add the L2 term before the masks act, so that a weight that does not learn does not decay either."""
    if run.protocol.weight_decay:
        for parameter in run.model.parameters():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=run.protocol.weight_decay)
    if run.protocol.freeze_bn_bias:
        for module in run.model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.bias is not None and module.bias.grad is not None:
                module.bias.grad.zero_()


def end_epoch(run: Run) -> None:
    """Note the epoch's mean loss, then the policies' hooks ``end_epoch``.

    Raises:
        Diverged: the mean loss is not finite.
    """
    mean = float(run.loss_sum) / max(run.clock.steps, 1)
    if mean != mean or mean in (float("inf"), float("-inf")):
        raise Diverged("the loss", replace(run.clock, step=run.clock.steps - 1))
    run.losses[-1].append(mean)
    for policy in run.policies:
        policy.end_epoch(run)


def end_task(run: Run) -> None:
    """Run the hooks ``end_task``, the learner's last, and evaluate on every task: one row of the accuracy matrices."""
    for policy in run.policies:
        policy.end_task(run)
    run.learner.end_task(run)
    row = evaluate(run, seen=run.phase.classes.stop)
    for kind, values in row.items():
        run.accuracy[kind][run.phase.row] = values
    run.clock = run.clock_at(0)


# -- evaluation --------------------------------------------------------------------------------------------------------
@torch.no_grad()
def evaluate(run: Run, seen: int) -> dict[str, list[float | None]]:
    """Return {"class_il", "task_il"}: accuracy in percent on every task's test set (T,).

    Class-IL is the largest score among the ``seen`` first classes, Task-IL among the task's own classes. Training
    state is left alone: the model is in eval mode meanwhile, and nothing is drawn at random.
    """
    started = time.perf_counter()
    run.sync_ledger()
    tasks = run.stream.tasks
    with evaluation_mode(run.model):
        if run.sparsity.has_views:
            found = []
            for task in tasks:
                with run.sparsity.view(run, task.index):
                    found.append(_scores(run, task.test_index))
        else:  # all tasks in large batches
            together = _scores(run, torch.cat([task.test_index for task in tasks]))
            found = list(together.split([len(task.test_index) for task in tasks]))
    rows: dict[str, list[float | None]] = {"class_il": [], "task_il": []}
    for task, scores in zip(tasks, found, strict=True):
        labels = run.stream.test_labels[task.test_index].to(run.device)
        own = scores[:, task.classes.start : task.classes.stop].argmax(1) + task.classes.start
        right = torch.stack([(scores[:, :seen].argmax(1) == labels).sum(), (own == labels).sum()])
        class_il, task_il = (100 * right.cpu().double() / max(len(labels), 1)).tolist()
        rows["class_il"].append(None if run.task_il_only else class_il)
        rows["task_il"].append(task_il)
    run.seconds["evaluation"] += time.perf_counter() - started
    return rows


def _scores(run: Run, index: Tensor) -> Tensor:
    """Return the scores (N, classes) of the test images at ``index`` (N,), and pay for them."""
    found = []
    for part in index.split(EVALUATION_BATCH):
        images = run.network_input(run.stream.test_images[part].to(run.device))
        with run.autocast():
            found.append(run.learner.predict(run, images))
    run.ledger.forward(EVALUATION, run.learner.evaluation_passes(run.phase.index) * len(index))
    return torch.cat(found)
