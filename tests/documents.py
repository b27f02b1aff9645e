"""Documents that are executed: the commands of a Markdown page, in order, in a checkout of their own.

A page's blocks: ``console`` (one command a line), ``text`` (lines that the commands of the last ``console`` block must
have printed, whatever stands between them; a table's bars, stars and blanks count as one blank), and blocks with a
comment before them: ``file`` (written) and ``edit`` (a diff whose removed lines must be there once). The ``python``
blocks of a page without commands are executed in this process (:func:`interpret`). Two things differ from what a reader
does: ``make`` finds a virtual environment that is already set up, and a test may give commands that take minutes less
to do.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import launching

TOP = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?:<!-- (?P<what>file|edit): (?P<path>\S+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)


def checkout(folder: Path) -> Path:
    """Fill ``folder`` with the tracked files and a virtual environment that borrows this interpreter's packages."""
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


def execute(page: Path, folder: Path, less: Mapping[str, Mapping[str, str]] | None = None) -> list[tuple[str, str]]:
    """Execute ``page`` in ``folder`` and return its commands, each with what it printed.

    Args:
        page: Markdown file.
        folder: a :func:`checkout`; edited by the page.
        less: environment variables for single commands, which make them do less.
    """
    commands: list[tuple[str, str]] = []
    printed = ""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["what"] == "file":
            (folder / block["path"]).write_text(block["text"], encoding="utf-8")
        elif block["what"] == "edit":
            _edit(folder / block["path"], block["text"])
        elif block["kind"] == "console":
            new = [(line, _run(line, folder, (less or {}).get(line, {}))) for line in block["text"].splitlines()]
            commands += new
            printed = "".join(output for _, output in new)
        elif block["kind"] == "text":
            _compare(block["text"], printed)
    return commands


def interpret(page: Path) -> int:
    """Execute the ``python`` blocks of ``page``, one after the other with the same names; return how many there are."""
    names: dict[str, Any] = {"__name__": "__main__"}
    done, printed = 0, ""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["kind"] == "python":
            done, output = done + 1, io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block["text"], f"{page.name}, block {done}", "exec"), names)
            printed = output.getvalue()
        else:
            assert block["kind"] == "text", f"{page}: a block that is not executed: {block['kind']}"
            _compare(block["text"], printed)
    return done


def links(page: Path) -> list[str]:
    """Return the files that ``page`` links to, relative to its folder."""
    return re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))


def _run(command: str, folder: Path, less: Mapping[str, str]) -> str:
    environment = {
        **launching.without_make(os.environ),
        "PATH": f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "CORES": "2",
        **less,
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _edit(path: Path, diff: str) -> None:
    lines = {sign: [line[1:] for line in diff.splitlines() if line.startswith(sign)] for sign in "-+"}
    text = path.read_text(encoding="utf-8")
    old, new = "\n".join(lines["-"]), "\n".join(lines["+"])
    assert text.count(old) == 1, f"{path}: expected once: {old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def _compare(expected: str, printed: str) -> None:
    plain = _plain(printed)
    for line in expected.splitlines():
        assert _plain(line) in plain, f"expected {line!r} in:\n{printed}"


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[|*]", " ", text).split())
