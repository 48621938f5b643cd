"""benchmarks/gpu.py, as far as it goes without a GPU."""

import pandas as pd
import pytest
import torch

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
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_gpu_has_a_short_name(gpu, device, short):
    assert gpu.short_name(device) == short


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
