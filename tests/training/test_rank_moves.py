"""Runs whose ranks move: the budget, the record, and what is refused."""

import json

import numpy as np
import pandas as pd
import peft
import pytest
import torch

from loraudit.adapters.base_model import load_base
from loraudit.adapters.peft_folder import read_folder
from loraudit.base.errors import UserError
from loraudit.data.batches import collate, load_examples, pad_id
from loraudit.studies.method_settings import AdaLoRASettings, ALoRASettings
from loraudit.studies.record import read_record, run_files
from loraudit.studies.spec import RunSpec
from loraudit.studies.values import validated
from loraudit.training.methods import adalora, alora
from loraudit.training.run import train
from tiny import changed, make_spec

pytestmark = [pytest.mark.numerics, pytest.mark.slow]

TARGETS = ("q", "v", "up", "down")
SHARED = {"rank": 4, "epochs": 3, "learning_rate": 1e-2, "train_rows": 128, "targets": TARGETS}
LAYERS = 2 * len(TARGETS)
SPECS = {
    "alora": make_spec(method="alora", alora=ALoRASettings(first=0.5), **SHARED),
    "adalora": make_spec(
        method="adalora",
        adalora=AdaLoRASettings(deltaT=3),
        init=None,
        **{**SHARED, "learning_rate": 5e-2},  # its update starts smaller than LoRA's
    ),
}
STEPS = 3 * 128 // 8


def run(tiny, out, method: str, **changes):
    """Train; returns the record and {step: {layer: rank}}."""
    train(changed(SPECS[method], **changes), tiny / "tokens", tiny / "model", out)
    rows = pd.read_csv(out / "ranks.csv")
    ranks = {step: dict(zip(p.layer, p["rank"], strict=True)) for step, p in rows.groupby("step")}
    return read_record(out / "record.json"), ranks


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Return {method: (folder, record, ranks)}."""
    found = {}
    for method in SPECS:
        out = tmp_path_factory.mktemp(method)
        found[method] = out, *run(tiny, out, method)
    return found


@pytest.mark.parametrize("method", SPECS)
def test_it_learns_and_its_ranks_are_sealed(runs, method):
    out, record, ranks = runs[method]
    assert record.train.epochs["best"].scores["accuracy"] > 0.7
    assert record.train.counts["rank_changes"] == len(ranks) - 1 > 3
    assert record.files == run_files(out)
    assert "ranks.csv" in record.files


def test_alora_keeps_its_budget_in_every_round_and_counts_what_scoring_costs(runs):
    _, record, ranks = runs["alora"]
    budget, counts = 4 * LAYERS, record.train.counts
    assert {sum(layers.values()) for layers in ranks.values()} == {budget}
    assert set(ranks) <= {0, *range(8, STEPS, 4)}
    assert counts["rounds"] == 8
    assert counts["scoring_forwards"] == 8 * (2 * budget + 2)
    assert counts["scoring_rows"] == counts["scoring_forwards"] * 32
    assert 0 < counts["scoring_seconds"] < record.train.seconds["train"]
    assert len(set(ranks[max(ranks)].values())) > 1


def test_adalora_ends_at_its_target_budget(runs):
    _, record, ranks = runs["adalora"]
    budgets = [sum(layers.values()) for layers in ranks.values()]
    assert budgets[0] == 6 * LAYERS  # 1.5 times the target
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] == 4 * LAYERS
    assert max(ranks) <= STEPS - record.train.counts["tfinal"]
    assert min(set(ranks) - {0}) > record.train.counts["tinit"]


@pytest.mark.parametrize("method", SPECS)
def test_peft_computes_the_best_epochs_predictions_from_the_export(tiny, runs, method):
    out, record, _ = runs[method]
    spec = SPECS[method]
    examples = load_examples(spec, tiny / "tokens", "validation")
    model = peft.PeftModel.from_pretrained(load_base(spec, tiny / "model"), out / "adapter")
    inputs = collate(examples, np.arange(128), spec, pad_id(tiny / "tokens"))
    with torch.no_grad():
        found = model.eval()(**inputs).logits.numpy()
    predictions = pd.read_parquet(out / "predictions.parquet")
    best = predictions[predictions.epoch == record.train.epochs["best"].epoch]
    assert np.abs(found - best.filter(like="logit_").to_numpy()).max() < 1e-4


def test_the_counted_parameters_are_those_of_the_exported_ranks(runs):
    out, record, _ = runs["alora"]
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    _, state = read_folder(out / "adapter")
    stored = sum(t.numel() for name, t in state.items() if ".lora_" in name)
    assert record.train.parameters["adapter"] == stored
    assert config["rank_pattern"].keys() == config["alpha_pattern"].keys()


@pytest.mark.parametrize("changes", [{"base_bits": 4}, {"base_bits": 2, "ranks": "error"}])
def test_alora_moves_ranks_on_a_quantised_base(tiny, tmp_path, changes):
    settings = ALoRASettings(rows=8, first=0.5, between=0.5, pruned=4)
    _, ranks = run(tiny, tmp_path, "alora", epochs=1, base_group=16, alora=settings, **changes)
    assert len(ranks) > 1
    assert len({sum(layers.values()) for layers in ranks.values()}) == 1


def test_alora_without_moves_is_lora_to_the_bit(tiny, tmp_path, monkeypatch, capsys):
    """Every rank stays, and the run is flagged: no rank ever moved."""

    def nothing(scores, count):
        kept = {name: torch.ones(len(v), dtype=torch.bool) for name, v in scores.items()}
        return kept, dict.fromkeys(scores, 0)

    monkeypatch.setattr(alora, "decide", nothing)
    record, ranks = run(tiny, tmp_path / "alora", "alora", epochs=1)
    assert record.train.counts["rank_changes"] == 0
    assert "alora: warning: no layer's rank ever changed" in capsys.readouterr().err
    assert set(ranks) == {0}
    spec = changed(SPECS["alora"], method="lora", epochs=1)
    train(spec, tiny / "tokens", tiny / "model", tmp_path / "lora")
    tables = [tmp_path / name / "predictions.parquet" for name in ("alora", "lora")]
    assert pd.read_parquet(tables[0]).equals(pd.read_parquet(tables[1]))
    assert read_record(tmp_path / "lora/record.json").train.counts == {}


def test_adalora_in_a_loop_that_never_allocates_is_flagged(tiny, tmp_path, monkeypatch, capsys):
    """As under a trainer that does not call update_and_allocate."""
    monkeypatch.setattr(peft.AdaLoraModel, "update_and_allocate", lambda *_: None)
    record, ranks = run(tiny, tmp_path, "adalora", epochs=1)
    assert record.train.counts["rank_changes"] == 0
    assert set(ranks) == {0}
    assert "adalora: warning: no layer's rank ever changed" in capsys.readouterr().err


def test_the_penalty_is_the_one_that_peft_adds_to_its_own_loss(tiny, monkeypatch):
    """PEFT's is in the loss that the model computes when it is given labels."""
    found = {}

    def probe(self, step):
        tokens, spec = tiny / "tokens", SPECS["adalora"]
        examples = load_examples(spec, tokens, "train")
        inputs = collate(examples, np.arange(16), spec, pad_id(tokens))
        labels = torch.as_tensor(examples.labels[:16])
        model = self.state.bare.eval()
        out = model(**inputs, labels=labels)
        plain = torch.nn.functional.cross_entropy(out.logits, labels)
        found[step] = (out.loss - plain).item(), self.penalty().item()
        model.train()

    monkeypatch.setattr(adalora.AdaLoRAController, "allocate", probe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraudit.training.run.write_record", lambda *_: None)
        folder = tiny / "penalty"
        train(
            changed(SPECS["adalora"], epochs=1),
            *(tiny / "tokens", tiny / "model", folder),
        )
    theirs, ours = np.array(list(found.values())).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert len(set(ours)) > 3  # it is trained


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("alora", {"rank": 16}, r"round 1 would give \S+ rank \d+, above its width 16"),
        ("alora", {"alora": ALoRASettings(pruned=32)}, r"alora.pruned: 32 of the model's 32 ranks"),
        (
            "alora",
            {"alora": ALoRASettings(first=3)},
            r"first round would be after step 48, the run has 48",
        ),
        ("alora", {"validation_rows": 20}, r"alora.rows: 32 asked, .*'validation' has 20"),
        (
            "adalora",
            {"adalora": AdaLoRASettings(tfinal=44)},
            r"tinit 0.1 and tfinal 44 are 5 and 44 of",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tiny, tmp_path, method, changes, message):
    with pytest.raises(UserError, match=message):
        run(tiny, tmp_path, method, **changes)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("alora", {"adapter": {"rank": 0}}, "rank = 0: .* greater than or equal to 1"),
        ("alora", {"settings": None}, "method 'alora' needs settings of its own"),
        ("alora", {"method": "lora"}, "method 'lora' has no settings of its own"),
        ("adalora", {"settings": {"init_rank": 4}}, "init_rank 4 is not above the target, rank 4"),
        ("adalora", {"adapter": {"init": "kaiming"}}, "AdaLoRA draws A and B from"),
        ("adalora", {"base_bits": 4, "base_group": 8}, r"not go with base_bits 4 .legal: null"),
        ("alora", {"adapter": None}, "method 'alora' needs an adapter"),
        ("alora", {"method": "full", "settings": None}, "method 'full' has no adapter"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(method, changes, message):
    fields = SPECS[method].model_dump(mode="json")
    for key, value in changes.items():
        fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        validated(RunSpec, fields, "spec")


@pytest.mark.parametrize("regression", [False, True])
def test_the_score_is_minus_the_mean_loss_on_its_rows(tiny, tmp_path, monkeypatch, regression):
    """Compared with one padded batch of the same rows."""
    changes = {"classes": (), "metrics": ("pearson",), "headline": "pearson"} if regression else {}
    task = SPECS["alora"].task.model_copy(update=changes)
    spec = changed(SPECS["alora"], task=task, epochs=1)
    found = []

    def probe(self, step):
        model = self.state.bare.eval()
        examples = load_examples(spec, tiny / "tokens", "validation")
        rows = alora.scoring_rows(spec.settings, 128, spec.seed)
        with torch.no_grad():
            out = model(**collate(examples, rows, spec, pad_id(tiny / "tokens"))).logits
        labels = torch.as_tensor(examples.labels[rows])
        if regression:
            loss = torch.nn.functional.mse_loss(out[:, 0], labels.float())
        else:
            loss = torch.nn.functional.cross_entropy(out, labels)
        found.append((self.score(), -loss.item()))
        model.train()

    monkeypatch.setattr(alora.ALoRAController, "allocate", probe)
    train(spec, tiny / "tokens", tiny / "model", tmp_path)
    ours, expected = np.array(found).T
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert len(set(ours)) > 3
