"""The layer cross-check over random shapes; and planted faults, each of which must be caught."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraudit.adapters.fused import LoRAPart
from loraudit.adapters.lora import LoRALinear
from loraudit.adapters.lora_variants import LoRAConv1D, LoRAEmbedding
from loraudit.crosscheck import single_layer
from loraudit.crosscheck.single_layer import Case, compare_layer, references

pytestmark = [pytest.mark.numerics, pytest.mark.slow]

FEW = 10
"""Steps in which a planted fault shows, rather than the 40 of a cross-check."""
STEPPED = f"{FEW} steps of AdamW"
KINDS = ["linear", "conv1d", "embedding"]
CLASSES = {"linear": LoRALinear, "conv1d": LoRAConv1D, "embedding": LoRAEmbedding}

cases = st.builds(
    Case,
    kind=st.sampled_from(KINDS),
    d_in=st.integers(1, 24),
    d_out=st.integers(1, 24),
    rank=st.integers(1, 12),
    alpha=st.floats(0.25, 64),
    dropout=st.sampled_from([0.0, 0.1, 0.5]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)


@pytest.fixture
def planting(monkeypatch):
    """Plant faults by this; a cross-check then takes few steps."""
    monkeypatch.setattr(single_layer, "STEPS", FEW)
    return monkeypatch


def failed(case: Case, dtype: str = "float64") -> set[str]:
    rows = compare_layer(case, dtype)
    return {row["check"].removeprefix("layer: ") for row in rows if not row["ok"]}


def test_both_references_are_compared():
    case = Case("linear", 6, 5, 3, 12)
    assert set(references(case)) == {"PEFT", "loralib"}
    rows = compare_layer(case, "float64")
    assert {row["against"] for row in rows} == {"PEFT", "loralib"}
    assert len({row["check"] for row in rows}) == 19


@settings(max_examples=12, deadline=None)
@given(cases)
def test_layers_agree_in_float64(case):
    assert not failed(case, "float64")


@settings(max_examples=6, deadline=None)
@given(cases)
def test_layers_agree_in_float32(case):
    assert not failed(case, "float32")


@settings(max_examples=12, deadline=None)
@given(cases)
def test_layers_agree_under_bfloat16_autocast(case):
    assert not failed(case, "bfloat16")


def thirds(*which: int) -> tuple:
    return tuple(((5 * i, 5 * i + 5),) for i in which)


UNEQUAL = (((0, 4),), ((4, 6),))  # grouped-query attention: queries and keys of a layer
INTERLEAVED = (((0, 3), (8, 11)), ((6, 8), (14, 15)))  # parts that come again in each head


@pytest.mark.parametrize(
    ("parts", "kind", "dropout", "dtype"),
    [
        (thirds(0, 2), "conv1d", 0.5, "float64"),
        (thirds(0, 2), "linear", 0.0, "float64"),
        (thirds(1), "conv1d", 0.0, "float64"),
        (thirds(0, 1, 2), "linear", 0.5, "float32"),
        (thirds(0, 2), "conv1d", 0.0, "bfloat16"),
    ],
)
def test_parts_of_a_layer_agree_with_merged_linear_and_peft(parts, kind, dropout, dtype):
    case = Case(kind, 6, 15, 3, 12, dropout, parts=parts)
    assert list(references(case)) == ["PEFT", "closed form", "loralib"]
    assert not failed(case, dtype)


@pytest.mark.parametrize("parts", [UNEQUAL, INTERLEAVED])
def test_unequal_and_interleaved_parts_agree(parts):
    """loralib has no such parts."""
    case = Case("linear", 6, 15, 2, 12, parts=parts)
    assert list(references(case)) == ["PEFT", "closed form"]
    assert not failed(case)


def test_a_part_in_the_wrong_place_fails(planting):
    planting.setattr(
        LoRAPart, "merge", lambda self: self.base.add(self.delta_weight().detach().roll(1, 0))
    )
    assert failed(Case("linear", 6, 15, 3, 12, parts=thirds(0, 2))) >= {"merged outputs"}


FAULTS = {
    "alpha, not alpha / r": (
        lambda self, base: setattr(self, "scaling", self.alpha),
        {"outputs with dropout", "gradient of A", STEPPED, "merged outputs"},
    ),
    "bias lost": (
        lambda self, base: self.base.bias.data.zero_(),
        {"outputs with dropout", "start is the base"},
    ),
    "base trains": (
        lambda self, base: base.requires_grad_(True),
        {"only A and B train"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(planting, fault, kind):
    if fault == "bias lost" and kind == "embedding":
        pytest.skip("an embedding has no bias")
    change, seen = FAULTS[fault]
    made = LoRALinear.__init__

    def faulty(self, base, *arguments, **more):
        made(self, base, *arguments, **more)
        change(self, base)

    planting.setattr(LoRALinear, "__init__", faulty)
    assert seen <= failed(Case(kind, 6, 5, 3, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_a_and_b_swapped_in_init_fails(planting, kind):
    def swapped(self):
        torch.nn.init.normal_(self.lora_A if kind == "embedding" else self.lora_B)
        torch.nn.init.zeros_(self.lora_B if kind == "embedding" else self.lora_A)

    planting.setattr(CLASSES[kind], "reset_parameters", swapped)
    assert failed(Case(kind, 6, 5, 3, 12)) == {"start is the base"}


def test_an_update_that_starts_off_zero_fails(planting):
    def both(self):
        torch.nn.init.normal_(self.lora_A)
        torch.nn.init.normal_(self.lora_B)

    planting.setattr(LoRALinear, "reset_parameters", both)
    assert failed(Case("linear", 6, 5, 3, 12)) == {"start is the base"}


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_wrong_merge_fails_in_bfloat16_too(planting, kind):
    right = CLASSES[kind].delta_weight
    planting.setattr(CLASSES[kind], "delta_weight", lambda self: 1.1 * right(self))
    failures = failed(Case(kind, 6, 5, 3, 12), "bfloat16")
    assert failures == {"merged equals unmerged", "merged outputs", "merged weights"}


@pytest.mark.parametrize("kind", ["conv1d", "embedding"])
def test_a_merge_that_forgets_to_transpose_fails(planting, kind):
    """Square, so that only the values are wrong and no shape."""
    planting.setattr(CLASSES[kind], "delta_weight", LoRALinear.delta_weight)
    assert failed(Case(kind, 6, 6, 3, 12)) >= {"merged equals unmerged", "merged outputs"}


def test_a_merge_that_is_not_idempotent_fails(planting):
    def merge(self):
        with torch.no_grad():
            self.base.weight += self.delta_weight()
        self.merged = True

    planting.setattr(LoRALinear, "merge", merge)
    assert failed(Case("linear", 6, 5, 3, 12)) >= {"merged equals unmerged", "unmerged weights"}


def test_a_merge_that_does_nothing_fails(planting):
    for name in ("merge", "unmerge"):
        planting.setattr(LoRALinear, name, lambda self: None)
    assert failed(Case("linear", 6, 5, 3, 12)) == {"merged weights"}


def test_a_state_dict_that_loses_b_fails(planting):
    saved = torch.nn.Module.state_dict

    def lossy(self, *arguments, **more):
        return {k: v for k, v in saved(self, *arguments, **more).items() if k != "lora_B"}

    planting.setattr(LoRALinear, "state_dict", lossy)
    assert failed(Case("linear", 6, 5, 3, 12)) == {"saved and loaded"}


def test_padding_gets_no_gradient():
    assert not failed(Case("embedding", 6, 5, 3, 12, padding_idx=2))


def test_dropout_on_the_wrong_place_fails(planting):
    def forward(self, x):
        x = self.dropout(x)
        low = torch.nn.functional.linear(x, self.lora_A)
        return self.base(x) + torch.nn.functional.linear(low, self.lora_B) * self.scaling

    planting.setattr(LoRALinear, "forward", forward)
    case = Case("linear", 6, 5, 3, 12, dropout=0.5)
    assert failed(case) >= {"outputs with dropout", "gradient of x"}
    assert "outputs after training" not in failed(Case("linear", 6, 5, 3, 12))


def test_nan_is_a_difference():
    assert single_layer.difference(torch.tensor([float("nan")]), torch.zeros(1)) == float("inf")
