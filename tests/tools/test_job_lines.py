"""The lines that `snakemake` prints for the jobs of a study."""

import io
import json
import logging
from pathlib import Path

import pytest
from snakemake.logging import ColorizingTextHandler, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.tests import MockOutputSettings, TestLogHandlerBase

from loraudit.tools import job_lines as plugin


class TestPlugin(TestLogHandlerBase):
    """The interface's own tests."""

    __test__ = True

    def get_log_handler_cls(self):
        return plugin.JobLines

    def get_log_handler_settings(self):
        return None


class Said:
    """A handler, what it printed, and a clock that is moved by hand."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(plugin.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(
            plugin.Times.__dataclass_fields__["began"], "default_factory", lambda: 0
        )
        self.handler = plugin.JobLines(settings(), None)
        self.handler.stream = io.StringIO()
        self.handler.setFormatter(DefaultFormatter(None, True))

    def say(self, event=None, message="", level=logging.INFO, **fields) -> None:
        record = logging.LogRecord("snakemake", level, "", 0, message, (), None)
        vars(record).update({"event": event, **fields} if event else fields)
        self.handler.emit(record)

    def job(self, number: int, rule: str, label: str | None, seconds: float, output=()) -> None:
        """Start a job, let it take some seconds and finish it as number `number` of four."""
        self.say(LogEvent.JOB_INFO, jobid=number, rule_name=rule, rule_msg=label, output=output)
        self.now += seconds
        self.say(LogEvent.JOB_FINISHED, job_id=number)
        self.say(LogEvent.PROGRESS, done=number, total=4)

    def lines(self) -> list[str]:
        return self.handler.stream.getvalue().splitlines()


@pytest.fixture
def said(monkeypatch):
    return Said(monkeypatch)


def record(folder: Path, value: float | None) -> str:
    """Write what of a run's record the line reads."""
    epochs = {"best": {"scores": {"f1": value, "accuracy": 0.5}}, "last": {"scores": {"f1": 0.1}}}
    folder.mkdir(parents=True)
    path = folder / "record.json"
    path.write_text(json.dumps({"spec": {"task": {"headline": "f1"}}, "train": {"epochs": epochs}}))
    return str(path)


def test_a_study_from_its_first_to_its_last_line(said, tmp_path):
    said.say(message="Building DAG of jobs...")
    said.say(message="note: rank is an axis and alpha is fixed")
    said.say(LogEvent.RUN_INFO, "", stats={"train": 2, "report": 1, "all": 1, "total": 4})
    said.say(LogEvent.SHELLCMD, "python train.py")
    output = [record(tmp_path / "s0", 0.78)]
    said.job(1, "train", "train words tiny lora-r1-q seed 0", 60, output)
    said.job(2, "train", "train words tiny lora-r1-q seed 1", 120, [record(tmp_path / "s1", None)])
    said.job(3, "report", "write the report", 5, ["results/words/report.html"])
    said.job(4, "all", None, 0)
    assert said.lines() == [
        "note: rank is an axis and alpha is fixed",
        "3 jobs: 2 train, 1 report",
        "1/3 · train words tiny lora-r1-q seed 0 · 78.0 % f1 · 1 min 00 s · about 2 minutes left",
        "2/3 · train words tiny lora-r1-q seed 1 · score undefined · 2 min 00 s · "
        "about 2 minutes left",
        "3/3 · write the report · 5 s",
        "Report: results/words/report.html",
        "Next: loraudit verify words",
    ]


def test_a_reader_that_has_left_stops_nothing(said):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    said.handler.stream = Gone()
    said.job(1, "train", "train words", 1.0)


def test_time_left_is_the_work_left_over_the_jobs_that_ran_at_once():
    times = plugin.Times(0.0, plugin.Counter({"train": 8, "figure": 4}))
    assert times.seconds_left(1.0) is None
    for _ in range(4):  # two at once
        times.add("train", 10.0)
    times.add("figure", 2.0)
    assert times.seconds_left(21.0) == pytest.approx((4 * 10.0 + 3 * 2.0) / (42.0 / 21.0))


def test_a_failed_job_is_said_with_its_last_words(said, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("\n".join([*map(str, range(30)), "error: the loss is nan", "try less", ""]))
    said.say(LogEvent.JOB_INFO, jobid=1, rule_name="train", rule_msg="train words s0", output=[])
    said.say(LogEvent.JOB_ERROR, level=logging.ERROR, jobid=1, rule_name="train", log=[str(log)])
    said.say(message="RuleException:\nCalledProcessError in file x: ...", level=logging.ERROR)
    said.say(message="Exiting because a job execution failed.", level=logging.ERROR)
    assert said.lines() == [
        f"failed: train words s0 (log: {log})",
        "    error: the loss is nan",
        "    try less",
        "Exiting because a job execution failed.",
    ]
    log.write_text("\n".join(map(str, range(30))))  # killed, say
    assert plugin.last_words(["nowhere", str(log)]) == [*map(str, range(22, 30))]
    said.say(LogEvent.JOB_ERROR, level=logging.ERROR, jobid=2, rule_name="x", log=["nowhere"])
    assert said.lines()[-1] == "failed: x (log: nowhere)"


@pytest.fixture
def own(monkeypatch):
    """Give Snakemake's own handler on its logger, which has no other."""
    handler = ColorizingTextHandler(nocolor=True)
    handler.name = "DefaultStreamHandler"
    handler.addFilter(lambda record: True)
    monkeypatch.setattr(plugin.logger, "handlers", [handler])
    return handler


def settings(**changed) -> MockOutputSettings:
    made = MockOutputSettings()
    vars(made).update({"printshellcmds": False, **changed})
    return made


def test_the_lines_come_in_place_of_snakemakes_text_and_keep_what_is_quiet(own):
    plugin.install(settings())
    (handler,) = plugin.logger.handlers
    assert isinstance(handler, plugin.JobLines) and handler.filters == own.filters


@pytest.mark.parametrize("setting", ["dryrun", "verbose", "printshellcmds", "debug_dag"])
def test_what_asks_for_snakemakes_own_text_gets_it(own, setting):
    plugin.install(settings(**{setting: True}))
    assert plugin.logger.handlers == [own]


def test_a_logger_plugin_that_was_asked_for_is_left_alone(own):
    own.name = "another"
    plugin.install(settings())
    assert plugin.logger.handlers == [own]


def test_a_run_that_scores_its_last_epoch_alone_has_that_score(tmp_path):
    train = {"epochs": {"last": {"epoch": 3, "scores": {"accuracy": 0.81}}}}
    content = {"train": train, "spec": {"task": {"headline": "accuracy"}}}
    (tmp_path / "record.json").write_text(json.dumps(content))
    assert plugin.score_of([str(tmp_path / "record.json")]) == "81.0 % accuracy"


def test_a_record_that_is_not_one_only_lacks_its_score(tmp_path):
    (tmp_path / "record.json").write_text('{"spec": []}')
    assert plugin.score_of([str(tmp_path / "record.json")]) is None
    assert plugin.score_of(["tables/scores.md"]) is None
