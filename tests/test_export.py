"""Export to ONNX: the same predictions in ONNX Runtime, and what is said where it cannot be."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from sparcl import cli, export, models, streams
from sparcl.errors import RunError, UserError
from sparcl.export import Deployed
from sparcl.running import model_file
from sparcl.streams import augment

CELL = ("--stream", "split-digits", "--buffer", "20", "--epochs", "1", "--width", "4")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The command's output, and its ONNX file."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    command = [sys.executable, "-m", "sparcl", "export", *CELL, "--method", "sparcl-derpp", "--sparsity", "0.9"]
    command += ["--results", str(folder), "--out", str(folder / "model.onnx"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), folder / "model.onnx"


def test_onnx_runtime_predicts_as_pytorch_from_raw_pixels(exported, digits) -> None:
    file = exported[1]
    kept = next(file.parent.rglob(model_file.FILE))
    network = model_file.load(kept, _metadata(file)["sparcl.identity"])
    session = export.open_session(file, 1)
    for count in (1, 7, 32, len(digits.test_images)):
        images = digits.test_images[:count]
        with torch.no_grad():
            expected = network(augment.normalize(images, digits.info)).numpy()
        found = session.run(None, {"images": images.numpy()})[0]
        assert found.shape == (count, 10)
        assert np.abs(found - expected).max() <= 1e-5
        assert (found.argmax(1) == expected.argmax(1)).all()


def _metadata(file) -> dict[str, str]:
    import onnx

    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", export.OPSET)]
    return {entry.key: entry.value for entry in model.metadata_props}


def test_what_the_command_prints(exported) -> None:
    lines, file = exported
    assert lines[0].startswith("SparCL-DER++ on Split-Digits: Class-IL ")
    assert lines[1].startswith(f"{file}: all 359 test images are predicted as by PyTorch, logits differ by at most ")
    assert " MB dense, " in lines[2]
    assert f"{file.stat().st_size / 1e6:.3f} MB ONNX (dense)" in lines[2]
    assert lines[3].split() == ["inference,", "median,", "1", "thread:", "PyTorch", "ONNX", "Runtime"]
    rows = [line.split() for line in lines[4:]]
    assert [row[:2] for row in rows] == [["batch", "1"], ["batch", "32"]]
    assert all(float(row[2]) > 0 and float(row[4]) > 0 for row in rows)


def test_normalization_is_that_of_a_run() -> None:
    info = streams.describe("split-cifar10")
    network = models.build("mlp", 8, 10, info.shape, torch.Generator().manual_seed(0)).eval()
    images = torch.randint(0, 256, (5, *info.shape), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(augment.normalize(images, info))
        found = Deployed(network, info)(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_predictions_that_differ_are_an_error(digits) -> None:
    network = models.build("cnn", 4, 10, digits.info.shape, torch.Generator().manual_seed(0)).eval()
    model = Deployed(network, digits.info)

    class Session:
        def __init__(self, change):
            self.change = change

        def run(self, _names, inputs):
            with torch.no_grad():
                return [self.change(model(torch.from_numpy(inputs["images"])).numpy())]

    same = export.agreement(model, Session(lambda logits: logits), digits)
    assert (same.images, same.different, same.difference) == (359, 0, 0.0)
    for change in (lambda logits: -logits, lambda logits: 1.001 * logits, lambda logits: logits * np.nan):
        with pytest.raises(RunError, match="ONNX Runtime differs from PyTorch"):
            export.agreement(model, Session(change), digits)


def test_medians_are_of_calls_that_take_turns(monkeypatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(export.time, "perf_counter", lambda: clock[0])

    def call(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds[len(order) // 2 % len(seconds)]

        return run

    found = export.medians({"a": call("a", [0.01, 0.03, 0.02]), "b": call("b", [0.05])})
    assert order[:4] == ["a", "b", "a", "b"]
    assert found == {"a": pytest.approx(0.02), "b": pytest.approx(0.05)}
    assert 2 * export.WARM_UP < len(order) // 2 < export.MOST_RUNS  # until the seconds are over


@pytest.mark.parametrize("method", ["packnet", "lps", "lwta", "icarl"])
def test_methods_without_one_network_are_refused_before_they_run(method, tmp_path, capsys) -> None:
    own = [] if method == "icarl" else ["--sparsity", "0.5", "--buffer", "0"]
    arguments = ["export", *CELL, "--method", method, *own, "--results", str(tmp_path)]
    assert cli.main([*arguments, "--out", str(tmp_path / "x.onnx")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: method: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", sys)  # there
    with pytest.raises(UserError, match=r"^onnxscript cannot be imported .*pip install --editable '\.\[export\]'$"):
        export.check_packages()
