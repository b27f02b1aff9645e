"""The numbers of docs/results.md are those of the committed reference results, and the README's are among them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas
import pytest

from analysis import statistics

TOP = Path(__file__).resolve().parents[1]
REFERENCE = TOP / "results" / "reference"
RATIO = "FLOPs, second / first"
ALL = ("Class-IL (points)", "Verdict", "p", "p, within 2 points")
FRESH = ("Fresh seeds (points)", "Fresh: verdict")
PAGE = (TOP / "docs" / "results.md").read_text(encoding="utf-8")
FLAT, METHODS, PROTOCOL = (
    " ".join((TOP / "docs" / f"{name}.md").read_text(encoding="utf-8").split())
    for name in ("results", "methods", "protocol")
)
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


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
    for row in rows.values():
        assert row[FRESH[0]] in PROTOCOL.replace(" points", "")


def finding(row: dict[str, str]) -> str:
    """What the page prints of a row of the table ``primary``."""
    gap, verdict, p, p_within = (row[column] for column in ALL)
    if row["n"] == "0":
        return "not run"
    p = p_within if verdict.startswith("within") else p
    equals = "" if p.startswith("\\<") else "= "
    return f"{gap}, {verdict} (p {equals}{p})"


@pytest.mark.parametrize(("reference", "name"), [("mnist", "MNIST"), ("cifar10-few", "CIFAR-10")])
def test_accuracies(reference: str, name: str) -> None:
    found = {row["label"]: row for part in ("continual_learning", "sparse_baselines") for row in rows(reference, part)}
    dense, sparcl, static = (
        f"{float(found[label]['class_il_mean']):.1f} ± {float(found[label]['class_il_sd']):.1f}"
        for label in ("DER++", "SparCL-DER++", "Static-DER++")
    )
    assert f"On {name} DER++ has {dense}, SparCL {sparcl}, a static mask {static}" in FLAT


def done(reference: str) -> pandas.DataFrame:
    """Return the runs of a reference."""
    table = pandas.read_csv(REFERENCE / reference / "tables" / "all_cells.csv")
    return table[table.status == "done"]


def cells_of(reference: str, *methods: str) -> pandas.DataFrame:
    """Return the runs of the main groups, with the matrix's epochs, of some methods."""
    table = done(reference)
    return table[table.method.isin(methods) & ~table.variant.fillna("").str.contains("epochs=100|epochs=20|ddr")]


def signed(value: float) -> str:
    """Return a number as the pages print differences: to one decimal, signs as in text."""
    return f"{value:+.1f}".replace("-", MINUS)


def interval(differences: pandas.Series) -> str:
    """Return mean and 95 % t-interval over seeds of paired differences, averaged within a seed."""
    found = statistics.summarize(differences.dropna().groupby("seed").mean().to_list())
    return f"{signed(found.mean)} [{signed(found.ci_low)}, {signed(found.ci_high)}]"


def against_dense(reference: str, metric: str, learners: tuple[str, ...], sparsity: float | None = None) -> str:
    runs = cells_of(reference, *learners, *(f"sparcl-{learner}" for learner in learners))
    sparse = runs[runs.method.str.startswith("sparcl") & ((runs.sparsity == sparsity) if sparsity else True)]
    settings = ["learner", "buffer", "seed"]
    sparse, dense = (part.groupby(settings)[metric].mean() for part in (sparse, runs[runs.sparsity == 0]))
    return interval(sparse - dense)


def test_what_sparsity_costs_on_digits() -> None:
    for sparsity in (0.75, 0.90, 0.95, None):
        costs = [
            against_dense("split-digits-full", metric, ("er", "derpp"), sparsity)
            for metric in ("class_il", "learning_class_il", "forgetting_class_il")
        ]
        flops = ""
        if sparsity:
            (row, _) = rows("split-digits-full", "sparse_baselines", label="SparCL-DER++", sparsity=str(sparsity))
            flops = f"{float(row['ratio_executed']):.1f}{TIMES}"
        line = " | ".join([f"{sparsity:.2f}" if sparsity else "all", flops, *costs])
        assert f"| {line} |".replace("|  |", "| |") in FLAT
    runs = cells_of("split-digits-full", "derpp", "sparcl-derpp")
    runs = runs[runs.sparsity.isin((0, 0.9))].groupby(["method", "buffer"]).class_il.agg(["mean", "std"])
    dense, sparcl = (
        [f"{mean:.1f} ± {std:.1f}" for mean, std in runs.loc[method].to_numpy()] for method in ("derpp", "sparcl-derpp")
    )
    assert f"{dense[0]} and {dense[1]} % with buffers of 20 and 50, SparCL at 0.90 {sparcl[0]} and {sparcl[1]}." in FLAT


def test_another_learner_on_digits() -> None:
    """Dense iCaRL with 20 images, against dense DER++ and SparCL-DER++ at 0.90."""
    runs = done("split-digits-full")
    runs = runs[(runs.buffer == 20) & runs.sparsity.isin((0, 0.9)) & runs.variant.isna()]
    icarl, derpp, sparcl = (runs[runs.method == name].set_index("seed") for name in ("icarl", "derpp", "sparcl-derpp"))
    times = derpp.flops_executed.mean() / icarl.flops_executed.mean()
    gap = interval(icarl.class_il - sparcl.class_il)
    assert (
        f"iCaRL has {icarl.class_il.mean():.1f} % with 20 images, for {times:.1f} times fewer FLOPs than DER++, "
        f"SparCL-DER++ at 0.90 {gap[1:].replace('[+', 'points [').replace(', +', ', ')} less (n = {len(icarl)}"
    ) in FLAT


def test_where_it_loses_on_cifar10() -> None:
    (few, few_forgotten), (mnist, mnist_forgotten) = (
        [against_dense(reference, metric, ("derpp",)) for metric in ("learning_class_il", "forgetting_class_il")]
        for reference in ("cifar10-few", "mnist")
    )
    assert f"right after a task {few}); that it forgets more is not shown ({few_forgotten})" in FLAT
    assert f"On MNIST it is {mnist} and {mnist_forgotten}" in FLAT


def test_exploratory_findings() -> None:
    others = ("RigL-ERK", "SNIP-global", "Magnitude", "SparCL-released")
    found = [rows("split-digits-full", "primary", contrast=f"SparCL minus {name}")[0] for name in others]
    assert {(row["verdict"], row["n"]) for row in found} == {("within 2 points", "40")}
    assert max(float(row["p_within"]) for row in found) < 0.0075
    words = (
        "Of the others RigL with ERK (SparCL minus it {}), SNIP over all layers at once ({}) and magnitude pruning "
        "({}) are within 2 points on digits with DER++ (n = 40, adjusted p ≤ 0.007, exploratory), and SparCL as its "
        "released code has it is too ({})."
    )
    assert words.format(*map(rounded, found)) in FLAT
    runs = cells_of("mnist", "sparcl-derpp", "rigl-derpp").set_index(["method", "seed"]).class_il
    gap = (runs["sparcl-derpp"] - runs["rigl-derpp"]).drop(1).mean()
    assert f"SparCL minus RigL would be {MINUS}{-gap:.1f} points in place of +1.3" in FLAT


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
    """Return mean and interval of a row's difference as the page prints them."""
    low, high = ("class_il_ci_low", "class_il_ci_high") if "class_il_ci_low" in row else ("ci_low", "ci_high")
    mean, low, high = (signed(float(row[name])) for name in ("class_il_diff", low, high))
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
    assert f"by any one protocol {MINUS}{-means[-1]:.1f} to {MINUS}{-means[0]:.1f}, each significant" in FLAT
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
    assert (
        f"differences of {digits[0]:.1f} to {digits[1]:.1f} points on digits, but of {mnist[0]:.1f} to {mnist[1]:.0f} "
        f"on MNIST and {cifar[0]:.1f} to {cifar[1]:.1f} on CIFAR-10, by contrast"
    ) in FLAT


def test_time() -> None:
    def step(reference: str, threads: str) -> dict[str, str]:
        wanted = {"label": "SparCL-DER++", "sparsity": "0.9", "threads": threads}
        (row,) = rows(reference, "counted_against_measured", **wanted)
        return row

    digits, few, mnist = (step(reference, "1") for reference in ("split-digits-full", "cifar10-few", "mnist"))
    assert (
        f"takes {float(digits['step_time']):.1f} times less time than PyTorch's dense step on digits "
        f"({float(digits['step_flops']):.1f} times fewer FLOPs), {float(few['step_time']):.1f} on CIFAR-10, "
        f"{float(mnist['step_time']):.1f} on MNIST;"
    ) in FLAT
    few_two, mnist_two = (float(step(reference, "2")["step_time"]) for reference in ("cifar10-few", "mnist"))
    assert f"on two threads {few_two:.1f} on CIFAR-10 and {mnist_two:.1f} on MNIST." in FLAT
    runs = ", ".join(f"{float(row['run_time']):.1f}" for row in (digits, few)) + f" and {float(mnist['run_time']):.1f}"
    assert f"took {runs} times less" in FLAT


def test_memory() -> None:
    references = ("split-digits-full", "cifar10-few", "mnist")
    needs = [rows(reference, "memory", label="SparCL-DER++", sparsity="0.9")[-1] for reference in references]
    digits, few, mnist = (f"{float(row['saving']):.0f} %" for row in needs)
    assert f" would need {digits} less on digits, {few} on CIFAR-10, {mnist} on MNIST." in FLAT
    for reference in references:
        runs = cells_of(reference, "derpp", "sparcl-derpp")
        peak = runs[runs.sparsity.isin((0, 0.9))].groupby("method").peak_rss_bytes.mean()
        assert 1.005 < peak["sparcl-derpp"] / peak["derpp"] < 1.025


def test_parts_in_short_training() -> None:
    """The planned contrast of TDM + DGM and a static mask, its single seeds, and both parts crossed."""
    assert finding(committed("cifar10-reduced")["TDM+DGM minus Static"]) in FLAT
    runs = done("cifar10-reduced").set_index(["method", "seed"]).class_il
    gaps = runs["tdm-dgm-derpp"] - runs["static-derpp"]
    assert f"single seeds lie between {signed(gaps.min())} and {signed(gaps.max())}." in FLAT
    tdm, dgm = (rows("cifar10-reduced", "ablation_effects", part=part)[0] for part in ("TDM", "DGM"))
    words = f"TDM is worth {rounded(tdm)} (adjusted p {float(tdm['p_fdr']):.3f}, exploratory), DGM {rounded(dgm)};"
    assert words in FLAT
    words = f"planned contrast: {interval(gaps)}, within 2 points (n = {len(gaps)}). So 3.8 was one draw"
    assert words in METHODS
    assert f"varies by {gaps.std():.1f} points (standard deviation)" in METHODS


def test_all_images() -> None:
    found = committed("cifar10-all")
    for contrast in ("SparCL minus dense", "SparCL minus Static", "SparCL minus RigL"):
        assert f"| {contrast} | {finding(found[contrast])} |" in FLAT
    runs = done("cifar10-all").set_index(["method", "variant", "seed"]).sort_index().class_il
    ten = "epochs=10+width=20"
    values = [runs[method, ten] for method in ("derpp", "rigl-derpp", "static-derpp")]
    values.append(runs["sparcl-derpp", "ddr.interval=1+epochs=10+tdm.interval=1+width=20"])
    words = "DER++ has {} % Class-IL, RigL {}, a static mask {}, SparCL {}."
    assert words.format(*(f"{v.mean():.1f} ± {v.std():.1f}" for v in values)) in FLAT
    by_source = runs["derpp", "epochs=10+protocol.replay_start=immediately+protocol.single_head=false+width=20", 0]
    first = runs["derpp", ten, 0]
    assert f"DER++ has {by_source:.1f} % with the first seed, against {first:.1f} by the protocol" in FLAT
    (pilot,) = rows("cifar10-all", "regime", epochs="5")
    moved = [signed(float(pilot[f"moved_learning_{metric}_diff"])) for metric in ("class_il", "task_il")]
    assert f"The pilot's 10 epochs have {moved[0]} points (Task-IL {moved[1]}) of learning accuracy over its 5" in FLAT
    least = sorted(float(row["detectable"]) for row in rows("cifar10-all", "power") if row["detectable"])
    assert f"With three seeds, differences of {least[0]:.1f} to {least[-1]:.1f} points." in FLAT
    parts, removal = (rows("cifar10-all", "ablation_effects", part=part)[0] for part in ("TDM+DGM", "DDR"))
    p = float(parts["p_within"])
    assert f"a static mask {rounded(parts)}, within 2 points (p = {p:.3f}); DDR {rounded(removal)}" in FLAT


def test_data_removals_defaults_on_fresh_seeds() -> None:
    """What DDR predicts among, and whether it replays what it removed; its criterion in stages of two epochs."""
    runs = done("split-digits-readings")
    variant = runs.variant.fillna("")
    fresh = runs[runs.seed >= 40].assign(
        among=variant.str.extract("prediction=([a-z]+)")[0].fillna("all"),
        replayed=variant.str.contains("replays_removed=true"),
    )
    two = runs[variant.str.contains("ddr.interval=2")].assign(forgotten=variant.str.contains("forgetting"))

    def by(frame: pandas.DataFrame, columns: list[str], metric: str, buffer: int | None) -> pandas.DataFrame:
        frame = frame if buffer is None else frame[frame.buffer == buffer]
        return frame.pivot_table(index="seed", columns=columns, values=metric)

    criterion = []
    for buffer in (20, 50):
        gaps = []
        for metric in ("class_il", "learning_class_il"):
            values = by(fresh, ["among", "replayed"], metric, buffer)
            gaps.append(interval(values["task", False] - values["all", False]))
        assert f"| {buffer} | 15 | {' | '.join(gaps)} |" in METHODS
        values = by(two, ["forgotten"], "class_il", buffer)
        criterion.append(interval(values[True] - values[False]))
    assert f"where the two can differ, is {' and '.join(criterion)}" in METHODS
    assert f"with two {', '.join(criterion)} |" in METHODS
    values = by(fresh, ["among", "replayed"], "class_il", None)
    pair, alone = (interval(values["all", True] - values[low]) for low in (("task", False), ("all", False)))
    assert f"(`all`, replayed) is {pair} points above its opposite" in METHODS
    assert f"replaying alone is worth {alone}" in METHODS
