"""What a fresh clone installs: pins, the conda environment, the Makefile, and the package's data files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import launching
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


def requirements() -> dict[str, Requirement]:
    """Return every direct dependency of pyproject.toml, extras included."""
    extras = PROJECT["project"]["optional-dependencies"]
    listed = PROJECT["project"]["dependencies"] + [line for lines in extras.values() for line in lines]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in listed}


def pins() -> dict[str, str]:
    lines = [line for line in (TOP / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    found = dict(line.split("==") for line in lines)
    assert list(found) == sorted(found)
    return found


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    pinned = pins()
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(pinned[name]), requirement


def test_pins_are_the_whole_closure() -> None:
    from importlib import metadata

    pinned = pins()
    seen: set[str] = set()
    waiting = list(requirements().values())
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        assert name in pinned, f"{name} is not pinned"
        for line in metadata.distribution(name).requires or []:
            needed = Requirement(line)
            if any(needed.marker is None or needed.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                waiting.append(needed)


def test_conda_environment_has_the_same_versions() -> None:
    environment = yaml.safe_load((TOP / "environment.yml").read_text())
    assert environment["name"] == PROJECT["project"]["name"]
    *plain, inner = environment["dependencies"]
    listed = dict(line.split("==") for line in inner["pip"])
    pinned = pins()
    assert {canonicalize_name(name): version for name, version in listed.items()} == {
        name: pinned[name] for name in requirements()
    }
    python = next(line for line in plain if line.startswith("python="))
    assert Requirement(f"python{PROJECT['project']['requires-python']}").specifier.contains(python.split("=")[1])


def test_pins_are_what_the_script_writes() -> None:
    sys.path.insert(0, str(TOP / "workflow/scripts"))
    try:
        import pins as script
    finally:
        sys.path.pop(0)
    assert (TOP / "environment.yml").read_text() == script.environment(pins())
    assert (TOP / "constraints.txt").read_text() == script.constraints(pins())


def test_no_file_names_this_machine_or_a_package_host() -> None:
    for name in ("constraints.txt", "environment.yml", "Makefile", ".ci/run"):
        text = (TOP / name).read_text()
        assert not re.search(r"https?://|file:|/home/|/root/|@ ", text), name


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run make in ``folder`` without what a surrounding make passes on."""
    variables = {**launching.without_make(os.environ), **environment}
    return subprocess.run(["make", *arguments], cwd=folder, env=variables, capture_output=True, text=True)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(TOP / name, tmp_path)
    return tmp_path


def test_make_sets_up_first_and_passes_its_variables_on(fresh: Path) -> None:
    done = make(fresh, "-n", "tables", "CONFIG=my config.yaml", "CORES=3")
    assert done.returncode == 0, done.stderr
    steps = ["-m venv .venv", "-m pip install", 'snakemake --configfile "my config.yaml" --cores "3"  -- all']
    places = [done.stdout.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)
    assert "--constraint constraints.txt --editable '.[bench,export,test]'" in done.stdout
    done = make(fresh, "-n", "test", "test-all", "lint", "figures", "report", "cells", "partial", "dry-run", "api")
    assert done.returncode == 0, done.stderr


def test_make_installs_once_and_again_when_versions_change(fresh: Path) -> None:
    stamp = fresh / ".venv/.installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "pip install" not in make(fresh, "-n", "tables").stdout
    later = stamp.stat().st_mtime + 10
    os.utime(fresh / "constraints.txt", (later, later))
    assert "pip install" in make(fresh, "-n", "tables").stdout


def test_make_says_what_it_lacks(fresh: Path) -> None:
    done = make(fresh, "tables", "PYTHON=")
    assert done.returncode == 2
    assert "error: Python 3.11 or newer is needed" in done.stderr


def test_help_is_the_default_and_names_the_targets(fresh: Path) -> None:
    done = make(fresh)
    for target in ("tables", "test", "lint", "dry-run", "clean"):
        assert f"make {target}" in done.stdout or f"| {target}" in done.stdout


def travelling() -> set[Path]:
    """Return the files that the patterns of package-data name; setuptools takes them below a package's folder."""
    found: set[Path] = set()
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = "[a-z]*/**" if package == "*" else package.replace(".", "/")
        for pattern in patterns:
            found |= set(TOP.glob(f"{folder}/{pattern}"))
    return found


def test_package_data_travel_with_the_package() -> None:
    command = ["git", "ls-files", "sparcl", "baselines", "analysis", "snakemake_logger_plugin_sparcl"]
    listed = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = travelling()
    for name in listed.stdout.splitlines():
        assert name.endswith(".py") or TOP / name in found, name
    assert TOP / "sparcl/kernels/csrc/kernels.h" in found
