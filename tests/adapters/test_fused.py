"""Adapters on parts of a fused layer: GPT-2's query, key and value."""

import copy
import json

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraudit.adapters import inject, peft_folder, peft_twin
from loraudit.adapters.base_layers import part_rows, targets_of
from loraudit.adapters.fused import FastFusedLoRA, FusedLoRA
from loraudit.adapters.lora import LoRALinear
from loraudit.adapters.parts import Layout, SavedPart, fold, free, layouts_of, unfold
from loraudit.adapters.quantise import quantise
from loraudit.adapters.warm_start import start_from
from loraudit.analysis.saved_updates import BaseWeights, read_updates
from loraudit.base.errors import UserError
from loraudit.studies.entries import FusedPart, ModelEntry, place_of
from loraudit.tools.verify import _adapter_values
from loraudit.training.accounting import adapter_ranks, count_parameters
from loraudit.training.health import unmoved
from loraudit.training.resize_ranks import grow, prune
from tiny import MILD, UP_TO_ROUNDING, make_spec, save_tiny_model, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

QKV = ("q", "k", "v")


def spec_of(targets=("q", "v"), **changes):
    return make_spec(model=tiny_entry("gpt2"), targets=targets, rank=3, alpha=12, **changes)


def trained(spec, apply=inject.apply):
    """Adapt the tiny GPT-2; adapters and head then hold random values, as after training."""
    model = apply(tiny_model("gpt2"), spec)
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=MILD)
    return model.eval()


def linear(kind: str, d_in: int = 6, d_out: int = 15) -> nn.Module:
    torch.manual_seed(0)
    layer = Conv1D(d_out, d_in) if kind == "conv1d" else nn.Linear(d_in, d_out)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.double()


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("cls", [FusedLoRA, FastFusedLoRA])
def test_a_fused_layer_is_what_separate_layers_are(cls, kind):
    """Outputs and all gradients, in float64; parts of 8, 4 and 3 outputs, the middle one frozen."""
    base, parts = linear(kind), {"q": ((0, 8),), "k": ((8, 12),), "v": ((12, 15),)}
    fused = cls(copy.deepcopy(base))
    weight = base.weight.T if kind == "conv1d" else base.weight
    separate = {}
    for name, ((start, stop),) in parts.items():
        own = nn.Linear(6, stop - start).double()
        own.weight.data, own.bias.data = weight[start:stop].clone(), base.bias[start:stop].clone()
        separate[name] = own
        if name != "k":
            separate[name] = LoRALinear(own, 2, 8)
            part = fused.add(name, ((start, stop),), 2, 8)
            for left, right in ((part.lora_A, separate[name].lora_A), (part.lora_B, None)):
                nn.init.normal_(left) if right is None else left.data.copy_(right)
            separate[name].lora_B.data.copy_(part.lora_B)
    x = [torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)]
    x.append(x[0].detach().clone().requires_grad_())
    found, expected = fused(x[0]), torch.cat([own(x[1]) for own in separate.values()], -1)
    assert torch.allclose(found, expected, atol=1e-12)
    for out in (found, expected):
        out.pow(2).sum().backward()
    assert torch.allclose(x[0].grad, x[1].grad, atol=1e-10)
    for name in ("q", "v"):
        for key in ("lora_A", "lora_B"):
            mine, theirs = getattr(getattr(fused, name), key), getattr(separate[name], key)
            assert torch.allclose(mine.grad, theirs.grad, atol=1e-10)


@pytest.mark.parametrize("targets", [("q",), ("q", "v"), QKV, (*QKV, "o", "up", "down")])
def test_the_count_is_that_of_separate_matrices(targets):
    spec = spec_of(targets)
    sizes = {"up": 16 + 64, "down": 16 + 64}
    wanted = 2 * sum(3 * sizes.get(name, 32) for name in targets)
    for apply in (inject.apply, peft_twin.apply):
        counts = count_parameters(apply(tiny_model("gpt2"), spec), spec.model.head)
        assert counts["adapter"] == wanted


def test_each_part_has_a_draw_of_its_own():
    one, other = (inject.lora_layers(trained_start(t)) for t in (("q", "v"), QKV))
    for name, layer in one.items():
        assert torch.equal(layer.lora_A, other[name].lora_A)
    q, v = (one[f"transformer.h.0.attn.c_attn.{name}"].lora_A for name in ("q", "v"))
    assert not torch.equal(q, v)


def trained_start(targets):
    return inject.apply(tiny_model("gpt2"), spec_of(targets))


@pytest.mark.parametrize("change", [{}, {"compute": "plain"}, {"lora_dropout": 0.3}])
def test_merging_keeps_outputs_and_unmerging_restores_the_weights(change, batch):
    model = trained(spec_of(**change))
    expected, before = model(**batch).logits, copy.deepcopy(model.state_dict())
    inject.merge(model)
    inject.merge(model)
    torch.testing.assert_close(model(**batch).logits, expected, **UP_TO_ROUNDING)
    k = slice(16, 32)
    for name, weight in model.state_dict().items():
        if name.endswith("c_attn.base.weight"):
            assert torch.equal(weight[:, k], before[name][:, k])  # the key's part is not touched
            assert not torch.allclose(weight, before[name], atol=1e-3)
    inject.unmerge(model)
    inject.unmerge(model)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], **UP_TO_ROUNDING)
    inject.remove(model)
    assert isinstance(model.transformer.h[0].attn.c_attn, Conv1D)


@pytest.mark.parametrize("targets", [("q", "v"), QKV, ("v",)])
def test_export_pads_with_zeros_and_loads_in_peft_and_here(targets, batch, tmp_path):
    spec = spec_of(targets)
    model = trained(spec)
    expected = model(**batch).logits
    inject.export(model, spec, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model("gpt2"), tmp_path).eval()
    ours = inject.load(tiny_model("gpt2"), tmp_path).eval()
    torch.testing.assert_close(theirs(**batch).logits, expected, **UP_TO_ROUNDING)
    torch.testing.assert_close(ours(**batch).logits, expected, **UP_TO_ROUNDING)
    _, state = peft_folder.read_folder(tmp_path)
    b = state["transformer.h.0.attn.c_attn.lora_B"]
    assert b.shape == (48, 3 * len(targets))
    rows = {"q": slice(0, 16), "k": slice(16, 32), "v": slice(32, 48)}
    for number, name in enumerate(targets):
        block = b[:, 3 * number : 3 * number + 3].clone()
        assert block[rows[name]].all()
        block[rows[name]] = 0
        assert not block.any()


def test_the_twin_holds_its_zeros_and_its_export_is_ours(batch, tmp_path):
    spec = spec_of(("q", "v"))
    ours, twin = inject.apply(tiny_model("gpt2"), spec), peft_twin.apply(tiny_model("gpt2"), spec)
    for name, model in (("ours", ours), ("twin", twin)):
        (inject if name == "ours" else peft_twin).export(model, spec, tmp_path / name)
    left, right = (peft_folder.read_parts(tmp_path / name) for name in ("ours", "twin"))
    assert left[1].keys() == right[1].keys() and left[2] == right[2]
    assert all(torch.equal(left[1][name], right[1][name]) for name in left[1])
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        twin(**batch).logits.square().sum().backward()
        optimizer.step()
    b = twin.get_submodule("base_model.model.transformer.h.0.attn.c_attn").lora_B["default"].weight
    assert b[:16, :3].all() and b[32:, 3:].all()
    assert not b[:16, 3:].any() and not b[16:32].any() and not b[32:, :3].any()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"h": [48, []]}', '{"transformer.h.0.attn.c_attn": [48, [["q", 9, []]]]}'],
)
def test_parts_that_do_not_fit_the_adapter_are_refused(text, tmp_path):
    spec = spec_of(("q", "v"))
    inject.export(trained(spec), spec, tmp_path)
    (tmp_path / "parts.json").write_text(text)
    with pytest.raises(UserError, match=r"parts\.json: its parts do not fit the adapter"):
        peft_folder.read_parts(tmp_path)


@pytest.mark.parametrize(
    "rows",
    [([[0, 16]], [[-16, 0]]), ([[0, 16]], [[8, 24]]), ([[0, 16]], [[40, 56]]), ([[0, 16]], [])],
)
def test_parts_outside_their_layer_or_in_each_other_are_refused(rows, tmp_path):
    spec = spec_of(("q", "v"))
    inject.export(trained(spec), spec, tmp_path)
    path = tmp_path / "parts.json"
    content = json.loads(path.read_text())
    for layer, (d_out, parts) in content.items():
        moved = [[name, rank, own] for (name, rank, _), own in zip(parts, rows, strict=True)]
        content[layer] = [d_out, moved]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"its parts do not fit the adapter: .*"):
        peft_folder.read_parts(tmp_path)


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_padding_is_not_counted_when_a_run_is_verified(method, tmp_path):
    """One part's B has not moved: our code has it as a matrix, PEFT as some of a layer's zeros."""
    spec = spec_of(QKV, method=method)
    code = peft_twin if method == "peft" else inject
    model = code.apply(tiny_model("gpt2"), spec)
    parts = (SavedPart(name, 3, ((16 * i, 16 * i + 16),)) for i, name in enumerate(QKV))
    layout = Layout(48, tuple(parts))
    for name, parameter in model.named_parameters():
        if "lora_B" in name and not name.endswith(".k.lora_B"):
            parameter.data += 1.0 if method == "lora" else free(layout, parameter)
    code.export(model, spec, tmp_path)
    counted = count_parameters(model, spec.model.head)["adapter"]
    still = 2 if method == "lora" else 0
    assert _adapter_values(tmp_path / "adapter_model.safetensors", method == "peft") == (
        counted,
        still,
    )
    assert len(unmoved(model)) == still


def test_folding_and_unfolding_are_inverse():
    model = trained(spec_of(QKV))
    state, layouts = inject.adapter_state(model, ("score",)), layouts_of(model)
    again = unfold(fold(state, layouts), layouts)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_section_7_reads_the_parts(tmp_path):
    """Delta W of each part is that of its rows, beside the part's rows of W0."""
    save_tiny_model(tmp_path / "model", "gpt2")
    spec = spec_of(("q", "v", "up"))
    model = trained(spec)
    inject.export(model, spec, tmp_path / "adapter")
    updates = read_updates(tmp_path / "adapter", spec.model.modules)
    assert list(updates) == [(n, name) for n in (0, 1) for name in ("q", "v", "up")]
    layers = inject.lora_layers(model)
    base = BaseWeights(tmp_path / "model", 4)
    weight = tiny_model("gpt2").transformer.h[1].attn.c_attn.weight.T
    for name, rows in (("q", slice(0, 16)), ("v", slice(32, 48))):
        layer = layers[f"transformer.h.1.attn.c_attn.{name}"]
        values = torch.linalg.svdvals(layer.delta_weight().double())[:3]
        torch.testing.assert_close(updates[1, name].delta.values.double(), values, **UP_TO_ROUNDING)
        assert torch.equal(base.weight(updates[1, name]), weight[rows])


def test_a_warm_start_copies_the_parts(tmp_path):
    spec = spec_of(("q", "v"))
    source = trained(spec)
    inject.export(source, spec, tmp_path)
    start = {"run": "t/m/v/s0", "spec_sha256": "0" * 64, "tensors": "adapter"}
    warm = make_spec(
        model=tiny_entry("gpt2"), targets=("q", "v"), rank=3, alpha=12, warm_start=start
    )
    for apply in (inject.apply, peft_twin.apply):
        model = apply(tiny_model("gpt2"), warm)
        assert len(start_from(model, warm, tmp_path)) == (8 if apply is inject.apply else 4)
    ours = inject.apply(tiny_model("gpt2"), warm)
    start_from(ours, warm, tmp_path)
    found, expected = (inject.adapter_state(m, ()) for m in (ours, source))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ranks_of_a_part_move_alone(batch, tmp_path):
    model = trained(spec_of(QKV))
    layers = inject.lora_layers(model)
    name = "transformer.h.0.attn.c_attn.k"
    expected = model(**batch).logits
    grow(layers[name], 2, 1)
    torch.testing.assert_close(model(**batch).logits, expected, **UP_TO_ROUNDING)
    prune(layers[name], torch.zeros(5, dtype=torch.bool))
    assert adapter_ranks(model)[name] == 0 and adapter_ranks(model)[name[:-1] + "q"] == 3
    assert layouts_of(model)["transformer.h.0.attn.c_attn"].parts[1].matrix == "v"
    for layer in layers.values():
        nn.init.normal_(layer.lora_B, std=MILD)
    expected = model(**batch).logits
    inject.export(model, spec_of(QKV), tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model("gpt2"), tmp_path).eval()
    torch.testing.assert_close(theirs(**batch).logits, expected, **UP_TO_ROUNDING)


def test_parts_of_a_quantised_layer(batch):
    spec = spec_of(base_bits=4, base_group=16)
    base = quantise(tiny_model("gpt2"), spec)
    ours, twin = (apply(copy.deepcopy(base), spec) for apply in (inject.apply, peft_twin.apply))
    with torch.no_grad():
        left, right = ours.eval()(**batch).logits, twin.eval()(**batch).logits
    torch.testing.assert_close(left, right, **UP_TO_ROUNDING)
    with pytest.raises(UserError, match="the base is quantised"):
        inject.merge(ours)


GQA = {"module": "h.*.attn.c_attn", "of": ["n_head", 1, 1]}


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        ({"part": 1, "of": 3}, ((16, 32),)),
        ({"part": 0, "of": ["n_head", "n_layer", 2]}, ((0, 16),)),
        ({"part": 2, "of": [4, 1, 1]}, ((40, 48),)),
        ({"part": 1, "of": 3, "repeats": "n_head"}, ((8, 16), (32, 40))),
    ],
)
def test_rows_of_a_part(part, rows):
    found = part_rows(
        tiny_model("gpt2"),
        "transformer.h.0.attn.c_attn",
        FusedPart(module="h.*.attn.c_attn", **part),
        "x",
    )
    assert found == rows


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"of": 5}, r"modules: q: the 48 outputs of '.*c_attn' can't be cut into parts of shares"),
        ({"of": 3, "repeats": 5}, "can't be cut 5 times into"),
        ({"of": ["n_heads", 1]}, r"'n_heads' is not known; did you mean 'n_head'"),
    ],
)
def test_a_part_that_does_not_divide_is_refused(part, reason):
    module = {"module": "h.*.attn.c_attn", "part": 0, **part}
    entry = tiny_entry("gpt2").model_copy(update={"modules": {"q": FusedPart(**module)}})
    with pytest.raises(UserError, match=reason):
        targets_of(tiny_model("gpt2"), entry, ("q",))


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ({"q": {**GQA, "part": 3}}, r"part 3 of 3 \(legal: 0 to 2\)"),
        ({"q": {**GQA, "part": 0}, "k": {**GQA, "part": 0}}, "q and k are both part 0 of"),
        ({"q": {**GQA, "part": 0}, "k": {**GQA, "part": 1, "of": 3}}, "q and k cut .* two ways"),
        ({"q": {**GQA, "part": 0}, "k": "h.*.attn.c_attn"}, "q and k are both 'h"),
        ({"q": {**GQA, "module": "h.0.attn", "part": 0}}, r"one part of the name has to be \*"),
    ],
)
def test_parts_that_overlap_are_refused(modules, reason):
    with pytest.raises(ValueError, match=reason):
        ModelEntry(name="m", source={"folder": "x"}, modules=modules, head=["score"])


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "adalora", "init": None},
        {"method": "peft", "peft": {"use_dora": True}},
        {"init": "error", "base_bits": 4, "base_group": 16},
        {"ranks": "error", "base_bits": 4, "base_group": 16},
    ],
)
def test_what_adapts_whole_layers_only_is_refused_on_parts(changes):
    with pytest.raises(UserError, match=r"adapts whole layers only.* q, v as parts .*o, up, down"):
        spec_of(**changes)


def test_the_place_of_a_part():
    modules = tiny_entry("gpt2").modules
    assert place_of("transformer.h.3.attn.c_attn.k", modules) == (3, "k")
    assert place_of("transformer.h.3.attn.c_attn", modules) is None
