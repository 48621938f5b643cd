"""Files of the project are found from any folder: the user's own first, else the shipped one."""

from pathlib import Path

import pytest

from loraudit.base.errors import UserError
from loraudit.base.shipped import ROOT, own_and_shipped, own_or_shipped, shipped
from loraudit.base.yaml_file import read_yaml
from loraudit.studies import paths
from loraudit.studies.cluster import read_cluster
from loraudit.studies.entry_files import load_model, load_task
from loraudit.studies.expand import load_configured
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import load_all, select
from loraudit.studies.training_code import training_code

TASK = """
words: {source: {folder: data}, text: [sentence], label: label, classes: [a, b],
        metrics: [accuracy], headline: accuracy}
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Give an empty folder as the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_in_the_repository_paths_stay_relative(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert shipped("Snakefile") == own_or_shipped("Snakefile") == Path("Snakefile")
    assert all(not path.is_absolute() for path in own_and_shipped("config/studies"))


def test_an_own_file_hides_the_shipped_one_of_its_name(elsewhere):
    assert own_or_shipped("config/tasks.yaml") == ROOT / "config/tasks.yaml"
    own = write("config/tasks.yaml", TASK)
    assert own_or_shipped("config/tasks.yaml") == own
    assert shipped("config/tasks.yaml") == ROOT / "config/tasks.yaml"
    assert shipped(elsewhere / "any") == elsewhere / "any"


def test_a_file_that_is_nowhere_is_called_by_its_own_name(elsewhere):
    assert own_or_shipped("config/nothing.yaml") == Path("config/nothing.yaml")


def test_the_files_of_a_folder_are_the_own_and_the_shipped_ones(elsewhere):
    names = {path.name for path in own_and_shipped("config/studies")}
    own = {write("config/studies/mine.yaml", "{}"), write("config/studies/quickstart.yaml", "{}")}
    found = own_and_shipped("config/studies")
    assert {path.name for path in found} == names | {"mine.yaml"}
    assert own < set(found) and len(found) == len(names) + 1


def test_every_reader_of_config_follows_the_rule(elsewhere):
    """Each reads shipped files in an empty folder, and the user's where there is one."""
    assert paths.configuration() == read_yaml(ROOT / "config/config.yaml")
    assert load_configured(paths.configuration()).name == "quickstart"
    assert {"sst2", "qqp"} <= set(read_cluster().tasks)
    assert load_model("minilm").name == "minilm"
    assert load_task("mrpc").headline
    references = set(load_all())

    write("config/config.yaml", "threads: 2\nstudy: mine\n")
    write("config/tasks.yaml", TASK)
    block = "grid: [{method: [lora, peft], task: words, model: minilm}]\nprotocol: hu2022\n"
    write("config/studies/mine.yaml", block)
    table = (ROOT / "config/reference/poster2025.yaml").read_text()
    write("config/reference/own2026.yaml", table)
    assert paths.configuration() == {
        **read_yaml(ROOT / "config/config.yaml"),
        **{"threads": 2, "study": "mine"},
    }
    study = load_configured(paths.configuration())
    assert {run.spec.task.name for run in study.runs} == {"words"}
    assert paths.settings("mine") == {**paths.configuration(), "glue": "hub", "models": "hub"}
    assert "mine" in paths.study_names() and "quickstart" in paths.study_names()
    assert load_task("mrpc").headline and load_task("words").classes == ("a", "b")
    assert "sst2" in read_cluster().tasks
    assert set(load_all()) == references | {"own2026"}
    assert select(("own2026.seeds",))[0].reference == "own2026"


def test_a_run_has_the_same_code_in_every_folder(elsewhere, monkeypatch):
    name = next(iter(METHODS))
    here = training_code.__wrapped__(name)
    monkeypatch.chdir(ROOT)
    assert here == training_code.__wrapped__(name)


def test_without_a_repository_the_message_says_where_to_run(elsewhere, monkeypatch):
    """A wheel has no config folder beside it."""
    monkeypatch.setattr("loraudit.base.shipped.ROOT", elsewhere / "site-packages")
    with pytest.raises(UserError, match="run this in the repository's folder"):
        paths.configuration()
