"""The cross-check passes on good twins and fails on planted faults."""

import pytest
import torch

from loraudit.adapters import inject, peft_twin
from loraudit.adapters.lora import LoRALinear
from loraudit.adapters.lora_variants import LoRAPacked
from loraudit.adapters.quantise import quantise
from loraudit.base.errors import UserError
from loraudit.crosscheck import whole_model
from loraudit.crosscheck.whole_model import (
    ACCUMULATED,
    ROWS,
    STEPS,
    compare,
    crosscheck,
    layer_cases,
    require_agreement,
)
from tiny import changed, make_spec, tiny_entry, tiny_model

pytestmark = [pytest.mark.numerics, pytest.mark.slow]

SPEC = make_spec(targets=("q", "o"), learning_rate=1e-2)


def batches(steps: int = 4) -> list[dict]:
    torch.manual_seed(5)
    return [
        {
            "input_ids": torch.randint(4, 60, (4, 7)),
            "attention_mask": torch.ones(4, 7, dtype=torch.long),
            "labels": torch.randint(0, 2, (4,)),
        }
        for _ in range(steps)
    ]


def failed(spec=SPEC, family: str = "bert") -> set[str]:
    rows = compare(tiny_model(family), spec, batches(), "float64")
    return {row["check"] for row in rows if not row["ok"]}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "mpnet", "gpt2"])
@pytest.mark.parametrize("targets", [("q", "v"), ("o", "down"), ("q", "k", "v", "o", "up", "down")])
def test_twins_agree(family, targets):
    assert not failed(make_spec(model=tiny_entry(family), targets=targets), family)


@pytest.mark.parametrize(
    "change", [{"lora_dropout": 0.1}, {"head": "frozen"}, {"init": "gaussian"}]
)
def test_twins_agree_under_every_switch(change):
    assert not failed(changed(SPEC, **change))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "mpnet", "gpt2"])
def test_twins_agree_on_a_quantised_base(family, bits):
    spec = quantised(bits, model=tiny_entry(family), lora_dropout=0.1)
    rows = compare(quantise(tiny_model(family), spec), spec, batches(), "float64")
    assert {"merging refused", "optimizer steps"} < {row["check"] for row in rows}
    assert not [row for row in rows if not row["ok"]]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("change", [{"init": "error"}, {"init": "loftq"}, {"lora_plus": 4.0}])
def test_twins_agree_when_they_start_from_the_error(change, dtype):
    spec = quantised(2, ranks="error", least_rank=0, rank=3, **change)
    rows = compare(quantise(tiny_model(), spec), spec, batches(), dtype)
    assert not [row for row in rows if not row["ok"]]


BF16_CHECKS = {"outputs", "gradients", "merged outputs", "merged weights", "merged equals unmerged"}
FAST = changed(SPEC, precision="bf16", learning_rate=0.1)
"""A run in bf16 whose updates are soon as large as the weights, so that a wrong one shows."""


def in_bf16(spec=FAST, family: str = "bert") -> dict[str, dict]:
    """Return the rows of the comparison in bf16: {check: row}."""
    rows = compare(tiny_model(family), spec, batches(), "float32")
    return {row["check"]: row for row in rows if row["dtype"] == "bfloat16"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"targets": ("q", "k", "v", "o", "up", "down"), "lora_dropout": 0.1},
        {"compute": "plain"},
        {"head": "frozen"},
    ],
)
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_the_twins_of_a_run_in_bf16_agree_in_bf16_and_merged(family, change):
    rows = in_bf16(changed(FAST, model=tiny_entry(family), **change), family)
    assert set(rows) == BF16_CHECKS
    assert not [row for row in rows.values() if not row["ok"]]


def test_a_merge_that_is_wrong_only_into_bf16_fails(monkeypatch):
    good = LoRALinear.merge

    def careless(layer):
        scaling = layer.scaling
        if layer.base.weight.dtype == torch.bfloat16:
            layer.scaling = 1.0
        good(layer)
        layer.scaling = scaling

    monkeypatch.setattr(LoRALinear, "merge", careless)
    wrong = {check for check, row in in_bf16().items() if not row["ok"]}
    assert wrong >= {"merged weights"} and not wrong & {"outputs", "gradients"}


def test_an_adapter_that_is_lost_only_in_bf16_fails(monkeypatch):
    good = whole_model.hold_frozen

    def careless(model, *rest):
        good(model, *rest)
        for layer in inject.lora_layers(model).values():  # ours: PEFT's twin has none
            layer.lora_B.data.zero_()

    monkeypatch.setattr(whole_model, "hold_frozen", careless)
    assert {check for check, row in in_bf16().items() if not row["ok"]} >= BF16_CHECKS - {
        "merged equals unmerged"
    }


def quantised(bits: int, **changes):
    fields = {"base_bits": bits, "base_group": 16, "targets": ("o", "up"), "learning_rate": 1e-2}
    return make_spec(**fields, **changes)


def test_a_merge_into_packed_weights_fails(monkeypatch):
    monkeypatch.setattr(LoRAPacked, "merge", lambda self: None)
    spec = quantised(4)
    rows = compare(quantise(tiny_model(), spec), spec, batches(), "float64")
    assert {row["check"] for row in rows if not row["ok"]} == {"merging refused"}


def test_all_checks_on_real_rows(tiny):
    rows = crosscheck(SPEC, tiny / "tokens", tiny / "model")
    twins = [row for row in rows if not row["check"].startswith("layer")]
    assert {row["dtype"] for row in twins} == {"float64", "float32"}
    assert len({row["check"] for row in twins}) == 15
    assert (STEPS, ACCUMULATED, ROWS) == (8, 2, 2)
    layers = [row for row in rows if row["check"].startswith("layer")]
    assert {row["dtype"] for row in layers} == {"float64", "float32", "bfloat16"}
    assert {row["against"] for row in layers} == {"PEFT", "loralib"}
    require_agreement(rows, "tiny")


def test_a_layer_case_per_shape():
    model, wide = tiny_model(), changed(SPEC, targets=("q", "v", "up", "down"))
    cases = layer_cases(model, wide)
    assert [(case.kind, case.d_in, case.d_out) for case in cases] == [
        ("linear", 16, 16),
        ("linear", 16, 32),
        ("linear", 32, 16),
    ]
    assert {(case.rank, case.alpha) for case in cases} == {(SPEC.lora.rank, SPEC.lora.alpha)}


def scaling_is_alpha(layer):
    layer.scaling = layer.alpha


def a_and_b_swapped(layer):
    layer.lora_B.data, layer.lora_A.data = (
        torch.nn.init.kaiming_uniform_(layer.lora_B.data.clone()),
        torch.zeros_like(layer.lora_A),
    )


def bias_missing(layer):
    layer.base.bias = None


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (scaling_is_alpha, {"optimizer steps", "gradients"}),
        (a_and_b_swapped, {"initial values"}),
        (bias_missing, {"outputs", "optimizer steps"}),
    ],
)
def test_a_planted_fault_fails(monkeypatch, fault, seen):
    good = inject.apply

    def faulty(model, spec):
        model = good(model, spec)
        for layer in inject.lora_layers(model).values():
            if isinstance(layer, LoRALinear):
                fault(layer)
        return model

    monkeypatch.setattr(inject, "apply", faulty)
    assert seen <= failed()


def test_a_wrong_merge_fails(monkeypatch):
    def merge_unscaled(layer):
        layer.base.weight.data += layer.lora_B.data @ layer.lora_A.data
        layer.merged = True

    monkeypatch.setattr(LoRALinear, "merge", merge_unscaled)
    assert failed() >= {"merged equals unmerged", "merged outputs"}


def test_a_merge_that_does_nothing_fails(monkeypatch):
    for name in ("merge", "unmerge"):
        monkeypatch.setattr(LoRALinear, name, lambda self: None)
    assert failed() == {"merged weights"}


def test_a_base_that_is_changed_under_the_twins_fails(monkeypatch):
    """The twins share it, so that no comparison of the two would show it."""
    good = peft_twin.apply

    def careless(model, spec):
        model.get_submodule("bert.encoder.layer.0.attention.self.key").weight.data.add_(1e-9)
        return good(model, spec)

    monkeypatch.setattr(peft_twin, "apply", careless)
    assert failed() == {"base unchanged"}


def test_memory_holds_the_frozen_tensors_once(monkeypatch):
    """The twins' frozen tensors are the same objects; PEFT keeps a frozen head besides."""
    seen = []

    def trajectory(ours, twin, spec, batches):
        models = ours, twin
        seen.extend({id(p) for p in m.parameters() if not p.requires_grad} for m in models)
        return 0.0

    monkeypatch.setattr(whole_model, "trajectory", trajectory)
    compare(tiny_model(), SPEC, batches(), "float64")
    assert seen[0] and seen[0] <= seen[1]


def test_other_layers_or_a_frozen_head_fail(monkeypatch):
    good = inject.apply
    wide = changed(SPEC, targets=("q", "o", "down"))
    monkeypatch.setattr(inject, "apply", lambda model, spec: good(model, wide))
    assert failed() == {"same layers"}
    frozen = changed(SPEC, head="frozen")
    monkeypatch.setattr(inject, "apply", lambda model, spec: good(model, frozen))
    assert failed() == {"same layers"}


def test_an_mlp_matched_by_its_last_name_fails(monkeypatch):
    """The classic: "dense" alone names attention's output and both layers of the MLP."""
    good = peft_twin.lora_config

    def loose(spec, names):
        config = good(spec, names)
        config.target_modules = {"query", "dense"}
        return config

    monkeypatch.setattr(peft_twin, "lora_config", loose)
    assert failed() == {"same layers"}


def test_disagreement_is_an_error_that_names_the_checks():
    row = {"check": "outputs", "against": "PEFT", "dtype": "float64", "difference": 0.5}
    row["tolerance"] = 1e-10
    with pytest.raises(UserError, match=r"failed: outputs \(float64, PEFT\) differs by 0.5, toler"):
        require_agreement([{**row, "ok": False}, {**row, "ok": True}], "c")
