"""What a run ran on: threads, determinism, hardware, git revision."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

from sparcl.cell import Cell


def prepare(cell: Cell, threads: int = 1) -> None:
    """Set the process up for a repeatable run: threads, deterministic kernels, precision of matrix products."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    _keep_freed_memory()
    torch.set_deterministic_debug_mode("error")  # torch.use_deterministic_algorithms would import the compiler
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = cell.precision == "tf32"


@functools.cache
def _keep_freed_memory() -> None:
    """Tell glibc to keep large blocks for the next step: a step allocates the same activations as the one before."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def hardware() -> dict[str, Any]:
    """Return the CPU's name, the cores available to this process and the GPU's name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_initialized() else None
    return {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu}


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_rss_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def git() -> dict[str, Any]:
    """Return the revision of the checkout that this package lies in, and whether it has uncommitted changes."""
    here = Path(__file__).resolve().parents[2]

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = ask("rev-parse", "HEAD")
    status = ask("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if status is None else bool(status)}
