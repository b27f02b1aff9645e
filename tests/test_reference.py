"""The numbers of docs/results.md are those of the committed reference results, and the README's are among them."""

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
PAGE = (TOP / "docs" / "results.md").read_text(encoding="utf-8")
FLAT = " ".join(PAGE.split())
MINUS = "\N{MINUS SIGN}"


def cells(line: str) -> list[str]:
    return [part.strip() for part in line.strip().strip("|").split("|")]


def committed(reference: str) -> dict[str, dict[str, str]]:
    """Return the planned rows of a reference's table ``primary`` by contrast, each by column."""
    lines = (REFERENCE / reference / "tables" / "primary.md").read_text(encoding="utf-8").splitlines()
    head, *rows = [cells(line) for line in lines if line.startswith("|") and not line.startswith("|:")]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows if row[1] == "✓"}


def test_the_planned_contrasts() -> None:
    references = [committed(name) for name in ("split-digits-full", "mnist", "cifar10-few")]
    block = re.search(r"^\| \| \*\*Split-Digits\*\*.*\n\|:.*\n((?:^\|.*\n)+)", PAGE, re.MULTILINE)
    assert block is not None
    found = {row[0]: row[1:] for row in map(cells, block[1].splitlines())}
    assert list(found) == list(references[0])
    for contrast, values in found.items():
        rows = [reference[contrast] for reference in references]
        ratios = ", ".join(row[RATIO] for row in rows if row["n"] != "0")
        assert values == [*map(finding, rows), ratios], contrast


def test_the_readme_says_nothing_else() -> None:
    """Every figure of the README's section, and every contrast with its verdict, stands on the page."""
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## What has been measured")[2].partition("\n## ")[0]
    figures = re.compile(rf"[+{MINUS}]?\d[\d,.]*(?:\d| ± [\d.]+)?(?: \[[^\]]+\](?:, [a-z0-9 ]+(?= \|))?)?")
    page = re.sub(r" \(p [^)]*\)(?= \|)", "", FLAT.replace(" points [", " ["))
    missing = [figure for figure in figures.findall(" ".join(section.split())) if figure.rstrip(".,") not in page]
    assert len(figures.findall(section)) > 60
    assert missing == []


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
    """What the page prints of a row of the table ``primary``."""
    gap, verdict, p, p_within = (row[column] for column in ALL)
    if row["n"] == "0":
        return "not run"
    p = p_within if verdict.startswith("within") else p
    equals = "" if p.startswith("\\<") else "= "
    return f"{gap}, {verdict} (p {equals}{p})"


def test_accuracies_on_cifar10() -> None:
    found = {
        row["label"]: row for name in ("continual_learning", "sparse_baselines") for row in rows("cifar10-few", name)
    }
    dense, sparcl, static = (
        f"{float(found[label]['class_il_mean']):.1f} ± {float(found[label]['class_il_sd']):.1f}"
        for label in ("DER++", "SparCL-DER++", "Static-DER++")
    )
    assert f"DER++ has {dense}, SparCL {sparcl}, a static mask {static}." in FLAT


@pytest.mark.parametrize("table", sorted(REFERENCE.glob("*/tables/all_cells.csv")), ids=lambda path: path.parts[-3])
def test_a_reference_is_complete(table: Path) -> None:
    """Nothing that was planned is missing from a committed table."""
    with table.open(encoding="utf-8", newline="") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"done"}


def rows(reference: str, table: str, **wanted: str) -> list[dict[str, str]]:
    """Return the rows of a committed table whose columns are as ``wanted``."""
    with (REFERENCE / reference / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    assert found, (reference, table, wanted)
    return found


def rounded(row: dict[str, str]) -> str:
    """Return mean and interval of a row's difference as the page prints them: to one decimal, signs as in text."""
    low, high = ("class_il_ci_low", "class_il_ci_high") if "class_il_ci_low" in row else ("ci_low", "ci_high")
    mean, low, high = (f"{float(row[name]):+.1f}".replace("-", MINUS) for name in ("class_il_diff", low, high))
    return f"{mean} [{low}, {high}]"


def test_parts() -> None:
    for part in ("TDM", "DDR", "DGM"):
        (average,) = rows("split-digits-full", "ablation_effects", part=part, off="average of 8 pairs")
        assert f"{part} {rounded(average)}" in FLAT
        assert float(average["p_within"]) <= 0.0075
    for reference, words in (("cifar10-few", "worth {}, TDM with DGM {};"), ("mnist", "on MNIST {} and {} (n = 5)")):
        found = [rounded(rows(reference, "ablation_effects", part=part)[0]) for part in ("DDR", "TDM+DGM")]
        assert words.format(*found) in FLAT


def test_the_published_gain() -> None:
    (loss,) = rows(
        "split-digits-gain", "gain", kind="main effect", name="loss over the task's classes minus loss over all classes"
    )
    by_source, *by_one = rows("split-digits-gain", "gain", kind="SparCL as compared", name="SparCL minus dense")
    for row in (loss, by_source):
        assert rounded(row).replace(" [", " points [", 1 if row is loss else 0) in FLAT
    means = sorted(float(row["class_il_diff"]) for row in by_one)
    assert len(means) == 4
    assert f"by any one protocol {MINUS}{-means[-1]:.1f} to {MINUS}{-means[0]:.1f}, each told" in FLAT
    assert {row["verdict"] for row in by_one} == {"lower"}


def test_equal_budgets() -> None:
    shorter, longer = (
        [row for row in rows("split-digits-budget", "budget", group=group) if row["class_il_diff"]]
        for group in ("shorter", "longer")
    )
    up, down = (sorted(abs(float(row["class_il_diff"])) for row in group) for group in (shorter, longer))
    assert f"sparse methods are {up[0]:.1f} to {up[-1]:.1f} points higher" in FLAT
    assert f"with those of ten {down[0]:.1f} to {down[-1]:.1f} lower" in FLAT
    assert all(float(row["p_fdr"]) < 0.001 for row in shorter)
    told = {row["label"].removesuffix("-DER++") for row in longer if float(row["p_fdr"]) < 0.05}
    assert told == {"SparCL", "RigL", "SET"}


def test_what_could_have_been_told() -> None:
    found = {}
    for reference in ("split-digits-full", "mnist", "cifar10-few"):
        least = sorted(float(row["detectable"]) for row in rows(reference, "power"))
        found[reference] = least[0], least[-1]
    digits, mnist, cifar = found.values()
    assert (f"tell {digits[0]:.1f} to {digits[1]:.1f} points on digits, but {mnist[0]:.1f} to {mnist[1]:.0f} on MNIST "
            f"and {cifar[0]:.1f} to {cifar[1]:.1f} on CIFAR-10") in FLAT  # fmt: skip


def test_time() -> None:
    def step(reference: str, threads: str) -> dict[str, str]:
        wanted = {"label": "SparCL-DER++", "sparsity": "0.9", "threads": threads}
        (row,) = rows(reference, "counted_against_measured", **wanted)
        return row

    one, two = (step("split-digits-full", threads) for threads in "12")
    flops, slow, fast = (float(value) for value in (one["step_flops"], one["step_time"], two["step_time"]))
    assert f"executes {flops:.1f} times fewer FLOPs on digits and takes {slow:.1f} times less time than" in FLAT
    assert f"dense step on one thread, {fast:.1f} on two;" in FLAT
    few, mnist = (
        " and ".join(f"{float(step(reference, threads)['step_time']):.1f}" for threads in "12")
        for reference in ("cifar10-few", "mnist")
    )
    assert f"; {few} on CIFAR-10, {mnist} on MNIST" in FLAT


def test_memory() -> None:
    saved = {
        reference: [float(row["saving"]) for row in rows(reference, "memory") if row["label"].startswith("SparCL-")]
        for reference in ("split-digits-full", "cifar10-few", "mnist")
    }
    digits, cifar, mnist = saved.values()
    assert (f"{min(digits):.0f} to {max(digits):.0f} % less on digits, {min(cifar):.0f} % on CIFAR-10, "
            f"{min(mnist):.0f} % on MNIST") in FLAT  # fmt: skip
