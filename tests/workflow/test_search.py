"""The choice of hyper-parameters: the best mean over the seeds, with its evidence, and only of a finished search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sparcl import cell, matrix, search
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


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a plan and a record for each cell whose accuracy is a rule of the test's own."""
    monkeypatch.setattr(search.record, "read", lambda path: json.loads(path.read_text()))

    def make(accuracy, config: dict = SEARCH) -> Path:
        plan = matrix.from_dict(config).plan()
        target = matrix.write_plan(plan, tmp_path / "results")
        for entry in plan["cells"]:
            path = target.parent / "runs" / entry["path"] / "record.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            metrics = {"class_il": accuracy(entry["cell"]), "task_il": 0.0}
            content = {
                "identity": entry["identity"],
                "method": {"task_il_only": False},
                "results": {"metrics": metrics},
            }
            path.write_text(json.dumps(content))
        return target

    return make


def accuracy(chosen: dict) -> float:
    """Return a table in which seed 0 alone would choose another combination than the mean does."""
    params, seed = chosen["params"], chosen["seed"]
    table = {(0.1, 0.5): (60, 20), (0.1, 1.0): (50, 40), (0.2, 0.5): (45, 65), (0.2, 1.0): (10, 10)}
    if chosen["buffer"] == 50:
        table[0.1, 1.0] = (50, 70)
    return float(table[params["derpp.alpha"], params["derpp.beta"]][seed]) if chosen["method"] == "derpp" else 99.0


def test_best_mean_is_chosen_with_its_evidence(finished, tmp_path: Path) -> None:
    out = tmp_path / "chosen.yaml"
    assert search.main(["--plan", str(finished(accuracy)), "--out", str(out)]) == 0
    small, large = yaml.safe_load(out.read_text())["components"]
    assert small["where"] == {"stream": "split-digits", "method": "derpp", "sparsity": 0.0, "buffer": 20}
    assert small["values"] == {"derpp.alpha": 0.2, "derpp.beta": 0.5}
    assert large["values"] == {"derpp.alpha": 0.1, "derpp.beta": 1.0}
    assert "20% of the training images" in small["source"]
    assert [(entry["mean"], entry["seeds"]) for entry in small["evidence"]] == [(55, 2), (45, 2), (40, 2), (10, 2)]
    assert small["evidence"][0]["std"] == pytest.approx(14.1421)

    made = cell.make("split-digits", "derpp", 0.0, 50, hyperparameters=out)
    assert (made.params["derpp.alpha"], made.params["derpp.beta"]) == (0.1, 1.0)
    assert cell.make("split-digits", "er", 0.0, 50, hyperparameters=out).variant == ""


def test_first_of_equals_is_chosen(finished, tmp_path: Path) -> None:
    plan = finished(lambda chosen: 50.0)
    chosen = search.choose(json.loads(plan.read_text()), plan.parent / "runs")
    assert chosen["components"][0]["values"] == {"derpp.alpha": 0.1, "derpp.beta": 0.5}


def test_nothing_is_chosen_from_an_unfinished_or_foreign_search(finished, tmp_path: Path, capsys) -> None:
    plan = finished(accuracy)
    path = next((plan.parent / "runs/split-digits/derpp").glob("**/record.json"))
    record = json.loads(path.read_text())
    out = tmp_path / "chosen.yaml"
    path.write_text(json.dumps(record | {"identity": "0" * 64}))
    assert search.main(["--plan", str(plan), "--out", str(out)]) == 2
    assert f"error: {path}: expected a record of this plan" in capsys.readouterr().err
    path.unlink()
    assert search.main(["--plan", str(plan), "--out", str(out)]) == 2
    assert f"error: {path}: expected the record of a finished cell" in capsys.readouterr().err
    assert not out.exists()


def test_a_matrix_that_is_no_search_is_refused(finished) -> None:
    config = {key: value for key, value in SEARCH.items() if key != "stream_options"}
    plan = finished(accuracy, config)
    with pytest.raises(UserError, match="a search needs stream_options"):
        search.choose(json.loads(plan.read_text()), plan.parent / "runs")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "other"}', "{"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, capsys, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    assert search.main(["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "chosen.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
