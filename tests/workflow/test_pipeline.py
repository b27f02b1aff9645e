"""The pipeline end to end, in a checkout of its own: what runs, what does not run again, what happens on failure."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from sparcl.running import record

pytestmark = pytest.mark.pipeline

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


def jobs(dry_run: str) -> dict[str, int]:
    """Return the number of jobs per rule that a dry run announces."""
    table = re.search(r"^job +count\n-+ +-+\n((?:\S+ +\d+\n)+)", dry_run, re.MULTILINE)
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()} if table else {}


def run_script(config: str, *arguments: str) -> tuple[str, ...]:
    return ("workflow/scripts/run.py", "--config", config, "--cores", "2", *arguments)


@pytest.fixture(scope="module")
def config(checkout) -> str:
    """A small matrix that has been run."""
    name = checkout.write("small.yaml", SMALL)
    dry = checkout.snakemake(name, "--dry-run")
    assert jobs(dry) == {
        **{rule: 1 for rule in ("check", "default", "figures", "report", "tables")},
        "cell": 4,
        "total": 9,
    }
    assert "reason: Missing output files" in dry
    assert not (checkout.folder / "results/small").exists()
    output = checkout.run(*run_script(name, "all"))
    assert "cells 4/4 (100 %)" in output
    assert "report:  results/small/report.html" in output
    assert "rule cell" not in output
    return name


def test_first_run_makes_records_tables_figures_and_report(checkout, config: str) -> None:
    results = checkout.folder / "results/small"
    assert len(checkout.records("small")) == 4
    for path in results.glob("runs/**/record.json"):
        assert record.read(path)["identity"]
    assert list(results.glob("tables/*.csv"))
    assert list(results.glob("tables/*.tex"))
    assert list(results.glob("figures/*.svg"))
    assert (results / "report.html").stat().st_size > 10_000
    plan = json.loads((results / "plan.json").read_text())
    assert {entry["path"] for entry in plan["cells"]} == set(checkout.records("small"))


def test_second_run_does_nothing(checkout, config: str) -> None:
    before = checkout.records("small")
    report = (checkout.folder / "results/small/report.html").stat().st_mtime_ns
    assert "Nothing to be done" in checkout.snakemake(config)
    assert checkout.records("small") == before
    assert (checkout.folder / "results/small/report.html").stat().st_mtime_ns == report


def contents(results: Path) -> dict[str, bytes]:
    """Return what a finished run has made of its records."""
    names = ("tables/*", "figures/*", "report.html", "provenance.json")
    paths = [path for name in names for path in results.glob(name)]
    return {str(path): path.read_bytes() for path in paths}


def truncated(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-50])
    return "run record is damaged, expected JSON"


def edited(path: Path) -> str:
    found = json.loads(path.read_text())
    found["results"]["metrics"]["class_il"] = 99.9
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return "run record was changed after it was written"


@pytest.mark.parametrize("damage", [truncated, edited])
def test_refused_record_is_told_in_one_line_and_old_results_stay(checkout, config: str, damage) -> None:
    results = checkout.folder / "results/small"
    before = contents(results)
    path = results / "runs/split-digits/derpp/s0.00/b20/epochs=1,width=4/seed1/record.json"
    whole, times = path.read_bytes(), path.stat()
    try:
        refusal = f"error: {path.relative_to(checkout.folder)}: {damage(path)}"
        output = checkout.run(*run_script(config, "all"), status=2)
        assert output.splitlines()[-1].startswith(refusal)
        assert output.count("error:") == 1
        for noise in ("RuleException", "WorkflowError", "Traceback", "making "):
            assert noise not in output
        assert contents(results) == before
        # The second time, by hand, and with the records there are, it is the same.
        output = checkout.snakemake(config, "--config", "partial=true", status=1)
        assert refusal in output
        assert contents(results) == before
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "Nothing to be done" in checkout.snakemake(config, "--dry-run")


def test_comments_and_touched_files_run_nothing(checkout, config: str) -> None:
    source = checkout.folder / "sparcl/policies/tdm.py"
    source.write_text("# A remark.\n" + source.read_text())
    (checkout.folder / "workflow/rules/cells.smk").touch()
    (checkout.folder / "small.yaml").touch()
    assert "Nothing to be done" in checkout.snakemake(config, "--dry-run")


def test_added_baseline_runs_its_own_cells_only(checkout, config: str) -> None:
    before = checkout.records("small")
    (checkout.folder / "baselines/halves.py").write_text(BASELINE)
    checkout.write(config, SMALL + ADDED)
    assert jobs(checkout.snakemake(config, "--dry-run", "--", "cells")) == {"cell": 2, "cells": 1, "total": 3}
    output = checkout.snakemake(config)
    assert "cells to run: 2" in output
    after = checkout.records("small")
    new = set(after) - set(before)
    assert new == {f"split-digits/halves-derpp/s0.50/b20/epochs=1,width=4/seed{seed}" for seed in (0, 1)}
    assert {path: after[path] for path in before} == before
    assert "halves-derpp" in (checkout.folder / "results/small/tables/all_cells.csv").read_text()
    assert "Nothing to be done" in checkout.snakemake(config)

    # An edit of the baseline's code concerns its cells alone.
    edited = BASELINE + "    mark = 1\n"
    (checkout.folder / "baselines/halves.py").write_text(edited)
    dry = checkout.snakemake(config, "--dry-run", "--", "cells")
    assert jobs(dry) == {"cell": 2, "cells": 1, "total": 3}
    assert "Params have changed since last execution" in dry

    # Without it the matrix is what it was before: nothing is trained.
    (checkout.folder / "baselines/halves.py").unlink()
    checkout.write(config, SMALL)
    assert "cell" not in jobs(checkout.snakemake(config, "--dry-run"))


def test_failed_cell_is_named_and_the_others_finish(checkout) -> None:
    text = SMALL.replace("name: small", "name: failing")
    diverging = "  diverging: {methods: [finetune], seeds: [7], defaults: {learning_rate: 1000000}}\n"
    name = checkout.write("failing.yaml", text + diverging)
    output = checkout.run(*run_script(name, "all"), status=1)
    path = "split-digits/finetune/s0.00/b0/epochs=1,learning_rate=1e+06,width=4/seed7"
    assert "1 cell failed:" in output
    assert re.search(rf"{re.escape(path)}: .*not finite.*log: results/failing/runs/", output)
    assert len(checkout.records("failing")) == 4
    results = checkout.folder / "results/failing"
    assert (results / "report.html").exists()  # of what there is,
    tables = "".join(table.read_text() for table in results.glob("tables/*.md"))
    assert re.search("issing", tables)  # and it says what is not
    again = checkout.snakemake(name, "--dry-run", "--", "cells")
    assert jobs(again) == {"cell": 1, "cells": 1, "total": 2}


def test_unusable_state_folder_is_told_in_one_line(checkout, tmp_path: Path) -> None:
    (tmp_path / ".snakemake").write_text("")
    script = checkout.folder / "workflow/scripts/run.py"
    process = subprocess.run(
        [sys.executable, script, "all"], cwd=tmp_path, env=checkout.environment, capture_output=True, text=True
    )
    expected = "error: .snakemake: expected a folder that can be written to (File exists)\n"
    assert (process.returncode, process.stdout, process.stderr) == (2, "", expected)


def test_bad_config_runs_nothing_and_is_told_in_lines(checkout, config: str) -> None:
    before = checkout.records("small")
    bad = checkout.write("bad.yaml", SMALL.replace("derpp", "derp").replace("seeds: 2", "seeds: 0"))
    output = checkout.run(*run_script(bad, "all"), status=2)
    assert output.splitlines() == [
        "error: bad.yaml: seeds: expected a count from 1 to 1000, or a list of different seeds, got 0"
    ]
    direct = checkout.snakemake(bad, status=1)
    assert "error: bad.yaml: seeds: expected a count" in direct
    assert "Traceback" not in direct
    twice = checkout.write("twice.yaml", SMALL + "seeds: 3\n")
    assert "key 'seeds' stands twice" in checkout.run(*run_script(twice, "all"), status=2)
    override = checkout.snakemake(config, "--config", "stream=split-digit", status=1)
    assert "config: stream: unknown name 'split-digit' (did you mean 'split-digits'?)" in override
    assert checkout.records("small") == before


def test_pipeline_and_command_line_give_the_same_record(checkout, config: str) -> None:
    path = "split-digits/sparcl-derpp/s0.75/b20/epochs=1,width=4/seed1"
    command = (
        "run --stream split-digits --method sparcl-derpp --sparsity 0.75 --buffer 20 --seed 1 --epochs 1 --width 4"
    )
    checkout.run("-m", "sparcl.worker", *command.split(), "--results", "by-hand")
    one = record.read(checkout.folder / "results/small/runs" / path / "record.json")
    other = record.read(checkout.folder / "by-hand/runs" / path / "record.json")
    assert record.reproducible(one) == record.reproducible(other)


LONG = """
name: long
title: Long
stream: split-digits
seeds: 2
defaults: {epochs: 12, width: 8}
groups:
  one: {methods: [sparcl-derpp], buffers: [20], sparsities: [0.75]}
"""


def cells_of(folder: Path) -> list[psutil.Process]:
    """Return the clients and children that run cells of the checkout."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = process.info["cmdline"] or []
        if process.info["cwd"] == str(folder) and ("--cell" in line or "-P" in line[:2]):
            found.append(process)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopped_pipeline_leaves_checkpoints_and_goes_on(checkout, number: signal.Signals) -> None:
    name = checkout.write("long.yaml", LONG.replace("name: long", f"name: long-{number.name.lower()}"))
    results = checkout.folder / f"results/long-{number.name.lower()}"
    process = checkout.start(*run_script(name, "cells"), start_new_session=True)
    deadline = time.monotonic() + 400
    while sum("task 1/5" in log.read_text() for log in results.glob("runs/**/log.txt")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if number == signal.SIGKILL:  # of Snakemake and of what started it; what they started must notice by itself
        snakemake = psutil.Process(process.pid).children()
        process.kill()
        for child in snakemake:
            child.kill()
    else:
        process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    deadline = time.monotonic() + 120
    while cells_of(checkout.folder):
        assert time.monotonic() < deadline, cells_of(checkout.folder)
        time.sleep(0.1)
    assert process.returncode == (-9 if number == signal.SIGKILL else 1), output
    assert len(list(results.glob("runs/**/checkpoint/state.ckpt"))) == 2
    assert not list(results.glob("runs/**/record.json"))

    assert jobs(checkout.snakemake(name, "--dry-run", "--", "cells"))["cell"] == 2
    checkout.run(*run_script(name, "cells"))
    for path in results.glob("runs/**/record.json"):
        assert record.read(path)["measured"]["resumed"] == 1
    assert len(list(results.glob("runs/**/record.json"))) == 2
    assert not list(results.glob("runs/**/checkpoint"))


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


def test_search_writes_a_choice_that_another_matrix_uses(checkout, config: str) -> None:
    search = checkout.write("search.yaml", SEARCH)
    output = checkout.run(*run_script(search, "tune"))
    assert "choice:  results/search/tuned.yaml" in output
    results = checkout.folder / "results/search"
    before = checkout.records("search")
    assert len(before) == 4  # two methods, two points each
    for path in results.glob("runs/**/record.json"):
        found = record.read(path)
        assert found["cell"]["stream_options"] == {"validation": 0.2}
        assert sum(found["stream"]["train_sizes"] + found["stream"]["test_sizes"]) == 1438  # the training images alone
    chosen = yaml.safe_load((results / "tuned.yaml").read_text())["components"]
    assert [entry["where"]["method"] for entry in chosen] == ["derpp", "sparcl-derpp"]
    scores = {}
    for path in results.glob("runs/split-digits/derpp/**/record.json"):
        found = record.read(path)
        scores[found["cell"]["params"]["derpp.alpha"]] = found["results"]["metrics"]["class_il"]
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
    assert jobs(dry) == {"cell": 1, "check": 1, "tune": 1, "total": 3}
    checkout.snakemake(search, "--", "tune")
    after = checkout.records("search")
    added = "split-digits/derpp/s0.00/b20/derpp.alpha=0.8,epochs=1,stream.validation=0.2,width=4/seed0"
    assert set(after) - set(before) == {added}
    assert {path: after[path] for path in before} == before
    chosen = yaml.safe_load((results / "tuned.yaml").read_text())["components"]
    assert [entry["evidence"]["points"] for entry in chosen] == [3, 2]

    # Another matrix takes the choice by one line.
    value = chosen[0]["values"]["derpp.alpha"]
    using = checkout.write("using.yaml", SMALL + "hyperparameters: results/search/tuned.yaml\n")
    dry = checkout.snakemake(using, "--dry-run", "--", "cells")
    assert f"/derpp/s0.00/b20/derpp.alpha={value},epochs=1,width=4/seed0" in dry


def test_search_with_a_failed_cell_chooses_among_the_others_and_says_so(checkout) -> None:
    text = SEARCH.replace("name: search", "name: diverging").replace("[0.2, 0.4]", "[0.2, 100000000]")
    output = checkout.run(*run_script(checkout.write("diverging.yaml", text), "tune"), status=1)
    assert "1 cell failed:" in output
    chosen = yaml.safe_load((checkout.folder / "results/diverging/tuned.yaml").read_text())["components"]
    assert chosen[0]["values"] == {"derpp.alpha": 0.2}
    assert (chosen[0]["evidence"]["points"], chosen[0]["evidence"]["complete"]) == (2, 1)
    assert "not finite" in chosen[0]["evidence"]["lacking"][0]


def test_a_matrix_that_is_no_search_has_nothing_to_tune(checkout, config: str) -> None:
    output = checkout.run(*run_script(config, "tune"), status=2)
    assert output.splitlines()[-1] == (
        f"error: {config}: stream_options.validation: missing, a search holds training images out"
    )


def test_two_runs_in_one_folder_do_not_meet(checkout, config: str) -> None:
    import fcntl

    (checkout.folder / ".snakemake").mkdir(exist_ok=True)
    with (checkout.folder / ".snakemake/run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = checkout.run(*run_script(config, "cells"), status=2)
    assert output == "error: another run is at work in this folder; wait for it or stop it\n"


def test_snakemakes_own_report(checkout, config: str) -> None:
    checkout.snakemake(config, "--report", "snakemake-report.html")
    text = (checkout.folder / "snakemake-report.html").read_text()
    for category in ("Tables", "Figures", "Report"):
        assert category in text


def test_wildcards_cannot_reach_the_shell(checkout, config: str) -> None:
    for cell in ("x;touch hacked", "../../../escaped"):
        output = checkout.snakemake(config, "--", f"results/small/runs/{cell}/record.json", status=1)
        assert "Exception" in output or "Error" in output
    assert not (checkout.folder / "hacked").exists()


def test_workflow_directory_is_an_entry_of_its_own(checkout, config: str) -> None:
    output = checkout.snakemake(config, "--snakefile", "workflow/Snakefile", "--dry-run")
    assert "Nothing to be done" in output or "cell" not in jobs(output)


@pytest.mark.parametrize(
    "command",
    [("snakemake", "--lint"), ("snakefmt", "--check", "Snakefile", "workflow")],
    ids=["lint", "format"],
)
def test_workflow_is_clean(checkout, command: tuple[str, ...]) -> None:
    checkout.run("-m", *command)


def test_jobs_inherit_one_thread(checkout) -> None:
    code = "import os, sys; sys.path.insert(0, 'workflow/scripts'); import startup; "
    output = checkout.run("-c", code + "startup.prepare(); print(os.environ)")
    assert "'SPARCL_WORKER': 'fork'" in output
    assert os.environ.get("OMP_NUM_THREADS", "1") in output
