"""The rule graphs in the documentation are Snakemake's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
Edges = set[tuple[str, str]]


def drawn(page: str) -> Edges:
    """Return the solid arrows of the page's mermaid graph."""
    graph = re.search(r"```mermaid\n(.*?)```", (TOP / page).read_text(), re.DOTALL)[1]
    edges = re.findall(r"^\s*(\w+)\S*(?:\[.*\]|\(.*\))? --> (\w+)", graph, re.MULTILINE)
    return {(start, end) for start, end in edges if start != "config"}


@pytest.fixture(scope="module")
def rules() -> Edges:
    """Return the edges of ``snakemake --rulegraph``, which runs nothing, without shortcuts."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "--configfile", "config/smoke.yaml"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', done.stdout))
    names = {node: "all" if name == "default" else name for node, name in names.items()}
    edges = {(names[start], names[end]) for start, end in re.findall(r"(\d+) -> (\d+)", done.stdout)}
    between = {(a, d) for a, b in edges for c, d in edges if b == c}
    return edges - between


@pytest.mark.parametrize("page", ["README.md", "docs/pipeline.md"])
def test_the_rule_graph_is_snakemakes(page: str, rules: Edges) -> None:
    assert len(rules) == 11
    assert drawn(page) == rules


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ("name: mine\ntitle: Mine\nstream: split-digits\nseeds: 1\n", ["--cores", "1"], "groups: missing"),
        ("", ["--cores", "0"], "error: cores: expected at least 1, got 0"),
        ("", ["--cores", "1", "--config", "partial=nope"], "error: partial: expected true or false, got 'nope'"),
    ],
)
def test_what_would_run_another_matrix_or_nothing_is_refused(
    config: str, options: list[str], expected: str, tmp_path: Path
) -> None:
    """A config without groups is not the default matrix; with no core no job would start; a word is no switch."""
    (tmp_path / "mine.yaml").write_text(config)
    chosen = ["--configfile", str(tmp_path / "mine.yaml")] if config else []
    command = [sys.executable, "-m", "snakemake", "--dry-run", *options, *chosen]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]
