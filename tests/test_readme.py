"""Every command of the README is executed, in its order, in a checkout of its own.

Two things differ from what a reader does: `make` finds a virtual environment that is already set up, and the commands
that take minutes get less to do (`make tables` runs the smoke matrix, `make test` only collects the tests).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- (?P<what>file|edit): (?P<path>\S+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
LESS = {"make tables": {"CONFIG": "workflow/config/smoke.yaml"}, "make test": {"ARGS": "--collect-only -q"}}

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files with a virtual environment that borrows this interpreter's packages."""
    folder = tmp_path_factory.mktemp("readme") / "checkout"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (TOP / name).exists() and not name.startswith("results/reference"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, folder / name)
    borrowed, real = folder / ".venv", Path(sys.prefix)
    borrowed.mkdir()
    for name in ("bin", "lib", "include"):
        if (real / name).exists():
            (borrowed / name).symlink_to(real / name)
    if (real / "pyvenv.cfg").exists():
        shutil.copy(real / "pyvenv.cfg", borrowed / "pyvenv.cfg")
    (borrowed / ".installed").touch()
    return folder


def execute(command: str, folder: Path) -> str:
    """Run a command of the README in ``folder`` and return what it printed."""
    environment = {
        **os.environ,
        "PATH": f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "CORES": "2",
        **LESS.get(command, {}),
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def edit(path: Path, diff: str) -> None:
    """Apply the removed and added lines of a README diff block."""
    lines = {sign: [line[1:] for line in diff.splitlines() if line.startswith(sign)] for sign in "-+"}
    text = path.read_text(encoding="utf-8")
    old, new = "\n".join(lines["-"]), "\n".join(lines["+"])
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_every_command_works(checkout: Path) -> None:
    commands = []
    for block in BLOCK.finditer(README):
        if block["what"] == "file":
            (checkout / block["path"]).write_text(block["text"], encoding="utf-8")
        elif block["what"] == "edit":
            edit(checkout / block["path"], block["text"])
        elif block["kind"] == "console":
            for command in block["text"].splitlines():
                commands.append((command, execute(command, checkout)))
    assert len(commands) >= 10
    last, printed = commands[-1]
    assert last == "make tables CONFIG=workflow/config/smoke.yaml"
    assert re.search(r"cells to run: 2\b", printed), printed
    tables = checkout / "results/smoke/tables"
    assert "Redraw-DER++" in (tables / "sparse_baselines.md").read_text(encoding="utf-8")


def test_links_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (TOP / target).exists(), target
