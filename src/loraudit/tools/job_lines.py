"""What `snakemake` prints while a study runs: one line for each job that is done.

    17/46 · train lora r8 all s0 · 78.0 % accuracy · 51 s · about 6 min left

The workflow puts these lines in place of Snakemake's own text, unless a logger plugin is asked for.
A job that fails is said at once, with the end of its log, and all that failed are listed at the
end. A study that is complete ends with its report's path, the first sentence of the answer there,
and the next command. Snakemake's own text, which has every job's files and reasons, is still in
.snakemake/log, and comes on the screen for a dry run and with --printshellcmds, --verbose or
--debug-dag.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from logging import WARNING, LogRecord, StreamHandler
from pathlib import Path

from snakemake.logging import logger
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import OutputSettingsLoggerInterface

from loraudit.base.terminal import duration, roughly
from loraudit.report.answer_text import first_sentence
from loraudit.studies.cluster import TARGETS
from loraudit.studies.scores import unit_of
from loraudit.studies.spec import CHOICES
from loraudit.tools.status import error_line, tail

LAST_LINES = 8
"""Lines of a failed job's log that are shown."""

LISTED = 10
"""The most failed jobs that are listed at the end."""

CHATTER = (
    "Assuming unrestricted", "Building DAG", "Complete log", "Conda environments: ignored",
    "Elapsed time", "Execute ", "Exiting because a job execution failed", "Handing over",
    "RuleException:\nCalledProcessError", "Select jobs", "Singularity containers: ignored",
    "Using shell", "Will exit after finishing", "Workflow has",
    "WorkflowError:\nAt least one job did not complete", "host:",
)  # fmt: skip
"""How messages of Snakemake begin that tell a user of a study nothing. A command that failed is
said by its job, and the end of a study by the last lines."""

UNITS = {
    **{"_cores": "cores", "_nodes": "cluster jobs", "mem_mb": "MB of memory"},
    "gpu": "runs on GPUs",
}
"""What a resource of the workflow counts, in words."""

SILENT = (LogEvent.SHELLCMD, LogEvent.JOB_STARTED, 
          LogEvent.WORKFLOW_STARTED, LogEvent.RULEGRAPH, LogEvent.DEBUG_DAG)  # fmt: skip


@dataclass(frozen=True)
class About:
    """What the lines know of the study.

    `name` is its name and `switches` what to write after --config to get it. `alone` are the names
    of its only task and of its only model, which a job's line then need not repeat.
    """

    name: str = ""
    switches: str = ""
    alone: frozenset[str] = frozenset()


@dataclass
class Job:
    """A job that was started."""

    rule: str
    label: str
    output: list[str]
    started: float


@dataclass
class Times:
    """How long jobs took and how many are left, for an estimate of the time left.

    A job that is still to come is taken to last as long as the mean of its rule's finished jobs, or
    of all jobs where none of its rule has finished, and as many to run at once as did so far.
    """

    began: float
    left: Counter[str] = field(default_factory=Counter)
    took: dict[str, list[float]] = field(default_factory=dict)

    def add(self, rule: str, seconds: float) -> None:
        """Note that a job has finished."""
        self.left[rule] -= 1
        self.took.setdefault(rule, []).append(seconds)

    def seconds_left(self, now: float) -> float | None:
        """Return the estimate; None as long as no job has finished."""
        means = {rule: sum(took) / len(took) for rule, took in self.took.items()}
        total = sum(sum(took) for took in self.took.values())
        if not total or now <= self.began:
            return None
        overall = total / sum(len(took) for took in self.took.values())
        at_once = max(1.0, total / (now - self.began))
        work = sum(max(0, n) * means.get(rule, overall) for rule, n in self.left.items())
        return work / at_once


def score_of(outputs: list[str]) -> str | None:
    """Return the score of the run that a job trained, "78.0 % accuracy"; None for another job."""
    records = [Path(path) for path in outputs if path.endswith("/record.json")]
    if len(records) != 1:  # a pack's are too many for one line
        return None
    try:
        record = json.loads(records[0].read_text())
        choice = next(name for name in CHOICES if name in record["train"]["epochs"])
        metric = record["spec"]["task"]["headline"]
        value = record["train"]["epochs"][choice]["scores"][metric]
    except (OSError, ValueError, LookupError, StopIteration, TypeError):
        return None  # the line is a service: what is wrong with a record, its readers say
    if not isinstance(value, float):
        return "score undefined"
    return (
        f"{100 * value:.1f} % {metric}" if unit_of(metric) == "points" else f"{metric} {value:.3f}"
    )


def last_words(logs: list[str]) -> list[str]:
    """Return the first log's lines from its last "error:" on, or else its last lines."""
    for path in logs:
        try:
            lines = tail(Path(path))[-LAST_LINES:]
        except OSError:
            continue
        errors = [number for number, line in enumerate(lines) if line.startswith("error:")]
        if lines:
            return lines[errors[-1] :] if errors else lines
    return []


def short_label(message: str, wildcards: Mapping[str, str], alone: frozenset[str]) -> str:
    """Shorten a job's name: "train words tiny lora-r8-all seed 0" is "train lora r8 all s0".

    Args:
        message: the rule's text for the job.
        wildcards: of the job; only one of a variant of a study is shortened.
        alone: the names of a task or model that are left out.
    """
    if "variant" not in wildcards:
        return message
    verb = message.partition(" ")[0]
    names = [wildcards[name] for name in ("task", "model") if wildcards[name] not in alone]
    cell = re.sub(r"^(?:([a-z]+)-)?(r\d+)-([a-z+]+)(?:-|$)", r"\1 \2 \3 ", wildcards["variant"])
    seed = f"s{wildcards['seed']}" if "seed" in wildcards else ""
    return " ".join(" ".join([verb, *names, cell, seed]).split())


class JobLines(LogHandlerBase):
    """Prints a line for each job that is done or failed, and at the end the report's path."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    about = About()

    def __post_init__(self) -> None:
        """Begin without jobs."""
        self.stream = sys.stderr
        self.jobs: dict[int, Job] = {}
        self.ended: list[Job] = []
        self.failed: dict[str, str] = {}
        self.targets = 0
        self.times = Times(time.monotonic())
        self.report: str | None = None

    def emit(self, record: LogRecord) -> None:
        """Print what a record says, if it says something to a user."""
        event = getattr(record, "event", None)
        how = {
            LogEvent.RUN_INFO: self._begin,
            LogEvent.RESOURCES_INFO: self._resources,
            LogEvent.JOB_INFO: self._start,
            LogEvent.JOB_FINISHED: self._end,
            LogEvent.PROGRESS: self._progress,
            LogEvent.JOB_ERROR: self._failure,
            LogEvent.GROUP_ERROR: self._group_failure,
        }
        message = (record.getMessage() if record.msg else "").strip()
        if event in how:
            how[event](vars(record))
        elif event not in SILENT and not message.startswith(CHATTER):
            said = self.format(record) if record.levelno >= WARNING else message
            self._print(said.strip())
        elif message.startswith("Exiting because"):
            self._end_of_failures()

    def _print(self, *lines: str) -> None:
        with suppress(OSError):  # nobody reads any more, which is no reason to stop a study
            for line in filter(None, lines):
                print(line, file=self.stream, flush=True)

    def _begin(self, said: dict) -> None:
        counts = Counter(said.get("stats") or {})
        counts.pop("total", None)
        for target in TARGETS:
            self.targets += counts.pop(target, 0)
        self.times = Times(time.monotonic(), counts)
        kinds = ", ".join(f"{n} {rule}" for rule, n in counts.most_common())
        self._print(f"{counts.total()} jobs: {kinds}")

    def _resources(self, said: dict) -> None:
        """Say what the jobs may take together."""
        given = said.get("provided_resources") or {}
        limits = {name: getattr(limit, "value", limit) for name, limit in given.items()}
        parts = [
            f"{value} {UNITS.get(name, name)}"
            for name, value in limits.items()
            if value is not None and value != sys.maxsize
        ]
        if parts:
            self._print(f"at most at once: {', '.join(parts)}")

    def _start(self, said: dict) -> None:
        label = said.get("rule_msg") or said["rule_name"]
        label = short_label(label, said.get("wildcards") or {}, self.about.alone)
        outputs = [str(path) for path in said.get("output") or []]
        self.jobs[said["jobid"]] = Job(said["rule_name"], label, outputs, time.monotonic())

    def _end(self, said: dict) -> None:
        if job := self.jobs.pop(said["job_id"], None):
            self.times.add(job.rule, time.monotonic() - job.started)
            self.ended.append(job)

    def _progress(self, said: dict) -> None:
        now, (done, total) = time.monotonic(), (said["done"], said["total"])
        left = self.times.seconds_left(now)
        for job in (job for job in self.ended if job.rule not in TARGETS):
            self.report = next((p for p in job.output if p.endswith("/report.html")), self.report)
            parts = [f"{done}/{total - self.targets}", job.label, score_of(job.output)]
            parts += [duration(now - job.started)]
            parts += [f"about {roughly(left)} left" if left else None]
            self._print(" · ".join(part for part in parts if part))
        self.ended = []
        if done == total:
            self._print(f"Done in {duration(now - self.times.began)}.")
        if done == total and self.report:
            study = Path(self.report).parent.name
            self._print(f"Report: {self.report}", first_sentence(Path(self.report)))
            self._print(f"Next: loraudit verify {study}")

    def _failure(self, said: dict) -> None:
        job = self.jobs.pop(said["jobid"], None)
        label = job.label if job else said["rule_name"]
        logs = [str(path) for path in said.get("log") or []]
        words, cause = last_words(logs), said.get("rule_msg") or ""  # the cause is a cluster's
        last = words[-1] if words else "no word in its log"
        self.failed[label] = error_line(words) or cause or last
        lines = [*words, cause] if cause else words
        self._print(f"failed: {label}{_where(logs)}", *(f"    {line}" for line in lines))

    def _group_failure(self, said: dict) -> None:
        """Name the log of a cluster's job that ran several; each of them is said to fail, too."""
        if logs := [str(path) for path in said.get("aux_logs") or []]:
            self._print(f"failed: a cluster's job of several{_where(logs)}")

    def _end_of_failures(self) -> None:
        """List what failed, since its lines may be far above, and say what to do next."""
        took = duration(time.monotonic() - self.times.began)
        count = f"{len(self.failed)} job{'s' * (len(self.failed) != 1)} failed"
        listed = [*self.failed.items()][:LISTED]
        self._print(f"{count}, and what needs them was not made. All that could run took {took}:")
        self._print(*(f"    {label}: {_cut(words)}" for label, words in listed))
        if more := len(self.failed) - len(listed):
            self._print(f"    and {more} more")
        self._print(
            "Next: mend what the errors name and give the same command again; what is done is kept."
        )
        if self.about.name:
            self._print(
                f"      loraudit status {self.about.name}",
                f"      snakemake --cores 1 partial --config {self.about.switches}",
            )


def _where(logs: list[str]) -> str:
    """Name the logs of a job: the rule's, then the cluster's if it has one."""
    return f" (log: {', '.join(logs)})" if logs else ""


def _cut(words: str, most: int = 160) -> str:
    return words if len(words) <= most else f"{words[: most - 3]}..."


def install(settings: OutputSettingsLoggerInterface, about: About) -> None:
    """Print lines in place of Snakemake's own text; its choice of what is quiet stays.

    Nothing changes where Snakemake's text is asked for, or a logger plugin prints.
    """
    if settings.dryrun or settings.verbose or settings.printshellcmds or settings.debug_dag:
        return
    for own in list(logger.handlers):
        if isinstance(own, StreamHandler) and own.name == "DefaultStreamHandler":
            lines = JobLines(settings, None)
            lines.about = about
            lines.setFormatter(own.formatter)
            for quiet in own.filters:
                lines.addFilter(quiet)
            logger.removeHandler(own)
            logger.addHandler(lines)
