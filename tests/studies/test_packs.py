"""Which runs are trained together, and what is refused."""

import pytest

from loraudit.base.errors import UserError
from loraudit.studies.packs import OWN, packs_of, require_pack, require_packs, unfit
from loraudit.studies.spec import FLAT_FIELDS
from loraudit.studies.study import Run
from tiny import changed, make_spec, tiny_entry

SPEC = make_spec()


def runs(*specs) -> list[Run]:
    return [Run(id=f"t/m/v/s{number}", label="", spec=spec) for number, spec in enumerate(specs)]


def names(packs) -> list[list[str]]:
    return [[run.id[-2:] for run in pack] for pack in packs]


def test_runs_of_one_shape_go_together_in_their_order():
    specs = [changed(SPEC, seed=seed, rank=rank) for rank in (1, 2) for seed in (0, 1)]
    specs.insert(1, changed(SPEC, epochs=5))
    specs.insert(3, make_spec(method="head"))
    assert names(packs_of(runs(*specs), 3)) == [["s0", "s2", "s4"]]
    assert names(packs_of(runs(*specs), 2)) == [["s0", "s2"], ["s4", "s5"]]
    assert packs_of(runs(*specs), 1) == []


def test_what_may_differ_are_fields_of_a_run():
    assert {*FLAT_FIELDS, "tuned"} > OWN


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "peft"}, "method is 'peft', and a pack trains 'lora' only"),
        ({"method": "alora"}, "method is 'alora'"),
        ({"base_bits": 4, "base_group": 8}, "base_bits is 4"),
        ({"compute": "compiled"}, "compute is 'compiled'"),
        ({"recompute": "blocks"}, "recompute is 'blocks'"),
        ({"model": tiny_entry("gpt2"), "targets": ("q", "o")}, "q are parts of a fused layer"),
    ],
)
def test_a_run_that_no_pack_supports_is_refused_with_the_reason(fields, words):
    spec = changed(SPEC, **fields)
    assert words in (unfit(spec) or "")
    with pytest.raises(UserError, match=r"pack: run 1 of 2 can't be trained in one: .*") as error:
        require_pack([SPEC, spec])
    assert words in str(error.value)


def test_a_field_that_all_must_share_is_named_with_both_values():
    with pytest.raises(UserError, match=r"global_batch is 16 in run 1 and 8 in run 0; .*seed"):
        require_pack([SPEC, changed(SPEC, global_batch=16, seed=1)])
    with pytest.raises(UserError, match=r"lora_dropout is 0\.2 in run 1"):
        require_pack([SPEC, changed(SPEC, lora_dropout=0.2)])
    with pytest.raises(UserError, match="pack: run 1 is the same as run 0"):
        require_pack([SPEC, SPEC])
    require_pack([SPEC, changed(SPEC, seed=1, rank=3, targets=("q",), learning_rate=1e-5)])


def test_a_study_without_packs_refuses_the_key_with_the_reason():
    alone = runs(make_spec(method="head"), make_spec(method="peft"))
    assert require_packs(alone, 1, 2) == []
    with pytest.raises(UserError, match=r"runs_per_batch 4: no two runs .*method is 'head'"):
        require_packs(alone, 4, 1)
    pair = runs(SPEC, changed(SPEC, seed=1))
    with pytest.raises(UserError, match="runs_per_batch 2: the launch file starts 2 processes"):
        require_packs(pair, 2, 2)
    assert names(require_packs(pair, 2, 1)) == [["s0", "s1"]]
    text = runs(SPEC, make_spec(epochs=3))
    with pytest.raises(UserError, match="each differs from the others"):
        require_packs(text, 2, 1)
