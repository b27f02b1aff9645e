"""A long-lived process does not grow: memory, open files, threads, temporary files."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from forked import call

from sparcl import cell
from sparcl.running import runner

MIB = 1 << 20
METHODS = ("sparcl-derpp", "rigl-er", "finetune", "packnet", "snip-derpp")


def test_two_hundred_cells_in_one_process(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    def use(temporary: Path) -> list[int]:
        gc.collect()
        process = psutil.Process()
        return [
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            len(list(temporary.iterdir())),
        ]

    def work() -> list[list[int]]:
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        seen = []
        for number in range(200):
            chosen = small_cell(METHODS[number % 5], seed=number, epochs=1, batch_size=256)
            runner.run_cell(chosen, tmp_path / "results")
            if number in (49, 124, 199):
                seen.append(use(temporary))
        assert sum(1 for _ in (tmp_path / "results").rglob("*.json")) == 200
        assert not list((tmp_path / "results").rglob("*.tmp"))
        return seen

    early, middle, late = call(work)
    assert late[1:] == middle[1:] == early[1:]
    # 75 cells that kept nothing but the descriptions of their tensors would hold 6 MiB.
    assert late[0] <= middle[0] + 3 * MIB, (early, middle, late)


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_cells_through_the_fork_server(count: int, small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    """What serves real cells is the same size after them, and leaves nothing in its folder but sockets and locks."""
    environment = {**os.environ, "SPARCL_WORKER": "fork", "TMPDIR": str(tmp_path)}
    environment.pop("XDG_RUNTIME_DIR", None)

    def run(number: int) -> None:
        chosen = small_cell(METHODS[number % 5], seed=number, epochs=1, batch_size=256)
        command = [sys.executable, "-m", "sparcl.worker", "run", "--cell", chosen.json()]
        command += ["--results", str(tmp_path / "results"), "--quiet"]
        subprocess.run(command, env=environment, check=True, capture_output=True)

    def servers() -> list[psutil.Process]:
        folder = f"{tmp_path}/sparcl-"
        found = psutil.process_iter(["cmdline"])
        return [process for process in found if (process.info["cmdline"] or [""])[-1].startswith(folder)]

    def use() -> list[object]:
        (server,) = servers()
        entries = sorted(entry.name for entry in tmp_path.glob("sparcl-*/*"))
        return [
            server.memory_info().rss,
            server.pid,
            server.num_fds(),
            server.num_threads(),
            server.children(),
            entries,
        ]

    for number in range(3):
        run(number)
    early = use()
    for number in range(3, count):
        run(number)
    late = use()
    assert late[1:] == early[1:]
    assert late[0] <= early[0] + 2 * MIB
    servers()[0].terminate()
