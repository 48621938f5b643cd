"""Records are sealed: any digit that is changed afterwards shows."""

import json
import re

import pytest

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, sha256, write_json
from loraudit.studies.record import RunRecord, read_record, run_files, seal, write_record
from loraudit.studies.spec import digest
from tiny import TRAIN, make_spec


@pytest.fixture
def folder(tmp_path):
    """Write a run's folder with a sealed record."""
    spec = make_spec()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/head.safetensors").write_bytes(b"weights")
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    write_json(tmp_path / "spec.json", spec.model_dump(mode="json"))
    environment = {"torch": "2.13.0", "threads": 1, "gpus": []}
    digests = {"spec_sha256": digest(spec), "code_sha256": "0" * 64}
    write_record(tmp_path, RunRecord(spec=spec, train=TRAIN, environment=environment, **digests))
    return tmp_path


def test_a_sealed_record_reads_back(folder):
    record = read_record(folder / "record.json")
    assert record.train == TRAIN
    assert record.files == run_files(folder)
    assert set(record.files) == {"spec.json", "history.csv", "adapter/head.safetensors"}
    assert record.files["history.csv"] == sha256(folder / "history.csv")


def test_every_digit_is_under_the_seal(folder):
    """Even the last one of a fraction, which may lie below a float's precision."""
    text = (folder / "record.json").read_text()
    said = read_record(folder / "record.json").record_sha256
    assert seal(text) == said
    for match in re.finditer(r"\d", text):
        other = "1" if match.group() == "0" else str(int(match.group()) - 1)
        edited = text[: match.start()] + other + text[match.end() :]
        try:
            found = json.loads(edited).get("record_sha256"), seal(edited)
        except ValueError:
            continue  # no JSON any more: a number can't start with 0
        assert found[0] != found[1], edited[match.start() - 40 : match.end()]


def test_layout_and_order_of_keys_do_not_matter(folder):
    content = read_json(folder / "record.json")
    turned = dict(reversed(list(content.items())))
    assert seal(json.dumps(turned)) == content["record_sha256"]


def test_a_changed_record_is_refused_and_an_unsealed_one_is_read(folder):
    content = read_json(folder / "record.json")
    content["train"]["steps"] += 1
    write_json(folder / "record.json", content)
    with pytest.raises(UserError, match="its seal is broken"):
        read_record(folder / "record.json")
    del content["record_sha256"], content["files"], content["code_sha256"]
    write_json(folder / "record.json", content)
    assert read_record(folder / "record.json").train.steps == TRAIN.steps + 1
