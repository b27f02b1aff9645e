"""The newcomer's guide is executed step by step, as it stands; the gallery has every figure."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import documents
import pytest

from analysis import __main__ as command_line
from analysis import catalog

GUIDE = documents.TOP / "docs/newcomers.md"
GALLERY = documents.TOP / "docs/gallery.md"


@pytest.mark.slow
@pytest.mark.pipeline
def test_the_guide_leads_to_a_new_row(tmp_path: Path) -> None:
    folder = documents.checkout(tmp_path / "checkout")
    printed = dict(documents.execute(GUIDE, folder))  # of a command that stands twice, the second time
    assert re.search(r"cells to run: 2\b", printed["make tables CONFIG=config/smoke.yaml"])
    assert "passed" in printed["python -m pytest tests/test_contract.py -k wander"]
    plan = json.loads((folder / "results/smoke/plan.json").read_text(encoding="utf-8"))
    ran = [entry["path"] for entry in plan["cells"] if (folder / "results/smoke/runs" / entry["path"]).is_dir()]
    assert len(ran) == len(plan["cells"]) == 10


def sections() -> dict[str, str]:
    """Return the gallery's sections by the name of their figure."""
    parts = re.split(r"^## .*$", GALLERY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {re.search(r"`(\w+?)(_<group>)?`", part)[1]: part for part in parts}


def test_the_gallery_has_every_figure_in_order() -> None:
    assert list(sections()) == list(catalog.FIGURES)


@pytest.mark.parametrize("name", list(catalog.FIGURES))
def test_each_section_says_what_shows_and_how(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = sections()[name]
    shown = [image for image in re.findall(r"figures/([\w-]+)\.png\)", text) if catalog.module_of(image) == name]
    committed = list((documents.TOP / "results/reference").glob(f"*/figures/{name}*.png"))
    assert shown or not committed
    assert len(text.split("![")[0].split()) > 8
    command = shlex.split(re.search(r"```console\n(.*)\n```", text)[1])
    assert command[:3] == ["python", "-m", "analysis"]
    options = vars(command_line.parser().parse_args(command[3:]))
    assert options["command"] == "figure"
    assert options["names"] == (shown[:1] or [name])
