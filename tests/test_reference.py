"""The README's numbers are those of the committed reference results."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
REFERENCE = TOP / "results" / "reference"
README = (TOP / "README.md").read_text(encoding="utf-8")
LEVELS = ("0.00", "0.75", "0.90", "0.95")


def cells(line: str) -> list[str]:
    return [part.strip() for part in line.strip().strip("|").split("|")]


def table(after: str) -> list[list[str]]:
    """Return the rows of the README's first table after the text ``after``, without its head."""
    rest = README[README.index(after) + len(after) :]
    block = re.search(r"((?:^\|.*\n)+)", rest, re.MULTILINE)[1]
    return [cells(line) for line in block.splitlines()[2:]]


def measured(reference: str, *names: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Return rows of the committed CSV tables by (label, sparsity, buffer)."""
    found = {}
    for name in names:
        with (REFERENCE / reference / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found[row["label"], f"{float(row['sparsity']):.2f}", row["buffer"]] = row
    return found


def shown(row: dict[str, str], metric: str) -> str:
    return f"{float(row[f'{metric}_mean']):.1f} ± {float(row[f'{metric}_sd']):.1f}"


def test_split_digits_by_sparsity() -> None:
    rows = measured("split-digits-full", "continual_learning", "sparse_baselines")
    compared = 0
    for label, *values in table("**Split-Digits, every method, 15 seeds**"):
        name = label.split(" (")[0]
        ratios = values.pop().split(", ")
        levels = [level for level, value in zip(LEVELS, values, strict=True) if value]
        assert len(ratios) == len(levels), label
        for level, value, ratio in zip(levels, filter(None, values), ratios, strict=True):
            row = rows[name, level, "50"]
            assert value == shown(row, "class_il"), (name, level)
            assert ratio == ("1" if level == "0.00" else f"{float(row['ratio_executed']):.1f}"), (name, level)
            compared += 1
    assert compared >= 13


def test_split_digits_against_each_rival() -> None:
    lines = (REFERENCE / "split-digits-full" / "tables" / "primary.md").read_text(encoding="utf-8").splitlines()
    committed = {row[0]: row for row in map(cells, lines) if len(row) > 5}
    found = table("averaged over")
    assert len(found) == 6
    for row in found:
        assert set(row) <= set(committed[row[0]]), row


def test_split_cifar10_reduced() -> None:
    rows = measured("split-cifar10-reduced", "continual_learning", "sparse_baselines")
    found = table("**Split-CIFAR-10, reduced protocol, 3 seeds**")
    assert len(found) == 6
    for label, class_il, task_il, flops in found:
        row = rows[label, "0.00" if label in ("ER", "DER++") else "0.90", "500"]
        assert class_il == shown(row, "class_il")
        assert task_il == shown(row, "task_il")
        mantissa, exponent = f"{float(row['flops_executed']):.2e}".split("e")
        assert flops == f"{mantissa}e{int(exponent)}", label


@pytest.mark.parametrize("table", sorted(REFERENCE.glob("*/tables/all_cells.csv")), ids=lambda path: path.parts[-3])
def test_a_reference_is_complete(table: Path) -> None:
    """Nothing that was planned is missing from a committed table."""
    with table.open(encoding="utf-8", newline="") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"done"}
