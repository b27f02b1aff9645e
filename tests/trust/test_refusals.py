"""What is wrong is refused: one line that names the file, the right exit status, and nothing old is touched."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparcl import cell, cli, components, trainer
from sparcl.errors import RunError, UserError
from sparcl.files import atomic
from sparcl.running import checkpoint, identity, record, runner


@pytest.fixture(scope="module")
def finished(small_cell: Callable[..., cell.Cell], tmp_path_factory: pytest.TempPathFactory) -> tuple[cell.Cell, Path]:
    folder = tmp_path_factory.mktemp("finished")
    chosen = small_cell("sparcl-derpp", epochs=1)
    runner.run_cell(chosen, folder)
    return chosen, runner.folder_of(chosen, folder) / "record.json"


def test_every_flipped_byte_of_a_record_is_noticed(finished: tuple[cell.Cell, Path], tmp_path: Path) -> None:
    data = finished[1].read_bytes()
    target = tmp_path / "record.json"
    for place in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[place] ^= 1
        target.write_bytes(damaged)
        if json_equal(damaged, data):
            continue
        with pytest.raises(UserError, match=r"record\.json"):
            record.read(target)


def json_equal(first: bytes | bytearray, second: bytes) -> bool:
    try:
        return json.loads(first) == json.loads(second)
    except ValueError:
        return False


def test_a_truncated_record_is_refused(finished: tuple[cell.Cell, Path], tmp_path: Path) -> None:
    data = finished[1].read_bytes()
    for size in range(0, len(data) - 2, 401):
        (tmp_path / "record.json").write_bytes(data[:size])
        with pytest.raises(UserError):
            record.read(tmp_path / "record.json")


def test_a_hand_edited_record_is_refused(finished: tuple[cell.Cell, Path], tmp_path: Path) -> None:
    data = json.loads(finished[1].read_text())
    data["results"]["executed"]["training"] += 1
    (tmp_path / "record.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="changed after it was written"):
        record.read(tmp_path / "record.json")


def test_a_record_of_another_code_version_is_left_alone(
    small_cell: Callable[..., cell.Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = small_cell("er", epochs=1)
    runner.run_cell(chosen, tmp_path)
    path = runner.folder_of(chosen, tmp_path) / "record.json"
    before = path.read_bytes()
    monkeypatch.setattr(runner.identity, "identity", lambda _: "0" * 64)
    with pytest.raises(UserError, match="--force"):
        runner.run_cell(chosen, tmp_path)
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_is_a_result(
    small_cell: Callable[..., cell.Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = small_cell("derpp", epochs=2, learning_rate=1e6)
    assert cli.main(["run", "--cell", chosen.json(), "--results", str(tmp_path), "--quiet"]) == 0
    assert "diverged in task 0, epoch" in capsys.readouterr().out
    found = record.read(runner.folder_of(chosen, tmp_path) / "record.json")
    assert found["status"] == "diverged"
    assert found["cell"] == chosen.as_dict()
    again = runner.run_cell(chosen, tmp_path)  # a result like any other: it is there already
    assert again == found


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 1, 2), (4, 1, 4)], ids=["first", "middle", "last"])
def test_the_step_of_a_loss_that_is_not_finite_is_named(
    place: tuple[int, int, int], value: float, small_cell: Callable[..., cell.Cell], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A weight is damaged just before a known step: task, epoch and step are exactly that one's, in every place."""
    chosen = small_cell("derpp", epochs=2)
    step, last = trainer.step, (-1, -1, -1)

    def damaged(run: trainer.Run, batch: components.Batch) -> None:
        nonlocal last
        last = run.clock.task, run.clock.epoch, run.clock.step
        if last == place:
            run.model.head.bias.data.fill_(value)
        step(run, batch)

    monkeypatch.setattr(trainer, "step", damaged)
    assert cli.main(["run", "--cell", chosen.json(), "--results", str(tmp_path), "--quiet"]) == 0
    assert last == place  # no step came after it
    task, epoch, number = place
    assert f"diverged in task {task}, epoch {epoch}, step {number}" in capsys.readouterr().out
    folder = runner.folder_of(chosen, tmp_path)
    found = record.read(folder / "record.json")
    assert (found["status"], found["diverged"]) == ("diverged", {"task": task, "epoch": epoch, "step": number})
    assert found["results"]["accuracy"]["class_il"][task] == [None] * 5  # what came before it is there
    assert all(row != [None] * 5 for row in found["results"]["accuracy"]["class_il"][:task])
    assert len(found["results"]["losses"]) == task + 1
    assert not (folder / "failed.json").exists()
    assert not (folder / "checkpoint").exists()


def test_a_mistake_in_a_components_code_is_told_beside_the_record(
    small_cell: Callable[..., cell.Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as Python ends it, for the author; the collected table then says more than that a cell was not run."""
    chosen = small_cell("static-derpp", epochs=1)

    def mistaken(run: trainer.Run, batch: components.Batch) -> None:
        raise LookupError("no such layer")

    monkeypatch.setattr(trainer, "step", mistaken)
    with pytest.raises(LookupError):
        runner.run_cell(chosen, tmp_path)
    folder = runner.folder_of(chosen, tmp_path)
    assert not (folder / "record.json").exists()
    failure = json.loads((folder / "failed.json").read_text())
    assert failure["error"] == "LookupError: no such layer"
    assert failure["at"] == {"task": 0, "epoch": 0, "step": 0}


def test_code_that_has_changed_since_planning_is_refused_at_once(
    small_cell: Callable[..., cell.Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = small_cell("derpp", epochs=1)
    arguments = ["run", "--cell", chosen.json(), "--results", str(tmp_path), "--quiet", "--identity"]
    assert cli.main([*arguments, "0" * 64]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "changed since the cell was planned" in printed
    assert not list(tmp_path.iterdir())
    assert cli.main([*arguments, identity.identity(chosen)]) == 0


@pytest.mark.parametrize("is_damaged", [False, True])
def test_what_was_planned_replaces_a_record_of_something_else_once_it_is_complete(
    small_cell: Callable[..., cell.Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    chosen = small_cell("derpp", epochs=1)
    runner.run_cell(chosen, tmp_path)
    path = runner.folder_of(chosen, tmp_path) / "record.json"
    old = path.read_bytes()[: -50 if is_damaged else None]
    path.write_bytes(old)
    monkeypatch.setattr(identity, "versions", lambda: {"torch": "another"})
    wanted = identity.identity(chosen)
    with pytest.raises(UserError, match="damaged" if is_damaged else "--force replaces it"):
        runner.run_cell(chosen, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.run_cell(chosen, tmp_path, planned=wanted)
    assert path.read_bytes() == old
    assert runner.run_cell(chosen, tmp_path, planned=wanted)["identity"] == wanted
    assert json.loads(path.read_bytes())["identity"] == wanted


def test_a_full_disk_leaves_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    atomic.write_text(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        atomic.write_text(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_size_limit_stops_a_run_in_one_line(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    """The kernel refuses writes beyond a limit, as a full disk would."""
    chosen = small_cell("derpp", epochs=1)
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from sparcl import cli\n"
        f"sys.exit(cli.main(['run', '--cell', {chosen.json()!r}, '--results', {str(tmp_path)!r}, '--quiet']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json*"))


def test_a_results_folder_that_cannot_be_written(
    small_cell: Callable[..., cell.Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").write_text("a file")
    status = cli.main(
        [
            "run",
            "--cell",
            small_cell("er", epochs=1).json(),
            "--results",
            str(tmp_path / "results"),
            "--quiet",
        ]
    )
    printed = capsys.readouterr().err
    assert status == 2
    assert str(tmp_path / "results") in printed
    assert len(printed.splitlines()) == 1


def test_a_link_out_of_the_results_folder_is_refused(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    results, outside = tmp_path / "results", tmp_path / "outside"
    (results / "runs").mkdir(parents=True)
    outside.mkdir()
    (results / "runs" / "split-digits").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of it"):
        runner.run_cell(small_cell("er", epochs=1), results)
    assert not list(outside.iterdir())


def test_a_damaged_checkpoint_stops_the_run(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    chosen = small_cell("er", epochs=1)
    saved = runner.folder_of(chosen, tmp_path) / runner.CHECKPOINT / "state.ckpt"
    checkpoint.save(saved, "x", {"a": 1})
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        runner.run_cell(chosen, tmp_path)


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method", "sparkl-derpp"], "did you mean 'sparcl-derpp'"),
        (["--stream", "split-digit"], "did you mean 'split-digits'"),
        (["--sparsity", "1.2"], "sparsity"),
        (["--sparsity", "-0.1"], "sparsity"),
        (["--buffer", "0"], "buffer"),
        (["--epochs", "0"], "epochs"),
        (["--set", "ddr.proportio=0.1"], "did you mean 'ddr.proportion'"),
        (["--set", "ddr.proportion"], "KEY=VALUE"),
        (["--set", "dgm.sparsity=0.5"], "dgm.sparsity"),
        (["--model", "resnet81"], "did you mean"),
        (["--config", "no/such/file.yaml"], "no/such/file.yaml"),
        (["--cell", "{"], "--cell"),
        (["--stream", "split-cifar10", "--data", "no/such/folder"], "no/such/folder"),
        (["--data", "x" * 300], "expected a folder that can be written to"),
        (["--set", "protocol.last_batch=drop", "--batch-size", "2000"], "batch_size: expected at most 198"),
        pytest.param(["--device", "cuda"], "device: expected a CUDA device", marks=NO_GPU),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    base = [
        "run",
        "--stream",
        "split-digits",
        "--method",
        "sparcl-derpp",
        "--sparsity",
        "0.9",
        "--buffer",
        "20",
    ]
    assert cli.main([*base, "--results", "results", *arguments]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "-1"],
        ["--threads", "100000"],
        ["--rounds", "-2"],
        ["--sparsity", "1.5"],
        ["--json", "no/such/folder/x.json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_benchmark_refuses_before_it_measures(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {arguments[0]}: expected ")


@pytest.mark.parametrize(
    ("plan", "more", "expected"),
    [
        ('{"config": []}', [], "plan.json: expected a plan"),
        ('{"config": {}, "cells": []}', ["--cores", "-1"], "--cores"),
        ('{"config": {}, "cells": []}', ["--seconds", "nan"], "--seconds: expected a number of seconds, got nan"),
        ('{"config": {}, "cells": []}', ["--out", "/dev/null/x.json"], "--out: expected a file in a folder that can"),
    ],
)
def test_timing_refuses(
    plan: str, more: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").write_text(plan)
    out = tmp_path / "timing.json"
    assert cli.main(["time", "--plan", str(tmp_path / "plan.json"), "--out", str(out), *more]) == 2
    assert expected in capsys.readouterr().err
    assert not out.exists()


def test_a_run_outlives_what_reads_its_progress(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    chosen = small_cell("er", epochs=1)
    command = [sys.executable, "-m", "sparcl", "run", "--cell", chosen.json(), "--results", str(tmp_path)]
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run(command, stdout=writer, check=True)
    os.close(writer)
    assert record.read(runner.folder_of(chosen, tmp_path) / "record.json")["status"] == "done"
