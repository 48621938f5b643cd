"""Splits and label checks of fetched tasks."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from loraudit.base.errors import UserError
from loraudit.base.files import read_json
from loraudit.base.text_keys import TEXTS, normalised
from loraudit.data.fetch_task import canonical, fetch_task, split_by_rating
from loraudit.studies.entries import RatingRule
from tiny import make_task, save_hub_folder

RULE = RatingRule(column="score", neutral_below=0.5, validation_rows=20)


def rated(rows: int = 100) -> pd.DataFrame:
    """Make rated texts: every tenth neutral, two that differ in case and punctuation only."""
    score = np.tile([2.0, -1.5, 0.5, -0.5, 3.0, -2.0, 1.0, -1.0, 0.7, 0.49], rows // 10)
    texts = [f"review number {i}" for i in range(rows)]
    texts[50] = "Review,  NUMBER 40!"
    return pd.DataFrame({"text": texts, "score": score})


def test_rating_split_follows_its_rule():
    table = rated()
    splits, dropped = split_by_rating(table, RULE, ("text",))
    assert dropped == {"near_neutral": 10, "duplicate_text": 1}
    assert len(splits["validation"]) == 20
    assert len(splits["train"]) == 100 - 10 - 1 - 20
    keys = {name: set(split.text.map(normalised)) for name, split in splits.items()}
    assert not keys["train"] & keys["validation"]
    for split in splits.values():
        assert ((split.score > 0).astype(int) == split.label).all()
        assert split.score.abs().min() >= 0.5


def test_rating_split_does_not_depend_on_the_order_of_rows():
    table = rated().drop(index=50)
    one, _ = split_by_rating(table, RULE, ("text",))
    two, _ = split_by_rating(table.sample(frac=1, random_state=0), RULE, ("text",))
    assert list(one["validation"].text) == list(two["validation"].text)


def test_rating_needs_training_rows():
    with pytest.raises(UserError, match="leaves no training rows"):
        split_by_rating(rated().head(20), RULE, ("text",))


@pytest.mark.parametrize("name", ["rated.txt", "rated.csv"])
def test_a_table_of_a_wheel_is_read_as_text(tmp_path, monkeypatch, name):
    """Quotation marks in a table with tabs are text; a CSV's quoted value may hold a comma."""
    texts = [f"review {i}" for i in range(20)]
    texts[3], texts[7] = ('"A good start', "0.50") if name == "rated.txt" else ("one, two", "0.50")
    rows = pd.DataFrame({"id": "x", "score": [2.5, -1.25] * 10, "text": texts})
    lines = [f"x\t{score}\t{text}" for score, text in zip(rows.score, texts, strict=True)]
    content = (
        rows.to_csv(index=False) if name.endswith("csv") else "\n".join(["id\tscore\ttext", *lines])
    )
    monkeypatch.setattr(
        "loraudit.data.fetch_task.extract_wheels", lambda _, out: (out / name).write_text(content)
    )
    wheel = {"wheel": "some==1.0", "sha256": "0" * 64, "path": f"folder/{name}"}
    rating = {"column": "score", "neutral_below": 0.5, "validation_rows": 5}
    task = make_task(source=wheel, text=["text"], label=None, rating=rating)
    fetch_task(task, tmp_path / "out")
    tables = [pd.read_parquet(tmp_path / "out" / f"{s}.parquet") for s in ("train", "validation")]
    table = pd.concat(tables).sort_values("row")
    assert table.text_1.tolist() == texts
    assert table.label.tolist() == [1, 0] * 10


@pytest.mark.parametrize("bad", ["", "high", "inf"])
def test_a_rating_that_is_no_number_is_refused_with_its_row(tmp_path, monkeypatch, bad):
    content = f"text,score\na,1.0\nb,{bad}\n"
    monkeypatch.setattr(
        "loraudit.data.fetch_task.extract_wheels",
        lambda _, out: (out / "a.csv").write_text(content),
    )
    wheel = {"wheel": "some==1.0", "sha256": "0" * 64, "path": "a.csv"}
    task = make_task(source=wheel, text=["text"], label=None, rating=RULE.model_dump())
    with pytest.raises(UserError, match=f"row 1 has the rating '{bad}' in column 'score'"):
        fetch_task(task, tmp_path / "out")


def test_fetch_from_a_folder_in_the_hubs_layout(tmp_path):
    save_hub_folder(tmp_path / "hub", rows=40)
    entry = make_task(source={"folder": str(tmp_path / "hub"), "config": "sst2"})
    manifest = fetch_task(entry, tmp_path / "out")
    assert manifest == read_json(tmp_path / "out" / "manifest.json")
    assert manifest["splits"]["train"]["rows"] == 40
    assert sum(manifest["splits"]["validation"]["labels"].values()) == 20
    table = pd.read_parquet(tmp_path / "out" / "train.parquet")
    assert list(table.columns) == ["row", "text_1", "label"]
    keys = load_file(tmp_path / "out" / TEXTS)
    assert {split: keys[split].shape for split in keys} == {"train": (40, 1), "validation": (20, 1)}


def test_a_further_split_is_fetched_or_named_as_absent(tmp_path):
    save_hub_folder(tmp_path / "hub", rows=40)
    source = {"folder": str(tmp_path / "hub"), "config": "sst2"}
    there = make_task(source=source, also_validate={"again": "validation"})
    manifest = fetch_task(there, tmp_path / "there")
    assert manifest["absent"] == []
    assert manifest["splits"]["again"] == manifest["splits"]["validation"]
    lacking = make_task(source=source, also_validate={"mismatched": "validation_mismatched"})
    manifest = fetch_task(lacking, tmp_path / "lacking")
    assert manifest["absent"] == ["mismatched"]
    assert set(manifest["splits"]) == {"train", "validation"}


def test_fetch_again_gives_equal_bytes(tmp_path):
    save_hub_folder(tmp_path / "hub")
    entry = make_task(source={"folder": str(tmp_path / "hub"), "config": "sst2"})
    assert fetch_task(entry, tmp_path / "a") == fetch_task(entry, tmp_path / "b")


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ({"text": ["sentense"]}, {}, r"column: 'sentense' is not known; did you mean 'sentence'"),
        ({"label": "lable"}, {}, r"column: 'lable' is not known; did you mean 'label'"),
        ({}, {"label": [-1, 0, 1]}, r"label -1 in 1 of 3 rows .*legal: 0 to 1: negative, positive"),
        ({}, {"label": [0, 1, 2]}, r"label 2 in 1 of 3 rows \(first in row 2\)"),
        ({}, {"label": [0, 0.5, None]}, "label 0.5 in 2 of 3 rows"),
        (
            {"classes": [], "metrics": ["pearson"], "headline": "pearson"},
            {"label": [0.0, float("nan"), 1.0]},
            "legal: finite numbers",
        ),
        ({}, {"sentence": ["a", None, "c"]}, "row 1 has no text in sentence"),
        ({}, {"sentence": ["a", "", "c"]}, "row 1 has no text in sentence"),
        ({}, {"sentence": ["a", "b", " \t"]}, "row 2 has no text in sentence"),
        ({}, {"sentence": ["a", None, " "]}, r"row 1 \(and 1 more\) has no text"),
        ({}, {"sentence": ["a", 0.5, "c"]}, "'sentence' holds 0.5 in row 1, which is not text"),
        ({}, {"label": ["good", "bad", "good"]}, r"is a word .*classes: \[bad, good\]"),
        ({}, {"label": ["negative", "bad", "1"]}, "label 'negative' in 2 of 3 rows .* is a word"),
        ({"classes": ["1", "2"]}, {"label": ["1", "1", "1"]}, "that name or the class of that num"),
        (
            {"classes": [], "metrics": ["pearson"], "headline": "pearson"},
            {"label": ["yes", "no", "no"]},
            r"legal: finite numbers.*classes: \[no, yes\]",
        ),
    ],
)
def test_bad_tables_are_refused(task, change, message):
    table = pd.DataFrame({"sentence": ["a", "b", "c"], "label": [0, 1, 0], **change})
    with pytest.raises(UserError, match=message):
        canonical(table, make_task(**task), "train")


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="no rows"):
        canonical(pd.DataFrame({"sentence": [], "label": []}), make_task(), "validation")


def test_a_failed_fetch_leaves_nothing(tmp_path):
    save_hub_folder(tmp_path / "hub", columns={"label": "lable"})
    entry = make_task(source={"folder": str(tmp_path / "hub"), "config": "sst2"})
    with pytest.raises(UserError, match="'label' is not known"):
        fetch_task(entry, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"folder": "/no/such/folder", "config": "sst2"}, "no data folder /no/such/folder"),
        ({"folder": "{hub}", "config": "mrpc"}, "folder .*hub: .*mrpc"),
    ],
)
def test_a_missing_folder_or_config_is_named(tmp_path, source, message):
    save_hub_folder(tmp_path / "hub")
    source = {key: value.replace("{hub}", str(tmp_path / "hub")) for key, value in source.items()}
    with pytest.raises(UserError, match=message):
        fetch_task(make_task(source=source), tmp_path / "out")
