"""Shared inputs of the analysis tests: one synthetic matrix, written once."""

from __future__ import annotations

import factory
import pytest

from analysis import frames


@pytest.fixture(scope="session")
def small_plan() -> dict:
    """Three seeds, two buffers, the methods of the default matrix without the extra dense ones."""
    return factory.default_plan(seeds=3, more=False)


@pytest.fixture(scope="session")
def matrix(tmp_path_factory, small_plan) -> frames.Results:
    return factory.collected(factory.write(tmp_path_factory.mktemp("matrix"), small_plan))
