"""Who may import whom (CONTRIBUTING.md), read off the syntax trees, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sparcl.running import identity

TOP = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "sparcl": {"baselines", "analysis", "pandas", "matplotlib", "scipy", "snakemake"},
    "baselines": {"analysis", "pandas", "matplotlib", "snakemake"},
    "analysis": {"torch", "torchvision", "baselines", "snakemake"},
}
LIGHT = {
    "sparcl.running.record",
    "sparcl.costs.memory",
    "sparcl.files.atomic",
    "sparcl.files.strict_yaml",
    "sparcl.files.typed_json",
    "sparcl.errors",
    "sparcl.groups",
    "sparcl.metrics",
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


@pytest.mark.parametrize("room", ["sparcl", "baselines", "analysis"])
def test_no_room_has_a_circle(room: str) -> None:
    """Of modules that import each other, anywhere in them and under TYPE_CHECKING too."""
    names = {".".join(path.relative_to(TOP).with_suffix("").parts) for path in (TOP / room).rglob("*.py")}
    names = {name.removesuffix(".__init__") for name in names}
    left = {name: set(identity.imported(name)) & names - {name} for name in names}
    assert len(left) > 5
    while done := {name for name, wanted in left.items() if not wanted & left.keys()}:
        left = {name: wanted for name, wanted in left.items() if name not in done}
    assert not left, f"a circle among {', '.join(sorted(left))}"


@pytest.mark.parametrize(
    "module", ["sparcl", "sparcl.running.record", "sparcl.cli", "analysis.catalog", "analysis.__main__"]
)
def test_importing_stays_light(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=TOP).returncode == 0
