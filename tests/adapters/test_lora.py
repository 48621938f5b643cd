"""LoRALinear: properties, and loralib and PEFT as references."""

import loralib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loraudit.adapters.lora import LoRALinear

pytestmark = pytest.mark.numerics

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 16), st.integers(1, 32))


def layer(d_in=6, d_out=5, rank=3, alpha=12, **more) -> LoRALinear:
    """Make a float64 layer whose B is not zero."""
    made = LoRALinear(nn.Linear(d_in, d_out).double(), rank, alpha, **more)
    nn.init.normal_(made.lora_B)
    return made


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_forward_is_the_papers_equation(shape):
    d_in, d_out, rank, alpha = shape
    made, x = layer(d_in, d_out, rank, alpha), torch.randn(2, 3, d_in, dtype=torch.float64)
    weight = made.base.weight + alpha / rank * made.lora_B @ made.lora_A
    assert torch.allclose(made(x), x @ weight.T + made.base.bias, atol=1e-10)


def test_start_is_the_base_model():
    base = nn.Linear(6, 5)
    x = torch.randn(4, 6)
    assert torch.equal(LoRALinear(base, 3, 12)(x), base(x))


def test_equals_loralib_forward_and_gradients():
    made, reference = layer(), loralib.Linear(6, 5, r=3, lora_alpha=12).double()
    reference.load_state_dict(
        {
            "weight": made.base.weight,
            "bias": made.base.bias,
            "lora_A": made.lora_A,
            "lora_B": made.lora_B,
        }
    )
    x, y = (torch.randn(7, 6, dtype=torch.float64).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    made(x).pow(2).sum().backward()
    reference(y).pow(2).sum().backward()
    for ours, theirs in (
        (x.grad, y.grad),
        (made.lora_A.grad, reference.lora_A.grad),
        (made.lora_B.grad, reference.lora_B.grad),
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_initial_a_equals_pefts_under_the_same_seed(init):
    import peft

    torch.manual_seed(3)
    ours = LoRALinear(nn.Linear(6, 5), 3, 12, init=init)
    config = peft.LoraConfig(
        r=3, target_modules=["0"], init_lora_weights=init != "gaussian" or init
    )
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), config).base_model.model[0]
    torch.manual_seed(11)
    ours.reset_parameters()
    torch.manual_seed(11)
    theirs.reset_lora_parameters("default", config.init_lora_weights)
    assert torch.equal(ours.lora_A, theirs.lora_A["default"].weight)
    assert not ours.lora_B.any()


def test_kaiming_bound_and_gaussian_deviation():
    bound = 1 / 400**0.5
    made = LoRALinear(nn.Linear(400, 5), 64, 1)
    assert made.lora_A.abs().max() <= bound
    assert made.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    made = LoRALinear(nn.Linear(400, 5), 64, 1, init="gaussian")
    assert made.lora_A.std().item() == pytest.approx(1 / 64, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_merge_keeps_outputs_and_unmerge_restores_weights(shape):
    made, x = layer(*shape), torch.randn(3, shape[0], dtype=torch.float64)
    weight, out = made.base.weight.clone(), made(x)
    made.merge()
    made.merge()
    assert torch.allclose(made(x), out, atol=1e-10)
    made.unmerge()
    made.unmerge()
    assert torch.allclose(made.base.weight, weight, atol=1e-12)
    assert torch.allclose(made(x), out, atol=1e-10)


def test_a_step_moves_the_adapter_and_not_the_base():
    made = layer()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    made(torch.randn(4, 6, dtype=torch.float64)).pow(2).sum().backward()
    optimizer.step()
    changed = {name for name, value in made.state_dict().items() if not value.equal(before[name])}
    assert changed == {"lora_A", "lora_B"}


def test_dropout_acts_on_the_lora_path_only():
    made, x = layer(dropout=0.5), torch.ones(1000, 6, dtype=torch.float64)
    with torch.no_grad():
        made.eval()
        assert torch.allclose(made(x), made.base(x) + x @ made.delta_weight().T)
        made.train()
        low = made(x) - made.base(x)
        assert low.std(dim=0).min() > 0
        assert torch.allclose(low.mean(0), (x @ made.delta_weight().T)[0], atol=5.0, rtol=0.5)
        nn.init.zeros_(made.lora_B)
        assert torch.equal(made(x), made.base(x))


def test_shapes_are_checked_in_tests():
    """conftest.py turns the annotations into checks."""
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError):
        layer()(torch.ones(3, 6, dtype=torch.long))


@pytest.mark.parametrize(
    "bad", [{"rank": 0}, {"rank": -1}, {"dropout": 1.0}, {"dropout": -0.1}, {"init": "zeros"}]
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LoRALinear(nn.Linear(3, 3), **{"rank": 2, "alpha": 2, **bad})
