"""Write the API reference, ``build/api``, from the docstrings; with ``--check`` only say what is missing.

    python workflow/scripts/api.py [--check] [--out FOLDER]

One Markdown page for each public module (griffe reads the sources, griffe2md renders them). A method that overrides a
documented one has its docstring. Exit status 1 where a public module, class, function or method has no docstring.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe
import griffe2md

TOP = Path(__file__).resolve().parents[2]
ROOMS = ("sparcl", "baselines", "analysis")
STYLE: griffe2md.ConfigDict = {
    "heading_level": 1,
    "members_order": "source",
    "show_if_no_docstring": False,
    "show_signature_annotations": True,
    "show_submodules": False,
    "show_object_full_path": False,
    "show_root_members_full_path": False,
    "inherited_members": False,
    "line_length": 100,
    "summary": False,
}


def modules(module: griffe.Module) -> Iterator[griffe.Module]:
    """Yield ``module`` and everything public below it, in alphabetical order."""
    yield module
    for name, inner in sorted(module.modules.items()):
        if not name.startswith("_") and not inner.is_alias:
            yield from modules(inner)


def missing(scope: griffe.Object) -> Iterator[str]:
    """Yield the paths of the public objects in ``scope`` that have no docstring, own or inherited."""
    if not scope.has_docstring:
        yield scope.path
    for name, member in scope.members.items():
        if not name.startswith("_") and not member.is_alias and (member.is_class or member.is_function):
            yield from missing(member)


def load() -> list[griffe.Module]:
    """Return all public modules of the rooms."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    loader = griffe.GriffeLoader(
        extensions=griffe.load_extensions("griffe_inherited_docstrings"),
        search_paths=[TOP],
        docstring_parser=griffe.Parser.google,
        docstring_options={"ignore_init_summary": True, "warnings": False},
    )
    tops = [loader.load(room, try_relative_path=False) for room in ROOMS]
    return [module for top in tops for module in modules(top)]


def targets(scope: griffe.Object, page: str) -> Iterator[tuple[str, str]]:
    """Yield the path of every object that has a heading in ``scope``, with its page and anchor."""
    for name, member in scope.members.items():
        if not name.startswith("_") and not member.is_alias and (member.is_class or member.is_function):
            yield member.path, f"{page}#{name.lower()}"
            yield from targets(member, page)


def page(module: griffe.Module, known: dict[str, str]) -> str:
    """Return the Markdown of one module; ``known`` says where each object's heading is."""

    def link(match: re.Match[str]) -> str:
        return f"[{match[1]}]({known[match[2]]})" if match[2] in known else match[1]

    text = griffe2md.render_object_docs(module, STYLE, format_md=True)
    text = re.sub(r":(?:func|class|meth|attr|mod|data|exc):`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"\[((?:[^\]\\]|\\.)+)\]\(#([\w.]+)\)", link, text)


def index(found: list[griffe.Module]) -> str:
    """Return the index page: every module with the first line of its docstring."""
    lines = ["# API reference", "", "Built from the docstrings by `make api`; do not edit these pages.", ""]
    for module in found:
        first = module.docstring.value.splitlines()[0] if module.docstring else ""
        lines.append(f"* [`{module.path}`]({module.path}.md): {re.sub('``', '`', first)}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; say what is missing")
    parser.add_argument("--out", type=Path, default=TOP / "build" / "api", metavar="FOLDER", help="default: build/api")
    options = parser.parse_args()
    found = load()
    lacking = [f"{path}: no docstring" for module in found for path in missing(module)]
    if not options.check:
        known = {path: place for module in found for path, place in targets(module, f"{module.path}.md")}
        pages = {f"{module.path}.md": page(module, known) for module in found} | {"README.md": index(found)}
        options.out.mkdir(parents=True, exist_ok=True)
        for old in options.out.glob("*.md"):
            if old.name not in pages:
                old.unlink()
        for name, text in pages.items():
            (options.out / name).write_text(text, encoding="utf-8")
        print(f"{options.out}: {len(pages)} pages")
    for line in lacking:
        print(line, file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
