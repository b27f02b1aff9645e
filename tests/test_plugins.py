"""Packages beside the suite: a method joins through its entry point, counts in a record's identity, and cannot harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparcl import scaffold

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


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python with the packages of ``site``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(TOP)])}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def sparcl(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command line with the packages of ``site``."""
    return python(site, "-m", "sparcl", *arguments)


def test_an_installed_package_joins_on_every_learner(site: Path) -> None:
    with (site / "zebra.py").open("a") as file:
        file.write("print('no part of the output of a command')\n")
    listed = json.loads(sparcl(site, "methods", "zebra-*", "--json").stdout)
    assert {"zebra-er", "zebra-derpp", "zebra-finetune"} <= {method["name"] for method in listed}
    assert all(method["policies"] == {"sparsity": "zebra"} for method in listed)
    done = sparcl(site, "flops", *CELL, "--json")
    assert json.loads(done.stdout)["executed"]["training"] > 0


def test_its_code_counts_in_its_own_identity_only(site: Path) -> None:
    def identities() -> list[str]:
        code = "from sparcl import resolve\nfrom sparcl.running import identity\n"
        for method in ("zebra-er", "static-er"):
            code += f"print(identity.identity(resolve.make('split-digits', '{method}', 0.5, 20)))\n"
        return python(site, "-c", code).stdout.split()

    zebra, static = identities()
    module = site / "zebra.py"
    module.write_text(module.read_text() + "\n# A remark.\n")
    assert identities() == [zebra, static]
    module.write_text(module.read_text().replace("parameter(0.5,", "parameter(0.25,"))
    edited = identities()
    assert edited[0] != zebra
    assert edited[1] == static


def test_its_run_has_its_identity(site: Path, tmp_path: Path) -> None:
    done = sparcl(site, "run", *CELL, *SHORT, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    file = next((tmp_path / "results").rglob("record.json"))
    code = (
        f"from sparcl import resolve\nfrom sparcl.running import identity, record\nmade = record.read({str(file)!r})\n"
    )
    code += "print(made['identity'] == identity.identity(resolve.from_dict(made['cell'])))\n"
    assert python(site, "-c", code).stdout.strip() == "True"


BROKEN = {
    "import": ("import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    "syntax": ("def broken(:\n", "SyntaxError: invalid syntax"),
    "exit": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "name": ("from sparcl.methods import policy\nfrom sparcl.components import SparsityPolicy\n\n\n"
             "@policy('first', 'First')\nclass First(SparsityPolicy):\n    pass\n\n\n"
             "@policy('rigl', 'Mine')\nclass Mine(SparsityPolicy):\n    pass\n", "ValueError: rigl: "),
}  # fmt: skip


def test_a_bundle_of_unknown_parts_is_left_out_and_said_so(site: Path) -> None:
    """A policy that is not there, and one of another kind than is said; a method whose learner is not there."""
    (site / "odd.py").write_text(
        "from sparcl.methods import bundle, method\n"
        "bundle('mine', 'Mine', 'sparcl', sparsity='tdmm', gradient='dgm')\n"
        "bundle('yours', 'Yours', 'sparcl', gradient='tdm')\n"
        "method('hers', 'Hers', 'sparcl', 'derppp')\n"
    )
    install(site, "odd")
    done = sparcl(site, "methods", "mine-*", "sparcl-er", "yours-*", "hers")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "sparcl-er"
    assert len(done.stdout.splitlines()) == 1
    assert sorted(line.partition(", its methods are missing: ")[2] for line in done.stderr.splitlines()) == [
        "names an unknown gradient policy 'tdm' (did you mean 'dgm'?)",
        "names an unknown learner 'derppp' (did you mean 'derpp'?)",
        "names an unknown sparsity policy 'tdmm' (did you mean 'tdm'?)",
    ]
    assert "mine could not be registered (names an" in sparcl(site, "flops", *CELL[:2], "--method", "mine-er").stderr


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "name" else pytest.mark.slow) for kind in BROKEN]
)
def test_a_broken_package_is_named_in_one_line_and_hides_nothing(site: Path, kind: str) -> None:
    code, error = BROKEN[kind]
    (site / "broken_one.py").write_text(code)
    install(site, "broken_one")
    done = sparcl(site, "methods")
    assert done.returncode == 0
    assert "broken_one could not be registered, its methods are missing: " + error in done.stderr
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
    assert "zzz_other could not be registered" in done.stderr
    assert "zebra-er" in done.stdout
