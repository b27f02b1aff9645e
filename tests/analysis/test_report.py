"""Claims, provenance, the report, and the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import factory
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis import __main__ as command
from analysis import claims, figures, frames, provenance, tables


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A matrix of few cells, one missing and one failed."""
    plan = factory.default_plan(seeds=2, buffers=(50,), more=False)
    gone, failed = "split-digits/rigl-derpp/s0.90/b50/seed1", "split-digits/er/s0.00/b50/seed0"
    folder = tmp_path_factory.mktemp("small")
    return factory.write(folder, plan, skip=[gone], fail={failed: "disk <full> & gone"})


@pytest.fixture(scope="module")
def everything(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert command.main(["all", "--plan", str(small), "--out", str(out)]) == 0
    return out


# -- claims
def test_claims_are_answered_with_recomputed_numbers(matrix):
    found = claims.claims(matrix)
    assert len(found) == 4
    flops, gain, baselines, bottom = found
    best = 0.0
    for learner in ("er", "derpp"):
        for buffer in (20, 50):
            own = matrix.records[f"split-digits/sparcl-{learner}/s0.95/b{buffer}/seed0"]["results"]["flops"]["executed"]
            dense = matrix.records[f"split-digits/{learner}/s0.00/b{buffer}/seed0"]["results"]["flops"]["executed"]
            best = max(best, dense["training"] / own["training"])
    assert f"{best:.1f}\u00d7 by what the runs executed" in flops.answer
    assert "12 comparisons" in gain.answer
    assert "84 comparisons" in baselines.answer
    assert [line.split(":")[0] for line in baselines.highlights] == [
        "Static", "Magnitude", "GMP", "SNIP", "SET", "RigL", "RigL-ERK",
    ]  # fmt: skip
    assert "fine-tuning" in bottom.claim


def test_a_claim_names_few_exceptions_and_counts_means(matrix):
    """Of many comparisons those not shown stand in the list below, not in the answer."""
    bottom = claims.claims(matrix)[3]
    means = [float(re.search(r": ([+\u2212][\d.]+) ", line)[1].replace("\u2212", "-")) for line in bottom.details]
    assert f"the mean is above it in {sum(mean > 0 for mean in means)}." in bottom.answer
    unclear = [line for line in bottom.details if "higher" not in line]
    assert ("Not shown to be higher" in bottom.answer) == (0 < len(unclear) <= claims.FEW)


def test_verdicts_follow_the_corrected_test(matrix):
    pool = {c.key: c for c in tables.configurations(matrix.frame)}
    pairs = [
        (name, pool[f"split-digits/{name}/s0.90/b50"], pool["split-digits/static-derpp/s0.90/b50"])
        for name in ("sparcl-derpp", "rigl-derpp", "magnitude-derpp")
    ]
    p_values = [
        stats.ttest_rel(list(a.seeds("class_il").values()), list(b.seeds("class_il").values())).pvalue
        for _, a, b in pairs
    ]
    adjusted = multipletests(p_values, method="holm")[1]
    for comparison, p in zip(claims.compare_all(pairs, "class_il"), adjusted, strict=True):
        assert comparison.p_holm == pytest.approx(p)
        assert comparison.verdict == (
            "not distinguishable" if p >= 0.05 else "higher" if comparison.paired.mean > 0 else "lower"
        )


def test_one_seed_is_not_tested(tmp_path):
    plan = factory.default_plan(seeds=1, buffers=(50,), more=False)
    for claim in claims.claims(frames.collect(factory.write(tmp_path, plan)))[1:]:
        assert "not tested" in claim.answer
        assert "higher in" not in claim.answer


# -- provenance
def test_provenance(small):
    facts = provenance.provenance(frames.collect(small))
    assert facts["cells"] == {
        "planned": len(json.loads(small.read_text())["cells"]), "failed": 1, "not_run": 1, "not_of_this_plan": [],
        "done": facts["cells"]["planned"] - 2,
    }  # fmt: skip
    assert facts["seeds"] == [0, 1]
    assert facts["versions"]["torch"] == ["2.14.1"]
    assert facts["git"] == ["a" * 12]
    assert facts["threads"] == [1]
    assert facts["seconds"]["train"] == pytest.approx(5.0 * facts["cells"]["done"])
    assert str(small.parent) not in json.dumps(facts)


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.44, "8.4 s"), (723, "12 min 03 s"), (3900, "1 h 05 min"), (59.96, "60.0 s")]
)
def test_duration(seconds, text):
    assert provenance.duration(seconds) == text


# -- report
class _Page(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.links, self.ids, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[key] for key in ("src", "href") if values.get(key)]
        self.ids += [values["id"]] if "id" in values else []

    def handle_data(self, data):
        self.text.append(data)


def test_report_is_self_contained_and_complete(everything, small):
    page = _Page()
    html = (everything / "report.html").read_text()
    page.feed(html)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"(https?:)?//[a-z]+\.[a-z]", re.sub(r"data:[^\"]+", "", html))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    results = frames.collect(small)
    for name in (*figures.FIGURES, *tables.NAMES):
        assert name in page.ids
    text = " ".join(page.text)
    for line in frames.missing_lines(results.frame):
        assert line in text
    assert "disk <full>" not in html
    assert str(small.parent) not in html


def test_report_is_the_same_again(everything, small, tmp_path):
    assert command.main(["report", "--plan", str(small), "--out", str(tmp_path / "report.html")]) == 0
    for name in ("report.html", "provenance.json"):
        assert (tmp_path / name).read_bytes() == (everything / name).read_bytes()


# -- command line
def test_all_writes_everything(everything):
    for name in tables.NAMES:
        for ending in ("csv", "md", "tex"):
            assert (everything / "tables" / f"{name}.{ending}").stat().st_size
    for name in figures.FIGURES:
        for ending in ("png", "svg", "pdf"):
            assert (everything / "figures" / f"{name}.{ending}").stat().st_size
    assert (everything / "tables" / "tables.tex").exists()
    assert not list(everything.rglob("*.tmp"))


def test_only(small, tmp_path, capsys):
    assert command.main(["tables", "--plan", str(small), "--out", str(tmp_path), "--only", "memory"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.csv", "memory.md", "memory.tex"]
    assert capsys.readouterr().out.split() == [str(tmp_path / f"memory.{ending}") for ending in ("csv", "md", "tex")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tables", "--only", "memmory"], "did you mean 'memory'?"),
        (["figures", "--only", "forgeting_bars"], "did you mean 'forgetting_bars'?"),
        (["tables", "--no-allow-missing"], "cells are missing: split-digits/er/s0.00/b50: seed 0: failed"),
    ],
)
def test_bad_input_is_one_line_and_status_2(small, tmp_path, capsys, arguments, expected):
    out = tmp_path / "out"
    name, *rest = arguments
    assert command.main([name, "--plan", str(small), "--out", str(out), *rest]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert expected in error
    assert not out.exists()


def test_refused_record_writes_nothing(small, tmp_path, capsys):
    plan = json.loads(small.read_text())
    folder = factory.write(tmp_path / "matrix", plan)
    record = folder.parent / "runs" / plan["cells"][0]["path"] / "record.json"
    record.write_text(record.read_text()[:-100])
    assert command.main(["all", "--plan", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert str(record) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_no_longer_applies_is_removed(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    stale, other = folder / "ablation.csv", folder / "mine.csv"
    stale.write_text("old")
    other.write_text("mine")
    plan = factory.plan([factory.entry(factory.cell("er", 0.0, 50, 0))])
    assert command.main(["tables", "--plan", str(factory.write(tmp_path, plan)), "--out", str(folder)]) == 0
    assert not stale.exists()
    assert other.exists()


def test_foreign_records_are_named_in_the_report(tmp_path, capsys):
    plan = factory.plan([factory.entry(factory.cell("er", 0.0, 50, 0))])
    file = factory.write(tmp_path, plan)
    other = file.parent / "runs/elsewhere/seed0"
    other.mkdir(parents=True)
    (other / "record.json").write_text("{}")
    assert command.main(["report", "--plan", str(file), "--out", str(tmp_path / "report.html")]) == 0
    assert "not of this plan" in capsys.readouterr().err
    assert "elsewhere/seed0/record.json" in (tmp_path / "report.html").read_text()


def test_torch_is_never_imported(small, tmp_path):
    code = (
        "import sys\nfrom analysis.__main__ import main\n"
        f"assert main(['tables', '--plan', {str(small)!r}, '--out', {str(tmp_path)!r}]) == 0\n"
        "import analysis.figures, analysis.report, analysis.claims\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] in ('torch', 'torchvision', 'fvcore')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
