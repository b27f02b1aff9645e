"""A whole plan's worth of synthetic run records, of the documented schemas and with plausible numbers.

Nothing is trained: accuracies follow a smooth rule plus seeded noise, so that tests of the tables and figures
know what they look at. ``write`` lays a folder out as the pipeline would.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from analysis import catalog, collect, frames, typeset
from analysis import plan as plans
from analysis.typeset import Table

TOP = Path(__file__).resolve().parents[2]
LEARNERS = {
    "finetune": ("Fine-tuning", "bound", 0), "joint": ("Joint", "bound", 0), "er": ("ER", "rehearsal", 1),
    "der": ("DER", "rehearsal", 1), "derpp": ("DER++", "rehearsal", 2), "agem": ("A-GEM", "rehearsal", 1),
    "ewc": ("online EWC", "regularization", 0), "lwf": ("LwF", "regularization", 0),
    "icarl": ("iCaRL", "rehearsal", 1), "fdr": ("FDR", "rehearsal", 2), "packnet": ("PackNet", "isolation", 0),
    "lightcl": ("LightCL", "sibling", 0),
}  # fmt: skip
BUNDLES = {
    "sparcl": ("SparCL", "sparcl", {"sparsity": "tdm", "gradient": "dgm", "data": "ddr"}),
    "tdm": ("TDM", "ablation", {"sparsity": "tdm"}),
    "tdm-ddr": ("TDM+DDR", "ablation", {"sparsity": "tdm", "data": "ddr"}),
    "tdm-dgm": ("TDM+DGM", "ablation", {"sparsity": "tdm", "gradient": "dgm"}),
    "ddr": ("DDR", "ablation", {"data": "ddr"}),
    "dgm": ("DGM", "ablation", {"gradient": "dgm"}),
    "static-ddr": ("Static+DDR", "ablation", {"sparsity": "static", "data": "ddr"}),
    "rigl-ddr": ("RigL+DDR", "ablation", {"sparsity": "rigl", "data": "ddr"}),
    "fixed": ("fixed mask", "ablation", {"sparsity": "static"}),
    "fixed-ddr-dgm": ("fixed+DDR+DGM", "ablation", {"sparsity": "static", "gradient": "dgm", "data": "ddr"}),
    "static": ("Static", "sparse-baseline", {"sparsity": "static"}),
    "magnitude": ("Magnitude", "sparse-baseline", {"sparsity": "magnitude"}),
    "gmp": ("GMP", "sparse-baseline", {"sparsity": "gmp"}),
    "snip": ("SNIP", "sparse-baseline", {"sparsity": "snip"}),
    "set": ("SET", "sparse-baseline", {"sparsity": "set"}),
    "rigl": ("RigL", "sparse-baseline", {"sparsity": "rigl"}),
    "rigl-erk": ("RigL-ERK", "sparse-baseline", {"sparsity": "rigl"}),
}  # fmt: skip
STRENGTH = {"sparcl": 3.0, "rigl": 2.0, "rigl-erk": 2.5, "set": 1.5, "gmp": 1.0, "tdm": 1.8, "tdm-ddr": 2.0,
            "tdm-dgm": 2.2, "fixed-ddr-dgm": -0.5, "static": -1.0, "fixed": -0.5}  # fmt: skip
BASELINES = ("static", "magnitude", "gmp", "snip", "set", "rigl", "rigl-erk")
SWEEPS = {"ddr-proportion": ["ddr.proportion"], "ddr-cutoff": ["ddr.cutoff"], "dgm-sparsity": ["dgm.sparsity"]}
"""Sweeps of the default plan: group to parameters."""
TABLES = [
    "primary", "power", "regime", "gain", "continual_learning", "sparse_baselines", "ablation", "ablation_effects",
    "counted_against_measured", "memory", "sweep", "budget", "losses_as_published", "published", "all_cells",
]  # fmt: skip
FIGURES = [
    "accuracy_vs_flops", "counted_against_measured", "accuracy_vs_sparsity", "gain", "budget", "accuracy_per_task",
    "accuracy_matrices", "forgetting_bars", "sweep", "mask_dynamics", "flops_breakdown",
]  # fmt: skip
"""What the tests of the catalog are about, in its order. One that is added later disturbs none of them."""
TASKS, CLASSES, TRAIN, TEST = 5, 10, 1437, 360
MACS, WEIGHTS = 760_000, 77_000


def parts(method: str) -> tuple[str, str]:
    prefix, _, learner = method.rpartition("-")
    return (prefix, learner) if learner in LEARNERS else ("", method)


def cell(method: str, sparsity: float = 0.0, buffer: int = 0, seed: int = 0, params: Mapping | None = None,
         stream: str = "split-digits", **fields: Any) -> dict[str, Any]:  # fmt: skip
    resolved = {"protocol.single_head": True, "protocol.replay_start": "second-task"} | dict(params or {})
    policies = BUNDLES.get(parts(method)[0], ("", "", {}))[2]
    if "data" in policies:
        resolved = {"ddr.proportion": 0.3, "ddr.cutoff": 4} | resolved
    if "gradient" in policies:
        resolved = {"dgm.sparsity": {0.75: 0.8, 0.9: 0.92, 0.95: 0.96}.get(sparsity, 0.8)} | resolved
    base = {
        "stream": stream, "method": method, "sparsity": sparsity, "buffer": buffer, "seed": seed,
        "model": "resnet8", "width": 16, "epochs": 10, "batch_size": 16, "learning_rate": 0.03,
        "precision": "float32", "device": "cpu", "kernel": "dense", "stream_options": {}, "params": resolved,
    }  # fmt: skip
    return base | fields


def facts(method: str) -> dict[str, Any]:
    """What a plan says of a method."""
    bundle, learner = parts(method)
    label, family, _ = LEARNERS[learner]
    policies: Mapping[str, str] = {}
    if bundle:
        name, family, policies = BUNDLES[bundle]
        label = f"{name}-{label}"
    return {
        "label": label, "family": family, "learner": learner,
        "policies": {kind: policies.get(kind) for kind in ("sparsity", "gradient", "data")},
        "task_il_only": learner == "packnet",
    }  # fmt: skip


def shares(cell_: Mapping[str, Any]) -> tuple[float, float]:
    """The fraction of the images that is presented, and the gradient's sparsity."""
    policies, params = facts(cell_["method"])["policies"], cell_["params"]
    proportion = params.get("ddr.proportion", 0.0) if policies["data"] else 0.0
    gradient = params.get("dgm.sparsity", cell_["sparsity"]) if policies["gradient"] else cell_["sparsity"]
    return 1 - 0.55 * proportion * params.get("ddr.cutoff", 4) / 4, gradient


def entry(cell_: Mapping[str, Any], groups: Iterable[str] = ("main",), variant: Mapping | None = None) -> dict:
    """A planned cell; ``variant`` holds the settings that differ from what its name implies."""
    variant = dict(variant or {})
    middle = "+".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                      for key, value in sorted(variant.items()))  # fmt: skip
    places = (cell_["stream"], cell_["method"], f"s{cell_['sparsity']:.2f}", f"b{cell_['buffer']}", middle,
              f"seed{cell_['seed']}")  # fmt: skip
    path = "/".join(place for place in places if place)
    identity = hashlib.sha256((path + json.dumps(cell_, sort_keys=True)).encode()).hexdigest()
    s, (r, g), replays = cell_["sparsity"], shares(cell_), LEARNERS[parts(cell_["method"])[1]][2]
    unit, density, gradient = 2 * MACS * cell_["epochs"] * TRAIN, 0.97 * (1 - s) + 0.03, 0.97 * (1 - g) + 0.03
    planned = {
        "flops_paper": float(unit * r * ((1 + replays) * density + 2 * gradient)),
        "flops_dense": int(3 * unit * (1 + 0.8 * replays)),
        "data_fraction": r, "weight_density": 1 - s, "gradient_density": 1 - g, "replay_batches": replays,
        "paper_memory_ablation": 2 * 1_200_000 + 4 * WEIGHTS * (2 - s - g),
        "paper_memory_phone": 1_200_000 + 4 * WEIGHTS * (2 - s - g),
        "memory": {"dense_parameters": 1_000, "frozen": 0, "buffers": 480, "activations": 1_200_000},
    }  # fmt: skip
    return {"path": path, "groups": list(groups), "cell": dict(cell_), "variant": variant, "identity": identity,
            "planned": planned, "resources": {"seconds": 10.0, "memory_mb": 500}}  # fmt: skip


def plan(entries: Iterable[Mapping[str, Any]], reference: str = "sparcl-derpp", name: str = "synthetic",
         sweeps: Mapping[str, Iterable[str]] | None = None, analysis: Mapping | None = None) -> dict:  # fmt: skip
    """A plan; ``sweeps`` says which of its groups set which parameters, ``analysis`` what was planned."""
    merged: dict[str, dict] = {}
    for item in entries:
        if item["path"] in merged:
            merged[item["path"]]["groups"] += [g for g in item["groups"] if g not in merged[item["path"]]["groups"]]
        else:
            merged[item["path"]] = dict(item)
    cells, groups = list(merged.values()), {}
    for group in dict.fromkeys(group for item in cells for group in item["groups"]):
        own = [item["cell"] for item in cells if group in item["groups"]]
        groups[group] = {"methods": list(dict.fromkeys(cell_["method"] for cell_ in own))}
        if keys := (sweeps or {}).get(group):
            groups[group]["set"] = {key: list(dict.fromkeys(cell_["params"][key] for cell_ in own)) for key in keys}
    stream = cells[0]["cell"]["stream"]
    return {
        "schema": "sparcl-plan/2", "name": name, "title": "Synthetic matrix", "description": "", "reference": reference,
        "config": {"stream": stream, "groups": groups}, "analysis": analysis,
        "stream": {
            "name": stream,
            "label": {"split-digits": "Split-Digits", "split-cifar10": "Split-CIFAR-10"}.get(stream, "Folder"),
            "tasks": TASKS, "classes": [[2 * t, 2 * t + 1] for t in range(TASKS)], "train_sizes": [288] * 4 + [285],
            "test_sizes": [72] * TASKS, "shape": [1, 8, 8],
        },
        "methods": {item["cell"]["method"]: facts(item["cell"]["method"]) for item in cells},
        "bundles": {
            name: BUNDLES[name][0]
            for name in dict.fromkeys(
                [parts(item["cell"]["method"])[0] for item in cells]
                + [one[side] for one in (analysis or {}).get("contrasts", []) for side in ("first", "second")]
            )
            if name in BUNDLES
        },
        "cells": cells,
    }  # fmt: skip


def default_plan(
    seeds: int = 5, buffers: Iterable[int] = (20, 50), more: bool = True, baselines: Iterable[str] = BASELINES
) -> dict:
    """The shape of the default matrix: bounds, learners, SparCL, baselines, ablation and sweeps."""
    buffers, entries = tuple(buffers), []

    def add(group: str, methods: Iterable[str], buffers: Iterable[int] = (0,), sparsities: Iterable[float] = (0.0,),
            variant: Mapping | None = None, params: Mapping | None = None) -> None:  # fmt: skip
        for method in methods:
            for buffer in buffers:
                for sparsity in sparsities:
                    for seed in range(seeds):
                        entries.append(entry(cell(method, sparsity, buffer, seed, params), [group], variant))

    levels = (0.75, 0.90, 0.95)
    add("bounds", ["finetune", "joint"])
    add("rehearsal", ["er", "der", "derpp"], buffers)
    if more:
        add("rehearsal", ["agem", "icarl", "fdr"], buffers)
        add("regularization", ["ewc", "lwf", "lightcl"])
        add("isolation", ["packnet"], (0,), (0.5,))
    for learner in ("er", "derpp"):
        add("sparcl", [f"sparcl-{learner}"], buffers, levels)
        add("baselines", [f"{name}-{learner}" for name in baselines], buffers, levels)
    last = buffers[-1:]
    add("ablation", ["derpp", "ddr-derpp", "dgm-derpp"], last)
    names = ("fixed", "fixed-ddr-dgm", "tdm", "tdm-ddr", "tdm-dgm", "sparcl")
    add("ablation", [f"{name}-derpp" for name in names], last, (0.75,))
    for group, key, values, default in (
        ("ddr-proportion", "ddr.proportion", (0.1, 0.3, 0.5, 0.7), 0.3),
        ("ddr-cutoff", "ddr.cutoff", (1, 2, 4, 6, 8), 4),
        ("dgm-sparsity", "dgm.sparsity", (0.75, 0.8, 0.9, 0.95), 0.8),
    ):
        for value in values:
            add(group, ["sparcl-derpp"], last, (0.75,), {} if value == default else {key: value}, {key: value})
    return plan(entries, sweeps=SWEEPS)


def class_il(cell_: Mapping[str, Any], noise: float = 1.5) -> float:
    """The rule for the final Class-IL accuracy, percent."""
    bundle, learner = parts(cell_["method"])
    base = {"finetune": 20, "joint": 97, "ewc": 22, "lwf": 24, "lightcl": 45, "packnet": 50, "agem": 30,
            "icarl": 75, "fdr": 60, "er": 70, "der": 74, "derpp": 78}[learner]  # fmt: skip
    base += 12 * (cell_["buffer"] >= 50)
    loss = {0.0: 0, 0.5: 1, 0.75: 3.5, 0.9: 6.5, 0.95: 10.0}.get(cell_["sparsity"], 5)
    value = base - loss + STRENGTH.get(bundle, 0.0) * (1 + 2 * cell_["sparsity"])
    value -= 12 * max(0.0, cell_["params"].get("ddr.proportion", 0) - 0.35)
    shared = np.random.default_rng(cell_["seed"]).normal(0, noise)
    own = np.random.default_rng(abs(hash_of(cell_))).normal(0, noise)
    return float(min(value + shared + own, 99.0))


def hash_of(cell_: Mapping[str, Any]) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(cell_, sort_keys=True).encode()).digest()[:6], "big")


def matrices(final: float, rng: np.random.Generator, joint: bool) -> tuple[list, list]:
    """Accuracy matrices whose last Class-IL row has the mean ``final``."""
    learned = rng.uniform(94, 99, TASKS)
    last = np.clip(final + np.linspace(-0.5, 0.5, TASKS) * min(30, 2 * (100 - final)), 0, 100)
    last = np.clip(last + final - last.mean(), 0, 100)
    rows_c: list[list[float | None]] = []
    for t in range(TASKS):
        if joint and t < TASKS - 1:
            rows_c.append([None] * TASKS)
            continue
        row = [float(learned[k] + (last[k] - learned[k]) * (t - k) / max(TASKS - 1 - k, 1)) if k <= t else 0.0
               for k in range(TASKS)]  # fmt: skip
        rows_c.append([float(v) for v in last] if t == TASKS - 1 else row)
    rows_t = [[None if v is None else float(50 + 0.5 * v) if k > t else float(99 - 0.1 * (100 - v))
               for k, v in enumerate(row)] for t, row in enumerate(rows_c)]  # fmt: skip
    return rows_c, rows_t


def record(item: Mapping[str, Any], diverged: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """The record of a planned cell; ``diverged`` says in which task, epoch and step its loss was not finite."""
    cell_ = item["cell"]
    bundle, learner = parts(cell_["method"])
    replays = LEARNERS[learner][2]
    policies = {kind: name for kind, name in facts(cell_["method"])["policies"].items() if name}
    rng = np.random.default_rng(hash_of(cell_))
    s, seed, (r, g) = cell_["sparsity"], cell_["seed"], shares(cell_)
    rows_c, rows_t = matrices(class_il(cell_), rng, learner == "joint")
    if diverged:
        for rows in (rows_c, rows_t):
            rows[diverged[0] :] = [[None] * TASKS for _ in range(diverged[0], TASKS)]
    unit = 2 * MACS * cell_["epochs"] * TRAIN
    density, gradient = 0.97 * (1 - s) + 0.03, 0.97 * (1 - g) + 0.03

    def line(images: float, scale: float = 1.0) -> dict[str, int]:
        return {"forward": int(unit * images * density * scale), "input_gradient": int(unit * images * density * scale),
                "weight_gradient": int(unit * images * gradient * scale)}  # fmt: skip

    lines = {"stream": line(r)}
    if replays:
        lines["replay"] = line(0.8 * r * replays)
    if "sparsity" in policies and policies["sparsity"] == "tdm":
        lines["importance"] = {"forward": 0, "input_gradient": 0, "weight_gradient": int(unit * 0.02)}
    if "gradient" in policies:
        lines["gradient_refresh"] = {"forward": 0, "input_gradient": 0, "weight_gradient": int(unit * 0.01)}
    if bundle.startswith("rigl"):
        lines["dense_gradient"] = {"forward": 0, "input_gradient": 0, "weight_gradient": int(unit * 0.05)}
    training = sum(sum(kinds.values()) for kinds in lines.values())
    evaluated = int(2 * MACS * TEST * TASKS * density)
    lines["evaluation"] = {"forward": evaluated, "input_gradient": 0, "weight_gradient": 0}
    epochs = cell_["epochs"]
    history = []
    dynamic = policies.get("sparsity") in ("tdm", "set", "rigl", "gmp")
    for task in range(TASKS if dynamic else 0):
        for epoch in range(0, epochs, 5 if policies["sparsity"] == "tdm" else 1):
            if policies["sparsity"] == "gmp" and task:
                continue
            now = s * (1 - (1 - (epoch + 1) / epochs) ** 3) if policies["sparsity"] == "gmp" else s
            now -= 0.01 * (policies["sparsity"] == "tdm" and epoch == 0 and task > 0)
            churn = {"tdm": 0.005, "set": 0.03, "rigl": 0.03 * (1 + np.cos(np.pi * epoch / epochs)), "gmp": 0.05}[
                policies["sparsity"]]  # fmt: skip
            count = int(churn * WEIGHTS)
            history.append({"task": task, "epoch": epoch, "step": 0, "density": 1 - now, "gradient_density": 1 - g,
                            "pruned": count, "grown": count, "churn": count / WEIGHTS})  # fmt: skip
    weights = round((1 - s) * WEIGHTS)
    learning = min(weights, round((1 - g) * WEIGHTS))
    body = {
        "schema": "sparcl-record/2",
        "identity": item["identity"],
        "cell": dict(cell_),
        "status": "diverged" if diverged else "done",
        "diverged": dict(zip(("task", "epoch", "step"), diverged, strict=True)) if diverged else None,
        "results": {
            "accuracy": {"class_il": rows_c, "task_il": rows_t,
                         "untrained": {"class_il": [10.0] * TASKS, "task_il": [50.0] * TASKS}},
            "executed": {"training": training, "evaluation": lines["evaluation"]["forward"], "lines": lines,
                         "layers": {"layer1.conv1.weight": training}},
            "masks": {"layers": {"layer1.conv1.weight": {"size": WEIGHTS, "weights": weights, "learning": learning}},
                      "history": history},
            "data": {"removed": [[] for _ in range(TASKS)], "presented": [int(288 * epochs * r)] * TASKS},
            "losses": [[1.0 / (e + 1) for e in range(epochs)] for _ in range(TASKS)],
            "held_bytes": {"memory": 65 * cell_["buffer"], "state": 0},
        },
        "provenance": {"code": "c" * 64, "data": "d" * 64,
                       "versions": {"python": "3.11.7", "torch": "2.14.1", "torchvision": "0.29.0", "numpy": "2.4.6"},
                       "kernel": "dense", "instruction_set": None},
        "measured": {
            "started": f"2026-01-01T00:00:{seed:02d}+00:00", "wall_seconds": 6.5 + s, "train_seconds": 5.0,
            "evaluation_seconds": 0.5, "peak_rss_bytes": 400_000_000, "resumed": 0, "threads": 1,
            "hardware": {"cpu": "Synthetic CPU", "cores": 2, "gpu": None},
            "git": {"revision": "a" * 40, "dirty": False},
        },
    }  # fmt: skip
    return sealed(body)


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    body = {key: value for key, value in body.items() if key != "checksum"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return body | {"checksum": hashlib.sha256(canonical.encode()).hexdigest()}


def write(
    folder: Path, plan_: Mapping[str, Any], skip: Iterable[str] = (), fail: Mapping[str, str] | None = None,
    diverge: Mapping[str, tuple[int, int, int]] | None = None,
) -> Path:  # fmt: skip
    """Write plan and records; ``skip`` cells get none, ``fail`` cells a failed.json. Returns the plan's path."""
    skip, fail, diverge = set(skip), dict(fail or {}), dict(diverge or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan_))
    (folder / "timing.json").write_text(json.dumps(timing(plan_)))
    for item in plan_["cells"]:
        run = folder / "runs" / item["path"]
        if item["path"] in skip:
            continue
        run.mkdir(parents=True, exist_ok=True)
        if item["path"] in fail:
            (run / "failed.json").write_text(json.dumps({"error": fail[item["path"]]}))
            continue
        (run / "record.json").write_text(json.dumps(record(item, diverge.get(item["path"]))))
    return folder / "plan.json"


def timing(plan_: Mapping[str, Any]) -> dict[str, Any]:
    """What ``sparcl time`` writes: a sparse step takes (1 - s) of the dense step's FLOPs and (1.2 - s) of its time."""
    chosen = {(c["method"], c["sparsity"], c["buffer"]) for c in (e["cell"] for e in plan_["cells"]) if c["sparsity"]}
    made = []
    for (method, sparsity, buffer), threads in itertools.product(sorted(chosen), (1, 2)):
        left, share = 1 - sparsity, 1.2 - sparsity
        row = {"method": method, "sparsity": sparsity, "buffer": buffer, "kernel": "sparse", "threads": threads,
               "dense_bytes": 4000, "sparse_bytes": round(4000 * left) + 125}  # fmt: skip
        for what, seconds in (("step", 0.010), ("inference", 0.0001)):
            row |= {f"{what}_seconds": seconds * share / threads, f"dense_{what}_seconds": seconds / threads,
                    f"{what}_time_saved": 1 / share,
                    f"{what}_flops": 1e6 * left, f"dense_{what}_flops": 1e6}  # fmt: skip
        made.append(row)
    return {"machine": {"cpu": "Synthetic CPU", "instruction_set": "avx2", "torch": "2.14.1"}, "rows": made}


def collected(plan_file: Path) -> frames.Results:
    """Collect the records beside a plan and read the table back."""
    collect.collect(plans.read(plan_file), plan_file.parent)
    return frames.read(plan_file, plan_file.parent / collect.TABLE)


class Records(Mapping):
    """The records behind results, by path, as they stand in their files; each is read when it is asked for."""

    def __init__(self, results: frames.Results) -> None:
        files = {path: results.plan.runs / path / "record.json" for path in results.frame.path}
        self.files = {path: file for path, file in files.items() if file.exists()}

    def __getitem__(self, path: str) -> dict[str, Any]:
        return json.loads(self.files[path].read_text())

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def tables(plan: plans.Document) -> list[str]:
    """The tables that a plan gives, of those in :data:`TABLES`."""
    return [name for name in catalog.tables(plan) if catalog.module_of(name) in TABLES]


def figures(plan: plans.Document) -> list[str]:
    """The figures that a plan gives, of those in :data:`FIGURES`."""
    return [name for name in catalog.figures(plan) if catalog.module_of(name) in FIGURES]


def table(results: frames.Results, name: str) -> Table:
    """A table by its name."""
    module = import_module(f"analysis.tables.{catalog.module_of(name)}")
    return module.table(results, *catalog.group_of(name))


def rows(made: Table) -> list[dict[str, str]]:
    """The rows of a table, as its CSV has them."""
    return list(csv.DictReader(io.StringIO(typeset.to_csv(made))))


def final(record_: Mapping[str, Any], kind: str = "class_il") -> float:
    """Average accuracy at the end of a run, by hand."""
    last = record_["results"]["accuracy"][kind][-1]
    return sum(last) / len(last)
