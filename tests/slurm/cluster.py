"""A real SLURM of two nodes on this machine, with accounting, in a folder of its own.

    python tests/slurm/cluster.py /tmp/slurm     # runs until Ctrl-C; prints what to export

As root on Debian, whose packages are installed where they are missing. Outside the folder only
/etc/slurm/slurm.conf is written, a link to the one in it, and only where there is none: programs
inside of jobs look there, because Snakemake's jobs drop SLURM_CONF. No system service is touched,
and every daemon started here is ended here. Each node has two made-up GPUs, to ask for.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db")
SYSTEM = Path("/etc/slurm/slurm.conf")
CPUS = os.cpu_count() or 1
GPUS = 2
PATIENCE = 60
"""Seconds to wait for a daemon."""

SLURM = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
GresTypes=gpu
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
NodeName=DEFAULT CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
NodeName=node1 NodeHostName=localhost NodeAddr=127.0.0.1 Port={node1}
NodeName=node2 NodeHostName=localhost NodeAddr=127.0.0.1 Port={node2}
PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE
PartitionName=pair Nodes=node1,node2 MaxTime=INFINITE
"""
ACCOUNTING = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=slurm
"""


def missing() -> str | None:
    """Return why SLURM cannot be started here, or None; packages are installed if need be."""
    if os.geteuid() != 0:
        return "not root"
    if SYSTEM.exists():
        return f"another SLURM is set up here ({SYSTEM})"
    if _programs():
        return None
    if not shutil.which("apt-get"):
        return "no SLURM, and no apt-get to install it"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = ["-y", "--no-install-recommends"]
    # Nothing may start as a service: a policy file says so while the packages are set up.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", *options, *PACKAGES]):
        subprocess.run(["apt-get", *command], env=environment, check=False, **quiet)
    return None if _programs() else f"apt-get could not install {', '.join(PACKAGES)}"


def _programs() -> bool:
    return all(shutil.which(name) for name in PROGRAMS)


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start SLURM in an empty folder; gives the environment in which its commands find it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = _write_files(folder)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    with ExitStack() as stack:
        SYSTEM.unlink(missing_ok=True)  # a link that a killed run has left leads nowhere
        SYSTEM.symlink_to(folder / "slurm.conf")
        stack.callback(SYSTEM.unlink)

        def start(*command: str) -> None:
            stack.enter_context(_daemon(folder, environment, *command))

        _start_munge(folder, start)
        _start_database(folder, values["database"], start)
        start("slurmdbd", "-D")
        _wait("slurmdbd", lambda: _open(values["accounting"]))
        _run(environment, "sacctmgr", "-i", "add", "cluster", "test")
        _run(environment, "sacctmgr", "-i", "add", "account", "lab", "cluster=test")
        _run(environment, "sacctmgr", "-i", "add", "user", "root", "account=lab")
        start("slurmctld", "-D", "-c")
        for name in ("node1", "node2"):
            start("slurmd", "-D", "-N", name)
        _wait("the node", lambda: "idle" in _run(environment, "sinfo", "-h", "-o", "%T"))
        yield environment


def _write_files(folder: Path) -> dict:
    """Write the configuration and what it names; returns the values filled in."""
    names = ("controller", "node1", "node2", "accounting", "database")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 * 9 // 10
    values = {"folder": folder, "cpus": CPUS, "memory": memory, "gpus": GPUS, **_ports(names)}
    (folder / "slurm.conf").write_text(SLURM.format(**values))
    (folder / "slurmdbd.conf").write_text(ACCOUNTING.format(**values))
    (folder / "slurmdbd.conf").chmod(0o600)
    for number in range(GPUS):
        os.mknod(folder / f"gpu{number}", 0o20666, os.makedev(1, 3))  # like /dev/null
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    for name in ("controller", "node1", "node2"):
        (folder / name).mkdir()
    return values


def _ports(names: tuple[str, ...]) -> dict[str, int]:
    """Return a free port for each name."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def _start_munge(folder: Path, start: Callable) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    options = [f"--{option}={folder / name}" for option, name in files.items()]
    start("munged", "--foreground", "--force", f"--key-file={key}", *options)
    _wait("munged", (folder / "munge.socket").exists)


def _start_database(folder: Path, port: int, start: Callable) -> None:
    data, options = folder / "database", ["--no-defaults", "--user=root"]
    _run(None, "mariadb-install-db", *options, f"--datadir={data}", "--skip-test-db",
         "--auth-root-authentication-method=normal")  # fmt: skip
    options += [f"--socket={folder}/database.socket", f"--pid-file={folder}/database.pid"]
    options += ["--bind-address=127.0.0.1", f"--port={port}"]
    start("mariadbd", *options, f"--datadir={data}")
    _wait("mariadbd", lambda: _open(port))


@contextmanager
def _daemon(folder: Path, environment: dict[str, str], *command: str) -> Iterator[None]:
    """Run a daemon in the foreground, its words in a file, until the block ends."""
    with open(folder / f"{command[0]}.out", "w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _run(environment: dict[str, str] | None, *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(what: str, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not _try(ready):
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come up in {PATIENCE} s")
        time.sleep(0.2)


def _try(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except RuntimeError:
        return False


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cluster(Path(sys.argv[1]).resolve()) as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()
