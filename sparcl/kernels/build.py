"""Compile the loops with the machine's C compiler: ``python -m sparcl.kernels.build``.

Installing the package does the same where there is a compiler; this is for a checkout without installation and for a
library with the compiler's sanitizers.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = tuple(HERE / "csrc" / name for name in (
    "loops_plain.c", "loops_avx2.c", "loops_avx512.c", "network.c", "threads.c",
))  # fmt: skip
HEADERS = tuple(HERE / "csrc" / name for name in ("kernels.h", "loops.h", "network.h"))


def compiler() -> list[str] | None:
    """Return the command of the C compiler: ``CC``, else ``cc``, ``gcc`` or ``clang``; None if there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    return next(([found] for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build(target: Path | None = None, sanitize: str = "") -> Path:
    """Compile the library and return its path.

    Args:
        target: file to write, by default the one that :mod:`sparcl.kernels.library` loads.
        sanitize: value of the compiler's ``-fsanitize``, e.g. ``address,undefined``.

    Raises:
        FileNotFoundError: no compiler.
        subprocess.CalledProcessError: the compiler failed; its messages are on stderr.
    """
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C compiler: install gcc or clang, or name one in CC")
    target = target or HERE / f"_native{sysconfig.get_config_var('EXT_SUFFIX') or '.so'}"
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    flags = ["-O3", "-std=gnu11", "-fPIC", "-shared"]
    if sanitize:
        flags += ["-g", f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    try:
        subprocess.run([*command, *flags, *map(str, SOURCES), "-o", str(temporary), "-lm", "-lpthread"], check=True)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Compile; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sparcl.kernels.build", description="Compile the sparse kernels.")
    parser.add_argument("--output", type=Path, help="library to write (default: inside the package)")
    parser.add_argument("--sanitize", default="", help="the compiler's -fsanitize, e.g. address,undefined")
    args = parser.parse_args(argv)
    try:
        print(build(args.output, args.sanitize))
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
