"""Contrasts: which methods and switches are set side by side on the same seeds."""

import pandas as pd
import pytest
from test_verdicts import study, tidy

from loraudit.analysis.contrasts import method_contrasts, switch_effects
from loraudit.studies.study import Switch


def test_switches_are_compared_on_the_same_seeds():
    base, other = tidy(label="base"), tidy(label="head-trained")
    other["best"] = base.best.add([0.01, 0.012, 0.008, 0.01, 0.01])
    base["last"] = base.best - [0.002, 0.001, 0.0, 0.003, 0.001]
    switch = Switch(label="head-trained", name="head trained", changes={"head": "trained"})
    cells = pd.concat([base, other.sample(frac=1, random_state=0)], ignore_index=True)
    table = switch_effects(study(switches=(switch,)), cells, "base")
    effects = table.set_index(["switch", "epoch"])
    assert effects.loc[("head trained", "best"), "difference"] == pytest.approx(0.01)
    assert effects.loc[("head trained", "best"), "p"] < 1e-3
    assert effects.loc[("last epoch, not the best", "best"), "difference"] == pytest.approx(-0.0014)
    assert pd.isna(effects.loc[("last epoch, not the best", "best"), "p"])
    assert len(table) == 3


def test_methods_are_compared_on_the_same_seeds():
    full = tidy(method="full", rank=None, targets=None)
    full["best"] = full.best.add([0.02, 0.021, 0.019, 0.02, 0.02])
    cells = pd.concat([tidy(), tidy(method="peft"), full], ignore_index=True)
    table = method_contrasts(cells)
    assert {(row.left, row.right) for row in table.itertuples()} == {
        ("lora r8 q+v", "peft r8 q+v"),
        ("lora r8 q+v", "full"),
        ("peft r8 q+v", "full"),
    }
    best = table[(table.epoch == "best") & (table.right == "full")]
    assert list(best.difference) == pytest.approx([-0.02, -0.02])
    assert method_contrasts(tidy((0.9,))).empty


def test_contrasts_are_the_only_pairs_and_the_only_ones_adjusted_for():
    cells = pd.concat(
        [
            tidy(method=method, label=label, run=f"t/m/{method}-r8-q+v{tag}/s0")
            for method, label, tag in (("lora", "", ""), ("peft", "", ""), ("lora", "b", "-b"))
        ],
        ignore_index=True,
    )
    cells["best"] += [0, 0.01, 0.02, 0.01, 0] * 3
    table = method_contrasts(cells, [("lora-r8-q+v-b", "lora-r8-q+v"), ("full", "lora-r8-q+v")])
    assert {(row.left, row.right) for row in table.itertuples()} == {
        ("lora r8 q+v b", "lora r8 q+v")
    }
    assert (table.p_holm.fillna(1) == table.p.fillna(1)).all()


def test_methods_that_move_ranks_stand_beside_lora_of_their_rank():
    one, other = tidy(method="alora"), tidy(method="adalora", label="few")
    table = method_contrasts(pd.concat([tidy(), tidy(rank=4), one, other], ignore_index=True))
    assert {(row.left, row.right) for row in table.itertuples()} == {
        ("lora r8 q+v", "alora r8 q+v"),
        ("lora r8 q+v", "adalora r8 q+v few"),
    }


def test_a_baseline_of_the_same_label_is_the_partner():
    def cell(method, label):
        adapter = {} if method == "lora" else {"rank": None, "targets": None}
        return tidy(method=method, label=label, **adapter)

    cells = [cell("lora", "few"), cell("lora", "all"), cell("full", "few"), cell("full", "all")]
    table = method_contrasts(pd.concat([*cells, cell("head", "")], ignore_index=True))
    assert {(row.left, row.right) for row in table.itertuples()} == {
        ("lora r8 q+v few", "full few"),
        ("lora r8 q+v all", "full all"),
        ("lora r8 q+v few", "head"),
        ("lora r8 q+v all", "head"),
    }
