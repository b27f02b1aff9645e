"""Tests of the sparse kernel need it compiled (``python -m sparcl.kernels.build``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparcl.kernels import library


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if library.available():
        return
    for item in items:
        if Path(item.path).parent == Path(__file__).parent and "test_rule" not in item.path.name:
            item.add_marker(pytest.mark.skip(reason="the sparse kernel is not compiled here"))


@pytest.fixture(params=library.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with every instruction set of this machine."""
    best = library.instruction_set()
    library.choose(request.param)
    yield request.param
    library.choose(str(best))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
