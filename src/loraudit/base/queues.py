"""Submit jobs to a queue of PBS Professional's or Grid Engine's kind, and tell how they are.

Snakemake's plugin `cluster-generic` (profiles/pbs, profiles/sge) calls scripts/cluster_job.py,
which calls this. Neither kind of queue warns a job in time that its limit is near, and neither
remembers for sure how a job ended. So a job's script runs inside one that sends SIGTERM before the
limit, so that a run saves a checkpoint, and that writes the exit status into a file.
"""

import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraudit.base.errors import UserError

Kind = Literal["pbs", "sge"]
EARLY = 90
"""Seconds before its limit at which a job is told to stop; ten seconds before it, it is killed."""

PATIENCE = 10.0
"""Seconds in which the exit status of a job that left the queue must be seen on this machine."""

UNKNOWN = re.compile(r"unknown job|does not exist|do not exist|job has finished", re.IGNORECASE)
"""What `qstat` says of a job that is no longer in the queue."""

SCRIPT = """\
#!/bin/bash
timeout --signal=TERM --kill-after={kill_after} {seconds} bash {script}
code=$?
status={folder}/${{PBS_JOBID:-$JOB_ID}}.exit
echo $code > "$status.part" && mv "$status.part" "$status"
exit $code
"""


@dataclass(frozen=True)
class Request:
    """What a job asks for; `extra` are further options of qsub."""

    name: str
    threads: int
    mem_mb: int
    minutes: int
    gpus: int = 0
    extra: str = ""


def submit(kind: Kind, request: Request, script: Path, folder: Path) -> str:
    """Submit a job and return its id.

    Args:
        kind: of the queue.
        request: what the job asks for.
        script: the job's script, which the node must see, too.
        folder: gets what the job prints, and its exit status as <id>.exit.

    Raises:
        UserError: there is no qsub, it refuses the job (the message is its own), or it gives no id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seconds = max(request.minutes * 60 - EARLY, request.minutes * 30)
    outer = script.with_name(f"{script.name}.outer")
    words = {"script": shlex.quote(str(script.resolve())), "seconds": seconds}
    words["folder"] = shlex.quote(str(folder.resolve()))
    outer.write_text(SCRIPT.format(kill_after=EARLY - 10, **words))
    done = _run([*qsub(kind, request, folder), str(outer)])
    if done.returncode:
        raise UserError(f"qsub refuses job {request.name!r}: {done.stderr.strip()}")
    if not done.stdout.strip():
        raise UserError(f"qsub gives no id of job {request.name!r}: it printed nothing")
    return done.stdout.strip().splitlines()[-1].strip()


def qsub(kind: Kind, request: Request, folder: Path) -> list[str]:
    """Return the words of the qsub command without the script.

    PBS gets one chunk on one node. Grid Engine gets slots of the parallel environment `smp`, and
    memory as `mem_free`: `h_vmem` would count the addresses that torch reserves and never uses.
    """
    hours, minutes = divmod(request.minutes, 60)
    limit = f"{hours}:{minutes:02}:00"
    words = ["qsub", "-V", "-N", request.name, "-j", "oe" if kind == "pbs" else "y"]
    words += ["-o", f"{folder}/"]
    if kind == "pbs":
        gpus = f":ngpus={request.gpus}" if request.gpus else ""
        chunk = f"select=1:ncpus={request.threads}:mem={request.mem_mb}mb{gpus}"
        words += ["-l", chunk, "-l", f"walltime={limit}"]
    else:
        words += ["-terse", "-cwd", "-S", "/bin/bash", "-l", f"h_rt={limit}"]
        words += ["-l", f"mem_free={request.mem_mb}M"]
        words += ["-pe", "smp", str(request.threads)] if request.threads > 1 else []
        words += ["-l", f"gpu={request.gpus}"] if request.gpus else []
    return words + shlex.split(request.extra)


def status(kind: Kind, job: str, folder: Path) -> str:
    """Return "success", "failed" or "running", the words that the plugin knows.

    A job without an exit status counts as failed only if the queue says that it does not know it,
    or that it can't start it: a queue that does not answer says nothing about its jobs.

    Raises:
        UserError: there is no qstat.
    """
    file = folder / f"{job}.exit"
    if not file.is_file() and _in_queue(kind, job):
        return "running"
    end = time.monotonic() + PATIENCE
    while not file.is_file() and time.monotonic() < end:
        time.sleep(0.5)  # a shared disk may show the file late
    ended_well = file.is_file() and file.read_text().strip() == "0"
    return "success" if ended_well else "failed"


def _in_queue(kind: Kind, job: str) -> bool:
    """Return whether the queue still has a job that may run, or does not answer.

    Grid Engine keeps a job that it can't start (state Eqw) for ever; its reason is printed.
    """
    done = _run(["qstat", *(["-f"] if kind == "pbs" else ["-j"]), job])
    if done.returncode:
        return not UNKNOWN.search(done.stdout + done.stderr)
    if kind == "sge" and (reason := re.search(r"^error reason.*", done.stdout, re.MULTILINE)):
        print(f"job {job}: {' '.join(reason[0].split())}", file=sys.stderr)
        return False
    return not re.search(r"job_state\s*=\s*[FC]\b", done.stdout)  # PBS may show ended jobs, too


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            f"no {words[0]} here: start Snakemake on a machine that submits to the queue"
        ) from None
