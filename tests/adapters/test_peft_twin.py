"""The PEFT twin and the key table."""

import pytest
import torch

from loraudit.adapters import inject, peft_folder, peft_twin
from loraudit.base.errors import UserError
from loraudit.training.accounting import count_parameters
from tiny import make_spec, tiny_model

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize(
    ("init", "std"), [("kaiming", None), ("gaussian", None), ("gaussian", 0.02)]
)
def test_the_twin_starts_where_ours_starts_and_trains_the_same(head, init, std, batch):
    spec = make_spec(head=head, init=init, init_std=std, targets=("q", "o", "down"))
    ours = inject.apply(tiny_model(), spec)
    twin = peft_twin.apply(tiny_model(), spec)
    left, right = (
        {peft_folder.own_name(n): p for n, p in model.named_parameters() if p.requires_grad}
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
    assert peft_folder.from_peft(peft_folder.to_peft(state)).keys() == state.keys()
    assert all(key.startswith("base_model.model.") for key in peft_folder.to_peft(state))


def test_both_exports_hold_the_same_tensors(tmp_path):
    spec = make_spec(targets=("q", "down"))
    inject.export(inject.apply(tiny_model(), spec), spec, tmp_path / "ours")
    peft_twin.export(peft_twin.apply(tiny_model(), spec), spec, tmp_path / "peft")
    ours, theirs = (peft_folder.read_folder(tmp_path / name)[1] for name in ("ours", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_foreign_file_is_refused():
    with pytest.raises(UserError, match="not a PEFT adapter"):
        peft_folder.from_peft({"roberta.encoder.lora_A": torch.zeros(1)})
