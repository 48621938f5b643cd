"""benchmarks/memory.py: what it measures, and that it stops what takes too much."""

import os
import time
from dataclasses import asdict

import pandas as pd
import pytest
import torch
import transformers

from benchmark import benchmark
from loraudit.data.batches import load_run, pad_id
from loraudit.training.run import check_made

MB = 2**20


@pytest.fixture(scope="module")
def memory():
    """Give benchmarks/memory.py as a module whose models are tiny."""
    config = transformers.RobertaConfig(
        vocab_size=30000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    with benchmark("memory") as module, pytest.MonkeyPatch.context() as patch:
        tiny = transformers.RobertaForSequenceClassification(config)
        patch.setattr(module, "random_model", lambda name: tiny)
        yield module


def take(size: int) -> None:
    held = bytearray(os.urandom(MB)) * size
    time.sleep(0.5)
    assert held


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_the_peak_is_the_copys_own_and_one_that_takes_too_much_is_ended(memory):
    small, large = (memory.watch(memory.copy(lambda s=s: take(s)), 1e6, "x") for s in (50, 250))
    assert large[0] - small[0] == pytest.approx(200, abs=10)
    assert not small[1] and not large[1]
    started = time.monotonic()
    peak, stopped = memory.watch(memory.copy(lambda: (take(250), time.sleep(60))), small[0], "x")
    assert stopped and peak > small[0] and time.monotonic() - started < 30


def test_a_job_that_fails_ends_the_benchmark(memory, capfd):
    with pytest.raises(SystemExit, match="train x failed"):
        memory.watch(memory.copy(lambda: 1 / 0), 1e6, "train x")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_case_has_files_that_a_run_reads(memory, tmp_path):
    case = next(case for case in memory.CASES if case.name == "train roberta-base lora 16 x 128")
    memory.make(case, tmp_path)
    check_made(tmp_path / "tokens", tmp_path / "model")
    spec = memory.case_spec(case)
    examples = load_run(spec, tmp_path / "tokens")
    assert len(examples["train"]) == memory.STEPS * spec.global_batch
    assert set(examples["train"].lengths) == {128} and pad_id(tmp_path / "tokens") == 1


def test_every_case_is_a_legal_run_and_has_a_name_of_its_own(memory):
    names = [case.name for case in memory.CASES]
    assert len(set(names)) == len(names)
    for case in memory.CASES:
        spec = memory.case_spec(case)
        assert spec.method == case.method and spec.micro_batch == spec.global_batch == 16


def test_a_measured_case_takes_the_place_of_its_old_row(memory, tmp_path):
    first, second = memory.CASES[:2]

    def row(case, peak: int) -> dict:
        return {"case": case.name, **asdict(case), "peak_mib": peak, "stopped": peak == 3}

    for case, peak in ((second, 1), (first, 2), (second, 3)):
        memory.append([row(case, peak)], tmp_path)
    table = pd.read_csv(tmp_path / memory.TABLE)
    assert [*zip(table.case, table.peak_mib, strict=True)] == [(first.name, 2), (second.name, 3)]
    ours, peft = (tmp_path / "job_memory.md").read_text().splitlines()[-1].split("|")[4:6]
    assert (first.method, second.method) == ("lora", "peft")
    assert (ours.strip(), peft.strip()) == ("2", "over 12,288")


def test_layers_are_compared_on_shapes_alone(memory, monkeypatch):
    compared = []
    monkeypatch.setattr(
        memory.single_layer, "compare_layer", lambda case, dtype: compared.append((case, dtype))
    )
    memory.check_layers(next(case for case in memory.CASES if case.job == "layers"))
    assert {dtype for _, dtype in compared} == set(memory.single_layer.TOLERANCE)
    assert torch.get_default_device().type == "cpu"
