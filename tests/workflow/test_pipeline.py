"""The pipeline end to end, in a checkout of its own: what runs, what does not run again, what happens on failure."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from analysis import catalog
from sparcl import metrics
from sparcl.running import record

# One checkout, whose tests follow each other.
pytestmark = [pytest.mark.pipeline]

SMALL = """
name: small
title: Small
stream: split-digits
seeds: 2
reference: derpp
defaults: {epochs: 1, width: 4}
groups:
  dense: {methods: [derpp], buffers: [20]}
  sparse: {methods: [sparcl-derpp], buffers: [20], sparsities: [0.75]}
"""
ADDED = """
  added: {methods: [halves-derpp], buffers: [20], sparsities: [0.5]}
"""
BASELINE = '''
"""A baseline of the test's own."""
from typing import ClassVar
from sparcl.methods import policy
from sparcl.policies.static import Static

@policy("halves", "Halves")
class Halves(Static):
    """A static mask under another name."""
    modules: ClassVar = ("sparcl.policies.static",)
'''
BREAKS = """    def begin_task(self, run):
        raise RuntimeError("broken on purpose")

"""


def jobs(dry_run: str) -> dict[str, int]:
    """Return the number of jobs per rule that a dry run announces."""
    table = re.search(r"^job +count\n-+ +-+\n((?:\S+ +\d+\n)+)", dry_run, re.MULTILINE)
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()} if table else {}


def planned(checkout, name: str) -> dict[str, int]:
    """Return the number of tables and figures that the plan of a matrix has."""
    plan = json.loads((checkout.folder / "results" / name / "plan.json").read_text())
    return {"table": len(catalog.tables(plan)), "figure": len(catalog.figures(plan))}


@pytest.fixture(scope="module")
def config(checkout) -> str:
    """A small matrix that has been run."""
    name = checkout.write("small.yaml", SMALL)
    dry = checkout.snakemake(name, "--dry-run")
    assert "reason: Missing output files" in dry
    assert not (checkout.folder / "results/small").exists()
    output = checkout.snakemake(name)
    single = dict.fromkeys(("data", "timing", "collect", "results", "report", "default"), 1)
    expected = {**single, **planned(checkout, "small"), "cell": 4}
    assert jobs(dry) == {**expected, "total": sum(expected.values())}
    assert "cells to run: 4; records in results/small/runs" in output
    assert "cells 4/4 (100 %)" in output
    assert output.endswith("report:  results/small/report.html\n")
    assert "rule cell" not in output
    return name


def test_first_run_makes_records_tables_figures_and_report(checkout, config: str) -> None:
    results = checkout.folder / "results/small"
    assert len(checkout.records("small")) == 4
    plan = json.loads((results / "plan.json").read_text())
    assert {entry["path"] for entry in plan["cells"]} == set(checkout.records("small"))
    for folder, names, endings in (
        ("tables", catalog.tables(plan), ("csv", "md", "tex", "html")),
        ("figures", catalog.figures(plan), ("svg", "png", "pdf", "json")),
    ):
        assert len(names) > 1
        files = {path.name for path in (results / folder).iterdir()}
        assert files == {f"{name}.{ending}" for name in names for ending in endings}
    assert (results / "report.html").stat().st_size > 10_000
    assert (results / "results.csv.gz").exists()
    assert (results / "provenance.json").exists()


@pytest.mark.slow
def test_each_table_and_figure_is_a_target(checkout, config: str) -> None:
    results = checkout.folder / "results/small"
    kept = {path: path.stat().st_mtime_ns for folder in ("tables", "figures") for path in (results / folder).iterdir()}
    for target, rule in (("figures/accuracy_vs_flops.svg", "figure"), ("tables/primary.csv", "table")):
        path = results / target
        before = path.read_bytes()
        path.unlink()
        assert jobs(checkout.snakemake(config, "--dry-run", "--", f"results/small/{target}")) == {rule: 1, "total": 1}
        checkout.snakemake(config, "--", f"results/small/{target}")
        assert path.read_bytes() == before
    made = {path for path in kept if path.stat().st_mtime_ns != kept[path]}
    assert {path.stem for path in made} == {"accuracy_vs_flops", "primary"}
    checkout.snakemake(config)
    unknown = checkout.snakemake(config, "--", "results/small/tables/overal.csv", status=2)
    assert unknown.splitlines()[-1].startswith("error: overal: expected a table of this plan")


def test_second_run_does_nothing_nor_do_comments_and_touched_files(checkout, config: str) -> None:
    before = checkout.records("small")
    source = checkout.folder / "sparcl/policies/tdm.py"
    source.write_text("# A remark.\n" + source.read_text())
    (checkout.folder / "workflow/rules/cells.smk").touch()
    (checkout.folder / "small.yaml").touch()
    report = (checkout.folder / "results/small/report.html").stat().st_mtime_ns
    assert "Nothing to be done" in checkout.snakemake(config)
    assert checkout.records("small") == before
    assert (checkout.folder / "results/small/report.html").stat().st_mtime_ns == report


def contents(results: Path) -> dict[str, bytes]:
    """Return what a finished run has made of its records."""
    names = ("tables/*", "figures/*", "report.html", "provenance.json", "results.csv.gz")
    paths = [path for name in names for path in results.glob(name)]
    return {str(path): path.read_bytes() for path in paths}


def truncated(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-50])
    return "run record is damaged, expected JSON"


def edited(path: Path) -> str:
    found = json.loads(path.read_text())
    found["results"]["accuracy"]["class_il"][-1][0] = 99.9
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return "run record was changed after it was written"


@pytest.mark.parametrize("damage", [truncated, pytest.param(edited, marks=pytest.mark.slow)])
def test_refused_record_is_told_in_one_line_and_old_results_stay(checkout, config: str, damage) -> None:
    results = checkout.folder / "results/small"
    before = contents(results)
    path = results / "runs/split-digits/derpp/s0.00/b20/epochs=1+width=4/seed1/record.json"
    whole, times = path.read_bytes(), path.stat()
    try:
        refusal = f"error: {path.relative_to(checkout.folder)}: {damage(path)}"
        for more in ((),) if damage is truncated else ((), ("--config", "partial=true"), ()):  # it stays the same
            output = checkout.snakemake(config, *more, status=2)
            assert output.splitlines()[-1].startswith(refusal)
            assert output.count("error:") == 1
            for noise in ("RuleException", "WorkflowError", "Traceback", "making "):
                assert noise not in output
            assert contents(results) == before
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    checkout.snakemake(config)
    assert contents(results) == before
    assert "Nothing to be done" in checkout.snakemake(config, "--dry-run")


@pytest.mark.slow
def test_a_lost_check_of_the_stream_makes_no_cell_stale(checkout, config: str) -> None:
    mark = checkout.folder / "results/small/data.txt"
    digest = mark.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", digest)
    mark.unlink()
    assert "Nothing to be done" in checkout.snakemake(config, "--dry-run")
    record_file = next((checkout.folder / "results/small").glob("runs/**/record.json"))
    whole, times = record_file.read_bytes(), record_file.stat()
    record_file.unlink()
    assert jobs(checkout.snakemake(config, "--dry-run", "--", "cells")) == {
        "data": 1,
        "cell": 1,
        "cells": 1,
        "total": 3,
    }
    record_file.write_bytes(whole)
    os.utime(record_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    mark.write_text(digest)


@contextlib.contextmanager
def edit(path: Path, change: Callable[[str], str]) -> Iterator[None]:
    """Edit a file for a while."""
    text, times = path.read_text(), path.stat()
    path.write_text(change(text))
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_fresh_clone_beside_old_results_finds_what_is_not_of_its_plan(checkout, config: str) -> None:
    """What Snakemake remembers of its jobs is gone: records and table say themselves what they are of."""
    memory, results = checkout.folder / ".snakemake", checkout.folder / "results/small"
    memory.rename(checkout.folder / "aside")
    try:
        assert "Nothing to be done" in checkout.snakemake(config, "--dry-run")
        with edit(checkout.folder / "sparcl/policies/dgm.py", lambda text: text + "\nMARK = 1\n"):
            assert jobs(checkout.snakemake(config, "--dry-run"))["cell"] == 2
            assert jobs(checkout.snakemake(config, "--dry-run", "--", "results/small/data.txt")) == {}
        with edit(checkout.folder / config, lambda text: text.replace("title: Small", "title: Other")):
            made = jobs(checkout.snakemake(config, "--dry-run"))
            assert (made["collect"], "cell" in made) == (1, False)
        (gone,) = results.glob("runs/split-digits/derpp/**/seed1/record.json")
        gone.rename(checkout.folder / "kept.json")
        assert jobs(checkout.snakemake(config, "--dry-run"))["cell"] == 1
        (checkout.folder / "kept.json").rename(gone)
        assert "Nothing to be done" in checkout.snakemake(config, "--dry-run")
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        (checkout.folder / "aside").rename(memory)


def test_a_mistake_in_the_code_costs_no_record(checkout, config: str) -> None:
    results = checkout.folder / "results/small"
    before = {path: path.read_bytes() for path in results.glob("runs/**/record.json")}
    source = checkout.folder / "sparcl/policies/dgm.py"
    with edit(source, lambda text: text.replace("        chosen = {}\n", "        chosen = dict(run.nothing)\n")):
        for _ in range(2):  # the same command runs them again
            assert "2 cells failed:" in checkout.snakemake(config, status=1)
        assert {path: path.read_bytes() for path in results.glob("runs/**/record.json")} == before
        table = results / "tables/all_cells.csv"
        checkout.snakemake(config, "--config", "partial=true", "--", "results/small/tables/all_cells.csv")
        assert table.read_text().count("AttributeError") == 2
    with edit(source, lambda text: text + "\ndef (\n"):
        assert "SyntaxError" in checkout.snakemake(config, status=1)
    checkout.snakemake(config)
    assert {path: path.read_bytes() for path in results.glob("runs/**/record.json")} == before
    assert not list(results.glob("runs/**/failed.json"))
    assert "Nothing to be done" in checkout.snakemake(config, "--dry-run")


def test_edited_analysis_makes_tables_anew_and_trains_nothing(checkout, config: str) -> None:
    source = checkout.folder / "sparcl/metrics.py"
    text = source.read_text()
    source.write_text(text + "\n\nMARK = 1\n")
    made = jobs(checkout.snakemake(config, "--dry-run"))
    assert "cell" not in made
    assert {name: made[name] for name in ("table", "figure")} == planned(checkout, "small")
    source.write_text(text)


@pytest.mark.slow
def test_added_baseline_runs_its_own_cells_only(checkout, config: str) -> None:
    before = checkout.records("small")
    (checkout.folder / "baselines/halves.py").write_text(BASELINE)
    checkout.write(config, SMALL + ADDED)
    assert jobs(checkout.snakemake(config, "--dry-run", "--", "cells")) == {"cell": 2, "cells": 1, "total": 3}
    output = checkout.snakemake(config)
    assert "cells to run: 2" in output
    after = checkout.records("small")
    new = set(after) - set(before)
    assert new == {f"split-digits/halves-derpp/s0.50/b20/epochs=1+width=4/seed{seed}" for seed in (0, 1)}
    assert {path: after[path] for path in before} == before
    assert "halves-derpp" in (checkout.folder / "results/small/tables/all_cells.csv").read_text()
    assert "Nothing to be done" in checkout.snakemake(config)

    # An edit of the baseline's code concerns its cells alone.
    edited = BASELINE + "    mark = 1\n"
    (checkout.folder / "baselines/halves.py").write_text(edited)
    dry = checkout.snakemake(config, "--dry-run", "--", "cells")
    assert jobs(dry) == {"cell": 2, "cells": 1, "total": 3}
    assert "updated input files" in dry  # its records say that they are of other code

    # Without it the matrix is what it was before: nothing is trained.
    (checkout.folder / "baselines/halves.py").unlink()
    checkout.write(config, SMALL)
    assert "cell" not in jobs(checkout.snakemake(config, "--dry-run"))


@pytest.mark.slow
def test_a_diverged_cell_is_a_result(checkout) -> None:
    text = SMALL.replace("name: small", "name: diverging").replace("seeds: 2", "seeds: 1")
    diverging = "  wild: {methods: [finetune], seeds: [7], defaults: {learning_rate: 1000000}}\n"
    output = checkout.snakemake(checkout.write("diverging.yaml", text + diverging))
    assert "failed" not in output
    results = checkout.folder / "results/diverging"
    (path,) = results.glob("runs/split-digits/finetune/**/record.json")
    assert json.loads(path.read_text())["status"] == "diverged"
    assert "diverged" in (results / "tables/all_cells.md").read_text()


def test_failed_cell_is_named_and_the_others_finish(checkout) -> None:
    source = checkout.folder / "baselines/breaks.py"
    source.write_text(BASELINE.replace("halves", "breaks").replace("    modules:", BREAKS + "    modules:"))
    text = SMALL.replace("name: small", "name: failing") + ADDED.replace("halves", "breaks")
    name = checkout.write("failing.yaml", text)
    results = checkout.folder / "results/failing"
    output = checkout.snakemake(name, status=1)
    assert "2 cells failed:" in output
    cell = re.escape("split-digits/breaks-derpp/s0.50/b20/epochs=1+width=4/seed1")
    assert re.search(rf"  {cell}: RuntimeError: broken on purpose \(log: results/failing/runs/{cell}/log.txt\)", output)
    for noise in ("RuleException", "Traceback"):
        assert noise not in output
    assert len(checkout.records("failing")) == 4
    assert not (results / "report.html").exists()

    # One flag makes tables of the records there are, and they say what is missing.
    output = checkout.snakemake(name, "--config", "partial=true", "--", "tables")
    assert "cells to run" not in output
    assert re.search("missing", "".join(table.read_text() for table in results.glob("tables/*.md")), re.IGNORECASE)

    # The same command again runs what is missing, and makes tables of all.
    source.write_text(source.read_text().replace(BREAKS, ""))
    before = (results / "results.csv.gz").read_bytes()
    assert "cells to run: 2;" in checkout.snakemake(name, "--", "results/failing/results.csv.gz")
    assert len(checkout.records("failing")) == 6
    assert (results / "results.csv.gz").read_bytes() != before


def test_bad_config_runs_nothing_and_is_told_in_lines(checkout, config: str) -> None:
    before = checkout.records("small")
    twice = checkout.write("twice.yaml", SMALL + "seeds: 3\n")
    output = checkout.snakemake(twice, status=2)
    assert [line for line in output.splitlines() if not line.startswith("Using ")] == [
        "error: twice.yaml: line 11: expected plain YAML: key 'seeds' stands twice"
    ]
    override = checkout.snakemake(config, "--config", "stream=split-digit", status=2)
    assert "config: stream: unknown name 'split-digit' (did you mean 'split-digits'?)" in override
    assert checkout.records("small") == before


@pytest.mark.slow
def test_pipeline_and_command_line_give_the_same_record(checkout, config: str) -> None:
    path = "split-digits/sparcl-derpp/s0.75/b20/epochs=1+width=4/seed1"
    command = (
        "run --stream split-digits --method sparcl-derpp --sparsity 0.75 --buffer 20 --seed 1 --epochs 1 --width 4"
    )
    checkout.run("-m", "sparcl", *command.split(), "--results", "by-hand")
    one = record.read(checkout.folder / "results/small/runs" / path / "record.json")
    other = record.read(checkout.folder / "by-hand/runs" / path / "record.json")
    assert record.reproducible(one) == record.reproducible(other)


@pytest.mark.slow
def test_snakemake_looks_for_jobs_when_one_has_ended_and_by_no_clock(checkout) -> None:
    """By its limit of jobs a second it goes over all waiting jobs 11 times here, the more often the more have ended."""
    name = checkout.write("looks.yaml", SMALL.replace("name: small", "name: looks"))
    output = checkout.snakemake(name, "--verbose", "--cores", "1", "--", "cells")
    count = len(checkout.records("looks"))
    assert count >= 4
    assert output.count("Resources before job selection") <= count + 3  # the stream's check, the cells, the end


LONG = """
name: long
title: Long
stream: split-digits
seeds: 2
defaults: {epochs: 3, batch_size: 32, width: 4}
groups:
  one: {methods: [lingers-derpp], buffers: [20], sparsities: [0.75]}
"""


def jobs_of(folder: Path) -> list[psutil.Process]:
    """Return the launchers, zygotes and jobs that run in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["cwd"] == str(folder) and ("launch.py" in line or "zygote.py" in line or "--cell" in line):
            found.append(process)
    return found


def until(process: subprocess.Popen, is_reached: Callable[[], bool]) -> None:
    """Wait for a moment of a run."""
    deadline = time.monotonic() + 1800
    while not is_reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_stopped_run_leaves_checkpoints_and_goes_on(checkout, number: signal.Signals) -> None:
    name = checkout.write("long.yaml", LONG.replace("name: long", f"name: long-{number.name.lower()}"))
    results = checkout.folder / f"results/long-{number.name.lower()}"
    with checkout.lingering():
        process = checkout.start("-m", "snakemake", "--cores", "2", "--configfile", name, "--", "cells")
        until(process, lambda: [log.read_text().count("task 1/5") for log in results.glob("runs/**/log.txt")] == [1, 1])
        if number == signal.SIGTERM:
            second = checkout.snakemake(name, status=2)
            assert second.endswith("error: another run is at work in this folder; wait for it or stop it\n")
        process.send_signal(number)
        output = process.communicate(timeout=600)[0]
        deadline = time.monotonic() + 600
        while jobs_of(checkout.folder):
            assert time.monotonic() < deadline, jobs_of(checkout.folder)
            time.sleep(0.1)
    assert process.returncode == (-9 if number == signal.SIGKILL else 1), output
    if number != signal.SIGKILL:
        assert output.endswith("interrupted; the same command continues where the cells left checkpoints\n")
    assert len(list(results.glob("runs/**/checkpoint/state.ckpt"))) == 2
    assert not list(results.glob("runs/**/record.json"))

    assert "cells to run: 2;" in checkout.snakemake(name, "--", "cells")
    for path in results.glob("runs/**/record.json"):
        assert record.read(path)["measured"]["resumed"] == 1
    assert len(list(results.glob("runs/**/record.json"))) == 2
    assert not list(results.glob("runs/**/checkpoint"))


@pytest.mark.slow
def test_a_cell_that_is_killed_continues(checkout) -> None:
    name = checkout.write("killed.yaml", LONG.replace("name: long", "name: killed").replace("seeds: 2", "seeds: 1"))
    results = checkout.folder / "results/killed"
    with checkout.lingering():
        process = checkout.start("-m", "snakemake", "--cores", "2", "--configfile", name, "--", "cells")
        until(process, lambda: bool(list(results.glob("runs/**/checkpoint/state.ckpt"))))  # after the second task
        children = psutil.Process(process.pid).children()
        (zygote,) = (child for child in children if "zygote.py" in " ".join(child.cmdline()))
        (cell,) = zygote.children()
        cell.kill()
        output = process.communicate(timeout=600)[0]
    assert process.returncode == 1
    assert "seed0: failed: the process was killed; was it out of memory? (log: results/killed/runs" in output
    checkout.snakemake(name, "--", "cells")
    (path,) = results.glob("runs/**/record.json")
    assert record.read(path)["measured"]["resumed"] == 1


SEARCH = """
name: search
title: Search
stream: split-digits
stream_options: {validation: 0.2}
seeds: 1
defaults: {epochs: 1, width: 4}
groups:
  one: {methods: [derpp], buffers: [20], set: {derpp.alpha: [0.2, 0.4]}}
  two:
    methods: [sparcl-derpp]
    buffers: [20]
    sparsities: [0.75]
    grid: true
    set: {tdm.alpha: [0.5], tdm.beta: [1, 2]}
"""


@pytest.mark.slow
def test_search_writes_a_choice_that_another_matrix_uses(checkout, config: str) -> None:
    search = checkout.write("search.yaml", SEARCH)
    output = checkout.snakemake(search, "--", "tune")
    assert "choice:  results/search/tuned.yaml" in output
    results = checkout.folder / "results/search"
    before = checkout.records("search")
    assert len(before) == 4  # two methods, two points each
    for path in results.glob("runs/**/record.json"):
        found = record.read(path)
        assert found["cell"]["stream_options"] == {"validation": 0.2}
    stream = json.loads((results / "plan.json").read_text())["stream"]
    assert sum(stream["train_sizes"] + stream["test_sizes"]) == 1438  # the training images alone
    chosen = yaml.safe_load((results / "tuned.yaml").read_text())["components"]
    assert [entry["where"]["method"] for entry in chosen] == ["derpp", "sparcl-derpp"]
    scores = {}
    for path in results.glob("runs/split-digits/derpp/**/record.json"):
        found = record.read(path)
        scores[found["cell"]["params"]["derpp.alpha"]] = metrics.average(found["results"]["accuracy"]["class_il"])
    value = chosen[0]["values"]["derpp.alpha"]
    assert scores[value] == max(scores.values())
    assert chosen[0]["evidence"]["mean"] == pytest.approx(scores[value], abs=1e-4)
    assert set(chosen[1]["values"]) == {"tdm.alpha", "tdm.beta"}

    # A second run does nothing; an added point runs its own cell, then the choice.
    written = (results / "tuned.yaml").stat().st_mtime_ns
    assert "Nothing to be done" in checkout.snakemake(search, "--", "tune")
    assert (checkout.records("search"), (results / "tuned.yaml").stat().st_mtime_ns) == (before, written)
    checkout.write(search, SEARCH.replace("[0.2, 0.4]", "[0.2, 0.4, 0.8]"))
    dry = checkout.snakemake(search, "--dry-run", "--", "tune")
    assert jobs(dry) == {"cell": 1, "collect": 1, "results": 1, "tune": 1, "total": 4}
    checkout.snakemake(search, "--", "tune")
    after = checkout.records("search")
    added = "split-digits/derpp/s0.00/b20/derpp.alpha=0.8+epochs=1+stream.validation=0.2+width=4/seed0"
    assert set(after) - set(before) == {added}
    assert {path: after[path] for path in before} == before
    chosen = yaml.safe_load((results / "tuned.yaml").read_text())["components"]
    assert [entry["evidence"]["points"] for entry in chosen] == [3, 2]

    # Another matrix takes the choice by one line.
    value = chosen[0]["values"]["derpp.alpha"]
    using = checkout.write("using.yaml", SMALL + "hyperparameters: results/search/tuned.yaml\n")
    dry = checkout.snakemake(using, "--dry-run", "--", "cells")
    assert f"/derpp/s0.00/b20/derpp.alpha={value}+epochs=1+width=4/seed0" in dry


@pytest.mark.slow
def test_search_with_a_diverged_cell_chooses_among_the_others_and_says_so(checkout) -> None:
    text = SEARCH.replace("name: search", "name: wild").replace("[0.2, 0.4]", "[0.2, 100000000]")
    checkout.snakemake(checkout.write("wild.yaml", text), "--", "tune")
    chosen = yaml.safe_load((checkout.folder / "results/wild/tuned.yaml").read_text())["components"]
    assert chosen[0]["values"] == {"derpp.alpha": 0.2}
    assert (chosen[0]["evidence"]["points"], chosen[0]["evidence"]["complete"]) == (2, 1)
    assert "diverged" in chosen[0]["evidence"]["lacking"][0]


def test_a_matrix_that_is_no_search_has_nothing_to_tune(checkout, config: str) -> None:
    before = checkout.records("small")
    output = checkout.snakemake(config, "--", "tune", status=2)
    assert output.splitlines()[-1] == "error: stream_options.validation: missing, a search holds training images out"
    assert checkout.records("small") == before


@pytest.mark.slow
def test_snakemakes_own_report(checkout, config: str) -> None:
    checkout.snakemake(config, "--report", "snakemake-report.html")
    text = (checkout.folder / "snakemake-report.html").read_text()
    for category in ("Tables", "Figures", "Report"):
        assert category in text


@pytest.mark.slow
def test_wildcards_cannot_reach_the_shell(checkout, config: str) -> None:
    for cell in ("x;touch hacked", "../../../escaped"):
        output = checkout.snakemake(config, "--", f"results/small/runs/{cell}/record.json", status=1)
        assert "Exception" in output or "Error" in output
    assert not (checkout.folder / "hacked").exists()


@pytest.mark.slow
def test_workflow_directory_is_an_entry_of_its_own(checkout, config: str) -> None:
    output = checkout.snakemake(config, "--snakefile", "workflow/Snakefile", "--dry-run")
    assert "Nothing to be done" in output or "cell" not in jobs(output)


def test_jobs_read_the_plan_and_plan_nothing(checkout, config: str, tmp_path: Path) -> None:
    """A process of Snakemake's own for one job, as on a node of a cluster, imports no torch and makes no plan."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is not for this process')")
    path = checkout.records("small").popitem()[0]
    target = "results/small/tables/primary.csv"
    (checkout.folder / target).unlink()
    command = (
        f"snakemake --snakefile workflow/Snakefile --configfile {config} --mode remote --cores 1 --force --no-hooks "
        "--nolock --allowed-rules table --target-jobs table:table=primary"
    )
    environment = {**checkout.environment, "PYTHONPATH": f"{tmp_path}:{checkout.folder}"}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=checkout.folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (checkout.folder / target).exists()
    assert f"runs/{path}" not in done.stderr


def test_make_is_a_convenience_over_it(checkout, config: str) -> None:
    """`make` with the test's interpreter in place of a virtual environment of its own."""
    binaries = checkout.folder / "venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "snakemake").write_text(f'#!/bin/sh\nexec {sys.executable} -m snakemake "$@"\n')
    (binaries / "snakemake").chmod(0o755)
    (binaries / "python").symlink_to(sys.executable)
    for name in ("pyproject.toml", "constraints.txt"):
        (checkout.folder / name).write_text("")
    (checkout.folder / "venv/.installed").touch()

    def make(*arguments: str) -> subprocess.CompletedProcess:
        command = ["make", "VENV=venv", "CORES=2", *arguments]
        return subprocess.run(command, cwd=checkout.folder, env=checkout.environment, capture_output=True, text=True)

    done = make("tables", f"CONFIG={config}")
    assert (done.returncode, "Nothing to be done" in done.stderr) == (0, True), done.stderr
    for name, expected in (
        ("config/nowhere.yaml", "config/nowhere.yaml: expected a YAML file that can be read"),
        ("list.yaml", "list.yaml: expected a matrix config"),
        ("latin.yaml", "latin.yaml: expected plain YAML"),
    ):
        (checkout.folder / "list.yaml").write_text("- name\n")
        (checkout.folder / "latin.yaml").write_bytes(b"name: caf\xe9\n")
        for target in ("tables", "partial", "dry-run"):
            done = make(target, f"CONFIG={name}")
            assert done.returncode == 2
            assert done.stderr.splitlines()[0].startswith(f"error: {expected}")
            assert all(line.startswith("make: ***") for line in done.stderr.splitlines()[1:])
    done = make("tune", f"CONFIG={config}")
    assert done.returncode == 2
    assert "error: stream_options.validation: missing, a search holds training images out" in done.stderr
