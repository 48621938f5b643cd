"""Where the verdicts of two bundles agree, and what is no bundle."""

import json
import zipfile

import pytest

from loraudit.base.errors import UserError
from loraudit.tools.crate_verdicts import METADATA, entities, read_graph, verdicts_of
from loraudit.tools.merge import merge, sections, sentences, word_of
from tiny_claims import verdict_table

CODE = [{"@id": "#code", "name": "loraudit"}, {"@id": "./", "@type": "Dataset"}]


def save(path, table, runs=("a", "b"), study: str = "one"):
    """Write a bundle's metadata with a table's verdicts, and runs by the digests of predictions."""
    files = [
        {"@id": f"results/{study}/runs/{name}/predictions.parquet", "sha256": name} for name in runs
    ]
    graph = [*CODE, *files, *entities(table, study)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(METADATA, json.dumps({"@graph": graph}))
    return path


def verdict(word: str) -> dict:
    return {"verdict": word}


@pytest.mark.parametrize(
    ("left", "right", "word"),
    [
        ("supported", "supported", "agree"),
        ("contradicted", "contradicted", "agree"),
        ("supported", "contradicted", "disagree"),
        ("undecided", "contradicted", "one decides"),
        ("undecided", "undecided", "both undecided"),
        ("not tested", "undecided", "only right"),
        ("supported", None, "only left"),
    ],
)
def test_the_word_for_two_verdicts(left, right, word):
    assert word_of(verdict(left), verdict(right) if right else None) == word


def test_verdicts_are_read_as_they_were_written(tmp_path):
    table = verdict_table()
    found = verdicts_of(read_graph(save(tmp_path / "a.zip", table)))
    assert {key[0]: one["verdict"] for key, one in found.items()} == dict(
        zip(table.claim, table.verdict, strict=True)
    )
    better = found["file.better", "t", "m"]
    row = table.set_index("claim").loc["file.better"]
    assert better["effect"]["value"] == pytest.approx(100 * row.effect)
    assert better["effect"]["low"] == pytest.approx(100 * row.low)
    assert (better["effect"]["unit"], better["n"], better["study"]) == ("points", 5, "one")
    assert found["file.gone", "", ""]["effect"] is None


def test_two_bundles_side_by_side(tmp_path):
    table = verdict_table()
    other = table[table.claim != "file.wide"].copy()
    other.loc[other.claim == "file.better", "verdict"] = "contradicted"
    files = save(tmp_path / "a.zip", table), save(tmp_path / "b.zip", other, runs=("b", "c"))
    merged = merge(*files)
    words = {row["claim"]: row["together"] for row in merged["rows"]}
    assert words["file.better"] == "disagree"
    assert words["file.worse"] == "agree"
    assert words["file.wide"] == "only left"
    assert "file.gone" not in words  # neither has tested it
    assert sum(merged["counts"].values()) == len(merged["rows"])
    assert merged["shared_runs"] == 1
    assert sentences(merged)[-1].startswith("1 runs have the same predictions in both")
    json.dumps(merged)
    ((_, columns, rows),) = sections(merged)
    shown = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert shown["file.wide"]["right"] == ""
    assert shown["file.better"]["left"].startswith("supported ")
    assert shown["file.better"]["left"].endswith(" points (n=5)")
    assert shown["file.better"]["on"] == "t, m"


def test_a_folder_is_a_bundle_too(tmp_path):
    file = save(tmp_path / "a.zip", verdict_table())
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "folder")
    assert set(merge(tmp_path / "folder", file)["counts"]) == {"agree", "both undecided"}


def test_what_is_no_bundle_of_ours_is_refused(tmp_path):
    good = save(tmp_path / "a.zip", verdict_table())
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "empty").mkdir()
    for name, graph in (("broken", "{"), ("other", {"@graph": [{"@id": "./"}]}), ("list", [])):
        (tmp_path / name).mkdir()
        text = graph if isinstance(graph, str) else json.dumps(graph)
        (tmp_path / name / METADATA).write_text(text)
    for name, message in (
        ("none.zip", "no such file or folder"),
        ("text.zip", "not a bundle"),
        ("empty", "no RO-Crate: it has no ro-crate-metadata.json"),
        ("broken", "is not the JSON-LD of an RO-Crate"),
        ("list", "is not the JSON-LD of an RO-Crate"),
        ("other", "an RO-Crate, but not one that `loraudit bundle` wrote"),
    ):
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            merge(good, tmp_path / name)
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.writestr(METADATA, json.dumps({"@graph": CODE}))
    with pytest.raises(UserError, match="neither has a verdict on a claim"):
        merge(tmp_path / "old.zip", tmp_path / "old.zip")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"reviewRating"', '"reviewRatin"', "not as `loraudit bundle` writes it"),
        ('"itemReviewed": {', '"itemReviewed": [{', "is not the JSON-LD of an RO-Crate"),
        ('"supported"', '"suported"', "'suported' is not known; did you mean 'supported'"),
    ],
)
def test_an_edited_bundle_is_refused(tmp_path, old, new, said):
    good, folder = save(tmp_path / "a.zip", verdict_table()), tmp_path / "edited"
    with zipfile.ZipFile(good) as archive:
        archive.extractall(folder)
    text = (folder / METADATA).read_text()
    assert old in text
    (folder / METADATA).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=said):
        merge(good, folder)


def test_a_zip_with_damaged_bytes_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    text = json.dumps({"@graph": [*CODE, *entities(verdict_table(), "one")]})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(METADATA, text)
    content = bytearray(path.read_bytes())
    content[120:140] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a bundle"):
        merge(path, path)
