"""The wizards: an entry is tried before it is written, and nothing else in the table changes."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification
from typer.testing import CliRunner

from loraudit.base.errors import UserError
from loraudit.studies.entry_files import load_model, load_task
from loraudit.tools import cli, wizard
from tiny import save_tiny_model

TABLE = """# All of it.
families:
  bert: {head: [classifier]}  # the usual

models: # one each
  a: {family: bert}
  b:
    family: bert # last
"""
TASKS, MODELS = Path("config/tasks.yaml"), Path("config/models.yaml")


def call(*arguments, code: int = 0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.mark.parametrize("tail", ["", "\n# The end.\n", "\nlater: {x: 1}\n"])
@pytest.mark.parametrize("cut", ["\n", ""])
def test_an_entry_goes_to_the_end_of_its_block(tail, cut):
    text = TABLE.removesuffix("\n") + (tail or cut)
    made = wizard.insert(text, "models", "c", {"family": "bert", "head": ["x"]})
    assert [line for line in made.splitlines() if line in text.splitlines()] == text.splitlines()
    assert yaml.safe_load(made)["models"]["c"] == {"family": "bert", "head": ["x"]}


@pytest.mark.parametrize("empty", ["", " null", " ~", " {}", " []", " {\n}"])
@pytest.mark.parametrize("comment", ["", "  # mine"])
@pytest.mark.parametrize("tail", ["", "\n", "\n# The end.\nlater: {x: 1}\n"])
def test_an_empty_block_counts_as_missing(empty, comment, tail):
    text = f"# All.\nfirst: {{y: 1}}\nmodels:{empty}{comment}{tail}"
    made = wizard.insert(text, "models", "c", {"family": "bert"})
    before = yaml.safe_load(text)
    assert yaml.safe_load(made) == {**before, "models": {"c": {"family": "bert"}}}
    assert made.startswith("# All.\nfirst: {y: 1}\nmodels:") and made.count("#") == text.count("#")


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("{models: {a: {x: 1}}, y: 2}\n", "models"),
        ("{models: {}, y: 2}\n", "models"),
        ("{y: 2}\n", None),
        ("y: 2\n...\n", None),
        ("models: [a]\n", "models"),
        ("models: text\n", "models"),
        ("- models\n", "models"),
        ("y: [\n", "models"),
    ],
)
def test_a_text_without_a_place_for_an_entry_is_refused(text, block):
    with pytest.raises(UserError, match="'c' can't be put into this file"):
        wizard.insert(text, block, "c", {"x": 1})


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text())),
    )
)
def test_any_values_are_read_back_as_they_were(fields):
    for text, block in ((TABLE, "models"), ("x: {y: 1} # z\n", None)):
        made = yaml.safe_load(wizard.insert(text, block, "new", fields))
        assert (made[block] if block else made)["new"] == fields


@pytest.mark.parametrize(("name", "reason"), [("a", "taken"), ("A b", "legal"), ("../x", "legal")])
def test_names_that_do_not_fit_are_refused(name, reason):
    with pytest.raises(UserError, match=reason):
        wizard.insert(TABLE, "models", name, {})


@pytest.mark.parametrize(
    ("given_source", "reason"),
    [
        ({}, "give one of"),
        ({"wheel": "a==1", "folder": "x"}, "got 2"),
        ({"wheel": "a==1", "path": "x"}, "--wheel needs --sha256"),
        ({"hub": "a/b"}, "--hub needs --revision"),
        ({"folder": "x", "revision": "1"}, "--revision does not go with --folder"),
    ],
)
def test_a_source_is_one_of_three(given_source, reason):
    with pytest.raises(UserError, match=reason):
        wizard.source(**{"wheel": None, "folder": None, "hub": None, **given_source})


WORDS = ["add-task", "--name", "new", "--folder", "hub", "--config", "sst2"]
LABELS = ["--text", "sentence", "--label", "label", "--classes", "bad,good"]


def test_a_task_is_tried_and_written(project):
    before = TASKS.read_text()
    shown = call(*WORDS, *LABELS, "--metrics", "accuracy,f1")
    assert "256 rows" in shown and "tokens with tiny" in shown
    assert TASKS.read_text().startswith(before)
    task = load_task("new", TASKS)
    assert task.classes == ("bad", "good") and task.headline == "accuracy"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--metrics", ""], "metrics: '': expected one or more names, by commas"),
        (["--metrics", "accuracy", "--text", ""], "expected names of columns, got an empty one"),
        (["--metrics", "accuracy", "--text", "sentence"], "the same column twice"),
        (["--metrics", "accuracy", "--classes", "no,no"], "classes: ['no', 'no']: the same name"),
    ],
)
def test_empty_and_doubled_names_are_refused(project, changed, said):
    before = TASKS.read_text()
    assert said in call(*WORDS, *LABELS, *changed, code=2)
    assert TASKS.read_text() == before


def test_a_dry_run_writes_nothing(project):
    before = TASKS.read_text()
    assert "nothing written" in call(*WORDS, *LABELS, "--dry-run")
    assert TASKS.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([*WORDS, "--text", "sentense", *LABELS[2:]], "'sentense' is not known; did you mean"),
        ([*WORDS, *LABELS[:4], "--classes", "a,b,c", "--metrics", "accurcy"], "metrics.0.*accurcy"),
        ([*WORDS, "--text", "sentence", "--label", "idx", "--classes", "a,b"], "out of range"),
        ([*WORDS, *LABELS, "--validation-split", "dev"], "dev"),
        ([*WORDS[:4], "nowhere", *LABELS], "no data folder nowhere"),
        (["add-task", "--name", "words", *WORDS[3:], *LABELS], "'words' is taken"),
        (WORDS, "--text is missing"),
        ([*WORDS, "--text", "sentence", "--rating", "x,1"], "expected COLUMN,NEUTRAL_BELOW"),
    ],
)
def test_a_task_that_fails_is_not_written(project, arguments, reason):
    before = TASKS.read_text()
    misuse = reason.startswith(("--text", "expected COLUMN"))
    error = call(*arguments, code=2 if misuse else 1)
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(reason, error)
    assert TASKS.read_text() == before


def test_what_is_odd_about_the_rows_is_said(project):
    """Validation rows that are in train, and a class that training never sees."""
    shutil.copytree("hub", "odd")
    parts = {path.name.partition("-")[0]: path for path in Path("odd/sst2").glob("*.parquet")}
    table = pd.read_parquet(parts["train"])
    table.assign(label=1).to_parquet(parts["train"])
    table[:50].to_parquet(parts["validation"])
    arguments = ["add-task", "--name", "new", "--folder", "odd", "--config", "sst2", *LABELS]
    shown = " ".join(call(*arguments, "--metrics", "accuracy").replace("│", " ").split())
    assert "train: class 'bad' has no row: it can't be learnt" in shown
    assert "validation: 50 of 50 rows (100.0 %) are also in train" in shown
    assert "always answering 'good' is right" in shown


def test_metrics_must_fit_the_labels(project):
    """F1 is of two classes."""
    shutil.copytree("hub", "three")
    for path in Path("three/sst2").glob("*.parquet"):
        table = pd.read_parquet(path)
        table["label"] = range(len(table))
        table["label"] %= 3
        table.to_parquet(path)
    arguments = ["add-task", "--name", "new", "--folder", "three", "--config", "sst2", *LABELS[:4]]
    three = [*arguments, "--classes", "a,b,c"]
    assert "'f1' is of two classes, and the task has 3 classes" in call(
        *three, "--metrics", "f1", code=1
    )
    call(*three, "--metrics", "accuracy")


def test_a_model_is_tried_and_written(project):
    before = MODELS.read_text()
    shown = call("add-model", "--name", "mine", "--folder", "tiny-model")
    for matrix in ("q", "k", "v", "o", "up", "down"):
        assert f"│ {matrix} " in shown
    assert "logits (2, 2)" in shown
    assert set(before.splitlines()) < set(MODELS.read_text().splitlines())
    assert load_model("mine", MODELS).modules == load_model("minilm", MODELS).modules
    added = load_model("mine", MODELS)
    assert added.max_tokens == 66
    assert added.pretrained_pooler and added.head == ("classifier",)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("models: [a]", r"models\.yaml: models: \['a'\]: expected keys and values"),
        ("models: {a: 1}", r"models\.yaml: models\.a: 1: expected keys and values"),
        ("families: text", r"models\.yaml: families: 'text': expected keys and values"),
        ("families: {bert: null}", r"models\.yaml: families\.bert: None: expected"),
    ],
)
def test_an_own_table_of_models_that_holds_none_is_refused(
    finished, tmp_path, monkeypatch, group, reason
):
    monkeypatch.chdir(tmp_path)
    MODELS.parent.mkdir()
    MODELS.write_text(f"{group}\n")
    error = call("add-model", "--name", "mine", "--folder", finished / "tiny-model", code=1)
    assert re.search(reason, error) and error.count("\n") == 1
    assert MODELS.read_text() == f"{group}\n"


@pytest.mark.parametrize("empty", ["models:", "models: {}", "models: []"])
def test_an_empty_own_table_hides_no_shipped_name(finished, tmp_path, monkeypatch, empty):
    monkeypatch.chdir(tmp_path)
    MODELS.parent.mkdir()
    MODELS.write_text(f"{empty}\n")
    add = ["add-model", "--folder", finished / "tiny-model", "--name"]
    assert "'minilm' is taken" in call(*add, "minilm", code=1)
    call(*add, "mine")
    assert set(yaml.safe_load(MODELS.read_text())["models"]) == {"mine"}


def test_a_pooler_that_was_never_trained_is_noticed(project):
    state = load_file("tiny-model/model.safetensors")
    state["bert.pooler.dense.bias"].zero_()
    save_file(state, "tiny-model/model.safetensors", metadata={"format": "pt"})
    call("add-model", "--name", "mine", "--folder", "tiny-model")
    assert load_model("mine", MODELS).head == ("bert.pooler", "classifier")


def test_a_model_of_no_family_gets_a_proposal_or_takes_modules(project):
    families = yaml.safe_load(MODELS.read_text())
    known = families["families"].pop("distilbert")
    families["models"].pop("distilbert-base")
    MODELS.write_text(yaml.safe_dump(families))
    folder = Path("other")
    save_tiny_model(folder)
    shape = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 64}
    model = DistilBertForSequenceClassification(DistilBertConfig(pad_token_id=0, **shape))
    model.save_pretrained(folder)
    shown = call("add-model", "--name", "proposed", "--folder", folder)
    assert "none is for 'distilbert'" in shown and "PEFT's differ by" in shown
    made = load_model("proposed", MODELS)
    assert {k: m.removeprefix("distilbert.") for k, m in made.modules.items()} == known["modules"]
    assert list(made.head) == known["head"]
    given_modules = ["--module", "q=transformer.layer.*.attention.q_lin", "--head", "classifier"]
    wrong = [given_modules[0], "q=transformer.layer.*.q", *given_modules[2:]]
    start = ["add-model", "--name", "mine", "--folder", folder]
    assert "q" in call(*start, *wrong, code=1)
    assert "2 layers, 16 x 16" in call(*start, *given_modules)


SPELLED = ["--folder", "tiny-model", "--head", "classifier", "--module"]
QUERY = "q=encoder.layer.*.attention.self.query"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--folder", "nowhere"], "no model folder"),
        (["--folder", "hub"], "has no config.json"),
        (["--folder", "tiny-model", "--family", "brt"], "'brt' is not known; did you mean 'bert'"),
        (["--folder", "tiny-model", "--family", "distilbert"], "no linear layer|no module|head"),
        (["--folder", "tiny-model", "--output", "nose"], "no module 'nose'"),
        ([*SPELLED, "q=bert.encoder.layer.0.attention.self.query"], r"one part .* has to be \*"),
        (
            [*SPELLED, "q=encoder.layer.*.output.dense", "--module", "v=layer.*.output.dense"],
            "both",
        ),
        (
            [*SPELLED[:3], "bert.pooler", *SPELLED[4:], QUERY],
            "pooler', does not.*legal: classifier",
        ),
        ([*SPELLED[:3], "bert.encoder", "--head", *SPELLED[3:], QUERY], "which lies in the head"),
    ],
)
def test_a_model_that_fails_is_not_written(project, arguments, reason):
    before = MODELS.read_text()
    error = call("add-model", "--name", "mine", *arguments, code=1)
    assert re.search(reason, error)
    assert MODELS.read_text() == before


def test_a_terminal_is_asked(monkeypatch):
    monkeypatch.setattr(cli.sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(cli.typer, "prompt", lambda question, default: f"{question}? {default}")
    assert cli._asked(None, "name", "Name", "x") == "Name? x"
    assert cli._asked("given", "name", "Name") == "given"


def test_in_another_folder_the_own_table_gets_the_entry_alone(finished, tmp_path, monkeypatch):
    """The shipped entries stay, and their names stay taken."""
    monkeypatch.chdir(tmp_path)
    data, model = str(finished / "hub"), str(finished / "tiny-model")
    call(*WORDS[:3], "--folder", data, *WORDS[5:], *LABELS, "--metrics", "accuracy")
    call("add-model", "--name", "mine", "--folder", model)
    assert set(yaml.safe_load(TASKS.read_text())) == {"new"}
    assert set(yaml.safe_load(MODELS.read_text())["models"]) == {"mine"}
    assert load_task("new").classes == ("bad", "good") and load_task("mrpc").headline
    assert load_model("mine").modules == load_model("minilm").modules
    taken = call("add-model", "--name", "minilm", "--folder", model, code=1)
    assert "'minilm' is taken" in taken
