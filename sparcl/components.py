"""The four questions of a training step, each with a do-nothing answer.

A training step is always the same walk: stream batch -> **learner** (which loss, from stream and memory) -> backward
-> **gradient policy** (which weights learn) -> step -> **sparsity policy** (which weights exist) -> **data policy**
(which samples stay). A method is a composition of one answer to each; see :mod:`sparcl.methods`.

A policy is constructed from its parameters alone; all it needs during a run reaches it as ``run``
(:class:`sparcl.trainer.Run`). What it must remember between steps it returns from :meth:`Policy.state`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparcl.errors import UserError, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from sparcl.cell import Cell
    from sparcl.costs.ledger import LayerCost
    from sparcl.masks import MaskSet
    from sparcl.models import Classifier
    from sparcl.trainer import Run

HUGE = 10**18


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


@dataclass(frozen=True)
class Parameter:
    """A parameter of a learner or policy: default, what is allowed, and what it means."""

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: Sequence[Any] | None = None
    optional: bool = False

    def check(self, key: str, value: Any) -> Any:
        """Return ``value`` in the parameter's type, or raise a UserError that names ``key``."""
        if value is None and self.optional:
            return None
        if isinstance(value, int) and abs(value) >= HUGE:
            raise UserError(f"{key}: expected a number of at most 18 digits")
        if self.choices is not None:
            if value not in self.choices or isinstance(value, bool) != isinstance(self.choices[0], bool):
                expected = ", ".join(map(str, self.choices))
                raise UserError(
                    f"{key}: expected one of {expected}, got {value!r}{suggest(value, map(str, self.choices))}"
                )
            return value
        kind = float if isinstance(self.default, float) else type(self.default)
        if self.default is None:
            kind = float
        if kind is bool:
            if not isinstance(value, bool):
                raise UserError(f"{key}: expected true or false, got {value!r}")
            return value
        if kind is str:
            if not isinstance(value, str):
                raise UserError(f"{key}: expected a text, got {value!r}")
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{key}: expected a number{self._range()}, got {value!r}")
        if kind is int and value != int(value):
            raise UserError(f"{key}: expected a whole number{self._range()}, got {value!r}")
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            raise UserError(f"{key}: expected a {'whole ' if kind is int else ''}number{self._range()}, got {value!r}")
        return kind(value)

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f" of at least {self.low:g}"
        return "" if self.high is None else f" of at most {self.high:g}"


class Component:
    """What learners and policies share: a name, checked parameters, a state."""

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    parameters: ClassVar[dict[str, Parameter]] = {}
    modules: ClassVar[tuple[str, ...]] = ()
    """Further modules whose code determines the component's results (for the record's identity)."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the parameters, which __init__ sets

    def __init__(self, **values: Any):
        for key in values:
            if key not in self.parameters:
                raise UserError(f"{self.name}.{key}: unknown parameter{suggest(key, self.parameters)}")
        for key, parameter in self.parameters.items():
            value = values.get(key, parameter.default)
            setattr(self, key, parameter.check(f"{self.name}.{key}", value))

    @classmethod
    def resolve(cls, values: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fill parameters whose default depends on the cell's ``fields`` (sparsity, epochs, ...)."""
        return values

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        """Return why this component makes no sense in a cell with these ``fields``, or None."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what must survive a restart: nested dicts of tensors and JSON values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""

    def resume(self, run: Run) -> None:
        """Called once after a checkpoint was loaded: set again what no state holds (frozen parameters, modes)."""

    def planned_frozen(self, model: Classifier, sparsity: float, clock: Clock) -> set[str]:
        """Return the names of the convolution and linear weights that are not trained during ``clock.task``."""
        return set()

    def paper_flops(self, cell: Cell, costs: Sequence[LayerCost], sizes: Sequence[int]) -> float | None:
        """Return the training FLOPs by the method's own published convention, or None for the common formula.

        Args:
            sizes: training images of each task.
        """
        return None


class Policy(Component):
    """Hooks common to all policies, in the order in which a run calls them. Each does nothing by default."""

    def start(self, run: Run) -> None:
        """Called once, before the first task, with the initialized model."""

    def begin_task(self, run: Run) -> None:
        """Called before the first epoch of each task."""

    def begin_epoch(self, run: Run) -> None:
        """Called before the first step of each epoch."""

    def wants_terms(self, run: Run) -> bool:
        """Return whether this step's gradients are needed per loss term (``run.term_gradients``)."""
        return False

    def end_epoch(self, run: Run) -> None:
        """Called after the last step of each epoch."""

    def end_task(self, run: Run) -> None:
        """Called after the last epoch of each task, before evaluation."""


class SparsityPolicy(Policy):
    """Which weights exist. The default keeps all of them."""

    task_il_only: ClassVar[bool] = False
    family: ClassVar[str] = "sparse-baseline"

    def on_gradients(self, run: Run) -> bool:
        """Called after backward, with dense gradients in ``parameter.grad``; return False to skip the step."""
        return True

    def after_step(self, run: Run) -> None:
        """Called after the optimizer step and the projection of masked weights to 0."""

    def planned_counts(self, masks: MaskSet, sparsity: float, clock: Clock) -> dict[str, int] | None:
        """Return the weights per layer in force at ``clock``, as known before a run, or None if data decide."""
        return {name: parameter.numel() for name, parameter in masks.parameters.items()}

    def planned_learning(
        self, masks: MaskSet, weights: dict[str, int], sparsity: float, clock: Clock
    ) -> dict[str, int] | None:
        """Return how many of the existing ``weights`` per layer this policy lets learn, or None if data decide."""
        return weights

    def planned_view(self, masks: MaskSet, sparsity: float, clock: Clock, task: int) -> dict[str, int] | None:
        """Return the weights per layer that :meth:`view` shows for ``task`` after the task of ``clock``."""
        return self.planned_counts(masks, sparsity, clock)

    def planned_dense_gradients(self, clock: Clock) -> bool:
        """Return whether the step at ``clock`` needs dense weight gradients (RigL's growth)."""
        return False

    def planned_saliency(self, task: int, size: int, batch_size: int) -> int:
        """Return how many images pass forward and backward before the first step of a task of ``size`` samples."""
        return 0

    @contextlib.contextmanager
    def view(self, run: Run, task: int) -> Iterator[None]:
        """Show the model as it is used for ``task`` at evaluation (task-specific masks); restores it afterwards."""
        yield

    @property
    def has_views(self) -> bool:
        """Whether evaluation must go task by task through :meth:`view`."""
        return type(self).view is not SparsityPolicy.view


class GradientPolicy(Policy):
    """Which weights learn. The default lets every existing weight learn."""

    def on_gradients(self, run: Run) -> None:
        """Called after the sparsity policy's ``on_gradients``; may call ``run.masks.restrict_gradients``."""

    def planned_counts(self, masks: MaskSet, weights: dict[str, int], clock: Clock) -> dict[str, int]:
        """Return the learning weights per layer at ``clock``, given the existing ``weights``."""
        return weights

    def planned_refresh(self, clock: Clock) -> bool:
        """Return whether the step at ``clock`` needs the gradients of all existing weights."""
        return False


class DataPolicy(Policy):
    """Which samples of the task stay. The default keeps all of them."""

    replays_removed: ClassVar[bool] = False
    """Whether a removed sample that the memory holds may still be replayed during its task."""

    def observe(self, run: Run, positions: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Called after each step with the batch's positions in the task (N,), its logits (N, C), labels (N,)."""

    def planned_removals(self, size: int, clock: Clock) -> int:
        """Return how many of a task's ``size`` samples are removed at the end of the epoch of ``clock``."""
        return 0


Decorator = Callable[[type], type]
