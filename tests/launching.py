"""Commands as the workflow starts its jobs: a zygote, and the launcher in front of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
SCRIPTS = TOP / "workflow/scripts"
HOLDER = f"""
import os, sys
sys.path.insert(0, {str(SCRIPTS)!r})
import session
session._start_zygote()
print(os.environ[session.ZYGOTE], session._kept[-1].pid, flush=True)
sys.stdin.read()
"""


def without_make(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what a surrounding make, with its variables, or run of the workflow passes on."""
    variables = re.findall(r"^(\w+) \?=", (TOP / "Makefile").read_text(), re.MULTILINE)
    passed_on = ("MAKE", "MFLAGS", "SPARCL_ZYGOTE")
    return {key: value for key, value in environment.items() if key not in variables and not key.startswith(passed_on)}


class Run:
    """A process that holds a zygote, as Snakemake's main process does, and commands that are launched beside it."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = {**without_make(os.environ), "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.socket, pid = self.process.stdout.readline().split()
        self.zygote = int(pid)
        self.environment["SPARCL_ZYGOTE"] = self.socket

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def start(self, *command: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen:
        """Launch a module's command."""
        line = [sys.executable, "-I", "-S", str(SCRIPTS / "launch.py"), *command]
        return subprocess.Popen(line, env={**self.environment, **(env or {})}, **options)

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess:
        """Launch a module's command and wait for it."""
        text = options.pop("input", None)
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        if text is not None:
            options["stdin"] = subprocess.PIPE
        with self.start(*command, **options) as process:
            out, err = process.communicate(text, timeout=600)
        return subprocess.CompletedProcess(command, process.returncode, out, err)
