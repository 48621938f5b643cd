"""Records are sealed: any digit that is changed afterwards shows."""

import json
import platform
import re

import pytest
import torch

from loraudit.base import provenance
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


CPUS = {
    "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n"
    "stepping\t: 1\nflags\t\t: fpu\n\nvendor_id\t: another": (
        "AMD EPYC",
        "vendor_id AuthenticAMD, cpu family 25, model 1, stepping 1, torch uses ",
    ),
    "BogoMIPS\t: 50\nCPU implementer\t: 0x41\nCPU part\t: 0xd40": (
        platform.processor() or platform.machine(),
        "CPU implementer 0x41, CPU part 0xd40, torch uses ",
    ),
    None: (platform.processor() or platform.machine(), "torch uses "),
}  # fmt: skip


@pytest.mark.parametrize(("text", "names"), CPUS.items(), ids=["x86", "ARM", "no Linux"])
def test_a_processor_of_a_bare_name_is_told_by_its_numbers(text, names, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(provenance, "CPUINFO", tmp_path / "cpuinfo")
    found = provenance.machine()
    assert found == {"processor": names[0], "processor_kind": found["processor_kind"]}
    assert found["processor_kind"].startswith(names[1])
    assert found.items() <= provenance.environment().items()


def test_a_driver_that_is_too_old_is_one_line_and_the_cpu_computes(monkeypatch, capsys):
    """The driver's library counts a GPU, and the first question to CUDA itself fails."""

    def cannot_start(*_):
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update "
            "your GPU driver by downloading and installing a new version from the URL: http://..."
        )

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", cannot_start)
    assert provenance.environment()["gpus"] == []
    assert capsys.readouterr().err == (
        "warning: CUDA can't start, so the CPU computes: The NVIDIA driver on your system is too "
        "old (found version 11040)\n"
    )
