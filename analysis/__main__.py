"""``python -m analysis {collect,table,figure,report,tune}``: from run records to what people read.

``collect`` reads the records beside a plan into one table, ``results.csv.gz``, with ``provenance.json``; the others
read that table and the plan. ``table`` and ``figure`` make those that are named, or all that the plan has; ``report``
puts their files into one page; ``tune`` writes what a hyper-parameter search chooses. Exit status 2 for bad input: a
damaged, foreign or stale record, an unknown name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import catalog, plan
from sparcl.errors import Parser, RunError, UserError, suggest
from sparcl.files import atomic

if TYPE_CHECKING:
    from analysis.frames import Results


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m analysis", description="One tidy table of run records; tables, figures and a report from it."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{collect,table,figure,report,tune}")
    for name, text in {
        "collect": "results.csv.gz and provenance.json from all records of a plan",
        "table": "tables as CSV, Markdown, LaTeX and HTML",
        "figure": "figures as PNG, SVG and PDF, each with its caption as JSON",
        "report": "one self-contained HTML file with the tables and figures that were made",
        "tune": "what a hyper-parameter search chooses, and all that it compared",
    }.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name in ("table", "figure"):
            command.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all of the plan)")
        command.add_argument("--plan", required=True, type=Path, help="plan.json; records lie in runs/ beside it")
        if name != "collect":
            command.add_argument("--results", type=Path, help="folder of results.csv.gz (default: the plan's)")
        command.add_argument("--out", required=True, type=Path, help="folder to write to (report: the file)")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        options = parser().parse_args(arguments)
        for path in COMMANDS[options.command](options):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


def collect(options: argparse.Namespace) -> Iterator[Path]:
    from analysis import collect

    facts = collect.collect(plan.read(options.plan), options.out)
    cells = facts["cells"]
    for path in cells["not_of_this_plan"]:
        print(f"warning: runs/{path}: not of this plan, left out", file=sys.stderr)
    if absent := cells["failed"] + cells["not_run"]:
        print(f"warning: {absent} of {cells['planned']} cells are missing", file=sys.stderr)
    if cells["diverged"]:
        print(f"warning: {cells['diverged']} of {cells['planned']} cells diverged", file=sys.stderr)
    yield from (options.out / name for name in (collect.TABLE, collect.PROVENANCE))


def _results(options: argparse.Namespace) -> Results:
    from analysis import collect, frames

    return frames.read(options.plan, _folder(options) / collect.TABLE)


def _folder(options: argparse.Namespace) -> Path:
    """Return the folder that holds what was collected."""
    return options.results or options.plan.parent


def _chosen(wanted: Sequence[str], names: Sequence[str], kind: str) -> Sequence[str]:
    for name in wanted:
        if name not in names:
            raise UserError(f"{name}: expected a {kind} of this plan, one of {', '.join(names)}{suggest(name, names)}")
    return wanted or names


def table(options: argparse.Namespace) -> Iterator[Path]:
    from analysis import typeset

    names = _chosen(options.names, catalog.tables(plan.read(options.plan).document), "table")
    results = _results(options)
    for name in names:
        module = import_module(f"analysis.tables.{catalog.module_of(name)}")
        made = module.table(results, *catalog.group_of(name))
        for ending, write in typeset.FORMATS.items():
            path = options.out / f"{name}.{ending}"
            atomic.write_text(path, write(made))
            yield path


def figure(options: argparse.Namespace) -> Iterator[Path]:
    names = _chosen(options.names, catalog.figures(plan.read(options.plan).document), "figure")
    from analysis.figures import scene, style

    shown = scene.Scene(_results(options))
    for name in names:
        module = import_module(f"analysis.figures.{catalog.module_of(name)}")
        with style.context():
            drawing = module.draw(shown, *catalog.group_of(name)) or scene.nothing(shown, name)
        files = style.encode(drawing.figure)
        style.close(drawing.figure)
        about = {"title": drawing.title, "caption": drawing.caption, "missing": list(drawing.missing)}
        files["json"] = (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()
        for ending, data in files.items():
            path = options.out / f"{name}.{ending}"
            atomic.write_bytes(path, data)
            yield path


def report(options: argparse.Namespace) -> Iterator[Path]:
    from analysis import report

    file = options.out / "report.html" if options.out.is_dir() or not options.out.suffix else options.out
    atomic.write_text(file, report.render(_results(options), _folder(options)))
    yield file


def tune(options: argparse.Namespace) -> Iterator[Path]:
    from analysis import tuning, typeset

    results = _results(options)
    choices = tuning.choose(results)
    made = tuning.table(results, choices)
    for line in tuning.lines_lacking(choices):
        print(f"warning: {line}", file=sys.stderr)
    for name, text in {
        "tuning.csv": typeset.to_csv(made),
        "tuning.md": typeset.to_markdown(made),
        "tuned.yaml": tuning.to_yaml(results, choices),
    }.items():
        atomic.write_text(options.out / name, text)
        yield options.out / name


COMMANDS = {"collect": collect, "table": table, "figure": figure, "report": report, "tune": tune}

if __name__ == "__main__":
    sys.exit(main())
