"""Grids as data: every method has one, every value is valid, and a config uses them by one line."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sparcl import grids, matrix, methods, plan, resolve
from sparcl.errors import UserError

SEARCH = {
    "name": "search",
    "title": "Search",
    "stream": "split-digits",
    "stream_options": {"validation": 0.2},
    "seeds": 1,
    "groups": {"one": {"methods": ["derpp", "rigl-er"], "buffers": [20], "sparsities": [0.9], "grid": True}},
}


def problems(**changes) -> list[str]:
    with pytest.raises(matrix.MatrixError) as caught:
        matrix.from_dict(SEARCH | changes)
    return caught.value.problems


def test_every_entry_fits_a_method() -> None:
    for patterns, _ in grids._entries(grids.GRIDS):
        for pattern in patterns:
            assert matrix._matching(pattern, methods.names())


@pytest.mark.parametrize("stream", ["split-digits", "split-cifar10", "split-cifar100", "split-tiny-imagenet"])
def test_every_method_has_a_grid_that_holds_what_a_cell_has_without_a_search(stream: str) -> None:
    entries = grids._entries(grids.GRIDS)
    for method in methods.names():
        fitting = [grid for patterns, grid in entries if any(fnmatchcase(method, pattern) for pattern in patterns)]
        assert fitting, f"{method}: no entry fits"
        known = methods.get(method).parameters()
        sparsity, buffer = 0.75 * methods.get(method).is_sparse, 200 * methods.get(method).needs_memory
        default = resolve.make(stream, method, sparsity, buffer)
        for key, values in fitting[0].values.items():
            for value in values:
                assert known[key].check(key, value) == value, method
            assert default.params[key] in values, (method, key)


def test_fine_tuning_has_nothing_to_search_for() -> None:
    for method in ("finetune", "joint", "rigl-finetune"):
        with pytest.raises(UserError, match=f"{method} has nothing to search for"):
            grids.of(method)


def test_methods_of_a_group_get_their_own_grids() -> None:
    made = matrix.from_dict(SEARCH)
    rest = "stream.validation=0.2/seed0"
    assert {cell.path for cell in made.cells} == {
        *(f"split-digits/derpp/s0.00/b20/{values}{rest}" for values in (
            "", "derpp.beta=1+", "derpp.alpha=0.2+", "derpp.alpha=0.2+derpp.beta=1+", "derpp.alpha=0.5+",
            "derpp.alpha=0.5+derpp.beta=1+",
        )),
        *(f"split-digits/rigl-er/s0.90/b20/{values}{rest}" for values in ("", "rigl.alpha=0.1+", "rigl.alpha=0.5+")),
    }  # fmt: skip
    shown = plan.make(made)["config"]["groups"]["one"]["grid"]
    assert shown["rigl-er"]["set"] == {"rigl.alpha": [0.1, 0.3, 0.5]}
    assert "Evci" in shown["rigl-er"]["source"]


def test_own_values_go_before_the_grid() -> None:
    one = {"methods": ["derpp"], "buffers": [20], "grid": True, "set": {"derpp.alpha": [0.7]}}
    made = matrix.from_dict(SEARCH | {"groups": {"one": one}})
    assert {(c.params["derpp.alpha"], c.params["derpp.beta"]) for c in made.cells} == {(0.7, 0.5), (0.7, 1.0)}
    assert made.config["groups"]["one"]["grid"]["derpp"]["source"].endswith("; derpp.alpha from the config")


def test_what_is_wrong_with_a_search_is_said_in_lines() -> None:
    assert problems(stream_options={}) == [
        "config: groups.one.grid: expected stream_options.validation beside it: a search never sees the test images"
    ]
    assert "tune.streams[0]: unknown name 'split-cifar1'" in problems(tune={"streams": ["split-cifar1"]})[0]
    assert "tune.stream: unknown key (did you mean 'streams'?)" in problems(tune={"stream": ["split-cifar10"]})[0]
    assert problems(groups={"one": {"methods": ["finetune"], "grid": True}})[0].startswith(
        "config: groups.one.grid: finetune has nothing to search for"
    )
    wrong = {"one": {"methods": ["derpp"], "buffers": [20], "grid": False}}
    assert problems(groups=wrong) == ["config: groups.one.grid: expected true, got false"]


def test_a_missing_choice_is_said_once() -> None:
    assert problems(hyperparameters="results/none/tuned.yaml") == [
        "config: hyperparameters: expected a file that 'make tune' has written, found no results/none/tuned.yaml"
    ]


def test_a_choice_that_names_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    for entry, expected in (
        ("where: {steam: split-digits}\n    values: {}", "where: unknown name 'steam' (did you mean 'stream'?)"),
        ("where: {}\n    values: {ddr.propotion: 1}", "values: unknown name 'ddr.propotion' (did you mean 'ddr.prop"),
    ):
        file.write_text(f"components:\n  - where: {{}}\n    values: {{derpp.alpha: 0.2}}\n  - {entry}\n")
        with pytest.raises(UserError, match=re.escape(f"components[1].{expected}")):
            resolve.make("split-digits", "derpp", 0.0, 20, hyperparameters=file)
        file = tmp_path / "another.yaml"  # what a name held is remembered


def test_a_file_that_holds_no_grids_is_refused(tmp_path: Path) -> None:
    for index, text in enumerate(("grids: 3\n", "{}\n", "grids: [{methods: [er]}]\n", "grids: [{set: 1}]\n")):
        path = tmp_path / f"{index}.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match="expected a list 'grids'"):
            grids.of("er", path)
