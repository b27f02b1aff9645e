"""Split-Digits: the 1,797 handwritten digits that come with scikit-learn (8x8 pixels, values 0 to 16); no
download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (test part).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparcl.streams.source import Allocate, Facts, Source

TEST_FRACTION = 0.2


class Digits(Source):
    """One fixed, stratified 80/20 split: 1,438 training and 359 test images."""

    name = "split-digits"

    def facts(self, options: Mapping[str, Any]) -> Facts:
        return Facts(
            label="Split-Digits",
            shape=(1, 8, 8),
            train_counts=(142, 146, 142, 146, 145, 146, 145, 143, 139, 144),
            test_counts=(36, 36, 35, 37, 36, 36, 36, 36, 35, 36),
            tasks=5,
            mean=(0.3061,),
            std=(0.3765,),
            scale=16,
        )

    def read(self, root: Path, options: Mapping[str, Any], allocate: Allocate) -> None:
        from sklearn.datasets import load_digits

        from sparcl.streams.layout import stratified_split

        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 1, 8, 8).astype(np.uint8)
        for part, rows in zip(("train", "test"), stratified_split(labels, TEST_FRACTION), strict=True):
            allocate(f"{part}_images", (len(rows), 1, 8, 8))[:] = images[rows]
            allocate(f"{part}_labels", (len(rows),))[:] = labels[rows]


SOURCES = (Digits(),)
