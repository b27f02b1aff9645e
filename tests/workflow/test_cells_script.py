"""The cells of a matrix without Snakemake: stopped in time, and continued by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sparcl.files import locks

TOP = Path(__file__).resolve().parents[2]
CONFIG = """
name: lent
title: Two cells
stream: split-digits
seeds: 2
defaults: {width: 4, epochs: 1}
groups:
  one: {methods: [er], buffers: [10]}
"""


def test_cells_run_in_the_time_there_is(tmp_path: Path) -> None:
    (tmp_path / "lent.yaml").write_text(CONFIG)

    def cells(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(TOP)}
        command = ["sh", str(TOP / "workflow/scripts/cells.sh"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    (tmp_path / "data").mkdir()
    (tmp_path / "data/images.tar.gz.part-aa").write_text("part 0, ")
    done = cells("lent.yaml", "2", "0.1")
    assert done.returncode == 124
    assert "time is up after 0.1 seconds: the same command goes on" in done.stdout
    assert not list(tmp_path.rglob("record.json"))
    assert (tmp_path / "data/images.tar.gz").read_text() == "part 0, "
    (tmp_path / "data/images.tar.gz.part-ab").write_text("part 1, ")
    assert cells("lent.yaml", "2", "600").returncode == 0
    assert (tmp_path / "data/images.tar.gz").read_text() == "part 0, part 1, "
    assert len(list(tmp_path.rglob("record.json"))) == 2
    again = cells("lent.yaml", "2", "600")
    assert (again.returncode, "Class-IL" in again.stdout) == (0, False)

    record = next(tmp_path.rglob("record.json"))
    record.write_text(record.read_text().replace(json.loads(record.read_text())["identity"], "0" * 64))
    changed = cells("lent.yaml", "2", "600")
    assert changed.returncode != 0
    assert f"{record.relative_to(tmp_path)}: run record was changed" in changed.stderr

    for arguments, expected in (
        (("lent.yaml",), "error: usage: cells.sh CONFIG JOBS SECONDS"),
        (("none.yaml", "2", "600"), "error: none.yaml: expected a YAML file that can be read"),
    ):
        done = cells(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(expected)
        assert len(done.stderr.splitlines()) == 1


def test_the_first_seed_of_every_row_comes_first(tmp_path: Path) -> None:
    """A stand-in for Python, which runs no cell, notes which one it was given."""
    later = "  later: {methods: [agem], buffers: [10], seeds: [5]}\n"
    (tmp_path / "lent.yaml").write_text(CONFIG.replace("methods: [er]", "methods: [er, derpp]") + later)
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\nif [ "$3" = run ]; then echo "$*" >> cells; else exec {sys.executable} "$@"; fi\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stand_in), "PYTHONPATH": str(TOP)}
    command = ["sh", str(TOP / "workflow/scripts/cells.sh"), "lent.yaml", "1", "600"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    found = [json.loads(line.split("--cell ")[-1]) for line in (tmp_path / "cells").read_text().splitlines()]
    order = [(cell["seed"], cell["method"]) for cell in found]
    assert order == [(0, "er"), (0, "derpp"), (5, "agem"), (1, "er"), (1, "derpp")]


def test_a_signal_reaches_the_cells(tmp_path: Path) -> None:
    """None goes on, and no other starts."""
    (tmp_path / "lent.yaml").write_text(CONFIG.replace("epochs: 1", "epochs: 1000"))
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(TOP)}
    command = ["sh", str(TOP / "workflow/scripts/cells.sh"), "lent.yaml", "1", "600"]
    script = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("seed?")):
        assert script.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 128 + signal.SIGTERM
    assert len(list(tmp_path.rglob("seed?"))) == 1
    assert locks.is_free(tmp_path / "results/lent" / locks.RUN)
