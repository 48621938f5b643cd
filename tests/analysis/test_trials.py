"""What tuning chose, beside a choice by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from loraudit.analysis.trials import chosen_settings
from loraudit.report.formatting import values_text
from loraudit.report.tables import tuning_table

CELL = {"task": "t", "model": "m", "targets": "q+v", "label": "", "metric": "accuracy"}
RATES = (1e-5, 1e-4, 1e-3, 1e-2)


def trials(method: str, scores: dict[float, list[float]], chosen: float, **cell) -> pd.DataFrame:
    rows = [
        {"learning_rate": rate, "values": json.dumps({"learning_rate": rate}), "seed": seed,
         "score": score, "chosen": rate == chosen, "at_edge": "", "collapsed": False,
         "diverged": False}
        for rate, found in scores.items()
        for seed, score in enumerate(found)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**{**CELL, "method": method, **cell})


def clear(best: float) -> dict[float, list[float]]:
    """Return scores of two seeds that leave no doubt about the best rate."""
    return {rate: [0.9, 0.91] if rate == best else [0.5, 0.51] for rate in RATES}


FULL = trials("full", clear(1e-4), 1e-4, rank=np.nan, targets=None)


def test_each_cell_has_what_it_takes_its_lead_and_its_rate_beside_full_fine_tunings():
    table = pd.concat([trials("lora", clear(1e-3), 1e-3, rank=8), FULL])
    lora, full = chosen_settings(table).to_dict("records")
    assert json.loads(lora["chosen"]) == {"learning_rate": 1e-3}
    assert (lora["mean"], lora["n"], lora["tried"]) == (pytest.approx(0.905), 2, 4)
    assert lora["lead"] == pytest.approx(0.4)
    assert lora["rate_ratio"] == pytest.approx(10)
    neighbours = pytest.approx(0.1), pytest.approx(1000)
    assert (lora["ratio_low"], lora["ratio_high"]) == neighbours
    assert np.isnan(full["rate_ratio"])


def test_of_a_log_loss_the_lowest_rate_is_the_best():
    lost = {rate: [1 - score for score in scores] for rate, scores in clear(1e-3).items()}
    full = {rate: [1 - score for score in scores] for rate, scores in clear(1e-4).items()}
    table = pd.concat(
        [
            trials("lora", lost, 1e-3, rank=8, metric="log_loss"),
            trials("full", full, 1e-4, rank=np.nan, targets=None, metric="log_loss"),
        ]
    )
    lora = chosen_settings(table).iloc[0]
    assert lora["mean"] == pytest.approx(0.095)
    assert lora.lead == pytest.approx(0.4)
    assert lora.rate_ratio == pytest.approx(10)


def test_seeds_that_disagree_widen_the_ratios_interval():
    scores = {1e-3: [0.9, 0.6, 0.8], 1e-2: [0.6, 0.85, 0.8], 1e-4: [0.1, 0.1, 0.1]}
    table = pd.concat([trials("lora", scores, 1e-3, rank=8), FULL])
    lora = chosen_settings(table).iloc[0]
    assert lora.rate_ratio == pytest.approx(10)
    assert (lora.ratio_low, lora.ratio_high) == (pytest.approx(0.1), np.inf)  # 1e-2 is the edge


@pytest.mark.parametrize(("seeds", "step"), [(1, 3.16), (2, 3.16), (3, 1.41)])
def test_the_interval_of_a_ratio_of_rates_covers_it(seeds, step):
    """Best rates are known to a grid and to the trials' noise: a point at a factor 3.16, sd 1."""
    random = np.random.default_rng(0)
    grid = step ** np.arange(-4, 5)
    covered = []
    for _ in range(40):
        tables = []
        for method, rank in (("lora", 8), ("full", np.nan)):
            rates = grid * step ** random.uniform(-0.5, 0.5)  # the best one is 1
            scores = {
                rate: 0.8 - 0.01 * (2 * np.log10(rate)) ** 2
                + 0.01 * random.standard_normal(seeds)
                for rate in rates
            }  # fmt: skip
            best = max(scores, key=lambda rate, found=scores: found[rate].mean())
            tables.append(trials(method, scores, best, rank=rank))
        row = chosen_settings(pd.concat(tables)).iloc[0]
        covered.append(row.ratio_low <= 1 <= row.ratio_high)
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 40)


def test_an_undefined_score_counts_as_the_lowest_as_where_the_choice_was_made():
    scores = {1e-4: [0.5, 0.5], 1e-3: [0.8, 0.8], 1e-2: [np.nan, 0.99]}
    table = pd.concat([trials("lora", scores, 1e-3, rank=8), FULL])
    lora = chosen_settings(table).iloc[0]
    assert lora.rate_ratio == pytest.approx(10)
    assert json.loads(lora.runner_up) == {"learning_rate": 1e-4}
    assert lora.lead == pytest.approx(0.3)


def test_full_fine_tuning_that_keeps_its_weights_is_full_fine_tuning_too():
    table = pd.concat([trials("lora", clear(1e-3), 1e-3, rank=8), FULL.assign(method="full_saved")])
    assert chosen_settings(table).iloc[0].rate_ratio == pytest.approx(10)


def test_without_tuned_full_fine_tuning_there_is_no_ratio_and_without_trials_no_row():
    lora = trials("lora", clear(1e-3), 1e-3, rank=8)
    assert chosen_settings(lora).rate_ratio.isna().all()
    other = FULL.assign(task="other")
    assert chosen_settings(pd.concat([lora, other])).rate_ratio.isna().all()
    assert chosen_settings(lora.iloc[:0]).empty


def test_values_are_written_for_readers():
    text = values_text(json.dumps({"learning_rate": 1e-4, "alpha": 16.0, "schedule": "linear"}))
    assert text == "learning rate 0.0001, alpha 16, schedule linear"


def test_runs_that_diverged_are_counted_and_their_values_named():
    scores = {1e-4: [0.5, 0.6], 1e-3: [0.8, 0.9], 1e-2: [0.95, np.nan]}
    table = trials("lora", scores, 1e-3, rank=8)
    table["diverged"] = table.score.isna()
    found = chosen_settings(table)
    row = found.iloc[0]
    assert json.loads(row.chosen) == {"learning_rate": 1e-3}
    assert (row.diverged, row.all_diverged) == (0, 1)
    shown = tuning_table(found)
    assert shown["diverged (counted as the worst)"].tolist() == ["1 at learning rate 0.01"]
    assert "of which diverged" not in shown
    well = tuning_table(chosen_settings(table.assign(diverged=False)))
    assert "diverged (counted as the worst)" not in well
