"""Published figures as data, and the calculations that arrive at them: training FLOPs and memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from sparcl import cli, models, resolve, streams
from sparcl.costs import convention, ledger, planning, published
from sparcl.errors import UserError

HEADER = ",".join(published.COLUMNS)


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


FLOPS = [f for f in published.load() if f.metric == "training_flops" and f.table.startswith("table")]


@pytest.mark.parametrize("figure", FLOPS, ids=lambda f: f"{f.stream}-{f.method}-{f.sparsity}-{f.buffer}")
def test_paper_ledger_rounds_to_every_published_figure(figure, runs):
    """Every row of the published tables, from layer costs and protocol."""
    assert figure.rounds_from(paper(figure, runs[figure.stream]))


@pytest.mark.parametrize("figure", FLOPS, ids=lambda f: f"{f.stream}-{f.method}-{f.sparsity}-{f.buffer}")
def test_a_cell_of_the_suites_own_settings_rounds_to_every_published_figure(figure, runs):
    """The same rows without a constant of this file's: name, stream, sparsity and buffer are all that is given."""
    chosen = resolve.make(figure.stream, figure.method, figure.sparsity, figure.buffer or 0)
    assert not chosen.variant
    info = streams.describe(figure.stream)
    found = planning.paper(chosen)
    assert (chosen.model, chosen.width) == ("resnet18", 64)  # those of the layer costs
    assert figure.rounds_from(found["training"])
    _, images, epochs = runs[figure.stream]
    assert (list(info.train_sizes), chosen.epochs) == (images, epochs)


def test_the_rows_that_are_reached_are_all_but_those_of_another_count():
    """docs/flops.md: every row of SparCL's tables; LightCL's table has its own count, which is not comparable."""
    every = [f for f in published.load() if f.metric == "training_flops"]
    assert {f.table for f in every} - {f.table for f in FLOPS} == {"lightcl"}
    assert {f.stream for f in FLOPS} == {"split-cifar10", "split-tiny-imagenet"}
    assert {f.sparsity for f in FLOPS} == {0, 0.5, 0.75, 0.9, 0.95}


def test_the_command_line_prints_the_published_figure(capsys):
    (figure,) = published.select(FLOPS, stream="split-cifar10", method="sparcl-derpp", sparsity=0.95, buffer=500)
    arguments = ["--stream", figure.stream, "--method", figure.method, "--buffer", str(figure.buffer)]
    assert cli.main(["flops", *arguments, "--sparsity", str(figure.sparsity), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert figure.rounds_from(found["paper"]["training"])
    assert found["paper"]["data_fraction"] == pytest.approx(0.76)
    assert found["paper"]["gradient_density"] == pytest.approx(0.04)
    assert found["cell"]["epochs"] == 50


@pytest.mark.parametrize("figure", [f for f in FLOPS if f.stream == "split-tiny-imagenet" and f.buffer])
def test_tiny_imagenet_column_is_the_printed_cifar_column_times_sixteen(figure):
    twin = published.select(
        FLOPS, stream="split-cifar10", method=figure.method, sparsity=figure.sparsity, buffer=figure.buffer
    )
    assert figure.rounds_from(16 * twin[0].value)


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
        low = max(low, (figure.value - figure.resolution / 2) / whole)
        high = min(high, (figure.value + figure.resolution / 2) / whole)
    assert (round(low, 4), round(high, 4)) == admitted
    assert low < used < high


def test_isolation_methods_are_not_the_masked_formula(runs):
    layers, images, epochs = runs["split-cifar10"]
    assert convention.paper_flops(layers, images, epochs, 0, 0.5) == pytest.approx(4.226e15, rel=1e-3)
    assert convention.isolation_paper_flops(layers, images, epochs, 0.5) == pytest.approx(4.999e15, rel=1e-3)
    layers, images, epochs = runs["split-tiny-imagenet"]
    assert convention.isolation_paper_flops(layers, images, epochs, 0.5) == pytest.approx(7.332e16, rel=1e-3)


def test_headline_reduction(runs):
    dense = published.select(FLOPS, stream="split-cifar10", method="derpp", buffer=500)[0]
    sparse = published.select(FLOPS, stream="split-cifar10", method="sparcl-derpp", buffer=500, sparsity=0.95)[0]
    printed = published.select(metric="flops_reduction")[0]
    assert printed.rounds_from(dense.value / sparse.value)


def test_data_hold_both_streams_and_every_status():
    figures = published.load()
    assert {f.stream for f in figures} == {"split-cifar10", "split-tiny-imagenet", ""}
    assert {f.status for f in figures} == set(published.STATUSES)
    assert {f.metric for f in figures} == set(published.UNITS)
    assert all(len(f.note + f.source) < 200 for f in figures)


def test_known_figures():
    (dense,) = published.select(stream="split-cifar10", method="derpp", metric="class_il", buffer=500, table="table1")
    assert (dense.value, dense.std, dense.runs, dense.status, dense.sparsity) == (
        72.70,
        1.36,
        10,
        "sourced",
        0,
    )
    (sparse,) = published.select(
        stream="split-tiny-imagenet", method="sparcl-derpp", metric="class_il", buffer=500, sparsity=0.95
    )
    assert (sparse.value, sparse.status) == (19.01, "figure")
    (flops,) = published.select(
        method="sparcl-er", metric="training_flops", buffer=200, sparsity=0.75, stream="split-cifar10"
    )
    assert (flops.value, flops.status) == (2.0e15, "sourced")


def test_rounding_uses_the_printed_digits():
    figure = published.parse([HEADER, "t,s,,m,0,training_flops,2.0e15,,,sourced,x,"])[0]
    assert figure.resolution == 1e14
    assert figure.rounds_from(1.951e15)
    assert figure.rounds_from(2.049e15)
    assert not figure.rounds_from(2.06e15)
    assert figure.buffer is None
    assert published.parse([HEADER, "t,s,500,m,0,class_il,74.10,,,sourced,x,"])[0].resolution == 0.01
    assert published.parse([HEADER, "t,s,500,m,0,memory_mb,247,,,sourced,x,"])[0].resolution == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("t,s,,m,0,class_il,1.0,,,source,x,", r"line 2, status: .*did you mean 'sourced'"),
        ("t,s,,m,0,clas_il,1.0,,,sourced,x,", r"line 2, metric: .*did you mean 'class_il'"),
        ("t,s,,m,1.5,class_il,1.0,,,sourced,x,", r"line 2, sparsity: expected a number in \[0, 1\)"),
        ("t,s,,m,0,class_il,many,,,sourced,x,", "line 2, value: expected a number, got 'many'"),
        ("t,s,,m,0,class_il,,,,sourced,x,", "line 2, value: expected a number"),
        ("t,s,,m,0,class_il,1.0,,,sourced,,", "line 2, source: expected a text"),
        ("t,s,,m,0", "line 2: expected 12 columns"),
    ],
)
def test_bad_rows_are_named(row, message):
    with pytest.raises(UserError, match=message):
        published.parse([HEADER, row])


def test_bad_files_are_named():
    with pytest.raises(UserError, match="expected the columns"):
        published.parse(["a,b", "1,2"])
    row = "t,s,,m,0,class_il,1.0,,,sourced,x,"
    with pytest.raises(UserError, match="line 3: expected one row per figure, repeats line 2"):
        published.parse([HEADER, row, row])


def test_loading_needs_no_torch():
    code = "import sys, sparcl.costs.published as p; p.load(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
