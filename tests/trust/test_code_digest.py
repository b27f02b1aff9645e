"""What changes the digest of a module's code, and so a record's identity, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparcl import identity

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
