"""Passes over stored images between tasks: outputs of the model as it is, on a ledger line of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparcl.components import Run
from sparcl.models import EVALUATION_BATCH, evaluation_mode


@torch.no_grad()
def logits(run: Run, images: Tensor, line: str) -> Tensor:
    """Return the logits (N, classes) of un-augmented uint8 ``images`` (N, C, H, W) in eval mode, paid on ``line``."""
    return _collect(run, images, line, lambda part: run.logits(part)[0])


@torch.no_grad()
def features(run: Run, images: Tensor, line: str) -> Tensor:
    """Return the features (N, D) of un-augmented uint8 ``images``, scaled to length 1, in eval mode, paid on ``line``.

    A pass that stops before the last layer is paid as a whole one.
    """
    found = _collect(run, images, line, run.features)
    return torch.nn.functional.normalize(found, dim=1)


def _collect(run: Run, images: Tensor, line: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    run.sync_ledger()
    run.ledger.forward(line, len(images))
    found = []
    with (
        evaluation_mode(run.model),
        torch.autocast(run.device.type, torch.bfloat16, enabled=run.cell.precision == "bfloat16"),
    ):
        for part in images.split(EVALUATION_BATCH):
            found.append(function(run.network_input(part)).float())
    return torch.cat(found)
