"""Ranks and starts from the quantisation error, against brute force and the SVD's own theory."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.loftq_utils import _low_rank_decomposition

from loraudit.adapters import inject, peft_folder, peft_twin
from loraudit.adapters.base_layers import target_modules
from loraudit.adapters.error_ranks import allocate, error, start, starts
from loraudit.adapters.quantise import HQQLinear, quantise
from loraudit.training.accounting import count_parameters
from tiny import make_spec, tiny_model

pytestmark = pytest.mark.numerics

ALL = ("q", "k", "v", "o", "up", "down")


def spec_for(**changes):
    fields = {"base_bits": 2, "base_group": 16, "targets": ALL, "rank": 3, "alpha": 6}
    return make_spec(**{**fields, "init": "error", **changes})


@st.composite
def problems(draw):
    """Draw matrices of a few ranks and two or three sizes, and a budget."""
    sizes = draw(st.lists(st.sampled_from([2, 5, 6]), min_size=1, max_size=4))
    energy, cost = {}, {}
    for number, size in enumerate(sizes):
        values = draw(st.lists(st.floats(0.01, 100), min_size=1, max_size=4))
        energy[f"m{number}"], cost[f"m{number}"] = np.array(sorted(values)[::-1]), size
    least = draw(st.integers(0, 1))
    budget = sum(sizes) * least + draw(st.integers(0, 40))
    return energy, cost, budget, least


def taken_off(energy, ranks) -> float:
    return sum(values[: ranks[name]].sum() for name, values in energy.items())


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_allocation_is_the_best_of_all(problem):
    energy, cost, budget, least = problem
    ranks = allocate(energy, cost, budget, least)
    spent = sum(cost[name] * rank for name, rank in ranks.items())
    assert spent <= budget
    room = [cost[name] for name, rank in ranks.items() if rank < len(energy[name])]
    assert not room or budget - spent < min(room)
    assert all(min(least, len(energy[n])) <= rank <= len(energy[n]) for n, rank in ranks.items())
    best = max(
        taken_off(energy, dict(zip(energy, choice, strict=True)))
        for choice in itertools.product(
            *(range(min(least, len(values)), len(values) + 1) for values in energy.values())
        )
        if sum(cost[n] * r for n, r in zip(energy, choice, strict=True)) <= budget
    )
    assert taken_off(energy, ranks) == pytest.approx(best)


def test_a_budget_below_the_least_ranks_is_refused():
    with pytest.raises(ValueError, match="budget 3 does not pay for 1 ranks a matrix"):
        allocate({"a": np.ones(2), "b": np.ones(2)}, {"a": 2, "b": 2}, 3, least=1)


@pytest.mark.parametrize("targets", [("q", "v"), ALL])
@pytest.mark.parametrize("least", [0, 1])
def test_trainable_parameters_are_those_of_equal_ranks(targets, least):
    uniform = spec_for(targets=targets, ranks="uniform")
    moved = spec_for(targets=targets, ranks="error", least_rank=least)
    counts, ranks = [], []
    for spec in (uniform, moved):
        model = inject.apply(quantise(tiny_model(), spec), spec)
        counts.append(count_parameters(model, spec.model.head)["adapter"])
        ranks.append([layer.rank for layer in inject.lora_layers(model).values()])
    assert set(ranks[0]) == {3} and len(set(ranks[1])) > 1 and min(ranks[1]) >= 1
    assert 0 <= counts[0] - counts[1] < 32  # a rank of the smallest matrix, (16, 16), costs 32


def test_more_of_the_error_is_taken_off_than_by_equal_ranks():
    left = {}
    for ranks in ("uniform", "error"):
        spec = spec_for(ranks=ranks)
        left[ranks] = sum(value**2 for value in remaining(spec).values())
    assert left["error"] < left["uniform"]


def remaining(spec) -> dict[str, float]:
    """Return ||W - (Q(W) + s B A)||_F of every layer as the run starts."""
    plain = tiny_model()
    model = inject.apply(quantise(tiny_model(), spec), spec)
    return {
        name: torch.linalg.norm(
            plain.get_submodule(name).weight - layer.base.dequantize() - layer.delta_weight()
        ).item()
        for name, layer in inject.lora_layers(model).items()
    }


@pytest.mark.parametrize("alpha", [3, 6, 12])
@pytest.mark.parametrize("ranks", ["uniform", "error"])
def test_the_start_is_the_best_of_its_rank(alpha, ranks):
    """Eckart and Young: rank r leaves of E the root of the sum of the other squared values."""
    spec = spec_for(alpha=alpha, ranks=ranks)
    packed = quantise(tiny_model(), spec)
    model = inject.apply(copy.deepcopy(packed), spec)
    left = remaining(spec)
    for name, layer in inject.lora_layers(model).items():
        values = torch.linalg.svdvals(error(packed.get_submodule(name)))
        assert left[name] == pytest.approx(values[layer.rank :].norm().item(), rel=1e-4)
        assert left[name] < values.norm().item()  # what a start at zero leaves
        assert layer.scaling == pytest.approx(alpha / 3)


def packed_layer(seed: int = 0, bits: int = 2) -> HQQLinear:
    torch.manual_seed(seed)
    weight = torch.randn(24, 32)
    layer = HQQLinear(weight.clone(), None, bits, 16)
    layer.original = weight
    return layer


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_loftqs_last_step_is_the_best_for_its_own_quantised_weight(bits, steps):
    """Each step's SVD is optimal given its Q; the next Q may be a little worse, as in the paper."""
    layer = packed_layer(bits=bits)
    before = error(layer).norm().item()
    found = start(layer, 4, 2.0, steps)
    left = error(layer) - 2.0 * (found.b @ found.a).double()
    assert left.norm().item() == pytest.approx(
        torch.linalg.svdvals(error(layer))[4:].norm().item(), rel=1e-4
    )
    assert left.norm().item() < before


def test_one_step_is_the_start_from_the_error_and_pefts_decomposition():
    one = start(packed_layer(), 4, 1.0, 1)
    peft = _low_rank_decomposition(error(packed_layer()).float(), 4)
    assert torch.allclose(one.b @ one.a, peft["L"] @ peft["R"], atol=1e-4)
    assert torch.allclose(one.b.norm(dim=0), one.a.norm(dim=1), rtol=1e-4)  # shared evenly
    layer = packed_layer()
    held = layer.dequantize()
    start(layer, 4, 1.0, 1)
    assert torch.equal(layer.dequantize(), held)
    start(layer, 4, 1.0, 2)
    assert not torch.equal(layer.dequantize(), held)


def test_several_steps_leave_less_than_one_on_average():
    """No step is sure to: over layers the sum falls, as the paper reports."""
    totals = []
    for steps in (1, 5):
        layers = [packed_layer(seed) for seed in range(8)]
        found = [start(layer, 6, 1.0, steps) for layer in layers]
        totals.append(
            sum(
                (error(m) - (s.b @ s.a).double()).norm() for m, s in zip(layers, found, strict=True)
            )
        )
    assert totals[1] < totals[0]


def test_ranks_above_the_matrix_get_zeros():
    found = start(packed_layer(), 40, 1.0, 1)
    assert found.a.shape == (40, 32) and found.b.shape == (24, 40)
    assert not found.a[24:].any() and not found.b[:, 24:].any()
    assert torch.allclose((found.b @ found.a).double(), error(packed_layer()), atol=1e-5)


def test_the_original_weights_are_let_go():
    spec = spec_for()
    model = quantise(tiny_model(), spec)
    names = target_modules(model, spec.model, spec.lora.targets)
    assert all(model.get_submodule(name).original is not None for name in names)
    starts(model, spec)
    assert all(model.get_submodule(name).original is None for name in names)


@pytest.mark.parametrize("ranks", ["uniform", "error"])
@pytest.mark.parametrize("init", ["kaiming", "gaussian", "error", "loftq"])
def test_the_twins_start_equal(init, ranks):
    spec = spec_for(init=init, ranks=ranks, least_rank=0)
    ours, twin = (
        {peft_folder.own_name(n): p for n, p in model.named_parameters() if p.requires_grad}
        for model in (
            inject.apply(quantise(tiny_model(), spec), spec),
            peft_twin.apply(quantise(tiny_model(), spec), spec),
        )
    )
    assert ours.keys() == twin.keys()
    assert all(torch.equal(ours[name], twin[name]) for name in ours)
