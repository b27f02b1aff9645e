"""What does not learn does not move, by bits; and looking at a run does not change it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparcl import cell, methods, trainer
from sparcl.running import record, runner

CASES = [
    ("sparcl-derpp", {"protocol.weight_decay": 0.1}),
    ("sparcl-er", {"protocol.weight_decay": 0.0}),
    ("dgm-derpp", {"protocol.weight_decay": 0.1}),
    ("static-dgm-derpp", {"protocol.weight_decay": 0.1, "protocol.freeze_bn_bias": True}),
    ("tdm-ddr-er", {"protocol.weight_decay": 0.1, "protocol.momentum": 0.9}),
    ("rigl-derpp", {"protocol.weight_decay": 0.1, "protocol.momentum": 0.9}),
    ("packnet", {"protocol.weight_decay": 0.1, "protocol.momentum": 0.9}),
    ("lps", {"protocol.weight_decay": 0.1, "protocol.momentum": 0.9}),
]


@pytest.mark.parametrize(("method", "params"), CASES, ids=[method for method, _ in CASES])
def test_weights_that_do_not_learn_keep_their_bits(
    method: str,
    params: dict[str, Any],
    small_cell: Callable[..., cell.Cell],
    run_steps: Callable[..., trainer.Run],
) -> None:
    """Weights that exist are compared as integers before and after every optimizer step; the others are 0."""
    held = moved = 0

    def bits(run: trainer.Run) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone().view(torch.int32) for n, p in run.masks.parameters.items()}

    def prepare(run: trainer.Run) -> None:
        project, mask_gradients = run.masks.project, run.masks.mask_gradients
        before: dict[str, torch.Tensor] = {}

        def masked() -> None:
            before.update(bits(run))
            mask_gradients()

        def projected() -> None:
            nonlocal held, moved
            project()
            if not before:  # not an optimizer's step
                return
            learning = run.masks.gradient or run.masks.weight
            for name, after in bits(run).items():
                exists = run.masks.weight[name]
                still = exists & ~learning[name]
                assert torch.equal(after[still], before[name][still]), name
                assert not run.masks.parameters[name].detach()[~exists].any(), name
                held += int(still.sum())
                moved += int((after != before[name]).sum())
            before.clear()

        run.masks.project, run.masks.mask_gradients = projected, masked

    run_steps(small_cell(method, params=params), prepare=prepare)
    assert moved > 1000
    assert (held > 1000) == (methods.get(method).policies.get("gradient") == "dgm" or method in ("packnet", "lps"))


def test_momentum_would_move_what_dgm_holds(small_cell: Callable[..., cell.Cell]) -> None:
    with pytest.raises(Exception, match="momentum would move weights"):
        small_cell("sparcl-derpp", params={"protocol.momentum": 0.9})


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("sparcl-derpp", {"protocol.weight_decay": 0.1}),
        ("rigl-er", {"protocol.weight_decay": 0.1, "protocol.momentum": 0.9}),
        ("agem", {"protocol.momentum": 0.9}),
        ("ewc", {}),
        ("packnet", {"protocol.momentum": 0.9}),
    ],
    ids=["sparcl-derpp", "rigl-er", "agem", "ewc", "packnet"],
)
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_biases_of_batch_normalization_stay_0(
    frozen: bool,
    method: str,
    params: dict[str, Any],
    small_cell: Callable[..., cell.Cell],
    run_steps: Callable[..., trainer.Run],
) -> None:
    """``protocol.freeze_bn_bias``: exactly 0 after every step of every task, every other parameter learns."""
    moved: set[str] = set()
    chosen = small_cell(method, epochs=1, params={**params, "protocol.freeze_bn_bias": frozen})
    start: dict[str, torch.Tensor] = {}

    def prepare(run: trainer.Run) -> None:
        start.update({name: value.detach().clone() for name, value in run.model.named_parameters()})

    def look(run: trainer.Run) -> None:
        moved.update(n for n, value in run.model.named_parameters() if not torch.equal(value.detach(), start[n]))

    run = run_steps(chosen, after_step=look, prepare=prepare)
    layers = [n for n, module in run.model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    biases = {f"{name}.bias" for name in layers}
    assert len(biases) > 3
    assert all(not start[name].any() for name in biases)
    assert start.keys() - moved == (biases if frozen else set())


@pytest.mark.parametrize("method", ["sparcl-derpp", "rigl-er", "packnet", "lwta", "lightcl"])
def test_evaluation_after_every_step_changes_nothing(
    method: str, small_cell: Callable[..., cell.Cell], tmp_path: Path
) -> None:
    """A run that is evaluated after each step ends with the record of one that is not, but for evaluation's FLOPs."""
    chosen = small_cell(method, epochs=1, batch_size=96)

    def without_evaluation(found: dict[str, Any]) -> dict[str, Any]:
        found = copy.deepcopy(record.reproducible(found))
        executed = found["results"]["executed"]
        executed["layers"] = executed["evaluation"] = executed["lines"]["evaluation"] = None
        return found

    calm = runner.run_cell(chosen, tmp_path / "calm")
    looked = runner.run_cell(
        chosen, tmp_path / "looked", watch=lambda run: trainer.evaluate(run, run.info.classes) and None
    )
    assert without_evaluation(looked) == without_evaluation(calm)
    evaluations = [found["results"]["executed"]["evaluation"] for found in (looked, calm)]
    assert evaluations[0] > evaluations[1]
