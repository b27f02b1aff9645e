"""A long-lived process does not grow: memory, open files, threads, temporary files."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import launching
import psutil
import pytest
from forked import call

from sparcl import cell
from sparcl.running import runner

MIB = 1 << 20
METHODS = ("sparcl-derpp", "rigl-er", "finetune", "packnet", "snip-derpp")


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_cells_in_one_process(count: int, small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
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
        for number in range(count):
            chosen = small_cell(METHODS[number % 5], seed=number, epochs=1, batch_size=256)
            runner.run_cell(chosen, tmp_path / "results")
            if number + 1 in (count // 4, count * 5 // 8, count):
                seen.append(use(temporary))
        assert sum(1 for _ in (tmp_path / "results").rglob("*.json")) == count
        assert not list((tmp_path / "results").rglob("*.tmp"))
        return seen

    early, middle, late = call(work)
    assert late[1:] == middle[1:] == early[1:]
    # Of 200 cells the last 75, if they kept nothing but the descriptions of their tensors, would hold 6 MiB.
    assert late[0] <= middle[0] + 3 * MIB, (early, middle, late)


@pytest.mark.slow  # tests/workflow/test_zygote.py: the same for jobs that are no cells
def test_cells_in_children_of_a_zygote(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    """What real cells are forked from is the same size after them, and leaves nothing behind when it ends."""
    with launching.Run({"TMPDIR": str(tmp_path)}) as run:
        zygote = psutil.Process(run.zygote)

        def use() -> list[object]:
            psutil.wait_procs(zygote.children(), timeout=60)  # a job has told its end a moment before it is gone
            entries = sorted(entry.name for entry in tmp_path.glob("sparcl-*/*"))
            return [
                zygote.memory_info().rss,
                zygote.num_fds(),
                zygote.num_threads(),
                zygote.children(),
                entries,
            ]

        def cells(numbers: range) -> None:
            for number in numbers:
                chosen = small_cell(METHODS[number % 5], seed=number, epochs=1, batch_size=256)
                done = run.run("sparcl", "run", "--cell", chosen.json(), "--results", str(tmp_path / "results"))
                assert done.returncode == 0, done.stderr

        cells(range(3))
        early = use()
        cells(range(3, 200))
        late = use()
    assert late[1:] == early[1:]
    assert late[0] <= early[0] + 2 * MIB
    zygote.wait(20)
    assert not list(tmp_path.glob("sparcl-*"))
