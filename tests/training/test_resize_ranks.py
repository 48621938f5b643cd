"""Ranks switched off, taken away and added: what changes and what must not."""

import pytest
import torch

from loraudit.adapters.fast_lora import FastLoRALinear
from loraudit.adapters.lora import LoRALinear
from loraudit.training.resize_ranks import gated, grow, prune, resize

pytestmark = pytest.mark.numerics

D_IN, D_OUT, RANK = 6, 5, 4


def trained(kind=LoRALinear, init: str = "kaiming"):
    """Make a float64 layer, and its optimizer after three steps."""
    torch.manual_seed(0)
    layer = kind(torch.nn.Linear(D_IN, D_OUT).double(), RANK, alpha=8, init=init)
    optimizer = torch.optim.AdamW((layer.lora_A, layer.lora_B), lr=0.1)
    for _ in range(3):
        step(layer, optimizer)
    return layer, optimizer


def step(layer, optimizer) -> None:
    layer(torch.randn(7, D_IN).double()).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def mask(*kept: int) -> torch.Tensor:
    return torch.tensor([rank in kept for rank in range(RANK)])


@pytest.mark.parametrize("kind", [LoRALinear, FastLoRALinear])
def test_a_gate_does_what_pruning_does_and_leaves_no_trace(kind):
    layer, _ = trained(kind)
    x, before = torch.randn(7, D_IN).double(), layer.lora_B.detach().clone()
    whole = layer(x)
    with gated({"it": layer}, {"it": mask(0, 2)}):
        gated_out = layer(x)
    assert torch.equal(layer.lora_B, before)
    prune(layer, mask(0, 2))
    torch.testing.assert_close(layer(x), gated_out)
    assert (gated_out - whole).abs().max() > 1e-3


def test_ranks_move_on_a_device():
    """The meta device stands for a GPU; masks and new rows begin on the CPU."""
    layer = LoRALinear(torch.nn.Linear(D_IN, D_OUT), RANK, alpha=8).to("meta")
    optimizer = torch.optim.AdamW(trained_pair(layer))
    for parameter in trained_pair(layer):
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(3.0), **moments}
    with gated({"it": layer}, {"it": mask(0, 2)}):
        assert layer.lora_B.device.type == "meta"
    prune(layer, mask(0, 2), optimizer)
    grow(layer, 3, seed=1, optimizer=optimizer)
    assert layer.rank == 5
    moved = [*trained_pair(layer), *optimizer.param_groups[0]["params"]]
    moved += [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    assert {tensor.device.type for tensor in moved} == {"meta"}
    resize(layer, 2, optimizer)
    assert {tensor.device.type for tensor in trained_pair(layer)} == {"meta"}


def trained_pair(layer) -> list[torch.nn.Parameter]:
    return [layer.lora_A, layer.lora_B]


def test_a_gate_is_undone_after_an_error():
    layer, _ = trained()
    before = layer.lora_B.detach().clone()
    with pytest.raises(RuntimeError), gated({"it": layer}, {"it": mask()}):
        raise RuntimeError
    assert torch.equal(layer.lora_B, before)


@pytest.mark.parametrize("kind", [LoRALinear, FastLoRALinear])
def test_pruning_a_zero_rank_and_growing_change_no_output(kind):
    layer, _ = trained(kind)
    layer.lora_B.data[:, 1] = 0
    x = torch.randn(7, D_IN).double()
    before = layer(x)
    prune(layer, mask(0, 2, 3))
    torch.testing.assert_close(layer(x), before)
    grow(layer, 2, seed=1)
    torch.testing.assert_close(layer(x), before)
    assert (layer.rank, layer.lora_A.shape, layer.lora_B.shape) == (5, (5, D_IN), (D_OUT, 5))
    assert layer.scaling == 8 / RANK == layer.alpha / layer.rank


def test_optimizer_state_of_the_ranks_that_stay_keeps_every_bit():
    layer, optimizer = trained()
    parameters = layer.lora_A, layer.lora_B
    before = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in parameters]
    prune(layer, mask(0, 3), optimizer)
    grow(layer, 1, seed=1, optimizer=optimizer)
    parameters = layer.lora_A, layer.lora_B
    assert [*optimizer.state] == optimizer.param_groups[0]["params"] == [*parameters]
    for dim, (old, parameter) in enumerate(zip(before, parameters, strict=True)):
        new = optimizer.state[parameter]
        assert torch.equal(new["step"], old["step"])
        for key in ("exp_avg", "exp_avg_sq"):
            assert new[key].shape == parameter.shape
            stayed, added = new[key].split([2, 1], dim)
            assert torch.equal(stayed, old[key].index_select(dim, torch.tensor([0, 3])))
            assert not added.any()


@pytest.mark.parametrize("kind", [LoRALinear, FastLoRALinear])
def test_training_goes_on_in_the_new_shapes_and_trains_the_new_rank(kind):
    layer, optimizer = trained(kind)
    layer(torch.randn(7, D_IN).double()).sum().backward()  # gradients of the old shape are there
    prune(layer, mask(1, 2), optimizer)
    grow(layer, 1, seed=1, optimizer=optimizer)
    optimizer.zero_grad()
    before = layer.lora_B.detach().clone()
    step(layer, optimizer)
    assert layer.lora_A.grad is None
    assert (layer.lora_B - before)[:, 2].abs().min() > 0


def test_new_rows_are_drawn_as_at_the_start_and_from_their_seed_alone():
    def rows(seed: int, init: str = "kaiming") -> torch.Tensor:
        layer = LoRALinear(torch.nn.Linear(1000, 500), RANK, alpha=8, init=init, init_std=None)
        grow(layer, 200, seed)
        return layer.lora_A.detach()[RANK:]

    state = torch.get_rng_state()
    layer, _ = trained()
    torch.set_rng_state(state)
    grow(layer, 1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))
    assert 0.99 < rows(1).abs().max() * 1000**0.5 <= 1  # U(-1/sqrt(d_in), 1/sqrt(d_in))
    assert rows(1, "gaussian").std() == pytest.approx(1 / RANK, rel=0.01)  # of the first rank


@pytest.mark.parametrize("kind", [LoRALinear, FastLoRALinear])
def test_a_layer_of_rank_zero_is_the_frozen_layer_and_may_grow_again(kind):
    layer, optimizer = trained(kind)
    prune(layer, mask(), optimizer)
    x = torch.randn(7, D_IN).double()
    assert torch.equal(layer(x), layer.base(x))
    assert torch.equal(layer.delta_weight(), torch.zeros(D_OUT, D_IN).double())
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    grow(layer, 2, seed=1, optimizer=optimizer)
    step(layer, optimizer)
    assert layer.rank == 2
    assert layer.lora_B.abs().min() > 0


def test_resizing_makes_room_for_saved_values():
    layer, _ = trained()
    other, _ = trained()
    prune(other, mask(2))
    resize(layer, other.rank)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(7, D_IN).double()
    assert torch.equal(layer(x), other(x))


def test_a_rank_above_the_width_and_a_merged_layer_are_refused():
    layer, _ = trained()
    with pytest.raises(ValueError, match=r"rank 6 is above the layer's width 5"):
        grow(layer, 2, seed=0)
    layer.merge()
    with pytest.raises(ValueError, match="unmerge"):
        prune(layer, mask(0))
