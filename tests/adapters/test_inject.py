"""Putting adapters on real architectures."""

import peft
import pytest
import torch
import transformers

from loraudit.adapters import inject, peft_twin
from loraudit.adapters.base_layers import in_head, target_modules
from loraudit.adapters.parts import fold, layouts_of
from loraudit.base.errors import UserError
from loraudit.studies.entry_files import load_model
from loraudit.training.accounting import count_parameters
from tiny import MILD, UP_TO_ROUNDING, make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "mpnet"]
ALL = ("q", "k", "v", "o", "up", "down")


def spec_for(family: str, **changes):
    return make_spec(model=tiny_entry(family), **changes)


@pytest.mark.parametrize(
    ("targets", "rank", "adapter"),
    [(("q", "v"), 8, 294_912), (("q", "v"), 1, 36_864), (("q", "k", "v", "o"), 8, 589_824)],
)
@pytest.mark.parametrize("name", ["roberta-base", "mpnet-base"])
def test_roberta_base_counts_are_the_papers(name, targets, rank, adapter):
    """0.3M is 2 x 24 matrices x 768 x 8; the head's 592,130 is beside it (reference: paper 4.2).

    MPNet has RoBERTa's depth, width and head.
    """
    kind = {"roberta-base": transformers.RobertaConfig, "mpnet-base": transformers.MPNetConfig}
    with torch.device("meta"):
        config = kind[name](max_position_embeddings=514)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    spec = make_spec(model=load_model(name), rank=rank, targets=targets)
    counts = count_parameters(inject.apply(model, spec), spec.model.head)
    assert counts == {
        "adapter": adapter,
        "head": 592_130,
        "base": 0,
        "trainable": adapter + 592_130,
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ALL)
def test_each_name_means_one_layer_per_block(family, target):
    names = target_modules(tiny_model(family), tiny_entry(family), (target,))
    assert len(names) == 2
    shapes = {tuple(tiny_model(family).get_submodule(name).weight.shape) for name in names}
    assert shapes == {{"up": (32, 16), "down": (16, 32)}.get(target, (16, 16))}


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_attention_output_is_not_the_mlps_dense(family):
    model, entry = tiny_model(family), tiny_entry(family)
    attention = target_modules(model, entry, ("o",))
    mlp = target_modules(model, entry, ("down",))
    assert all("attention.output.dense" in name for name in attention)
    assert not any("attention" in name for name in mlp)


@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapter_and_asked_for_head_train(family, head):
    spec = spec_for(family, head=head)
    model = inject.apply(tiny_model(family), spec)
    kinds = {
        "lora" if "lora_" in name else name.split(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert kinds == {"lora"} | (set(spec.model.head) if head == "trained" else set())


def test_outputs_are_the_base_models_at_the_start_and_after_remove(batch):
    base = tiny_model().eval()
    expected = base(**batch).logits
    model = inject.apply(tiny_model(), make_spec(targets=ALL)).eval()
    assert len(inject.lora_layers(model)) == 12
    # B is zero: the frozen layer's own operation, and zero added to it
    assert torch.equal(model(**batch).logits, expected)
    assert not inject.lora_layers(inject.remove(model))
    assert torch.equal(model(**batch).logits, expected)


def test_the_seed_governs_a_and_not_the_order_of_layers():
    one, same, other = (
        inject.apply(tiny_model(), make_spec(seed=seed, targets=targets))
        for seed, targets in ((1, ("q", "v")), (1, ("v",)), (2, ("v",)))
    )
    one, same, other = (inject.lora_layers(model) for model in (one, same, other))
    for name in same:
        assert torch.equal(one[name].lora_A, same[name].lora_A)
        assert not torch.equal(same[name].lora_A, other[name].lora_A)


def perturbed(spec, family: str, apply):
    """Adapt a tiny model; B and the head then hold random values, as after training."""
    model = apply(tiny_model(family), spec)
    for name, parameter in model.named_parameters():
        head = in_head(name, spec.model.head) and "original_module" not in name
        if "lora_B" in name or head:
            torch.nn.init.normal_(parameter, std=MILD)
    return model.eval()


def spec_of_all_targets(family: str):
    return spec_for(family, targets=tuple(tiny_entry(family).modules))


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_export_loads_in_peft_and_here_with_equal_outputs(family, batch, tmp_path):
    spec = spec_of_all_targets(family)
    model = perturbed(spec, family, inject.apply)
    expected = model(**batch).logits
    assert not torch.allclose(expected, tiny_model(family).eval()(**batch).logits, atol=1e-2)
    inject.export(model, spec, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    ours = inject.load(tiny_model(family), tmp_path).eval()
    exported, loaded = fold(model.state_dict(), layouts_of(model)), ours.state_dict()
    assert exported.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], exported[name]) for name in exported)
    torch.testing.assert_close(theirs(**batch).logits, expected, **UP_TO_ROUNDING)
    # `apply` made fast layers, `load` makes plain ones
    torch.testing.assert_close(ours(**batch).logits, expected, **UP_TO_ROUNDING)


def test_switching_adapters_leaves_the_base_as_it_was(batch, tmp_path):
    """Two tasks over one base: each gives the bits of a fresh load, in any order."""
    base = {name: value.clone() for name, value in tiny_model().bert.state_dict().items()}
    expected = {}
    for seed in (0, 1):
        spec = make_spec(seed=seed, targets=ALL, rank=2 + seed, lora_dropout=0.5)
        model = inject.apply(tiny_model(), spec)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=MILD)
        inject.export(model, spec, tmp_path / str(seed))
        expected[seed] = model.eval()(**batch).logits
    fresh = {
        seed: inject.load(tiny_model(), tmp_path / str(seed)).eval()(**batch).logits
        for seed in (0, 1)
    }
    model = inject.load(tiny_model(), tmp_path / "0")
    twin = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "0", adapter_name="0")
    twin.load_adapter(tmp_path / "1", adapter_name="1")
    for seed in (1, 0, 1):
        inject.switch(model.eval(), tmp_path / str(seed))
        assert torch.equal(model(**batch).logits, fresh[seed])
        # the layers that were exported are fast ones, these are plain
        torch.testing.assert_close(fresh[seed], expected[seed], **UP_TO_ROUNDING)
        twin.set_adapter(str(seed))
        torch.testing.assert_close(twin.eval()(**batch).logits, expected[seed], **UP_TO_ROUNDING)
    after = inject.remove(model).bert.state_dict()
    assert after.keys() == base.keys()
    assert all(torch.equal(after[name], base[name]) for name in base)
    inject.load(model, tmp_path / "0")
    inject.merge(model)
    with pytest.raises(ValueError, match="unmerge before switching"):
        inject.switch(model, tmp_path / "1")
    inject.unmerge(model)
    before = model(**batch).logits
    with pytest.raises(UserError):
        inject.switch(model, tmp_path / "nowhere")
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_pefts_export_loads_here_with_equal_outputs(family, batch, tmp_path):
    spec = spec_of_all_targets(family)
    twin = perturbed(spec, family, peft_twin.apply)
    twin.save_pretrained(tmp_path)  # PEFT's own writer
    ours = inject.load(tiny_model(family), tmp_path).eval()
    assert torch.allclose(ours(**batch).logits, twin(**batch).logits, atol=1e-5)


def test_merged_adapters_are_not_exported(tmp_path):
    model = inject.apply(tiny_model(), make_spec())
    inject.merge(model)
    with pytest.raises(ValueError, match="unmerge"):
        inject.export(model, make_spec(), tmp_path)
    inject.unmerge(model)
    inject.export(model, make_spec(), tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_a_target_that_the_model_lacks_is_named():
    with pytest.raises(UserError, match=r"no linear layer .*q_lin.* for 'q'"):
        inject.apply(tiny_model("bert"), make_spec(model=tiny_entry("distilbert")))
