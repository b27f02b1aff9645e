"""One self-contained HTML file: claims and answers, the files of tables and figures, what is missing, provenance."""

from __future__ import annotations

import base64
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from analysis import catalog, frames, regime, ties
from analysis.claims import claims
from analysis.collect import PROVENANCE
from analysis.frames import Results
from analysis.provenance import lines
from sparcl.errors import UserError, one_line

FOLDED = ("all_cells", "published")
"""Tables that are folded away in the report because they are long."""
DOWNLOADS = {"csv": ("CSV", "text/csv"), "md": ("Markdown", "text/markdown"), "tex": ("LaTeX", "application/x-tex")}


def render(results: Results, folder: Path) -> str:
    """Return the report as HTML.

    Args:
        folder: holds ``provenance.json``, ``tables/`` and ``figures/``.

    Raises:
        UserError: a table or figure of the plan, or the provenance, is not there.
    """
    import jinja2

    document = results.plan.document
    tables = [_table(folder / "tables", name) for name in catalog.tables(document)]
    source = resources.files("analysis").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(source).render(
        title=results.plan.title,
        name=results.plan.name,
        description=results.plan.description,
        claims=claims(results),
        not_learned=regime.NOT_LEARNED,
        regime=regime.problems(regime.checks(results)),
        ties=ties.summary(results),
        tied=ties.lines(results),
        facts=lines(json.loads(_bytes(folder / PROVENANCE))),
        missing=frames.missing_lines(results.frame),
        foreign=results.foreign,
        tables=tables,
        figures=[_figure(folder / "figures", name) for name in catalog.figures(document)],
    )


def _bytes(path: Path) -> bytes:
    """Return a file that another command has made."""
    try:
        return path.read_bytes()
    except OSError as error:
        maker = {"tables": f"table {path.stem}", "figures": f"figure {path.stem}"}.get(path.parent.name, "collect")
        raise UserError(
            f"{path}: expected the file that 'python -m analysis {maker}' writes ({one_line(error.strerror)})"
        ) from None


def _table(folder: Path, name: str) -> dict[str, Any]:
    from markupsafe import Markup

    html = _bytes(folder / f"{name}.html").decode()
    caption = re.search("<caption>(.*?)</caption>", html, re.DOTALL)
    endings = ["csv"] if name in FOLDED else list(DOWNLOADS)
    return {
        "name": name, "title": Markup(caption[1] if caption else name), "html": Markup(html),
        "folded": name in FOLDED, "rows": html.count("<tr") - 1,
        "downloads": [
            {
                "label": DOWNLOADS[ending][0], "file": f"{name}.{ending}",
                "href": data_uri(DOWNLOADS[ending][1], _bytes(folder / f"{name}.{ending}")),
            }
            for ending in endings
        ],
    }  # fmt: skip


def _figure(folder: Path, name: str) -> dict[str, Any]:
    about = json.loads(_bytes(folder / f"{name}.json"))
    return about | {"name": name, "source": data_uri("image/svg+xml", _bytes(folder / f"{name}.svg"))}


def data_uri(kind: str, data: bytes) -> str:
    """Return a ``data:`` URI of MIME type ``kind``, so that a page holds the file itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
