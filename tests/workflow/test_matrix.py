"""Matrix configs: what they expand to, and what is said about bad ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl import cli, groups, matrix, methods, plan, resolve
from sparcl.errors import UserError
from sparcl.files import locks, strict_yaml
from sparcl.kernels import library

FOLDER = Path(__file__).parents[2] / "config"
CONFIGS = [path for path in sorted(FOLDER.glob("*.yaml")) if "groups" in strict_yaml.load(path)]
ANALYSES = [path for path in sorted(FOLDER.glob("*.yaml")) if "contrasts" in strict_yaml.load(path)]
SMALL = {
    "name": "small",
    "title": "Small",
    "stream": "split-digits",
    "seeds": 2,
    "groups": {"one": {"methods": ["er"], "buffers": [20]}},
}


def changed(**changes) -> dict:
    return SMALL | changes


def paths(config: dict) -> list[str]:
    return [entry.path for entry in matrix.from_dict(config).cells]


def problems(config: object) -> list[str]:
    with pytest.raises(matrix.MatrixError) as caught:
        matrix.from_dict(config)
    assert all("\n" not in line and line.startswith("config: ") for line in caught.value.problems)
    return [line.removeprefix("config: ") for line in caught.value.problems]


def refusal(action: Callable[[], object]) -> str | None:
    """Return what a UserError says; anything else that is raised fails the test."""
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def test_lists_are_crossed_with_seeds_innermost() -> None:
    group = {"methods": ["sparcl-er", "sparcl-derpp"], "buffers": [20, 50], "sparsities": [0.75, 0.9]}
    found = paths(changed(groups={"one": group}))
    assert len(found) == 2 * 2 * 2 * 2
    assert found[:3] == [
        "split-digits/sparcl-er/s0.75/b20/seed0",
        "split-digits/sparcl-er/s0.75/b20/seed1",
        "split-digits/sparcl-er/s0.75/b50/seed0",
    ]


def test_what_a_method_does_not_have_is_not_crossed() -> None:
    group = {"methods": ["finetune", "er", "static-er"], "buffers": [20, 50], "sparsities": [0.75, 0.9]}
    found = paths(changed(seeds=1, groups={"one": group}))
    assert found == [
        "split-digits/finetune/s0.00/b0/seed0",
        "split-digits/er/s0.00/b20/seed0",
        "split-digits/er/s0.00/b50/seed0",
        "split-digits/static-er/s0.75/b20/seed0",
        "split-digits/static-er/s0.75/b50/seed0",
        "split-digits/static-er/s0.90/b20/seed0",
        "split-digits/static-er/s0.90/b50/seed0",
    ]


def test_a_cell_of_two_groups_runs_once_and_carries_both_names() -> None:
    sweep = {"methods": ["sparcl-er"], "buffers": [20], "sparsities": [0.75], "set": {"ddr.proportion": [0.1, 0.3]}}
    plain = {"methods": ["sparcl-er"], "buffers": [20], "sparsities": [0.75]}
    made = plan.make(matrix.from_dict(changed(seeds=[3], groups={"plain": plain, "sweep": sweep})))
    assert [(entry["path"], entry["groups"]) for entry in made["cells"]] == [
        ("split-digits/sparcl-er/s0.75/b20/seed3", ["plain", "sweep"]),  # 0.3 is the default
        ("split-digits/sparcl-er/s0.75/b20/ddr.proportion=0.1/seed3", ["sweep"]),
    ]


def test_alone_changes_one_thing_at_a_time() -> None:
    group = {"methods": ["sparcl-er"], "buffers": [20], "sparsities": [0.75],
             "alone": {"ddr.proportion": [0.3, 0.1], "tdm.init": ["magnitude"], "epochs": [2]}}  # fmt: skip
    start = "split-digits/sparcl-er/s0.75/b20/"
    assert paths(changed(seeds=1, groups={"one": group})) == [
        f"{start}{setting}seed0" for setting in ("", "ddr.proportion=0.1/", "tdm.init=magnitude/", "epochs=2/")
    ]
    crossed = paths(changed(seeds=1, groups={"one": group | {"set": {"dgm.sparsity": [0.8, 0.9]}}}))
    assert len(crossed) == 8
    assert f"{start}dgm.sparsity=0.9+tdm.init=magnitude/seed0" in crossed


def test_plan_holds_cells_that_can_be_made_again() -> None:
    made = plan.make(matrix.from_dict(yaml.safe_load(CONFIGS[0].read_text())))
    for entry in made["cells"][:5]:
        again = resolve.from_dict(json.loads(json.dumps(entry["cell"])))
        assert again.path == entry["path"]
    assert len({entry["identity"] for entry in made["cells"]}) == len(made["cells"])


def test_exclusions() -> None:
    group = {"methods": ["er", "static-er"], "buffers": [20, 50], "sparsities": [0.75, 0.9]}
    config = changed(seeds=1, groups={"one": group}, exclude=[{"method": "static-*", "sparsity": 0.9}, {"buffer": 50}])
    assert paths(config) == ["split-digits/er/s0.00/b20/seed0", "split-digits/static-er/s0.75/b20/seed0"]


def test_no_group_is_left_empty() -> None:
    groups = {name: {"methods": [name], "buffers": [20]} for name in ("er", "derpp")}
    with pytest.raises(UserError, match=r"groups\.er: expected a cell that exclude leaves"):
        matrix.from_dict(changed(groups=groups, exclude=[{"group": "er"}]))


def test_a_grid_and_one_change_at_a_time_do_not_go_together() -> None:
    group = {"methods": ["derpp"], "buffers": [20], "grid": True, "alone": {"derpp.alpha": [0.2]}}
    with pytest.raises(UserError, match=r"groups\.one: expected grid or alone, not both"):
        matrix.from_dict(changed(groups={"one": group}, stream_options={"validation": 0.1}))


@pytest.mark.parametrize("text", ["0.00005", "5e-05", "5E-5", "5.e-5", "5.0e-5"])
def test_numbers_may_be_written_with_an_exponent(text) -> None:
    assert strict_yaml.parse(f"rate: {text}", "test") == {"rate": 5e-5}


def test_defaults_reach_the_cells_and_a_groups_own_go_before() -> None:
    groups = {
        "one": {"methods": ["er"], "buffers": [20], "defaults": {"epochs": 3}},
        "two": {"methods": ["tdm-er"], "buffers": [20], "sparsities": [0.5]},
    }
    defaults = {"epochs": 2, "width": 8, "params": {"tdm.interval": 2}}
    first, second = matrix.from_dict(changed(seeds=1, defaults=defaults, groups=groups)).cells
    assert (first.epochs, first.width) == (3, 8)
    assert (second.epochs, second.width, second.params["tdm.interval"]) == (2, 8, 2)
    assert "tdm.interval" not in first.params


def test_settings_of_the_protocol_can_be_swept() -> None:
    group = {"methods": ["er"], "buffers": [20], "set": {"epochs": [4, 8], "er.x": [1]}}
    assert problems(changed(groups={"pilot": group}))[0].startswith("groups.pilot: er.x: unknown parameter of er")
    own = resolve.protocol_of("split-digits")["epochs"]
    group["set"] = {"epochs": [own, 2 * own], "protocol.single_head": [True, False]}
    cells = matrix.from_dict(changed(seeds=1, groups={"pilot": group})).cells
    assert [(cell.epochs, cell.params["protocol.single_head"]) for cell in cells] == [
        (own, True), (own, False), (2 * own, True), (2 * own, False),
    ]  # fmt: skip
    assert cells[0].path == "split-digits/er/s0.00/b20/seed0"  # the stream's own values
    group["set"] = {"epochs": [0]}
    assert problems(changed(groups={"pilot": group})) == [
        "groups.pilot: epochs: expected a whole number from 1 to 1,000,000, got 0"
    ]
    group["set"] = {"seed": [0]}
    assert problems(changed(groups={"pilot": group}))[0].startswith("groups.pilot.set: expected component.key")


def test_patterns_name_every_method_that_matches() -> None:
    found = paths(changed(seeds=1, groups={"one": {"methods": ["*-er"], "buffers": [20], "sparsities": [0.5]}}))
    assert "split-digits/sparcl-er/s0.50/b20/seed0" in found
    assert all("-er/" in path for path in found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "../up"}, "name: expected a name of letters"),
        ({"name": "/etc"}, "name: expected a name of letters"),
        ({"name": "a;rm -rf b"}, "name: expected a name of letters"),
        ({"name": "a..b"}, "name: expected a name of letters"),
        ({"title": "two\nlines"}, "title: expected one line of text"),
        ({"seeds": 0}, "seeds: expected a count from 1 to 1000, or a list of different seeds, got 0"),
        ({"seeds": [1, 1]}, "seeds: expected a count"),
        ({"seeds": "5"}, "seeds: expected a count"),
        ({"seeds": True}, "seeds: expected a count"),
        ({"seeds": 2.0}, "seeds: expected a count"),
        ({"name": "tiny\n"}, "name: expected a name of letters"),
        ({"name": "reference"}, "name: expected another than 'reference', whose folder holds the committed results"),
        ({"groups": {"one": {"methods": ["derpp"], "buffers": [2], "set": {"derpp.alpha": [0.1]},
                             "alone": {"derpp.alpha": [0.2], "derpp.beta": [0.2]}}}},
         "groups.one: expected derpp.alpha in set or in alone, not in both"),
        ({"sedes": 3}, "sedes: unknown key (did you mean 'seeds'?)"),
        ({"stream": "split-digit"}, "stream: unknown name 'split-digit' (did you mean 'split-digits'?)"),
        ({"reference": "derpp"}, "reference: expected a method of this matrix, got 'derpp'"),
        ({"groups": {}}, "groups: expected a mapping of group names to groups, got {}"),
        ({"groups": {"a b": {"methods": ["er"]}}}, "groups: expected a name of letters"),
        ({"groups": {"one": {"methods": []}}}, "groups.one.methods: expected a list of different methods, got []"),
        ({"groups": {"one": {"buffers": [2]}}}, "groups.one.methods: missing, expected a list"),
        ({"groups": {"one": {"methods": ["err"], "buffers": [2]}}}, "groups.one.methods[0]: method: unknown name"),
        ({"groups": {"one": {"methods": ["q*"]}}}, "groups.one.methods[0]: no method matches 'q*'"),
        ({"groups": {"one": {"methods": ["er"], "buffers": [0]}}}, "groups.one: buffer: er replays from memory"),
        ({"groups": {"one": {"methods": ["er"], "buffers": [2.5]}}}, "groups.one.buffers[0]: expected a whole number"),
        ({"groups": {"one": {"methods": ["tdm-er"], "sparsities": [1.2]}}}, "groups.one.sparsities[0]: expected a"),
        ({"groups": {"one": {"methods": ["tdm-er"], "sparsities": [-0.1]}}}, "groups.one.sparsities[0]: expected a"),
        ({"groups": {"one": {"methods": ["er"], "buffers": [2], "set": {"ddr.proportion": [0.1]}}}},
         "groups.one: ddr.proportion: unknown parameter of er"),
        ({"groups": {"one": {"methods": ["er", "tdm-er"], "buffers": [2]}}},
         "groups.one.sparsities: missing, tdm-er needs a list of numbers from 0 (dense) to below 1"),
        ({"groups": {"one": {"methods": ["er"], "set": {"../x": [1]}}}}, "groups.one.set: expected component.key"),
        ({"defaults": {"epochs": 0}}, "defaults.epochs: expected a whole number from 1 to 1,000,000, got 0"),
        ({"defaults": {"model": "resnet88"}}, "defaults.model: unknown name 'resnet88' (did you mean 'resnet8'?)"),
        ({"defaults": {"params": {"tmd.interval": 1}}}, "groups.one: defaults.params.tmd.interval: unknown parameter"),
        ({"defaults": {"params": {"rigl.alpha": 0.2}}}, "defaults.params.rigl.alpha: no method here has this"),
        ({"fresh_from": 99}, "fresh_from: expected a seed of this matrix, got 99"),
        ({"exclude": [{"method": "derpp"}]}, "exclude[0].method: expected a method of this matrix, got 'derpp'"),
        ({"exclude": [{"group": "two"}]}, "exclude[0].group: unknown group 'two'"),
        ({"exclude": [{"buffer": 21}]}, "exclude[0]: matches no cell"),
        ({"exclude": [{"method": "er"}]}, "groups.one: expected a cell that exclude leaves"),
        ({"analysis": "../primary.yaml"}, "analysis: expected a relative file name"),
        ({"fresh_from": 0}, "fresh_from: expected a whole number of at least 1, got 0"),
        ({"hyperparameters": "../secret.yaml"}, "hyperparameters: expected a relative file name"),
        ({"hyperparameters": "/etc/passwd"}, "hyperparameters: expected a relative file name"),
    ],
)  # fmt: skip
def test_bad_input_is_named_in_one_line(change: dict, expected: str) -> None:
    found = problems(changed(**change))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_all_problems_are_reported() -> None:
    config = changed(name="", seeds=-1, stream=3, groups={"one": {"metods": ["er"]}})
    assert [line.partition(":")[0] for line in problems(config)] == [
        "groups.one.metods",
        "groups.one.methods",
        "name",
        "seeds",
        "stream",
    ]


@pytest.mark.parametrize("config", [None, [], "text", 3, {}])
def test_a_file_without_a_mapping(config: object) -> None:
    assert problems(config)


def test_a_matrix_of_too_many_cells() -> None:
    group = {"methods": ["*"], "buffers": list(range(1, 1000)), "sparsities": [n / 1000 for n in range(1, 1000)]}
    assert problems(changed(groups={"one": group})) == ["groups.one: expected at most 100000 cells in all"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "line 2: expected plain YAML: key 'a' stands twice"),
        ("a: !!python/object/apply:os.system [id]\n", "expected plain YAML: could not determine a constructor"),
        ("a: [1, 2\n", "expected plain YAML: expected ',' or ']'"),
        ("a: .nan\n", "a: expected a finite number, got nan"),
        ("a: {b: [.inf]}\n", "a.b[0]: expected a finite number, got inf"),
        ("1: a\n", "line 1: expected plain YAML: expected a text as key"),
        ("a: &x {k: 1}\nb: {<<: *x}\n", "line 2: expected plain YAML: expected a text as key"),
        ("a: &x [*x]\n", "expected plain YAML: found"),
        ("a: !!binary aGVsbG8=\n", "a: expected plain data, got a bytes"),
        ("a: \x00\n", "expected plain YAML"),
        ("[" * 5000, "expected plain YAML"),
        ("- " * 40 + "1", "expected at most 32 levels"),
        ("x: " + "9" * 5000, "expected plain YAML"),
        ("a: 1\n---\nb: 2\n", "expected plain YAML: but found another document"),
    ],
)
def test_yaml_that_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        strict_yaml.parse(text, "file")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_alias_bomb_is_counted_not_expanded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    with pytest.raises(UserError, match="expected at most 50000 values"):
        strict_yaml.parse("\n".join(lines), "file")


def test_dates_stay_text() -> None:
    assert strict_yaml.parse("a: 2020-01-01", "file") == {"a": "2020-01-01"}


def test_large_files_and_missing_files(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("a: " + "x" * (1 << 20))
    for path, expected in [(large, "expected a file of at most"), (tmp_path, "expected a YAML file that can be read")]:
        with pytest.raises(UserError, match=expected):
            strict_yaml.load(path)
    with pytest.raises(UserError, match="expected a YAML file that can be read"):
        strict_yaml.load(tmp_path / "none.yaml")


def test_schema_is_valid_and_describes_every_key() -> None:
    schema = matrix.schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    def visit(part: object, where: str) -> None:
        if isinstance(part, dict):
            if part.get("type") == "object":
                assert "additionalProperties" in part, where
            for key, entry in part.get("properties", {}).items():
                target = schema["$defs"][entry["$ref"].rpartition("/")[2]] if "$ref" in entry else {}
                assert "description" in entry or "description" in target, f"{where}.{key}"
                assert "expected" in entry or "expected" in target, f"{where}.{key}"
            for key, entry in part.items():
                visit(entry, f"{where}.{key}")

    visit(schema, "schema")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_good(path: Path) -> None:
    loaded = matrix.load(path)
    assert loaded.name.endswith(path.stem)
    reference = loaded.config.get("reference", loaded.cells[0].method)
    assert any(entry.method == reference for entry in loaded.cells)


@pytest.mark.parametrize("name", ["cifar10", "tiny-imagenet"])
def test_dense_rows_beside_published_figures_are_run_with_the_loss_of_their_source(name: str) -> None:
    """DER's code (Buzzega et al. 2020): cross-entropy over all outputs, replay from the first task on."""
    loaded = matrix.load(FOLDER / f"{name}.yaml")
    own = [
        cell
        for cell, names in zip(loaded.cells, loaded.groups, strict=True)
        if "published-losses-sparcl" not in names and any(map(groups.is_losses, names))
    ]
    dense = {(cell.method, cell.buffer) for cell in own}
    replaying = {(method, buffer) for method in ("er", "der", "derpp", "agem", "fdr") for buffer in (200, 500)}
    assert dense == replaying | {("finetune", 0), ("ewc", 0), ("lwf", 0)}
    for cell in own:
        assert cell.params["protocol.single_head"] is False
        assert cell.params["protocol.replay_start"] == ("immediately" if cell.buffer else "second-task")


# The planned primary analysis.
def analysis_problems(tmp_path: Path, change: dict) -> list[str]:
    file = tmp_path / "primary.yaml"
    planned = strict_yaml.load(FOLDER / "primary.yaml")
    file.write_text(yaml.safe_dump(planned | change))
    with pytest.raises(matrix.MatrixError) as caught:
        matrix.load_analysis(file)
    assert all("\n" not in line and line.startswith(f"{file}: ") for line in caught.value.problems)
    return [line.removeprefix(f"{file}: ") for line in caught.value.problems]


@pytest.mark.parametrize("path", ANALYSES, ids=lambda path: path.stem)
def test_every_shipped_analysis_can_be_read(path: Path) -> None:
    assert matrix.load_analysis(path)["contrasts"]


def test_the_shipped_analysis_is_what_the_protocol_says() -> None:
    found = matrix.load_analysis(FOLDER / "primary.yaml")
    assert [contrast["second"] for contrast in found["contrasts"]] == ["dense", "static", "rigl", "set", "snip", "gmp"]
    assert {contrast["first"] for contrast in found["contrasts"]} == {"sparcl"}
    assert (found["metric"], found["smallest_difference"], found["alpha"], found["power"]) == ("class_il", 2, 0.05, 0.8)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"metrics": "class_il"}, "metrics: unknown key (did you mean 'metric'?)"),
        ({"metric": "forgetting"}, 'metric: expected class_il or task_il, got "forgetting"'),
        ({"smallest_difference": 0}, "smallest_difference: expected a number of points above 0, got 0"),
        ({"alpha": 1}, "alpha: expected a number above 0, at most 0.5, got 1"),
        ({"correction": "none"}, 'correction: expected holm, got "none"'),
        ({"contrasts": []}, "contrasts: expected a list of mappings"),
        ({"contrasts": [{"first": "sparcl"}]}, "contrasts[0].second: missing, expected a name"),
        ({"contrasts": [{"first": "sparcl", "second": "rigel"}]},
         "contrasts[0].second: unknown policies 'rigel' (did you mean 'rigl'?)"),
        ({"contrasts": [{"first": "sparcl", "second": "derpp"}]}, "contrasts[0].second: unknown policies 'derpp'"),
        ({"contrasts": [{"first": "set", "second": "set"}]}, "contrasts[0]: expected two different policies"),
        ({"contrasts": [{"first": "set", "second": "rigl"}, {"first": "rigl", "second": "set"}]},
         "contrasts[1]: the same two policies as an earlier contrast"),
    ],
)  # fmt: skip
def test_a_bad_analysis_is_named_in_one_line(tmp_path: Path, change: dict, expected: str) -> None:
    (found,) = analysis_problems(tmp_path, change)
    assert found.startswith(expected)


def test_the_plan_holds_the_resolved_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    planned = plan.make(matrix.from_dict(changed(analysis="config/primary.yaml")))
    assert planned["analysis"] == strict_yaml.load(FOLDER / "primary.yaml")
    assert plan.make(matrix.from_dict(SMALL))["analysis"] is None


def test_a_bad_analysis_ends_with_status_2_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "primary.yaml").write_text("alpha: 0.05\nalpa: 0.1\n")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(changed(analysis="primary.yaml")))
    assert cli.main(["plan", "--config", "small.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any("primary.yaml: alpa: unknown key (did you mean 'alpha'?)" in line for line in lines)
    assert all("primary.yaml: " in line for line in lines)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("name", "methods", "seeds"),
    [
        ("split-digits", ("sparcl", "static", "snip", "rigl"), 3),
        ("split-digits-full", ("sparcl", "static", "gmp", "snip", "set", "rigl"), 15),
    ],
)
def test_matrices_of_digits_hold_what_the_tables_need(name: str, methods: tuple[str, ...], seeds: int) -> None:
    loaded = matrix.load(next(path for path in CONFIGS if path.stem == name))
    cells = {(c.method, c.sparsity, c.buffer, c.seed) for c in loaded.cells}
    for base in ("er", "derpp"):
        for method in methods:
            for sparsity in (0.75, 0.90, 0.95):
                for buffer in (20, 50):
                    assert {(f"{method}-{base}", sparsity, buffer, seed) for seed in range(seeds)} <= cells
    assert "ablation" in {group for names in loaded.groups for group in names}


def test_plan_command_writes_once_and_estimates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(changed(defaults={"epochs": 2})))
    assert cli.main(["plan", "--config", str(config), "--results", str(tmp_path / "results")]) == 0
    target = tmp_path / "results/small/plan.json"
    plan, written = json.loads(target.read_text()), target.stat().st_mtime_ns
    assert "to run: 2 of 2" in capsys.readouterr().out
    for entry, seconds in zip(plan["cells"], (30.0, 90.0), strict=True):
        folder = tmp_path / "results/small/runs" / entry["path"]
        folder.mkdir(parents=True)
        identity = entry["identity"] if seconds < 60 else "0" * 64
        record = {"identity": identity, "measured": {"wall_seconds": seconds}}
        (folder / "record.json").write_text(json.dumps(record))
    assert cli.main(["plan", "--config", str(config), "--results", str(tmp_path / "results")]) == 0
    output = capsys.readouterr().out
    assert target.stat().st_mtime_ns == written
    assert "to run: 1 of 2 (1 out of date)" in output
    assert "estimated: 60 s of one core, by 2 measured cells" in output


@pytest.mark.skipif(not library.available(), reason="the sparse kernel is not compiled here")
def test_the_first_estimate_counts_what_the_kernel_computes() -> None:
    """Convolutions' share of a cell's estimated time is a tenth at 90 % sparsity, if the kernel skips the zeros."""

    def estimate(method: str, sparsity: float, **settings: str) -> float:
        return plan.resources(resolve.make("split-digits", method, sparsity, 50, 0, **settings))["seconds"]

    masked = estimate("static-derpp", 0.9, kernel="dense")
    assert masked == estimate("derpp", 0.0)
    steps = plan.STEP_SECONDS["cpu"] * 10 * 1437 / 16
    beside = plan.START_SECONDS + steps
    assert estimate("static-derpp", 0.9) - beside == pytest.approx(0.1 * (masked - beside), rel=0.05)


@pytest.mark.parametrize(
    ("where", "is_refused"),
    [({"stream": "split-cifar10"}, True), ({"method": "derpp"}, True), ({"method": "er"}, False)],
)
def test_a_hyper_parameter_file_for_other_cells_is_refused(where, is_refused, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{'-'.join(where.values())}.yaml"  # files are read once
    values = {"components": [{"where": where, "values": {"protocol.momentum": 0.5}}]}
    (tmp_path / name).write_text(json.dumps(values))
    config = changed(hyperparameters=name)
    if is_refused:
        assert problems(config) == [f"hyperparameters: {name} has nothing for a cell of this matrix"]
    else:
        assert {cell.params["protocol.momentum"] for cell in matrix.from_dict(config).cells} == {0.5}


def test_the_first_estimate_has_room_for_an_evaluation() -> None:
    """The largest that was measured with these settings is 1,840 MB (results/reference/cifar10-all)."""
    cells = [resolve.make("split-cifar10", "derpp", 0.0, 500, width=20, device=device) for device in ("cpu", "cuda")]
    cpu, gpu = (plan.resources(cell)["memory_mb"] for cell in cells)
    assert 1840 < cpu < 3000
    assert 4000 < gpu < 5000  # its activations are not here


def test_a_plan_is_not_written_under_a_run(tmp_path: Path, capsys) -> None:
    made = plan.make(matrix.from_dict(changed()))
    path = plan.write(made, tmp_path)
    assert path is not None
    handle = os.open(path.parent / locks.RUN, os.O_RDWR | os.O_CREAT)
    try:
        assert locks.lock(handle)
        before = path.read_bytes()
        assert plan.write(made, tmp_path) == path  # nothing to write
        assert plan.write({**made, "title": "Another"}, tmp_path) is None
        assert path.read_bytes() == before
    finally:
        os.close(handle)
    assert plan.write({**made, "title": "Another"}, tmp_path) == path


def test_the_first_estimate_knows_a_gpu() -> None:
    """DER++ by the paper's protocol: 78,125 steps and 2.2e16 FLOPs, 25 core-days less than two hours of a GPU."""
    cpu, gpu = (
        plan.resources(resolve.make("split-cifar10", "derpp", 0.0, 500, 0, device=device))["seconds"] / 3600
        for device in ("cpu", "cuda")
    )
    assert cpu > 100
    assert 1 < gpu < 2


def test_a_method_of_its_own_name_has_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole method on a learner is its own bundle: tables and figures look its label up."""
    methods.discover()
    monkeypatch.setattr(methods, "_aliases", dict(methods._aliases))
    methods.method("rigl-slow", "Slow RigL", "sparse-baseline", "derpp", sparsity="rigl")
    config = changed(groups={"all": {"methods": ["derpp", "rigl-slow"], "buffers": [50], "sparsities": [0.9]}})
    assert plan.make(matrix.from_dict(config))["bundles"] == {"rigl-slow": "Slow RigL"}


def test_bad_config_ends_with_status_2_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump(changed(seeds=0, stream="split-digit")))
    assert cli.main(["plan", "--config", str(config), "--results", str(tmp_path / "results")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: {config}: seeds: expected a count from 1 to 1000, or a list of different seeds, got 0"]
    assert list(tmp_path.iterdir()) == [config]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from([*json.loads(matrix.SCHEMA_FILE.read_text())["properties"], "one", "methods", "set", ""])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, plain, max_size=4))
def test_any_change_of_a_good_config_gives_cells_or_lines(changes: dict) -> None:
    said = refusal(lambda: matrix.from_dict(SMALL | changes))
    assert said is None or (said and "\n" not in said)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_text_is_read_or_refused(raw: bytes | str) -> None:
    said = refusal(lambda: strict_yaml.parse(raw, "file"))
    assert said is None or (said and "\n" not in said)


def test_a_plan_names_planned_contrasts_that_it_cannot_test() -> None:
    contrasts = [{"first": "sparcl", "second": other} for other in ("dense", "rigl", "set")]
    made: Any = {"analysis": {"contrasts": contrasts}, "methods": dict.fromkeys(["derpp", "sparcl-derpp", "set-er"])}
    assert plan._untested(made) == ["sparcl minus rigl"]
    assert plan._untested(made | {"analysis": None}) == []
