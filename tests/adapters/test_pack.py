"""A packed model computes for each run's rows what the run's own model does."""

import copy

import pytest
import torch
from torch import nn

from loraudit.adapters.inject import apply, lora_layers
from loraudit.adapters.lora import LoRALinear
from loraudit.adapters.pack import Pack, PackLinear, Rows, copy_sharing
from loraudit.base.errors import UserError
from tiny import MILD, make_spec, tiny_entry, tiny_model

KINDS = {
    "bert": [("q", "v"), ("o", "up", "down")],
    "roberta": [("q", "v"), ("q",)],
    "distilbert": [("q", "v"), ("k",)],
    "mpnet": [("q", "v"), ("o",)],
    "gpt2": [("o",), ("up", "down")],
    "llama": [("q", "v"), ("gate", "down")],
}
"""Families, and the targets of their two runs."""


def packed(kind: str, all_targets, **fields):
    """Make a pack of two runs in float64 that have learnt something, and copies of their models."""
    base, entry, models = tiny_model(kind).double(), tiny_entry(kind), []
    for rank, targets in enumerate(all_targets, 2):
        spec = make_spec(model=entry, targets=targets, rank=rank, alpha=3.0, seed=rank, **fields)
        model = apply(copy_sharing(base, entry.head), spec)
        torch.manual_seed(rank)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=MILD)
        models.append(model)
    alone = [copy.deepcopy(model) for model in models]
    return Pack(base, models, entry.head), models, alone


@pytest.mark.parametrize("compute", ["fast", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_runs_alone(kind, compute, batch):
    pack, models, alone = packed(kind, KINDS[kind], lora_dropout=0.0, compute=compute)
    weights = torch.randn(8, 2, dtype=torch.float64)
    other = {name: values.flip(0) for name, values in batch.items()}
    both = {name: torch.cat([batch[name], other[name]]) for name in batch}
    pack.pull()
    logits = pack.model.eval()(**both).logits
    (logits * weights).sum().backward()
    pack.push()
    for number, (rows, model) in enumerate(zip((batch, other), alone, strict=True)):
        own = slice(4 * number, 4 * number + 4)
        expected = model.eval()(**rows).logits
        assert (logits[own] - expected).abs().max() < 1e-12
        (expected * weights[own]).sum().backward()
        found = dict(models[number].named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert (found[name].grad - parameter.grad).abs().max() < 1e-10, name
                assert found[name].grad.is_contiguous()


def test_the_frozen_weights_are_held_once():
    _, models, _ = packed("bert", KINDS["bert"])
    first, second = ({id(p) for p in model.parameters() if not p.requires_grad} for model in models)
    assert first == second
    trained = [{id(p) for p in model.parameters() if p.requires_grad} for model in models]
    assert not trained[0] & trained[1]


def test_the_stacked_matrices_stay_zero_beyond_a_runs_own():
    pack, _, _ = packed("bert", KINDS["bert"])
    pack.pull()
    for layer, own in pack.layers:
        for run, of in enumerate(own):
            rank = of.rank if of else 0
            assert not layer.lora_A[run, rank:].any() and not layer.lora_B[run, :, rank:].any()


def test_a_layer_that_shares_products_among_rows_is_refused(batch):
    """DeBERTa projects its relative positions, which no row owns, by the query and key layers."""
    pack, _, _ = packed("deberta-v2", [("q", "v"), ("q",)])
    pack.pull()
    both = {name: torch.cat([values, values]) for name, values in batch.items()}
    with pytest.raises(UserError, match=r"query_proj.*can't be trained together"):
        pack.model.eval()(**both)


def test_each_run_has_its_own_dropout_at_the_right_rate():
    """With W0 = 0 and A = B = 1, an output is the mask of its input over the keep probability."""
    p, n, runs = 0.3, 20_000, 3
    base = nn.Linear(1, 1, bias=False).requires_grad_(False)
    nn.init.zeros_(base.weight)
    rows = Rows()
    rows.count = n * runs
    layer = PackLinear(base, [LoRALinear(base, 1, 1.0, p) for _ in range(runs)], "layer", rows)
    nn.init.ones_(layer.lora_A)
    nn.init.ones_(layer.lora_B)
    torch.manual_seed(0)
    first, again = (layer(torch.ones(n * runs, 1)).detach().view(runs, n) for _ in range(2))
    kept = torch.cat([first, again]) > 0
    assert torch.allclose(first[first > 0], torch.tensor(1 / (1 - p)))
    assert ((kept.double().mean(1) - (1 - p)).abs() < 4 * (p * (1 - p) / n) ** 0.5).all()
    correlations = torch.corrcoef(kept.double())[~torch.eye(2 * runs, dtype=torch.bool)]
    assert correlations.abs().max() < 4.5 / n**0.5
    assert (layer.eval()(torch.ones(n * runs, 1)) == 1).all()


def test_a_run_without_an_adapter_on_a_layer_has_the_frozen_layer():
    pack, _, alone = packed("bert", [("q",), ("v",)], lora_dropout=0.0)
    assert {len([of for of in own if of]) for _, own in pack.layers} == {1}
    assert all(len(lora_layers(model)) == 2 for model in alone)
