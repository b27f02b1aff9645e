"""``python -m analysis {all,tables,figures,report,tune} --plan PLAN --out OUT``: from run records to what people read.

``all`` writes ``tables/``, ``figures/``, ``report.html`` and ``provenance.json`` into OUT; ``tables`` and
``figures`` write their files into OUT itself; ``report`` writes the file OUT (or ``report.html`` in a folder
OUT) and ``provenance.json`` beside it; ``tune`` writes what a hyper-parameter search chooses (``tuned.yaml``,
``tuning.csv``, ``tuning.md``) into OUT. Exit status 2 for bad input: a damaged, foreign or stale record, an
unknown name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparcl.errors import RunError, UserError, suggest
from sparcl.files import atomic

if TYPE_CHECKING:
    from analysis.frames import Results
    from analysis.scene import Drawing

    Drawings = dict[str, tuple[Drawing, bytes] | None]

TABLE_ENDINGS, FIGURE_ENDINGS = ("csv", "md", "tex"), ("png", "svg", "pdf")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m analysis", description="Tables, figures and a report from run records."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{all,tables,figures,report,tune}")
    for name, text in {
        "all": "everything: tables/, figures/, report.html and provenance.json",
        "tables": "every table as CSV, Markdown and LaTeX",
        "figures": "every figure as PNG, SVG and PDF",
        "report": "one self-contained HTML file",
        "tune": "what a hyper-parameter search chooses, and all that it compared",
    }.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--plan", required=True, type=Path, help="plan.json; records lie in runs/ beside it")
        command.add_argument("--out", required=True, type=Path, help="folder to write to (report: the file)")
        if name in ("tables", "figures"):
            command.add_argument("--only", action="append", metavar="NAME", help="only this one; may be repeated")
        command.add_argument(
            "--allow-missing", action=argparse.BooleanOptionalAction, default=True,
            help="go on when planned cells have no record, and list them (default)",
        )  # fmt: skip
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        for path in run(options):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> list[Path]:
    """Do what the options say; returns the files written."""
    from analysis import frames

    results = frames.collect(options.plan)
    for path in results.foreign:
        print(f"warning: runs/{path}: not of this plan, left out", file=sys.stderr)
    absent = frames.missing_lines(results.frame)
    if absent and not options.allow_missing:
        more = f" (and {len(absent) - 1} more configurations)" if len(absent) > 1 else ""
        raise UserError(f"{options.plan}: cells are missing: {absent[0]}{more}")
    if absent:
        print(f"warning: {len(results.missing)} of {len(results.frame)} cells are missing", file=sys.stderr)
    out = options.out
    if options.command == "tune":
        return write_choice(results, out)
    if options.command == "tables":
        return write_tables(results, out, options.only)
    if options.command == "figures":
        return write_figures(results, out, options.only)[0]
    if options.command == "report":
        file = out / "report.html" if out.is_dir() or not out.suffix else out
        return write_report(results, file)
    written, drawings = write_figures(results, out / "figures")
    return [*write_tables(results, out / "tables"), *written, *write_report(results, out / "report.html", drawings)]


def _chosen(only: Sequence[str] | None, names: Sequence[str], kind: str) -> list[str]:
    for name in only or ():
        if name not in names:
            raise UserError(f"--only {name}: expected a {kind}, one of {', '.join(names)}{suggest(name, names)}")
    return [name for name in names if not only or name in only]


def write_tables(results: Results, folder: Path, only: Sequence[str] | None = None) -> list[Path]:
    """Write tables as CSV, Markdown and LaTeX, and ``tables.tex`` that inputs them all."""
    from analysis import tables, typeset

    wanted = _chosen(only, tables.NAMES, "table")
    made = tables.build(results)
    written = []
    for name in wanted:
        if name not in made:
            _remove(folder, name, TABLE_ENDINGS)
            continue
        table = made[name]
        for ending, text in (
            ("csv", typeset.to_csv(table)), ("md", typeset.to_markdown(table)), ("tex", typeset.to_latex(table)),
        ):  # fmt: skip
            written.append(_write(folder / f"{name}.{ending}", text))
    if not only:
        written.append(_write(folder / "tables.tex", typeset.latex_document(list(made), list(made.values()))))
    return written


def write_figures(results: Results, folder: Path, only: Sequence[str] | None = None) -> tuple[list[Path], Drawings]:
    """Write figures as PNG, SVG and PDF. Also returns name to (drawing, SVG), None where not applicable."""
    from analysis import figures, style

    written: list[Path] = []
    drawings: Drawings = {}
    for name in _chosen(only, figures.names(results), "figure"):
        drawing = figures.draw(results, name)
        drawings[name] = None
        if drawing is None:
            _remove(folder, name, FIGURE_ENDINGS)
            continue
        files = style.encode(drawing.figure)
        style.close(drawing.figure)
        drawings[name] = (drawing, files["svg"])
        for ending in FIGURE_ENDINGS:
            path = folder / f"{name}.{ending}"
            atomic.write_bytes(path, files[ending])
            written.append(path)
    return written, drawings


def write_report(results: Results, file: Path, drawings: Drawings | None = None) -> list[Path]:
    """Write the report, and ``provenance.json`` beside it."""
    from analysis import figures, provenance, report, style, tables

    if drawings is None:
        drawings = {}
        for name in figures.names(results):
            drawing = figures.draw(results, name)
            drawings[name] = None if drawing is None else (drawing, style.encode(drawing.figure, ("svg",))["svg"])
            if drawing is not None:
                style.close(drawing.figure)
    made = tables.build(results)
    absent = [name for name, drawing in drawings.items() if drawing is None]
    absent += [f"table {name}" for name in tables.NAMES if name not in made]
    facts = provenance.provenance(results)
    shown = [drawing for drawing in drawings.values() if drawing is not None]
    html = report.render(results, made, shown, absent, facts)
    return [
        _write(file, html),
        _write(file.with_name("provenance.json"), json.dumps(facts, indent=1, ensure_ascii=False) + "\n"),
    ]


def write_choice(results: Results, folder: Path) -> list[Path]:
    """Write the hyper-parameters that a search chooses, and a table of all points of its grids."""
    from analysis import tuning, typeset

    choices = tuning.choose(results)
    made = tuning.table(results, choices)
    for line in tuning.lines_lacking(choices):
        print(f"warning: {line}", file=sys.stderr)
    return [
        _write(folder / "tuning.csv", typeset.to_csv(made)),
        _write(folder / "tuning.md", typeset.to_markdown(made)),
        _write(folder / "tuned.yaml", tuning.to_yaml(results, choices)),
    ]


def _write(path: Path, text: str) -> Path:
    atomic.write_text(path, text)
    return path


def _remove(folder: Path, name: str, endings: Sequence[str]) -> None:
    """Remove what an earlier plan left of a table or figure that this plan has no cells for."""
    for ending in endings:
        (folder / f"{name}.{ending}").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
