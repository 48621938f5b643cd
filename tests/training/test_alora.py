"""ALoRA's score, its moves, and what comes out of a run."""

import itertools
import json
from collections import Counter

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraudit.adapters import inject
from loraudit.adapters.base_layers import blocks_of
from loraudit.adapters.lora import LoRALinear
from loraudit.base.errors import UserError
from loraudit.studies.method_settings import ALoRASettings
from loraudit.training.block_outputs import KeptOutputs
from loraudit.training.methods import alora
from loraudit.training.resize_ranks import grow, prune
from tiny import MILD, changed, make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

SPEC = make_spec(method="alora", alora=ALoRASettings(), rank=3, alpha=6)


def toy(ranks=(2, 3)) -> tuple[torch.nn.Module, dict[str, LoRALinear]]:
    """Make two LoRA layers around a tanh, all values random, in float64."""
    torch.manual_seed(0)
    sizes = ((5, 4), (4, 3))
    layers = [
        LoRALinear(torch.nn.Linear(*size).double(), rank, alpha=4)
        for size, rank in zip(sizes, ranks, strict=True)
    ]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B)
    model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    return model, {"0": layers[0], "2": layers[1]}


def minus_mse(model, x, y) -> float:
    with torch.no_grad():
        return -torch.nn.functional.mse_loss(model(x), y).item()


def test_scoring_makes_its_gates_on_the_device(monkeypatch):
    """The meta device stands for a GPU: each gate that began on the CPU would be copied there."""
    model, layers = toy()
    model.to("meta")
    inner, seen = alora.gated, []

    def gated(layers, gates):
        seen.extend(gate.device.type for gate in gates.values())
        return inner(layers, gates)

    monkeypatch.setattr(alora, "gated", gated)
    scores = alora.importance(layers, lambda: 0.0)
    assert set(seen) == {"meta"}
    assert {name: len(values) for name, values in scores.items()} == {"0": 2, "2": 3}


def by_hand(model, x, y, kept: set[tuple[str, int]]) -> float:
    """Compute S with numpy, from the weights that the kept ranks make."""
    h = x.numpy()
    for name, layer in model.named_children():
        if isinstance(layer, torch.nn.Tanh):
            h = np.tanh(h)
            continue
        weight = layer.base.weight.numpy(force=True).copy()
        for r in range(layer.rank):
            if (name, r) in kept:
                b, a = layer.lora_B.numpy(force=True)[:, r], layer.lora_A.numpy(force=True)[r]
                weight += 4 / layer.rank * np.outer(b, a)
        h = h @ weight.T + layer.base.bias.numpy(force=True)
    return -float(((h - y.numpy()) ** 2).mean())


@pytest.mark.parametrize("alone", ["model", "module"])
def test_the_score_is_equation_6_computed_by_brute_force(alone):
    model, layers = toy()
    x, y = torch.randn(8, 5).double(), torch.randn(8, 3).double()
    every = {(name, r) for name, layer in layers.items() for r in range(layer.rank)}
    found = alora.importance(layers, lambda: minus_mse(model, x, y), alone)
    for name, r in every:
        others = {p for p in every if alone == "module" and p[0] != name}
        expected = (
            by_hand(model, x, y, every)
            - by_hand(model, x, y, every - {(name, r)})
            + by_hand(model, x, y, others | {(name, r)})
        )
        assert found[name][r].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("alone", ["model", "module"])
def test_a_planted_useful_rank_scores_highest_and_a_zero_rank_lowest(alone):
    """Each rank of either layer moves a number of its own, by more or less, one by nothing."""
    names, layers = ("0", "1"), []
    for name in names:
        layer = LoRALinear(torch.nn.Linear(4, 4).double(), 2, alpha=2)
        layer.lora_A.data, layer.lora_B.data = torch.eye(4).double()[:2], torch.zeros(4, 2).double()
        layer.lora_B.data[:2] = torch.diag(torch.tensor({"0": [0.5, 0], "1": [0.1, 2]}[name]))
        layers.append(layer)
    model = torch.nn.ModuleList(layers)

    def outputs() -> torch.Tensor:
        return torch.cat([layer(x) for layer in model], dim=1)

    x = torch.randn(64, 4).double()
    y = outputs().detach()
    found = alora.importance(
        dict(zip(names, layers, strict=True)),
        lambda: -torch.nn.functional.mse_loss(outputs(), y).item(),
        alone,
    )
    ordered = sorted((v.item(), name, r) for name, vs in found.items() for r, v in enumerate(vs))
    assert ordered[-1][1:] == ("1", 1)
    if alone == "model":
        assert [place[1:] for place in ordered] == [("0", 1), ("1", 0), ("0", 0), ("1", 1)]
    else:  # here a rank pays for what is lost with the strong one of its own layer
        assert [place[1:] for place in ordered] == [("1", 0), ("0", 1), ("0", 0), ("1", 1)]


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "distilbert", "deberta-v2", "mpnet", "gpt2"]
)
@pytest.mark.parametrize("alone", ["model", "module"])
def test_passes_that_start_at_a_ranks_block_give_the_same_scores_to_the_bit(
    model_type, alone, batch
):
    targets = ("q", "up")
    spec = changed(SPEC, model=tiny_entry(model_type), targets=targets)
    model = moved(alora.ALoRA().apply(tiny_model(model_type), spec)).eval()
    layers, blocks, run = inject.lora_layers(model), blocks_of(model, spec.model), []
    halves = [{k: v[rows] for k, v in batch.items()} for rows in (slice(2), slice(2, 4))]

    @torch.no_grad()
    def score() -> float:
        return sum(model(**half).logits[:, 0].sum().item() for half in halves)

    for name in blocks:  # a layer inside each block tells whether the block is run
        called = inject.wrapped(model)  # a part of a fused layer is not called by itself
        inner = next(n for n in called if n.startswith(f"{name}."))
        called[inner].register_forward_hook(lambda *_, name=name: run.append(name))
    whole = alora.importance(layers, score, alone)
    every = Counter(run)
    run.clear()
    found = alora.importance(layers, score, alone, prefix=KeptOutputs(blocks))
    assert all(torch.equal(found[name], whole[name]) for name in layers)
    first, last = blocks
    assert every[first] == every[last] == Counter(run)[last]
    assert Counter(run)[first] < every[first]  # not run again for ranks above it
    assert not any("forward" in vars(block) for block in blocks.values())


def test_processes_that_share_the_work_get_the_same_scores():
    model, layers = toy()
    x, y = torch.randn(8, 5).double(), torch.randn(8, 3).double()

    def score():
        return minus_mse(model, x, y)

    parts: list = []
    for number in range(3):  # each gathers what came before it: the last has all
        found = alora.importance(
            layers, score, share=(number, 3), gather=lambda mine: parts.extend(mine) or parts
        )
    alone = alora.importance(layers, score)
    assert all(torch.equal(found[name], alone[name]) for name in alone)


SCORES = st.lists(
    st.lists(st.floats(-1, 1), max_size=4).map(lambda v: torch.tensor(v).double()),
    min_size=1,
    max_size=6,
).map(lambda values: {f"layer{i}": v for i, v in enumerate(values)})


@given(SCORES, st.integers(1, 30))
def test_the_budget_stays_and_the_lowest_go_to_layers_that_lost_none(scores, count):
    total = sum(map(len, scores.values()))
    count = min(count, total - 1)
    if count < 1:
        return
    keep, added = alora.decide(scores, count)
    kept = [v.item() for name, vs in scores.items() for v in vs[keep[name]]]
    gone = [v.item() for name, vs in scores.items() for v in vs[~keep[name]]]
    assert len(gone) == count == sum(added.values())
    assert max(gone) <= min(kept)
    whole = [name for name in scores if keep[name].all()]
    takers = whole or list(scores)
    assert {name for name, n in added.items() if n} <= set(takers)
    given = [added[name] for name in takers]
    assert max(given) - min(given) <= 1
    for more, fewer in itertools.permutations(takers, 2):
        if added[more] > added[fewer] and len(scores[more]) and len(scores[fewer]):
            assert scores[more].mean() >= scores[fewer].mean()


def moved(model):
    """Move ranks of a model with adapters about: one layer ends at 0, others at 1, 5 and 3."""
    layers = list(inject.lora_layers(model).values())
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B, std=MILD)
    prune(layers[0], torch.zeros(3, dtype=torch.bool))
    prune(layers[1], torch.tensor([False, True, False]))
    grow(layers[2], 2, seed=0)
    torch.nn.init.normal_(layers[2].lora_B, std=MILD)
    return model


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("compute", ["plain", "fast"])
def test_peft_and_we_load_moved_ranks_with_equal_outputs(model_type, compute, tmp_path, batch):
    targets = ("up", "down") if model_type == "gpt2" else ("q", "v")
    changes = {"model": tiny_entry(model_type), "targets": targets, "compute": compute}
    spec = changed(SPEC, **changes)
    model = moved(alora.ALoRA().apply(tiny_model(model_type), spec)).eval()
    alora.ALoRA().export(model, spec, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["rank_pattern"].values()) == [1, 5]
    assert sorted(config["alpha_pattern"].values()) == [2, 10]  # alpha / r stays 2
    assert len(config["target_modules"]) == 3  # one layer is at rank 0
    with torch.no_grad():
        expected = model(**batch).logits
        plain = tiny_model(model_type).eval()(**batch).logits
        theirs = peft.PeftModel.from_pretrained(tiny_model(model_type), tmp_path).eval()
        ours = inject.load(tiny_model(model_type), tmp_path).eval()
        assert (expected - plain).abs().max() > 1e-2
        torch.testing.assert_close(theirs(**batch).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert {layer.scaling for layer in inject.lora_layers(ours).values()} == {2}


def test_rounds_come_when_the_paper_says():
    settings = ALoRASettings(first=1.0, between=0.25, rounds=8)
    assert alora.round_steps(settings, 100, 300) == list(range(100, 300, 25))
    assert alora.round_steps(settings, 100, 150) == [100, 125]  # none after the last step
    assert alora.round_steps(ALoRASettings(first=0.01, between=0.01), 4, 100)[:3] == [1, 2, 3]
    with pytest.raises(UserError, match=r"alora.first: .* after step 100, the run has 100"):
        alora.round_steps(settings, 100, 100)


def test_the_scoring_batch_is_the_seeds():
    one, same, other = (alora.scoring_rows(ALoRASettings(), 100, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len(set(one)) == 32
    with pytest.raises(UserError, match=r"alora.rows: 32 asked, .* has 31 \(legal: 1 to 31\)"):
        alora.scoring_rows(ALoRASettings(), 31, 0)
