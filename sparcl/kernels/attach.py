"""Give a model its kernel, and say which one it got."""

from __future__ import annotations

import functools
import warnings

from sparcl.kernels import library, rule
from sparcl.kernels.network import Network, layers_of
from sparcl.models import Classifier


def shapes_of(model: Classifier) -> list[rule.Shape] | None:
    """Return the shapes of the model's convolutions, None for a network that the sparse kernel does not know.

    A model on the meta device will do.
    """
    layers = layers_of(model)
    if layers is None:
        return None
    return [
        rule.Shape(
            layer.conv.in_channels, layer.conv.out_channels, layer.conv.kernel_size[0], layer.out_rows,
            layer.out_columns, f"{layer.name}.weight" in model.maskable_names,
        )
        for layer in layers
    ]  # fmt: skip


def resolved(model: Classifier, kernel: str, sparsity: float, precision: str, device: str) -> dict[str, str | None]:
    """Return {"kernel", "instruction_set"} that :func:`attach` gives ``model`` on this machine.

    Raises:
        ValueError: "sparse" where it cannot run.
    """
    chosen = rule.resolve(kernel, shapes_of(model), 1 - sparsity, precision, device)
    if chosen == "dense" or not library.available():
        return {"kernel": "dense", "instruction_set": None}
    return {"kernel": "sparse", "instruction_set": library.instruction_set()}


def attach(model: Classifier, kernel: str, sparsity: float, precision: str, device: str) -> Network | None:
    """Return the sparse kernel for ``model`` if ``kernel`` says so and it is compiled here, None for the dense one.

    Where the sparse kernel should run and is not compiled, the dense one does, with one warning per process.

    Raises:
        ValueError: "sparse" where it cannot run.
    """
    if rule.resolve(kernel, shapes_of(model), 1 - sparsity, precision, device) == "dense":
        return None
    if not library.available():
        _say_once()
        return None
    return Network(model)


@functools.cache
def _say_once() -> None:
    warnings.warn(
        "the sparse kernel is not compiled here, the dense one runs; with a C compiler: python -m sparcl.kernels.build",
        stacklevel=3,
    )
