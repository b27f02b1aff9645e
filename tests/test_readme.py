"""Every command of the README is executed, in its order, in a checkout of its own.

The commands that take minutes get less to do: ``make tables`` runs the smoke matrix, ``make test`` only collects the
tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import documents
import pytest

README = documents.TOP / "README.md"
LESS = {"make tables": {"CONFIG": "config/smoke.yaml"}, "make test": {"ARGS": "--collect-only -q"}}


@pytest.mark.slow
@pytest.mark.pipeline
def test_every_command_works(tmp_path: Path) -> None:
    folder = documents.checkout(tmp_path / "checkout")
    commands = documents.execute(README, folder, LESS)
    assert len(commands) >= 10
    last, printed = commands[-1]
    assert last == "make tables CONFIG=config/smoke.yaml"
    assert re.search(r"cells to run: 2\b", printed), printed
    tables = folder / "results/smoke/tables"
    assert "Redraw-DER++" in (tables / "sparse_baselines.md").read_text(encoding="utf-8")


PAGES = [README, *sorted(documents.TOP.glob("*.md")), *sorted(documents.TOP.glob("docs/*.md"))]


@pytest.mark.parametrize("page", dict.fromkeys(PAGES), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in documents.links(page):
        assert (page.parent / target).exists(), target
