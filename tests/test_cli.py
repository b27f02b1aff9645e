"""What the command line prints of methods and of a cell's cost."""

from __future__ import annotations

import json

import pytest

from sparcl import cli, methods, resolve
from sparcl.costs import planning

CIFAR = ("--stream", "split-cifar10", "--buffer", "500")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_parameters_are_those_of_the_name_and_of_the_stream(capsys) -> None:
    plain = printed(capsys, "methods", "rigl-erk-er", "--parameters")
    assert "rigl.distribution = erk:" in plain
    assert "rigl.interval = 100:" in plain
    assert "rigl.interval = 12:" in printed(capsys, "methods", "rigl-erk-er", "--stream", "split-digits")


def test_values_on_a_stream_are_those_of_its_cells() -> None:
    for name in ("rigl-erk-derpp", "sparcl-er", "lwta", "ewc"):
        sparse = 0.5 if methods.get(name).is_sparse else 0.0
        made = resolve.make("split-digits", name, sparse, 20).params
        shown = resolve.defaults(methods.get(name), "split-digits")
        assert {key: made[key] for key in shown if shown[key] is not None} == {
            key: value for key, value in shown.items() if value is not None
        }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("methods", "sparcl-erp"), "no method matches 'sparcl-erp' (did you mean 'sparcl-er'?)"),
        (("methods", "--stream", "split-digit"), "--stream: unknown name 'split-digit' (did you mean 'split-digits'?)"),
        (("flops", *CIFAR, "--method", "sparcl-er"), "--sparsity: missing"),
        (("run", *CIFAR, "--method", "rigl-er"), "--sparsity: missing"),
        (("bench", "--rouns", "3"), "sparcl bench: unrecognized arguments: --rouns 3; 'sparcl bench --help' lists"),
        (("flops", *CIFAR, "--method", "rigl-er", "--sparsity", "1.2"), "a number from 0 to below 1, got 1.2"),
        (("flops", *CIFAR, "--method", "ewc"), "--buffer: ewc has no memory and needs buffer 0, got 500"),
        (("flops", *CIFAR, "--method", "er", "--precision", "tf32"), "precision: tf32 is a mode of GPUs"),
        (("flops", *CIFAR, "--method", "er", "--width", "0"), "width: expected a whole number from 1 to 4,096, got 0"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("method", "sparsity", "table", "ratio"),
    [("sparcl-derpp", 0.75, 177, 5.5), ("tdm-derpp", 0.75, 180, None), ("derpp", 0.0, 247, None)],
)
def test_flops_gives_the_published_memory_and_ratio(capsys, method, sparsity, table, ratio) -> None:
    """Published: 247, 180 and 177 MB; 13.9 / 2.5 = 5.6 of printed values, 5.46 of the counts (docs/flops.md)."""
    found = json.loads(printed(capsys, "flops", *CIFAR, "--method", method, "--sparsity", str(sparsity), "--json"))
    assert round(found["paper_memory"]["ablation_table"] / 1e6) == table
    assert (found["dense_over_paper"] is None) == (method == "derpp")
    if ratio:
        assert round(found["dense_over_paper"], 1) == ratio


@pytest.mark.parametrize(("sparsity", "saved"), [(0.90, 48), (0.95, 51)])
def test_flops_gives_the_published_saving_on_the_phone(sparsity: float, saved: int) -> None:
    sparse = planning.facts(resolve.make("split-cifar10", "sparcl-derpp", sparsity, 500))["paper_memory_phone"]
    dense = planning.facts(resolve.make("split-cifar10", "derpp", 0.0, 500))["paper_memory_phone"]
    assert round(100 * (1 - sparse / dense)) == saved


@pytest.mark.parametrize("method", ["sparcl-derpp", "rigl-er", "packnet", "lightcl", "lwta"])
def test_layers_add_up_in_every_ledger(capsys, method: str) -> None:
    buffer = "50" if methods.get(method).needs_memory else "0"
    arguments = ("flops", "--stream", "split-digits", "--buffer", buffer, "--method", method, "--sparsity", "0.5")
    found = json.loads(printed(capsys, *arguments, "--json", "--layers"))
    for ledger in ("paper", "dense"):
        assert sum(found[ledger]["layers"].values()) == pytest.approx(found[ledger]["training"])
    assert set(found["paper"]["layers"]) == set(found["dense"]["layers"]) == set(found["executed"]["layers"])
    assert "paper" in printed(capsys, *arguments, "--layers")
