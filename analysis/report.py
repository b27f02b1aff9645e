"""One self-contained HTML file: claims and answers, provenance, what is missing, all tables and figures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from analysis import frames, typeset
from analysis.claims import claims
from analysis.frames import Results
from analysis.provenance import lines
from analysis.scene import Drawing
from analysis.typeset import Table

FOLDED = ("all_cells", "published")
"""Tables that are folded away in the report because they are long."""


def render(
    results: Results,
    tables: Mapping[str, Table],
    drawings: Sequence[tuple[Drawing, bytes]],
    not_applicable: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """The report as HTML.

    Args:
        tables: as :func:`analysis.tables.build` makes them.
        drawings: figures with their SVG.
        not_applicable: names of the figures and tables that the plan has no cells for.
        facts: as :func:`analysis.provenance.provenance` makes them.
    """
    import jinja2
    from markupsafe import Markup

    source = resources.files("analysis").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(source).render(
        title=results.plan.title,
        name=results.plan.name,
        description=results.plan.description,
        claims=claims(results),
        facts=lines(dict(facts)),
        missing=frames.missing_lines(results.frame),
        foreign=results.foreign,
        not_applicable=not_applicable,
        tables=[
            {
                "name": name, "title": table.title, "html": Markup(typeset.to_html(table)), "folded": name in FOLDED,
                "downloads": _downloads(name, table), "rows": len(table.rows),
            }
            for name, table in tables.items()
        ],
        figures=[
            {
                "name": d.name, "title": d.title, "caption": d.caption, "missing": d.missing,
                "source": data_uri("image/svg+xml", svg),
            }
            for d, svg in drawings
        ],
    )  # fmt: skip


def data_uri(kind: str, data: bytes) -> str:
    """Return a ``data:`` URI of MIME type ``kind``, so that a page holds the file itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _downloads(name: str, table: Table) -> list[dict[str, str]]:
    files = [("CSV", "csv", "text/csv", typeset.to_csv(table))]
    if name not in FOLDED:
        files += [
            ("Markdown", "md", "text/markdown", typeset.to_markdown(table)),
            ("LaTeX", "tex", "application/x-tex", typeset.to_latex(table)),
        ]
    return [
        {"label": label, "file": f"{name}.{ending}", "href": data_uri(kind, text.encode())}
        for label, ending, kind, text in files
    ]
