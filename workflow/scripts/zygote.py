"""A process with the third-party libraries imported, from which the jobs of one run of the workflow are forked.

Importing torch takes longer than a small cell. This process is started by the main process of a run
(``session.py``) and ends with it; ``launch.py`` sends it a job over a Unix socket: arguments, folder, environment and
standard streams. The libraries are imported when the first job comes, in that job's environment; a job whose libraries
would be others, or read other variables, is not taken and runs in a process of its own. Neither ``sparcl`` nor a method
is ever imported here, so edited code is never stale; no parallel region is run and no device is touched, so that a
forked child is as good as a fresh process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

LIBRARIES = {
    "sparcl": "numpy torch torchvision fvcore.nn sklearn.datasets yaml safetensors.torch rich.progress",
    "analysis": "numpy pandas scipy.stats matplotlib.pyplot jinja2",
}
# Libraries read such variables when they are imported.
IMPORT_TIME = (
    "ATEN_", "BLIS_", "CUBLAS_", "CUDA_", "DNNL_", "GOMP_", "KMP_", "LD_", "MKL_", "MPL", "NUMEXPR_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "PYTHON", "PYTORCH_", "TORCH_",
)  # fmt: skip
GRACE_SECONDS = 15.0


def serve(listener: socket.socket) -> None:
    """Fork a child for each request, until standard input ends, which it does when Snakemake has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)  # SIGCHLD: children that have ended leave nothing behind
    environment = read_early(os.environ, ("PYTHON",))  # read already; the others are those of the first job
    loaded: set[str] = set()
    while 0 not in select.select([0, listener.fileno()], [], [])[0]:
        connection, _ = listener.accept()
        connection.settimeout(10.0)
        streams: list[int] = []
        try:
            size, streams, _, _ = socket.recv_fds(connection, 8, 3)
            request = json.loads(_receive(connection, int.from_bytes(size, "big")))
            own = read_early(request["environment"], IMPORT_TIME if loaded else ("PYTHON",))
            if request["python"] == sys.executable and own == environment and len(streams) == 3:
                if not loaded:
                    environment = read_early(request["environment"], IMPORT_TIME)
                    os.environ.clear()
                    os.environ.update(request["environment"])
                _preload(request["module"], loaded)
                if os.fork() == 0:
                    try:
                        listener.close()
                        _become(request, connection, streams)
                    finally:
                        os._exit(1)  # whatever happens: a child is no second zygote
        except (OSError, EOFError, ValueError, LookupError):
            pass  # whoever asked for it runs it in a process of its own
        for descriptor in streams:
            os.close(descriptor)
        connection.close()


def read_early(environment: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """Return the variables that Python or a library reads when it starts, by the beginning of their names."""
    return {key: value for key, value in environment.items() if key.startswith(names)}


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _preload(module: str, loaded: set[str]) -> None:
    """Import what a command of ``module`` uses; a library that is missing is left to the job that needs it."""
    if module in loaded:
        return
    loaded.add(module)
    with warnings.catch_warnings(action="ignore"):
        for library in LIBRARIES.get(module, "").split():
            with contextlib.suppress(ImportError):
                importlib.import_module(library)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # no pool of threads: they would not survive a fork
    gc.collect()
    gc.freeze()  # children share these pages in place of touching them at each collection


def _become(request: dict[str, Any], connection: socket.socket, streams: list[int]) -> NoReturn:
    """Run the job as ``python -m module arguments`` would, tell its exit status, and end."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: when the zygote dies
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if request["no_hangup"] else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, descriptor in enumerate(streams):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:] = [request["folder"], *sys.path[1:]]  # in place of this script's folder
    sys.path_importer_cache.clear()
    sys.argv = [request["module"], *request["arguments"]]
    connection.settimeout(None)
    connection.sendall(b"+")
    threading.Thread(target=_heed, args=(connection,), daemon=True).start()
    code: Any = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the launcher ends when it is told, which is no signal to stop
    connection.sendall(bytes([code % 256]))
    os._exit(code % 256)


def _heed(connection: socket.socket) -> None:
    """Pass on the signals that the launcher gets; when it is gone, stop: asked first, then forced."""
    with contextlib.suppress(OSError):
        while numbers := connection.recv(16):
            for number in numbers:
                os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    try:
        with socket.socket(fileno=int(sys.argv[1])) as listening:
            serve(listening)
    finally:
        shutil.rmtree(sys.argv[2], ignore_errors=True)
