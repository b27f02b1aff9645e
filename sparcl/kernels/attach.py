"""Give a model its kernel, and say which one it got."""

from __future__ import annotations

import functools
import warnings

from sparcl.kernels import library, rule
from sparcl.kernels.network import Network, layers_of
from sparcl.models import Classifier

COMPILE = "with a C compiler: python -m sparcl.kernels.build"


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
    if _chosen(model, kernel, sparsity, precision, device) == "dense" or not library.available():
        return {"kernel": "dense", "instruction_set": None}
    return {"kernel": "sparse", "instruction_set": library.instruction_set()}


def attach(model: Classifier, kernel: str, sparsity: float, precision: str, device: str) -> Network | None:
    """Return the sparse kernel for ``model`` if ``kernel`` says so, None for the dense one.

    Where "auto" chooses the sparse kernel and it is not compiled, the dense one runs, with one warning per process.

    Raises:
        ValueError: "sparse" where it cannot run.
    """
    if _chosen(model, kernel, sparsity, precision, device) == "dense":
        return None
    if not library.available():
        _say_once()
        return None
    return Network(model)


def _chosen(model: Classifier, kernel: str, sparsity: float, precision: str, device: str) -> str:
    chosen = rule.resolve(kernel, shapes_of(model), 1 - sparsity, precision, device)
    if kernel == "sparse" and not library.available():
        raise ValueError(f"kernel: the sparse kernel cannot run here: it is not compiled; {COMPILE}, or take 'auto'")
    return chosen


@functools.cache
def _say_once() -> None:
    warnings.warn(
        f"the sparse kernel is not compiled here, the dense one runs; {COMPILE}",
        stacklevel=3,
    )
