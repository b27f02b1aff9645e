"""The choice of hyper-parameters: the best mean over the seeds, its evidence, and what happens to what is missing."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from factory import collected, entry, record, sealed
from factory import plan as planned

from analysis import __main__ as cli
from analysis import tuning
from sparcl import matrix, resolve
from sparcl.errors import UserError

SEARCH = {
    "name": "search",
    "title": "Search",
    "stream": "split-digits",
    "stream_options": {"validation": 0.2},
    "seeds": 2,
    "groups": {
        "one": {"methods": ["derpp"], "buffers": [20, 50], "set": {"derpp.alpha": [0.1, 0.2], "derpp.beta": [0.5, 1]}},
        "plain": {"methods": ["er"], "buffers": [20]},
    },
}
# Seed 0 alone would choose (0.1, 0.5), and the highest value belongs to (0.1, 1.0): only the mean is for (0.2, 0.5).
TABLE = {(0.1, 0.5): (60, 20), (0.1, 1.0): (10, 66), (0.2, 0.5): (45, 65), (0.2, 1.0): (10, 10)}


def accuracy(chosen: Mapping[str, Any]) -> float:
    """Return the accuracy of a cell in percent, by a table of the test's own."""
    if chosen["method"] != "derpp":
        return 99.0
    params, seed = chosen["params"], chosen["seed"]
    if chosen["buffer"] == 50 and (params["derpp.alpha"], params["derpp.beta"]) == (0.1, 1.0):
        return (50.0, 70.0)[seed]
    return float(TABLE[params["derpp.alpha"], params["derpp.beta"]][seed])


def expanded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of a config: its cells as the library expands them, the rest synthetic."""
    loaded = matrix.from_dict(dict(config))
    items = []
    for chosen, groups in zip(loaded.cells, loaded.groups, strict=True):
        settings = next((part for part in chosen.path.split("/") if "=" in part), "")
        variant = dict(setting.split("=") for setting in re.split("[+,]", settings) if setting)
        items.append(entry({"kernel": "dense"} | chosen.as_dict(), groups, variant))
    return planned(items, name=loaded.config["name"]) | {"config": loaded.config}


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Write a plan and a record for each of its cells; returns the plan's file."""

    def make(
        accuracy: Callable[[Mapping[str, Any]], float] = accuracy,
        config: Mapping[str, Any] = SEARCH,
        flops: Callable[[Mapping[str, Any]], int] = lambda _: 1000,
    ) -> Path:
        plan = expanded(config)
        target = tmp_path / "results" / plan["name"] / "plan.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(plan))
        for item in plan["cells"]:
            body = record(item)
            body["results"]["accuracy"]["class_il"][-1] = [accuracy(item["cell"])] * 5
            body["results"]["executed"]["training"] = flops(item["cell"])
            path = target.parent / "runs" / item["path"] / "record.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(sealed(body)))
        return target

    return make


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def run(plan: Path, status: int = 0) -> dict[str, Any]:
    """Collect and choose by the command line; return what it chose."""
    done = [cli.main([command, "--plan", str(plan), "--out", str(plan.parent)]) for command in ("collect", "tune")]
    assert max(done) == status
    return yaml.safe_load((plan.parent / "tuned.yaml").read_text()) if status == 0 else {}


def point(plan: Path, alpha: float, beta: float, seed: int = 0, buffer: int = 20) -> Path:
    """Return the folder of a DER++ cell."""
    for item in read(plan)["cells"]:
        params = item["cell"]["params"]
        found = (item["cell"]["buffer"], item["cell"]["seed"], params.get("derpp.alpha"), params.get("derpp.beta"))
        if found == (buffer, seed, alpha, beta):
            return plan.parent / "runs" / item["path"]
    raise AssertionError


def test_best_mean_is_chosen_with_its_evidence(finished) -> None:
    plan = finished()
    found = run(plan)
    small, large = found["components"]
    assert small["where"] == {"stream": "split-digits", "method": "derpp", "sparsity": 0.0, "buffer": 20}
    assert small["values"] == {"derpp.alpha": 0.2, "derpp.beta": 0.5}
    assert large["values"] == {"derpp.alpha": 0.1, "derpp.beta": 1.0}
    assert "Class-IL on 20 % of split-digits's training images" in small["source"]
    evidence = small["evidence"]
    assert {key: evidence[key] for key in ("mean", "n", "seeds", "points", "complete", "decided_by", "lacking")} == {
        "mean": 55.0, "n": 2, "seeds": [0, 1], "points": 4, "complete": 4, "decided_by": "mean", "lacking": [],
    }  # fmt: skip
    assert evidence["sd"] == pytest.approx(14.1421)  # sqrt(2) * 10
    # Means 55, 40, 38, 10. Differences to (0.1, 0.5): 45 - 60 = -15 and 65 - 20 = 45; mean 15, deviation sqrt(2) * 30.
    assert evidence["runner_up"]["values"] == {"derpp.alpha": 0.1, "derpp.beta": 0.5}
    assert evidence["runner_up"]["difference"] == 15.0
    assert evidence["runner_up"]["difference_sd"] == pytest.approx(42.4264)
    assert evidence["default"] == evidence["runner_up"]  # alpha 0.1 and beta 0.5 are split-digits' own
    assert found["search"]["records"] == 16  # the 2 of the group that sweeps nothing are no evidence
    assert found["search"]["planned"] == 18
    assert found["search"]["validation"] == 0.2

    made = resolve.make("split-digits", "derpp", 0.0, 50, hyperparameters=plan.parent / "tuned.yaml")
    assert (made.params["derpp.alpha"], made.params["derpp.beta"]) == (0.1, 1.0)
    assert made.path == "split-digits/derpp/s0.00/b50/derpp.beta=1/seed0"
    for method, sparsity, buffer in (("er", 0.0, 50), ("sparcl-derpp", 0.75, 50), ("derpp", 0.0, 100)):
        tuned = resolve.make("split-digits", method, sparsity, buffer, hyperparameters=plan.parent / "tuned.yaml")
        assert tuned == resolve.make("split-digits", method, sparsity, buffer)


def test_table_holds_every_point(finished) -> None:
    plan = finished()
    run(plan)
    rows = list(csv.DictReader((plan.parent / "tuning.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert [float(row["accuracy_mean"]) for row in rows] == [55, 40, 38, 10, 60, 55, 40, 10]
    assert [float(row["difference"]) for row in rows] == [0, 15, 17, 45, 0, 5, 20, 50]
    assert [row["chosen"] for row in rows] == ["1", "0", "0", "0"] * 2
    assert [row["values"] for row in rows if row["default"] == "1"] == ["derpp.alpha = 0.1, derpp.beta = 0.5"] * 2
    text = (plan.parent / "tuning.md").read_text()
    assert text.count("55.00 ± 14.14") == 2
    assert "**" not in text  # bold says that a test tells a row from the others, and here is none
    assert "Missing" not in text


def test_same_records_give_the_same_bytes(finished) -> None:
    plan = finished()
    run(plan)
    files = [plan.parent / name for name in ("tuned.yaml", "tuning.csv", "tuning.md")]
    before = [file.read_bytes() for file in files]
    run(plan)
    assert [file.read_bytes() for file in files] == before


def test_cheaper_of_equals_is_chosen_then_the_earlier(finished) -> None:
    found = run(finished(lambda _: 50.0))["components"][0]
    assert (found["values"], found["evidence"]["decided_by"]) == ({"derpp.alpha": 0.1, "derpp.beta": 0.5}, "order")
    found = run(finished(lambda _: 50.0, flops=lambda cell: int(9 - cell["params"].get("derpp.alpha", 0) * 10)))
    assert found["components"][0]["values"] == {"derpp.alpha": 0.2, "derpp.beta": 0.5}
    assert found["components"][0]["evidence"]["decided_by"] == "order"  # the first of the two cheaper ones

    def flops(cell: Mapping[str, Any]) -> int:
        return (
            1000 if cell["params"].get("derpp.alpha") == 0.1 else round(900 - 100 * cell["params"].get("derpp.beta", 0))
        )

    found = run(finished(lambda _: 50.0, flops=flops))["components"][0]
    assert (found["values"], found["evidence"]["decided_by"]) == ({"derpp.alpha": 0.2, "derpp.beta": 1.0}, "flops")


def test_rounding_does_not_break_a_tie(finished) -> None:
    table = {(0.1, 0.5): (0.1, 0.7), (0.2, 0.5): (0.3, 0.5)}  # 0.1 + 0.7 is below 0.3 + 0.5 in floating point
    plan = finished(
        lambda c: table.get((c["params"].get("derpp.alpha"), c["params"].get("derpp.beta")), (0, 0))[c["seed"]]
    )
    found = run(plan)["components"][0]
    assert (found["values"], found["evidence"]["decided_by"]) == ({"derpp.alpha": 0.1, "derpp.beta": 0.5}, "order")


def test_a_point_without_all_seeds_is_listed_and_not_chosen(finished, capsys) -> None:
    plan = finished()
    (point(plan, 0.2, 0.5, seed=1) / "record.json").unlink()
    failed = point(plan, 0.1, 0.5, seed=0)
    (failed / "record.json").unlink()
    (failed / "failed.json").write_text(json.dumps({"error": "the loss is not finite"}))
    found = run(plan)
    # Left: (0.1, 1.0) with 38 and (0.2, 1.0) with 10. Seed 0 of (0.2, 0.5) alone, 45, is no mean over the seeds.
    small = found["components"][0]
    assert small["values"] == {"derpp.alpha": 0.1, "derpp.beta": 1.0}
    expected = [
        "derpp, sparsity 0, buffer 20: derpp.alpha = 0.1, derpp.beta = 0.5: seed 0: failed: the loss is not finite",
        "derpp, sparsity 0, buffer 20: derpp.alpha = 0.2, derpp.beta = 0.5: seed 1: not run",
    ]
    assert small["evidence"]["lacking"] == expected
    assert (small["evidence"]["points"], small["evidence"]["complete"]) == (4, 2)
    assert "default" not in small["evidence"]  # its seed 0 failed
    assert found["search"]["lacking"] == expected
    printed = capsys.readouterr().err
    markdown = (plan.parent / "tuning.md").read_text().replace("\\", "")
    for line in expected:
        assert f"warning: {line}" in printed
        assert f"- {line}" in markdown
    rows = list(csv.DictReader((plan.parent / "tuning.csv").read_text().splitlines()))
    assert sum(bool(row["lacking"]) for row in rows) == 2
    assert len(rows) == 8


def test_a_seed_that_only_one_group_plans_is_missed_by_the_others(finished) -> None:
    groups = SEARCH["groups"] | {"more": {"methods": ["derpp"], "buffers": [20], "seeds": [0, 1, 2]}}
    plan = finished(lambda chosen: 50.0 + chosen["seed"], SEARCH | {"groups": groups})
    small = run(plan)["components"][0]
    assert small["values"] == {"derpp.alpha": 0.1, "derpp.beta": 0.5}
    assert small["evidence"]["complete"] == 1
    assert [line.rpartition(": ")[2] for line in small["evidence"]["lacking"]] == ["not planned"] * 3


def test_a_grid_without_a_complete_point_has_no_choice(finished, capsys) -> None:
    plan = finished()
    for alpha, beta in TABLE:
        (point(plan, alpha, beta, buffer=50) / "record.json").unlink()
    found = run(plan)
    assert [entry["where"]["buffer"] for entry in found["components"]] == [20]
    assert found["search"]["lacking"][-1] == "derpp, sparsity 0, buffer 50: no choice, no point has all its seeds"
    for alpha, beta in TABLE:
        (point(plan, alpha, beta) / "record.json").unlink()
    run(plan, status=2)
    assert "no point of any grid has all its seeds: derpp, sparsity 0, buffer 20" in capsys.readouterr().err


def test_task_il_decides_for_methods_without_class_il(finished) -> None:
    config = SEARCH | {
        "groups": {"one": {"methods": ["packnet"], "sparsities": [0.5], "set": {"packnet.retrain": [0.2, 0.5]}}}
    }
    plan = finished(lambda chosen: 90.0 - 100 * chosen["params"]["packnet.retrain"], config)
    for file in plan.parent.glob("runs/**/record.json"):
        body = read(file)
        body["results"]["accuracy"]["task_il"][-1] = [100 * body["cell"]["params"]["packnet.retrain"]] * 5
        file.write_text(json.dumps(sealed(body)))
    found = run(plan)["components"][0]
    assert found["evidence"]["metric"] == "task_il"
    assert (found["values"], found["evidence"]["mean"]) == ({"packnet.retrain": 0.5}, 50.0)


def test_foreign_record_is_refused(finished, capsys) -> None:
    plan = finished()
    file = point(plan, 0.1, 0.5) / "record.json"
    file.write_text(json.dumps(sealed(read(file) | {"identity": "0" * 64})))
    run(plan, status=2)
    assert "record of other code" in capsys.readouterr().err
    assert not (plan.parent / "tuned.yaml").exists()


def test_cells_that_differ_in_more_than_the_sweep_are_refused(finished) -> None:
    for defaults, key in (({"epochs": 2}, "epochs"), ({"params": {"protocol.momentum": 0.5}}, "protocol.momentum")):
        groups = SEARCH["groups"] | {"more": {"methods": ["derpp"], "buffers": [20], "defaults": defaults}}
        plan = finished(lambda _: 50.0, SEARCH | {"groups": groups})
        with pytest.raises(UserError, match=f"expected one '{key}' for all points"):
            tuning.choose(collected(plan))


def test_a_matrix_that_is_no_search_is_refused(finished) -> None:
    for gone in ("stream_options", "groups"):
        config = {key: value for key, value in SEARCH.items() if key != gone}
        plan = finished(config={"groups": {"plain": SEARCH["groups"]["plain"]}} | config)
        with pytest.raises(UserError, match="expected a search"):
            tuning.choose(collected(plan))


def test_choice_can_be_for_other_streams(finished) -> None:
    streams = ["split-cifar10", "split-tiny-imagenet"]
    found = run(finished(config=SEARCH | {"tune": {"streams": streams}}))
    assert [entry["where"]["stream"] for entry in found["components"]] == [streams[0]] * 2 + [streams[1]] * 2
    assert all("split-digits's training images" in entry["source"] for entry in found["components"])
    assert found["components"][0]["values"] == found["components"][2]["values"]
