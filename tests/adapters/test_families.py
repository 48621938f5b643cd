"""Every family of models.yaml: an adapter on every matrix, its PEFT twin, files, and resuming."""

import os
import signal

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraudit.adapters import inject, peft_twin
from loraudit.adapters.base_layers import is_linear, matrix_sizes, targets_of
from loraudit.base.files import folder_fingerprint
from loraudit.base.yaml_file import read_yaml
from loraudit.crosscheck.whole_model import values
from loraudit.studies.entries import layer_pattern
from loraudit.training import loop
from loraudit.training.accounting import count_parameters
from loraudit.training.run import train
from tiny import MILD, UP_TO_ROUNDING, make_spec, save_tiny_model, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

FAMILIES = list(read_yaml("config/models.yaml")["families"])
FUSED = ["gpt2", "modernbert", "phi3", "gpt_neox"]


def spec_of(family: str, **changes):
    entry = tiny_entry(family)
    return make_spec(model=entry, targets=tuple(entry.modules), rank=2, alpha=8, **changes)


def moved(model: nn.Module, spec) -> nn.Module:
    """Give all that is trained random values, as after training."""
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=MILD)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_is_every_linear_layer_of_the_blocks(family):
    model, entry = tiny_model(family), tiny_entry(family)
    found = targets_of(model, entry, tuple(entry.modules))
    blocks = {layer_pattern(m).partition("*")[0] for m in entry.modules.values()}
    assert len(blocks) == 1
    inside = [
        name
        for name, layer in model.named_modules()
        if is_linear(layer) and f".{next(iter(blocks))}" in f".{name}"
    ]
    assert {target.layer for target in found} == set(inside)
    count = 1 if entry.shared_layers else 2
    assert len(found) == count * len(entry.modules)
    numbers = sum(len(layer.weight.flatten()) for layer in map(model.get_submodule, inside))
    assert numbers == sum(d_in * d_out for d_in, d_out in (matrix_sizes(model, t) for t in found))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_twin_starts_equal_and_trains_the_same(family, batch):
    """Two steps of AdamW; parts of fused layers are compared as PEFT has them."""
    spec = spec_of(family)
    ours, twin = (
        apply(tiny_model(family).double(), spec) for apply in (inject.apply, peft_twin.apply)
    )
    heads = spec.model.head
    assert count_parameters(ours, heads) == count_parameters(twin, heads)
    assert all(torch.equal(v, values(twin)[k]) for k, v in values(ours).items())
    for model in (ours, twin):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(2):
            model.eval()(**batch).logits.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    left, right = values(ours), values(twin)
    assert left.keys() == right.keys()
    assert max((left[name] - right[name]).abs().max() for name in left) < 1e-9
    assert all(a.any() for name, a in left.items() if name.endswith("lora_B"))
    torch.testing.assert_close(ours(**batch).logits, twin(**batch).logits, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_export_is_loaded_in_peft_and_here(family, batch, tmp_path):
    spec = spec_of(family)
    model = moved(inject.apply(tiny_model(family), spec), spec)
    expected = model(**batch).logits
    assert not torch.allclose(expected, tiny_model(family).eval()(**batch).logits, atol=1e-2)
    inject.export(model, spec, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    ours = inject.load(tiny_model(family), tmp_path).eval()
    torch.testing.assert_close(theirs(**batch).logits, expected, **UP_TO_ROUNDING)
    torch.testing.assert_close(ours(**batch).logits, expected, **UP_TO_ROUNDING)
    inject.merge(model)
    torch.testing.assert_close(model(**batch).logits, expected, **UP_TO_ROUNDING)


def scaled(family: str, matrix: str, factor: float) -> nn.Module:
    """Multiply a matrix, and its biases, in every layer."""
    model = tiny_model(family).eval()
    for target in targets_of(model, tiny_entry(family), (matrix,)):
        layer = model.get_submodule(target.layer)
        weight = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
        rows = target.rows or ((0, len(weight)),)
        for start, stop in rows:
            weight[start:stop] *= factor
            if layer.bias is not None:
                layer.bias.data[start:stop] *= factor
    return model


@pytest.mark.parametrize("family", FUSED)
def test_the_parts_are_what_their_names_say(family, batch):
    """Without queries as without keys, attention is even; without values or o, there is none."""
    plain = tiny_model(family).eval()(**batch).logits
    without = {name: scaled(family, name, 0.0)(**batch).logits for name in ("q", "k", "v", "o")}
    o_bias = any(
        plain_layer.bias is not None and plain_layer.bias.any()
        for plain_layer in (
            tiny_model(family).get_submodule(t.layer)
            for t in targets_of(tiny_model(family), tiny_entry(family), ("o",))
        )
    )
    torch.testing.assert_close(without["q"], without["k"], **UP_TO_ROUNDING)
    if not o_bias:
        torch.testing.assert_close(without["v"], without["o"], **UP_TO_ROUNDING)
    for one, two in (("q", "v"), ("k", "v")):
        assert not torch.allclose(without[one], without[two], atol=1e-3)
    assert not torch.allclose(without["q"], plain, atol=1e-4)


@pytest.mark.parametrize("family", ["modernbert", "phi3"])
def test_up_is_not_the_gate(family, batch):
    """The MLP is odd in `up`, whose sign is then that of `down`; the gate has an activation."""
    up, gate, down = (scaled(family, name, -1.0)(**batch).logits for name in ("up", "gate", "down"))
    torch.testing.assert_close(up, down, **UP_TO_ROUNDING)
    assert not torch.allclose(gate, down, atol=1e-3)


def test_albert_has_one_adapter_for_all_layers(batch):
    """Its update acts in both layers: merged by hand into the shared weight, outputs are equal."""
    spec = spec_of("albert")
    model = moved(inject.apply(tiny_model("albert"), spec), spec)
    assert len(inject.lora_layers(model)) == 6 and model.config.num_hidden_layers == 2
    expected = model(**batch).logits
    for layer in inject.lora_layers(model).values():
        layer.base.weight.data += layer.delta_weight()
        nn.init.zeros_(layer.lora_B)
    torch.testing.assert_close(model(**batch).logits, expected, **UP_TO_ROUNDING)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_decoders_read_the_last_token_that_is_not_padding(family, batch):
    model = tiny_model(family).eval()
    model.config.pad_token_id = 0
    ids = torch.tensor([[5, 6, 7, 8]])
    padded = torch.tensor([[5, 6, 7, 8, 0, 0]])
    mask = (padded != 0).long()
    expected = model(input_ids=ids).logits
    found = model(input_ids=padded, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, **UP_TO_ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stopped_run_ends_in_the_same_bits(family, method, tiny, tmp_path, monkeypatch):
    if method == "peft" and family not in FUSED:
        pytest.skip("PEFT's twin is of a kind of its own on fused layers only")
    save_tiny_model(tmp_path / "model", family)
    rows = {"train_rows": 16, "validation_rows": 8, "epochs": 2}
    spec = spec_of(family, method=method, **rows)

    def run(out):
        train(spec, tiny / "tokens", tmp_path / "model", tmp_path / out)
        return folder_fingerprint(tmp_path / out / "adapter")

    expected, step, calls = run("whole"), loop.optimizer_step, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", stopping)
    with pytest.raises(SystemExit):
        run("stopped")
    assert run("stopped") == expected
