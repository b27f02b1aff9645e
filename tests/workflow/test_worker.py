"""The fork server: a child must be indistinguishable from a fresh process, and nothing may be left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import sparcl.worker

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CLI = """
import json, os, resource, signal, sys, time
TEXT = "first"
def main(argv):
    command = argv[0]
    if command == "exit":
        return int(argv[1])
    if command == "raise":
        raise ValueError("broken on purpose")
    if command == "sys-exit":
        sys.exit(argv[1])
    if command == "text":
        print(TEXT)
    if command == "kill":
        os.kill(os.getpid(), int(argv[1]))
    if command == "copy":
        print("to stderr", file=sys.stderr)
        sys.stdout.write(sys.stdin.read().upper())
    if command == "state":
        umask = os.umask(0o77)
        print(json.dumps({
            "pid": os.getpid(), "parent": os.getppid(), "cwd": os.getcwd(), "argv": sys.argv[1:],
            "variable": os.environ.get("VARIABLE"), "umask": umask, "path": sys.path,
            "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "nice": os.nice(0),
            "open": sorted(os.listdir("/proc/self/fd")), "preloaded": "colorsys" in sys.modules,
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "encoding": sys.stdout.encoding,
        }))
    if command == "wait":
        open(argv[1], "w").write(str(os.getpid()))
        if len(argv) > 2:
            def stop(number, frame):
                open(argv[1] + ".stopped", "w").write(str(number))
                sys.exit(5)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
        time.sleep(60)
    return 0
"""


class Site:
    """A folder with the real worker beside a command line of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        package = folder / "sparcl"
        package.mkdir()
        (package / "__init__.py").write_text("")
        source = Path(sparcl.worker.__file__).read_text().replace("IDLE_SECONDS = 20.0", "IDLE_SECONDS = 4.0")
        (package / "worker.py").write_text(source.replace("GRACE_SECONDS = 15.0", "GRACE_SECONDS = 1.0"))
        self.cli = package / "cli.py"
        self.cli.write_text(CLI)
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"},
            "SPARCL_WORKER": "fork",
            "SPARCL_WORKER_PRELOAD": "colorsys",
            "TMPDIR": str(self.temporary),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, *argv: str, **options) -> subprocess.Popen:
        environment = {**self.environment, **options.pop("env", {})}
        command = [sys.executable, "-m", "sparcl.worker", *argv]
        return subprocess.Popen(command, cwd=self.folder, env=environment, **options)

    def run(self, *argv: str, **options) -> subprocess.CompletedProcess:
        environment = {**self.environment, **options.pop("env", {})}
        command = [sys.executable, "-m", "sparcl.worker", *argv]
        options = {"capture_output": True, "text": True, "timeout": 60, "cwd": self.folder} | options
        return subprocess.run(command, env=environment, **options)

    def state(self, **options) -> dict:
        return json.loads(self.run("state", **options).stdout)

    def servers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if len(line) > 2 and line[1] == "-P" and line[2].startswith(str(self.folder)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.status() != psutil.STATUS_ZOMBIE and process.ppid() not in map(lambda p: p.pid, found):
                        found.append(process)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for server in made.servers():
        with contextlib.suppress(psutil.NoSuchProcess):
            server.kill()


def until(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_exit_status_and_errors_are_the_childs(site: Site) -> None:
    assert site.run("exit", "0").returncode == 0
    assert site.run("exit", "2").returncode == 2
    failed = site.run("raise")
    assert failed.returncode == 1
    assert "ValueError: broken on purpose" in failed.stderr
    assert site.run("sys-exit", "3").returncode == 1  # a text, as in any Python program
    assert site.run("kill", str(int(signal.SIGKILL))).returncode == 128 + 9
    assert len(site.servers()) == 1


def test_streams_pass_through(site: Site) -> None:
    text = "größer " * 50_000
    done = site.run("copy", input=text)
    assert done.stdout == text.upper()
    assert done.stderr == "to stderr\n"


def test_child_looks_like_a_process_of_its_own(site: Site) -> None:
    elsewhere = site.folder / "else where"
    elsewhere.mkdir()
    code = (
        "import os, resource, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background\n"
        "os.umask(0o27); resource.setrlimit(resource.RLIMIT_NOFILE, (77, 100)); os.nice(3)\n"
        f"os.chdir({str(elsewhere)!r}); sys.path.insert(0, {str(site.folder)!r})\n"
        "import sparcl.worker; sys.exit(sparcl.worker.main(['state', 'a b']))"
    )
    states = {}
    for mode in ("fork", "off"):
        environment = {**site.environment, "SPARCL_WORKER": mode, "VARIABLE": mode}
        output = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout
        states[mode] = json.loads(output)
    forked, own = states["fork"], states["off"]
    assert forked["preloaded"]
    assert not own["preloaded"]
    assert forked["variable"] == "fork"
    assert forked["cwd"] == str(elsewhere)
    assert forked["umask"] == 0o27
    assert forked["files"] == 77
    for key in ("cwd", "umask", "path", "files", "nice", "sigint", "encoding"):
        assert forked[key] == own[key], key
    assert len(forked["open"]) == len(own["open"])  # nothing of the server's, nothing of other clients'


def test_one_server_for_many_and_another_for_other_libraries(site: Site) -> None:
    children = [site.start("state", stdout=subprocess.PIPE, text=True) for _ in range(8)]
    states = [json.loads(child.communicate(timeout=60)[0]) for child in children]
    assert len({state["pid"] for state in states}) == 8
    assert len({state["parent"] for state in states}) == 1
    assert site.state(env={"OMP_NUM_THREADS": "3"})["parent"] != states[0]["parent"]


def test_edited_code_is_never_stale(site: Site) -> None:
    assert site.run("text").stdout == "first\n"
    site.cli.write_text(CLI.replace('"first"', '"second"'))
    assert site.run("text").stdout == "second\n"
    assert len(site.servers()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_forwarded_and_the_child_may_finish(site: Site, number: signal.Signals) -> None:
    mark = site.folder / "mark"
    client = site.start("wait", str(mark), "handles")
    assert until(lambda: mark.exists() and mark.read_text())
    time.sleep(0.2)
    client.send_signal(number)
    assert client.wait(20) == 5
    assert (site.folder / "mark.stopped").read_text() == str(int(number))


@pytest.mark.parametrize("handles", [(), ("handles",)])
def test_killed_client_takes_its_child_with_it(site: Site, handles: tuple[str, ...]) -> None:
    mark = site.folder / "mark"
    client = site.start("wait", str(mark), *handles)
    assert until(lambda: mark.exists() and mark.read_text())
    time.sleep(0.2)
    child = int(mark.read_text())
    client.kill()
    client.wait()
    assert until(lambda: not alive(child))
    if handles:
        assert (site.folder / "mark.stopped").exists()  # SIGTERM came first


def test_client_whose_parent_dies_ends_the_run(site: Site) -> None:
    mark = site.folder / "mark"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-m', 'sparcl.worker', 'wait', {str(mark)!r}])\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=site.environment, cwd=site.folder)
    assert until(lambda: mark.exists() and mark.read_text())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    assert until(lambda: not alive(int(mark.read_text())))


def test_killed_server_takes_its_children_with_it(site: Site) -> None:
    mark = site.folder / "mark"
    client = site.start("wait", str(mark), stderr=subprocess.PIPE, text=True)
    assert until(lambda: mark.exists() and mark.read_text())
    psutil.Process(int(mark.read_text())).parent().kill()
    _, message = client.communicate(timeout=20)
    assert client.returncode == 1
    assert "ended before the run did" in message
    assert until(lambda: not alive(int(mark.read_text())))
    assert site.run("exit", "4").returncode == 4  # a new server in place of the dead one's socket


def test_server_that_cannot_start_is_done_without(site: Site) -> None:
    broken = site.folder / "broken"
    broken.mkdir()
    (broken / "colorsys.py").write_text("raise SystemExit(3)")
    state = site.state(env={"PYTHONPATH": str(broken)})
    assert state["parent"] == os.getpid()


def test_folder_is_closed_to_others(site: Site) -> None:
    site.run("exit", "0")
    (folder,) = site.temporary.glob("sparcl-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shutil.rmtree(folder)
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    assert site.state()["parent"] == os.getpid()  # not trusted: in its own process


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_another_user_is_refused(site: Site) -> None:
    site.run("exit", "0")
    (folder,) = site.temporary.glob("sparcl-*")
    (path,) = (entry for entry in folder.iterdir() if entry.is_socket())
    for parent in (path, *list(path.parents)[:-1]):
        if parent.is_relative_to(site.folder.parent.parent):
            parent.chmod(0o777)
    code = (
        "import os, socket, sys\n"
        "os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
        "try:\n"
        f"    s.connect({str(path)!r}); print(s.recv(1))\n"
        "except PermissionError:\n"
        "    print(b'')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "b''\n", done.stderr
    folder.chmod(0o700)


def test_server_does_not_grow_and_leaves_nothing(site: Site) -> None:
    for _ in range(20):
        site.run("exit", "0")
    (server,) = site.servers()
    before = server.memory_info().rss, server.num_fds(), server.num_threads()
    running: list[subprocess.Popen] = []
    for number in range(200):
        running.append(site.start("exit", str(number % 7)))
        if len(running) == 4:
            assert [child.wait(60) for child in running] == [n % 7 for n in range(number - 3, number + 1)]
            running.clear()
    after = server.memory_info().rss, server.num_fds(), server.num_threads()
    assert after[1:] == before[1:]
    assert after[0] <= before[0] + (1 << 20)
    assert server.children() == []
    assert until(lambda: not site.servers(), 30)
    (folder,) = site.temporary.glob("sparcl-*")
    assert [entry.name for entry in folder.iterdir() if entry.suffix != ".lock"] == []
    assert site.run("exit", "6").returncode == 6


def test_abandoned_and_garbled_requests_do_no_harm(site: Site) -> None:
    import socket

    site.run("exit", "0")
    (folder,) = site.temporary.glob("sparcl-*")
    (path,) = (entry for entry in folder.iterdir() if entry.is_socket())
    (server,) = site.servers()
    files = server.num_fds()
    for garbage in (b"", b"\0" * 8, b"\xff" * 8, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(garbage)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        socket.send_fds(connection, [(100).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(b"{")
    assert site.run("exit", "3").returncode == 3
    assert until(lambda: server.num_fds() == files)
