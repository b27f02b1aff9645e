"""Write the pinned versions: ``constraints.txt`` and ``environment.yml`` from the environment that runs this.

``pyproject.toml`` keeps ranges; these files say what the suite was tested with.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
EXTRAS = ("bench", "export", "test")
OWN = {"sparcl-bench", "pip", "wheel"}


def canonical(name: str) -> str:
    """Return a distribution's name as PEP 503 normalizes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Return the version of every installed distribution but this one and pip."""
    found = {canonical(d.metadata["Name"]): d.version for d in metadata.distributions()}
    return {name: version.partition("+")[0] for name, version in sorted(found.items()) if name not in OWN}


def direct() -> list[str]:
    """Return the names of the dependencies that ``pyproject.toml`` lists, extras included."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + [r for e in EXTRAS for r in project["optional-dependencies"][e]]
    return [re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in listed]


def constraints(versions: dict[str, str]) -> str:
    """Return the text of ``constraints.txt``."""
    head = "# Written by workflow/scripts/pins.py: tested with these (Linux x86-64, Python 3.11).\n"
    return head + "".join(f"{name}=={version}\n" for name, version in versions.items())


def environment(versions: dict[str, str]) -> str:
    """Return the text of ``environment.yml``: Python from conda, the rest as in ``constraints.txt``."""
    lines = [
        "# Written by workflow/scripts/pins.py; the same versions as constraints.txt.",
        "#   conda env create --file environment.yml && conda activate sparcl-bench",
        "#   pip install --no-deps --editable .",
        "name: sparcl-bench",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - git",
        "  - make",
        "  - pip:",
        *(f"      - {name}=={versions[canonical(name)]}" for name in direct()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the files."""
    versions = installed()
    (TOP / "constraints.txt").write_text(constraints(versions))
    (TOP / "environment.yml").write_text(environment(versions))


if __name__ == "__main__":
    main()
