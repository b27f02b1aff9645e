"""A trained cell as an ONNX file, held against PyTorch and timed in ONNX Runtime.

The file is the whole way from raw pixels to logits: input ``images``, uint8 (N, C, H, W), N free; output ``logits``,
float32 (N, classes), the classes in the stream's order. ONNX has no sparse convolution, so masked weights are zeros in
it. Needs the packages of the extra ``export``.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparcl.cell import Cell
from sparcl.errors import RunError, UserError
from sparcl.files import atomic
from sparcl.models import EVALUATION_BATCH, Classifier
from sparcl.streams import Stream, StreamInfo

OPSET = 18
"""The operator set that torch's exporter writes without a conversion."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 32)
TOLERANCE = 1e-4
"""Largest difference of two logits that counts as rounding, in parts of the largest logit."""
SECONDS, MOST_RUNS, WARM_UP = 1.0, 500, 10


def check_packages() -> None:
    """Raise UserError unless everything that an export imports is installed."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"{name} cannot be imported ({error}); an export needs the extra: pip install --editable '.[export]'"
            ) from error


class Deployed(nn.Module):
    """A network with its stream's normalization in front: uint8 images (N, C, H, W) to logits (N, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Classifier, info: StreamInfo):
        super().__init__()
        # In row-major order: of channels_last tensors the exporter would write the strides out, as operations.
        self.network, self.scale = network.to(memory_format=torch.contiguous_format), info.scale
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(info, name)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of raw ``images``."""
        return self.network((images.float() / self.scale - self.mean) / self.std)


def write(model: Deployed, info: StreamInfo, cell: Cell, identity: str, path: Path) -> None:
    """Write ``model`` as ONNX to ``path``; the file's metadata holds the cell and its identity."""
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, *info.shape, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update({"sparcl.cell": cell.json(), "sparcl.identity": identity})
    atomic.write_bytes(path, program.model_proto.SerializeToString())


@dataclass(frozen=True)
class Agreement:
    """ONNX Runtime against PyTorch on a stream's test images: how many, how many predictions differ, largest difference
    of a logit and largest logit."""

    images: int
    different: int
    difference: float
    largest: float


def agreement(model: Deployed, session: Any, stream: Stream) -> Agreement:
    """Compare the predictions of ``model`` and of an ONNX Runtime ``session`` on all test images.

    Raises:
        RunError: they differ by more than rounding.
    """
    different, difference, largest = 0, 0.0, 0.0
    rows = torch.cat([task.test_index for task in stream.tasks])
    for index in rows.split(EVALUATION_BATCH):
        images = stream.test_images[index]
        with torch.inference_mode():
            expected = model(images).numpy()
        found = session.run(None, {"images": images.numpy()})[0]
        different += int((found.argmax(1) != expected.argmax(1)).sum())
        difference = max(difference, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    if different or not difference <= TOLERANCE * largest:
        raise RunError(
            f"ONNX Runtime differs from PyTorch: {different} of {len(rows)} predictions, logits by up to"
            f" {difference:.1e} (the largest logit is {largest:.1e})"
        )
    return Agreement(len(rows), different, difference, largest)


def open_session(path: Path, threads: int) -> Any:
    """Return an ONNX Runtime session of the file at ``path`` on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def times(model: Deployed, session: Any, stream: Stream) -> dict[int, dict[str, float]]:
    """Return the median seconds of an inference by batch size and by who makes it: ``torch`` and ``onnxruntime``.

    Both take turns, so that they meet the same moods of the machine; PyTorch uses the threads that are set.
    """
    found = {}
    for batch in BATCHES:
        images = stream.test_images[:batch].clone()
        array = images.numpy()

        def in_torch(images: Tensor = images) -> None:
            with torch.inference_mode():
                model(images)

        def in_onnxruntime(array: np.ndarray = array) -> None:
            session.run(None, {"images": array})

        found[batch] = medians({"torch": in_torch, "onnxruntime": in_onnxruntime})
    return found


def medians(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return the median seconds of each of ``calls``, which take turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for run in range(WARM_UP + MOST_RUNS):
        if run > 2 * WARM_UP and time.perf_counter() - started > SECONDS * len(calls):
            break
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            if run >= WARM_UP:
                taken[name].append(time.perf_counter() - before)
    return {name: statistics.median(values) for name, values in taken.items()}
