"""What a study is told before it runs."""

import pytest
import yaml

from loraudit.studies.advice import advice
from loraudit.studies.expand import load_study

LORA = {"method": "lora", "rank": [1, 64], "targets": "q+v"}
TUNE = {"axes": {"learning_rate": [1e-4, 1e-3]}, "seeds": [100]}


def said(tmp_path, *grid: dict, **study) -> str:
    path = tmp_path / "advised.yaml"
    path.write_text(yaml.safe_dump({"question": "Why?", "grid": list(grid), **study}))
    return " | ".join(advice(load_study(path)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, True), ({"alpha": "rank"}, False), ({"rank": 8}, False), ({"alpha": [8, 16]}, False)],
)
def test_a_fixed_alpha_over_ranks_is_told(tmp_path, changes, told):
    text = said(tmp_path, {**LORA, **changes})
    assert ("falls from 16 at rank 1 to 0.25 at rank 64" in text) == told
    assert text.startswith("alpha is 16 at every rank") == told


def test_alpha_is_not_said_to_be_fixed_where_it_is_tuned(tmp_path):
    tune = {**TUNE, "axes": {"learning_rate": [1e-4, 1e-3], "alpha": [8, 64]}}
    chosen = {**LORA, "rank": 1, "learning_rate": 1e-4, "label": "alpha-tuned"}
    fixed = {**LORA, "alpha": 16}
    text = said(tmp_path, chosen, fixed, defaults={"selection_rows": 100}, tune=tune)
    assert text.startswith("where it is not tuned, alpha is 16 at every rank")


def test_an_untuned_study_and_untuned_methods_are_told(tmp_path):
    assert "untuned: all settings are as the study says" in said(tmp_path, LORA)
    rows = {"defaults": {"selection_rows": 100}, "tune": TUNE}
    assert "untuned" not in said(tmp_path, LORA, **rows)
    head = {"method": "head", "learning_rate": 0.01}
    assert "untuned, beside cells that are tuned: head only" in said(tmp_path, LORA, head, **rows)
    fixed = {**LORA, "rank": 8, "learning_rate": 1e-4, "label": "fixed"}
    text = said(tmp_path, {**LORA, "rank": 8}, fixed, **rows)
    assert text == "untuned, beside cells that are tuned: lora-r8-q+v-fixed"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [({}, "settings as the study quickstart-tuning chose"), ({"task": "tweets"}, "untuned: all")],
)
def test_settings_that_another_study_chose_are_told_where_they_were_chosen(
    tmp_path, overrides, told
):
    path = tmp_path / "chosen.yaml"
    path.write_text("{settings_from: quickstart-tuning, grid: [{method: full, seed: [0, 1]}]}")
    (sentence,) = advice(load_study(path, overrides))
    assert sentence.startswith(told)
