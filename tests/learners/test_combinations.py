"""Every bundle on every learner is a method, or is refused with its reason; every learner has its row in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparcl import methods
from sparcl.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "learners.md"
CROSSED = [(bundle, learner) for bundle in methods.bundles() for learner in methods.learners()]


def test_what_is_listed_is_what_can_be_had() -> None:
    listed = set(methods.names())
    for bundle, learner in CROSSED:
        name = f"{bundle}-{learner}"
        refusal = methods.refusal(methods.bundles()[bundle], methods.learners()[learner])
        assert (name in listed) == (refusal is None)
        if refusal is None:
            found = methods.get(name)
            assert (found.learner, found.policies) == (learner, methods.bundles()[bundle].policies)
        else:
            with pytest.raises(UserError, match="makes no sense: ") as error:
                methods.get(name)
            assert refusal in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sparcl-joint", "no stream"), ("rigl-joint", "no stream"), ("sparcl-icarl", "exemplars"),
        ("ddr-icarl", "exemplars"), ("rigl-lightcl", "channel sparsity"), ("packnet-er", "a method of its own"),
    ],
)  # fmt: skip
def test_these_make_no_sense(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"makes no sense: .*{reason}"):
        methods.get(name)


@pytest.mark.parametrize("name", ["tdm-icarl", "sparcl-ewc", "rigl-erk-lwf", "static-ddr-dgm-agem", "snip-global-fdr"])
def test_these_do(name: str) -> None:
    assert methods.get(name).name == name


def test_every_learner_of_the_suite_is_on_the_page() -> None:
    shown = set(re.findall(r"^\| `(\w+)` \| `\w+\.py`", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    own = {name for name, cls in methods.learners().items() if cls.__module__.startswith("sparcl.learners.")}
    assert shown == own
