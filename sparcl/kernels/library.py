"""The compiled loops: loading, the instruction set in use, and the structures of their C interface.

The library needs no PyTorch headers: Python hands it pointers. ``SPARCL_KERNELS`` names another library file
(a sanitizer's), ``SPARCL_ISA`` an instruction set (``avx512``, ``avx2``, ``plain``); by default the best one runs.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

from sparcl.errors import UserError
from sparcl.kernels import build

LANES = 16  # images of a block
COPYING = 60.0  # seconds


class Table(ctypes.Structure):
    """``index_table`` of kernels.h."""

    _fields_ = (
        ("outputs", c_int32), ("chunks", c_int32), ("row", c_int32), ("column", c_int32), ("rows", c_int32),
        ("columns", c_int32), ("count", c_int64), ("start", c_void_p), ("entries", c_void_p), ("position", c_void_p),
    )  # fmt: skip


class LayerIndex(ctypes.Structure):
    """``layer_index`` of network.h."""

    _fields_ = (
        ("forward", Table), ("backward", Table * 4), ("classes", c_int32), ("items_count", c_int32),
        ("items", c_void_p), ("item_entries", c_int64), ("sorted", c_void_p), ("count", c_int64),
    )  # fmt: skip


class Layer(ctypes.Structure):
    """``layer`` of network.h."""

    _fields_ = (
        *((name, c_int32) for name in (
            "source", "residual", "shortcut", "user", "inputs", "outputs", "kernel", "stride", "in_rows", "in_columns",
            "rows", "columns", "relu", "pool", "accumulate", "final", "training",
        )),
        ("eps", c_float), ("momentum", c_float),
        *((name, c_int64) for name in ("y", "z", "pooled", "statistics", "gz", "gy", "gpooled")),
        ("index", c_void_p), ("gradient_index", c_void_p),
        *((name, c_void_p) for name in (
            "weight", "gamma", "beta", "running_mean", "running_var", "batches", "weight_gradient", "gamma_gradient",
            "beta_gradient",
        )),
    )  # fmt: skip


class NetworkCall(ctypes.Structure):
    """``network`` of network.h."""

    _fields_ = (
        ("layers", POINTER(Layer)), ("count", c_int32), ("blocks", c_int32), ("groups", c_int32), ("threads", c_int32),
        ("first", c_int32), ("add", c_int32), ("group", c_void_p), ("group_sizes", c_void_p), ("lanes", c_void_p),
        ("saved", c_void_p), ("work", c_void_p), ("parts", c_void_p), ("scratch", c_void_p), ("sums", c_void_p),
        ("images", c_int64), ("scratch_stride", c_int64),
    )  # fmt: skip


class Descent(ctypes.Structure):
    """``descent`` of network.c."""

    _fields_ = (
        ("index", c_void_p), ("value", c_void_p), ("momentum", c_void_p), ("gradient", c_void_p),
        ("learning", c_void_p), ("size", c_int64),
    )  # fmt: skip


_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "kernels_available": (c_char_p, (c_int,)),
    "kernels_choose": (c_int, (c_char_p,)),
    "kernels_chosen": (c_char_p, ()),
    "index_new": (POINTER(LayerIndex), (c_void_p, c_void_p, c_void_p, *[c_int] * 7)),
    "index_free": (None, (c_void_p,)),
    "network_scratch": (c_int64, (POINTER(NetworkCall),)),
    "network_sums": (c_int64, (POINTER(NetworkCall),)),
    "network_parts": (c_int64, (POINTER(NetworkCall),)),
    "network_pack": (None, (POINTER(NetworkCall), c_void_p, c_void_p, c_int, c_int)),
    "network_forward": (None, (POINTER(NetworkCall), c_void_p)),
    "network_running": (None, (POINTER(NetworkCall),)),
    "network_backward": (c_int, (POINTER(NetworkCall), c_void_p)),
    "convolution_forward": (None, (POINTER(NetworkCall),)),
    "convolution_backward": (None, (POINTER(NetworkCall),)),
    "blocks_pack": (None, (c_void_p, c_void_p, *[c_int] * 4)),
    "blocks_unpack": (None, (c_void_p, c_void_p, *[c_int] * 4)),
    "peak_work": (c_double, (c_int, c_int)),
    "sgd_step": (None, (POINTER(Descent), c_int, c_float, c_float, c_int)),
}  # fmt: skip


def path() -> Path | None:
    """Return the library's file, None where the package was installed without a compiler."""
    if named := os.environ.get("SPARCL_KERNELS"):
        return Path(named)
    files = [file for suffix in (".so", ".pyd", ".dylib") for file in Path(__file__).parent.glob(f"_native*{suffix}")]
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


@functools.cache
def load() -> ctypes.CDLL | None:
    """Return the loaded library with its best instruction set chosen, or None where there is none that loads.

    Raises:
        UserError: ``SPARCL_ISA`` names an instruction set that this machine or library does not have,
            ``SPARCL_KERNELS`` a file that is none of these libraries; or the library is older than its sources.
    """
    file, named = path(), os.environ.get("SPARCL_KERNELS")
    if file is None:
        return None
    if not named and _is_stale(file):
        raise UserError(f"kernel: {file} is older than its sources; 'python -m sparcl.kernels.build' compiles it anew")
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:  # built for another machine, or another version of the sources
        if named:
            raise UserError(f"SPARCL_KERNELS: expected a library of these kernels, got '{named}'") from error
        return None
    names = _available(library)
    wanted = os.environ.get("SPARCL_ISA") or names[0]
    if not library.kernels_choose(wanted.encode()):
        raise UserError(f"SPARCL_ISA: expected one of {', '.join(names)}, got '{wanted}'")
    return library


def _is_stale(file: Path) -> bool:
    """Whether a source was changed after the library was built, by more than copying a tree takes."""
    newest = max(source.stat().st_mtime for source in build.SOURCES + build.HEADERS)
    return newest > file.stat().st_mtime + COPYING


def _available(library: ctypes.CDLL) -> list[str]:
    names: list[str] = []
    while (name := library.kernels_available(len(names))) is not None:
        names.append(name.decode())
    return names


def require() -> ctypes.CDLL:
    """Return the library.

    Raises:
        UserError: there is none.
    """
    library = load()
    if library is None:
        raise UserError("kernel: the sparse kernel is not compiled here; 'python -m sparcl.kernels.build' compiles it")
    return library


def available() -> bool:
    """Say whether the sparse kernel can run here."""
    return load() is not None


def instruction_sets() -> list[str]:
    """Return the names of the instruction sets that can run here, best first; empty without the library."""
    library = load()
    return [] if library is None else _available(library)


def instruction_set() -> str | None:
    """Return the name of the instruction set in use, None without the library."""
    library = load()
    return None if library is None else library.kernels_chosen().decode()


def choose(name: str) -> None:
    """Use another instruction set from now on; indices built before are not valid any more.

    Raises:
        UserError: this machine does not have it.
    """
    if not require().kernels_choose(name.encode()):
        raise UserError(f"instruction set: expected one of {', '.join(instruction_sets())}, got '{name}'")
