"""AdaLoRA by PEFT: its start, its penalty, and what PEFT makes of the export."""

import peft
import pytest
import torch

from loraudit.studies.method_settings import AdaLoRASettings
from loraudit.training.methods import adalora
from tiny import changed, make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

SPEC = make_spec(
    method="adalora", adalora=AdaLoRASettings(deltaT=1), rank=2, alpha=6, init=None, init_std=None
)


def e_parameters(model) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if "lora_E" in name}


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_peft_loads_the_export_with_equal_outputs(model_type, tmp_path, batch):
    """One layer keeps all of its ranks, one none, the others some."""
    targets = ("up", "down") if model_type == "gpt2" else ("q", "v")
    spec = changed(SPEC, model=tiny_entry(model_type), targets=targets)
    model = adalora.AdaLoRA().apply(tiny_model(model_type), spec).eval()
    masks = ([1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1])
    with torch.no_grad():
        for parameter, mask in zip(e_parameters(model).values(), masks, strict=True):
            parameter.copy_(torch.randn(3, 1) * torch.tensor(mask)[:, None] * 100)
        expected = model(**batch).logits
        adalora.AdaLoRA().export(model, spec, tmp_path)
        loaded = peft.PeftModel.from_pretrained(tiny_model(model_type), tmp_path).eval()
        plain = tiny_model(model_type).eval()(**batch).logits
        assert (expected - plain).abs().max() > 1e-2
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**batch).logits, expected)  # the model is as it was
    assert [len(p) for p in e_parameters(loaded).values()] == [3, 0, 1, 2]


def test_the_start_is_the_seeds_and_changes_no_output(batch):
    one, same, other = (
        adalora.AdaLoRA().apply(tiny_model(), changed(SPEC, seed=seed)).eval() for seed in (0, 0, 1)
    )
    for name, value in one.named_parameters():
        assert torch.equal(value, same.get_parameter(name))
        if "lora_A" in name or "lora_B" in name:
            assert not torch.equal(value, other.get_parameter(name))
    with torch.no_grad():  # E is zero: zero is added to what the frozen layers give
        assert torch.equal(one(**batch).logits, tiny_model().eval()(**batch).logits)
