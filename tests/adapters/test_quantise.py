"""A base in few bits: what is packed, how well, and that adapters on it are right."""

import copy

import peft
import pytest
import torch
from torch import nn

from loraudit.adapters import inject, peft_twin
from loraudit.adapters.base_layers import in_head, is_linear, is_packed, target_modules
from loraudit.adapters.quantise import quantise
from loraudit.base.errors import UserError
from loraudit.studies.spec import RunSpec
from loraudit.training.accounting import base_bytes, model_parameters
from tiny import UP_TO_ROUNDING, make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "mpnet", "gpt2"]
BITS = [8, 4, 3, 2]


def spec_for(bits: int, **changes) -> RunSpec:
    return make_spec(**{"base_bits": bits, "base_group": 16, "targets": ("o", "up"), **changes})


def packed(spec: RunSpec, family: str = "bert") -> nn.Module:
    return quantise(tiny_model(family), spec).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_but_the_heads_are_packed(family):
    spec = spec_for(4, model=tiny_entry(family))
    model = packed(spec, family)
    linear = {name: layer for name, layer in model.named_modules() if is_linear(layer)}
    heads = {name for name in linear if in_head(f"{name}.", spec.model.head)}
    assert heads
    assert {name for name, layer in linear.items() if not is_packed(layer)} == heads
    assert target_modules(model, spec.model, spec.lora.targets) == target_modules(
        tiny_model(family), spec.model, spec.lora.targets
    )


def test_the_error_falls_with_every_bit():
    weights = {n: m for n, m in tiny_model().named_modules() if isinstance(m, nn.Linear)}
    totals = []
    for bits in BITS:
        layers = {n: m for n, m in packed(spec_for(bits)).named_modules() if is_packed(m)}
        gaps = [(weights[n].weight - layer.dequantize()).norm() for n, layer in layers.items()]
        totals.append(sum(gap.item() ** 2 for gap in gaps))
    assert totals == sorted(totals)
    # each bit halves the step between levels: the error's square falls about four times
    assert totals[0] * 4**3 < totals[1] and totals[1] * 4 < totals[3]


@pytest.mark.parametrize("bits", BITS)
def test_a_packed_layer_is_its_dequantised_weight(bits):
    layer = packed(spec_for(bits)).get_submodule("bert.encoder.layer.0.intermediate.dense")
    x = torch.randn(3, 5, 16, requires_grad=True)
    expected = nn.functional.linear(x, layer.dequantize(), layer.bias)
    torch.testing.assert_close(layer(x), expected, **UP_TO_ROUNDING)
    (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
    (other,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.allclose(ours, other, rtol=1e-4, atol=1e-5)
    levels = (
        (layer.dequantize().reshape(-1, 16) / layer.meta["scale"]).diff(dim=1).round(decimals=3)
    )
    assert torch.equal(levels, levels.round())  # whole steps between the weights of a group
    assert levels.abs().max() < 2**bits


def test_casting_the_model_casts_scales_zeros_and_biases(batch):
    model = packed(spec_for(3))
    double = copy.deepcopy(model).double()
    assert double(**batch).logits.dtype == torch.float64
    assert torch.allclose(double(**batch).logits.float(), model(**batch).logits, atol=1e-5)
    assert torch.equal(double.float()(**batch).logits, model(**batch).logits)


def test_bytes_are_those_of_the_packed_tensors():
    head = spec_for(4).model.head
    plain = base_bytes(tiny_model(), head)
    found = {bits: base_bytes(packed(spec_for(bits)), head) for bits in BITS}
    linear = [found[bits]["base_linear"] for bits in BITS]
    assert linear == sorted(linear, reverse=True) and linear[0] < plain["base_linear"]
    for value in found.values():  # embeddings and LayerNorm are as they were
        assert value["base"] - value["base_linear"] == plain["base"] - plain["base_linear"]
    layer = packed(spec_for(4)).get_submodule("bert.encoder.layer.0.intermediate.dense")
    alone = base_bytes(nn.ModuleDict({"x": layer}), head)["base"]
    assert alone == 16 * 32 // 2 + 2 * 4 * 32 + 4 * 32  # 4-bit weights, scale and zero, bias


def test_parameters_are_those_that_packed_weights_stand_for():
    expected = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert model_parameters(tiny_model()) == expected
    assert all(model_parameters(packed(spec_for(bits))) == expected for bits in BITS)


def test_an_adapters_bytes_are_not_the_bases():
    spec = spec_for(4)
    bare = base_bytes(packed(spec), spec.model.head)
    for module in (inject, peft_twin):
        assert base_bytes(module.apply(packed(spec), spec), spec.model.head) == bare


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_only_adapter_and_head_train(method):
    spec = spec_for(4, method=method)
    module = inject if method == "lora" else peft_twin
    model = module.apply(packed(spec), spec)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name or in_head(name, spec.model.head) for name in names)


def trained(model: nn.Module) -> nn.Module:
    """Give B and the head other values, as after training."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"init": "error"},
        {"init": "loftq", "loftq_steps": 3},
        {"ranks": "error", "least_rank": 0},
        {"ranks": "error", "init": "loftq"},
    ],
    ids=str,
)
def test_an_export_goes_back_on_its_base_here_and_in_peft(change, batch, tmp_path):
    """The documented way: `apply` makes the run's base again, `switch` puts the adapter on it."""
    spec = spec_for(2, rank=3, **change)
    model = trained(inject.apply(packed(spec), spec))
    expected = model(**batch).logits
    inject.export(model, spec, tmp_path / "adapter")
    again = inject.switch(inject.apply(packed(spec), spec), tmp_path / "adapter").eval()
    # the same plain layers on the same base, packed anew by the same operations
    assert torch.equal(again(**batch).logits, expected)
    base = inject.remove(inject.apply(packed(spec), spec))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**batch).logits, expected, **UP_TO_ROUNDING)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}], ids=str)
def test_a_variant_of_pefts_goes_back_on_a_packed_base(options, batch, tmp_path):
    spec = spec_for(4, method="peft", peft=options)
    model = trained(peft_twin.apply(packed(spec), spec))
    peft_twin.export(model, spec, tmp_path)
    loaded = peft.PeftModel.from_pretrained(packed(spec), tmp_path).eval()
    assert torch.allclose(loaded(**batch).logits, model(**batch).logits, atol=1e-5)


def test_an_adapter_started_from_the_error_is_wrong_on_the_full_base(batch, tmp_path):
    spec = spec_for(2, init="error")
    model = inject.apply(packed(spec), spec).eval()
    inject.export(model, spec, tmp_path / "adapter")
    other = inject.load(tiny_model(), tmp_path / "adapter").eval()
    assert (other(**batch).logits - model(**batch).logits).abs().max() > 0.01


def test_merging_is_refused():
    spec = spec_for(4)
    model = inject.apply(packed(spec), spec)
    with pytest.raises(UserError, match="merge: the base is quantised"):
        inject.merge(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_bits": 5}, r"base_bits.*5.*(2, 3, 4|2, 3, 4 or 8)"),
        ({"method": "full"}, "method 'full' trains weights that base_bits 4 freezes"),
        ({"method": "bitfit"}, "method 'bitfit' trains"),
        ({"precision": "bf16"}, "fp32 or tf32"),
        ({"compute": "compiled"}, "fast or plain"),
        ({"base_bits": None, "init": "error"}, "init 'error' starts from the quantisation error"),
        ({"base_bits": None, "init": "loftq"}, "init 'loftq' starts .* set base_bits .*2, 3, 4, 8"),
        ({"base_bits": None, "ranks": "error"}, "ranks 'error' starts from the quantisation error"),
        (
            {"method": "peft", "peft": {"init_lora_weights": "pissa"}},
            "not go with a quantised base",
        ),
        ({"method": "peft", "peft": {"lora_bias": True}}, "not go with a quantised base"),
    ],
)
def test_what_does_not_go_with_packed_weights_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        make_spec(**{"base_bits": 4, **change})


@pytest.mark.parametrize("group", [64, 12])
def test_a_group_that_does_not_fit_is_refused_with_those_that_do(group):
    with pytest.raises(UserError, match=rf"base_group = {group}: .* 16 inputs \(legal: 8, 16\)"):
        packed(spec_for(4, base_group=group))
