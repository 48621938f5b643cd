"""Every type of method that the installed PEFT knows runs, or is refused in one sentence."""

import dataclasses

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint
from loraudit.studies.peft_options import REFUSED, peft_types
from loraudit.studies.record import read_record
from loraudit.training.accounting import count_parameters
from loraudit.training.method import method_of
from loraudit.training.run import train
from tiny import make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

SIZES = {  # a tiny model is too narrow for PEFT's defaults
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "ROAD": {"group_size": 8},
    "VBLORA": {"vector_length": 8, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
}
TYPES = [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
WORKING = [kind for kind in TYPES if kind not in REFUSED]


def spec_of(kind: str, **changes):
    options = {"peft_type": kind, **SIZES.get(kind, {})}
    fields = {"method": "peft", "targets": "all", "rank": 4, "alpha": 8, "peft": options}
    return make_spec(**{**fields, **changes})


def test_the_types_and_their_fields_are_the_installed_pefts():
    assert set(peft_types()) == set(TYPES)
    common = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if kind.value in WORKING:
            own = {field.name for field in dataclasses.fields(cls)} - common
            missing = own - peft_types()[kind.value]
            assert not missing - {"rank_pattern", "alpha_pattern"}, kind
            assert peft_types()[kind.value] <= own, kind


@pytest.mark.parametrize("kind", WORKING)
def test_it_trains_the_adapter_alone_and_peft_loads_what_is_saved(kind, batch, tmp_path):
    spec = spec_of(kind)
    method = method_of(spec)
    model = method.apply(tiny_model(), spec)
    counts = count_parameters(model, spec.model.head)
    assert counts["adapter"] and counts["head"] and not counts["base"]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(2):
        nn.functional.cross_entropy(model(**batch).logits, torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = model.eval()(**batch).logits
    assert not torch.allclose(expected, tiny_model().eval()(**batch).logits, atol=1e-2)
    method.export(model, spec, tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_a_run_can_not_have_is_refused_in_a_sentence(kind):
    with pytest.raises(UserError, match=rf"peft_type {kind} is refused: \w.* ") as caught:
        spec_of(kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft": {"peft_type": "IA4"}}, r"peft_type: 'IA4' is not known; did you mean 'IA3'"),
        ({"peft": {"peft_type": "VERA", "d_inital": 1}}, "VERA: key: .*did you mean 'd_initial'"),
        ({"peft": {"peft_type": "VERA", "r": 1}}, "'r' is governed by the run .use rank."),
        ({"lora_dropout": 0.1}, "lora_dropout 0.1 is of LoRA, not VERA"),
        ({"lora_plus": 4.0}, "lora_plus 4.0 is of LoRA, not VERA"),
        ({"base_bits": 4, "base_group": 16}, "does not go with a quantised base"),
        ({"model": tiny_entry("gpt2")}, "adapts whole layers only"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        spec_of("VERA", **changes)


@pytest.mark.parametrize("kind", ["VBLORA", "ROAD", "FOURIERFT"])
def test_pefts_own_refusal_is_one_sentence(kind):
    spec = spec_of(kind, peft={"peft_type": kind})
    with pytest.raises(UserError, match=rf"^peft = .*{kind}.*PEFT says: ") as caught:
        method_of(spec).apply(tiny_model(), spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["IA3", "VERA", "LOHA"])
def test_the_seed_governs_it_and_a_run_is_recorded(kind, tiny, tmp_path):
    spec = spec_of(kind, epochs=1, train_rows=16, validation_rows=8)
    for name in ("one", "two"):
        train(spec, tiny / "tokens", tiny / "model", tmp_path / name)
    one, two = (folder_fingerprint(tmp_path / name / "adapter") for name in ("one", "two"))
    assert one == two
    parameters = read_record(tmp_path / "one/record.json").train.parameters
    assert parameters["adapter"] > 0 and parameters["base"] == 0
