"""The four ways of writing a table, from one written-out table."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import typeset
from analysis.statistics import Paired, Summary
from analysis.typeset import Column, Measure, Row, Table

NAN = float("nan")


@pytest.fixture
def table():
    columns = [
        Column("label", "Method"),
        Column("class_il", "Class-IL", "measure", "%"),
        Column("flops", "FLOPs", "flops"),
        Column("ratio", "Ratio", "ratio", digits=1),
        Column("difference", "Difference", "difference", "points"),
        Column("p", "p", "p"),
        Column("tdm", "TDM", "flag"),
        Column("key", "Key", csv_only=True),
    ]
    paired = Paired(5, -1.25, 1.0, -2.5, 0.0, -2.8, 0.049)
    rows = [
        Row(
            {
                "label": "A & B_1",
                "class_il": Measure(Summary(5, 90.126, 1.5, 88.26, 91.99), best=True),
                "flops": 2.5449e15, "ratio": 5.46, "difference": None, "p": NAN, "tdm": True, "key": "x/y",
            },
            "one",
        ),
        Row(
            {
                "label": "C|<d>",
                "class_il": Measure(Summary(1, 80.0), paired=paired, p_fdr=0.0004),
                "flops": 9e9, "ratio": NAN, "difference": paired, "p": 0.0004, "tdm": False, "key": "z",
            },
            "two",
        ),
    ]  # fmt: skip
    return Table("demo", "A title: 100 %", columns, rows, ["A note with 95 % & more."], ["a/b: seed 1: not run"])


def test_numbers():
    assert typeset.fixed(1.005, 1) == "1.0"
    assert typeset.fixed(-0.004) == "0.00"
    assert typeset.fixed(-0.004, sign=True) == "0.00"
    assert typeset.fixed(-1.5) == "\u22121.50"
    assert typeset.fixed(2, 1, sign=True) == "+2.0"
    assert typeset.fixed(NAN) == typeset.fixed(None) == "\u2013"
    assert typeset.scientific(2.5449e15) == "2.54e15"
    assert typeset.scientific(9.999e9) == "1.00e10"
    assert typeset.p_value(0.0004) == "<0.001"
    assert typeset.p_value(0.0312) == "0.031"


def test_csv_has_full_numbers(table):
    first, second = csv.DictReader(io.StringIO(typeset.to_csv(table)))
    assert first["class_il_mean"] == "90.126"
    assert (first["class_il_sd"], first["class_il_n"], first["class_il_ci_low"]) == ("1.5", "5", "88.26")
    assert (first["class_il_best"], first["class_il_diff"]) == ("1", "")
    assert (second["class_il_diff"], second["class_il_p_fdr"]) == ("-1.25", "0.0004")
    assert second["class_il_sd"] == ""
    assert first["flops"] == "2544900000000000"
    assert (first["tdm"], first["key"]) == ("1", "x/y")


def test_markdown(table):
    text = typeset.to_markdown(table)
    dash, minus, times = typeset.DASH, typeset.MINUS, typeset.TIMES
    assert f"| A & B\\_1 | **90.13 ± 1.50** | 2.54e15 | 5.5{times} | {dash} | {dash} | ✓ |" in text
    difference = f"{minus}1.25 [{minus}2.50, 0.00]"
    assert f"| C\\|\\<d\\> | 80.00 | 9.00e9 | {dash} | {difference} | \\<0.001 | {dash} |" in text
    assert "- a/b: seed 1: not run" in text
    assert "Key" not in text
    header = text.splitlines()[2]
    assert header.count("|") == text.splitlines()[3].count("|") == 8


def test_latex(table):
    text = typeset.to_latex(table)
    assert (
        r"A \& B\_1 & \textbf{90.13 $\pm$ 1.50} & $2.54\times10^{15}$ & 5.5$\times$ & -- & -- & \checkmark{} \\" in text
    )
    assert r"C\textbar{}\textless{}d\textgreater{} & 80.00" in text
    assert text.count(r"\midrule") == 3  # two headers and the break between the blocks
    for rule in (r"\toprule", r"\bottomrule", r"\begin{longtable}", r"\end{longtable}"):
        assert rule in text


@given(st.text())
def test_latex_escapes_everything(text):
    escaped = typeset.latex_escape(text)
    assert escaped.isprintable() or not text.isprintable()
    bare = re.sub(r"\\(text\w+|checkmark|ldots)\{\}|\\[&%$#_{}]|\$(\\\w+|-)\$", "", escaped)
    assert not set(bare) & set("\\&%$#_{}~^")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_alone_and_as_a_part(table, tmp_path):
    (tmp_path / "demo.tex").write_text(typeset.to_latex(table))
    packages = r"\usepackage{amssymb,booktabs,longtable,array}"
    whole = [r"\documentclass{article}", packages, r"\begin{document}", r"\input{demo}", r"\end{document}"]
    (tmp_path / "all.tex").write_text("\n".join(whole))
    for name in ("demo", "all"):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"], cwd=tmp_path, capture_output=True
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
        assert (tmp_path / f"{name}.pdf").stat().st_size > 1000


class _Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("br", "img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html(table):
    html = typeset.to_html(table)
    parser = _Balanced()
    parser.feed(html)
    assert not parser.open
    assert "<b>90.13 ± 1.50</b>" in html
    assert 'data-value="90.126"' in html
    assert f"2.54 {typeset.TIMES} 10<sup>15</sup>" in html
    assert "<d>" not in html
    assert "a/b: seed 1: not run" in html


def test_every_form_shows_what_is_missing(table):
    for form in (typeset.to_markdown, typeset.to_latex, typeset.to_html):
        assert "not run" in form(table)
        assert "95" in form(table)


def test_nan_is_nowhere_printed(table):
    for form in (typeset.to_csv, typeset.to_markdown, typeset.to_latex, typeset.to_html):
        assert not re.search(r"\bnan\b", form(table), re.IGNORECASE)
    assert math.isnan(NAN)
