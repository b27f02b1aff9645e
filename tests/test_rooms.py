"""Who may import whom (CONTRIBUTING.md), read off the syntax trees, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "sparcl": {"baselines", "analysis", "pandas", "matplotlib", "scipy", "snakemake"},
    "baselines": {"analysis", "pandas", "matplotlib", "snakemake"},
    "analysis": {"torch", "torchvision", "baselines", "snakemake"},
}
LIGHT = {
    "sparcl.running.record",
    "sparcl.costs.published",
    "sparcl.files.atomic",
    "sparcl.errors",
    "sparcl.files.strict_yaml",
}


def imports(path: Path) -> set[str]:
    """Return the absolute module names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_keep_their_imports(room: str) -> None:
    files = sorted((TOP / room).rglob("*.py"))
    assert files
    for path in files:
        wrong = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[room]}
        assert not wrong, f"{path.relative_to(TOP)} imports {', '.join(sorted(wrong))}"


def test_the_analysis_takes_only_light_modules_of_the_library() -> None:
    for path in sorted((TOP / "analysis").rglob("*.py")):
        taken = {name for name in imports(path) if name.startswith("sparcl.")}
        taken = {name for name in taken if (TOP / f"{name.replace('.', '/')}.py").exists()}
        assert taken <= LIGHT, f"{path.relative_to(TOP)} imports {', '.join(sorted(taken - LIGHT))}"


@pytest.mark.parametrize("module", ["sparcl", "sparcl.running.record", "sparcl.worker", "analysis.__main__"])
def test_importing_stays_light(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=TOP).returncode == 0
