"""The logistic probe: its features, its choice of C, and a run of it like any other run."""

import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint
from loraudit.data.batches import collate, load_examples, pad_id
from loraudit.studies.expand import load_study
from loraudit.studies.method_settings import ProbeSettings
from loraudit.studies.record import read_record
from loraudit.training import loop
from loraudit.training.methods import probe
from loraudit.training.methods.probe import Probe, choose_strength, mean_pooled, regression
from loraudit.training.run import train
from tiny import UP_TO_ROUNDING, make_spec, make_task, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

SPEC = make_spec(method="probe", probe=ProbeSettings(C=(0.01, 0.1, 1.0)), epochs=7)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("probe") / "run"
    train(SPEC, tiny / "tokens", tiny / "model", out)
    return out


def pooled(tiny, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute features one row at a time, without padding and without this package's model."""
    examples = load_examples(SPEC, tiny / "tokens", split)
    encoder = tiny_model().eval().bert
    with torch.no_grad():
        rows = [
            encoder(**collate(examples, np.array([i]), SPEC, pad_id(tiny / "tokens")))
            for i in range(len(examples))
        ]
    return np.concatenate([r.last_hidden_state.mean(1).numpy() for r in rows]), examples.labels


def test_padding_is_no_part_of_the_mean():
    hidden = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    expected = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    torch.testing.assert_close(mean_pooled(hidden, mask), expected, **UP_TO_ROUNDING)
    torch.testing.assert_close(mean_pooled(hidden, None)[0], expected[0], **UP_TO_ROUNDING)


def test_a_run_is_scikit_learns_regression_on_the_mean_of_the_last_hidden_states(run, tiny):
    record = read_record(run / "record.json")
    features, labels = pooled(tiny, "train")
    chosen = record.train.counts["C"]
    assert chosen == choose_strength(features, labels, SPEC)
    reference = LogisticRegression(C=chosen, max_iter=1000).fit(features, labels)
    validation, truth = pooled(tiny, "validation")
    predictions = pd.read_parquet(run / "predictions.parquet")
    odds = predictions.logit_1 - predictions.logit_0
    assert abs(odds - reference.decision_function(validation)).max() < 1e-3
    accuracy = reference.score(validation, truth)
    best, last = (record.train.epochs[choice] for choice in ("best", "last"))
    assert best == last
    assert best.scores["accuracy"] == pytest.approx(accuracy, abs=0.01) and accuracy > 0.7


def test_its_record_is_that_of_one_epoch_and_one_fit(run):
    result = read_record(run / "record.json").train
    history = pd.read_csv(run / "history.csv")
    assert list(history.epoch) == [1] == [result.epochs["last"].epoch] == [result.steps]
    assert result.parameters["trainable"] == result.parameters["head"] == 2 * 16 + 2
    saved = load_file(run / "adapter/probe.safetensors")
    assert {name: len(value) for name, value in saved.items()} == {
        "classifier.weight": 2,
        "classifier.bias": 2,
    }
    assert 0 < history.train_loss[0] < np.log(2)


def test_a_stop_after_the_fit_changes_no_bit(run, tiny, tmp_path, monkeypatch):
    """The signal comes while validation rows are scored; the second start does not fit again."""

    def stopped(*args, do=loop.evaluate):
        os.kill(os.getpid(), signal.SIGTERM)
        return do(*args)

    def again(*_):
        raise AssertionError("fitted again")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", stopped)
        with pytest.raises(SystemExit):
            train(SPEC, tiny / "tokens", tiny / "model", tmp_path)
    monkeypatch.setattr(probe, "regression", again)
    train(SPEC, tiny / "tokens", tiny / "model", tmp_path)
    assert folder_fingerprint(tmp_path / "adapter") == folder_fingerprint(run / "adapter")
    for name in ("history.csv", "predictions.parquet"):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize("classes", [2, 3])
def test_weight_and_bias_give_scikit_learns_probabilities(classes):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, 90)
    features = generator.normal(size=(90, 4)) + labels[:, None]
    spec = make_spec(
        method="probe", task=make_task(classes=list("abc")[:classes], metrics=["accuracy"])
    )
    weight, bias, _ = regression(features, labels, 1.0, spec)
    logits = torch.from_numpy(features).float() @ torch.from_numpy(weight).T + torch.from_numpy(
        bias
    )
    expected = (
        LogisticRegression(C=1.0, max_iter=1000).fit(features, labels).predict_proba(features)
    )
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-4)
    with pytest.raises(UserError, match=r"no training row of class 0 \('a'\)"):
        regression(features, np.ones(90, dtype=int), 1.0, spec)


def test_c_is_chosen_on_rows_that_the_fit_has_not_seen(monkeypatch):
    """A fifth of each class is held out, drawn by the seed; every C is fitted to the same rest."""
    features, labels = np.arange(60.0)[:, None], np.repeat([0, 1], [40, 20])
    fitted = []

    def watched(rows, *arguments):
        fitted.append(set(rows[:, 0]))
        return regression(rows, *arguments)

    monkeypatch.setattr(probe, "regression", watched)
    for seed in (0, 0, 1):
        spec = make_spec(method="probe", probe=ProbeSettings(C=(0.1, 1.0)), seed=seed)
        assert choose_strength(features, labels, spec) == 0.1  # both are right on all rows
    one, same, again, _, other, _ = fitted
    assert one == same == again != other
    assert [sum(labels[int(row)] == k for row in one) for k in (0, 1)] == [32, 16]
    few = make_spec(method="probe", probe=ProbeSettings(held_out=0.01))
    with pytest.raises(UserError, match=r"probe.held_out = 0.01: no row of 60"):
        choose_strength(features, labels, few)


def test_a_study_gives_it_one_epoch_and_refuses_what_it_can_not_do(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: {epochs: 9}\ngrid: [{method: [head, probe], seed: [0, 1]}]")
    epochs = {run.spec.method: run.spec.epochs for run in load_study(file).runs}
    assert epochs == {"head": 9, "probe": 1}
    number = make_task(classes=[], metrics=["pearson"], headline="pearson")
    with pytest.raises(UserError, match="has a number to predict"):
        make_spec(method="probe", task=number)
    with pytest.raises(UserError, match="would train nothing"):
        make_spec(method="probe", head="frozen")
    fields = make_spec(method="probe").model_dump()
    with pytest.raises(ValueError, match="'probe' goes with epochs 1 only"):
        type(SPEC)(**{**fields, "epochs": 2})


@pytest.mark.parametrize("family", ["roberta", "distilbert", "deberta-v2", "mpnet", "gpt2"])
def test_every_family_can_be_probed(family, batch):
    spec = make_spec(method="probe", model=tiny_entry(family), targets=("o",))
    expected = tiny_model(family).eval().base_model(**batch).last_hidden_state
    model = Probe().apply(tiny_model(family), spec).eval()
    model.set_submodule(spec.model.output_layer, torch.nn.Identity())
    found = model(**batch).logits
    torch.testing.assert_close(found, mean_pooled(expected, batch["attention_mask"]))
