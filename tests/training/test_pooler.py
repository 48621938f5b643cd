"""A pooler that was never trained belongs to the head: in our code, in PEFT's, and on disk."""

import os
import shutil
import signal

import pandas as pd
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from loraudit.adapters import inject, peft_twin
from loraudit.adapters.base_model import load_base
from loraudit.adapters.peft_folder import own_name
from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint, read_json
from loraudit.data.batches import collate, load_examples, pad_id
from loraudit.studies.entries import ModelEntry
from loraudit.studies.entry_files import load_model
from loraudit.studies.record import read_record
from loraudit.training import loop
from loraudit.training.run import train
from tiny import changed, make_spec, tiny_entry

pytestmark = pytest.mark.numerics

ENTRY = ModelEntry(**{**tiny_entry().model_dump(), "pretrained_pooler": False})
SPEC = make_spec(model=ENTRY, epochs=2, learning_rate=1e-2, train_rows=48, rank=2)
POOLER = 16 * 16 + 16
"""Parameters of the tiny model's pooler."""


@pytest.fixture(scope="module")
def untrained(tiny, tmp_path_factory):
    """Give the tiny model with a pooler as it is after initialisation: biases of 0."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    shutil.copytree(tiny / "model", folder)
    state = load_file(folder / "model.safetensors")
    state["bert.pooler.dense.bias"].zero_()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def run(untrained, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("pooler") / "run"
    train(SPEC, tiny / "tokens", untrained, out)
    return out


def test_the_pooler_joins_the_head_of_an_entry_that_says_so():
    assert ENTRY.head == ("bert.pooler", "classifier") and ENTRY.output_layer == "classifier"
    assert ModelEntry(**ENTRY.model_dump(mode="json")) == ENTRY
    assert tiny_entry().head == ("classifier",)
    assert load_model("minilm").head == ("bert.pooler", "classifier")
    assert load_model("bert-base").head == ("classifier",)
    with pytest.raises(ValueError, match="name the layer as `pooler`"):
        ModelEntry(**{**tiny_entry("distilbert").model_dump(), "pretrained_pooler": False})


def test_the_entry_must_say_what_the_weights_say(untrained, tiny):
    with pytest.raises(UserError, match=r"was trained, but the .* set pretrained_pooler: false"):
        load_base(make_spec(), untrained)
    with pytest.raises(UserError, match=r"was never trained, but .* set pretrained_pooler: true"):
        load_base(SPEC, tiny / "model")


def test_a_checkpoint_without_a_pooler_has_an_untrained_one(untrained, tmp_path):
    shutil.copytree(untrained, tmp_path / "model")
    state = load_file(untrained / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    save_file(kept, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks it, or has it with biases of 0 only"):
        load_base(make_spec(), tmp_path / "model")
    lacking, zero = (load_base(SPEC, folder) for folder in (tmp_path / "model", untrained))
    for name, value in zero.state_dict().items():
        assert torch.equal(lacking.state_dict()[name], value), name


def trained(model) -> dict[str, torch.Tensor]:
    return {own_name(n): p.detach() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_ours_and_pefts_start_with_the_same_pooler(head, untrained):
    spec = changed(SPEC, head=head)
    ours, twin = (
        trained(code.apply(load_base(spec, untrained), spec)) for code in (inject, peft_twin)
    )
    assert ours.keys() == twin.keys()
    assert all(torch.equal(ours[name], twin[name]) for name in ours)
    assert ("bert.pooler.dense.weight" in ours) == (head == "trained")
    other = load_base(changed(SPEC, seed=1), untrained).bert.pooler.dense.weight
    assert head == "frozen" or not torch.equal(ours["bert.pooler.dense.weight"], other)


def logits(out):
    return pd.read_parquet(out / "predictions.parquet").filter(like="logit_").to_numpy()


def test_it_is_trained_counted_as_head_and_saved(run, untrained, tiny, tmp_path):
    parameters = read_record(run / "record.json").train.parameters
    assert parameters["head"] == POOLER + 2 * 16 + 2 and parameters["base"] == 0
    train(changed(SPEC, method="peft"), tiny / "tokens", untrained, tmp_path / "twin")
    assert read_record(tmp_path / "twin/record.json").train.parameters == parameters
    assert abs(logits(run) - logits(tmp_path / "twin")).max() < 1e-4
    start = load_base(SPEC, untrained).bert.pooler.dense.weight
    for out in (run, tmp_path / "twin"):
        config = read_json(out / "adapter/adapter_config.json")
        assert set(config["modules_to_save"]) == {"bert.pooler", "classifier"}
        saved = load_file(out / "adapter/adapter_model.safetensors")
        assert not torch.equal(saved["base_model.model.bert.pooler.dense.weight"], start)
    train(changed(SPEC, method="head"), tiny / "tokens", untrained, tmp_path / "head")
    head = read_record(tmp_path / "head/record.json").train.parameters
    assert head["trainable"] == head["head"] == parameters["head"]


def test_plain_peft_loads_it(run, untrained, tiny):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(untrained, num_labels=2)
    model = peft.PeftModel.from_pretrained(base, run / "adapter").eval()
    examples = load_examples(SPEC, tiny / "tokens", "validation")
    index = range(16)
    with torch.no_grad():
        batch = collate(examples, list(index), SPEC, pad_id(tiny / "tokens"))
        found = model(**batch).logits.numpy()
    rows = pd.read_parquet(run / "predictions.parquet")
    best = rows[rows.epoch == read_record(run / "record.json").train.epochs["best"].epoch]
    assert abs(found - best.filter(like="logit_").to_numpy()[:16]).max() < 1e-5


def test_a_resumed_run_gives_the_same_pooler(run, untrained, tiny, tmp_path, monkeypatch):
    steps = iter(range(100))

    def stopped(*args, do=loop.optimizer_step):
        if next(steps) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return do(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", stopped)
        with pytest.raises(SystemExit):
            train(SPEC, tiny / "tokens", untrained, tmp_path)
    train(SPEC, tiny / "tokens", untrained, tmp_path)
    assert read_record(tmp_path / "record.json").environment["resumed"]
    assert folder_fingerprint(tmp_path / "adapter") == folder_fingerprint(run / "adapter")
