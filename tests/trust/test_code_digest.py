"""What changes the digest of a module's code, and so a record's identity, and what does not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparcl import matrix, resolve
from sparcl.running import identity

SOURCE = "class Rule:\n    rate = 1\n\n    def step(self):\n        return self.rate\n"


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that gives the digest of a module with the source it is given."""
    monkeypatch.syspath_prepend(tmp_path)

    def of(source: str) -> str:
        (tmp_path / "digested_module.py").write_text(source)
        return identity.module_digest.__wrapped__("digested_module")

    return of


@pytest.mark.parametrize(
    "source",
    [
        "# A remark.\n" + SOURCE,
        '"""A docstring, added."""\n' + SOURCE,
        SOURCE.replace("    rate", '    """A class, documented."""\n\n    rate'),
        SOURCE.replace("        return", '        """Return it."""\n        return'),
        SOURCE.replace("return self.rate", "return (self . rate)"),
    ],
    ids=["comment", "module", "class", "method", "layout"],
)
def test_documentation_and_layout_do_not_count(digest, source: str) -> None:
    assert source != SOURCE
    assert digest(source) == digest(SOURCE)


@pytest.mark.parametrize(("old", "new"), [("= 1", "= 2"), ("return self", "return 2 * self"), ("step", "move")])
def test_code_counts(digest, old: str, new: str) -> None:
    assert digest(SOURCE.replace(old, new)) != digest(SOURCE)


# -- the images of a folder
@pytest.fixture
def images(tmp_path: Path) -> Path:
    top = tmp_path / "images"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (top / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(top / part / name / "0.png")
    return top


def of_folder(top: Path) -> str:
    return identity.identity(
        resolve.make("folder", "finetune", stream_options={"path": str(top), "tasks": 2, "size": 8})
    )


def test_a_folder_whose_images_change_makes_another_identity(images: Path) -> None:
    before = of_folder(images)
    os.utime(images / "train" / "cat" / "0.png", (0, 0))
    assert of_folder(images) == before, "times do not count"
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "train" / "cat" / "0.png")
    edited = of_folder(images)
    assert edited != before
    (images / "test" / "dog" / "0.png").rename(images / "test" / "dog" / "1.png")
    assert of_folder(images) not in (before, edited)


def test_a_plan_marks_a_folder_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    marks = identity.contents
    monkeypatch.setattr(matrix, "contents", lambda chosen: asked.append(chosen.path) or marks(chosen))
    config = {
        "name": "folder", "title": "Folder", "stream": "folder", "seeds": 3,
        "stream_options": {"path": "images", "tasks": 2, "size": 8}, "groups": {"one": {"methods": ["finetune"]}},
    }  # fmt: skip
    monkeypatch.chdir(images.parent)
    plan = matrix.from_dict(config).plan()
    assert len(asked) == 1
    assert [entry["identity"] for entry in plan["cells"]] == [
        identity.identity(resolve.from_dict(entry["cell"])) for entry in plan["cells"]
    ]
