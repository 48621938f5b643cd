"""The PEFT twin and the key table."""

import pytest
import torch

from conftest import make_spec, tiny_model
from loraudit import inject, peft_bridge
from loraudit.accounting import count_parameters
from loraudit.errors import UserError

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize(
    ("init", "std"), [("kaiming", None), ("gaussian", None), ("gaussian", 0.02)]
)
def test_the_twin_starts_where_ours_starts_and_trains_the_same(head, init, std, batch):
    spec = make_spec(head=head, init=init, init_std=std, targets=("q", "o", "down"))
    ours = inject.apply(tiny_model(), spec)
    twin = peft_bridge.apply(tiny_model(), spec)
    left, right = (
        {peft_bridge.own_name(n): p for n, p in model.named_parameters() if p.requires_grad}
        for model in (ours, twin)
    )
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    head_names = spec.model.head
    assert count_parameters(ours, head_names) == count_parameters(twin, head_names)
    # B is zero in both: each adds zero to what the same frozen layers give
    assert torch.equal(ours.eval()(**batch).logits, twin.eval()(**batch).logits)


def test_key_table_both_ways():
    model = inject.apply(tiny_model(), make_spec())
    state = inject.adapter_state(model, ("classifier",))
    assert peft_bridge.from_peft(peft_bridge.to_peft(state)).keys() == state.keys()
    assert all(key.startswith("base_model.model.") for key in peft_bridge.to_peft(state))


def test_both_exports_hold_the_same_tensors(tmp_path):
    spec = make_spec(targets=("q", "down"))
    inject.export(inject.apply(tiny_model(), spec), spec, tmp_path / "ours")
    peft_bridge.export(peft_bridge.apply(tiny_model(), spec), spec, tmp_path / "peft")
    ours, theirs = (peft_bridge.read_folder(tmp_path / name)[1] for name in ("ours", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_foreign_file_is_refused():
    with pytest.raises(UserError, match="not a PEFT adapter"):
        peft_bridge.from_peft({"roberta.encoder.lora_A": torch.zeros(1)})
