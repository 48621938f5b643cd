"""Export of a run: PEFT's files with equal outputs, and a card that says how they were made."""

import json
import re
import shutil

import pandas as pd
import peft
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from loraudit.adapters import inject
from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint, read_json, write_json
from loraudit.report.model_card import export_run, model_card, plain, seed_scores, text
from loraudit.studies.entries import FolderSource
from loraudit.studies.record import read_record, write_record
from loraudit.studies.spec import RunSpec, digest
from loraudit.training.run import train
from tiny import changed, make_spec, make_task

pytestmark = pytest.mark.numerics

SPEC = make_spec(epochs=2, learning_rate=1e-2, rank=2)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(SPEC, tiny / "tokens", tiny / "model", out)
    return out


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def front_matter(card: str) -> dict:
    start, head, _ = card.split("---\n", 2)
    assert not start
    return yaml.safe_load(head)


def base_model(tiny):
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny / "model", num_labels=2
    )


def test_peft_and_we_give_the_runs_outputs(run, tiny, batch, tmp_path):
    export_run(run, tmp_path / "out")
    expected = inject.load(base_model(tiny), run / "adapter").eval()(**batch).logits
    assert not torch.allclose(expected, base_model(tiny).eval()(**batch).logits, atol=1e-3)
    theirs = peft.PeftModel.from_pretrained(base_model(tiny), tmp_path / "out").eval()
    ours = inject.load(base_model(tiny), tmp_path / "out").eval()
    assert torch.allclose(theirs(**batch).logits, expected, atol=1e-5)
    assert torch.equal(ours(**batch).logits, expected)  # both are loaded, into plain layers


def test_the_exported_adapter_gives_the_recorded_predictions(run, tiny, tmp_path):
    """The card's score of the best epoch is that of the folder beside it."""
    export_run(run, tmp_path / "out")
    model = peft.PeftModel.from_pretrained(base_model(tiny), tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "model")
    rows = pd.read_parquet(next((tiny / "hub" / "sst2").glob("validation-*")))
    inputs = tokenizer(list(rows.sentence), padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        right = model(**inputs).logits.argmax(1).numpy() == rows.label.to_numpy()
    best = read_record(run / "record.json").train.epochs["best"].scores["accuracy"]
    assert right.mean() == pytest.approx(best)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| accuracy | {right.mean():.4f} |" in card


def test_the_card_names_what_the_record_holds(run, tmp_path):
    record = export_run(run, tmp_path / "out", {"adapter": "mit", "data": "cc0-1.0"})
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(card) == {
        "base_model": "tiny",
        "library_name": "peft",
        "license": "mit",
        "pipeline_tag": "text-classification",
        "tags": ["lora", "loraudit", "tinytask"],
    }
    git = record.environment["git"]
    versions = record.environment["packages"]
    last = record.train.epochs["last"]
    for line in (
        f"validation n = {record.train.rows['validation']} rows",
        f"| best ({record.train.epochs['best'].epoch}) | f1 |",
        f"| last ({last.epoch}) | accuracy | {last.scores['accuracy']:.4f} |",
        "| learning rate | 0.01 |",
        "| targets | q+v |",
        "| seed | 0 |",
        f"| adapter parameters | {record.train.parameters['adapter']:,} |",
        f"| head parameters | {record.train.parameters['head']:,} |",
        f"| adapter folder, bytes | {record.train.bytes['adapter']:,} |",
        f"| loraudit commit | {git['commit'] or 'unknown'} |",
        f"| torch | {versions['torch']} |",
        f"| peft | {versions['peft']} |",
        "| base | unknown |",
        "| data | cc0-1.0 |",
        "says nothing about other seeds",
    ):
        assert line in card
    assert "uncommitted changes" in card


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base_bits": 4, "base_group": 16},
        {"base_bits": 2, "base_group": 16, "init": "loftq", "method": "peft"},
    ],
    ids=["float", "4 bits", "LoftQ"],
)
def test_the_cards_own_program_gives_the_recorded_outputs(changes, tiny, tmp_path):
    train(changed(SPEC, **changes), tiny / "tokens", tiny / "model", tmp_path / "run")
    record = export_run(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    names = {"BASE": str(tiny / "model"), "FOLDER": str(tmp_path / "out")}
    exec(program, names)
    rows = pd.read_parquet(next((tiny / "hub" / "sst2").glob("validation-*")))
    inputs = names["tokenizer"](list(rows.sentence), padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        found = names["model"](**inputs).logits.numpy()
    saved = pd.read_parquet(tmp_path / "run/predictions.parquet")
    saved = saved[saved.epoch == record.train.epochs["best"].epoch].filter(like="logit_")
    assert abs(found - saved.to_numpy()).max() < 1e-4
    assert ("4 bits" in card) == (changes.get("base_bits") == 4)


def test_no_path_of_a_local_folder_leaves_the_house(run, tmp_path):
    """The tiny task and model both come from folders; a spec read again is still a run's."""
    copied = shutil.copytree(run, tmp_path / "run")
    record = read_record(copied / "record.json")
    private = FolderSource(folder="/home/me/secret", config="sst2")
    task, model = (
        entry.model_copy(update={"source": private})
        for entry in (record.spec.task, record.spec.model)
    )
    rewrite_spec(copied, task=task, model=model)
    export_run(copied, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert b"secret" not in file.read_bytes(), file.name
    spec = RunSpec(**read_json(tmp_path / "out/spec.json"))
    assert changed(spec, task=task, model=model) == changed(SPEC, task=task, model=model)
    assert "| data | folder (local), config sst2 |" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(UserError, match="base_model = '/home/me/secret': expected a name on the"):
        export_run(copied, tmp_path / "other", base_model="/home/me/secret")


def test_a_model_that_knows_the_task_is_said_before_its_scores(run, tmp_path, monkeypatch):
    """By the list of models in this folder; elsewhere the card says nothing of it."""
    monkeypatch.chdir(tmp_path)
    export_run(run, tmp_path / "elsewhere")
    family = {"modules": {"q": "layer.*.q"}, "head": ["y"], "source": {"folder": "z"}}
    entry = {**family, "trained_on": {"tinytask": "a *corpus*"}}
    (tmp_path / "config").mkdir()
    (tmp_path / "config/models.yaml").write_text(yaml.safe_dump({"models": {"tiny": entry}}))
    export_run(run, tmp_path / "here")
    said = "tiny was trained on data of tinytask before (a \\*corpus\\*): its scores on tinytask"
    assert said in (tmp_path / "here/README.md").read_text().partition("| epoch |")[0]
    assert "before" not in (tmp_path / "elsewhere/README.md").read_text().partition("| epoch |")[0]


def test_other_seeds_are_counted(run, tmp_path):
    record = read_json(run / "record.json")
    others = []
    for change, best in (({"seed": 0}, 0.5), ({"seed": 1}, 0.7), ({"rank": 4}, 0.1)):
        spec = {**record["spec"], **change}
        others.append(
            {**record, "spec": spec, "train": {"epochs": {"best": {"scores": {"accuracy": best}}}}}
        )
    (tmp_path / "tidy").mkdir()
    lines = "".join(json.dumps(other) + "\n" for other in others)
    (tmp_path / "tidy" / "records.jsonl").write_text(lines)
    assert seed_scores(SPEC, tmp_path) == [0.5, 0.7]
    export_run(run, tmp_path / "out", study=tmp_path)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "n = 2 seeds" in card
    assert "median accuracy 0.6000, mean 0.6000, standard deviation 0.1414" in card
    with pytest.raises(UserError, match="no run of this spec"):
        seed_scores(changed(SPEC, rank=8), tmp_path)
    with pytest.raises(UserError, match="no study here"):
        seed_scores(SPEC, tmp_path / "out")


NASTY = [
    "x\n---\nlicense: mit\n---\n# Hello",
    "a: b # c",
    "*anchor &x [y](javascript:z) <img src=q> | `w`",
    "\x1b[31mred\u202e",
    "!!python/object/apply:os.system [x]",
    "'\"",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_no_name_breaks_the_card(run, nasty):
    record = read_record(run / "record.json")
    spec = make_spec(task=make_task(name=nasty))
    spec = changed(spec, **{"model": spec.model.model_copy(update={"name": nasty})})
    environment = {"git": {"commit": nasty, "dirty": True}, "packages": {nasty: nasty}}
    record = record.model_copy(update={"spec": spec, "environment": environment})
    licences = dict.fromkeys(("adapter", "base", "data"), nasty)
    card = model_card(record, nasty, licences, None)
    head = front_matter(card)
    assert (head["base_model"], head["license"], head["tags"][2]) == (plain(nasty),) * 3
    assert len(head) == 5
    usual = model_card(read_record(run / "record.json"), "tiny", licences, None)
    body, expected = (part.split("---\n\n# ", 1)[1] for part in (card, usual))
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings == [line for line in expected.splitlines() if line.startswith("#")]
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(|[\x1b\u202e]", body)


def test_the_card_of_a_run_of_one_epoch_says_that_none_was_picked(run):
    record = read_record(run / "record.json")
    licences = dict.fromkeys(("adapter", "base", "data"), "mit")
    once = record.model_copy(update={"spec": changed(record.spec, epochs=1)})
    said, unsaid = "There is one epoch, so that none was picked.", "which is optimistic"
    for made, one in ((record, False), (once, True)):
        card = model_card(made, "tiny", licences, None)
        assert ((said in card), (unsaid in card)) == (one, not one)


def test_a_cell_is_one_escaped_line():
    assert text("a|b\n`c` <d> [e](f) *g*") == r"a\|b \`c\` \<d\> \[e\](f) \*g\*"
    assert text(("q", "v")) == "q+v"


def rewrite_spec(run, **changes) -> None:
    """Give a run's record another spec, consistently."""
    record = read_record(run / "record.json")
    spec = changed(record.spec, **changes)
    record = record.model_copy(update={"spec": spec, "spec_sha256": digest(spec)})
    write_json(run / "spec.json", spec.model_dump(mode="json"))
    write_record(run, record)


def refused(run, out) -> str:
    with pytest.raises(UserError) as caught:
        export_run(run, out)
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    return str(caught.value)


@pytest.mark.parametrize("name", ["record.json", "spec.json"])
def test_an_unfinished_run_is_refused(copy, tmp_path, name):
    (copy / name).unlink()
    assert f"no finished run here ({name} is missing)" in refused(copy, tmp_path / "out")


def test_a_method_without_adapter_is_refused(copy, tmp_path):
    rewrite_spec(copy, method="full")
    assert "method 'full' has no adapter (legal: lora, peft, alora" in refused(
        copy, tmp_path / "out"
    )


def test_a_spec_of_another_run_is_refused(copy, tmp_path):
    spec = read_json(copy / "spec.json")
    write_json(copy / "spec.json", {**spec, "rank": 64})
    assert "spec.json is not the spec of record.json" in refused(copy, tmp_path / "out")
    (copy / "spec.json").write_text("{")
    assert "not valid JSON" in refused(copy, tmp_path / "out")


def test_a_broken_adapter_is_refused(copy, tmp_path):
    weights = copy / "adapter" / "adapter_model.safetensors"
    state = {
        name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(weights).items()
    }
    save_file(state, weights)
    assert "NaN or infinite" in refused(copy, tmp_path / "out")
    shutil.rmtree(copy / "adapter")
    assert "no adapter_config.json" in refused(copy, tmp_path / "out")


def test_an_existing_folder_is_not_replaced(run, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    before = folder_fingerprint(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        export_run(run, tmp_path)
    assert folder_fingerprint(tmp_path) == before
