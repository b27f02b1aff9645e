"""Published figures as data, and the calculations that arrive at them: training FLOPs and memory."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from printed import resolution, rounds_from, select

from analysis import published
from sparcl import cli, methods, models, resolve, streams
from sparcl.costs import convention, ledger, planning


def costs(classes, shape):
    model = models.build("resnet18", 64, classes, shape, torch.Generator().manual_seed(0))
    return ledger.layer_costs(model, shape)


@pytest.fixture(scope="module")
def runs():
    """Per stream: layer costs, images per task, epochs."""
    return {
        "split-cifar10": (costs(10, (3, 32, 32)), [10_000] * 5, 50),
        "split-tiny-imagenet": (costs(200, (3, 64, 64)), [10_000] * 10, 100),
    }


REPLAY = {"ewc": 0, "lwf": 0, "agem": 1, "icarl": 1, "er": 1, "fdr": 2, "derpp": 2}
STAGES = {"split-cifar10": 4, "split-tiny-imagenet": 7}  # of 5 epochs, over which data are removed
GRADIENT = {0.75: 0.80, 0.90: 0.92, 0.95: 0.96}


def paper(figure, run):
    """Training FLOPs of a published row, from its protocol alone."""
    layers, images, epochs = run
    if figure.method in ("packnet", "lps"):
        return convention.isolation_paper_flops(layers, images, epochs, figure.sparsity)
    bundle, learner = figure.method.rpartition("-")[::2]
    masked = bundle == "sparcl" or bundle.endswith("dgm")
    fewer = bundle == "sparcl" or "ddr" in bundle
    return convention.paper_flops(
        layers,
        images,
        epochs,
        REPLAY[learner],
        figure.sparsity,
        GRADIENT[figure.sparsity] if masked else None,
        convention.ramp_fraction(0.30, STAGES[figure.stream] * 5, epochs) if fewer else 1.0,
    )


HEADLINE = {
    "metric": "training_flops", "stream": "split-cifar10", "method": "sparcl-derpp", "sparsity": 0.95, "buffer": 500,
}  # fmt: skip
FLOPS = [f for f in published.load() if f.metric == "training_flops" and f.table.startswith("table")]


@pytest.mark.parametrize("figure", FLOPS, ids=lambda f: f"{f.stream}-{f.method}-{f.sparsity}-{f.buffer}")
def test_paper_ledger_rounds_to_every_published_figure(figure, runs):
    """Every row of the published tables, from layer costs and protocol."""
    assert rounds_from(paper(figure, runs[figure.stream]), figure)


@pytest.mark.parametrize("figure", FLOPS, ids=lambda f: f"{f.stream}-{f.method}-{f.sparsity}-{f.buffer}")
def test_a_cell_of_the_suites_own_settings_rounds_to_every_published_figure(figure, runs):
    """The same rows without a constant of this file's: name, stream, sparsity and buffer are all that is given."""
    chosen = resolve.make(figure.stream, figure.method, figure.sparsity, figure.buffer or 0)
    assert not chosen.variant
    info = streams.describe(figure.stream)
    found = planning.paper(chosen)
    assert (chosen.model, chosen.width) == ("resnet18", 64)  # those of the layer costs
    assert rounds_from(found["training"], figure)
    _, images, epochs = runs[figure.stream]
    assert (list(info.train_sizes), chosen.epochs) == (images, epochs)


def test_the_rows_that_are_reached_are_all_but_those_of_another_count():
    """docs/flops.md: every row of SparCL's tables; LightCL's table has its own count, which is not comparable."""
    every = [f for f in published.load() if f.metric == "training_flops"]
    assert {f.table for f in every} - {f.table for f in FLOPS} == {"lightcl"}
    assert {f.stream for f in FLOPS} == {"split-cifar10", "split-tiny-imagenet"}
    assert {f.sparsity for f in FLOPS} == {0, 0.5, 0.75, 0.9, 0.95}


def test_the_command_line_prints_the_published_figure(capsys):
    (figure,) = select(
        metric="training_flops", stream="split-cifar10", method="sparcl-derpp", sparsity=0.95, buffer=500
    )
    arguments = ["--stream", figure.stream, "--method", figure.method, "--buffer", str(figure.buffer)]
    assert cli.main(["flops", *arguments, "--sparsity", str(figure.sparsity), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert rounds_from(found["paper"]["training"], figure)
    assert found["paper"]["data_fraction"] == pytest.approx(0.76)
    assert found["paper"]["gradient_density"] == pytest.approx(0.04)
    assert found["cell"]["epochs"] == 50


@pytest.mark.parametrize("figure", [f for f in FLOPS if f.stream == "split-tiny-imagenet" and f.buffer])
def test_tiny_imagenet_column_is_the_printed_cifar_column_times_sixteen(figure):
    twin = select(**HEADLINE | {"method": figure.method, "sparsity": figure.sparsity, "buffer": figure.buffer})
    assert rounds_from(16 * twin[0].value, figure)


@pytest.mark.parametrize(
    ("stream", "admitted", "used"),
    [("split-cifar10", (0.7591, 0.7614), 0.76), ("split-tiny-imagenet", (0.7500, 0.7557), 0.7525)],
)
def test_data_fraction_that_the_tables_admit(runs, stream, admitted, used):
    """The interval of fractions with which all rows with data removal round as printed."""
    rows = [f for f in FLOPS if f.stream == stream and ("ddr" in f.method or "sparcl" in f.method)]
    low, high = 0.0, 1.0
    for figure in rows:
        whole = paper(figure, runs[stream]) / used
        low = max(low, (figure.value - resolution(figure) / 2) / whole)
        high = min(high, (figure.value + resolution(figure) / 2) / whole)
    assert (round(low, 4), round(high, 4)) == admitted
    assert low < used < high


def test_isolation_methods_are_not_the_masked_formula(runs):
    layers, images, epochs = runs["split-cifar10"]
    assert convention.paper_flops(layers, images, epochs, 0, 0.5) == pytest.approx(4.226e15, rel=1e-3)
    assert convention.isolation_paper_flops(layers, images, epochs, 0.5) == pytest.approx(4.999e15, rel=1e-3)
    layers, images, epochs = runs["split-tiny-imagenet"]
    assert convention.isolation_paper_flops(layers, images, epochs, 0.5) == pytest.approx(7.332e16, rel=1e-3)


def test_headline_reduction(runs):
    dense = select(metric="training_flops", stream="split-cifar10", method="derpp", buffer=500)[0]
    sparse = select(metric="training_flops", stream="split-cifar10", method="sparcl-derpp", buffer=500, sparsity=0.95)[
        0
    ]
    printed = select(metric="flops_reduction")[0]
    assert rounds_from(dense.value / sparse.value, printed)


def test_data_hold_both_streams_and_every_status():
    figures = published.load()
    assert {f.stream for f in figures} == {"split-cifar10", "split-tiny-imagenet", ""}
    assert {f.status for f in figures} == set(published.STATUSES)
    assert {f.metric for f in figures} == set(published.UNITS)
    assert all(len(f.source) > 0 and len(f.note + f.source) < 200 for f in figures)
    assert all(f.sparsity is None or 0 <= f.sparsity < 1 for f in figures)
    assert all(math.isfinite(f.value) and f.value >= 0 for f in figures)
    keys = [(f.table, f.stream, f.buffer, f.method, f.sparsity, f.metric) for f in figures]
    assert len(set(keys)) == len(keys)


def test_every_published_dense_learner_is_a_method():
    dense = ("ewc", "lwf", "agem", "icarl", "fdr", "er", "derpp")
    assert {f.method for f in select(table="table1", metric="training_flops", sparsity=0)} == set(dense)
    families = {name: methods.get(name).family for name in dense}
    assert families == dict.fromkeys(dense, "rehearsal") | {"ewc": "regularization", "lwf": "regularization"}


def test_known_figures():
    (dense,) = select(stream="split-cifar10", method="derpp", metric="class_il", buffer=500, table="table1")
    assert (dense.value, dense.std, dense.runs, dense.status, dense.sparsity) == (
        72.70,
        1.36,
        10,
        "sourced",
        0,
    )
    (sparse,) = select(
        stream="split-tiny-imagenet", method="sparcl-derpp", metric="class_il", buffer=500, sparsity=0.95
    )
    assert (sparse.value, sparse.status) == (19.01, "figure")
    (flops,) = select(method="sparcl-er", metric="training_flops", buffer=200, sparsity=0.75, stream="split-cifar10")
    assert (flops.value, flops.status) == (2.0e15, "sourced")


def test_rounding_uses_the_printed_digits():
    figure = dataclasses.replace(published.load()[0], text="2.0e15")
    assert resolution(figure) == 1e14
    assert rounds_from(1.951e15, figure)
    assert rounds_from(2.049e15, figure)
    assert not rounds_from(2.06e15, figure)
    assert resolution(dataclasses.replace(figure, text="74.10")) == 0.01
    assert resolution(dataclasses.replace(figure, text="247")) == 1
