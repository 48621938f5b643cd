"""What `snakemake` prints while a study runs: one line for each job that is done.

    17/46 · train snippets minilm lora-r8-all seed 0 · 78.0 % accuracy · 51 s · about 6 minutes left

The workflow puts these lines in place of Snakemake's own text, unless a logger plugin is asked for.
A job that fails is said at once, with the end of its log. Snakemake's own text, which has every
job's files and reasons, is still in .snakemake/log, and comes on the screen for a dry run and with
--printshellcmds, --verbose or --debug-dag.
"""

import json
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from logging import WARNING, LogRecord, StreamHandler
from pathlib import Path

from humanize import naturaldelta
from snakemake.logging import logger
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import OutputSettingsLoggerInterface

from loraudit.base.terminal import duration
from loraudit.studies.spec import CHOICES
from loraudit.tools.status import tail

LAST_LINES = 8
"""Lines of a failed job's log that are shown."""

CHATTER = (
    "Assuming unrestricted", "Building DAG", "Complete log", "Conda environments: ignored",
    "Execute ", "Handing over", "Provided cores", "RuleException:\nCalledProcessError",
    "Rules claiming", "Select jobs", "Singularity containers: ignored", "Using shell",
    "Will exit after finishing", "Workflow has", "host:",
)  # fmt: skip
"""How messages of Snakemake begin that tell a user of a study nothing. A command that failed is
said by its job."""

TARGETS = ("all", "default")
"""Rules that only name what is to be made."""

SILENT = (LogEvent.SHELLCMD, LogEvent.JOB_STARTED, 
          LogEvent.WORKFLOW_STARTED, LogEvent.RULEGRAPH, LogEvent.DEBUG_DAG)  # fmt: skip


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
    if not records:
        return None
    try:
        record = json.loads(records[0].read_text())
        choice = next(name for name in CHOICES if name in record["train"]["epochs"])
        metric = record["spec"]["task"]["headline"]
        value = record["train"]["epochs"][choice]["scores"][metric]
    except (OSError, ValueError, LookupError, StopIteration, TypeError):
        return None  # the line is a service: what is wrong with a record, its readers say
    return f"{100 * value:.1f} % {metric}" if isinstance(value, float) else "score undefined"


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


class JobLines(LogHandlerBase):
    """Prints a line for each job that is done or failed, and at the end the report's path."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        """Begin without jobs."""
        self.stream = sys.stderr
        self.jobs: dict[int, Job] = {}
        self.ended: list[Job] = []
        self.targets = 0
        self.times = Times(time.monotonic())
        self.report: str | None = None

    def emit(self, record: LogRecord) -> None:
        """Print what a record says, if it says something to a user."""
        event = getattr(record, "event", None)
        how = {
            LogEvent.RUN_INFO: self._begin,
            LogEvent.JOB_INFO: self._start,
            LogEvent.JOB_FINISHED: self._end,
            LogEvent.PROGRESS: self._progress,
            LogEvent.JOB_ERROR: self._failure,
        }
        if event in how:
            how[event](vars(record))
        elif event not in SILENT and not record.getMessage().strip().startswith(CHATTER):
            said = self.format(record) if record.levelno >= WARNING else record.getMessage()
            self._print(said.strip())

    def _print(self, line: str) -> None:
        if line:
            with suppress(OSError):  # nobody reads any more, which is no reason to stop a study
                print(line, file=self.stream, flush=True)

    def _begin(self, said: dict) -> None:
        counts = Counter(said.get("stats") or {})
        counts.pop("total", None)
        for target in TARGETS:
            self.targets += counts.pop(target, 0)
        self.times = Times(time.monotonic(), counts)
        kinds = ", ".join(f"{n} {rule}" for rule, n in counts.most_common())
        self._print(f"{counts.total()} jobs: {kinds}")

    def _start(self, said: dict) -> None:
        label = said.get("rule_msg") or said["rule_name"]
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
            parts += [f"about {naturaldelta(left)} left" if left else None]
            self._print(" · ".join(part for part in parts if part))
        self.ended = []
        if done == total and self.report:
            study = Path(self.report).parent.name
            self._print(f"Report: {self.report}\nNext: loraudit verify {study}")

    def _failure(self, said: dict) -> None:
        job = self.jobs.pop(said["jobid"], None)
        label = job.label if job else said["rule_name"]
        logs = [str(path) for path in said.get("log") or []]
        where = f" (log: {logs[0]})" if logs else ""
        self._print(f"failed: {label}{where}")
        for line in last_words(logs):
            self._print(f"    {line}")


def install(settings: OutputSettingsLoggerInterface) -> None:
    """Print lines in place of Snakemake's own text; its choice of what is quiet stays.

    Nothing changes where Snakemake's text is asked for, or a logger plugin prints.
    """
    if settings.dryrun or settings.verbose or settings.printshellcmds or settings.debug_dag:
        return
    for own in list(logger.handlers):
        if isinstance(own, StreamHandler) and own.name == "DefaultStreamHandler":
            lines = JobLines(settings, None)
            lines.setFormatter(own.formatter)
            for quiet in own.filters:
                lines.addFilter(quiet)
            logger.removeHandler(own)
            logger.addHandler(lines)
