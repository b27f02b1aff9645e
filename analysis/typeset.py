"""A table as data, and the four ways it is written: CSV, Markdown, LaTeX (booktabs) and HTML.

The CSV holds everything in full (mean, deviation, n, intervals, comparisons); the other three print the same
rows rounded, with the best in bold. What is missing is part of the table and is printed beneath it.
"""

from __future__ import annotations

import csv as csv_module
import html as html_module
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.statistics import Paired, Summary

DASH = "\u2013"
MINUS = "\u2212"
TIMES = "\u00d7"


@dataclass(frozen=True)
class Measure:
    """A metric of one row: its summary over seeds and, where there is a reference, the comparison with it.

    Attributes:
        paired: differences to the reference on the same seeds.
        p_fdr: the paired test's p, with false-discovery-rate control over the table's comparisons in this column.
        best: whether it is printed in bold.
    """

    summary: Summary
    paired: Paired | None = None
    p_fdr: float = math.nan
    best: bool = False


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        kind: how its values are printed: ``text``, ``integer``, ``number``, ``measure`` (mean and deviation),
            ``difference`` (paired, with interval), ``p``, ``flops``, ``ratio`` or ``flag``.
        unit: printed with the header.
        digits: after the decimal point.
        csv_only: left out of the printed forms.
    """

    key: str
    header: str
    kind: str = "text"
    unit: str = ""
    digits: int = 2
    csv_only: bool = False

    @property
    def title(self) -> str:
        return f"{self.header} ({self.unit})" if self.unit else self.header


@dataclass(frozen=True)
class Row:
    """Values by column key; ``block`` names the rows that are compared with each other."""

    values: Mapping[str, Any]
    block: str = ""


@dataclass(frozen=True)
class Table:
    """A table with everything a reader needs beneath it."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    missing: Sequence[str] = field(default=())

    @property
    def printed(self) -> list[Column]:
        return [column for column in self.columns if not column.csv_only]

    def blocks(self) -> Iterable[tuple[bool, Row]]:
        """Rows, each with whether it opens a new block."""
        previous: str | None = None
        for row in self.rows:
            yield previous is not None and row.block != previous, row
            previous = row.block


# -- numbers
def fixed(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """Fixed-point with a proper minus; a dash for nan and None. Never prints minus zero."""
    if value is None or math.isnan(value):
        return DASH
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def scientific(value: float | None, digits: int = 2) -> str:
    """``2.54e15``."""
    if value is None or math.isnan(value):
        return DASH
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def p_value(value: float | None) -> str:
    """Three decimals, ``<0.001`` below."""
    if value is None or math.isnan(value):
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def p_equals(value: float | None) -> str:
    """``p = 0.032``, ``p < 0.001``."""
    text = p_value(value)
    return f"p {text[0]} {text[1:]}" if text.startswith("<") else f"p = {text}"


def measure(value: Measure, digits: int = 2) -> str:
    """``78.31 ± 1.20``; the deviation is left out for a single seed."""
    text = fixed(value.summary.mean, digits)
    return text if math.isnan(value.summary.sd) else f"{text} ± {fixed(value.summary.sd, digits)}"


def difference(value: Paired | None, digits: int = 2) -> str:
    """``+1.20 [-0.30, +2.70]``: the mean difference and its interval."""
    if value is None or value.n == 0:
        return DASH
    text = fixed(value.mean, digits, sign=True)
    if math.isnan(value.ci_low):
        return text
    return f"{text} [{fixed(value.ci_low, digits, sign=True)}, {fixed(value.ci_high, digits, sign=True)}]"


def printed(column: Column, value: Any) -> tuple[str, bool]:
    """The text of a value in its column, and whether it is bold."""
    if value is None:
        return DASH, False
    if column.kind == "text":
        return str(value) or DASH, False
    if column.kind == "flag":
        return ("✓" if value else DASH), False
    if column.kind == "integer":
        return (DASH if math.isnan(value) else f"{value:.0f}"), False
    if column.kind == "measure":
        return measure(value, column.digits), value.best
    if column.kind == "difference":
        return difference(value, column.digits), False
    if column.kind == "flops":
        return scientific(value, column.digits), False
    if column.kind == "ratio":
        return (DASH if math.isnan(value) else fixed(value, column.digits) + TIMES), False
    if column.kind == "p":
        return p_value(value), False
    return fixed(value, column.digits), False


# -- CSV
MEASURE_FIELDS = ("mean", "sd", "n", "ci_low", "ci_high")
PAIRED_FIELDS = (
    "diff", "diff_sd", "diff_n", "diff_ci_low", "diff_ci_high", "t", "p", "p_fdr",
)  # fmt: skip


def to_csv(table: Table) -> str:
    """All columns in full; a column of measures becomes one per statistic. Missing values are empty.

    Intervals are 95 %. Notes and missing cells are in the printed forms and in ``all_cells.csv``; a CSV holds
    data alone so that any reader loads it.
    """
    compared = {
        column.key
        for column in table.columns
        if column.kind == "measure" and any(_measure(row, column).paired for row in table.rows)
    }
    header: list[str] = []
    for column in table.columns:
        if column.kind == "measure":
            fields = MEASURE_FIELDS + (PAIRED_FIELDS if column.key in compared else ()) + ("best",)
            header += [f"{column.key}_{name}" for name in fields]
        elif column.kind != "difference":
            header.append(column.key)
    buffer = io.StringIO()
    writer = csv_module.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        cells: list[object] = []
        for column in table.columns:
            if column.kind == "measure":
                cells += _csv_measure(_measure(row, column), column.key in compared)
            elif column.kind != "difference":
                cells.append(_csv_value(row.values.get(column.key)))
        writer.writerow(cells)
    return buffer.getvalue()


def _measure(row: Row, column: Column) -> Measure:
    value = row.values.get(column.key)
    return value if isinstance(value, Measure) else Measure(Summary(0))


def _csv_measure(value: Measure, compared: bool) -> list[object]:
    s, cells = value.summary, []
    cells += [s.mean, s.sd, s.n, s.ci_low, s.ci_high]
    if compared:
        d = value.paired or Paired(0)
        cells += [d.mean, d.sd, d.n, d.ci_low, d.ci_high, d.t, d.p, value.p_fdr]
    return [*map(_csv_value, cells), int(value.best)]


def _csv_value(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e21 else repr(float(value))
    return value


# -- Markdown
def to_markdown(table: Table) -> str:
    """A GitHub table with title, notes and what is missing."""
    columns = table.printed
    lines = [f"### {table.title}", ""]
    lines.append("| " + " | ".join(_markdown(column.title) for column in columns) + " |")
    lines.append("|" + "|".join(":--" if column.kind == "text" else "--:" for column in columns) + "|")
    for row in table.rows:
        cells = []
        for column in columns:
            text, bold = printed(column, row.values.get(column.key))
            cells.append(f"**{_markdown(text)}**" if bold else _markdown(text))
        lines.append("| " + " | ".join(cells) + " |")
    for note in table.notes:
        lines += ["", _markdown(note)]
    if table.missing:
        lines += ["", "Missing:", "", *(f"- {_markdown(line)}" for line in table.missing)]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    for character in "\\`*_|<>":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ")


# -- LaTeX
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", TIMES: r"$\times$", MINUS: r"$-$", DASH: "--",
    "✓": r"\checkmark{}", "·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$", "Δ": r"$\Delta$", "…": r"\ldots{}",
    "→": r"$\rightarrow$", "\n": " ",
}  # fmt: skip

_PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[paperwidth=%dmm,paperheight=210mm,margin=12mm]{geometry}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{amssymb,booktabs,longtable,array}
\setlength{\tabcolsep}{4pt}
\setlength{\parindent}{0pt}
\setlength{\LTleft}{0pt}
\begin{document}"""


def latex_escape(text: str) -> str:
    """Escape for text mode; characters outside ASCII that have no escape here become ``?``."""
    return "".join(_LATEX.get(c, c if c.isascii() or c in "äöüßéèçñ" else "?") for c in text)


def to_latex(table: Table) -> str:
    """A ``longtable`` with booktabs rules that compiles by itself and can be ``\\input`` into a document.

    A document that inputs it needs the packages amssymb, booktabs, longtable and array.
    """
    columns = table.printed
    widths = [_width(table, column) for column in columns]
    header = " & ".join(rf"\textbf{{{latex_escape(column.title)}}}" for column in columns) + r" \\"
    specification = "".join(
        f"p{{{mm}mm}}" if column.kind == "text" and mm >= 40 else "l" if column.kind == "text" else "r"
        for column, mm in zip(columns, widths, strict=True)
    )
    body = []
    for opens, row in table.blocks():
        if opens:
            body.append(r"\midrule")
        cells = []
        for column in columns:
            value = row.values.get(column.key)
            text, bold = printed(column, value)
            latex = _latex_power(text) if column.kind == "flops" else latex_escape(text)
            cells.append(rf"\textbf{{{latex}}}" if bold else latex)
        body.append(" & ".join(cells) + r" \\")
    # \@nodocument is \relax once a document has begun: alone, the file brings its own preamble.
    lines = [
        f"% {table.title}".replace("\n", " "),
        r"\makeatletter\ifx\@nodocument\relax\makeatother\def\sparclend{}\else\makeatother",
        _PREAMBLE % max(210, min(sum(widths) + 24 + 3 * len(columns), 5000)),
        r"\def\sparclend{\end{document}}\fi",
        r"\begingroup\footnotesize",
        rf"\begin{{longtable}}{{@{{}}{specification}@{{}}}}",
        rf"\caption{{{latex_escape(table.title)}}}\\",
        r"\toprule", header, r"\midrule", r"\endfirsthead", r"\toprule", header, r"\midrule", r"\endhead",
        r"\bottomrule", r"\endfoot",
        *body,
        r"\end{longtable}",
        *(rf"\par {latex_escape(note)}" for note in table.notes),
    ]  # fmt: skip
    if table.missing:
        lines.append(r"\par Missing:")
        lines += [rf"\par\quad {latex_escape(line)}" for line in table.missing]
    lines += [r"\par\endgroup", r"\sparclend"]
    return "\n".join(lines) + "\n"


def _latex_power(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return rf"${mantissa}\times10^{{{exponent}}}$" if exponent else latex_escape(text)


def _width(table: Table, column: Column) -> int:
    """About how wide a column is set, in mm; text is wrapped at 70."""
    texts = [column.title, *(printed(column, row.values.get(column.key))[0] for row in table.rows)]
    longest = max(map(len, texts)) + (4 if column.kind == "flops" else 0)
    return math.ceil(min(longest * 1.75 + 1, 70 if column.kind == "text" else 200))


# -- HTML
def to_html(table: Table) -> str:
    """A fragment: ``<table>`` in a scrolling box with sortable values in ``data-value``, notes, and what is missing."""
    escape = html_module.escape
    columns = table.printed
    tall = " tall" if len(table.rows) > 40 else ""
    parts = [
        f'<div class="scroll{tall}"><table class="sortable" id="table-{escape(table.name)}">',
        f"<caption>{escape(table.title)}</caption>",
    ]
    heads = "".join(
        f'<th scope="col" class="{"text" if column.kind == "text" else "number"}">{escape(column.header)}'
        + (f'<br><span class="unit">{escape(column.unit)}</span>' if column.unit else "")
        + "</th>"
        for column in columns
    )
    parts.append(f"<thead><tr>{heads}</tr></thead><tbody>")
    for opens, row in table.blocks():
        cells = []
        for column in columns:
            value = row.values.get(column.key)
            text, bold = printed(column, value)
            shown = _html_power(text) if column.kind == "flops" else escape(text)
            shown = f"<b>{shown}</b>" if bold else shown
            kind = "number" if column.kind != "text" else "text long" if len(text) > 36 else "text"
            cells.append(f'<td class="{kind}" data-value="{escape(_sort_key(value))}">{shown}</td>')
        parts.append(f"<tr{' class=block' if opens else ''}>{''.join(cells)}</tr>")
    parts.append("</tbody></table></div>")
    parts += [f'<p class="note">{escape(note)}</p>' for note in table.notes]
    if table.missing:
        items = "".join(f"<li>{escape(line)}</li>" for line in table.missing)
        parts.append(f'<div class="missing"><b>Missing from this table</b><ul>{items}</ul></div>')
    return "\n".join(parts)


def _html_power(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa} {TIMES} 10<sup>{exponent}</sup>" if exponent else html_module.escape(text)


def _sort_key(value: object) -> str:
    if isinstance(value, Measure):
        value = value.summary.mean
    if isinstance(value, Paired):
        value = value.mean
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


FORMATS: dict[str, Callable[[Table], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_latex, "html": to_html}
