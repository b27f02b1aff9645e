"""Packages beside the suite: a method joins through its entry point, counts in a record's identity, and cannot harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparcl import record, scaffold

TOP = Path(__file__).resolve().parents[1]
CELL = ("--stream", "split-digits", "--method", "zebra-er", "--sparsity", "0.5", "--buffer", "20")
SHORT = ("--epochs", "1", "--width", "4", "--batch-size", "64")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder like site-packages, with the package that ``sparcl new-baseline zebra --package`` writes installed."""
    folder = tmp_path / "site"
    scaffold.create(scaffold.Draft("zebra"), Path("baselines"), package=folder)
    install(folder, "zebra")
    return folder


def install(folder: Path, module: str) -> None:
    """Add the metadata that pip writes for a package of one module with its entry point."""
    info = folder / f"sparcl_{module}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sparcl-{module}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[sparcl.methods]\n{module} = {module}\n")


def sparcl(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command line with the packages of ``site``."""
    environment = {key: value for key, value in os.environ.items() if key != "SPARCL_WORKER"}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), str(TOP)])
    command = [sys.executable, "-m", "sparcl.worker", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_an_installed_package_joins_on_every_learner(site: Path) -> None:
    listed = json.loads(sparcl(site, "methods", "zebra-*", "--json").stdout)
    assert {"zebra-er", "zebra-derpp", "zebra-finetune"} <= {method["name"] for method in listed}
    assert all(method["policies"] == {"sparsity": "zebra"} for method in listed)
    done = sparcl(site, "flops", *CELL, "--json")
    assert json.loads(done.stdout)["executed"]["training"] > 0


def test_its_code_counts_in_its_own_records_identity_only(site: Path, tmp_path: Path) -> None:
    def identities(folder: str) -> tuple[str, str]:
        found = []
        for method in ("zebra-er", "static-er"):
            arguments = [method if part == "zebra-er" else part for part in CELL]
            done = sparcl(site, "run", *arguments, *SHORT, "--results", str(tmp_path / folder))
            assert done.returncode == 0, done.stderr
            file = next((tmp_path / folder).rglob(f"{method}/**/record.json"))
            found.append(record.read(file)["identity"])
        return found[0], found[1]

    zebra, static = identities("before")
    module = site / "zebra.py"
    module.write_text(module.read_text() + "\n# A remark.\n")
    assert identities("remark") == (zebra, static)
    module.write_text(module.read_text().replace("Parameter(0.5,", "Parameter(0.25,"))
    edited = identities("edited")
    assert edited[0] != zebra
    assert edited[1] == static


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def broken(:\n", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("from sparcl.methods import policy\nfrom sparcl.policies import SparsityPolicy\n\n\n"
         "@policy('first', 'First')\nclass First(SparsityPolicy):\n    pass\n\n\n"
         "@policy('rigl', 'Mine')\nclass Mine(SparsityPolicy):\n    pass\n", "ValueError: rigl: "),
    ],
    ids=["import", "syntax", "exit", "name"],
)  # fmt: skip
def test_a_broken_package_is_named_in_one_line_and_hides_nothing(site: Path, code: str, error: str) -> None:
    (site / "broken_one.py").write_text(code)
    install(site, "broken_one")
    done = sparcl(site, "methods")
    assert done.returncode == 0
    assert "broken_one could not be imported, its methods are missing: " + error in done.stderr
    assert len(done.stderr.splitlines()) == 1
    names = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert {"zebra-er", "rigl-er", "sparcl-derpp"} <= set(names)
    assert "first-er" not in names
    assert sparcl(site, "flops", *CELL, "--json").returncode == 0

    arguments = ["first-er" if part == "zebra-er" else part for part in CELL]
    done = sparcl(site, "run", *arguments, "--results", str(site.parent / "results"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "first-er" in done.stderr
    assert "broken_one" in done.stderr
    assert not (site.parent / "results").exists()


def test_two_packages_of_one_name(site: Path) -> None:
    """The second is left out as a whole, and said so."""
    (site / "zzz_other.py").write_text((site / "zebra.py").read_text())
    install(site, "zzz_other")
    done = sparcl(site, "methods", "zebra-er")
    assert "zzz_other could not be imported" in done.stderr
    assert "zebra-er" in done.stdout
