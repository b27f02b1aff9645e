"""Data that the tests of this folder share."""

from __future__ import annotations

import pytest
import torch

from sparcl import streams


@pytest.fixture(scope="session")
def digits():
    return streams.load("split-digits", None, {})


@pytest.fixture(scope="session")
def images(digits):
    """A fixed batch of test images, normalized."""
    from sparcl.streams import augment

    return augment.normalize(digits.test_images[:16], digits.info, torch.device("cpu"))
