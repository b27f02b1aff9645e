"""Claims, provenance, the report, and the command line."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import factory
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_tables import values

from analysis import __main__ as command
from analysis import catalog, claims, configurations, frames, provenance, typeset


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A matrix of few cells, one missing, one failed and one diverged."""
    plan = factory.default_plan(seeds=2, buffers=(50,), more=False, baselines=("set", "rigl"))
    gone, failed = "split-digits/rigl-derpp/s0.90/b50/seed1", "split-digits/er/s0.00/b50/seed0"
    folder, diverged = tmp_path_factory.mktemp("small"), {"split-digits/set-er/s0.95/b50/seed1": (3, 1, 2)}
    return factory.write(folder, plan, skip=[gone], fail={failed: "disk <full> & gone"}, diverge=diverged)


@pytest.fixture(scope="module")
def everything(small):
    """The folder with all that the command lines make of it, each by its own."""
    run("collect", small)
    run("table", small, "tables")
    run("figure", small, "figures")
    run("report", small, "report.html")
    return small.parent


def run(name, plan, out="", *arguments, status=0):
    """Run a command as the workflow does; what it writes goes into the plan's folder."""
    folder = plan.parent
    results = [] if name == "collect" else ["--results", str(folder)]
    assert command.main([name, *arguments, "--plan", str(plan), *results, "--out", str(folder / out)]) == status


def listed(plan):
    """Names of the tables and figures of a plan's file."""
    document = json.loads(plan.read_text())
    return catalog.tables(document), catalog.figures(document)


# -- claims
def test_claims_are_answered_with_recomputed_numbers(matrix):
    found = claims.claims(matrix)
    assert len(found) == 4
    gain, flops, baselines, bottom = found
    ratios, gaps, records = [], [], factory.Records(matrix)
    for learner in ("er", "derpp"):
        for buffer in (20, 50):
            paths = f"split-digits/sparcl-{learner}/s0.95/b{buffer}", f"split-digits/{learner}/s0.00/b{buffer}"
            own, dense = (records[f"{path}/seed0"]["results"]["executed"]["training"] for path in paths)
            ratios.append(dense / own)
            gaps.append(values(matrix, paths[0]) - values(matrix, paths[1]))
    line = flops.highlights[-1]
    assert line.startswith(f"at 0.95 {min(ratios):.1f} to {max(ratios):.1f}\u00d7 fewer FLOPs executed, ")
    assert f"; {np.mean(gaps):+.2f} [".replace("-", "\u2212") in line
    assert len(flops.highlights) == 3
    assert len(flops.details) == 12
    assert "12 comparisons" in gain.answer
    assert "84 comparisons" in baselines.answer
    assert [line.split(":")[0] for line in baselines.highlights] == [
        f"SparCL minus {name}" for name in ("Static", "Magnitude", "GMP", "SNIP", "SET", "RigL", "RigL-ERK")
    ]
    assert "fine-tuning" in bottom.claim


def test_the_best_dense_method_is_named_where_it_is_no_learner_of_sparcls(tmp_path):
    """Of ER, SparCL-ER and iCaRL, whose records are edited to be 99 % right on everything."""
    chosen = [("er", 0.0), ("icarl", 0.0), ("sparcl-er", 0.9)]
    items = [
        factory.entry(factory.cell(method, sparsity, 50, seed)) for method, sparsity in chosen for seed in range(2)
    ]
    results = factory.collected(factory.write(tmp_path, factory.plan(items)))
    results.frame.loc[results.frame.method == "icarl", "class_il"] = 99.0
    assert (
        "The best dense method with buffer 50 is iCaRL, 99.0 %: SparCL-ER at 0.90" in claims.claims(results)[0].answer
    )
    results.frame.loc[results.frame.method == "icarl", "class_il"] = 1.0
    assert "best dense method" not in claims.claims(results)[0].answer


def test_a_matrix_answers_its_own_questions_first(tmp_path):
    """A planned contrast without SparCL, and equal budgets."""
    analysis = {"metric": "class_il", "smallest_difference": 2, "alpha": 0.05, "power": 0.8, "correction": "holm",
                "contrasts": [{"first": "rigl", "second": "static"}]}  # fmt: skip
    items = [
        factory.entry(factory.cell(method, 0.9 * ("-" in method), 50, seed, epochs=epochs), [group],
                      {} if epochs == 10 else {"epochs": epochs})
        for group, method, epochs in (
            ("main", "rigl-er", 10), ("main", "static-er", 10), ("main", "sparcl-er", 10), ("equal", "er", 10),
            ("equal", "rigl-er", 60),
        ) for seed in range(2)
    ]  # fmt: skip
    plan = factory.plan(items, analysis=analysis)
    plan["config"]["groups"]["equal"] |= {"budget": "flops-of-dearest", "title": "FLOPs of the dearest"}
    planned, equal, *rest = claims.claims(factory.collected(factory.write(tmp_path, plan)))
    assert (planned.kind, equal.kind) == ("Question", "Question")
    (line,) = planned.highlights
    assert line.startswith("RigL minus Static: ")
    (line,) = equal.highlights
    assert line.startswith("FLOPs of the dearest: RigL-ER at 0.90, buffer 50 minus ER: ")
    assert not [line for claim in rest for line in claim.highlights if line.startswith("RigL minus")]


def test_the_metric_of_the_planned_contrasts_is_named(tmp_path):
    analysis = {"metric": "task_il", "smallest_difference": 2, "alpha": 0.05, "power": 0.8, "correction": "holm",
                "contrasts": [{"first": "sparcl", "second": "dense"}]}  # fmt: skip
    plan = factory.default_plan(seeds=2, buffers=(50,), more=False) | {"analysis": analysis}
    gain, _, rivals, *_ = claims.claims(factory.collected(factory.write(tmp_path, plan)))
    assert gain.answer.startswith("Measured: Task-IL, averaged over the settings")
    assert rivals.answer.startswith("Measured, Task-IL, averaged over the settings")


@pytest.mark.parametrize(
    ("single_head", "start", "others"),
    [(True, "second-task", "dense"), (False, "second-task", "dense"), (False, "immediately", "SparCL")],
)
def test_whose_published_rows_have_another_protocol(tmp_path, single_head, start, others):
    params = {"protocol.single_head": single_head, "protocol.replay_start": start}
    items = [factory.entry(factory.cell(method, 0.9 * ("-" in method), 50, seed, params))
             for method in ("er", "sparcl-er") for seed in range(2)]  # fmt: skip
    gain, *_ = claims.claims(factory.collected(factory.write(tmp_path, factory.plan(items))))
    assert f"which the published {others} rows do not share" in gain.answer


def test_savings_without_a_dense_run_are_counted_and_not_measured(tmp_path):
    items = [factory.entry(factory.cell("sparcl-er", 0.9, 50, seed)) for seed in range(2)]
    (saved,) = claims.claims(factory.collected(factory.write(tmp_path, factory.plan(items))))
    assert saved.answer.startswith("Counted of SparCL's own runs")


def test_a_range_leaves_out_what_was_not_run():
    assert claims._times([5.24, math.nan, 5.1, 4.9, 5.0]) == "4.9 to 5.2\N{MULTIPLICATION SIGN}"
    assert claims._times([math.nan]) == ""


def test_a_claim_names_few_exceptions_and_counts_means(matrix):
    """Of many comparisons those not shown stand in the list below, not in the answer."""
    bottom = claims.claims(matrix)[3]
    means = [float(re.search(r": ([+\u2212][\d.]+) ", line)[1].replace("\u2212", "-")) for line in bottom.details]
    assert f"the mean is above it in {sum(mean > 0 for mean in means)}." in bottom.answer
    unclear = [line for line in bottom.details if "higher" not in line]
    assert ("Not shown to be higher" in bottom.answer) == (0 < len(unclear) <= claims.FEW)


def test_fine_tunings_p_is_corrected_over_both_metrics(tmp_path):
    chosen = [("finetune", 0.0, 0), ("er", 0.0, 50), ("ewc", 0.0, 0), ("lwf", 0.0, 0), ("packnet", 0.5, 0)]
    items = [factory.entry(factory.cell(*one, seed)) for one in chosen for seed in range(5)]
    results = factory.collected(factory.write(tmp_path, factory.plan(items, reference="er")))
    (claim,) = claims.claims(results)
    metrics = {"er": "class_il", "ewc": "task_il", "lwf": "task_il", "packnet": "task_il"}
    pool = {c.method: c for c in configurations.configurations(results.frame)}
    pairs = [[list(pool[name].seeds(m).values()) for name in (method, "finetune")] for method, m in metrics.items()]
    adjusted = multipletests([stats.ttest_rel(*pair).pvalue for pair in pairs], method="fdr_bh")[1]
    assert [line.partition(",")[0] for line in claim.details] == ["Class-IL", *["Task-IL"] * 3]
    printed = [re.search(r"p (?:= )?(<?) ?([.\d]+)", line) for line in claim.details]
    assert ["".join(match.groups()) for match in printed] == [typeset.p_value(p) for p in adjusted]


def test_verdicts_follow_the_corrected_test(matrix):
    pool = {c.key: c for c in configurations.configurations(matrix.frame)}
    pairs = [
        (name, pool[f"split-digits/{name}/s0.90/b50"], pool["split-digits/static-derpp/s0.90/b50"])
        for name in ("sparcl-derpp", "rigl-derpp", "magnitude-derpp")
    ]
    p_values = [
        stats.ttest_rel(list(a.seeds("class_il").values()), list(b.seeds("class_il").values())).pvalue
        for _, a, b in pairs
    ]
    adjusted = multipletests(p_values, method="fdr_bh")[1]
    for comparison, p in zip(claims.compare_all(pairs, "class_il"), adjusted, strict=True):
        assert comparison.p_fdr == pytest.approx(p)
        assert comparison.verdict == (
            "not told apart" if p >= 0.05 else "higher" if comparison.paired.mean > 0 else "lower"
        )


def test_one_seed_is_not_tested(tmp_path):
    plan = factory.default_plan(seeds=1, buffers=(50,), more=False)
    gain, _, *others = claims.claims(factory.collected(factory.write(tmp_path, plan)))
    assert "Not shown" not in others[-1].answer
    for claim in (gain, *others):
        assert "not tested" in claim.answer
        assert "higher in" not in claim.answer


# -- provenance
def test_provenance(everything, small):
    facts = json.loads((everything / "provenance.json").read_text())
    planned = len(json.loads(small.read_text())["cells"])
    assert facts["cells"] == {
        "planned": planned, "done": planned - 3, "diverged": 1, "failed": 1, "not_run": 1, "not_of_this_plan": [],
    }  # fmt: skip
    assert facts["seeds"] == [0, 1]
    assert facts["versions"]["torch"] == ["2.14.1"]
    assert facts["git"] == ["a" * 12]
    assert facts["threads"] == [1]
    assert facts["started"] == {"first": "2026-01-01T00:00:00+00:00", "last": "2026-01-01T00:00:01+00:00"}
    assert facts["seconds"]["train"] == pytest.approx(5.0 * (planned - 2))  # what a diverged run took was spent
    assert str(small.parent) not in json.dumps(facts)
    assert "(1 diverged, 1 failed, 1 not run)" in dict(provenance.lines(facts))["Cells"]


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
    tables, figures = listed(small)
    for name in (*tables, *figures):
        assert name in page.ids
    text = " ".join(page.text)
    results = frames.read(small, everything / "results.csv.gz")
    lines = frames.missing_lines(results.frame)
    assert "split-digits/set-er/s0.95/b50: seed 1: diverged in task 3, epoch 1, step 2" in lines
    for line in lines:
        assert line in text
    assert "disk <full>" not in html
    assert str(small.parent) not in html


def test_report_embeds_the_files_as_they_are(everything, small, tmp_path):
    """Nothing is drawn or made again: what is in the files is in the report."""
    folder = tmp_path / "copy"
    shutil.copytree(everything, folder)
    (folder / "figures/mask_dynamics.svg").write_bytes(b"<svg>another one</svg>")
    table = folder / "tables/memory.html"
    table.write_text(table.read_text().replace("DER++", "a method of ours", 1))
    run("report", folder / small.name, "report.html")
    html = (folder / "report.html").read_text()
    assert base64.b64encode(b"<svg>another one</svg>").decode() in html
    assert "a method of ours" in html
    for ending in ("csv", "md", "tex"):
        assert base64.b64encode((folder / f"tables/primary.{ending}").read_bytes()).decode() in html


def test_report_without_a_file_names_it(everything, small, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(everything, folder)
    (folder / "figures/mask_dynamics.svg").unlink()
    (folder / "report.html").write_text("old")
    run("report", folder / small.name, "report.html", status=2)
    error = capsys.readouterr().err
    assert "mask_dynamics.svg: expected the file that 'python -m analysis figure mask_dynamics' writes" in error
    assert len(error.splitlines()) == 1
    assert (folder / "report.html").read_text() == "old"


def test_everything_is_the_same_again(everything, small, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(everything, again, ignore=shutil.ignore_patterns("tables", "figures", "*.gz", "report.html"))
    plan = again / small.name
    run("collect", plan)
    for name in ("memory", "all_cells"):
        run("table", plan, "tables", name)
    run("figure", plan, "figures", "forgetting_bars")
    made = [path for path in again.rglob("*.*") if path.is_file() and "runs" not in path.parts]
    assert len(made) == 3 + 8 + 5
    for path in made:
        assert path.read_bytes() == (everything / path.relative_to(again)).read_bytes(), path


# -- command line
def test_every_name_has_its_files(everything, small):
    tables, figures = listed(small)
    expected = {f"{name}.{ending}" for name in tables for ending in ("csv", "md", "tex", "html")}
    assert {path.name for path in (everything / "tables").iterdir()} == expected
    expected = {f"{name}.{ending}" for name in figures for ending in ("png", "svg", "pdf", "json")}
    assert {path.name for path in (everything / "figures").iterdir()} == expected
    assert not list(everything.rglob("*.tmp"))
    about = json.loads((everything / "figures/accuracy_vs_sparsity.json").read_text())
    assert set(about) == {"title", "caption", "missing"}
    assert "split-digits/rigl-derpp/s0.90/b50: seed 1: not run" in about["missing"]


def test_a_table_of_its_own(everything, small, tmp_path, capsys):
    arguments = ["--plan", str(small), "--results", str(everything), "--out", str(tmp_path)]
    assert command.main(["table", "memory", *arguments]) == 0
    files = [f"memory.{ending}" for ending in ("csv", "md", "tex", "html")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert capsys.readouterr().out.split() == [str(tmp_path / file) for file in files]


def test_every_planned_name_is_made_when_nothing_has_run(small, tmp_path):
    plan = json.loads(small.read_text())
    file = factory.write(tmp_path, plan, skip=[item["path"] for item in plan["cells"]])
    run("collect", file)
    run("table", file, "tables")
    run("figure", file, "figures", "mask_dynamics", "sweep_ddr-cutoff")
    tables, _ = listed(file)
    assert {path.stem for path in (tmp_path / "tables").glob("*.csv")} == set(tables)
    assert "not run" in (tmp_path / "tables/primary.md").read_text()
    about = json.loads((tmp_path / "figures/sweep_ddr-cutoff.json").read_text())
    assert "no finished cells" in about["caption"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table", "memmory"], "did you mean 'memory'?"),
        (["figure", "forgeting_bars"], "did you mean 'forgetting_bars'?"),
        (["figure", "sweep_ddr-cutof"], "did you mean 'sweep_ddr-cutoff'?"),
    ],
)
def test_bad_input_is_one_line_and_status_2(everything, small, tmp_path, capsys, arguments, expected):
    out = tmp_path / "out"
    assert command.main([*arguments, "--plan", str(small), "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert expected in error[0]
    assert not out.exists()


def test_refused_record_writes_nothing(small, tmp_path, capsys):
    plan = json.loads(small.read_text())
    file = factory.write(tmp_path / "matrix", plan)
    record = file.parent / "runs" / plan["cells"][0]["path"] / "record.json"
    record.write_text(record.read_text()[:-100])
    assert command.main(["collect", "--plan", str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(record) in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_foreign_records_are_named_and_left_out(tmp_path, capsys):
    plan = factory.plan([factory.entry(factory.cell("er", 0.0, 50, 0))])
    file = factory.write(tmp_path, plan)
    other = file.parent / "runs/elsewhere/seed0"
    other.mkdir(parents=True)
    (other / "record.json").write_text("{}")
    run("collect", file)
    assert "runs/elsewhere/seed0/record.json: not of this plan" in capsys.readouterr().err
    results = frames.read(file, tmp_path / "results.csv.gz")
    assert len(results.frame) == 1
    assert results.foreign == ("elsewhere/seed0/record.json",)
    assert "elsewhere/seed0/record.json: not of this plan, left out" in factory.table(results, "all_cells").missing
    for name, out in (("table", "tables"), ("figure", "figures"), ("report", "report.html")):
        run(name, file, out)
    assert "elsewhere/seed0/record.json" in (tmp_path / "report.html").read_text()


def test_torch_is_never_imported(everything, small, tmp_path):
    code = (
        "import sys\nfrom analysis.__main__ import main\n"
        f"plan = ['--plan', {str(small)!r}]\n"
        f"assert main(['collect', *plan, '--out', {str(tmp_path)!r}]) == 0\n"
        "assert not {'pandas', 'matplotlib', 'scipy', 'jsonschema'} & set(sys.modules)\n"
        f"assert main(['table', *plan, '--results', {str(everything)!r}, '--out', {str(tmp_path)!r}]) == 0\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"assert main(['report', *plan, '--out', {str(tmp_path / 'r.html')!r}]) == 0\n"
        f"assert main(['figure', 'memory', *plan, '--out', {str(tmp_path)!r}]) == 2\n"
        f"assert main(['figure', 'forgetting_bars', *plan, '--out', {str(tmp_path)!r}]) == 0\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] in ('torch', 'torchvision', 'fvcore')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=factory.TOP)
    assert done.returncode == 0, done.stderr
