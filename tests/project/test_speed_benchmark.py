"""benchmarks/speed.py on models that are small enough for a test."""

import pytest
import torch
import transformers

from benchmark import benchmark


@pytest.fixture(scope="module")
def speed():
    """Give benchmarks/speed.py as a module that measures a tiny RoBERTa in this process."""
    with benchmark("speed") as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "random_model", lambda name: tiny_roberta())
        # what a tiny model takes is lost in what this process has had before
        patch.setattr(module, "alone", lambda *v: (1.0, module.alone_here(*map(str, v))[1]))
        patch.setattr(module, "LONG", (2, 8))
        patch.setattr(module, "RANKS", (1, 4))
        yield module


def tiny_roberta() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=30000,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=130,
    )
    return transformers.RobertaForSequenceClassification(config)


@pytest.mark.parametrize("part", ["steps", "dropout", "memory", "growth"])
def test_each_part_measures_every_model_and_every_set_of_matrices(speed, part):
    table = getattr(speed, part)(rounds=1)
    names = {"growth": {"ours", "PEFT"}, "dropout": {"ours", "torch's", "none"}}
    assert set(table.what) == names.get(part, set(speed.METHODS))
    if part in ("steps", "memory"):
        assert {setting.split(", ")[-2] for setting in table.setting} == set(speed.TARGETS)
    for unit in {"ms", "MiB"} & set(table):
        assert (table[unit] > 0).all()


def test_what_recomputing_costs_is_measured_beside_peft(speed):
    table = speed.recompute(rounds=1)
    assert len(table) == 2 * 2 * len(speed.RECOMPUTED)  # models, measures
    assert set(table.what) == set(speed.RECOMPUTED)
    assert (table[table.what == "ours"]["median"] == 1).all()
    assert (table[table.measure == "time, ms"].measured >= 0).all()
    assert {row.split(",")[0] for row in table.setting} == {"roberta-base", "roberta-large"}


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("ours", 1),
        ("ours, recompute: blocks", 2),
        ("PEFT", 1),
        ("PEFT, gradient checkpointing", 2),
    ],
)
def test_only_what_is_said_to_recompute_does(speed, name, times):
    base, runs = tiny_roberta(), []
    layer = base.roberta.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda *_: runs.append(1))
    speed.step_call(name, base, speed.spec_of("roberta-base"), 2, 8)()
    assert len(runs) == times
