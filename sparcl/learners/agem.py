"""A-GEM: a step must not increase the loss on memory, to first order (Chaudhry et al. 2019).

With g the gradient of CE(z(x), y) and r that of CE(z(x'), y') on a batch (x', y') from memory:

    g <- g - (g . r / r . r) r     where g . r < 0

The memory is a reservoir over the stream, as for ER (mammoth calls this A-GEM-R; its A-GEM stores one batch at the
end of each task). The constraint is about the step that is made, so in sparse training the products go over the
weights that exist. The reference gradient is the term ``memory`` of TDM's and DGM's importance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl.cell import Cell
from sparcl.components import Replay, Run, stream_loss
from sparcl.learners.rehearsal import Rehearsal
from sparcl.methods import learner
from sparcl.protocol import Protocol


def project(gradients: dict[str, Tensor], reference: dict[str, Tensor], exist: dict[str, Tensor]) -> bool:
    """Project ``gradients`` in place so that their product with ``reference`` is not negative; return whether needed.

    Args:
        gradients: by parameter name, any shapes.
        reference: as ``gradients``.
        exist: bool masks of the weights that the products go over, for some of the names; the others go in full.
    """

    def product(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        parts = [(a[n] * b[n] * exist[n] if n in exist else a[n] * b[n]).sum(dtype=torch.float64) for n in a]
        return torch.stack(parts).sum()

    along = product(gradients, reference)
    if along >= 0:
        return False
    factor = float(along / product(reference, reference))
    for name, gradient in gradients.items():
        gradient.sub_(reference[name], alpha=factor)
    return True


@learner("agem", "A-GEM")
class AGEM(Rehearsal):
    """Averaged gradient episodic memory; see the module's docstring."""

    outputs_only = False  # the reference gradient is taken beside the step's

    def terms(
        self, run: Run, images: Tensor, labels: Tensor, replays: list[Replay]
    ) -> tuple[dict[str, Tensor], Tensor]:
        logits, *_ = run.logits(images)
        self._replays = replays
        return {"stream": stream_loss(run, logits, labels)}, logits

    def images_at_once(self, cell: Cell, protocol: Protocol) -> int:
        return cell.batch_size  # the two gradients are taken one after the other

    def held_bytes(self, run: Run) -> int:
        return sum(p.numel() * p.element_size() for p in run.model.parameters())  # the reference gradient

    def adjust_gradients(self, run: Run) -> None:
        if not self._replays:
            return
        ((past, labels, _),) = self._replays
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.cell.precision == "bfloat16"):
            loss = F.cross_entropy(run.logits(past)[0], labels)
        parameters = {n: p for n, p in run.model.named_parameters() if p.grad is not None}
        found = torch.autograd.grad(loss, list(parameters.values()))
        reference = dict(zip(parameters, found, strict=True))
        if run.term_gradients:
            run.term_gradients["memory"] = {name: reference[name] for name in run.masks.parameters}
        project({n: p.grad for n, p in parameters.items() if p.grad is not None}, reference, run.masks.weight)
