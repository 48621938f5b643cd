"""Scores of others as CSV: read as they stand, and one clear answer to each thing that is wrong."""

import datetime
import math

import pytest

from loraudit.base.errors import UserError
from loraudit.studies.reference import select
from loraudit.studies.score_files import (
    Score,
    as_published,
    known_metric,
    legal_names,
    read_table,
    targets_name,
)

HEAD = "task,model,method,rank,targets,seed,metric,score,epoch_choice"
LEGAL = legal_names(select(("hu2022.table2",)))
CELL = {"task": "mrpc", "model": "roberta-base", "method": "lora", "rank": 8, "targets": "q+v"}


def row(seed=0, score="89.5", task="mrpc", metric="accuracy", choice="best", **changes) -> str:
    fields = {"model": "roberta-base", "method": "lora", "rank": 8, "targets": "q+v", **changes}
    named = [fields[name] for name in ("model", "method", "rank", "targets")]
    return ",".join(map(str, [task, *named, seed, metric, score, choice]))


def read(folder, *lines: str, head: str = HEAD, given=None):
    path = folder / "results.csv"
    path.write_text("\n".join([head, *lines]))
    return as_published(read_table(path, given or {}, LEGAL), path.name)


def error(folder, *lines: str, head: str = HEAD) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, *lines, head=head)
    return str(caught.value)


def test_a_cells_seeds_become_one_number(tmp_path):
    (number,) = read(tmp_path, row(0, "89.5"), row(1, "90.5"))
    assert (number.key, number.task, number.rank, number.targets) == (
        "results.csv",
        "mrpc",
        8,
        "q+v",
    )
    assert number.scores() == [89.5, 90.5]
    assert (number.value, number.n, number.unit, number.selection) == (
        90,
        2,
        "percent",
        "best epoch",
    )


def test_fractions_are_read_as_fractions(tmp_path):
    (number,) = read(tmp_path, row(0, "0.895"), row(1, "1"))
    assert (number.unit, number.scores()) == ("fraction", [0.895, 1.0])


def test_a_row_per_evaluation_gives_the_best_and_the_last_epoch(tmp_path):
    lines = [
        row(0, score, choice=epoch) for epoch, score in (("2", "91"), ("1", "90"), ("3", "89"))
    ]
    best, last = read(tmp_path, *lines, head=HEAD.replace("epoch_choice", "epoch"))
    assert (best.selection, best.scores()) == ("best epoch", [91.0])
    assert (last.selection, last.scores()) == ("last epoch", [89.0])


def test_the_delimiter_the_names_and_the_values_for_all_rows_are_flexible(tmp_path):
    head = "Seed;Epoch Choice;Method;RANK;targets;metric;score;learning-rate;head"
    line = "1;Best;LoRA;8;value, query;MCC;61.5;4e-4;frozen"
    given = {"task": "cola", "model": "FacebookAI/roberta-base"}
    (number,) = read(tmp_path, line, head=head, given=given)
    assert (number.model, number.metric, number.targets) == ("roberta-base", "matthews", "q+v")
    assert number.settings == {"learning_rate": 4e-4, "head": "frozen"}


def test_other_settings_make_another_number(tmp_path):
    head = f"{HEAD},alpha"
    numbers = read(tmp_path, f"{row(0)},8", f"{row(0)},16", head=head)
    assert [number.alpha for number in numbers] == [8, 16]


@pytest.mark.parametrize("name", ["adapter-d", "adapter_d", "Adapter D", "AdapterD"])
def test_a_method_may_be_written_in_any_way(tmp_path, name):
    (number,) = read(tmp_path, row(method=name))
    assert number.method == "adapter-d"


def test_a_metric_may_be_written_in_any_way():
    legal = legal_names(select(("hu2022.table18",)))
    assert {known_metric(name, legal) for name in ("rouge-l", "rougeL", "ROUGE_L")} == {"rouge-l"}
    assert known_metric("Matthews Correlation", legal) == known_metric("MCC", legal) == "matthews"
    assert known_metric("rouge", legal) is None


@pytest.mark.parametrize("name", ["alpha", "learning_rate", "lora_dropout"])
@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "1e999"])
def test_a_setting_that_is_no_finite_number_is_named(tmp_path, name, value):
    said = f"line 2: {name}: expected a finite number, got {value!r}"
    assert said in error(tmp_path, f"{row()},{value}", head=f"{HEAD},{name}")
    with pytest.raises(UserError, match="alpha: expected a finite number, got nan"):
        read(tmp_path, row(), given={"alpha": math.nan})


@pytest.mark.parametrize("value", [datetime.date(2020, 1, 2), [1], {"a": 1}])
def test_a_setting_that_is_no_number_and_no_word_is_named(tmp_path, value):
    """What --set reads as YAML may be anything; a day was a traceback."""
    with pytest.raises(UserError, match="epochs: expected a number or a word, got ") as caught:
        read(tmp_path, row(), given={"epochs": value})
    assert str(caught.value).endswith(str(value))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"head": "trianed"}, "head: 'trianed' is not known; did you mean 'trained'"),
        ({"learning_rate": "abc"}, "learning_rate: expected a number, got 'abc'"),
        ({"alpha": True}, "alpha: expected a number, got True"),
        ({"epochs": -3}, "epochs: expected a number of 0 or more, got -3"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(tmp_path, given, said):
    """It would change the words of a verdict."""
    with pytest.raises(UserError, match=said):
        read(tmp_path, row(), given=given)
    (number,) = read(tmp_path, row(), given={"schedule": "polynomial", "precision": "fp16"})
    assert number.settings == {"schedule": "polynomial", "precision": "fp16"}


@pytest.mark.parametrize("rows", [3, 4000])
def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path, rows):
    """Alone it took in all rows that follow; in a long file it was a traceback."""
    lines = [f'{row(0)},"trained', *(f"{row(seed)},trained" for seed in range(1, rows))]
    said = error(tmp_path, *lines, head=f"{HEAD},head")
    assert "line 2" in said and "(is a quote not closed?)" in said
    lines[2] = f'{row(2)},trained"'
    said = error(tmp_path, *lines, head=f"{HEAD},head")
    assert "line 2" in said and "(is a quote not closed?)" in said


def test_collapsed_runs_whose_mean_is_below_one_percent_are_no_fractions(tmp_path):
    lines = [row(seed, score) for seed, score in enumerate(("0", "0", "1.8"))]
    (number,) = read(tmp_path, *lines)
    assert number.unit == "percent" and number.value == pytest.approx(0.6)


def test_scores_have_the_name_of_their_file_or_folder():
    score = Score("here", {**CELL, "metric": "accuracy"}, {}, 0, 0.9, None, "best epoch")
    for name in ("results.csv", "runs", ".runs", "v1.2 and 3 more"):
        (number,) = as_published([score], name)
        assert number.key == name


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [row(metric="acuracy")],
            "line 2: metric: 'acuracy' is not known; did you mean 'accuracy'",
        ),
        (
            [row(0, "91.2"), row(1, "0.912")],
            "mixed units: 91.2 (*, line 2) is a percentage and 0.912",
        ),
        ([row(3), row(3)], "seed 3 is there twice for mrpc, *: *, line 2 and *, line 3"),
        ([row(0, "105")], "line 2: score: 105 is above 100 %"),
        ([row(0, "high")], "line 2: score: expected a number, got 'high'"),
        ([row(0, "nan")], "line 2: score: expected a finite number"),
        ([row("1.5")], "line 2: seed: expected a whole number"),
        ([row(method="lroa")], "method: 'lroa' is not known; did you mean 'lora'"),
        ([row(rank="")], "line 2: rank is missing, which the method lora has"),
        ([row(choice="first")], "epoch_choice: 'first' is not known"),
        ([row(task="")], "line 2: task is missing (a value for all rows: --set task=VALUE)"),
        (["mrpc,roberta-base"], "line 2: 2 values for 9 columns"),
        ([], "no scores below the first line"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_row_is_named(tmp_path, lines, said):
    message = error(tmp_path, *lines)
    at = 0
    for part in said.split("*"):
        assert part in message[at:], message
        at += message[at:].index(part) + len(part)


def test_what_is_wrong_with_the_columns_is_named(tmp_path):
    assert "column: 'scor' is not known; did you mean 'score'" in error(
        tmp_path, row(), head=HEAD.replace("score", "scor")
    )
    assert "no column model; every score needs" in error(
        tmp_path, "mrpc,lora,8,q+v,1,accuracy,90,best", head=HEAD.replace("model,", "")
    )
    line, head = "mrpc,lora,8,q+v,accuracy,90,best", HEAD.replace("seed,", "")
    message = error(tmp_path, line, head=head.replace("model,", ""))
    assert "no column model and no column seed; every score needs" in message
    assert message.endswith("(a value for all rows: --set model=VALUE)")
    line = "mrpc,roberta-base,lora,8,q+v,accuracy,90,best"
    assert "--set" not in error(tmp_path, line, head=head)  # which refuses a seed
    assert "'seed' is there twice" in error(tmp_path, f"{row()},1", head=f"{HEAD},seed")


def test_a_file_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "results.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_table(path, {}, LEGAL)


@pytest.mark.parametrize("given", ["v+q", ["value", "query"], "q_proj, v_proj", "v_lin q_lin"])
def test_matrices_have_the_projects_names_in_its_order(given):
    assert targets_name(given) == "q+v"


def test_matrices_without_a_name_here_keep_theirs():
    assert targets_name(["q", 1]) == "q+1"
    assert targets_name(["lm_head", "gate_proj"]) == "gate+lm_head"
