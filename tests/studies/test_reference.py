"""Published numbers as data: the schema, and known facts of what is in them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from loraudit.base.errors import UserError
from loraudit.studies.reference import (
    FOLDER,
    MODELS,
    load_all,
    load_models,
    load_reference,
    select,
)

FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != MODELS)

GOOD = """
title: T
authors: A
year: 2024
url: https://example.org
tables:
  one:
    title: A table
    metrics: {mrpc: accuracy}
    shared: {where: Table 1, source: text, confidence: seen, model: m, method: lora, n: 5,
             statistic: median, selection: best epoch, pm_means: sd}
    rows:
      - {rank: 8, values: {mrpc: [89.7, 0.7]}}
"""


def read(folder, text: str):
    path = folder / "file.yaml"
    path.write_text(text)
    return load_reference(path)[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_are_complete(path):
    reference, numbers = load_reference(path)
    assert numbers
    assert reference.url.startswith("https://") or path.stem == "others"  # a file of many sources
    for number in numbers:
        assert number.where
        assert number.source
        if number.unit == "percent":
            assert 0 <= number.value <= 100


def test_the_sources_are_there():
    keys = {number.key for _, numbers in load_all().values() for number in numbers}
    tables = (2, 5, 6, 7, 9, 15, 16, 18)
    assert {f"hu2022.table{n}" for n in tables} <= keys
    assert {"microsoft_lora.readme", "poster2025.table1", "poster2025.seeds"} <= keys
    assert {"poster2025.mnli_grid", "others.yao2026_best", "adalora2023.table1"} <= keys


def test_a_number_takes_what_its_table_shares_and_its_row_says(tmp_path):
    (number,) = read(tmp_path, GOOD)
    assert (number.key, number.task, number.metric) == ("file.one", "mrpc", "accuracy")
    assert (number.rank, number.value, number.pm, number.n) == (8, 89.7, 0.7, 5)


def test_seeds_give_value_and_n(tmp_path):
    seeds = "{seeds: {0: [80, 90], 1: [70, 60], 2: [50, 55]}}"
    (number,) = read(tmp_path, GOOD.replace("[89.7, 0.7]", seeds))
    assert number.scores() == [90, 70, 55]
    assert (number.value, number.n) == (70, 3)  # the table's statistic: median
    last = GOOD.replace("best epoch", "last epoch").replace("[89.7, 0.7]", seeds)
    (number,) = read(tmp_path, last)
    assert number.scores() == [90, 60, 55]
    assert number.value == 60


def test_counts_of_right_rows_are_exact_percentages(tmp_path):
    seeds = "{of: 408, seeds: {42: [331, 359], 43: [346, 355]}}"
    (number,) = read(tmp_path, GOOD.replace("[89.7, 0.7]", seeds))
    assert number.scores() == pytest.approx([100 * 359 / 408, 100 * 355 / 408], rel=1e-14)
    assert number.value == pytest.approx(100 * 357 / 408)


def test_a_table_may_give_each_task_its_margin(tmp_path):
    text = GOOD.replace(
        "metrics: {mrpc: accuracy}", "metrics: {mrpc: accuracy}\n    margins: {mrpc: 2}"
    )
    (number,) = read(tmp_path, text)
    assert number.margin == 2


def test_a_percentage_below_one_can_be_given_as_a_fraction(tmp_path):
    values = "{value: 0.005, unit: fraction}"
    (number,) = read(tmp_path, GOOD.replace("[89.7, 0.7]", values))
    assert number.value == 0.005


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: A table", "titel: A table", "tables.one: key: 'titel' .*did you mean 'title'"),
        ("rank: 8", "rnak: 8", "row 1: mrpc: key: 'rnak' is not known; did you mean 'rank'"),
        ("confidence: seen", "confidence: sure", "confidence: 'sure' is not known"),
        (", pm_means: sd", "", "say pm_means"),
        ("[89.7, 0.7]", "[89.7]", r"expected \[value, ±\], got \[89.7\]"),
        ("[89.7, 0.7]", "[89.7, -1]", "pm = -1"),
        ("[89.7, 0.7]", "high", "value = 'high'"),
        ("[89.7, 0.7]", "{seeds: {0: []}}", "seeds: expected"),
        ("{mrpc: [89.7, 0.7]}", "{}", "values: expected columns and numbers"),
        ("mrpc: accuracy", "sst2: accuracy", "key 'metric' is missing"),
        ("year: 2024", "year: then", "year = 'then'"),
        ("[89.7, 0.7]", "0.897", "score 0.897 under unit: percent .* looks like a fraction"),
        ("[89.7, 0.7]", "897", "score 897 is above 100 under unit: percent"),
        (
            "[89.7, 0.7]",
            "{value: 89.7, unit: fraction}",
            "above 1 under unit: fraction; say unit: p",
        ),
        ("[89.7, 0.7]", "{seeds: {0: [0.8], 1: [0.9]}}", "looks like a fraction"),
        ("[89.7, 0.7]", "{of: 408, seeds: {0: [409]}}", "score 100.245 is above 100"),
        ("[89.7, 0.7]", "{of: 0, seeds: {0: [3]}}", "seeds: expected"),
        ("[89.7, 0.7]", "{selection: unknown, seeds: {0: [80, 90]}}", "say which epoch counts"),
        ("[89.7, 0.7]", "{value: 89.7, margin: 0}", "margin = 0"),
    ],
)
def test_bad_files_get_one_clear_error(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert "file.yaml" in str(caught.value)


def test_an_unknown_table_is_named_with_its_nearest():
    with pytest.raises(UserError, match=r"'hu2022.tabel2' is not known; did you mean 'hu2022.tabl"):
        select(("hu2022.tabel2",))


def test_the_posters_printed_mrpc_number_is_one_seed_and_not_the_median():
    (printed,) = [n for n in select(("poster2025.table1",)) if n.task == "mrpc"]
    (seeds,) = [n for n in select(("poster2025.seeds",)) if n.task == "mrpc"]
    best = {seed: max(epochs) for seed, epochs in seeds.seeds.items()}
    assert np.median(list(best.values())) == pytest.approx(100 * 358 / 408)
    assert [seed for seed, score in best.items() if round(score) == printed.value] == [42, 44, 45]
    assert round(best[42], 1) == printed.value == 88.0
    assert printed.n == 1


def test_the_posters_spread_is_the_population_sd_rounded():
    printed = {n.task: n.pm for n in select(("poster2025.table1",)) if n.pm is not None}
    seeds = {n.task: n.scores() for n in select(("poster2025.seeds",))}
    assert printed == {task: round(float(np.std(seeds[task])), 1) for task in printed}
    assert round(float(np.std(seeds["sst2"], ddof=1)), 1) == 0.3 != printed["sst2"]


def test_the_posters_mrpc_counts_have_the_sd_that_is_reported():
    (mrpc,) = [n for n in select(("poster2025.seeds",)) if n.task == "mrpc"]
    right = [round(score * 408 / 100) for score in mrpc.scores()]
    assert right == [359, 355, 358, 360, 353]
    assert round(float(np.std(mrpc.scores(), ddof=1)), 2) == 0.71


def test_margins_are_one_point_or_a_standard_error_of_the_split():
    """Binomial, at the published score: MRPC 408 rows, RTE 277, SST-2 872, QNLI 5,463."""
    margins = {n.task: n.margin for n in select(("hu2022.table2",)) if n.margin}
    for task, score, rows in (("mrpc", 89.7, 408), ("rte", 86.6, 277), ("sst2", 95.1, 872)):
        error = np.sqrt(score * (100 - score) / rows)
        assert margins[task] == pytest.approx(max(1.0, error), abs=0.05)


@pytest.mark.parametrize("name", load_models())
def test_a_models_parameters_are_those_of_its_shape(name):
    known = load_models()[name]
    config = transformers.RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_hidden_layers=known.layers,
        hidden_size=known.width,
        intermediate_size=4 * known.width,
        num_attention_heads=known.width // 64,
    )
    with torch.device("meta"):
        body = transformers.RobertaModel(config, add_pooling_layer=False)
    assert sum(parameter.numel() for parameter in body.parameters()) == known.parameters


def test_a_wrong_key_of_a_model_is_an_error(tmp_path):
    (tmp_path / MODELS).write_text("m: {layers: 2, widht: 3, parameters: 4, source: s}")
    with pytest.raises(UserError, match=r"models.yaml: m: key: 'widht' .* 'width'"):
        load_models(tmp_path)
    assert load_models(tmp_path / "none") == {}


def test_the_posters_grid_rises_by_more_than_its_text_says():
    """Its text: rank 1 is within about 1 % of higher ranks."""
    grid = {(n.targets, n.rank): n.value for n in select(("poster2025.mnli_grid",))}
    rises = {t: grid[t, 64] - grid[t, 1] for t in ("q", "q+v", "q+k+v+o")}
    assert rises == pytest.approx({"q": 10.49, "q+v": 2.25, "q+k+v+o": 1.79})


def test_readers_find_the_schema_beside_the_files():
    assert Path("config/reference/README.md").is_file()
