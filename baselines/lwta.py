"""Stochastic local competition, LWTA ("TWTA-CIL"; Christophides, Tolias & Chatzis, arXiv 2407.10758).

The units of a layer stand in blocks of J that compete; per task and block one unit wins. With logits a[t, b, j] that
task t learns for block b of a layer, and h the layer's linear (or convolutional, then batch-normalized) output,

    pi[t, b, :] = (softmax(a[t, b, :]) + 1e-4) / sum                                   winner posterior
    xi[b, :]    = softmax((log pi[t, b, :] + G) / tau),  G = -log(-log U), tau = 0.67  Concrete sample, in training
    output      = h * xi                                                               (N, units) or (N, channels, H, W)
    L           = CE(stream) + kl / n * sum_b KL(pi[t, b, :] || uniform 1/J)           n: the task's training images

At evaluation task t keeps its winners alone, its ticket: xi is 1 for the winner of a block and 0 for the others, whose
weights are 0. Weight gradients are sparse by winning probability: a unit with pi < cutoff / J does not learn.

Source: the layer (posterior with 1e-4, Concrete sample at 0.67, KL to uniform, near one-hot evaluation) is that of the
same laboratory's earlier LWTA code, where pi depends on the input; posteriors per task, tickets, and both sparsities
are the paper's abstract. Its text says more than could be obtained, and no number of it; what is open is an option.

The divergence is the one of the variational bound, of the posterior from the prior: KL(pi || 1/J), exact, over the
units of every block, divided by n. The earlier code's terms are others. SB-LWTA (TensorFlow) averages log pi - log 1/J
over a block's units without weighing it by pi, which is -KL(1/J || pi): the other direction and the other sign, so that
its descent drives pi away from uniform; that is also divided by n. The later PyTorch layer takes the relaxed sample xi
in pi's place, xi (log xi - log 1/J), averages over a block's units where the bound sums, and divides by 1000 whatever n
is (with J = 2 and n = 10,000 that is 5 times the weight of ``kl: 1`` here); its training script does not add the term.

The options:

* ``J`` follows from the cell's sparsity s as round(1 / (1 - s)): 2 at 0.5, 4 at 0.75, 8 (the paper's order) at 0.875,
  10 at 0.9. Blocks are consecutive units; the last one is smaller where J does not divide the layer.
* Who competes: the maskable layers (3x3 convolutions of the blocks; the hidden linear layer of ``mlp``). The network
  keeps its ReLU, since a gate that does not depend on the input alone would leave it linear. Gates act after batch
  normalization.
* ``sample``: one sample per image, or one per batch. ``rate`` multiplies the learning rate of the logits.
* ``protect: winners``: weights of earlier tasks' winners are frozen and may be used by later tasks; what does not
  compete (stem, shortcuts) freezes after the first task. ``none``: everything goes on learning.
* ``batch_norm``: one per task, frozen after the first task, or shared.
* ``inference``: the winner is the most probable unit, or one sample of the posterior, drawn once when the task ends
  (the limit of the earlier code's temperature 0.01).
* Class-IL without knowing the task: class scores of task k come from task k's ticket, for every task seen; the largest
  one decides. It takes as many forward passes as there are tickets. Task-IL reads the task's own ticket.

Noise is drawn by a named generator outside the computation that a CUDA graph captures.

FLOPs. Executed: all units compete in training, so forward passes and input gradients are dense; weight gradients are
those of the units that learn, which data decide; evaluation at the tickets' density, once per ticket. Planned counts
take every unit as learning and say that they are approximate. Paper: the source publishes none; SparCL's convention at
density 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines.isolation import dense_layers, norm_tensors, own_rows
from sparcl.cell import Cell
from sparcl.components import Clock, Learner, Replay, Run, SparsityPolicy, accounting, stream_loss
from sparcl.costs import convention
from sparcl.costs.ledger import LayerCost
from sparcl.masks import MaskSet
from sparcl.methods import learner, method, policy
from sparcl.models import Classifier
from sparcl.parameters import parameter
from sparcl.streams import StreamInfo

FLOOR = 1e-4


# -- the competition ---------------------------------------------------------------------------------------------------
def units_per_block(sparsity: float) -> int:
    """Return J, the units of a block of which one wins, for a sparsity of 1 - 1/J."""
    return round(1 / (1 - sparsity))


def in_blocks(values: Tensor, size: int, fill: float) -> Tensor:
    """Return ``values`` (..., C) as (..., B, J) with ``fill`` where the last block is short."""
    missing = -values.shape[-1] % size
    padded = nn.functional.pad(values, (0, missing), value=fill)
    return padded.unflatten(-1, (-1, size))


def posterior(logits: Tensor, size: int) -> Tensor:
    """Return the winning probabilities (..., C) of ``logits`` (..., C) in blocks of ``size`` units."""
    real = in_blocks(torch.ones_like(logits), size, 0.0)
    pi = in_blocks(logits, size, -torch.inf).softmax(-1) + FLOOR * real
    pi = pi / pi.sum(-1, keepdim=True)
    return pi.flatten(-2)[..., : logits.shape[-1]]


def divergence(pi: Tensor, size: int) -> Tensor:
    """Return the sum over blocks of KL(pi || uniform), a scalar in nats, for ``pi`` (C,)."""
    units = in_blocks(torch.ones_like(pi), size, 0.0).sum(-1, keepdim=True).expand(-1, size).flatten()[: len(pi)]
    return (pi * (pi * units).log()).sum()


def concrete(pi: Tensor, gumbel: Tensor, size: int, temperature: float) -> Tensor:
    """Return the relaxed one-hot sample (N, C) of ``pi`` (C,) for Gumbel noise (N, C): each block sums to 1."""
    relaxed = in_blocks((pi.log() + gumbel) / temperature, size, -torch.inf).softmax(-1)
    return relaxed.flatten(-2)[..., : pi.shape[-1]]


def draw_gumbel(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return standard Gumbel noise, -log(-log U) with U in the open unit interval, drawn on the CPU."""
    uniform = torch.rand(*shape, generator=generator, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return -(-uniform.clamp_(tiny, 1 - 2**-53).log()).log().float()


def winners(scores: Tensor, size: int) -> Tensor:
    """Return the bool mask (C,) of the largest score of each block (the first one of equals)."""
    best = in_blocks(scores, size, -torch.inf).argmax(-1)
    chosen = torch.zeros_like(in_blocks(scores, size, 0.0), dtype=torch.bool).scatter_(-1, best.unsqueeze(-1), True)
    return chosen.flatten()[: len(scores)]


class Competition(nn.Module):
    """Gates on a layer's units: Concrete samples of the task's posterior in training, a ticket in evaluation.

    Attributes:
        logits: (T, C), the posterior's logits per task.
        task: whose posterior training uses.
        noise: (N, C) or (1, C) Gumbel noise of the next training step.
        ticket: (C,), the gates in evaluation: 1 for winners, else 0.
    """

    noise: Tensor
    ticket: Tensor

    def __init__(self, weight_name: str, tasks: int, units: int, size: int, temperature: float, samples: int):
        super().__init__()
        self.weight_name, self.size, self.temperature, self.task = weight_name, size, temperature, 0
        self.logits = nn.Parameter(torch.zeros(tasks, units))
        self.register_buffer("noise", torch.zeros(samples, units), persistent=False)
        self.register_buffer("ticket", torch.ones(units), persistent=False)

    def pi(self, task: int) -> Tensor:
        """Return the winning probabilities (C,) of ``task``."""
        return posterior(self.logits[task], self.size)

    def forward(self, h: Tensor) -> Tensor:
        """Keep the winners of activations ``h`` (N, units, ...): sampled in training, fixed in evaluation."""
        if self.training:
            noise = self.noise[: len(h)] if len(self.noise) > 1 else self.noise
            gate = concrete(self.pi(self.task), noise, self.size, self.temperature)
        else:
            gate = self.ticket.unsqueeze(0)
        return h * gate.to(h.dtype).reshape(*gate.shape, *[1] * (h.dim() - 2))


def _compete(host: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
    return host.get_submodule("competition")(output)


def hosts(model: Classifier) -> dict[str, nn.Module]:
    """Return the module whose output competes per maskable weight: the batch norm after it, or the layer itself."""
    found = {}
    for name in model.maskable_names:
        path, _, own = name.removesuffix(".weight").rpartition(".")
        siblings = list(model.get_submodule(path).named_children())
        index = [child for child, _ in siblings].index(own)
        after = siblings[index + 1][1] if index + 1 < len(siblings) else None
        found[name] = after if isinstance(after, nn.BatchNorm2d) else siblings[index][1]
    return found


def competitions(model: nn.Module) -> dict[str, Competition]:
    """Return the model's competitions by the name of the weight whose units compete."""
    return {module.weight_name: module for module in model.modules() if isinstance(module, Competition)}


# -- the learner -------------------------------------------------------------------------------------------------------
@learner("lwta", "LWTA")
class LWTA(Learner):
    """Cross-entropy through the competition, and KL of the task's posteriors to uniform; see the module's docstring."""

    family = "sibling"
    bundles: ClassVar = ()
    bundles_reason = "has tickets of its own and takes no other sparsity policy"
    temperature: float = parameter(0.67, "temperature of the Concrete samples in training", low=0.01)
    kl: float = parameter(1.0, "weight of the KL divergence to uniform, per training image of the task", low=0)
    sample: str = parameter("image", "one sample of the winners per image, or per batch", choices=("image", "batch"))
    rate: float = parameter(100.0, "learning rate of the posterior's logits, as a multiple of the cell's", low=0)

    def equip(self, model: Classifier, cell: Cell, info: StreamInfo) -> None:
        size, weights = units_per_block(cell.sparsity), dict(model.named_parameters())
        samples = cell.batch_size if self.sample == "image" else 1
        for name, host in hosts(model).items():
            units = weights[name].shape[0]
            host.competition = Competition(name, info.tasks, units, size, self.temperature, samples)
            host.register_forward_hook(_compete)
        self._competing = list(competitions(model).values())

    def begin_task(self, run: Run) -> None:
        for competition in self._competing:
            competition.task = run.phase.index

    def resume(self, run: Run) -> None:
        self.begin_task(run)

    def replay(self, run: Run) -> list[Replay]:
        """Draw the step's noise; nothing is replayed."""
        buffers = [competition.noise for competition in self._competing]
        widths = [buffer.shape[1] for buffer in buffers]
        noise = draw_gumbel((len(buffers[0]), sum(widths)), run.generator("gumbel")).to(run.device)
        for buffer, values in zip(buffers, noise.split(widths, dim=1), strict=True):
            buffer.copy_(values)
        return []

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits = run.model(images)
        zero = torch.zeros((), device=run.device)
        total = sum((divergence(c.pi(c.task), c.size) for c in self._competing), start=zero)
        return {"stream": stream_loss(run, logits, labels), "divergence": self.kl / run.pool_size * total}, logits

    def adjust_gradients(self, run: Run) -> None:
        for competition in self._competing:
            if competition.logits.grad is not None:
                competition.logits.grad.mul_(self.rate)

    def predict(self, run: Run, images: Tensor) -> Tensor:
        """Return scores (N, classes): each task's classes as its own ticket sees them, unseen ones as the last."""
        if not run.untrained:
            return run.model(images)
        current, tickets = run.phase.index, run.sparsity
        assert isinstance(tickets, Tickets)
        with tickets.show(run, current):
            scores = run.model(images)
        for task in range(current):
            with tickets.show(run, task):
                logits = run.model(images)
            classes = run.stream.tasks[task].classes
            scores[:, classes.start : classes.stop] = logits[:, classes.start : classes.stop]
        return scores

    def evaluation_passes(self, task: int) -> int:
        return task + 1

    @accounting
    def published_flops(self, cell: Cell, costs: Sequence[LayerCost], sizes: Sequence[int]) -> float:
        return convention.paper_flops(costs, sizes, cell.epochs, 0)


# -- tickets -----------------------------------------------------------------------------------------------------------
@policy("tickets", "Tickets", family="sibling")
class Tickets(SparsityPolicy):
    """Which units learn, and what is left of the network at evaluation; see the module's docstring.

    Attributes:
        won: per finished task (as text) and layer, bool mask (C,) of the winning units.
        norms: batch normalization per finished task, if ``batch_norm`` is "per-task".
    """

    learners: ClassVar = ()
    cutoff: float = parameter(
        0.5, "units below this multiple of the uniform winning probability do not learn", low=0, high=1
    )
    protect: str = parameter("winners", "what later tasks may not change", choices=("winners", "none"))
    batch_norm: str = parameter(
        "per-task",
        "batch normalization: one per task, frozen after the first, or shared",
        choices=("per-task", "frozen", "shared"),
    )
    inference: str = parameter("argmax", "how a task's winners are found", choices=("argmax", "sample"))

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.won: dict[str, dict[str, Tensor]] = {}
        self.norms: dict[str, dict[str, Tensor]] = {}

    def refuse(self, fields: Mapping[str, Any]) -> str | None:
        if units_per_block(fields["sparsity"]) < 2:
            return f"sparsity: lwta keeps one of 1 / (1 - sparsity) units, give 0.5 or more, got {fields['sparsity']}"
        if fields["protocol.momentum"] and self.cutoff:
            return "protocol.momentum: tickets with a cutoff need 0 (momentum would move units that do not learn)"
        return None

    # -- the run ---------------------------------------------------------------------------------------------------
    def freeze(self, model: Classifier, cell: Cell, task: int) -> None:
        """Freeze what does not compete, and batch normalization, as the options say; nothing in the first task."""
        if task == 0:
            return
        norms = norm_tensors(model)
        learning = {*model.maskable_names, *(n for n, _ in model.named_parameters() if ".competition." in n)}
        for name, tensor in model.named_parameters():
            frozen = self.protect == "winners" and name not in learning and not name.startswith("head.")
            if name in norms:
                frozen = self.batch_norm == "frozen"
            if frozen:
                tensor.requires_grad_(False)
                tensor.grad = None
        if self.batch_norm == "frozen":
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.training = False

    def begin_epoch(self, run: Run) -> None:
        """Let the units learn that still compete and that no earlier task has won."""
        rows = {}
        for name, competition in competitions(run.model).items():
            units = in_blocks(torch.ones_like(competition.ticket), competition.size, 0.0).sum(-1, keepdim=True)
            uniform = (1 / units).expand(-1, competition.size).flatten()[: len(competition.ticket)]
            rows[name] = competition.pi(run.phase.index).detach() >= self.cutoff * uniform
            if self.protect == "winners":
                for task in range(run.phase.index):
                    rows[name] = rows[name] & ~self.won[str(task)][name]
        run.masks.restrict_gradients({name: _expanded(rows[name], p) for name, p in run.masks.parameters.items()})

    def on_gradients(self, run: Run) -> bool:
        if self.protect == "winners":
            own_rows(run.model.head, run.phase.classes)
        return True

    def end_task(self, run: Run) -> None:
        task = run.phase.index
        self.won[str(task)] = {}
        for name, competition in competitions(run.model).items():
            scores = competition.pi(task).detach()
            if self.inference == "sample":
                noise = draw_gumbel(scores.shape, run.generator("ticket")).to(scores.device)
                scores = scores.log() + noise
            self.won[str(task)][name] = winners(scores, competition.size)
        if self.batch_norm == "per-task":
            self.norms[str(task)] = {n: t.detach().clone() for n, t in norm_tensors(run.model).items()}

    # -- evaluation ------------------------------------------------------------------------------------------------
    def shown(self, run: Run, task: int) -> dict[str, Tensor]:
        """Return per layer the bool mask (C,) of ``task``'s winners; of the current posterior while it trains."""
        task = min(task, run.phase.index)
        if str(task) in self.won:
            return self.won[str(task)]
        return {n: winners(c.pi(task).detach(), c.size) for n, c in competitions(run.model).items()}

    @contextlib.contextmanager
    def view(self, run: Run, task: int) -> Iterator[None]:
        """Count what a ticket executes. Scores show every task's ticket by themselves: whose images these are is not
        known (:meth:`LWTA.predict`)."""
        if not run.untrained:  # before training there is no ticket: the whole network is evaluated
            yield
            return
        sizes = {name: competition.size for name, competition in competitions(run.model).items()}
        run.ledger.set_weight_counts({n: ticket_count(p, sizes[n]) for n, p in run.masks.parameters.items()})
        try:
            yield
        finally:
            run.ledger.set_weight_counts(run.masks.counts())

    @contextlib.contextmanager
    def show(self, run: Run, task: int) -> Iterator[None]:
        """Give the network the ticket of ``task`` meanwhile: gates, weights and batch normalization."""
        found, rows = competitions(run.model), self.shown(run, task)
        own = norm_tensors(run.model)
        norms = self.norms.get(str(min(task, run.phase.index)), {})
        changed = [*run.masks.parameters.values(), *(c.ticket for c in found.values()), *(own[n] for n in norms)]
        with torch.no_grad():
            saved = [tensor.detach().clone() for tensor in changed]
            for name, weight in run.masks.parameters.items():
                weight.masked_fill_(~_expanded(rows[name], weight), 0)
                found[name].ticket.copy_(rows[name])
            for name, tensor in norms.items():
                own[name].copy_(tensor)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(changed, saved, strict=True):
                    tensor.copy_(value)

    # -- plan and checkpoint ---------------------------------------------------------------------------------------
    def planned_learning(
        self, container: MaskSet, weights: dict[str, int], sparsity: float, clock: Clock
    ) -> dict[str, int] | None:
        return None

    def planned_view(self, container: MaskSet, sparsity: float, clock: Clock, task: int) -> dict[str, int]:
        return {name: ticket_count(p, units_per_block(sparsity)) for name, p in container.parameters.items()}

    def planned_frozen(self, model: Classifier, sparsity: float, clock: Clock) -> set[str]:
        return dense_layers(model) if clock.task and self.protect == "winners" else set()

    def state(self) -> dict[str, Any]:
        return {"won": self.won, "norms": self.norms}

    def load(self, state: Mapping[str, Any]) -> None:
        self.won = {task: dict(layers) for task, layers in state["won"].items()}
        self.norms = {task: dict(tensors) for task, tensors in state["norms"].items()}


def ticket_count(weight: Tensor, size: int) -> int:
    """Return the weights of a layer's winners: one unit per block of ``size``, with all its inputs."""
    return -(-weight.shape[0] // size) * weight[0].numel()


def _expanded(rows: Tensor, weight: Tensor) -> Tensor:
    """Return the mask of all weights of the units ``rows`` (C,), in the weight's shape and layout."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[rows] = True
    return mask


method("lwta", "LWTA", "sibling", "lwta", sparsity="tickets")
