"""A PEFT folder that is broken, hostile or another model's is refused, and the model left alone."""

import json
import pickle

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraudit.adapters import inject
from loraudit.adapters.peft_folder import CONFIG, PREFIX, WEIGHTS
from loraudit.base.errors import UserError
from tiny import LFS_POINTER, UP_TO_ROUNDING, make_spec, tiny_model

pytestmark = pytest.mark.numerics

LAYER = "bert.encoder.layer.0.attention.self.query"
A, B = f"{PREFIX}{LAYER}.lora_A.weight", f"{PREFIX}{LAYER}.lora_B.weight"


@pytest.fixture
def folder(tmp_path):
    spec = make_spec(rank=2)
    inject.export(inject.apply(tiny_model(), spec), spec, tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder) -> str:
    """Load it; returns the error's text after checking that the model is as it was."""
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        inject.load(model, folder)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_tensors(folder, **changes) -> None:
    """Rewrite the weights: a value of None drops a tensor, others are set or changed."""
    state = load_file(folder / WEIGHTS)
    for name, value in changes.items():
        value = value(state.get(name)) if callable(value) else value
        state.pop(name, None)
        if value is not None:
            state[name] = value
    save_file(state, folder / WEIGHTS)


def with_config(folder, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"no {name}" in refused(folder)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickled_adapter_is_not_opened(folder, tmp_path):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert "adapter_model.bin is a pickle, which is not read" in refused(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:kept])
    assert "not a whole safetensors file" in refused(folder)


def test_weights_that_were_not_fetched_are_named(folder):
    (folder / WEIGHTS).write_bytes(LFS_POINTER)
    assert f"{WEIGHTS}: is a Git LFS pointer" in refused(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '"x"', "{}", '{"peft_type": "NEW"}', "[" * 100_000, "\udcff"]
)
def test_a_broken_config_is_refused(folder, content):
    (folder / CONFIG).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert CONFIG in refused(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({A: None}, "has no lora_A"),
        ({B: None}, "has no lora_B"),
        ({A: torch.zeros(3, 16)}, r"lora_A (3, 16) and lora_B (16, 2)"),
        ({A: torch.zeros(2, 17)}, "is (2, 17), this model's is (2, 16)"),
        ({B: torch.zeros(8, 2)}, "is (8, 2), this model's is (16, 2)"),
        ({A: torch.zeros(32)}, "lora_A (32,)"),
        ({A: torch.zeros(0, 16), B: torch.zeros(16, 0)}, "lora_A (0, 16)"),
        ({A: torch.full((2, 16), float("nan"))}, "NaN or infinite"),
        ({B: torch.full((16, 2), float("inf"))}, "NaN or infinite"),
        ({A: torch.zeros(2, 16, dtype=torch.int32)}, "is of torch.int32"),
        ({f"{PREFIX}classifier.weight": torch.zeros(3, 16)}, "this model's is (2, 16)"),
        ({f"{PREFIX}classifier.scale": torch.zeros(3)}, "no tensor 'classifier.scale'"),
        ({"classifier.weight": torch.zeros(2, 16)}, "not a PEFT adapter tensor"),
        (
            {
                f"{PREFIX}bert.encoder.layer.7.output.dense.lora_A.weight": torch.zeros(2, 32),
                f"{PREFIX}bert.encoder.layer.7.output.dense.lora_B.weight": torch.zeros(16, 2),
            },
            "no linear layer 'bert.encoder.layer.7.output.dense'",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, changes, message):
    with_tensors(folder, **changes)
    assert message in refused(folder)


def test_a_folder_without_adapters_is_refused(folder):
    names = [name for name in load_file(folder / WEIGHTS) if "lora_" in name]
    with_tensors(folder, **dict.fromkeys(names))
    assert "no lora_A and lora_B" in refused(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rslora", True),
        ("use_dora", True),
        ("bias", "all"),
        ("alpha_pattern", {"query": 0}),
        ("lora_alpha", 0),
        ("lora_alpha", "8"),
        ("lora_alpha", float("inf")),
        ("lora_dropout", 1.0),
        ("peft_type", "IA3"),
    ],
)
def test_settings_under_which_the_outputs_would_differ_are_refused(folder, key, value):
    with_config(folder, **{key: value})
    assert key in refused(folder)


def test_ranks_and_alphas_of_each_layers_own_are_read_as_peft_reads_them(folder, batch):
    torch.manual_seed(3)
    with_tensors(folder, **{A: torch.randn(5, 16), B: torch.randn(16, 5)})
    with_config(folder, rank_pattern={LAYER: 5}, alpha_pattern={LAYER: 3})
    theirs = peft.PeftModel.from_pretrained(tiny_model(), folder).eval()
    ours = inject.load(tiny_model(), folder).eval()
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, **UP_TO_ROUNDING)


EMBEDDING = f"{PREFIX}bert.embeddings.word_embeddings.weight"
HEAD = f"{PREFIX}classifier.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({EMBEDDING: torch.zeros(64, 16)}, "is not under modules_to_save"),
        ({A: None, B: None}, "asks for it and it is missing"),
        ({HEAD: None}, "'classifier.weight' is missing"),
        ({A: torch.ones(3, 16), B: torch.ones(16, 3)}, "has rank 3, adapter_config.json says 2"),
        ({HEAD: lambda t: t.double() * 1e300}, "infinite values"),
    ],
)
def test_tensors_other_than_the_config_promises_are_refused(folder, tensors, message):
    with_tensors(folder, **tensors)
    assert message in refused(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 8}, "has rank 2, adapter_config.json says 8"),
        ({"rank_pattern": {LAYER: 5}}, "has rank 2, adapter_config.json says 5"),
        ({"target_modules": ["key"]}, "asks for it and it is missing"),
        ({"exclude_modules": [LAYER]}, "names no such layer"),
        ({"modules_to_save": None}, "is not under modules_to_save"),
        ({"init_lora_weights": "pissa"}, "it changes the base model"),
    ],
)
def test_configs_that_contradict_the_tensors_are_refused(folder, config, message):
    with_config(folder, **config)
    assert message in refused(folder)


def test_a_folder_without_a_head_is_not_switched_to(folder):
    model = inject.load(tiny_model(), folder)
    with_tensors(folder, **{HEAD: None, f"{PREFIX}classifier.bias": None})
    with_config(folder, modules_to_save=None)
    with pytest.raises(UserError, match="the one in place is another task's"):
        inject.switch(model, folder)
