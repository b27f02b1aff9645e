"""What changes the digest of a module's code, and so a record's identity, and what does not."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparcl import matrix, plan, resolve
from sparcl.running import identity

SOURCE = (
    "class Rule:\n    rate = 1\n    width: int = parameter(3, 'how wide', low=1)\n\n"
    "    def step(self):\n        return self.rate\n"
)


def forget() -> None:
    """Have every module read again."""
    for cached in (identity.imported, identity._file, identity.module_digest, identity._modules_of,
                   identity._digest_of, identity._loops_digest, identity._kernel_of):  # fmt: skip
        cached.cache_clear()


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that gives the digest of a module with the source it is given."""
    monkeypatch.syspath_prepend(tmp_path)

    def of(source: str) -> str:
        (tmp_path / "digested_module.py").write_text(source)
        forget()
        return identity.module_digest("digested_module")

    return of


@pytest.mark.parametrize(
    "source",
    [
        "# A remark.\n" + SOURCE,
        '"""A docstring, added."""\n' + SOURCE,
        SOURCE.replace("    rate", '    """A class, documented."""\n\n    rate'),
        SOURCE.replace("        return", '        """Return it."""\n        return'),
        SOURCE.replace("return self.rate", "return (self . rate)"),
        SOURCE.replace("rate = 1\n", 'rate = 1\n    """A name, documented."""\n'),
        SOURCE.replace("'how wide'", "'how wide it is'"),
        SOURCE.replace("'how wide'", "help='how wide'"),
    ],
    ids=["comment", "module", "class", "method", "layout", "name", "help", "help-by-name"],
)
def test_documentation_and_layout_do_not_count(digest, source: str) -> None:
    assert source != SOURCE
    assert digest(source) == digest(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("= 1", "= 2"), ("return self", "return 2 * self"), ("step", "move"), ("(3", "(4"), ("low=1", "low=2")],
)
def test_code_counts(digest, old: str, new: str) -> None:
    assert digest(SOURCE.replace(old, new)) != digest(SOURCE)


def test_only_a_text_is_taken_for_help(digest) -> None:
    assert digest("x = parameter(1, 2)") != digest("x = parameter(1, 3)")
    assert digest("x = parameter(1, help=y)") != digest("x = parameter(1, help=z)")


def test_functions_that_only_count_do_not_count(digest) -> None:
    counting = SOURCE + "\n    @accounting\n    def published(self):\n        return {}\n"
    assert digest(counting.format(1)) == digest(counting.format(2)) == digest(SOURCE)


# -- which modules count
EDITS = {
    "sparcl.metrics": [],
    "sparcl.costs.convention": [],
    "sparcl.costs.memory": [],
    "sparcl.costs.footprint": [],
    "sparcl.costs.planning": [],
    "sparcl.resolve": [],
    "sparcl.running.record": [],
    "analysis.tables": [],
    "sparcl.trainer": ["er", "sparcl-derpp", "rigl-derpp", "icarl"],
    "sparcl.masks": ["er", "sparcl-derpp", "rigl-derpp", "icarl"],
    "sparcl.costs.ledger": ["er", "sparcl-derpp", "rigl-derpp", "icarl"],
    "sparcl.streams.augment": ["er", "sparcl-derpp", "rigl-derpp", "icarl"],
    "sparcl.streams.sources.digits": ["er", "sparcl-derpp", "rigl-derpp", "icarl"],
    "sparcl.streams.sources.cifar": [],
    "sparcl.learners.rehearsal": ["er", "sparcl-derpp", "rigl-derpp"],
    "sparcl.learners.passes": ["icarl"],
    "sparcl.policies.tdm": ["sparcl-derpp"],
    "sparcl.policies.static": ["sparcl-derpp", "rigl-derpp"],
    "baselines.rigl": ["rigl-derpp"],
    "baselines.snip": [],
    "sparcl.kernels.network": ["er", "sparcl-derpp", "rigl-derpp", "icarl"],
    "sparcl.kernels.bench": [],
}
"""Module to the methods whose cells run again when it is edited, of ER, SparCL-DER++, RigL-DER++ and iCaRL."""


@pytest.mark.parametrize("module", EDITS)
def test_an_edit_makes_the_cells_stale_that_use_it_and_no_others(module: str) -> None:
    cells = [
        resolve.make("split-digits", method, 0.9 if "-" in method else 0.0, 50)
        for method in ("er", "sparcl-derpp", "rigl-derpp", "icarl")
    ]
    assert importlib.util.find_spec(module) is not None
    assert [cell.method for cell in cells if module in identity.modules_of(cell)] == EDITS[module]


def test_a_helper_beside_a_method_counts_without_being_named(tmp_path: Path, monkeypatch) -> None:
    """A package of its own: the method's module imports a second one, which imports a third."""
    package = tmp_path / "with_helpers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rule.py").write_text("from with_helpers import second\n")
    (package / "second.py").write_text("def f():\n    from . import third\n    return third\n")
    (package / "third.py").write_text("from baselines.rigl import RigL\n")
    (package / "other.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    found = set(identity.reached(["with_helpers.rule"]))
    own = {name for name in found if name.startswith("with_helpers.")}
    assert own == {"with_helpers.rule", "with_helpers.second", "with_helpers.third"}
    assert "baselines.rigl" in found


def test_what_is_neutral_is_imported_and_named_with_its_reason() -> None:
    reached = identity.reached(["sparcl.trainer", "sparcl.policies.ddr"])
    imported = {name for module in reached for name in identity.imported(module)}
    assert all(reason for reason in identity.NEUTRAL.values())
    assert set(identity.NEUTRAL) <= imported


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
    monkeypatch.setattr(plan, "contents", lambda chosen: asked.append(chosen.path) or marks(chosen))
    config = {
        "name": "folder", "title": "Folder", "stream": "folder", "seeds": 3,
        "stream_options": {"path": "images", "tasks": 2, "size": 8}, "groups": {"one": {"methods": ["finetune"]}},
    }  # fmt: skip
    monkeypatch.chdir(images.parent)
    made = plan.make(matrix.from_dict(config))
    assert len(asked) == 1
    assert [entry["identity"] for entry in made["cells"]] == [
        identity.identity(resolve.from_dict(entry["cell"])) for entry in made["cells"]
    ]
