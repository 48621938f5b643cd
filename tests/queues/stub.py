"""Commands of queues that record what is submitted and end jobs as told; no job of them runs.

    install(folder)   puts qsub, qstat, qdel, bsub, bjobs, bkill, badmin and lsclusters there

Beside them lies `told.json`: {part of a job's name or outputs: how it ends, one word per try}, with
ok (also after the last word), fails, limit (it ends as at its time limit), killed (it is gone and
leaves no exit status) and lasts (it stays in the queue until it is cancelled). A job that ends well
gets its outputs made.
"""

import fcntl
import json
import re
import sys
import textwrap
from pathlib import Path

COMMANDS = ("qsub", "qstat", "qdel", "bsub", "bjobs", "bkill", "badmin", "lsclusters")
RUN = "results/{study}/runs/{task}/{model}/{variant}/s{seed}/"
FILES = ("record.json", "spec.json", "history.csv", "predictions.parquet")


def install(folder: Path, study: str, told: dict[str, list[str]]) -> None:
    folder.mkdir()
    (folder / "told.json").write_text(json.dumps({"study": study, "told": told, "jobs": []}))
    for name in COMMANDS:
        here, state = str(Path(__file__).parent), str(folder / "told.json")
        program = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {here!r})\n"
        program += f"import stub\nstub.main({name!r}, {state!r})\n"
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)


def jobs(folder: Path) -> list[dict]:
    """Return what was submitted: each job's command, its name for people, and how it ended."""
    return json.loads((folder / "told.json").read_text())["jobs"]


def main(command: str, path: str) -> None:
    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several commands may be at work
        before = file.read()
        state = json.loads(before)
        code = run(command, state, Path(path).parent)
        if json.dumps(state) != before:
            file.seek(0)
            file.write(json.dumps(state))
            file.truncate()
    sys.exit(code)


def run(command: str, state: dict, folder: Path) -> int:
    """Do what a command does, and return its exit status."""
    words = sys.argv[1:]
    answers = {"qsub": qsub, "bsub": bsub, "qstat": qstat, "bjobs": bjobs}
    answers |= {"qdel": cancel, "bkill": cancel}
    if command in answers:
        return answers[command](state, words)
    print(LSF[command].format(folder=folder))
    return 0


def qsub(state: dict, words: list[str]) -> int:
    """Take a job of Snakemake's plugin cluster-generic, whose script says what it makes."""
    script = Path(words[-1].removesuffix(".outer"))
    properties = json.loads(re.search(r"^# properties = (.*)$", script.read_text(), re.M)[1])
    job = add(state, words, properties["output"])
    if job["end"] in ("ok", "fails", "limit"):
        folder = Path(words[words.index("-o") + 1])
        code = {"ok": 0, "fails": 1, "limit": 124}[job["end"]]
        (folder / f"{job['id']}.exit").write_text(f"{code}\n")
    print(job["id"])
    return 0


def bsub(state: dict, words: list[str]) -> int:
    """Take a job of Snakemake's plugin for LSF, whose name has its wildcards."""
    name = words[words.index("-J") + 1]
    wildcards = dict(re.findall(r"(\w+)=([^,]+?)(?=,|___\()", name))
    outputs = [RUN.format(study=state["study"], **wildcards) + file for file in FILES]
    job = add(state, words, outputs)
    print(f"Job <{job['id']}> is submitted to queue <normal>.")
    return 0


def add(state: dict, words: list[str], outputs: list[str]) -> dict:
    subject = " ".join(outputs)
    tries = [job for job in state["jobs"] if job["subject"] == subject]
    plan = next((plan for part, plan in state["told"].items() if part in subject), [])
    end = [*plan, *["ok"] * (len(tries) + 1)][len(tries)] if len(tries) < len(plan) else "ok"
    job = {"id": str(101 + len(state["jobs"])), "words": words, "subject": subject, "end": end}
    state["jobs"].append(job)
    if end == "ok":
        for output in outputs:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).touch()
    return job


def qstat(state: dict, words: list[str]) -> int:
    """Know the jobs that stay, and no others."""
    (job,) = [job for job in state["jobs"] if job["id"] == words[-1]]
    if job["end"] == "lasts":
        print("job_state = R")
        return 0
    print("qstat: Unknown Job Id" if "-f" in words else "Following jobs do not exist:")
    return 1


def bjobs(state: dict, words: list[str]) -> int:
    stats = {"ok": "DONE", "lasts": "RUN"}
    for job in state["jobs"]:
        print(job["id"], stats.get(job["end"], "EXIT"))
    return 0


def cancel(state: dict, words: list[str]) -> int:
    for job in state["jobs"]:
        if job["id"] in words:
            job["end"] = "cancelled"
    return 0


LSF = {
    "badmin": textwrap.dedent(
        """\
        MBD configuration at now
            LSB_SHAREDIR = {folder}
            LSF_CONFDIR = {folder}
            LSF_UNIT_FOR_LIMITS = MB"""
    ),
    "lsclusters": "CLUSTER_NAME STATUS\ntest ok",
}
