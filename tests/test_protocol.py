"""How an epoch is cut into batches, and batch normalization's momentum."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl import cli, matrix, resolve, trainer
from sparcl.cell import PROTOCOL, SETTINGS
from sparcl.errors import UserError
from sparcl.protocol import Protocol
from sparcl.running import runner
from sparcl.streams import source


def protocol(last_batch: str) -> Protocol:
    values = {key: parameter.default for key, parameter in Protocol.parameters.items()}
    return Protocol(**(values | {"last_batch": last_batch}))


def sizes(last_batch: str, samples: int, batch_size: int) -> list[int]:
    found = protocol(last_batch)
    bounds = [found.bounds(samples, batch_size, step) for step in range(found.steps(samples, batch_size))]
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))
    assert not bounds or bounds[0][0] == 0
    return [stop - start for start, stop in bounds]


def test_259_images_in_batches_of_32() -> None:
    """259 = 8 x 32 + 3: nine batches of 28.8 on average, or a last one of 3, or eight."""
    assert sizes("spread", 259, 32) == [29] * 7 + [28] * 2
    assert sizes("keep", 259, 32) == [32] * 8 + [3]
    assert sizes("drop", 259, 32) == [32] * 8


@given(st.integers(1, 5000), st.integers(1, 300))
def test_spread_presents_every_sample_in_as_many_steps_as_keep(samples: int, batch_size: int) -> None:
    spread, kept = sizes("spread", samples, batch_size), sizes("keep", samples, batch_size)
    assert sum(spread) == sum(kept) == samples
    assert len(spread) == len(kept)
    assert max(spread) <= batch_size
    assert max(spread) - min(spread) <= 1
    assert len(spread) == 1 or 2 * min(spread) >= batch_size


@pytest.mark.parametrize(("last_batch", "least"), [("spread", 16), ("keep", 1)])
def test_no_step_of_a_run_sees_a_small_batch(last_batch: str, least: int, digits) -> None:
    chosen = resolve.make(
        "split-digits",
        "sparcl-er",
        0.9,
        20,
        epochs=3,
        batch_size=32,
        params={"protocol.last_batch": last_batch, "ddr.cutoff": 2},
    )
    run = trainer.Run(chosen, digits)
    seen: list[int] = []
    trainer.train(run, after_step=lambda run: seen.append(len(run.batch.labels)))
    assert sum(seen) == sum(run.presented)
    assert (min(seen) >= 16) == (least == 16), min(seen)


def test_momentum_reaches_every_layer(digits) -> None:
    chosen = resolve.make("split-digits", "finetune", params={"protocol.bn_momentum": 0.25})
    run = trainer.Run(chosen, digits)
    found = {m.momentum for m in run.model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert found == {0.25}


# -- settings ----------------------------------------------------------------------------------------------------------
def test_a_setting_is_declared_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Command line, matrix and its schema have every setting that a cell declares, with its limits."""
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    options = capsys.readouterr().out
    fields = matrix.schema()["$defs"]["fields"]["properties"]
    for name, setting in SETTINGS.items():
        assert f"--{name.replace('_', '-')}" in options
        if name in PROTOCOL:
            assert fields[name]["description"] == setting.help
    assert set(fields) == {*PROTOCOL, "params"}
    assert fields["width"]["maximum"] == SETTINGS["width"].high
    with pytest.raises(UserError, match="precision: expected float32 or tf32 or bfloat16"):
        matrix.from_dict(
            {"name": "a", "title": "A", "stream": "split-digits", "seeds": 1, "defaults": {"precision": "float8"},
             "groups": {"g": {"methods": ["finetune"]}}}
        )  # fmt: skip


def test_a_stream_without_a_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(type(source.find("split-digits"))):  # type: ignore[misc]
        name = "other-digits"

    monkeypatch.setitem(source._table(), "other-digits", Other())
    with pytest.raises(UserError, match="other-digits has no protocol; expected 'protocol' of its source"):
        resolve.make("other-digits", "finetune")
    monkeypatch.setattr(Other, "protocol", resolve.protocol_of("split-digits") | {"width": 4})
    assert resolve.make("other-digits", "finetune").width == 4
    whole = dict(Other.protocol)
    monkeypatch.setattr(Other, "protocol", {key: value for key, value in whole.items() if key != "learning_rate"})
    with pytest.raises(UserError, match="the protocol of other-digits has no learning_rate; expected model, width"):
        resolve.make("other-digits", "finetune")
    monkeypatch.setattr(Other, "protocol", whole | {"epoch": 3})
    with pytest.raises(UserError, match=r"unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        resolve.make("other-digits", "finetune")


def test_an_unknown_setting_is_named_before_what_it_leaves_unset() -> None:
    with pytest.raises(UserError, match=r"buffers: unknown key \(did you mean 'buffer'\?\)"):
        resolve.make("split-digits", "er", buffers=20)


def test_a_stream_option_that_is_null_is_not_set() -> None:
    plain, unset = (resolve.make("split-digits", "er", 0.0, 20, stream_options=o) for o in ({}, {"tasks": None}))
    assert unset == plain


def test_a_dropped_last_batch_must_not_be_all_that_removal_leaves() -> None:
    """The smallest task of digits has 283 images; DDR leaves 283 - round(0.3 * 283) = 198 of them."""
    settings = {"epochs": 3, "params": {"protocol.last_batch": "drop", "ddr.interval": 1, "ddr.cutoff": 2}}
    resolve.make("split-digits", "static-ddr-er", 0.9, 20, batch_size=198, **settings)
    with pytest.raises(UserError, match=r"batch_size: expected at most 198, .*, got 199"):
        resolve.make("split-digits", "static-ddr-er", 0.9, 20, batch_size=199, **settings)


@pytest.mark.parametrize(
    ("method", "sparsity", "settings", "lines"),
    [
        ("set-er", 0.9, {"params": {"set.interval": 500}}, ["set.interval: no mask update in tasks of 1 epochs of 18"]),
        ("set-er", 0.9, {"params": {"set.interval": 3}}, []),
        ("set-er", 0.0, {"params": {"set.interval": 500}}, []),
        ("static-ddr-er", 0.9, {}, ["ddr.interval: no data removal in tasks of 1 epochs of 18"]),
        ("er", 0.0, {}, []),
    ],
)
def test_a_schedule_in_which_nothing_happens_is_told(method, sparsity, settings, lines, digits) -> None:
    run = trainer.Run(resolve.make("split-digits", method, sparsity, 20, epochs=1, width=4, **settings), digits)
    trainer.train(run)
    found = runner.idle(run)
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))
