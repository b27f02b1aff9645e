"""The questions of a training step, each with a do-nothing answer.

A training step is always the same walk: stream batch -> **learner** (which loss, from stream and memory) -> backward
-> **gradient policy** (which weights learn) -> step -> **sparsity policy** (which weights exist) -> **data policy**
(which samples stay). A method is a composition of one answer to each; see :mod:`sparcl.methods`.

A component is constructed from its parameters alone; all that it needs during a run reaches it as ``run``
(:class:`Run`). What it must remember between steps it returns from :meth:`Component.state`. Hooks whose names begin
with ``planned`` say in advance what a run will do, from settings alone: ``sparcl flops`` and the plan ask them, and the
contract test holds every run to its plan.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl.cell import Cell
from sparcl.costs.ledger import LayerCost, Ledger
from sparcl.masks import Density, MaskSet, allocate
from sparcl.memory import ReservoirMemory
from sparcl.models import Classifier
from sparcl.optimizer import SGD
from sparcl.parameters import Parameterized
from sparcl.protocol import Protocol as ProtocolSwitches
from sparcl.streams import Stream, StreamInfo

Replay = tuple[Tensor, Tensor, Tensor]
"""One replayed batch: normalized images (N, C, H, W), labels (N,), stored logits (N, classes)."""


@dataclass(frozen=True)
class Clock:
    """Where a run is. All counts start at 0; ``steps`` is the number of steps of the current epoch."""

    task: int = 0
    tasks: int = 1
    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps: int = 1
    task_step: int = 0
    task_steps: int = 1

    @property
    def progress(self) -> float:
        """Fraction of the whole run's steps that are done, by tasks of equal length."""
        return (self.task + self.task_step / self.task_steps) / self.tasks

    def is_due(self, interval: int, done: int = 0) -> bool:
        """Whether a positive multiple of ``interval`` is reached: ``task_step + done``, or one that data removal skips.

        An epoch that removal has shortened leaves out its last steps; multiples among them are reached in its last one.

        Args:
            done: 1 to count this step as done (SET, after a step), 0 before it (RigL).
        """
        following = self.task_step + 1
        if self.step + 1 >= self.steps:
            following = max(following, (self.epoch + 1) * (self.task_steps // self.epochs))
        return (following - 1 + done) // interval > max(self.task_step - 1 + done, 0) // interval


@dataclass(frozen=True)
class Phase:
    """One stretch of training: a task, or all tasks at once for joint training."""

    index: int
    row: int
    classes: range
    train_index: Tensor


@dataclass(frozen=True)
class Batch:
    """A stream batch: positions in the task's pool (N,), raw uint8 images (N, C, H, W), network input, labels (N,)."""

    positions: Tensor
    raw: Tensor
    images: Tensor
    labels: Tensor


class Run(Protocol):
    """A run as its components see it; :class:`sparcl.trainer.Run` is the real one.

    Attributes:
        phase, clock: the stretch of training, and the step in it.
        batch: the stream batch of this step.
        masks: which weights exist and which learn; nobody else makes a weight 0.
        term_gradients: per loss term ("stream", "memory") the gradients of the maskable weights, in steps in which a
            policy wants them by term.
        pool_images, pool_labels: the task's training pool: (P, C, H, W) uint8, (P,).
        present: bool mask (P,) of the samples that data policies have left.
        removed: per task, each removal as the record has it (:class:`sparcl.running.record.Removal`).
        untrained: accuracy before training; empty until that is known.
    """

    cell: Cell
    stream: Stream
    info: StreamInfo
    device: torch.device
    protocol: ProtocolSwitches
    model: Classifier
    masks: MaskSet
    memory: ReservoirMemory
    ledger: Ledger
    optimizer: SGD
    phase: Phase
    clock: Clock
    batch: Batch
    term_gradients: dict[str, dict[str, Tensor]]
    pool_images: Tensor
    pool_labels: Tensor
    present: Tensor
    removed: list[list[dict[str, float]]]
    untrained: dict[str, list[float | None]]
    sparsity: SparsityPolicy

    @property
    def pool_size(self) -> int:
        """Number of samples in the current task's pool, removed ones included."""

    def generator(self, purpose: str) -> torch.Generator:
        """Return the run's sequential generator for ``purpose``; its state survives a checkpoint."""

    def draw_replay(self) -> Replay:
        """Draw one replayed batch of the stream batch's nominal size: augmented afresh and normalized."""

    def network_input(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return uint8 ``images`` (N, C, H, W), augmented by ``draws`` if given, as the model's input."""

    def logits(self, *passes: Tensor) -> list[Tensor]:
        """Return the logits (n, classes) of every pass (n, C, H, W): the model, by the kernel of the run.

        In training mode every pass is normalized by its own batch statistics.
        """

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, D) of ``images`` (N, C, H, W), by the kernel of the run."""

    def backward(
        self, batch: Batch, replays: list[Replay], positions: Density = "dense", by_term: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the learner's loss in ``parameter.grad``; return loss () and stream logits (N, C).

        ``positions`` says at which maskable weights they are needed; a kernel may leave the others 0.
        """

    def remove_samples(self, which: Tensor, tied: float = 0.0) -> None:
        """Remove the samples of the bool mask ``which`` (pool,) for the rest of the task.

        ``tied`` is the share of them that were chosen among equals, for the record.
        """

    def note_update(self, pruned: int, grown: int) -> None:
        """Write a mask update into the record: how many weights left and how many came."""

    def note_gradients(self) -> None:
        """Write the density of a new gradient mask into the record."""

    def sync_ledger(self) -> None:
        """Tell the ledger how many weights exist and learn, if that has changed."""


Hook = TypeVar("Hook", bound=Callable[..., Any])


def accounting(function: Hook) -> Hook:
    """Mark a hook that only counts what others have published: a record's identity does not cover its code."""
    return function


class Component(Parameterized):
    """What learners and policies share beside their parameters: a state, and what they freeze."""

    def state(self) -> dict[str, Any]:
        """Return what must survive a restart: nested dicts of tensors and JSON values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned; its tensors are on the run's device."""

    def resume(self, run: Run) -> None:
        """Called once after a checkpoint was loaded: set again what no state holds."""

    def start(self, run: Run) -> None:
        """Called once, before the first task, with the initialized model; the learner's first."""

    def begin_task(self, run: Run) -> None:
        """Called before the first epoch of each task, the learner's first."""

    def end_task(self, run: Run) -> None:
        """Called after the last epoch of each task, before evaluation; the learner's last."""

    def planned_frozen(self, model: Classifier, sparsity: float, clock: Clock) -> set[str]:
        """Return the names of the convolution and linear weights that are not trained during ``clock.task``."""
        return set()

    def freeze(self, model: Classifier, cell: Cell, task: int) -> None:
        """Take the gradients from what is not trained during ``task``; a run does so at its begin and when it resumes.

        The plan asks for the last task, whose activations it counts.
        """

    def plan_begin_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        """Write on ``book`` what :meth:`begin_task` computes for a task with a pool of ``size`` samples."""

    def plan_end_task(self, book: Ledger, cell: Cell, task: int, size: int) -> None:
        """Write on ``book`` what :meth:`end_task` computes."""

    @accounting
    def published_flops(self, cell: Cell, costs: Sequence[LayerCost], sizes: Sequence[int]) -> float | None:
        """Return the training FLOPs by the method's own published convention, or None for the common formula.

        Args:
            sizes: training images of each task.
        """
        return None


def frozen(parts: Iterable[Component], model: Classifier, sparsity: float, clock: Clock) -> set[str]:
    """Return the names of the convolution and linear weights that some of ``parts`` does not train at ``clock``."""
    return set().union(*(part.planned_frozen(model, sparsity, clock) for part in parts))


class Learner(Component):
    """Which loss is minimized. Subclasses answer :meth:`terms`; everything else has a default.

    Attributes:
        family: the block of the tables in which the dense method stands.
        uses_memory: whether a cell needs a buffer of at least 1.
        replay_batches: replayed batches per step once replay has begun.
        published_replay_batches: the paper ledger's ``n`` where it is another number.
        offline: whether all tasks are trained at once (joint training).
        outputs_only: whether the terms depend on the convolutional part's weights through ``run.logits`` alone, and are
            differentiated by the step's backward pass alone. The sparse kernel then writes gradients in place, which
            is faster.
        task_il_only: whether Class-IL is undefined for the method.
        refuses: kinds of policies ("sparsity", "gradient", "data") that the learner does not go with, and why.
        bundles, bundles_reason: the only bundles that go with the learner (None: any that is not refused), and why.
    """

    family: ClassVar[str] = "rehearsal"
    uses_memory: ClassVar[bool] = False
    replay_batches: ClassVar[int] = 0
    published_replay_batches: ClassVar[int | None] = None
    offline: ClassVar[bool] = False
    outputs_only: ClassVar[bool] = False
    task_il_only: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {}
    bundles: ClassVar[Sequence[str] | None] = None
    bundles_reason: ClassVar[str] = "takes no sparsity policies"

    def equip(self, model: Classifier, cell: Cell, info: StreamInfo) -> None:
        """Called when a run is built, before a checkpoint is loaded: add modules to ``model``, rename nothing."""

    def pool(self, run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the task's training pool: images (N, C, H, W) uint8 and labels (N,); iCaRL adds its exemplars.

        Called at a task's begin and again when a run is resumed within it, so it draws nothing and depends only on what
        stays the same during a task.
        """
        return images, labels

    def replay(self, run: Run) -> list[Replay]:
        """Draw this step's replayed batches from memory, augmented and normalized."""
        return []

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the loss terms by name ("stream", "memory") and the stream batch's logits (N, classes).

        The step minimizes the sum of the terms. ``run.batch`` is the stream batch that ``images`` come from. TDM and
        DGM weigh the gradients of the terms "stream" and "memory"; a term of another name is none of theirs. No two
        terms share a forward pass, since each is differentiated on its own where a policy asks for it.
        """
        logits, *_ = run.logits(images)
        return {"stream": stream_loss(run, logits, labels)}, logits

    def adjust_gradients(self, run: Run) -> None:
        """Called after backward, before the policies, with gradients in ``parameter.grad`` (A-GEM's projection)."""

    def after_step(self, run: Run) -> None:
        """Called after the optimizer step, unless a policy has skipped it."""

    def remember(self, run: Run, batch: Batch, logits: Tensor) -> None:
        """Present the stream batch to the memory: raw images, labels, logits before the step's update."""
        if self.uses_memory:
            run.memory.add(batch.raw, batch.labels, logits, run.phase.index, run.generator("memory"), batch.positions)

    def predict(self, run: Run, images: Tensor) -> Tensor:
        """Return evaluation scores (N, classes) for normalized ``images``; the model is in eval mode."""
        return run.logits(images)[0]

    def evaluation_passes(self, task: int) -> int:
        """Return the forward passes that :meth:`predict` takes per image during and after ``task``."""
        return 1

    def held_bytes(self, run: Run) -> int:
        """Return the bytes that a step holds beside its gradients and activations and what :meth:`state` returns."""
        return 0

    def planned_replay(self, cell: Cell, protocol: ProtocolSwitches, task: int, seen: int) -> int:
        """Return how many images :meth:`replay` gives to a step of ``task`` after ``seen`` images of the stream."""
        if not self.uses_memory or (task == 0 and protocol.replay_start == "second-task"):
            return 0
        return self.replay_batches * min(cell.batch_size, cell.buffer, seen)

    def planned_pool(self, info: StreamInfo, cell: Cell, task: int, size: int) -> int:
        """Return how many samples :meth:`pool` gives for a task of ``size`` training images."""
        return size

    def plans_approximately(self, info: StreamInfo, cell: Cell) -> bool:
        """Return whether the data decide what the plan has to assume."""
        return False

    def images_at_once(self, cell: Cell, protocol: ProtocolSwitches) -> int:
        """Return of how many images a step holds activations at the same time, once replay has begun."""
        return cell.batch_size + self.planned_replay(cell, protocol, 1, cell.buffer)


def stream_loss(run: Run, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the stream batch: over the current task's logits alone when ``protocol.single_head`` is on.

    SparCL, section 3.2: the logits of classes outside the current task are masked out. Otherwise over all ``logits``:
    every output of the head, unseen classes included, is what mammoth's DER, DER++, ER, A-GEM, FDR, EWC and plain SGD
    take; its LwF gives the classes seen so far.
    """
    if not run.protocol.single_head:
        return F.cross_entropy(logits, labels)
    classes = run.phase.classes
    return F.cross_entropy(logits[:, classes.start : classes.stop], labels - classes.start)


class Policy(Component):
    """Hooks common to all policies, in the order in which a run calls them. Each does nothing by default.

    Attributes:
        by_term: whether the gradients that the policy wants are wanted per loss term (``run.term_gradients``).
        learners: the only learners that the policy goes with; None for any.
    """

    by_term: bool = False
    learners: ClassVar[Sequence[str] | None] = None

    def begin_epoch(self, run: Run) -> None:
        """Called before the first step of each epoch."""

    def gradients_wanted(self, sparsity: float, clock: Clock) -> dict[str, Density]:
        """Return which weight gradients the step at ``clock`` needs beyond those that it applies, and on which line of
        the ledger they stand: ``{"dense_gradient": "dense"}``.

        Asked once before each step. Trainer, plan, ledger and kernels all go by the answer, so what is not named here
        is not there in ``on_gradients``.
        """
        return {}

    def end_epoch(self, run: Run) -> None:
        """Called after the last step of each epoch."""


class SparsityPolicy(Policy):
    """Which weights exist. The default keeps all of them.

    Attributes:
        fixed_pattern: whether the masks are a pattern (every k-th weight, N of M) that no seed changes.
    """

    fixed_pattern: ClassVar[bool] = False

    def on_gradients(self, run: Run) -> bool:
        """Called after backward, with gradients in ``parameter.grad``; return False to skip the step."""
        return True

    def after_step(self, run: Run) -> None:
        """Called after the optimizer step and the projection of masked weights to 0."""

    @contextlib.contextmanager
    def view(self, run: Run, task: int) -> Iterator[None]:
        """Show the model as it is used for ``task`` at evaluation (task-specific masks); restores it afterwards."""
        yield

    @property
    def has_views(self) -> bool:
        """Whether evaluation must go task by task through :meth:`view`."""
        return type(self).view is not SparsityPolicy.view

    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int] | None:
        """Return the weights per layer in force at ``clock``, as known before a run, or None if data decide."""
        return {name: parameter.numel() for name, parameter in container.parameters.items()}

    def planned_learning(
        self, container: MaskSet, weights: dict[str, int], sparsity: float, clock: Clock
    ) -> dict[str, int] | None:
        """Return how many of the existing ``weights`` per layer this policy lets learn, or None if data decide."""
        return weights

    @accounting
    def published_sparsity(
        self, shapes: Mapping[str, torch.Size], cell: Cell, sizes: Sequence[int]
    ) -> dict[str, float]:
        """Return the sparsity per layer as the published convention counts it: the run's mean, dense phases included.

        By default the cell's in every layer, or Erdos-Renyi-Kernel shares of it.

        Args:
            shapes: of the maskable weights.
            sizes: training images of each task.
        """
        if getattr(self, "distribution", "") != "erk":
            return dict.fromkeys(shapes, cell.sparsity)
        counts = allocate(shapes, cell.sparsity, "erk")
        return {name: 1 - counts[name] / shape.numel() for name, shape in shapes.items()}

    def planned_view(self, container: MaskSet, sparsity: float, clock: Clock, task: int) -> dict[str, int] | None:
        """Return the weights per layer that :meth:`view` shows for ``task`` after the task of ``clock``."""
        return self.planned_counts(container, sparsity, clock)


class GradientPolicy(Policy):
    """Which weights learn. The default lets every existing weight learn."""

    def on_gradients(self, run: Run) -> None:
        """Called after the sparsity policy's ``on_gradients``; may call ``run.masks.restrict_gradients``.

        Weights that begin to learn here have a gradient in this step only if ``gradients_wanted`` asked for it.
        """

    def planned_counts(self, container: MaskSet, weights: dict[str, int], clock: Clock) -> dict[str, int]:
        """Return the learning weights per layer at ``clock``, given the existing ``weights``."""
        return weights

    @accounting
    def published_sparsity(self, sparsity: float) -> float:
        """Return the share of a layer's weights without a gradient, as the published convention counts it."""
        return sparsity


class DataPolicy(Policy):
    """Which samples of the task stay. The default keeps all of them."""

    replays_removed: bool = False
    """Whether a removed sample that the memory holds may still be replayed during its task."""

    def observe(self, run: Run, positions: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Called after each step with the batch's positions in the task (N,), its logits (N, C), labels (N,)."""

    def planned_removals(self, size: int, clock: Clock) -> int:
        """Return how many of a task's ``size`` samples are removed at the end of the epoch of ``clock``."""
        return 0

    @accounting
    def published_fraction(self, epochs: int) -> float:
        """Return the mean share of a task's images that is presented, as the published convention counts it."""
        return 1.0
