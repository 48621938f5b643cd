"""The frozen part of a model that is held in bf16."""

import copy

import pytest
import torch

from loraudit.adapters.base_layers import hold_frozen, in_head, is_linear
from loraudit.training.method import method_of
from tiny import make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

METHODS = ["lora", "peft", "adalora", "bitfit", "head", "full"]
KINDS = [("bert", method, "trained") for method in METHODS]
KINDS += [("gpt2", "lora", "trained"), ("distilbert", "peft", "trained")]
KINDS += [("deberta-v2", "lora", "trained"), ("mpnet", "lora", "trained")]


def prepared(family: str, method: str, head: str = "trained"):
    """Return a tiny model as the method prepares it, and the run."""
    changes = {"head": head} if method in ("lora", "peft") else {}
    spec = make_spec(
        model=tiny_entry(family), method=method, targets="all", compute="plain", **changes
    )
    return method_of(spec).apply(tiny_model(family), spec), spec


@pytest.mark.parametrize(("family", "method", "head"), [*KINDS, ("bert", "lora", "frozen")])
def test_holding_the_frozen_layers_in_bf16_changes_no_bit_under_autocast(
    family, method, head, batch
):
    model, spec = prepared(family, method, head)
    held = copy.deepcopy(model)
    hold_frozen(held, spec.model.head, torch.bfloat16)
    found = []
    for each in (model, held):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = each.train()(**batch).logits
        logits.float().square().sum().backward()
        gradients = {n: p.grad for n, p in each.named_parameters() if p.grad is not None}
        found.append((logits, gradients))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys() != set()
    assert all(torch.equal(found[0][1][name], grad) for name, grad in found[1][1].items())


@pytest.mark.parametrize(("family", "method", "head"), [*KINDS, ("bert", "peft", "frozen")])
def test_what_is_trained_or_saved_or_not_linear_stays_in_float32(family, method, head):
    model, spec = prepared(family, method, head)
    hold_frozen(model, spec.model.head, torch.bfloat16)
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            linear = is_linear(module) and not in_head(f"{name}.", spec.model.head)
            held = linear and not parameter.requires_grad
            assert parameter.dtype == (torch.bfloat16 if held else torch.float32), f"{name}.{key}"
