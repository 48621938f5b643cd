"""Contrasts: which methods and switches are set side by side, and how they are tested."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.formula.api import ols
from test_verdicts import study
from test_verdicts import tidy as made_runs

from loraudit.analysis.contrasts import (
    finding,
    method_contrasts,
    switch_effects,
    task_aggregates,
    with_tests,
)
from loraudit.analysis.pooling import Difference
from loraudit.analysis.statistics import holm
from loraudit.report.formatting import interval_or_why
from loraudit.report.tables import aggregate_table, contrast_table, switch_table
from loraudit.studies.study import Study, Switch
from loraudit.studies.study_file import Contrast


def tidy(*scores, **changes) -> pd.DataFrame:
    """Make the runs of a cell, with the names that a study gives them."""
    runs = made_runs(*scores, **changes)
    first = runs.iloc[0]
    adapter = "" if pd.isna(first["rank"]) else f"-r{first['rank']:g}-{first.targets}"
    variant = f"{first.method}{adapter}{'-' if first.label else ''}{first.label}"
    return runs.assign(run=[f"{first.task}/{first.model}/{variant}/s{s}" for s in runs.seed])


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
    assert effects.loc[("head trained", "best"), "correlation"] > 0.5
    assert effects.loc[("last epoch, not the best", "best"), "difference"] == pytest.approx(-0.0014)
    assert pd.isna(effects.loc[("last epoch, not the best", "best"), "p"])
    assert len(table) == 3


def test_each_adapter_is_compared_with_each_baseline_and_its_twin():
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


def cells_of(scores: dict[str, list[float]], **changes) -> pd.DataFrame:
    """Make runs of LoRA under these labels, each with its scores."""
    tables = [tidy(values, label=label, **changes) for label, values in scores.items()]
    return pd.concat(tables, ignore_index=True)


def contrast(left: str, right: str, **more) -> Contrast:
    return Contrast(left=f"lora-r8-q+v-{left}", right=f"lora-r8-q+v-{right}", **more)


def test_contrasts_are_the_only_pairs_and_the_only_ones_adjusted_for():
    cells = cells_of({"a": [0.8, 0.82, 0.81], "b": [0.8, 0.83, 0.82]})
    table = method_contrasts(cells, [contrast("b", "a"), contrast("c", "a")])
    assert {(row.left, row.right) for row in table.itertuples()} == {
        ("lora r8 q+v b", "lora r8 q+v a")
    }
    assert list(table.p_holm) == pytest.approx(list(table.p))
    assert list(table.family) == [1, 1]


def test_methods_are_tested_by_the_spread_that_their_cells_share_without_what_seeds_share():
    """Equal spreads: the contrast of an additive model; a seed that is lucky for all cancels."""
    scores = {"a": [0.72, 0.70, 0.68], "b": [0.74, 0.78, 0.76], "c": [0.72, 0.70, 0.74]}
    cells = cells_of(scores)
    row = method_contrasts(cells, [contrast("b", "a")]).iloc[0]
    reference = ols("best ~ C(label) + C(seed)", cells).fit().t_test("C(label)[T.b] = 0")
    assert row.p == pytest.approx(float(reference.pvalue))
    assert (row.low, row.high) == pytest.approx(tuple(reference.conf_int()[0]))
    lucky = cells.assign(best=cells.best + 0.1 * cells.seed)
    assert method_contrasts(lucky, [contrast("b", "a")]).iloc[0].p == pytest.approx(row.p)
    assert row.p < scipy.stats.ttest_rel(scores["b"], scores["a"]).pvalue


def test_methods_of_other_seeds_are_tested_by_the_plain_spread():
    """What their seeds share does not cancel then."""
    scores = {"a": [0.72, 0.70, 0.68], "b": [0.74, 0.78, 0.76], "c": [0.72, 0.70, 0.74]}
    cells = cells_of(scores)
    cells["seed"] += 10 * (cells.label == "b")
    row = method_contrasts(cells, [contrast("b", "a")]).iloc[0]
    reference = ols("best ~ C(label)", cells).fit().t_test("C(label)[T.b] = 0")
    assert row.p == pytest.approx(float(reference.pvalue))


def test_eighteen_points_over_the_head_are_not_lost_in_the_correction():
    """Three seeds, six cells, eight tests: paired by seed, Holm's p was 0.08."""
    drawn = 0.0055 * np.random.default_rng(0).standard_normal((6, 3))
    cells = [tidy(0.84 + drawn[0], method="full", rank=None, targets=None)]
    cells += [tidy(0.65 + 3 * drawn[1], method="head", rank=None, targets=None)]
    kinds = [(rank, targets) for rank in (1.0, 8.0) for targets in ("q+v", "all")]
    cells += [
        tidy(0.82 + some, rank=rank, targets=targets)
        for some, (rank, targets) in zip(drawn[2:], kinds, strict=True)
    ]
    table = method_contrasts(pd.concat(cells, ignore_index=True))
    over_head = table[table.right == "head"]
    assert (over_head.p_holm < 0.01).all() and (over_head.low > 0.1).all()
    assert (table.family == 8).all()


def test_an_interval_leaves_out_zero_exactly_if_its_adjusted_test_does():
    random = np.random.default_rng(0)
    for asks in ("difference", "equivalence"):
        for _ in range(50):
            gaps = [Difference(float(random.normal(0, 3)), 1.0, 7) for _ in range(6)]
            table = pd.DataFrame({"epoch": "best", "role": "test", "asks": asks, "margin": 3.0},
                                 index=range(6))  # fmt: skip
            table = with_tests(table, gaps)
            shown = table.p_holm < 0.05
            if asks == "difference":
                assert (((table.low > 0) | (table.high < 0)) == shown).all()
            else:
                assert (((table.low > -3) & (table.high < 3)) == shown).all()
            widths = table.high - table.low
            assert (
                widths > np.ptp(gaps[0].interval(0.95 if asks == "difference" else 0.9)) - 1e-9
            ).all()


def test_twins_and_their_repeated_rows_leave_the_family():
    full = tidy([0.80, 0.81, 0.83, 0.82, 0.80], method="full", rank=None, targets=None)
    peft = tidy(method="peft")
    table = method_contrasts(pd.concat([tidy(), peft, full], ignore_index=True))
    roles = {(row.left, row.right): row.role for row in table.itertuples()}
    assert roles == {
        ("lora r8 q+v", "peft r8 q+v"): "twins",
        ("lora r8 q+v", "full"): "test",
        ("peft r8 q+v", "full"): "copy",
    }
    tested = table[table.role == "test"]
    assert (tested.family == 1).all() and (tested.p_holm == tested.p).all()
    assert table[table.role != "test"][["p_holm", "family"]].isna().all(axis=None)
    alone = method_contrasts(pd.concat([tidy(), full], ignore_index=True))
    assert list(alone.p_holm) == pytest.approx(list(tested.p_holm))  # twins add no freedom
    assert list(table[table.role == "twins"].correlation) == pytest.approx([1.0, 1.0])
    shown = contrast_table(table)
    assert set(shown.family) == {"1 test", "outside: twins", "outside: repeats its twin's"}
    only_peft = method_contrasts(pd.concat([peft, full], ignore_index=True))
    assert set(only_peft.role) == {"test"}


def test_a_contrast_may_ask_for_equivalence():
    random = np.random.default_rng(1)
    near = {name: 0.8 + random.normal(0, 0.002, 5) for name in "abcd"}
    cells = cells_of({**near, "e": near["a"] + 0.02})
    equal = {"asks": "equivalence"}
    table = method_contrasts(
        cells,
        [contrast("b", "a", **equal), contrast("e", "a", **equal), contrast("e", "a"),
         contrast("c", "a", **equal, margin=0.001)],
        margin=0.01,
    )  # fmt: skip
    found = [
        finding(row.asks, row.difference, row.margin, row.p_holm)
        for row in table[table.epoch == "best"].itertuples()
    ]
    assert found == ["equal within 1 point", "open", "higher", "open"]
    first = table.iloc[0]
    assert -0.01 < first.low < first.high < 0.01
    assert list(contrast_table(table)["asks"]) == ["equal?", "equal?", "differ?", "equal?"]


def test_a_pair_has_one_row_and_further_choices_of_an_epoch_a_column_where_they_differ():
    cells = cells_of({"a": [0.80, 0.81, 0.79], "b": [0.83, 0.84, 0.82]})
    cells["last"] = cells.best - [0.0, 0.01, 0.0, 0.02, 0.02, 0.01]
    table = method_contrasts(cells, [contrast("b", "a"), contrast("b", "a", asks="equivalence")])
    shown = contrast_table(table)
    assert list(shown["asks"]) == ["differ?", "equal?"] and set(shown.epoch) == {"best"}
    last = table[table.epoch == "last"]
    for said, row in zip(shown["last epoch"], last.itertuples(), strict=True):
        assert said.startswith(f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, ")
    same = contrast_table(method_contrasts(cells.assign(last=cells.best), [contrast("b", "a")]))
    assert "last epoch" not in same and len(same) == 1


def test_an_interval_beyond_what_scores_can_differ_by_is_none():
    cells = cells_of({"a": [0.2, 0.9], "b": [0.1, 0.6]})
    table = method_contrasts(cells, [contrast("b", "a")])
    assert table.low.min() < -1  # of two seeds, a t interval of two degrees of freedom
    assert contrast_table(table).interval.tolist() == ["n = 2: no interval"]
    assert interval_or_why(-0.02, 0.01, 2) == "[-2.0, +1.0]"
    assert interval_or_why(math.nan, math.nan, 1) == ""


def test_what_holds_for_the_task_depends_on_the_rows_too():
    cells = cells_of({"a": [0.80, 0.81, 0.79], "b": [0.83, 0.84, 0.82], "c": [0.8, 0.82, 0.81]})
    asked = [contrast("b", "a"), contrast("c", "a")]
    keys = {"task": "mrpc", "model": "roberta-base", "right_variant": "lora-r8-q+v-a"}
    errors = pd.DataFrame(
        [
            {
                **keys,
                "epoch": epoch,
                "left_variant": "lora-r8-q+v-b",
                "rows": 400,
                "row_error": 0.02,
            }
            for epoch in ("best", "last")
        ]
    )
    table = method_contrasts(cells, asked, row_errors=errors)
    known, unknown = table.iloc[0], table.iloc[2]
    assert known.p_holm < 0.05 < known.task_p_holm
    assert known.task_low < known.low and known.high < known.task_high
    assert math.isnan(unknown.task_p) and unknown.p == unknown.p
    here = method_contrasts(cells, asked)
    assert here.task_p.isna().all() and list(here.p) == list(table.p)
    assert "task: finding" in contrast_table(table) and "task: finding" not in contrast_table(here)


def test_methods_are_aggregated_over_tasks_if_there_are_several():
    one = cells_of({"a": [0.80, 0.81, 0.79], "b": [0.83, 0.84, 0.82]}, task="one")
    two = cells_of({"a": [0.60, 0.61, 0.59], "b": [0.65, 0.66, 0.64]}, task="two")
    asked = [contrast("b", "a")]
    assert task_aggregates(one, asked).empty
    table = task_aggregates(pd.concat([one, two], ignore_index=True), asked)
    assert list(table.epoch) == ["best", "last"]
    assert list(table.tasks) == [2, 2] and list(table.n) == [3, 3]
    assert list(table.difference) == pytest.approx([0.04, 0.04])
    assert len(aggregate_table(table)) == 2


def ablation(scores: np.ndarray, **changes: object) -> tuple[Study, pd.DataFrame]:
    """Return a study of a base and switches, and its runs: scores of (base and switches, seeds)."""
    names = ["base", *(f"switch{place}" for place in range(1, len(scores)))]
    switches = tuple(Switch(label=name, name=name, changes={}) for name in names[1:])
    cells = [
        tidy(own.tolist(), label=name, best_epoch=1, last_epoch=1, **changes)
        for name, own in zip(names, scores, strict=True)
    ]
    return study(switches=switches), pd.concat(cells, ignore_index=True)


def effects_of(scores: np.ndarray) -> pd.DataFrame:
    effects = switch_effects(*ablation(scores), "base")
    return effects[(effects.epoch == "best") & (effects.role == "test")]


def test_switches_and_their_base_are_compared_by_a_linear_model_of_cells_and_seeds():
    noise = np.stack([np.roll([0.003, -0.001, -0.002], place) for place in range(5)])  # alike
    scores = 0.8 + np.array([0.0, 0.03, -0.02])  # what the seeds share
    scores = scores + noise + np.array([[0.0], [0.01], [0.0], [0.02], [0.0]])
    found = effects_of(scores)
    cells, seeds = np.indices(scores.shape)
    table = pd.DataFrame({"y": scores.ravel(), "cell": cells.ravel(), "seed": seeds.ravel()})
    fit = ols("y ~ C(cell) + C(seed)", table).fit()
    assert fit.df_resid == 8
    for place, row in enumerate(found.itertuples(), start=1):
        reference = fit.t_test(f"C(cell)[T.{place}] = 0")
        assert row.difference == pytest.approx(reference.effect[0])
        assert row.p == pytest.approx(float(reference.pvalue))
    shown = switch_table(found)
    assert set(shown.family) == {"4 tests"}


@pytest.mark.parametrize(("switches", "seeds"), [(3, 3), (4, 3)])
def test_switches_without_effects_are_seldom_called_real(switches, seeds):
    """All are compared with the same base, whose chance they share; nominal are 5 %."""
    random, tasks = np.random.default_rng(switches + seeds), 300
    made = [
        ablation(random.normal(0.8, 0.007, (1 + switches, seeds)), task=f"task{number}")
        for number in range(tasks)
    ]
    cells = pd.concat(
        [runs.drop(columns=["best", "best_epoch"]) for _, runs in made], ignore_index=True
    )
    found = switch_effects(made[0][0], cells, "base")
    wrong = [min(holm(part.p.tolist())) < 0.05 for _, part in found.groupby("task")]
    assert len(wrong) == tasks and sum(wrong) / tasks < 0.075


def test_a_run_without_a_score_leaves_its_comparisons_undefined():
    """Without it the mean would be too good (`statistics.summarise`)."""
    scores = np.array(
        [[0.80, 0.81, 0.79, 0.80], [0.85, 0.86, 0.84, np.nan], [0.80, 0.82, 0.79, 0.81]]
    )
    found = effects_of(scores)
    for name in ("difference", "p", "p_holm", "low", "high"):
        assert found[name].isna().tolist() == [True, False]
    none = {"rank": None, "targets": None}
    epochs = {"best_epoch": 1, "last_epoch": 1}
    methods = {"lora": epochs, "full": {**none, **epochs}, "head": {**none, **epochs}}
    cells = [
        tidy(own.tolist(), method=name, **adapter)
        for (name, adapter), own in zip(methods.items(), scores, strict=True)
    ]
    table = method_contrasts(pd.concat(cells, ignore_index=True)).query("epoch == 'best'")
    undefined = table.right.eq("full") | table.left.eq("full")
    assert undefined.any() and not undefined.all()
    for name in ("difference", "p", "p_holm", "low", "high"):
        assert (table[name].isna() == undefined).all()


def test_two_cells_of_which_one_has_a_run_without_a_score_are_no_traceback():
    cells = [tidy([0.90, np.nan]), tidy([0.88, 0.885], method="full", rank=None, targets=None)]
    runs = pd.concat(cells, ignore_index=True).assign(best_epoch=1, last_epoch=1)
    table = method_contrasts(runs)
    assert table.difference.isna().all() and len(table)


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


def test_collapsed_runs_are_counted_on_both_sides_and_shown_beside_n():
    full = tidy(method="full", rank=None, targets=None).assign(
        best_collapsed=[True] * 2 + [False] * 3
    )
    cells = pd.concat([tidy(), full], ignore_index=True)
    table = method_contrasts(cells)
    best = table[table.epoch == "best"].iloc[0]
    assert (best.collapsed_left, best.collapsed_right) == (0, 2)
    assert contrast_table(table)["of which collapsed"].tolist() == ["0 and 2"]
    assert "of which collapsed" not in contrast_table(
        method_contrasts(cells.assign(best_collapsed=False))
    )
    several = pd.concat([cells, cells.assign(task="rte")], ignore_index=True)
    assert task_aggregates(several).set_index("epoch").collapsed.to_dict() == {"best": 4, "last": 0}


def test_collapsed_runs_are_counted_for_the_base_and_each_switch():
    base = tidy(label="base").assign(best_collapsed=[True] + [False] * 4)
    other = tidy(label="head-trained").assign(best_collapsed=[True] * 3 + [False] * 2)
    switch = Switch(label="head-trained", name="head trained", changes={"head": "trained"})
    cells = pd.concat([base, other], ignore_index=True)
    table = switch_effects(study(switches=(switch,)), cells, "base")
    found = table[table.epoch == "best"].set_index("switch")
    assert found.loc["head trained", ["collapsed_base", "collapsed"]].tolist() == [1, 3]
    assert switch_table(table)["of which collapsed, base and switched"].tolist() == [
        "1 and 3",
        "",
        "1 and 0",
    ]
