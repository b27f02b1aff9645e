"""The page on using the library from Python is executed, block after block, as it stands."""

from __future__ import annotations

from pathlib import Path

import documents
import pytest
import torch

PAGE = documents.TOP / "docs/python.md"


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARCL_DATA", raising=False)
    torch.set_num_threads(2)  # the page sets what results depend on
    assert documents.interpret(PAGE) >= 7
    assert torch.get_num_threads() == 1
    assert list(Path("results/manual").rglob("record.json"))
