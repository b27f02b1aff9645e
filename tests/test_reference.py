"""The README's numbers are those of the committed reference results."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
REFERENCE = TOP / "results" / "reference"
RATIO = "FLOPs, second / first"
ALL = ("Class-IL (points)", "Verdict", "p", "p, within 2 points")
FRESH = ("Fresh seeds (points)", "Fresh: verdict")
README = (TOP / "README.md").read_text(encoding="utf-8")
FLAT = " ".join(README.split())


def cells(line: str) -> list[str]:
    return [part.strip() for part in line.strip().strip("|").split("|")]


def committed(reference: str) -> dict[str, dict[str, str]]:
    """Return the planned rows of a reference's table ``primary`` by contrast, each by column."""
    lines = (REFERENCE / reference / "tables" / "primary.md").read_text(encoding="utf-8").splitlines()
    head, *rows = [cells(line) for line in lines if line.startswith("|") and not line.startswith("|:")]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows if row[1] == "✓"}


def test_the_planned_contrasts() -> None:
    references = [committed(name) for name in ("split-digits-full", "mnist", "cifar10-few")]
    block = re.search(r"^\| \| \*\*Split-Digits\*\*.*\n\|:.*\n((?:^\|.*\n)+)", README, re.MULTILINE)
    assert block is not None
    found = {row[0]: row[1:] for row in map(cells, block[1].splitlines())}
    assert list(found) == list(references[0])
    for contrast, values in found.items():
        rows = [reference[contrast] for reference in references]
        ratios = ", ".join(row[RATIO] for row in rows if row["n"] != "0")
        assert values == [*map(finding, rows), ratios], contrast


def test_the_fresh_seeds() -> None:
    rows = {contrast.removeprefix("SparCL minus "): row for contrast, row in committed("split-digits-full").items()}
    verdicts = {name: row[FRESH[1]] for name, row in rows.items()}
    assert verdicts == {
        "dense": "lower", "RigL": "within 2 points", "SET": "within 2 points",
        **dict.fromkeys(("Static", "SNIP", "GMP"), "not told apart"),
    }  # fmt: skip
    assert "dense is higher by 4.70 points, RigL and SET are within 2 points, the others are not told apart" in FLAT
    protocol = " ".join((TOP / "docs" / "protocol.md").read_text(encoding="utf-8").split())
    for row in rows.values():
        assert row[FRESH[0]] in protocol.replace(" points", "")


def finding(row: dict[str, str]) -> str:
    """What the README prints of a row of the table ``primary``."""
    gap, verdict, p, p_within = (row[column] for column in ALL)
    if row["n"] == "0":
        return "not run"
    p = p_within if verdict.startswith("within") else p
    equals = "" if p.startswith("\\<") else "= "
    return f"{gap}, {verdict} (p {equals}{p})"


def test_accuracies_on_cifar10() -> None:
    rows = {}
    for name in ("continual_learning", "sparse_baselines"):
        with (REFERENCE / "cifar10-few" / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows |= {row["label"]: row for row in csv.DictReader(file)}
    dense, sparcl, static = (
        f"{float(rows[label]['class_il_mean']):.1f} ± {float(rows[label]['class_il_sd']):.1f}"
        for label in ("DER++", "SparCL-DER++", "Static-DER++")
    )
    assert f"DER++ has {dense}, SparCL {sparcl}, a static mask {static}." in FLAT


@pytest.mark.parametrize("table", sorted(REFERENCE.glob("*/tables/all_cells.csv")), ids=lambda path: path.parts[-3])
def test_a_reference_is_complete(table: Path) -> None:
    """Nothing that was planned is missing from a committed table."""
    with table.open(encoding="utf-8", newline="") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"done"}
