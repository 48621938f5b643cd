"""benchmarks/gpu.py, as far as it goes without a GPU."""

import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from benchmark import benchmark
from loraudit.studies.spec import RunSpec


@pytest.fixture(scope="module")
def gpu():
    """Give benchmarks/gpu.py as a module."""
    with benchmark("gpu") as module:
        yield module


@pytest.mark.parametrize(
    ("device", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla T4", "t4"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100-mig-1g.10gb"),
    ],
)
def test_a_gpu_has_a_short_name(gpu, device, short):
    assert gpu.short_name(device) == short


def test_the_short_names_are_those_of_the_table_of_peaks(gpu):
    """What was measured on an RTX 4090 was not found by the name that the docs give."""
    peaks = yaml.safe_load(Path("src/loraudit/tools/gpus.yaml").read_text())
    named = {gpu.short_name(name) for name in ("NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB",
                                               "NVIDIA GeForce RTX 4090")}  # fmt: skip
    assert named == set(peaks)


def test_a_case_that_hangs_is_stopped_and_keeps_its_rows(gpu):
    program = f"print('{gpu.ROW}{{}}', flush=True); import time; time.sleep(600)"
    said, why = gpu._said([sys.executable, "-c", program], time.time() + 1)
    assert said == [f"{gpu.ROW}{{}}"] and why == "was stopped for lack of time"
    assert gpu._said([sys.executable, "-c", "print(1)"], time.time() + 60) == (["1"], "")
    said, why = gpu._said([sys.executable, "-c", "raise SystemExit(3)"], time.time() + 60)
    assert (said, why) == ([], "ended with an error")


def test_processes_that_do_not_share_the_gpu_together_have_no_row(gpu, monkeypatch, capsys):
    """One that died ended the benchmark, and one that began late was counted all the same."""
    row = {"late": 0.0, "steps_per_second": 2.0, "q1": 1.0, "q3": 3.0, "peak_mib": 5.0}
    told: list[dict] = []

    def begin(words, **options):
        return told.pop(0)

    monkeypatch.setattr(gpu.subprocess, "Popen", begin)
    monkeypatch.setattr(gpu, "_row", lambda process, end: process)
    monkeypatch.setattr(gpu, "cases", lambda part: [{"model": "m"}])
    told[:] = [row, row, row, {}, row, row]
    assert [made["steps_per_second"] for made in gpu.share(1, time.time() + 600)] == [4.0]
    assert "left out: 4 runs of {'model': 'm'}: 3 of 4 ended well" in capsys.readouterr().err
    told[:] = [row, row | {"late": 9.0}, row, row, row, row]
    assert [made["steps_per_second"] for made in gpu.share(1, time.time() + 600)] == [8.0]


def test_every_part_measures_runs_that_a_study_may_ask_for(gpu):
    for part in gpu.PARTS:
        cases = gpu.cases(part)
        assert len({tuple(case.values()) for case in cases}) == len(cases) > 0
        assert all(isinstance(gpu.case_spec(case), RunSpec) for case in cases)


def test_rows_replace_those_of_the_same_gpu_and_part(gpu, tmp_path, monkeypatch):
    row = {**gpu.cases("peer")[0], "tool": "loraudit", "runs_per_gpu": 1,
           **gpu.spread([1.0, 2.0, 4.0]), "peak_mib": 10.0}  # fmt: skip
    for part, factor in (("steps", 1), ("shared", 2), ("steps", 3)):
        gpu.append(tmp_path, [{**row, "runs_per_gpu": factor}], part)
    table = pd.read_csv(tmp_path / gpu.TABLE.name)
    assert dict(zip(table.part, table.runs_per_gpu, strict=True)) == {"shared": 2, "steps": 3}
    assert list(table.steps_per_second) == [2.0, 2.0] and list(table.gpu) == ["cpu", "cpu"]


def test_steps_are_timed_in_rounds(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "random_model", lambda name: small_roberta())
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(gpu, "STEPS", 1)
    case = {"model": "roberta-base", "tokens": 32, "precision": "fp32", "compute": "fast"}
    found = gpu.our_rates(case, 2)
    assert 0 < found["q1"] <= found["steps_per_second"] <= found["q3"]


def small_roberta() -> torch.nn.Module:
    import transformers

    config = transformers.RobertaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66, vocab_size=64,
    )  # fmt: skip
    return transformers.RobertaForSequenceClassification(config)
