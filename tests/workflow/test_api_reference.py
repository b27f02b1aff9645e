"""The API reference: it comes from the docstrings, and what has none is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SCRIPT = TOP / "workflow/scripts/api.py"


def run(*arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)


def test_everything_public_has_a_docstring() -> None:
    done = run("--check")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_links_between_pages_lead_to_headings(tmp_path: Path) -> None:
    assert run("--out", str(tmp_path)).returncode == 0
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.md")}
    anchors = {name: set(re.findall(r"^#+ `(\w+)`", text.lower(), re.MULTILINE)) for name, text in pages.items()}
    links = [link for text in pages.values() for link in re.findall(r"\]\(([\w.]+\.md)(?:#(\w+))?\)", text)]
    assert len(links) > 100
    for name, anchor in links:
        assert name in pages
        assert not anchor or anchor in anchors[name], (name, anchor)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three small rooms and the script beside them; returns the script."""
    for room in ("sparcl", "baselines", "analysis"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text('"""A room."""\n')
    (tmp_path / "workflow/scripts").mkdir(parents=True)
    copy = tmp_path / "workflow/scripts/api.py"
    copy.write_text(SCRIPT.read_text())
    (tmp_path / "sparcl/rules.py").write_text(
        '"""Rules."""\n\n\n'
        "class Rule:\n"
        '    """A rule."""\n\n'
        "    def act(self):\n"
        '        """Act now, see :func:`helper`."""\n\n\n'
        "class Other(Rule):\n"
        '    """Another."""\n\n'
        "    def act(self):\n"
        "        pass\n\n\n"
        "def _private():\n"
        "    pass\n"
    )
    return copy


def test_an_override_has_the_docstring_of_what_it_overrides(small: Path) -> None:
    assert run(script=small).returncode == 0
    page = (small.parents[2] / "build/api/sparcl.rules.md").read_text()
    assert page.count("Act now, see `helper`.") == 2
    assert "_private" not in page
    assert run("--check", script=small).returncode == 0


@pytest.mark.parametrize(
    ("code", "path"),
    [("def bare():\n    pass\n", "bare"), ("class Bare:\n    pass\n", "Bare"),
     ('class C:\n    """C."""\n\n    def m(self):\n        pass\n', "C.m")],
)  # fmt: skip
def test_a_missing_docstring_is_named(small: Path, code: str, path: str) -> None:
    assert run(script=small).returncode == 0
    rules = small.parents[2] / "sparcl/rules.py"
    rules.write_text(rules.read_text() + "\n\n" + code)
    done = run("--check", script=small)
    assert done.returncode == 1
    assert f"sparcl.rules.{path}: no docstring" in done.stderr


def test_left_over_pages_go(small: Path) -> None:
    pages = small.parents[2] / "build/api"
    pages.mkdir(parents=True)
    (pages / "sparcl.gone.md").write_text("x\n")
    assert run(script=small).returncode == 0
    assert not (pages / "sparcl.gone.md").exists()
    assert (pages / "sparcl.rules.md").exists()
