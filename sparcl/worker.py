"""The ``sparcl`` command, with the start-up cost shared between processes.

Importing torch and its neighbours takes longer than a small run. With ``SPARCL_WORKER=fork`` in the
environment the command is a light client (standard library only): it hands its arguments, working
directory, environment and standard streams to a *fork server* that has the third-party libraries imported
already, and the server forks a child that runs :func:`sparcl.cli.main` exactly as a fresh process would.
Without the variable, or wherever the server cannot be used, the command runs in its own process; both ways
give the same result.

What keeps the two ways alike:

- the server imports third-party libraries only, never ``sparcl`` or a method, so edited code is never
  stale;
- it runs no parallel region and never touches CUDA, so forking is safe, and random state is that of a new
  process;
- a child takes the client's ``sys.path``, environment, streams, umask, limits, priority and processor
  affinity;
- one server serves one user, interpreter, set of thread- and library-related variables and control group;
  another user cannot connect (a folder of mode 0700, and the peer's user id is checked).

Signals reach the child through the client. A client that dies takes its child with it (SIGTERM, then
SIGKILL), as does a server that dies. A client whose own parent dies ends its run in the same way, so that a
killed pipeline leaves no orphans behind. The server ends after ``IDLE_SECONDS`` without work. See
``docs/pipeline.md``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from typing import Any, NoReturn

MODE = "SPARCL_WORKER"
PRELOAD = "SPARCL_WORKER_PRELOAD"
LIBRARIES = (
    "numpy torch torch.optim torch._dynamo torchvision fvcore.nn sklearn.datasets "
    "yaml jsonschema safetensors.torch psutil rich.progress"
)
IDLE_SECONDS = 20.0
GRACE_SECONDS = 15.0
READY_SECONDS = 180.0
REQUEST_BYTES = 16 << 20
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Libraries read such variables when imported: processes that differ in one of them cannot share a server.
IMPORT_TIME = (
    *("ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "GOMP_", "KMP_", "LD_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_"),
    *("OPENBLAS_", "PYTHON", "PYTORCH_", "TORCH_", PRELOAD),
)

_HEADER = struct.Struct("!Q")
_STATUS = struct.Struct("!ci")
_CREDENTIALS = struct.Struct("3i")
_LIMITS = ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE")


def main(argv: list[str] | None = None) -> int:
    """Run the ``sparcl`` command line and return its exit status (the console script's entry)."""
    arguments = sys.argv[1:] if argv is None else argv
    if os.environ.get(MODE) == "fork":
        status = request(arguments)
        if status is not None:
            return status
    from sparcl.cli import main as run

    return run(arguments)


# The client.


def request(argv: list[str]) -> int | None:
    """Run ``argv`` in a child of the fork server.

    Returns:
        The child's exit status (128 + n when signal n ended it), or ``None`` if no server took the request;
        then nothing has been run.
    """
    if not hasattr(socket, "AF_UNIX") or not hasattr(socket, "send_fds"):
        return None
    for _ in range(2):  # the second time for a server that went idle between our connecting and its accepting
        connection = _connect()
        if connection is None:
            return None
        with connection:
            try:
                _send_request(connection, argv)
                connection.settimeout(READY_SECONDS)
                accepted = _receive(connection, _STATUS.size)
            except OSError:
                accepted = b""
            if accepted:
                return _follow(connection)
    return None


def _connect() -> socket.socket | None:
    """Return a connection to this user's server, started if need be, or ``None`` if that cannot be."""
    try:
        path = _socket_path()
        connection = _try(path)
        if connection is None:
            with open(f"{path}.lock", "a") as lock:
                _lock(lock.fileno())
                connection = _try(path)
                if connection is None:
                    _start(path)
                    connection = _try(path)
    except (OSError, ImportError):
        return None
    if connection is not None and _peer(connection) not in (None, os.getuid()):
        connection.close()
        return None
    return connection


def _try(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


def _lock(descriptor: int, wait: bool = True) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _start(path: str) -> None:
    """Listen on ``path`` and start a detached server on that socket; connections queue while it imports."""
    import subprocess

    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, open(f"{path}.log", "wb") as log:
        listener.bind(path)
        listener.listen(1024)
        # Unsafe paths are off (-P): started as a file, so that the server never imports the package itself.
        command = [sys.executable, "-P", os.path.abspath(__file__), str(listener.fileno()), path]
        environment = {**os.environ, MODE: "serve"}
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            env=environment,
            cwd="/",
        )
        server.returncode = 0  # detached on purpose: not ours to wait for


def _folder() -> str:
    """Return the folder for sockets, owned by this user and closed to everybody else."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        folder = os.path.join(runtime, "sparcl")
    else:
        temporary = os.environ.get("TMPDIR", "")
        base = temporary if os.path.isabs(temporary) and os.access(temporary, os.W_OK) else "/tmp"
        folder = os.path.join(base, f"sparcl-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if status.st_uid != os.getuid() or status.st_mode & 0o170077 != 0o040000:
        raise PermissionError(f"{folder}: expected a folder of mode 0700 that belongs to this user")
    return folder


def _socket_path() -> str:
    """Return the socket's path, named by everything that two clients of one server must have in common."""
    import hashlib

    parts = [str(os.getuid()), sys.executable, sys.version, LIBRARIES]
    parts += sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith(IMPORT_TIME))
    for entry in sys.path:  # an installed or removed package changes its folder
        if entry.endswith("-packages"):
            with contextlib.suppress(OSError):
                parts.append(f"{entry} {os.stat(entry).st_mtime_ns}")
    for space in ("mnt", "pid", "net", "user"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(f"/proc/self/ns/{space}"))
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as group:
        parts.append(group.read())  # a cluster kills a job's whole control group when the job ends
    with open(__file__, "rb") as source:
        parts.append(hashlib.sha256(source.read()).hexdigest())
    path = os.path.join(_folder(), hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20])
    if len(os.fsencode(path)) > 100:
        raise OSError(f"{path}: too long for the name of a socket")
    return path


def _peer(connection: socket.socket) -> int | None:
    """Return the user id at the other end, or ``None`` where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1]


def _send_request(connection: socket.socket, argv: list[str]) -> None:
    import resource

    umask = os.umask(0o077)
    os.umask(umask)
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    message = {
        "argv": argv,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "path": sys.path,
        "umask": umask,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "affinity": affinity,
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS},
        "streams": [
            [getattr(stream, "encoding", "utf-8"), getattr(stream, "errors", "replace")]
            for stream in (sys.stdin, sys.stdout, sys.stderr)
        ],
    }
    data = json.dumps(message).encode()
    missing = os.open(os.devnull, os.O_RDWR)
    try:
        streams = [_open_descriptor(number, missing) for number in range(3)]
        socket.send_fds(connection, [_HEADER.pack(len(data))], streams)
        connection.sendall(data)
    finally:
        os.close(missing)


def _open_descriptor(number: int, otherwise: int) -> int:
    try:
        os.fstat(number)
    except OSError:
        return otherwise
    return number


def _receive(connection: socket.socket, size: int) -> bytes:
    """Read ``size`` bytes, or return ``b""`` if the other end closed before."""
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            return b""
        data += part
    return data


def _follow(connection: socket.socket) -> int:
    """Pass signals on until the child has ended; return its exit status."""

    def forward(number: int, _frame: Any) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(bytes([number]))

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    parent = os.getppid()
    connection.settimeout(1.0)
    try:
        while True:
            try:
                answer = _receive(connection, _STATUS.size)
            except TimeoutError:
                if os.getppid() == parent:
                    continue
                return 128 + signal.SIGTERM  # our parent died; closing the connection ends the child
            except OSError:
                answer = b""
            if not answer:
                print("sparcl: the fork server ended before the run did", file=sys.stderr)
                return 1
            return _STATUS.unpack(answer)[1]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# The server.


def serve(descriptor: int, path: str) -> None:
    """Serve requests on the listening socket ``descriptor`` until ``IDLE_SECONDS`` pass without any."""
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    _preload(os.environ.get(PRELOAD, LIBRARIES).split())
    Server(listener, path).run()


def _preload(modules: list[str]) -> None:
    """Import third-party libraries; one that is missing is left to the run that needs it."""
    import gc
    import importlib
    import warnings

    warnings.simplefilter("ignore")
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    warnings.resetwarnings()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # no thread pool: threads do not survive a fork
    gc.collect()
    gc.freeze()  # children share these pages instead of touching them at each collection


class Server:
    """One thread, one loop: requests in, children out, nothing kept of a child that has ended."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        import selectors

        self.listener, self.listening = listener, True
        self.path = path
        self.selector = selectors.DefaultSelector()
        self.pending: dict[socket.socket, Request] = {}
        self.clients: dict[int, socket.socket | None] = {}  # child -> connection; None: the client is gone
        self.deadlines: dict[int, float] = {}  # child whose client is gone -> when SIGKILL follows SIGTERM
        self.wakeup, self.waker = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(self.waker, False)
        self.read = selectors.EVENT_READ
        self.selector.register(listener, self.read)
        self.selector.register(self.wakeup, self.read)

    def run(self) -> None:
        """Serve requests until there are none left and the server has been idle for long enough."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        idle_since = time.monotonic()
        while self.listening or self.pending or self.clients:
            for key, _ in self.selector.select(1.0):
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj == self.wakeup:
                    os.read(self.wakeup, 4096)
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self.pending:
                    self._read_request(key.fileobj)
                elif isinstance(key.fileobj, socket.socket):
                    self._read_signals(key.fileobj)
            self._reap()
            self._enforce()
            now = time.monotonic()
            if self.pending or self.clients:
                idle_since = now
            elif self.listening and now - idle_since > IDLE_SECONDS:
                self._retire()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            if _peer(connection) not in (None, os.getuid()):
                connection.close()
                continue
            connection.setblocking(False)
            self.pending[connection] = Request()
            self.selector.register(connection, self.read)

    def _read_request(self, connection: socket.socket) -> None:
        arriving = self.pending[connection]
        try:
            complete = arriving.read(connection)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ValueError):
            complete = None
        if complete is False:
            return
        del self.pending[connection]
        if complete is None or not self._fork(arriving, connection):
            self.selector.unregister(connection)
            connection.close()
        arriving.close()

    def _fork(self, arriving: Request, connection: socket.socket) -> bool:
        try:
            child = os.fork()
        except OSError:
            return False  # the client runs it in its own process
        if child == 0:
            try:
                self._forget_everything()
                connection.close()
                run_child(arriving)
            finally:
                os._exit(1)
        self.clients[child] = connection
        with contextlib.suppress(OSError):
            connection.send(_STATUS.pack(b"A", child))
        return True

    def _forget_everything(self) -> None:
        """In the child: close what belongs to the server and its other clients."""
        signal.set_wakeup_fd(-1)
        self.selector.close()
        for connection in [self.listener, *self.pending, *self.clients.values()]:
            if connection is not None:
                connection.close()
        for request in self.pending.values():
            request.close()
        os.close(self.wakeup)
        os.close(self.waker)

    def _read_signals(self, connection: socket.socket) -> None:
        child = next((child for child, client in self.clients.items() if client is connection), None)
        try:
            numbers = connection.recv(64)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            numbers = b""
        if child is None or not numbers:
            self.selector.unregister(connection)
            connection.close()
            if child is not None:
                self.clients[child] = None
                self.deadlines[child] = time.monotonic() + GRACE_SECONDS
                self._kill(child, signal.SIGTERM)
            return
        for number in numbers:
            if number in FORWARDED:
                self._kill(child, number)

    def _kill(self, child: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # not reaped yet, so the number is still the child's
            os.kill(child, number)

    def _reap(self) -> None:
        for child in list(self.clients):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            code = os.waitstatus_to_exitcode(status)
            connection = self.clients.pop(child)
            self.deadlines.pop(child, None)
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.send(_STATUS.pack(b"E", code if code >= 0 else 128 - code))
                self.selector.unregister(connection)
                connection.close()

    def _enforce(self) -> None:
        now = time.monotonic()
        for child, deadline in self.deadlines.items():
            if now > deadline:
                self._kill(child, signal.SIGKILL)

    def _retire(self) -> None:
        """Stop listening unless somebody is starting up; requests that came in meanwhile are still served."""
        with open(f"{self.path}.lock", "a") as lock:
            try:
                _lock(lock.fileno(), wait=False)
            except OSError:
                return
            for suffix in ("", ".log"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path + suffix)
        self._accept()
        self.selector.unregister(self.listener)
        self.listener.close()
        self.listening = False


class Request:
    """A request as it arrives: three descriptors with the header, then the message as JSON."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.size = -1
        self.data = bytearray()

    def read(self, connection: socket.socket) -> bool | None:
        """Read what there is: ``True`` when the request is complete, ``None`` when it cannot become so."""
        if self.size < 0:
            header, self.descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, 3)
            if len(header) != _HEADER.size or len(self.descriptors) != 3:
                return None
            self.size = _HEADER.unpack(header)[0]
            if self.size > REQUEST_BYTES:
                return None
        while len(self.data) < self.size:
            part = connection.recv(min(self.size - len(self.data), 1 << 20))
            if not part:
                return None
            self.data += part
        with contextlib.suppress(BlockingIOError):
            return None if connection.recv(1, socket.MSG_PEEK) == b"" else True
        return True

    def close(self) -> None:
        """Close the descriptors that came with the request."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


# The child.


def run_child(arriving: Request) -> NoReturn:
    """Become the client's process as far as a program can tell, run the command line, and end."""
    _die_with_parent()
    message = json.loads(arriving.data)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, descriptor in enumerate(arriving.descriptors):
        os.dup2(descriptor, standard)
    arriving.close()
    _take_over(message)
    code = 1
    try:
        os.chdir(message["cwd"])
        from sparcl.cli import main as run

        code = run(message["argv"])
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    os._exit(code)


def _take_over(message: dict[str, Any]) -> None:
    import resource

    sys.stdin, sys.stdout, sys.stderr = (
        open(  # noqa: SIM115 - open until the process ends
            number,
            "w" if number else "r",
            buffering=1 if number == 2 or os.isatty(number) else -1,
            encoding=encoding,
            errors=errors,
            closefd=False,
        )
        for number, (encoding, errors) in enumerate(message["streams"])
    )
    os.environ.clear()
    os.environ.update(message["environment"])
    os.environ.pop(PRELOAD, None)
    os.umask(message["umask"])
    for name, limit in message["limits"].items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), tuple(limit))
    with contextlib.suppress(OSError):
        if message["affinity"]:
            os.sched_setaffinity(0, message["affinity"])
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, message["nice"])
    sys.path[:] = message["path"]
    sys.path_importer_cache.clear()
    sys.argv = ["sparcl", *message["argv"]]


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the server dies (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent or parent == 1:
        os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    if os.environ.get(MODE) == "serve":
        serve(int(sys.argv[1]), sys.argv[2])
    else:
        sys.exit(main())
