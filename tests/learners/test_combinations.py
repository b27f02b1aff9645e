"""The table of combinations in docs/learners.md is what the suite accepts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparcl import methods
from sparcl.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "learners.md"


def table() -> dict[str, bool]:
    """Return {"bundle-learner": whether the page says that it is a method}."""
    lines = PAGE.read_text(encoding="utf-8").split("## Which combinations make sense")[1].splitlines()
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (_, *learners), _, *body = rows
    found = {}
    for bundle, *row in body:
        found |= {f"{bundle}-{learner}": said == "yes" for learner, said in zip(learners, row, strict=True)}
    return found


def test_the_table_is_true_and_complete() -> None:
    said, names = table(), set(methods.names())
    assert {name for name, makes_sense in said.items() if makes_sense} == {name for name in names if name in said}
    own = {"packnet", "lps", "lightcl", "lwta"}
    assert names - set(said) - own - set(methods.learners()) == set()


@pytest.mark.parametrize("name", [name for name, makes_sense in table().items() if not makes_sense])
def test_a_refusal_gives_its_reason(name: str) -> None:
    with pytest.raises(UserError, match=r"makes no sense: .*(no stream|exemplars)"):
        methods.get(name)


def test_every_learner_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `(\w+)` \| `\w+\.py`", text, flags=re.MULTILINE))
    assert shown == {name for name in methods.learners() if name in methods.names()} - {"lightcl", "lwta"}
