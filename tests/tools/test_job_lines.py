"""The lines that `snakemake` prints for the jobs of a study."""

import io
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.logging import ColorizingTextHandler, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.tests import MockOutputSettings, TestLogHandlerBase

from loraudit.base.terminal import roughly
from loraudit.tools import job_lines as plugin

PAGE = """<p>Not this.</p><div class="answer">
<p>LoRA reaches <b>0.5 points</b> below full
fine-tuning [-1.2, +0.3] (n = 5).<br> The twins agree.</p><p>B.</p></div>
<p>Nor this.</p>"""


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

    def job(self, number, rule: str, label: str | None, seconds, output=(), wildcards=()) -> None:
        """Start a job, let it take some seconds and finish it as number `number` of four."""
        job = {"rule_name": rule, "rule_msg": label, "output": output, "wildcards": wildcards}
        self.say(LogEvent.JOB_INFO, jobid=number, **job)
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
    report = tmp_path / "words/report.html"
    report.parent.mkdir()
    report.write_text(PAGE)
    said.handler.about = plugin.About("words", "study=words", frozenset({"words", "tiny"}))
    for seed, (seconds, score) in enumerate([(60, 0.78), (120, None)]):
        named = {"task": "words", "model": "tiny", "variant": "lora-r1-q", "seed": str(seed)}
        label, output = f"train words tiny lora-r1-q seed {seed}", tmp_path / f"s{seed}"
        said.job(seed + 1, "train", label, seconds, [record(output, score)], named)
    said.job(3, "report", "write the report", 5, [str(report)])
    said.job(4, "all", None, 0)
    assert said.lines() == [
        "note: rank is an axis and alpha is fixed",
        "3 jobs: 2 train, 1 report",
        "1/3 · train lora r1 q s0 · 78.0 % f1 · 1 min 00 s · about 2 min left",
        "2/3 · train lora r1 q s1 · score undefined · 2 min 00 s · about 2 min left",
        "3/3 · write the report · 5 s",
        "Done in 3 min 05 s.",
        f"Report: {report}",
        "LoRA reaches 0.5 points below full fine-tuning [-1.2, +0.3] (n = 5).",
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
        "1 job failed, and what needs them was not made. All that could run took 0 s:",
        "    train words s0: error: the loss is nan",
        "Next: mend what the errors name and give the same command again; what is done is kept.",
    ]
    log.write_text("\n".join(map(str, range(30))))  # killed, say
    assert plugin.last_words(["nowhere", str(log)]) == [*map(str, range(22, 30))]
    said.say(LogEvent.JOB_ERROR, level=logging.ERROR, jobid=2, rule_name="x", log=["nowhere"])
    assert said.lines()[-1] == "failed: x (log: nowhere)"


def test_a_job_that_a_cluster_ended_is_said_with_the_clusters_reason_and_log(said, tmp_path):
    """The rule's own log may have no word of it: a job without memory is killed."""
    job = {"jobid": 1, "rule_name": "train"}
    killed = "SLURM-job '8' failed, SLURM status is: 'OUT_OF_MEMORY'. Reason: Unknown."
    logs = [str(tmp_path / "train.log"), str(tmp_path / "slurm/8.log")]
    said.say(LogEvent.GROUP_ERROR, level=logging.ERROR, groupid="g", aux_logs=[logs[1]])
    said.say(LogEvent.JOB_ERROR, level=logging.ERROR, **job, rule_msg=killed, log=logs)
    said.say(message="Exiting because a job execution failed.", level=logging.ERROR)
    assert said.lines()[:3] == [
        f"failed: a cluster's job of several (log: {logs[1]})",
        f"failed: train (log: {logs[0]}, {logs[1]})",
        f"    {killed}",
    ]
    assert f"    train: {killed}" in said.lines()
    Path(logs[0]).write_text("error: the loss is nan\n")
    said.say(LogEvent.JOB_ERROR, level=logging.ERROR, **job, rule_msg=killed, log=logs)
    assert said.lines()[-2:] == ["    error: the loss is nan", f"    {killed}"]


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
    about = plugin.About("words")
    plugin.install(settings(), about)
    (handler,) = plugin.logger.handlers
    assert isinstance(handler, plugin.JobLines) and handler.filters == own.filters
    assert handler.about == about


@pytest.mark.parametrize("setting", ["dryrun", "verbose", "printshellcmds", "debug_dag"])
def test_what_asks_for_snakemakes_own_text_gets_it(own, setting):
    plugin.install(settings(**{setting: True}), plugin.About())
    assert plugin.logger.handlers == [own]


def test_a_logger_plugin_that_was_asked_for_is_left_alone(own):
    own.name = "another"
    plugin.install(settings(), plugin.About())
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


@pytest.mark.parametrize(
    ("variant", "shown"),
    [
        ("lora-r8-all", "lora r8 all"),
        ("peft-r16-q+v-tune-learning_rate2e-05", "peft r16 q+v tune-learning_rate2e-05"),
        ("full", "full"),
        ("head-cold-start", "head-cold-start"),
    ],
)
def test_a_label_names_the_cell_in_words_and_leaves_out_what_all_share(variant, shown):
    wildcards = {"task": "mrpc", "model": "tiny", "variant": variant, "seed": "3"}
    message = f"train mrpc tiny {variant} seed 3"
    assert plugin.short_label(message, wildcards, frozenset()) == f"train mrpc tiny {shown} s3"
    assert plugin.short_label(message, wildcards, frozenset({"tiny"})) == f"train mrpc {shown} s3"
    for own in ("fetch task mrpc", "write the report"):
        assert plugin.short_label(own, {"task": "mrpc"}, frozenset({"mrpc"})) == own
    checked = {"task": "mrpc", "model": "tiny", "variant": "r8-q+v"}
    message = "cross-check mrpc tiny r8-q+v"
    assert plugin.short_label(message, checked, frozenset({"mrpc"})) == "cross-check tiny r8 q+v"


def test_many_failures_are_listed_at_the_end_with_the_next_commands(said, monkeypatch):
    monkeypatch.setattr(plugin, "LISTED", 2)
    said.handler.about = plugin.About("words", "study=words task=mrpc")
    for number in range(4):
        said.say(LogEvent.JOB_INFO, jobid=number, rule_name="train", rule_msg=f"train {number}")
        said.say(LogEvent.JOB_ERROR, level=logging.ERROR, jobid=number, rule_name="train", log=[])
    said.now += 90
    said.say(message="Exiting because a job execution failed. Look above", level=logging.ERROR)
    error = "WorkflowError:\nAt least one job did not complete successfully."
    said.say(LogEvent.ERROR, message=error, level=logging.ERROR)
    assert said.lines()[4:] == [
        "4 jobs failed, and what needs them was not made. All that could run took 1 min 30 s:",
        "    train 0: no word in its log",
        "    train 1: no word in its log",
        "    and 2 more",
        "Next: mend what the errors name and give the same command again; what is done is kept.",
        "      loraudit status words",
        "      snakemake --cores 1 partial --config study=words task=mrpc",
    ]


def test_what_jobs_may_take_at_once_is_said_in_words(said):
    limits = {"_cores": 2, "_nodes": None, "mem_mb": SimpleNamespace(value=700), "gpu": 6}
    said.say(LogEvent.RESOURCES_INFO, provided_resources=limits)
    said.say(LogEvent.RESOURCES_INFO, cores=2)
    assert said.lines() == ["at most at once: 2 cores, 700 MB of memory, 6 runs on GPUs"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1, "5 s"), (42, "40 s"), (58, "1 min"), (370, "6 min"), (7_700, "2 h 10 min")],
)
def test_an_estimate_is_no_finer_than_it_is_known(seconds, shown):
    assert roughly(seconds) == shown
