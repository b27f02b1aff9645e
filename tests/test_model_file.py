"""The trained model as a file: what it holds, how small it is, whose it is, and what is refused."""

from __future__ import annotations

import json

import pytest
import safetensors
import torch

from sparcl import methods, resolve
from sparcl.costs import memory, planning
from sparcl.errors import UserError
from sparcl.running import model_file, record, runner


def test_a_masked_layer_is_its_values_and_a_bitmap() -> None:
    weight = torch.tensor([[0.0, 1.5, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 3.0, 0.0]])
    mask = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 1, 1]], dtype=torch.bool)  # the last weight is there, and is 0
    state = {"layer": weight, "full": torch.ones(2), "bias": torch.tensor([7.0]), "count": torch.tensor(3)}
    tensors, shapes = model_file.pack(state, {"layer": mask, "full": torch.ones(2, dtype=torch.bool)})
    assert shapes == {"layer": [2, 5]}
    assert tensors.keys() == {"layer.values", "layer.mask", "full", "bias", "count"}
    assert tensors["layer.values"].tolist() == [1.5, -2.0, 3.0, 0.0]
    assert tensors["layer.mask"].tolist() == [0b00010010, 0b00000011]  # positions 1, 4; 8, 9
    again = model_file.unpack(tensors, shapes)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_positions_count_in_row_major_order_whatever_the_layout() -> None:
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    mask = weight % 5 == 1
    tensors, shapes = model_file.pack(
        {"w": (weight * mask).to(memory_format=torch.channels_last)},
        {"w": mask.to(memory_format=torch.channels_last)},
    )
    assert tensors["w.values"].tolist() == [1.0, 6.0, 11.0, 16.0, 21.0]
    assert torch.equal(model_file.unpack(tensors, shapes)["w"], weight * mask)


def test_nothing_left_and_nothing_masked() -> None:
    none, every = torch.zeros(9, dtype=torch.bool), torch.ones(9, dtype=torch.bool)
    tensors, shapes = model_file.pack({"a": torch.zeros(9), "b": torch.ones(9)}, {"a": none, "b": every})
    assert [tensors[name].numel() for name in ("a.values", "a.mask", "b")] == [0, 2, 9]
    assert model_file.unpack(tensors, shapes)["a"].tolist() == [0.0] * 9


def test_bytes_by_hand() -> None:
    # 10 dense parameters, 8 bytes of buffers; 100 weights of which 30 are left; 9 weights, all left.
    assert memory.stored(10, 8, [(100, 30), (9, 9)]) == {
        "dense": 4 * 10 + 8 + 4 * 109,
        "sparse": 4 * 10 + 8 + (4 * 30 + 13) + 4 * 9,
    }


@pytest.fixture
def kept(tmp_path, small_cell):
    """A finished cell with its model: the cell, its record, its folder and its results folder."""
    chosen = small_cell("rigl-derpp", 0.9, epochs=1)
    found = runner.run_cell(chosen, tmp_path, keep_model=True)
    return chosen, found, runner.folder_of(chosen, tmp_path), tmp_path


def test_the_model_predicts_as_the_record_says(kept, digits) -> None:
    _, found, folder, _ = kept
    model = model_file.load(folder / model_file.FILE, found["identity"])
    assert not model.training
    accuracy = []
    for task in digits.tasks:
        images = digits.test_images[task.test_index].float() / 16
        with torch.no_grad():
            scores = model((images - digits.info.mean[0]) / digits.info.std[0])
        right = scores.argmax(1) == digits.test_labels[task.test_index]
        accuracy.append(100 * right.double().mean().item())
    assert accuracy == pytest.approx(found["results"]["accuracy"]["class_il"][-1])


def test_the_file_is_as_small_as_the_rule_says(kept) -> None:
    chosen, found, folder, _ = kept
    facts = planning.facts(chosen)["memory"]
    layers = found["results"]["masks"]["layers"]
    counts = [(layer["size"], layer["weights"]) for layer in layers.values()]
    stored = memory.stored(facts["dense_parameters"], facts["buffers"], counts)
    with safetensors.safe_open(folder / model_file.FILE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert sum(value.numel() * value.element_size() for value in tensors.values()) == stored["sparse"]
    assert stored["sparse"] < 0.4 * stored["dense"]
    assert json.loads(metadata["sparse"]).keys() == layers.keys()
    assert {name: len(tensors[name + ".values"]) for name in layers} == {n: e["weights"] for n, e in layers.items()}
    assert metadata["identity"] == found["identity"]
    assert resolve.from_dict(json.loads(metadata["cell"])) == chosen


def test_a_finished_cell_keeps_its_model_and_one_without_runs_again(tmp_path, small_cell) -> None:
    chosen = small_cell("er", epochs=1)
    file = runner.folder_of(chosen, tmp_path) / model_file.FILE
    first = runner.run_cell(chosen, tmp_path)
    assert not file.exists()
    second = runner.run_cell(chosen, tmp_path, keep_model=True)
    assert record.reproducible(second) == record.reproducible(first)
    assert second["measured"]["started"] >= first["measured"]["started"]
    written = file.stat().st_mtime_ns
    assert runner.run_cell(chosen, tmp_path, keep_model=True) == second
    assert runner.run_cell(chosen, tmp_path) == second
    assert file.stat().st_mtime_ns == written
    runner.run_cell(chosen, tmp_path, force=True)
    assert not file.exists()  # it would be of a run that is gone


def test_a_diverged_run_has_no_model(tmp_path, small_cell) -> None:
    chosen = small_cell("er", epochs=1, learning_rate=1e6)
    for _ in range(2):
        found = runner.run_cell(chosen, tmp_path, keep_model=True)
        assert found["diverged"] is not None
    assert not (runner.folder_of(chosen, tmp_path) / model_file.FILE).exists()


def test_damaged_and_foreign_models_are_refused(kept, tmp_path) -> None:
    _, found, folder, _ = kept
    file = folder / model_file.FILE
    with pytest.raises(UserError, match="a model of another run, code or library version; --force makes it anew"):
        model_file.load(file, "0" * 64)
    good = file.read_bytes()
    for damaged in (good[:-1] + bytes([good[-1] ^ 1]), good[: len(good) // 2], b"", b"\xff" * 100):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="expected a sound model file") as caught:
            model_file.load(file, found["identity"])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="model cannot be read"):
        model_file.load(tmp_path / "none", "")


def test_methods_that_one_network_does_not_describe_are_refused(tmp_path, small_cell) -> None:
    refused = {}
    for name in methods.names():
        chosen = small_cell(name)
        try:
            model_file.refuse(chosen)
        except UserError as error:
            refused[name] = str(error)
    assert refused.keys() == {"packnet", "lps", "lwta", *(name for name in methods.names() if name.endswith("icarl"))}
    with pytest.raises(UserError, match="method: PackNet uses other weights for each task"):
        runner.run_cell(small_cell("packnet"), tmp_path, keep_model=True)
    assert list(tmp_path.iterdir()) == []
