"""The optimizer against torch's own, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparcl.optimizer import SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_steps_as_torch_does(momentum: float) -> None:
    """One parameter has no gradient in the first three steps and one never has any."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((3, 4, 3, 3), (5,), (2, 2), (7,))]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    own, reference = SGD(ours, 0.03, momentum), torch.optim.SGD(theirs, lr=0.03, momentum=momentum, foreach=True)
    for step in range(20):
        own.zero_grad()
        reference.zero_grad(set_to_none=False)
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if index == 3 or (index == 1 and step < 3):
                continue
            gradient = torch.randn(a.shape, generator=generator)
            for parameter in (a, b):
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
        own.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(ours[3], start[3])
    assert (ours[3] in own.momenta) is False
    assert len(own.momenta) == (3 if momentum else 0)
