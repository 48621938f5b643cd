"""What the lists of models and tasks know beforehand shows where model and task, or tasks, meet."""

import pytest
import yaml

from loraudit.base.errors import UserError
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.entry_files import listed_model, listed_task, load_model, load_task
from loraudit.studies.expand import load_study

HEAD = {"question": "Q?", "defaults": {"model": "minilm", "epochs": 1, "learning_rate": 1e-3}}


def load(folder, tasks: list[str], **fields):
    path = folder / "x.yaml"
    grid = [{"method": "lora", "rank": 1, "targets": "q", "task": tasks, **fields}]
    path.write_text(yaml.safe_dump({**HEAD, "grid": grid}))
    return load_study(path)


def test_the_shipped_files_name_tasks_that_there_are():
    tasks, models = read_yaml("config/tasks.yaml"), read_yaml("config/models.yaml")["models"]
    named = {task for model in models for task in listed_model(model).trained_on}
    named |= {other for task in tasks for other in listed_task(task).shares_texts_with}
    assert named <= set(tasks)
    for embedded in ("minilm", "mpnet-base"):  # tuned on AllNLI and on Quora's duplicate questions
        assert {"mnli", "qqp"} <= set(listed_model(embedded).trained_on)


def test_a_run_does_not_hold_what_is_known():
    """To learn of a contamination retrains nothing."""
    assert "trained_on" not in load_model("minilm").model_dump()
    assert "shares_texts_with" not in load_task("snippets").model_dump()


def test_a_contaminated_task_is_said_where_it_meets_the_model(tmp_path):
    study = load(tmp_path, ["mnli", "mrpc", "qqp"])
    assert [(known.model, known.task) for known in study.contaminations] == [
        ("minilm", "mnli"),
        ("minilm", "qqp"),
    ]
    assert "minilm was trained on data of mnli before (277,230" in study.cautions()[0]
    assert load(tmp_path, ["mnli"], model="bert-base").cautions() == []


@pytest.mark.parametrize("tasks", [["snippets", "sst2"], ["sst2", "mrpc", "snippets"]])
def test_tasks_of_the_same_texts_are_said_whichever_entry_says_so(tmp_path, tasks):
    (said,) = load(tmp_path, tasks).cautions()
    assert "texts in common (76 % of the snippets" in said and "is no confirmation" in said


def test_a_warm_start_between_them_is_refused(tmp_path):
    start = {"task": "snippets", "tensors": "adapter"}
    path = tmp_path / "x.yaml"
    grid = [{"method": "lora", "rank": 1, "targets": "q", "task": ["snippets", "sst2", "mrpc"]}]
    for task, refused in (("mrpc", False), ("sst2", True)):
        study = {**HEAD, "per_task": {task: {"warm_start": start}}, "grid": grid}
        path.write_text(yaml.safe_dump(study))
        if refused:
            with pytest.raises(UserError, match=r"'sst2' can't start from 'snippets': .*\(76 %"):
                load_study(path)
        else:
            assert len(load_study(path).runs) == 3


def test_an_unknown_key_of_an_entry_is_still_refused(tmp_path):
    entry = {**read_yaml("config/tasks.yaml")["snippets"], "shares_text_with": {}}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"mine": entry}))
    with pytest.raises(UserError, match="did you mean 'shares_texts_with'"):
        load_task("mine", tmp_path / "tasks.yaml")
