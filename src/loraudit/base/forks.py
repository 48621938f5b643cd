"""Programs that start as copies of a process that has imported the large libraries already.

To import torch, transformers and PEFT takes seconds, and each run is a process of its own. So
Snakemake starts a server (`start_server`), which does nothing at first. A job asks it for a copy
(`run_as_copy`): the server imports the libraries that the job names, unless it has them, and forks.
The copy takes over the job's arguments, environment, folder and open files, runs the program, and
ends: it is as much a process of its own as any other. Signals to the job reach it, it is killed if
the job is, and its exit status is the job's.

The server imports nothing of this package, so that a program always runs the code that is on disk.
It ends with the process that started it; copies at work go on, as any job does.

A library may read an environment variable when it is imported, such as its number of threads. So a
job whose environment is not the server's, but for `MAY_DIFFER`, is not copied and starts as usual.
So does every job where processes can't be copied in this way, which is everywhere but on Linux.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

ADDRESS = "LORAUDIT_COPIES"
"""The variable with the server's address and, after a colon, its environment's digest."""

THREADS = (
    *("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
)
"""The variables that Snakemake sets to a rule's `threads` for each of its shell commands."""

OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""What the hub's library reads when it is imported: programs that are copies read fetched files."""

MAY_DIFFER = ("TMPDIR", "TMP", "TEMPDIR", "TEMP", "PWD", "OLDPWD", "SHLVL", "_")
"""Variables that no library reads when it is imported, beside all that begin with LORAUDIT_."""

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT)


def start_server(threads: int) -> None:
    """Start a server that ends with this process, and put its address into this environment.

    Args:
        threads: the `threads` of the rules whose programs are to be copies.
    """
    if sys.platform != "linux" or ADDRESS in os.environ or not _can_watch():
        return
    folder = tempfile.TemporaryDirectory(prefix="loraudit-copies-")
    atexit.register(folder.cleanup)
    address = Path(folder.name, "socket")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(address))
    except OSError:  # a path above some hundred characters, or a file system without sockets
        listener.close()
        return
    listener.listen(64)  # a job that asks while the server imports waits here
    environment = {**os.environ, **OFFLINE, **dict.fromkeys(THREADS, str(threads))}
    words = [sys.executable, "-P", __file__, str(listener.fileno())]
    server = subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.PIPE,  # closed when this process ends, at which the server ends
        pass_fds=[listener.fileno()],
        start_new_session=True,  # Ctrl-C is the jobs' to hear, and theirs to pass on
    )
    listener.close()
    atexit.register(server.communicate)
    os.environ[ADDRESS] = f"{address}:{_digest(environment)}"


def _can_watch() -> bool:
    """Tell whether this Python and kernel can wait for a process by a file (`pidfd_open`)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _digest(environment: Mapping[str, str]) -> str:
    """Return the digest of this Python and of what libraries may read of an environment."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in MAY_DIFFER and not name.startswith("LORAUDIT_")
    }
    python = sys.prefix, sys.version  # its program has several names
    return hashlib.sha256(repr((python, sorted(kept.items()))).encode()).hexdigest()


def run_as_copy(words: list[str], libraries: list[str]) -> int | None:
    """Run a program as a copy of the server; return its exit status, None if none was made.

    Args:
        words: the program's file and its arguments.
        libraries: the modules that it imports and that take long.
    """
    address, _, digest = os.environ.get(ADDRESS, "").rpartition(":")
    if not address or digest != _digest(os.environ):
        return None
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        socket.send_fds(server, [b"!"], [0, 1, 2])
    except OSError:  # the server has ended
        return None
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
    asked = {"words": words, "libraries": libraries, "folder": os.getcwd()}
    try:
        server.sendall(json.dumps({**asked, "environment": environment}).encode() + b"\n")
        # Until now a signal has ended the job, and so its copy.
        own = {n: signal.signal(n, functools.partial(_pass_on, server)) for n in PASSED_ON}
        started = server.recv(1)
    except OSError:
        started, own = b"", {}
    if not started:  # the server has ended before it made a copy
        for number, handler in own.items():
            signal.signal(number, handler)
        return None
    if status := server.recv(1):
        return status[0]
    print(
        "error: the program was ended from outside, often for lack of memory; the same command "
        "goes on from its last checkpoint",
        file=sys.stderr,
    )
    return 1


def _pass_on(server: socket.socket, number: int, _) -> None:
    """Send the copy a signal that the job got. Ctrl-Z stops both, and both go on by SIGCONT."""
    stops = number == signal.SIGTSTP
    with contextlib.suppress(OSError):  # the copy has just ended
        server.send(bytes([signal.SIGSTOP if stops else number]))
    if stops:
        os.kill(os.getpid(), signal.SIGSTOP)


def serve(listener: socket.socket) -> None:
    """Make copies, until standard input is closed."""
    signal.signal(signal.SIGCHLD, reap)
    # Python 3.12 and later warn where a process with threads is copied. Those here are of libraries
    # that wait for work and hold no lock.
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        asking, _ = listener.accept()
        with asking, contextlib.suppress(OSError, ValueError):  # this job starts as usual then
            _answer(listener, asking)


def _answer(listener: socket.socket, asking: socket.socket) -> None:
    """Make the copy that a job asks for."""
    _, files, _, _ = socket.recv_fds(asking, 1, 3)
    try:
        # Unbuffered: what follows the line are signals, which the keeper reads.
        line = asking.makefile("rb", buffering=0).readline()
        if line:
            asked = json.loads(line)
            _import(asked["libraries"])
            if os.fork() == 0:
                try:
                    listener.close()
                    _keep(asking, asked, files)
                finally:
                    os._exit(1)  # whatever happened: this process is no second server
    finally:
        for file in files:
            os.close(file)


def _import(libraries: list[str]) -> None:
    """Import what this process has not; a program that needs what can't be imported will say so."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # libraries may wait for children of their own
    for library in libraries:
        with contextlib.suppress(Exception):
            importlib.import_module(library)
    signal.signal(signal.SIGCHLD, reap)
    reap()
    gc.freeze()  # a collection in a copy would write to, and so copy, all that is shared


def reap(*_) -> None:
    """Take leave of keepers that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _keep(asking: socket.socket, asked: dict, files: list[int]) -> None:
    """Fork the program, pass on signals, kill it if the job is killed, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    asking.send(b"!")  # from here on the job does not start by itself
    child = os.fork()
    if child == 0:
        asking.close()
        _die_with_parent()
        _become(asked)
    end = os.pidfd_open(child)
    either: list[socket.socket | int] = [asking, end]
    while asking in select.select(either, [], [])[0]:
        received = asking.recv(1)
        os.kill(child, received[0] if received else signal.SIGKILL)
        if not received:
            break
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):  # the job was killed
        asking.send(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _die_with_parent() -> None:
    """Let the kernel kill this process if its keeper is killed, since no job would wait for it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of linux/prctl.h


def _become(asked: dict) -> NoReturn:
    """Be the program that was asked for; does not return."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # it may have been looked up under another TMPDIR
    sys.argv = asked["words"]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    if "numpy.random" in sys.modules:  # Python's own generator is seeded anew by itself
        sys.modules["numpy.random"].seed()
    run_to_end(sys.argv[0])


def run_to_end(program: str) -> NoReturn:
    """Run a program as a new Python would, and end this process with its exit status."""
    status = 0
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 120  # as Python does
    os._exit(status)  # to clear up all that was imported takes seconds


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
