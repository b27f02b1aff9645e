"""A checkout of its own for tests that run the workflow and edit what it runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import launching
import pytest

TOP = Path(__file__).resolve().parents[2]
PARTS = (
    "sparcl",
    "baselines",
    "analysis",
    "workflow",
    "profiles",
    "snakemake_logger_plugin_sparcl",
    "Snakefile",
    "Makefile",
    "environment.yml",
)

LINGERS = '''
"""A static mask that takes a second for each step after the first task, as long as there is a file ``linger``."""
import time
from pathlib import Path
from typing import ClassVar
from sparcl.methods import policy
from sparcl.policies.static import Static

@policy("lingers", "Lingers")
class Lingers(Static):
    """A static mask."""
    modules: ClassVar = ("sparcl.policies.static",)

    def after_step(self, run):
        if run.clock.task > 0 and Path("linger").exists():
            time.sleep(1.0)
'''


class Checkout:
    """A copy of what the pipeline needs, in a folder that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in PARTS:
            source, target = TOP / part, folder / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        self.replace("sparcl/cli.py", '"--seconds", type=float, default=20.0', '"--seconds", type=float, default=0.0')
        self.environment = {
            **launching.without_make(os.environ),
            "PYTHONPATH": str(folder),
            "TMPDIR": str(folder.parent),
        }

    def replace(self, path: str, old: str, new: str) -> None:
        """Edit a file of the checkout."""
        text = (self.folder / path).read_text()
        assert text.count(old) == 1, path
        (self.folder / path).write_text(text.replace(old, new))

    def start(self, *command: str, **options) -> subprocess.Popen:
        """Start a Python module of the checkout."""
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def run(self, *command: str, status: int = 0) -> str:
        """Run a Python module of the checkout, check its exit status, and return what it printed."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=1800)
        assert process.returncode == status, output
        return output

    def snakemake(self, config: str, *arguments: str, status: int = 0) -> str:
        """Run Snakemake on one of the checkout's configs."""
        command = ("-m", "snakemake", "--cores", "2", "--configfile", config)
        return self.run(*command, *arguments, status=status)

    def write(self, path: str, text: str) -> str:
        """Write a file of the checkout; return its name."""
        (self.folder / path).write_text(text)
        return path

    @contextlib.contextmanager
    def lingering(self) -> Iterator[None]:
        """Have cells of the method ``lingers-LEARNER`` take their time once their first task is done."""
        self.write("baselines/lingers.py", LINGERS)
        self.write("linger", "")
        try:
            yield
        finally:
            (self.folder / "linger").unlink()

    def records(self, name: str) -> Mapping[str, int]:
        """Return the records of a matrix and when each was written."""
        runs = self.folder / "results" / name / "runs"
        found = runs.glob("**/record.json")
        return {str(path.parent.relative_to(runs)): path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    folder = tmp_path_factory.mktemp("p") / "checkout"
    folder.mkdir()
    return Checkout(folder)
