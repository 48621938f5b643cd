"""Fast dropout has torch's distribution and exact values; statistics allow five deviations."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn

from loraudit.adapters import fast_dropout, inject, peft_twin
from loraudit.adapters.fast_base import fast_base
from loraudit.adapters.fast_dropout import ATTENTION, LEVELS, FastDropout, attend
from loraudit.studies.spec import derive_seed
from loraudit.training.checkpoint import random_state, restore_random_state
from tiny import make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

CLOSE = {"atol": 1e-10, "rtol": 1e-10}
MANY = 400_000
RARE = 1e-6
"""A p-value below which a test of statistics fails."""


def kept(p: float, shape=(MANY,), seed: int | None = None) -> torch.Tensor:
    """Draw a mask: True where an element is kept."""
    if seed is not None:
        torch.manual_seed(seed)
    return FastDropout(p)(torch.ones(shape)) != 0


def correlated(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether two masks agree more or less often than independent ones would."""
    joint = torch.stack([left.flatten().double(), right.flatten().double()])
    return abs(torch.corrcoef(joint)[0, 1].item()) > 5 / math.sqrt(left.numel())


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_the_rate_is_the_one_that_16_bits_can_tell_and_the_mean_is_exact(p):
    share = round(LEVELS * (1 - p)) / LEVELS
    assert abs(share - (1 - p)) < 1 / LEVELS
    mask = kept(p, seed=0)
    assert stats.binomtest(int(mask.sum()), MANY, share).pvalue > RARE
    torch.manual_seed(0)
    x = torch.randn(MANY, dtype=torch.float64)
    torch.manual_seed(0)
    y = FastDropout(p)(x)
    torch.testing.assert_close(y[y != 0] * share, x[y != 0], **CLOSE)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_four_elements_of_a_draw_are_independent(p):
    share = round(LEVELS * (1 - p)) / LEVELS
    quads = kept(p, (MANY, 4), seed=1).int()
    seen = torch.bincount((quads * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16)
    ones = torch.tensor([n.bit_count() for n in range(16)], dtype=torch.float64)
    expected = MANY * share**ones * (1 - share) ** (4 - ones)
    assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > RARE


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 384])
def test_elements_at_any_distance_are_independent(lag):
    mask = kept(0.1, seed=2)
    assert not correlated(mask[:-lag], mask[lag:])


def test_no_call_repeats_another_and_a_seed_repeats_all():
    def draw(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [kept(0.1, (128, 64)) for _ in range(4)]

    first, second = draw(0), draw(1)
    masks = [*first, *second]
    for number, mask in enumerate(masks):
        assert not any(correlated(mask, other) for other in masks[number + 1 :])
    assert all(torch.equal(one, other) for one, other in zip(first, draw(0), strict=True))


def test_two_processes_of_a_run_draw_other_masks():
    masks = [kept(0.1, seed=derive_seed(0, "dropout", process)) for process in (0, 1)]
    assert not correlated(*masks)


def test_a_checkpoint_goes_on_with_the_masks_that_would_have_come():
    kept(0.1, (7, 3), seed=0)
    state = random_state(torch.device("cpu"))
    wanted = [kept(0.1, (5, 3)) for _ in range(3)]
    kept(0.1)
    restore_random_state(state)
    assert all(torch.equal(mask, kept(0.1, (5, 3))) for mask in wanted)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (5, 7), (0, 3), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_shape_and_dtype(shape, dtype):
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    y = FastDropout(0.5)(x)
    y.sum().backward()
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert set(y.detach().flatten().tolist()) <= {0.0, 2.0}
    torch.testing.assert_close(x.grad, y.detach())


def test_other_strides_change_no_element():
    x = torch.randn(6, 8)
    torch.manual_seed(0)
    straight = FastDropout(0.5)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(FastDropout(0.5)(x.T.contiguous().T), straight, rtol=0, atol=0)


def test_the_gradient_is_that_of_finite_differences():
    def dropped(x):
        torch.manual_seed(3)
        return FastDropout(0.3)(x)

    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dropped, (x,))


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-9])
def test_what_16_bits_can_not_tell_is_torchs(p):
    x = torch.randn(50, 50)
    drawn = []
    for kind in (FastDropout, nn.Dropout):
        torch.manual_seed(0)
        drawn.append(kind(p)(x))
    assert torch.equal(*drawn)


def test_in_evaluation_nothing_is_dropped():
    x = torch.randn(4)
    assert FastDropout(0.5).eval()(x) is x


MASKS = {
    "none": None,
    "bool": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None],
    "added": torch.randn(2, 1, 3, 5, dtype=torch.float64),
    "of heads": torch.randn(2, 4, 3, 5, dtype=torch.float64),
}


@pytest.mark.parametrize("name", MASKS)
def test_attention_equals_torchs_without_dropout(name):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 4, n, 6, dtype=torch.float64, requires_grad=True) for n in (3, 5, 5)]
    mask, scale, found = MASKS[name], 0.7, []
    own = attend(*tensors, mask, nn.Identity(), scale)
    torchs = nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask, scale=scale)
    for attended in (own, torchs):
        found.append([attended, *torch.autograd.grad(attended.square().sum(), tensors)])
    torch.testing.assert_close(*found, **CLOSE)


def test_attention_drops_elements_of_the_softmax():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 4, 3, 6, dtype=torch.float64)
    v = torch.eye(3, dtype=torch.float64).expand(2, 4, 3, 3)  # so that the softmax comes out
    probabilities = attend(q, k, v, None, nn.Identity(), 1.0)
    dropped = attend(q, k, v, None, FastDropout(0.5), 1.0)
    left = dropped != 0
    torch.testing.assert_close(dropped[left], 2 * probabilities[left], **CLOSE)
    assert 0 < left.sum() < left.numel()


def made(family: str, compute: str) -> nn.Module:
    spec = make_spec(model=tiny_entry(family), compute=compute)
    return fast_base(tiny_model(family).double(), spec)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert", "gpt2", "deberta-v2"])
def test_a_model_has_fast_dropout_for_compute_fast_only(family, batch):
    kinds = {
        compute: {
            type(module) for module in made(family, compute).modules() if hasattr(module, "inplace")
        }
        for compute in ("fast", "plain", "compiled")
    }
    assert FastDropout in kinds["fast"] and nn.Dropout not in kinds["fast"]
    assert FastDropout not in kinds["plain"] | kinds["compiled"]
    fast, plain = made(family, "fast").eval(), made(family, "plain").eval()
    torch.testing.assert_close(fast(**batch).logits, plain(**batch).logits, **CLOSE)
    fast.train()
    torch.manual_seed(0)
    one, other = fast(**batch).logits, fast(**batch).logits
    torch.manual_seed(0)
    assert torch.equal(one, fast(**batch).logits) and not torch.equal(one, other)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert"])
def test_without_anything_to_drop_gradients_are_the_plain_models(family, batch):
    found = []
    for compute in ("fast", "plain"):
        model = made(family, compute)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        loss = model(**batch).logits.square().sum()
        found.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for fast, plain in zip(*found, strict=True):
        if fast is not None:
            torch.testing.assert_close(fast, plain, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_both_twins_draw_the_same_masks(family, batch):
    spec = make_spec(model=tiny_entry(family))
    base = made(family, "fast")
    logits = []
    for apply in (inject.apply, peft_twin.apply):
        model = apply(copy.deepcopy(base), spec).train()
        torch.manual_seed(5)
        logits.append(model(**batch).logits)
    torch.testing.assert_close(*logits, **CLOSE)


def test_the_mean_of_attention_over_masks_is_attention_without_dropout():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 3, 4, dtype=torch.float64).expand(3, 3000, 2, 3, 4)
    whole = attend(q[:1], k[:1], v[:1], None, nn.Identity(), 0.5)
    drawn = attend(q, k, v, None, FastDropout(0.1), 0.5)  # one mask a row
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - whole[0]).abs() < 5 * error).all()


def test_transformers_is_told_of_the_attention_where_torch_computes_it():
    assert made("bert", "fast").config._attn_implementation == ATTENTION
    assert made("bert", "plain").config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("attribute", "option"), [(None, None), (True, None), (False, True)])
def test_causal_attention_is_left_to_torch_as_transformers_reads_it(monkeypatch, attribute, option):
    """A module without `is_causal` counts as causal, and what the call says comes first."""
    seen = []
    monkeypatch.setattr(
        fast_dropout, "sdpa_attention_forward", lambda *a, **options: seen.append(options)
    )
    module, tensor = nn.Module(), torch.randn(1, 2, 4, 8)
    if attribute is not None:
        module.is_causal = attribute
    options = {} if option is None else {"is_causal": option}
    fast_dropout.attention_forward(module, tensor, tensor, tensor, None, 0.1, **options)
    assert seen == [options]
    module.is_causal = False
    fast_dropout.attention_forward(module, tensor, tensor, tensor, None, 0.1)
    assert len(seen) == 1
