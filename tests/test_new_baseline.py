"""``sparcl new-baseline``: what it writes passes as written, and what it refuses leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparcl import cli, matrix, scaffold
from sparcl.errors import RunError, UserError
from sparcl.files import atomic, strict_yaml

TOP = Path(__file__).resolve().parents[1]
KINDS = ("sparsity", "gradient", "data")
CONFIG = """\
name: small  # a remark
title: Small
stream: split-digits
seeds: 1
groups:
  dense: {methods: [er, derpp], buffers: [20, 50]}

  sparse:
    methods: [static-er, static-derpp, rigl-er]
    buffers: [20]
    sparsities: [0.5, 0.75]
    # the end

defaults: {epochs: 1}
"""


def files(folder: Path) -> dict[str, bytes]:
    """Return everything in a folder."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The least that looks like a checkout, as working directory."""
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines/__init__.py").write_text("")
    (tmp_path / "small.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., str]]:
    """A copy of the suite with a new method of every kind in it, and a function that runs Python there."""
    folder = tmp_path_factory.mktemp("new") / "suite"
    for name in ("sparcl", "baselines"):
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py", "tests/float64.py", "tests/test_contract.py"):
        shutil.copy(TOP / name, folder / name)
    (folder / "small.yaml").write_text(CONFIG)

    def python(*arguments: str, cwd: Path = folder, path: str = str(folder)) -> str:
        command, env = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for kind in KINDS:
        printed = python("-m", "sparcl", "new-baseline", f"my_{kind}", "--kind", kind, "--config", "small.yaml")
        for path in (f"baselines/my_{kind}.py", f"tests/baselines/test_my_{kind}.py"):
            assert path in printed
            assert (folder / path).exists()
    return folder, python


def test_its_test_passes_as_written(whole) -> None:
    _, python = whole
    assert "passed" in python("-m", "pytest", "-p", "no:cacheprovider", "tests/baselines")


def test_it_passes_the_contract_as_written(whole) -> None:
    _, python = whole
    printed = python("-m", "pytest", "-p", "no:cacheprovider", "tests/test_contract.py", "-k", "my_", "-rA")
    for kind in KINDS:
        assert f"PASSED tests/test_contract.py::test_method[my_{kind}-derpp]" in printed


@pytest.mark.slow
def test_it_passes_the_linter_as_written(whole) -> None:
    folder, python = whole
    python("-m", "ruff", "check", "--no-cache", "baselines", "tests/baselines")
    python("-m", "ruff", "format", "--no-cache", "--check", *(f"baselines/my_{kind}.py" for kind in KINDS))
    python("-m", "mypy", "--no-incremental", "--follow-imports=silent", *(f"baselines/my_{kind}.py" for kind in KINDS))
    for kind in KINDS:
        assert "\t" not in (folder / f"baselines/my_{kind}.py").read_text()


def test_the_config_has_its_cells_and_nothing_else_has_changed(whole) -> None:
    folder, python = whole
    lines = (folder / "small.yaml").read_text().splitlines()
    added = [line for line in lines if "my_" in line]
    assert added == [
        "  my_sparsity: {methods: [my_sparsity-er, my_sparsity-derpp], buffers: [20], sparsities: [0.50, 0.75]}",
        "  my_gradient: {methods: [my_gradient-er, my_gradient-derpp], buffers: [20]}",
        "  my_data: {methods: [my_data-er, my_data-derpp], buffers: [20]}",
    ]
    assert [line for line in lines if line not in added] == CONFIG.splitlines()
    code = "import sys; from sparcl import matrix; print(*(c.path for c in matrix.load('small.yaml').cells), sep='\\n')"
    paths = python("-c", code).split()
    assert "split-digits/my_sparsity-er/s0.50/b20/epochs=1/seed0" in paths
    assert len([path for path in paths if "/my_" in path]) == 4 + 2 + 2


@pytest.mark.slow
def test_a_package_of_its_own_passes_as_written(whole, tmp_path: Path) -> None:
    folder, python = whole
    package = tmp_path / "plugin"
    printed = python("-m", "sparcl", "new-baseline", "zebra", "--label", "Zebra 2.0", "--package", str(package))
    assert set(files(package)) == {"zebra.py", "tests/test_zebra.py", "pyproject.toml", "README.md"}
    assert f"pip install --no-deps --editable {package}" in printed
    python("-m", "ruff", "check", "--no-cache", ".", cwd=package)
    assert "passed" in python("-m", "pytest", "-p", "no:cacheprovider", cwd=package)
    line = next(line for line in (package / "README.md").read_text().splitlines() if line.startswith("zebra: "))
    assert set(strict_yaml.parse(line, "line")["zebra"]) == {"methods", "buffers", "sparsities"}
    assert not (folder / "baselines/zebra.py").exists()


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "expected a Python identifier"),
        ("my-rule", "did you mean 'my_rule'"),
        ("MyRule", "did you mean 'myrule'"),
        ("2nd", "expected a Python identifier"),
        ("règle", "expected a Python identifier"),
        ("class", "expected a Python identifier"),
        ("../evil", "expected a Python identifier"),
        ("a\nb", "expected a Python identifier"),
        ("_hidden", "expected a Python identifier"),
        ("a" * 31, "at most 30 characters"),
        ("derpp", "derpp is taken, a learner has this name"),
        ("rigl", "rigl is taken, a method has this name"),
        ("sparcl", "sparcl is taken"),
        ("packnet", "packnet is taken"),
        ("random", "random is taken, a Python module has this name"),
        ("numpy", "numpy is taken, a Python module has this name"),
        ("trainer", "trainer is taken, a Python module has this name"),
        ("protocol", "protocol is taken"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: str, message: str, checkout, capsys) -> None:
    before = files(checkout)
    assert cli.main(["new-baseline", "--config", "small.yaml", "--", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert message in printed.err
    assert files(checkout) == before


@pytest.mark.parametrize("path", ["baselines/fresh.py", "tests/baselines/test_fresh.py", "tests/other/test_fresh.py"])
def test_an_existing_file_is_refused(path: str, checkout: Path, capsys) -> None:
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("mine\n")
    before = files(checkout)
    assert cli.main(["new-baseline", "fresh", "--config", "small.yaml"]) == 2
    assert path in capsys.readouterr().err
    assert files(checkout) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "RigL"], "a method with this label exists"),
        (["--label", 'a"b'], "expected up to 24 letters"),
        (["--folder", "nowhere"], "nowhere: expected a package folder"),
        (["--package", "baselines"], "expected a folder that does not exist yet, or an empty one"),
        (["--package", "small.yaml"], "expected a folder that does not exist yet, or an empty one"),
        (["--config", "absent.yaml"], "absent.yaml: expected a YAML file that can be read"),
        (["--kind", "weights"], "--kind"),
    ],
)
def test_other_bad_input_is_refused(arguments: list[str], message: str, checkout: Path, capsys) -> None:
    before = files(checkout)
    assert cli.main(["new-baseline", "fresh", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert files(checkout) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "expected a matrix config with groups"),
        ("groups: [1]\n", "expected a matrix config with groups"),
        ("groups:\n  fresh: {methods: [er]}\n", "groups.fresh exists already"),
        ("groups: {a: {methods: [er]}}\n", "add this line to them by hand: fresh: {methods: "),
        ('"groups":\n  a: {methods: [er]}\n', "add this line to them by hand"),
        ("groups:\n  a: {methods: [er]}\n  a: 1\n", "stands twice"),
    ],
)
def test_a_config_that_cannot_be_edited_is_refused(text: str, message: str, checkout: Path, capsys) -> None:
    (checkout / "small.yaml").write_text(text)
    before = files(checkout)
    assert cli.main(["new-baseline", "fresh", "--config", "small.yaml"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert files(checkout) == before


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_config_keeps_its_line_endings(ending: str, checkout: Path) -> None:
    text = (ending or "\n").join(["name: x", "groups:", "    one: {methods: [er]}"]) + ending
    (checkout / "small.yaml").write_bytes(text.encode())
    assert cli.main(["new-baseline", "fresh", "--config", "small.yaml"]) == 0
    newline = ending or "\n"
    line = f"    fresh: {{methods: [fresh-derpp], buffers: [50], sparsities: [0.90]}}{newline}"
    assert (checkout / "small.yaml").read_bytes().decode() == text + ("" if ending else newline) + line


CONFIGS = [path for path in sorted((TOP / "config").glob("*.yaml")) if "groups" in strict_yaml.load(path)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_suite_can_be_edited(config: Path, checkout: Path) -> None:
    shutil.copy(config, checkout / "copy.yaml")
    scaffold.create(scaffold.Draft("fresh"), Path("baselines"), None, Path("copy.yaml"))
    before, after = strict_yaml.load(config), strict_yaml.load("copy.yaml")
    added = after["groups"].pop("fresh")
    assert after == before
    assert added["methods"]
    assert not list(matrix._schema_problems({**before, "groups": {"fresh": added}}))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_full_disk_leaves_nothing_half_written(failing: int, checkout: Path, monkeypatch) -> None:
    before, calls = files(checkout), []

    def write(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == failing + 1:
            raise RunError("disk full")
        atomic.write_bytes(path, text.encode())

    monkeypatch.setattr(atomic, "write_text", write)
    with pytest.raises(RunError):
        scaffold.create(scaffold.Draft("fresh"), Path("baselines"), None, Path("small.yaml"))
    assert files(checkout) == before
    assert not (checkout / "tests").exists()


def test_a_folder_of_another_package(checkout: Path) -> None:
    for name in ("mine", "mine/inner"):
        (checkout / name).mkdir()
        (checkout / name / "__init__.py").touch()
    scaffold.create(scaffold.Draft("fresh"), Path("mine/inner"))
    assert (checkout / "mine/inner/fresh.py").exists()
    assert "from mine.inner.fresh import Fresh, redrawn\n" in (checkout / "tests/mine/inner/test_fresh.py").read_text()


@pytest.mark.parametrize(("name", "cls"), [("sparsity_policy", "SparsityPolicyRule"), ("my_2nd_rule", "My2ndRule")])
def test_class_names(name: str, cls: str) -> None:
    assert scaffold.Draft(name).cls == cls


def test_a_label_is_checked_before_it_stands_in_code() -> None:
    for label in ("a'b", "a\\n", "{x}", "$x", "", "x" * 25):
        with pytest.raises(UserError):
            scaffold.Draft("fresh", label_=label)
