"""FLOPs that were counted as saved against time that was measured as saved."""

from __future__ import annotations

from typing import Any

from analysis import timing
from analysis.frames import Results
from analysis.published import load
from analysis.tables import columns as shared
from analysis.typeset import Column, Row, Table

PHONE = "SparCL-DER++ in the paper (phone)"


def table(results: Results) -> Table:
    """For each method and sparsity the ratio of FLOPs and of time to the dense learner's: step, run and inference."""
    machine, found = timing.read(results)
    columns = [
        Column("label", "Method"), Column("sparsity", "Sparsity", "number"), Column("threads", "Threads", "integer"),
        Column("kernel", "Kernel"),
        Column("step_flops", "FLOPs, step", "ratio", digits=1), Column("step_time", "Time, step", "ratio", digits=1),
        Column("run_flops", "FLOPs, run", "ratio", digits=1), Column("run_time", "Time, run", "ratio", digits=1),
        Column("inference_flops", "FLOPs, inference", "ratio", digits=1),
        Column("inference_time", "Time, inference", "ratio", digits=1),
        Column("step_ms", "Step", "number", "ms"), Column("memory", "Peak memory", "number", "MB", digits=0),
        Column("dense_model", "Dense model", "number", "MB", digits=3),
        Column("sparse_model", "On disk", "number", "MB", digits=3),
    ]  # fmt: skip
    rows = []
    for timed in found:
        row, c = timed.row, timed.configuration
        values: dict[str, Any] = {
            "label": c.label, "sparsity": c.sparsity, "threads": row["threads"], "kernel": row["kernel"],
            "step_flops": timed.flops("step"), "step_time": timed.time("step"),
            "run_flops": timed.saved("flops_executed"), "run_time": timed.saved("train_seconds"),
            "inference_flops": timed.flops("inference"), "inference_time": timed.time("inference"),
            "step_ms": 1e3 * row["step_seconds"],
            "memory": c.mean("peak_rss_bytes") / shared.MEGABYTE,
            "dense_model": row["dense_bytes"] / shared.MEGABYTE, "sparse_model": row["sparse_bytes"] / shared.MEGABYTE,
        }  # fmt: skip
        rows.append(Row(values, str(row["threads"])))
    for figure in load():
        if figure.metric == "speedup":
            rows.append(Row({"label": PHONE, "sparsity": figure.sparsity, "step_time": figure.value}, "paper"))
    notes = [
        "All ratios are the dense learner's over the method's: how many times fewer FLOPs, how many times less time. "
        "Step and inference: medians over turns in which every method and its dense learner make a step (predict a "
        "batch of test images) one after the other, in the second task; the dense learner by PyTorch's convolutions. "
        "Steps in which masks are ranked or grown are rare and count in the run, not in the median step.",
        "Run: executed training FLOPs, and training time of the records (with as many threads as they had) "
        "against those of the dense learner on the same seed, median over seeds; beside other cells, so load is in it. "
        "Their dense kernel is the one that 'auto' gives, which may be the sparse one too.",
        "Peak memory: of the process, libraries included. Dense model, on disk: tensors of the timed model, in full "
        "and with masked layers as values and a bitmap (docs/export.md); between its updates SparCL holds more "
        "weights than it ends with.",
        f"{PHONE}: a training step of a ResNet-18 on Split-CIFAR-10 (batch 32) on eight cores of a Samsung Galaxy S20, "
        "its compiler's sparse kernels against its dense ones, as the paper reports it (from a public reading); other "
        "network, images, processor and code, so a row to stand beside and not to compare with.",
    ]
    if machine:
        notes.append(
            f"Measured on: {machine.get('cpu')}, {machine.get('instruction_set')}, torch {machine.get('torch')}."
        )
    nothing = f"{timing.FILE}: not there or empty; the workflow's rule timing, or 'sparcl time', times cells of the CPU"
    missing = () if found else (nothing,)
    return Table("counted_against_measured", "FLOPs counted and time measured", columns, rows, notes, missing)
