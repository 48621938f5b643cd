"""Loading the model of a run: what its entry and its config may say."""

import json
import shutil

import pandas as pd
import pytest
import torch

from loraudit.adapters import inject
from loraudit.adapters.base_layers import check_entry, target_modules
from loraudit.adapters.base_model import load_base, most_tokens
from loraudit.base.errors import UserError
from loraudit.base.files import read_json
from loraudit.data.tokenise import tokenise
from loraudit.studies.entries import ModelEntry
from loraudit.studies.entry_files import load_model
from loraudit.training.method import method_of
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


def test_a_decoder_keeps_no_keys_and_values(gpt2, batch):
    model = load_base(make_spec(model=tiny_entry("gpt2"), targets=("o",)), gpt2 / "model")
    assert model(**batch).past_key_values is None


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


def edited(tmp_path, **changes):
    """Save a tiny BERT whose config says something else."""
    save_tiny_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(read_json(config) | changes))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "clip"}, "no sequence classifier for models of type 'clip'"),
        ({"model_type": "nose"}, r"config\.json can't be read: .*nose"),
        (
            {"intermediate_size": 24},
            r"checkpoint's bert.*intermediate.dense.bias is \(32,\), but config.json asks for "
            r"\(24,\): they belong to different models",
        ),
        ({"num_hidden_layers": 3}, r"no weights for bert\.encoder\.layer\.2"),
    ],
)
def test_a_model_whose_config_does_not_fit_is_refused(changes, reason, tmp_path):
    with pytest.raises(UserError, match=rf"model 'tiny': .*{reason}"):
        load_base(make_spec(), edited(tmp_path, **changes))


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_a_rank_above_a_matrix_width_is_refused(method, tmp_path):
    """A part's width is that of its own outputs: phi3's keys have 8."""
    save_tiny_model(tmp_path)
    apply = method_of(spec := make_spec(method=method, rank=17)).apply
    with pytest.raises(UserError, match=r"rank 17 .* 'bert.*query', which is 16 x 16 .*1 to 16"):
        apply(load_base(spec, tmp_path), spec)
    spec = make_spec(method=method, model=tiny_entry("phi3"), targets=("k",), rank=9)
    with pytest.raises(UserError, match=r"rank 9 is .*qkv_proj.k', which is 8 x 16 .*1 to 8"):
        method_of(spec).apply(tiny_model("phi3"), spec)


def test_a_matrix_that_some_layers_lack_is_refused_unless_the_entry_says_so():
    model = tiny_model("llama")
    model.model.layers[1].mlp.gate_proj = torch.nn.Identity()
    spec = make_spec(model=tiny_entry("llama"), targets=("gate",))
    with pytest.raises(UserError, match=r"gate = .* is in 1 of 2 layers .*not in 'model.layers.1'"):
        inject.apply(model, spec)
    some = tiny_entry("llama").model_copy(update={"some_layers": ("gate",)})
    assert len(target_modules(model, some, ("gate",))) == 1


def test_a_matrix_that_the_family_lacks_is_refused():
    with pytest.raises(UserError, match=r"model 'tiny' has no matrix 'gate' \(legal: q, k, v, o,"):
        make_spec(targets="q+gate")
