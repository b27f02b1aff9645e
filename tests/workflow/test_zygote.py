"""The zygote: a job that is forked is as good as a process of its own, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import launching
import psutil
import pytest

from sparcl import cell
from sparcl.running import record, runner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux alone")

JOB = """
import json, os, signal, sys, time, warnings
TEXT = "first"
command, *rest = sys.argv[1:]
if command == "exit":
    sys.exit(int(rest[0]))
if command == "raise":
    raise ValueError("broken on purpose")
if command == "sys-exit":
    sys.exit(rest[0])
if command == "text":
    print(TEXT)
if command == "kill":
    os.kill(os.getpid(), int(rest[0]))
if command == "copy":
    print("to stderr", file=sys.stderr)
    sys.stdout.write(sys.stdin.read().upper())
if command == "state":
    umask = os.umask(0o77)
    print(json.dumps({
        "parent": os.getppid(), "folder": os.getcwd(), "arguments": sys.argv[1:], "name": __name__,
        "variable": os.environ.get("VARIABLE"), "umask": umask, "path": sys.path, "nice": os.nice(0),
        "open": len(os.listdir("/proc/self/fd")), "filters": [str(entry) for entry in warnings.filters],
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)],
        "sparcl": sorted(name for name in sys.modules if name.split(".")[0] in ("sparcl", "baselines")),
    }))
if command == "wait":
    open(rest[0], "w").write(str(os.getpid()))
    if len(rest) > 1:
        def stop(number, frame):
            open(rest[0] + ".stopped", "w").write(str(number))
            sys.exit(5)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        open(rest[0] + ".ready", "w").write("")
    time.sleep(60)
"""


class Site(launching.Run):
    """A run in a folder with a job of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = folder / "job.py"
        self.job.write_text(JOB)
        super().__init__({"TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"})

    def start(self, *command: str, **options: Any) -> subprocess.Popen:
        return super().start("job", *command, **{"cwd": self.folder} | options)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as made:
        yield made


def until(condition: Callable[[], object], seconds: float = 60.0) -> bool:
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


def waiting(site: Site, *more: str) -> tuple[subprocess.Popen, int]:
    """Start a job that waits; return its launcher and the process id of the job itself."""
    mark = site.folder / "mark"
    launcher = site.start("wait", str(mark), *more)
    last = site.folder / "mark.ready" if more else mark
    assert until(lambda: last.exists() and mark.read_text())
    return launcher, int(mark.read_text())


def test_exit_status_and_errors_are_the_jobs(site: Site) -> None:
    assert site.run("exit", "0").returncode == 0
    assert site.run("exit", "2").returncode == 2
    failed = site.run("raise")
    assert failed.returncode == 1
    assert "ValueError: broken on purpose" in failed.stderr
    assert site.run("sys-exit", "3").returncode == 1  # a text, as in any Python program
    killed = site.run("kill", str(int(signal.SIGKILL)))
    assert killed.returncode == 1
    assert killed.stderr == "failed: the process was killed; was it out of memory?\n"


def test_streams_pass_through(site: Site) -> None:
    text = "größer " * 50_000
    done = site.run("copy", input=text)
    assert done.stdout == text.upper()
    assert done.stderr == "to stderr\n"


@pytest.mark.parametrize("hangup", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "nohup"])
def test_a_job_looks_like_a_process_of_its_own(site: Site, hangup: signal.Handlers) -> None:
    elsewhere = site.folder / "else where"
    elsewhere.mkdir()
    (elsewhere / "job.py").write_text(JOB)
    states = {}
    for name, socket in (("forked", site.socket), ("own", "")):
        variables = {"VARIABLE": name, "SPARCL_ZYGOTE": socket}
        done = site.run(
            "state", "a b", cwd=elsewhere, env=variables, preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup)
        )
        states[name] = json.loads(done.stdout)
    forked, own = states["forked"], states["own"]
    assert forked.pop("parent") == site.zygote
    assert own.pop("parent") == os.getpid()
    assert (forked.pop("variable"), own.pop("variable")) == ("forked", "own")
    assert forked.pop("open") == own.pop("open") + 1  # the connection to its launcher
    assert forked == own


def test_a_job_with_other_libraries_runs_by_itself(site: Site) -> None:
    """Variables that libraries read when they are imported are the first job's; PYTHONPATH is Snakemake's."""

    def parent(**variables: str) -> int:
        return json.loads(site.run("state", env=variables).stdout)["parent"]

    assert parent() == site.zygote
    assert parent(OMP_NUM_THREADS="3") == os.getpid()
    assert parent(PYTHONPATH=str(site.folder)) == os.getpid()
    assert parent() == site.zygote
    assert parent(SPARCL_ZYGOTE=str(site.folder / "none")) == os.getpid()


def test_edited_code_is_never_stale(site: Site) -> None:
    assert site.run("text").stdout == "first\n"
    site.job.write_text(JOB.replace('"first"', '"second"'))
    assert site.run("text").stdout == "second\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_job_which_may_finish(site: Site, number: signal.Signals) -> None:
    launcher, _ = waiting(site, "handles")
    launcher.send_signal(number)
    assert launcher.wait(20) == 5
    assert (site.folder / "mark.stopped").read_text() == str(int(number))


@pytest.mark.parametrize("handles", [(), ("handles",)])
@pytest.mark.parametrize("victim", ["launcher", "snakemake", "zygote"])
def test_nothing_outlives_what_is_killed(site: Site, victim: str, handles: tuple[str, ...]) -> None:
    launcher, job = waiting(site, *handles)
    if victim == "snakemake":
        site.process.kill()
        assert until(lambda: not alive(site.zygote))
        assert until(lambda: not Path(site.socket).parent.exists())
    else:
        os.kill(launcher.pid if victim == "launcher" else site.zygote, signal.SIGKILL)
    assert until(lambda: not alive(job))
    assert launcher.wait(20) != 0
    if handles:
        assert (site.folder / "mark.stopped").exists()  # SIGTERM came first
    if victim == "zygote":
        assert site.run("exit", "4").returncode == 4


def test_a_launcher_stops_when_what_started_it_is_killed(site: Site) -> None:
    mark = site.folder / "mark"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-I', '-S', {str(launching.SCRIPTS / 'launch.py')!r}, *sys.argv[1:]])\n"
        "time.sleep(60)"
    )
    for socket in (site.socket, ""):
        mark.unlink(missing_ok=True)
        environment = {**site.environment, "SPARCL_ZYGOTE": socket}
        command = [sys.executable, "-c", code, "job", "wait", str(mark)]
        parent = subprocess.Popen(command, env=environment, cwd=site.folder)
        assert until(lambda: mark.exists() and mark.read_text())
        job = int(mark.read_text())
        parent.kill()
        parent.wait()
        assert until(lambda job=job: not alive(job))


def idle(site: Site) -> psutil.Process:
    """Wait until the zygote has no job and holds nothing but its standard streams and its socket; return it."""
    zygote = psutil.Process(site.zygote)
    assert until(lambda: zygote.num_fds() == 4 and not zygote.children())
    return zygote


def test_the_zygote_does_not_grow(site: Site) -> None:
    def use() -> tuple[int, int]:
        zygote = idle(site)
        return zygote.memory_info().rss, zygote.num_threads()

    def many(count: int) -> None:
        for start in range(0, count, 4):
            running = [site.start("exit", str(number % 7)) for number in range(start, start + 4)]
            assert [launcher.wait(60) for launcher in running] == [n % 7 for n in range(start, start + 4)]

    many(20)
    before = use()
    many(200)
    after = use()
    assert after[1] == before[1]
    assert after[0] <= before[0] + (1 << 20)


def test_garbled_requests_do_no_harm(site: Site) -> None:
    import socket

    for garbage in (b"", b"\0" * 8, b"\xff" * 8, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(site.socket)
            connection.sendall(garbage)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(site.socket)
        socket.send_fds(connection, [(100).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(b"{")
    whole = {"module": "job", "arguments": ["exit", "0"], "folder": str(site.folder), "python": sys.executable}
    data = json.dumps(whole | {"environment": site.environment}).encode()
    with socket.socket(socket.AF_UNIX) as connection:  # whoever asked has gone before there is an answer
        connection.connect(site.socket)
        socket.send_fds(connection, [len(data).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(data)
    assert site.run("exit", "3").returncode == 3
    idle(site)
    assert Path(site.socket).exists()
    assert json.loads(site.run("state").stdout)["parent"] == site.zygote


def test_a_cells_record_is_the_same_either_way(small_cell: Callable[..., cell.Cell], tmp_path: Path) -> None:
    chosen = small_cell("sparcl-derpp", epochs=1)
    with launching.Run() as run:
        command = ("sparcl", "run", "--cell", chosen.json(), "--quiet", "--results")
        for name, socket in (("forked", run.socket), ("own", "")):
            done = run.run(*command, str(tmp_path / name), env={"SPARCL_ZYGOTE": socket})
            assert done.returncode == 0, done.stderr
        again = run.run(*command, str(tmp_path / "again"))
        assert again.returncode == 0, again.stderr
        loaded = Path(f"/proc/{run.zygote}/maps").read_text()
        assert "torch" in loaded
    forked, own, again = (
        record.reproducible(record.read(runner.folder_of(chosen, tmp_path / name) / runner.RECORD))
        for name in ("forked", "own", "again")
    )
    assert forked == own == again


GPU = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES', 'unset'), flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("outer", "seen"),
    [
        ({}, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "4,7"}, ["4", "7", "4"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1a2b"}, ["GPU-1a2b"] * 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, [""] * 3),
        ({"SLURM_JOB_ID": "12"}, ["unset"] * 3),
        ({"SLURM_JOB_ID": "12", "CUDA_VISIBLE_DEVICES": "3"}, ["3"] * 3),
        ({"SLURM_JOB_ID": "12", "CUDA_VISIBLE_DEVICES": "2,3"}, ["2", "3", "2"]),
    ],
)
def test_each_gpu_job_sees_a_device_of_its_own(outer: dict[str, str], seen: list[str], tmp_path: Path) -> None:
    (tmp_path / "gpu.py").write_text(GPU)
    inherited = launching.without_make(os.environ)
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        inherited.pop(name, None)
    line = [sys.executable, "-I", "-S", str(launching.SCRIPTS / "launch.py"), "--gpus", "1", "gpu"]
    running: list[subprocess.Popen] = []

    def device() -> str:
        job = subprocess.Popen(line, cwd=tmp_path, env=inherited | outer, stdout=subprocess.PIPE, text=True)
        running.append(job)
        assert job.stdout is not None
        return job.stdout.readline().removesuffix("\n")

    try:
        assert [device() for _ in seen] == seen
        running[1].kill()
        running[1].wait()
        assert device() == seen[1]  # which is free again
    finally:
        for job in running:
            job.kill()
            job.communicate()
