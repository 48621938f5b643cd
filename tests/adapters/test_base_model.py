"""Loading the model of a run: what its entry and its config may say."""

import json
import shutil

import pandas as pd
import pytest
import torch

from loraudit.adapters.base_layers import check_entry
from loraudit.adapters.base_model import load_base, most_tokens
from loraudit.base.errors import UserError
from loraudit.base.files import read_json
from loraudit.data.tokenise import tokenise
from loraudit.studies.entries import ModelEntry
from loraudit.studies.entry_files import load_model
from loraudit.training.run import train
from tiny import make_spec, save_tiny_model, tiny_entry, tiny_model

LAYER = "encoder.layer.*.attention.self"


def entry(**changes) -> ModelEntry:
    return ModelEntry(**{**tiny_entry().model_dump(), **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"head": ["bert.pooler"]},
            r"'bert.pooler', does not give the 2 scores .*legal: classifier",
        ),
        ({"head": ["classifier", "bert.pooler"]}, "does not give the 2 scores"),
        ({"head": ["bert.pooler"], "output": "classifier"}, "'classifier' lies outside the head"),
        ({"output": "nose"}, "no module 'nose'"),
        ({"head": ["nose", "classifier"]}, "no head module 'nose'"),
        (
            {"head": ["bert.encoder", "classifier"], "output": "classifier"},
            r"modules: q = .* means 'bert.encoder.layer.0.attention.self.query', which lies in the",
        ),
        ({"modules": {"q": f"{LAYER}.query", "v": "layer.*.attention.self.query"}}, "q and v both"),
    ],
)
def test_an_entry_that_does_not_fit_its_model_is_refused(tiny, changes, reason):
    with pytest.raises(UserError, match=reason):
        load_base(make_spec(model=entry(**changes)), tiny / "model")


def test_one_name_for_layers_of_two_stacks_is_refused():
    """Section 7 would show the one as the other."""
    model = torch.nn.ModuleDict(
        {stack: torch.nn.ModuleList([torch.nn.Linear(4, 4)]) for stack in ("encoder", "decoder")}
    )
    model["classifier"] = torch.nn.Linear(4, 2)
    for stack in ("encoder", "decoder"):
        model[stack] = torch.nn.ModuleDict({"layers": model[stack]})
    with pytest.raises(UserError, match=r"means both 'encoder.layers.0' and 'decoder.layers.0'"):
        check_entry(model, entry(modules={"q": "layers.*"}), 2)
    check_entry(model, entry(modules={"q": "encoder.layers.*"}), 2)


@pytest.fixture
def gpt2(tiny, tmp_path):
    """Give a GPT-2 whose config has no padding token, and the tokens of its tokenizer."""
    save_tiny_model(tmp_path / "model", "gpt2")
    shutil.copytree(tmp_path / "model", tmp_path / "without")
    config = tmp_path / "without/config.json"
    config.write_text(json.dumps(read_json(config) | {"pad_token_id": None}))
    tokenise(tiny / "task", tmp_path / "without", 64, tmp_path / "tokens")
    return tmp_path


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_the_tokenizers_padding_token_is_used_where_the_config_has_none(gpt2, method):
    spec = make_spec(
        model=tiny_entry("gpt2"), targets=("o", "up"), method=method, epochs=1, train_rows=32
    )
    for model in ("model", "without"):
        train(spec, gpt2 / "tokens", gpt2 / model, gpt2 / "run" / model)
    known, found = (
        pd.read_parquet(gpt2 / "run" / model / "predictions.parquet")
        for model in ("model", "without")
    )
    assert known.equals(found)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet", "gpt2"])
def test_the_most_tokens_are_those_that_the_model_can_read(family):
    """The tiny models have 66 positions; some begin after the padding token's: 0, MPNet's 1."""
    model, most = tiny_model(family), most_tokens(tiny_model(family))
    assert most == {"roberta": 65, "mpnet": 64}.get(family, 66)
    with torch.no_grad():
        model(input_ids=torch.full((1, most), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, most + 1), 5))


def test_a_length_that_the_model_can_not_read_is_refused(tmp_path):
    save_tiny_model(tmp_path, "roberta")
    with pytest.raises(UserError, match=r"max_length 66 is more than model 'tiny' .*4 to 65"):
        load_base(make_spec(model=tiny_entry("roberta"), max_length=66), tmp_path)
    wrong = tiny_entry("roberta").model_copy(update={"max_tokens": 66})
    with pytest.raises(UserError, match=r"max_tokens 66 is more than model 'tiny' .*4 to 65"):
        load_base(make_spec(model=wrong), tmp_path)


@pytest.mark.parametrize("name", ["minilm", "mpnet-base", "roberta-base", "bert-base"])
def test_a_length_above_max_tokens_is_refused_when_the_study_is_planned(name):
    make_spec(model=load_model(name), max_length=512)
    with pytest.raises(UserError, match=rf"max_length 513 .* model '{name}' .*4 to 512"):
        make_spec(model=load_model(name), max_length=513)
