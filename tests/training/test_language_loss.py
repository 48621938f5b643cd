"""What training does to a base as a language model: nothing where nothing changed, and so on."""

import runpy
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from loraudit.analysis.collect import language_loss
from loraudit.data.batches import NO_LOSS, load_examples
from loraudit.data.tokenise import tokenise
from loraudit.report.forgetting_table import language_rows as summary
from loraudit.report.forgetting_table import language_table
from loraudit.studies.spec import WarmStart, digest
from loraudit.studies.study import Run, Study
from loraudit.training.language_loss import (
    NO_HEAD,
    NO_MASK,
    language_model,
    language_rows,
    to_predict,
)
from loraudit.training.run import train
from tiny import changed, make_spec, make_task, save_tiny_model, tiny_config, tiny_entry
from tiny_text import TEXT, make_text_run, text_spec

pytestmark = pytest.mark.numerics

ROWS = 24
LANGUAGE = {"bert": transformers.AutoModelForMaskedLM, "gpt2": transformers.AutoModelForCausalLM}


def save_language_model(folder, family: str, mask: bool = True) -> None:
    """Save a random language model with its head, whose biases are not zero, and a tokenizer."""
    folder.mkdir(exist_ok=True)
    save_tiny_model(folder, family)
    torch.manual_seed(1)
    model = LANGUAGE[family].from_config(tiny_config(family))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    if mask:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
        tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """Give {family: the folders of tokens and model} of two language models with their heads."""
    root, made = tmp_path_factory.mktemp("language"), {}
    for family in LANGUAGE:
        save_language_model(root / family, family)
        tokenise(tiny / "task", root / family, 64, root / f"{family}-tokens")
        made[family] = root / f"{family}-tokens", root / family
    return made


def spec_of(family: str, **changes):
    entry = tiny_entry(family)
    if family == "bert":  # a language model's checkpoint has no pooler
        fields = {**entry.model_dump(), "pretrained_pooler": False}
        entry = type(entry)(**fields)
    own = {"model": entry, "epochs": 1, "learning_rate": 1e-2, "train_rows": 64}
    return make_spec(**{**own, **changes})


@pytest.fixture(scope="module", params=LANGUAGE)
def trained(request, folders, tmp_path_factory):
    """Give a family, its folders, and the folder with the runs `lora` and `full_saved`."""
    runs, family = tmp_path_factory.mktemp("runs"), request.param
    for method in ("lora", "full_saved"):
        train(spec_of(family, method=method), *folders[family], runs / method)
    return family, *folders[family], runs


def rows_of(trained, run="lora", count=ROWS, runs=None):
    _, tokens, model, folder = trained
    return language_rows(run, runs or folder, {run: tokens}, model, count)


def zeroed(runs, to):
    """Copy runs, and set every B of the run `lora` to zero."""
    shutil.copytree(runs, to)
    file = to / "lora/adapter/adapter_model.safetensors"
    state = load_file(file)
    save_file({n: t * 0 if "lora_B" in n else t for n, t in state.items()}, file)
    return to


def test_an_adapter_with_b_of_zero_changes_nothing(trained, tmp_path):
    (row,) = rows_of(trained, runs=zeroed(trained[3], tmp_path / "runs"))
    assert row["before"] == row["after"] and row["rise"] == 0
    (trained_row,) = rows_of(trained)
    assert trained_row["rise"] != 0 and trained_row["before"] == row["before"]


def test_the_loss_is_transformers_own_of_the_same_labels(trained):
    """Row by row and without padding; the adapter is merged by hand for the loss after it."""
    family, tokens, folder, runs = trained
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = LANGUAGE[family].from_pretrained(folder).eval()
    kind = "masked" if family == "bert" else "causal"
    rows = load_examples(spec_of(family), tokens, "validation").take(np.arange(ROWS))
    text = to_predict(rows, kind, tokenizer)

    def direct() -> tuple[float, int]:
        total, count = 0.0, 0
        for start, length in zip(rows.starts, rows.lengths, strict=True):
            ids = torch.from_numpy(text.rows.ids[start : start + length].astype(int))[None]
            labels = torch.from_numpy(text.wanted[start : start + length].astype(int))[None]
            with torch.no_grad():
                loss = model(input_ids=ids, labels=labels).loss.item()
            total += loss * (labels != NO_LOSS).sum().item()
            count += (labels != NO_LOSS).sum().item()
        return total / count, count

    (row,) = rows_of(trained)
    before, count = direct()
    assert (row["kind"], row["rows"], row["tokens"]) == (kind, ROWS, count)
    assert row["before"] == pytest.approx(before, abs=1e-5)
    state = load_file(runs / "lora/adapter/adapter_model.safetensors")
    scaling = spec_of(family).lora.alpha / spec_of(family).lora.rank
    for name in [n for n in state if n.endswith("lora_A.weight")]:
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        update = scaling * state[name.replace("lora_A", "lora_B")] @ state[name]
        weight = model.get_submodule(layer).weight
        weight.data += update.T if family == "gpt2" else update
    assert row["after"] == pytest.approx(direct()[0], abs=1e-5)


def test_weights_that_were_all_trained_are_read_with_the_embedding_that_is_tied(trained):
    """The head's last layer is the embedding, which full fine-tuning has changed."""
    family, tokens, folder, runs = trained
    (row,) = rows_of(trained, "full_saved")
    model = LANGUAGE[family].from_pretrained(folder).eval()
    state = load_file(runs / "full_saved/adapter/full_saved.safetensors")
    own = model.state_dict()
    embedding = next(n for n in own if n.endswith(("word_embeddings.weight", "wte.weight")))
    assert not torch.equal(own[embedding], state[embedding])
    model.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False)
    model.tie_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = "masked" if family == "bert" else "causal"
    rows = load_examples(spec_of(family), tokens, "validation").take(np.arange(ROWS))
    text, total = to_predict(rows, kind, tokenizer), 0.0
    for start, length in zip(rows.starts, rows.lengths, strict=True):
        ids, labels = (
            torch.from_numpy(values[start : start + length].astype(int))[None]
            for values in (text.rows.ids, text.wanted)
        )
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * (labels != NO_LOSS).sum()
    assert row["after"] == pytest.approx(float(total) / row["tokens"], abs=1e-5)


def test_a_model_that_is_trained_on_other_text_predicts_this_one_worse(tmp_path):
    """The planted text has words that the held-out text never has, so its loss has to rise."""
    source = tmp_path / "source"
    source.mkdir()
    for split, words in (("train", "dull weak awful cold"), ("validation", "the film is a story")):
        pd.DataFrame({"words": [words] * 64}).to_csv(source / f"{split}.csv", index=False)
    entry = {**TEXT, "name": "answers", "text": ["words"], "source": {"folder": str(source)}}
    task = make_task().__class__(**entry)
    tokens, model = make_text_run(tmp_path, task)
    save_language_model(model, "gpt2", mask=False)
    spec = text_spec(task=task, epochs=4, learning_rate=3e-2, targets=("q", "v", "o"), rank=4)
    train(spec, tokens, model, tmp_path / "runs/other")
    (row,) = language_rows("other", tmp_path / "runs", {"other": tokens}, model, 16)
    assert row["kind"] == "causal" and row["tokens"] == 16 * 4
    assert row["rise"] > 0.05


def test_hidden_tokens_depend_on_the_row_alone(folders):
    tokens, folder = folders["bert"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    spec = spec_of("bert")
    rows = load_examples(spec, tokens, "validation")
    whole = to_predict(rows, "masked", tokenizer)
    few = to_predict(rows.take(np.array([7, 3])), "masked", tokenizer)
    for row in (7, 3):
        own = slice(rows.starts[row], rows.starts[row] + rows.lengths[row])
        assert np.array_equal(whole.wanted[own], few.wanted[own])
        hidden = whole.wanted[own] != NO_LOSS
        ordinary = ~np.isin(rows.ids[own], tokenizer.all_special_ids)
        assert hidden.sum() == max(1, round(0.15 * ordinary.sum())) and ordinary[hidden].all()
        assert (whole.rows.ids[own][hidden] == tokenizer.mask_token_id).all()
        assert np.array_equal(whole.wanted[own][hidden], rows.ids[own][hidden])
        assert np.array_equal(whole.rows.ids[own][~hidden], rows.ids[own][~hidden])


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_checkpoint_without_its_head_is_said_to_have_none(tiny, tmp_path, family):
    """GPT-2's head is its embedding, which a classifier's checkpoint has too."""
    (tmp_path / "model").mkdir()
    save_tiny_model(tmp_path / "model", family)
    if family == "bert":
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
        tokenizer.save_pretrained(tmp_path / "model")
    head, why = language_model(spec_of(family), tmp_path / "model")
    assert (why, head is None) == ((NO_HEAD, True) if family == "bert" else ("", False))


def test_without_a_head_the_row_and_the_table_say_so(tiny, tmp_path):
    train(make_spec(epochs=1, train_rows=32), tiny / "tokens", tiny / "model", tmp_path / "one")
    (row,) = language_rows("one", tmp_path, {"one": tiny / "tokens"}, tiny / "model", ROWS)
    assert (row["kind"], row["tokens"], row["why"]) == ("", 0, NO_MASK)
    assert row["rise"] != row["rise"]
    study = Study(
        name="s",
        question="?",
        runs=(Run(id="one", label="", spec=make_spec(epochs=1, train_rows=32)),),
        language_loss=ROWS,
    )
    pd.DataFrame([row]).to_csv(tmp_path / "one.csv", index=False)
    rows = summary(study, pd.DataFrame(), language_loss(study, tmp_path))
    (shown,) = language_table(rows).to_dict("records")
    assert shown["kind"] == NO_MASK
    assert shown["loss before"] == shown["rise: mean ± SD, nats per token"] == ""


def test_the_program_reads_all_texts_of_a_chain(folders, tmp_path, monkeypatch):
    tokens, model = folders["bert"]
    first = spec_of("bert")
    start = WarmStart(run="first", spec_sha256=digest(first), tensors="adapter")
    second = changed(first, task=make_task(name="other"), warm_start=start)
    train(first, tokens, model, tmp_path / "runs/first")
    train(second, tokens, model, tmp_path / "runs/second", tmp_path / "runs/first")
    out = tmp_path / "language_loss/second.csv"
    words = ["--run", "second", "--runs", tmp_path / "runs", "--model", model, "--out", out]
    words += ["--chain", "second", "first", "--tokens", tokens, tokens, "--rows", ROWS]
    monkeypatch.setattr(sys, "argv", ["language_loss", *map(str, words)])
    runpy.run_path("scripts/language_loss.py", run_name="__main__")
    runs = tuple(Run(id=n, label="", spec=s) for n, s in (("first", first), ("second", second)))
    study = Study(name="s", question="?", runs=runs, language_loss=ROWS)
    assert study.chain("second") == ["second", "first"]
    table = language_loss(study, tmp_path / "language_loss")
    assert table.text.tolist() == ["other", "tinytask"] and (table.run == "second").all()
    assert table.rise.nunique() == 1  # one text under two names
    rows = summary(study, pd.DataFrame(), table)
    shown = language_table(rows).to_dict("records")
    assert [one["text of"] for one in shown] == ["other", "tinytask"]
    assert shown[0]["rise: mean ± SD, nats per token"] == f"{table.rise[0]:+.3f}"


def test_runs_that_leave_no_base_to_read_have_no_job():
    makes = {
        "lora": {},
        "full_saved": {"method": "full_saved"},
        "full": {"method": "full"},
        "head": {"method": "head"},
        "dora": {"method": "peft", "peft": {"use_dora": True}},
        "adalora": {"method": "adalora"},
    }
    runs = tuple(Run(id=name, label="", spec=make_spec(**m)) for name, m in makes.items())
    study = Study(name="s", question="?", runs=runs, language_loss=5)
    assert [run.id for run in study.language_runs()] == ["lora", "full_saved"]
    assert Study(name="s", question="?", runs=runs).language_runs() == []
