"""PEFT's other methods by configuration alone, and LoRA+."""

import dataclasses

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from loraudit.adapters import inject, peft_folder, peft_twin
from loraudit.base.errors import UserError
from loraudit.studies.peft_options import GOVERNED, lora_fields
from loraudit.studies.spec import RunSpec, digest
from loraudit.studies.values import validated
from loraudit.training.schedule import learning_rate
from tiny import make_spec, tiny_model

pytestmark = pytest.mark.numerics

VARIANTS = [
    {"use_rslora": True},
    {"use_dora": True},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "orthogonal"},
    {"use_dora": True, "use_rslora": True},
    {"lora_bias": True},
]


def spec_for(options: dict, **changes) -> RunSpec:
    return make_spec(**{"method": "peft", "rank": 4, "peft": options, **changes})


def trained(model: nn.Module) -> nn.Module:
    """Move every trainable tensor, as training does."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def test_the_fields_are_the_installed_pefts():
    own = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    common = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    assert lora_fields() == own - common
    assert set(GOVERNED) < lora_fields()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_an_export_gives_the_same_outputs_when_peft_loads_it(options, batch, tmp_path):
    """PiSSA and OLoRA change the base: PEFT makes the same change again when it loads."""
    spec = spec_for(options)
    model = trained(peft_twin.apply(tiny_model(), spec))
    expected = model(**batch).logits
    peft_twin.export(model, spec, tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    assert torch.allclose(loaded(**batch).logits, expected, atol=1e-5)
    if options == {"init_lora_weights": "orthogonal"}:  # plain LoRA, once it has started
        ours = inject.load(tiny_model(), tmp_path).eval()
        assert torch.allclose(ours(**batch).logits, expected, atol=1e-5)
    else:
        with pytest.raises(UserError, match=r"not plain LoRA|changes the base model"):
            inject.load(tiny_model(), tmp_path)


def test_a_variant_is_what_its_configuration_says(batch):
    plain = peft_twin.apply(tiny_model(), spec_for({}))
    models = {str(o): peft_twin.apply(tiny_model(), spec_for(o)) for o in VARIANTS}
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    rslora = models["{'use_rslora': True}"].get_submodule(layer)
    assert rslora.scaling["default"] == pytest.approx(16 / 4**0.5)
    dora = models["{'use_dora': True}"].get_submodule(layer)
    magnitude = dora.lora_magnitude_vector["default"].weight
    assert torch.allclose(magnitude, dora.base_layer.weight.norm(dim=1))
    for name in ("{'use_rslora': True}", "{'use_dora': True}"):  # they start where LoRA does
        same = models[name].get_submodule(layer).lora_A["default"].weight
        assert torch.equal(same, plain.get_submodule(layer).lora_A["default"].weight)
    pissa = models["{'init_lora_weights': 'pissa'}"].get_submodule(layer)
    product = (
        pissa.scaling["default"] * pissa.lora_B["default"].weight @ (pissa.lora_A["default"].weight)
    )
    original = tiny_model().get_submodule(layer.removeprefix("base_model.model.")).weight
    assert torch.allclose(pissa.base_layer.weight + product, original, atol=1e-5)
    assert torch.linalg.matrix_rank(product) == 4


@pytest.mark.parametrize("options", [{"init_lora_weights": "orthogonal"}, {"use_dora": True}])
def test_the_runs_seed_governs_the_start(options):
    same = [peft_twin.apply(tiny_model(), spec_for(options)) for _ in range(2)]
    torch.manual_seed(5)
    other = peft_twin.apply(tiny_model(), spec_for(options, seed=1))
    one, two, three = (
        torch.cat([p.flatten() for n, p in m.named_parameters() if "lora_A" in n])
        for m in (*same, other)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft": {"use_dorra": True}}, "peft: key: 'use_dorra' is not known; .* 'use_dora'"),
        ({"peft": {"r": 4}}, r"peft: 'r' is governed by the run \(use rank\)"),
        ({"peft": {"target_modules": ["query"]}}, r"'target_modules' .* \(use targets\)"),
        ({"peft": {"bias": "all"}}, r"'bias' is governed by the run \(use method: bitfit\)"),
        ({"peft": {"init_lora_weights": "eva"}}, "'eva' needs more than a configuration"),
        ({"peft": {"init_lora_weights": "loftq"}}, r"'loftq' needs more .* \(use init: loftq\)"),
        ({"peft": {"init_lora_weights": "pissa_niter_4"}}, "at random, .*use pissa"),
        (
            {"peft": {"use_dora": True}, "method": "lora"},
            "goes with method 'peft' only, not 'lora'",
        ),
        ({"peft": {"init_lora_weights": "pissa"}, "init": "gaussian"}, "set one of them"),
        ({"lora_plus": 0.0}, "lora_plus = 0.0: .*greater than 0"),
    ],
)
def test_what_is_not_a_configuration_is_refused(change, message):
    fields = {**make_spec(method="peft").model_dump(mode="json"), **change}
    with pytest.raises(UserError, match=message):
        validated(RunSpec, fields, "spec")


def test_a_value_that_peft_refuses_is_one_sentence():
    with pytest.raises(UserError, match=r"peft = .*PEFT says: "):
        peft_twin.apply(tiny_model(), spec_for({"init_lora_weights": "no such start"}))


def test_at_their_defaults_the_fields_change_no_digest():
    spec = make_spec()
    assert digest(spec) == digest(make_spec(peft={}, lora_plus=None, base_bits=None))
    assert digest(spec) != digest(make_spec(lora_plus=16.0))


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_lora_plus_has_the_rates_and_steps_of_pefts_optimizer(method, batch):
    """With a frozen head: PEFT's gives the higher rate to the head's biases too."""
    spec = make_spec(method=method, lora_plus=16.0, head="frozen")
    theirs = trained(peft_twin.apply(tiny_model(), make_spec(head="frozen")))
    ours = trained((inject if method == "lora" else peft_twin).apply(tiny_model(), spec))
    settings = {"lr": spec.learning_rate, "weight_decay": 0.0}
    reference = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, loraplus_lr_ratio=16.0, **settings
    )
    names = {parameter: peft_folder.own_name(n) for n, parameter in theirs.named_parameters()}
    for group in reference.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(learning_rate(spec, names[parameter]))
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameter], "lr": learning_rate(spec, name)}
            for name, parameter in ours.named_parameters()
            if parameter.requires_grad
        ],
        **settings,
    )
    for _ in range(5):
        for model, stepper in ((theirs, reference), (ours, optimizer)):
            model(**batch).logits.square().sum().backward()
            stepper.step()
            stepper.zero_grad()
    values = [
        {peft_folder.own_name(n): p for n, p in model.named_parameters() if p.requires_grad}
        for model in (theirs, ours)
    ]
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        assert torch.allclose(value, values[1][name], atol=1e-5)
