"""The fast path equals the plain one: values, gradients, trajectories, in float64."""

import copy

import pytest
import torch

from loraudit.adapters import inject
from loraudit.adapters.base_layers import hold_frozen
from loraudit.adapters.fast_lora import FastLoRALinear, LowRankLinear
from loraudit.adapters.first_token import FirstTokenAttention, FirstTokenBlock, shorten
from loraudit.adapters.lora import LoRALinear
from loraudit.base.errors import UserError
from loraudit.training.method import method_of
from tiny import MILD, changed, make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

CLOSE = {"atol": 1e-10, "rtol": 1e-10}
CUT = {
    "bert": FirstTokenAttention,
    "electra": FirstTokenAttention,
    "roberta": FirstTokenAttention,
    "mpnet": FirstTokenBlock,
}
"""What the last layer of a family whose head reads the first token has in place of its own."""

TRAJECTORY = {"atol": 1e-8, "rtol": 1e-8}
"""AdamW divides by the root of a squared gradient and so magnifies the rounding of small ones."""


def pair(d_in=6, d_out=10, rank=3, bias=True, dropout=0.0, dtype=torch.float64):
    """Make a plain layer and a fast one with the same values, B not zero."""
    torch.manual_seed(0)
    base = torch.nn.Linear(d_in, d_out, bias=bias, dtype=dtype)
    plain = LoRALinear(base, rank, 16, dropout)
    torch.nn.init.normal_(plain.lora_B)
    fast = FastLoRALinear(copy.deepcopy(base), rank, 16, dropout)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (1, 1, 6)])
@pytest.mark.parametrize("wants_input_gradient", [True, False])
def test_a_layer_equals_the_plain_one(rank, bias, shape, wants_input_gradient):
    outputs, gradients = [], []
    for layer in pair(rank=rank, bias=bias):
        torch.manual_seed(1)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=wants_input_gradient)
        h = layer(x)
        h.backward(torch.randn_like(h))
        outputs.append(h)
        wanted = [layer.lora_A.grad, layer.lora_B.grad]
        gradients.append(wanted + [x.grad] * wants_input_gradient)
        assert layer.base.weight.grad is None
    torch.testing.assert_close(*outputs, **CLOSE)
    torch.testing.assert_close(*gradients, **CLOSE)


def test_the_gradient_is_that_of_finite_differences():
    _, fast = pair()
    torch.manual_seed(1)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight, bias = fast.base.weight, fast.base.bias
    assert torch.autograd.gradcheck(
        lambda x, a, b: LowRankLinear.apply(x, weight, bias, a, b, 2.0),
        (x, fast.lora_A, fast.lora_B),
    )


def test_strided_inputs_and_gradients():
    outputs = []
    for layer in pair():
        torch.manual_seed(1)
        x = torch.randn(6, 4, dtype=torch.float64).T.requires_grad_()
        h = layer(x)
        h.transpose(0, 1).backward(torch.randn(10, 4, dtype=torch.float64))
        outputs.append([h, layer.lora_A.grad, layer.lora_B.grad])
    torch.testing.assert_close(*outputs, **CLOSE)


@pytest.mark.parametrize("how", ["dropout", "autocast", "merged", "dtype"])
def test_where_one_node_is_not_exact_the_plain_layer_runs(how):
    plain, fast = pair(dropout=0.5 if how == "dropout" else 0.0)
    x = torch.randn(4, 6, dtype=torch.float64)
    if how == "merged":
        plain.merge(), fast.merge()
    if how == "dtype":
        plain.base.float(), fast.base.float()
        x = x.float()
    found = []
    for layer in (plain, fast):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            assert not (layer is fast and fast.exact(x))
            found.append(layer(x))
    assert torch.equal(*found)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_in_bf16_it_is_as_near_to_float64_as_the_plain_layer(bias, x_dtype):
    """Frozen weight in bf16, A and B in float32, autocast: values and gradients."""
    plain, fast = pair(d_in=64, d_out=96, rank=8, bias=bias, dtype=torch.float32)
    held = plain.base.weight.bfloat16(), plain.base.bias.bfloat16() if bias else None
    torch.manual_seed(1)
    inputs, change = torch.randn(2, 16, 64).to(x_dtype), torch.randn(2, 16, 96)
    for layer in (plain, fast):
        layer.base.bfloat16()
    exact = copy.deepcopy(plain).double()
    exact.base.weight.data = held[0].double()
    found = []
    for layer in (exact, plain, fast):
        x = (inputs.double() if layer is exact else inputs.clone()).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=layer is not exact):
            assert layer is not fast or fast.exact(x)
            h = layer(x)
        assert layer is exact or h.dtype == torch.bfloat16
        h.backward(change.to(h.dtype))
        assert layer.lora_A.grad.dtype == layer.lora_A.dtype and x.grad.dtype == x.dtype
        found.append(
            [v.detach().double() for v in (h, x.grad, layer.lora_A.grad, layer.lora_B.grad)]
        )
    for right, slow, quick in zip(*found, strict=True):
        off = [(value - right).norm() / right.norm() for value in (slow, quick)]
        assert off[1] < 0.02  # bf16 rounds at 0.004
        assert off[1] < 1.2 * off[0]


@pytest.mark.parametrize("family", CUT)
def test_a_model_in_bf16_trains_along_the_plain_ones_trajectory(family, batch):
    """Both as a run holds them; a step apart by as much as bf16 rounds, no more."""
    base = models(family)
    pair = []
    for model in base:
        model.float()
        hold_frozen(model, tiny_entry(family).head, torch.bfloat16)
        used = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in used} == {torch.float32}
        pair.append((model, used, torch.optim.SGD(used, lr=1e-2)))
    for _ in range(5):
        for model, _, optimizer in pair:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**batch).logits
            torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 1, 0])).backward()
            optimizer.step()
            optimizer.zero_grad()
    for plain, fast in zip(pair[0][1], pair[1][1], strict=True):
        torch.testing.assert_close(fast, plain, atol=2e-3, rtol=2e-2)


def test_the_weight_in_float32_takes_the_plain_layer_under_autocast():
    """It would be cast at every pass; `hold_frozen` casts it once."""
    _, fast = pair(dtype=torch.float32)
    x = torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fast.exact(x)
        fast.base.bfloat16()
        assert fast.exact(x)


def test_dropout_off_is_exact_again():
    _, fast = pair(dropout=0.5)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert not fast.exact(x)
    assert fast.eval().exact(x)


def models(family, targets="all", implementation="sdpa"):
    """Make the plain model and the fast one, dropout off, B not zero."""
    base = tiny_model(family).double()
    base.config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    if implementation == "sdpa" and family == "mpnet":
        pytest.skip("transformers has MPNet's attention in one implementation only")
    base.set_attn_implementation(implementation)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    made = {}
    for compute in ("plain", "fast"):
        spec = make_spec(model=tiny_entry(family), targets=targets, compute=compute)
        made[compute] = inject.apply(shorten(copy.deepcopy(base), spec), spec)
        generator = torch.Generator().manual_seed(0)
        for layer in inject.lora_layers(made[compute]).values():
            with torch.no_grad():
                layer.lora_B.normal_(std=MILD, generator=generator)
    return made["plain"].train(), made["fast"].train()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("family", CUT)
def test_a_model_trains_along_the_same_trajectory(family, padded, implementation, batch):
    """Twenty AdamW steps: every trainable tensor, after every step."""
    pair = models(family, implementation=implementation)
    inputs = batch if padded else {"input_ids": batch["input_ids"]}
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2, fused=True)
        for m in pair
    ]
    for _ in range(20):
        for model, optimizer in zip(pair, optimizers, strict=True):
            logits = model(**inputs).logits
            torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])).backward()
            optimizer.step()
            optimizer.zero_grad()
        plain, fast = (dict(m.named_parameters()) for m in pair)
        torch.testing.assert_close(fast, plain, **TRAJECTORY)


@pytest.mark.parametrize("family", CUT)
def test_parameters_keep_their_names_and_order(family):
    plain, fast = models(family, implementation="eager")
    assert list(plain.state_dict()) == list(fast.state_dict())


@pytest.mark.parametrize("family", ["distilbert", "deberta-v2", "gpt2"])
def test_other_families_keep_their_last_layer(family):
    entry = tiny_entry(family)
    model = shorten(tiny_model(family), make_spec(model=entry, targets="all"))
    assert not any(isinstance(module, tuple(CUT.values())) for module in model.modules())


@pytest.mark.parametrize("family", CUT)
def test_only_the_last_layer_is_cut(family):
    model = shorten(tiny_model(family), make_spec(model=tiny_entry(family)))
    cut = [n for n, m in model.named_modules() if isinstance(m, CUT[family])]
    block = f"{family}.encoder.layer.1.attention"
    assert cut == [block if family == "mpnet" else f"{block}.self"]
    seen = []
    model.base_model.encoder.layer[1].output.register_forward_hook(
        lambda m, i, out: seen.append(out)
    )
    model(input_ids=torch.ones(3, 7, dtype=torch.long))
    assert seen[0].shape == (3, 1, 16)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("method", ["full", "bitfit", "head", "peft"])
def test_every_method_has_the_same_outputs_on_the_cut_layer(method, family, batch):
    spec = make_spec(method=method, model=tiny_entry(family))
    gradients = []
    for compute in ("plain", "fast"):
        made = changed(spec, compute=compute)
        model = method_of(made).apply(shorten(tiny_model(family).double(), made), made).eval()
        model(**batch).logits.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, **CLOSE)


def test_a_wrong_name_of_the_blocks_is_refused():
    entry = tiny_entry().model_copy(update={"first_token": "encoder.layer.*.attn"})
    with pytest.raises(UserError, match=r"no module 'encoder.layer.\*.attn'"):
        shorten(tiny_model("bert"), make_spec(model=entry))
    entry = entry.model_copy(update={"first_token": "encoder.layer.*.output"})
    with pytest.raises(UserError, match=r"layer\.1\.output' is no attention block of BERT's kind"):
        shorten(tiny_model("bert"), make_spec(model=entry))


def test_a_deep_copy_is_independent(batch):
    _, fast = models("bert")
    other = copy.deepcopy(fast)
    with torch.no_grad():
        other.bert.encoder.layer[1].attention.self.value.base.weight.zero_()
    assert not torch.equal(fast(**batch).logits, other(**batch).logits)
