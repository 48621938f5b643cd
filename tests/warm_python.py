"""Programs that start from a process which has already imported the large libraries.

A Python that imports torch, transformers and PEFT takes some seconds to start, and a study of tests
starts it for each job. Here a server imports the libraries once, and none of this package. For each
program it forks: the copy takes over the program's arguments, environment, folder and open files,
and runs it. `programs()` gives a folder to put first on PATH; its `python`, `snakemake` and
`loraudit` ask the server. `python -c` and `python -m` start as usual.

Killing a program's process kills it here too. What does not reach it are other signals, and those
to its group; and all programs have one seed of Python's hashes. Tests of these start real programs.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy

FORKS = runpy.run_path(Path(__file__).parents[1] / "src/loraudit/base/forks.py")
"""What Snakemake starts copies of a process with; read as a file, so as not to import loraudit."""

LIBRARIES = (
    "accelerate.commands.launch",
    "datasets",
    "evaluate",
    "matplotlib.pyplot",
    "pandas",
    "peft",
    "scipy.stats",
    "sklearn.metrics",
    "snakemake.cli",
    "snakemake.executors.local",
    "statsmodels.stats.multitest",
    "torch",
    "transformers.models.bert.modeling_bert",
)
CLIENT = """#!{python} -IS
import json, os, socket, sys
name, *words = os.path.basename(sys.argv[0]), *sys.argv[1:]
if name == "python":
    if not words or words[0].startswith("-"):
        os.execv({python!r}, [{python!r}, *words])
else:
    words.insert(0, os.path.join({bin!r}, name))
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"!"], [0, 1, 2])
asked = {{"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}}
server.sendall(json.dumps(asked).encode() + b"\\n")
status = server.recv(1)
sys.exit(status[0] if status else 1)
"""


@functools.cache
def programs() -> Path:
    """Start the server, and return a folder with `python`, `snakemake` and `loraudit`.

    The server ends with this process. Where it can't be (not on Linux), they are the real ones.
    """
    real = Path(sys.executable).parent
    if sys.platform != "linux":
        return real
    folder = Path(tempfile.mkdtemp(prefix="warm"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)  # a program that is asked for early waits here
    words = [sys.executable, __file__, str(listener.fileno()), str(folder)]
    environment = {k: v for k, v in os.environ.items() if k[:3] != "HF_" and k != "PYTHONPATH"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "hf")}
    server = subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
    )
    listener.close()
    atexit.register(server.communicate)  # closes the pipe, at which the server ends
    (folder / "bin").mkdir()
    for name in ("python", "snakemake", "loraudit"):
        at = {"python": sys.executable, "bin": str(real), "address": str(folder / "socket")}
        (folder / "bin" / name).write_text(CLIENT.format(**at))
        (folder / "bin" / name).chmod(0o755)
    return folder / "bin"


def serve(listener: socket.socket, folder: str) -> None:
    """Fork for each program that is asked for, until standard input is closed."""
    for library in LIBRARIES:
        importlib.import_module(library)
    assert "loraudit" not in sys.modules
    gc.freeze()  # a collection would copy all that is shared
    signal.signal(signal.SIGCHLD, FORKS["reap"])
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        asking, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            keep(asking)
        asking.close()
    shutil.rmtree(folder, ignore_errors=True)


def keep(asking: socket.socket) -> None:
    """Fork the program, wait until it ends, and say how; kill it if the one who asked is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(asking, 1, 3)
    asked = json.loads(asking.makefile().readline())
    child = os.fork()
    if child == 0:
        asking.close()
        become(asked, files)
    if asking in select.select([asking, os.pidfd_open(child)], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        asking.send(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def become(asked: dict, files: list[int]) -> None:
    """Be the program that was asked for, with its open files; does not return."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["words"]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(Path(sys.argv[0]).resolve().parent), *filter(None, given)]
    numpy.random.seed()  # as in each new process; torch's and Python's own need no such call
    FORKS["run_to_end"](sys.argv[0])


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
