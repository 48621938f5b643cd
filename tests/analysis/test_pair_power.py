"""What seeds can show of pairs: against statsmodels' power and against studies that are drawn."""

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.power import TTestIndPower, TTestPower

from loraudit.analysis.contrasts import method_contrasts
from loraudit.analysis.matching import planned_runs
from loraudit.analysis.pair_power import pair_power, spread_of
from loraudit.studies.study import Run
from loraudit.studies.study_file import Contrast
from tiny import make_spec
from tiny_study import small_study

SD = 0.007


def study_of(seeds: int, methods=("lora", "full"), **changes):
    runs = [
        Run(
            id=f"tinytask/tiny/{method}/s{seed}", label="", spec=make_spec(method=method, seed=seed)
        )
        for method in methods
        for seed in range(seeds)
    ]
    return small_study(runs=tuple(runs), **changes)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_two_cells_need_what_statsmodels_says(seeds):
    row = pair_power(study_of(seeds), SD).iloc[0]
    paired, two = TTestPower(), TTestIndPower()
    if seeds < 5:
        smallest = two.solve_power(None, seeds, 0.05, 0.8)
    else:
        smallest = math.sqrt(2) * paired.solve_power(None, seeds, 0.05, 0.8)
    assert row.smallest / SD == pytest.approx(smallest, rel=1e-3)
    assert row.seeds == math.ceil(paired.solve_power(0.01 / SD / math.sqrt(2), None, 0.05, 0.8))
    assert (row.n_left, row.n_right, row.family) == (seeds, seeds, 1)


def test_each_side_of_an_equivalence_may_be_missed():
    asked = (Contrast(left="lora", right="full", asks="equivalence", margin=0.01),)
    study = study_of(5, contrasts=asked)
    seeds = int(pair_power(study, SD).seeds[0])
    assert 0.7 < power_drawn(study_of(seeds, contrasts=asked), gap=0.0) < 0.95
    assert pair_power(study, 1.0).seeds.isna().all()


def power_drawn(study, gap: float, draws: int = 120) -> float:
    """Draw studies whose LoRA is better by `gap`; return how often its pair is found."""
    random = np.random.default_rng(0)
    plan = planned_runs(study)
    found = 0
    for _ in range(draws):
        scores = 0.8 + SD * random.standard_normal(len(plan)) + gap * (plan.method == "lora")
        table = method_contrasts(plan.assign(best=scores, last=scores), study.contrasts)
        found += (table[table.epoch == "last"].p_holm.iloc[0]) < 0.05
    return found / draws


def test_the_smallest_difference_of_several_pairs_is_found_in_80_percent_of_drawn_studies():
    asked = tuple(
        Contrast(left=a, right=b)
        for a, b in (("lora", "full"), ("full", "head"), ("bitfit", "head"), ("bitfit", "full"))
    )
    study = study_of(4, ("lora", "full", "head", "bitfit"), contrasts=asked)
    row = pair_power(study, SD).iloc[0]
    assert row.family == 4
    assert 0.7 < power_drawn(study, row.smallest) < 0.95


def test_the_spread_of_finished_cells_is_pooled_and_an_unknown_one_leaves_the_rest_unknown():
    runs = planned_runs(study_of(3)).assign(last=[0.1, 0.2, 0.3, 0.5, 0.5, 0.5])
    runs["best"] = runs["last"]
    assert spread_of(runs) == {("tinytask", "tiny"): pytest.approx(math.sqrt(0.01 / 2))}
    assert spread_of(runs[:1]) == {}
    table = pair_power(study_of(3), {})
    assert table[["sd", "smallest", "seeds"]].isna().all(axis=None)
    assert pair_power(study_of(1), SD).empty and isinstance(table, pd.DataFrame)
