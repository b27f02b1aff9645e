"""An independent reading of the loss terms: written out, in float64, differentiated by autograd."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def compute_in(run: Any) -> None:
    """Let ``run`` compute in float64 from now on, so that no near-tie or ReLU falls to the other side by rounding."""
    run.model.double()
    original = run.network_input
    run.network_input = lambda *arguments: original(*arguments).double()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label], averaged."""
    log_probability = logits - logits.exp().sum(1, keepdim=True).log()
    return -log_probability[torch.arange(len(labels)), labels].mean()


def terms(run: Any, model: torch.nn.Module, batch: Any, replays: list) -> dict[str, Tensor]:
    """Return the terms of ER, DER and DER++ for one step (equations in :mod:`sparcl.learners.rehearsal`)."""
    first, last = run.phase.classes.start, run.phase.classes.stop
    logits = model(batch.images.double())
    result = {"stream": cross_entropy(logits[:, first:last], batch.labels - first)}
    params = run.cell.params
    if replays:
        (images, labels, stored), again = replays[0], replays[-1]
        if run.learner.name == "er":
            result["memory"] = params["er.weight"] * cross_entropy(model(images.double()), labels)
        else:
            alpha = params[f"{run.learner.name}.alpha"]
            result["memory"] = alpha * ((model(images.double()) - stored.double()) ** 2).mean()
        if run.learner.name == "derpp":
            result["memory"] = result["memory"] + params["derpp.beta"] * cross_entropy(
                model(again[0].double()), again[1]
            )
    return result


def gradients(run: Any, batch: Any, replays: list) -> dict[str, dict[str, Tensor]]:
    """Return each term's gradient of every parameter, at the run's present weights, leaving the run alone."""
    model = copy.deepcopy(run.model).double()
    found = {}
    for name in terms(run, model, batch, replays):
        term = terms(run, model, batch, replays)[name]
        grads = torch.autograd.grad(term, list(model.parameters()), allow_unused=True)
        found[name] = dict(zip((n for n, _ in model.named_parameters()), grads, strict=True))
    return found
