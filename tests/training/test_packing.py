"""Runs trained in a pack come out as they do alone, and each keeps what is its own."""

import json
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from loraudit.adapters.base_model import reset_head
from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint, read_json
from loraudit.studies.record import read_record
from loraudit.studies.spec import digest
from loraudit.training import packing, run
from loraudit.training.packing import train_pack
from loraudit.training.run import train
from tiny import changed, make_spec

pytestmark = pytest.mark.slow

SPEC = make_spec(epochs=2, train_rows=29, micro_batch=4, learning_rate=1e-2, lora_dropout=0.0)
OTHERS = (
    {},
    {"seed": 3, "rank": 2, "alpha": 4.0, "learning_rate": 2e-2, "weight_decay": 0.1},
    {"seed": 5, "targets": ("q", "v", "o", "up", "down"), "rank": 4, "lora_plus": 4.0},
    {"seed": 6, "head": "frozen", "schedule": "cosine", "max_grad_norm": 0.05, "init": "gaussian"},
    {"seed": 7, "train_draw": "first", "adam_beta2": 0.9, "max_grad_norm": None},
)
"""Runs that differ from `SPEC` in every way that a pack allows."""


@pytest.fixture
def double(monkeypatch):
    """Let runs compute in float64 throughout; heads are drawn in float32, as alone."""

    def loaded(load):
        return lambda *arguments: load(*arguments).double()

    def drawn(model, spec):
        reset_head(model.to(torch.float32), spec)
        model.double()

    for module in (run, packing):
        monkeypatch.setattr(module, "load_base", loaded(module.load_base))
    monkeypatch.setattr(packing, "reset_head", drawn)
    monkeypatch.setattr(
        torch.Tensor,
        "float",
        lambda x, **_: x if x.dtype == torch.float64 else x.to(torch.float32),
    )


@pytest.fixture(scope="module")
def still(tiny, tmp_path_factory):
    """Give the tiny model's folder with dropout set to 0 in its config."""
    folder = tmp_path_factory.mktemp("still") / "model"
    shutil.copytree(tiny / "model", folder)
    config = read_json(folder / "config.json")
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pack(tiny, model, out, specs, **options):
    outs = [out / f"packed{number}" for number in range(len(specs))]
    train_pack(specs, tiny / "tokens", model, outs, **options)
    return outs


def compare(alone, packed, tolerance):
    """Check that two folders of one run hold the same adapter, predictions, history and record."""
    ours, theirs = (load_file(f / "adapter/adapter_model.safetensors") for f in (alone, packed))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= tolerance, name
    tables = [pd.read_parquet(folder / "predictions.parquet") for folder in (alone, packed)]
    one, two = (table.filter(like="logit_") for table in tables)
    assert np.abs(one.to_numpy() - two.to_numpy()).max() <= tolerance
    kept = [table.drop(columns=one.columns) for table in tables]
    assert kept[0].equals(kept[1])
    one, two = (read_record(folder / "record.json") for folder in (alone, packed))
    assert one.spec == two.spec and one.spec_sha256 == two.spec_sha256
    for name in ("steps", "epochs", "collapsed", "unmoved", "parameters", "bytes", "rows"):
        assert getattr(one.train, name) == getattr(two.train, name), name
    assert one.train.tokens["real"] == two.train.tokens["real"]
    assert one.train.tokens["padded"] <= two.train.tokens["padded"]
    assert one.environment.keys() | {"packed"} == two.environment.keys()


@pytest.mark.parametrize(
    ("runs", "fields"),
    [
        (5, {}),
        (2, {"compute": "plain", "selection_rows": 20, "validate_epochs": "chosen"}),
        (2, {"validate_epochs": "last"}),
    ],
)
def test_packed_runs_are_those_alone_in_float64(tiny, still, tmp_path, double, runs, fields):
    specs = [changed(SPEC, **fields, **own) for own in OTHERS[:runs]]
    outs = pack(tiny, still, tmp_path, specs)
    for number, (spec, out) in enumerate(zip(specs, outs, strict=True)):
        alone = tmp_path / f"alone{number}"
        train(spec, tiny / "tokens", still, alone)
        compare(alone, out, 1e-10)
        said = read_record(out / "record.json").environment["packed"]
        assert said == [digest(spec) for spec in specs]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Give the folders of a pack of two runs with dropout that was never stopped."""
    return pack(tiny, tiny / "model", tmp_path_factory.mktemp("whole"), DROPPING)


DROPPING = [changed(SPEC, lora_dropout=0.1, epochs=1, seed=seed) for seed in (0, 1)]


def same_bits(outs, others):
    for out, other in zip(outs, others, strict=True):
        assert folder_fingerprint(out / "adapter") == folder_fingerprint(other / "adapter")
        one, two = (pd.read_parquet(folder / "predictions.parquet") for folder in (out, other))
        assert one.equals(two)


def stopped_pack(tiny, out, monkeypatch, after=2):
    """Train the pack, and let SIGTERM come after some steps."""
    with monkeypatch.context() as patch:
        step, done = packing.optimizer_step, []

        def stopping(packed, batches):
            step(packed, batches)
            done.append(1)
            if len(done) == after:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(packing, "optimizer_step", stopping)
        with pytest.raises(SystemExit) as stop:
            pack(tiny, tiny / "model", out, DROPPING)
    assert stop.value.code == 128 + signal.SIGTERM
    outs = [out / "packed0", out / "packed1"]
    for folder in outs:
        assert [path.name for path in folder.iterdir()] == ["checkpoint"]
    return outs


def test_a_stopped_pack_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, whole):
    stopped_pack(tiny, tmp_path, monkeypatch)
    outs = pack(tiny, tiny / "model", tmp_path, DROPPING)
    same_bits(outs, whole)
    for out in outs:
        resumed = read_record(out / "record.json").environment["resumed"]
        assert [was["step"] for was in resumed] == [2]
        assert not (out / "checkpoint").exists()


def test_a_pack_whose_checkpoints_are_not_of_one_step_starts_again(
    tiny, tmp_path, monkeypatch, whole, capfd
):
    outs = stopped_pack(tiny, tmp_path, monkeypatch)
    shutil.rmtree(outs[1] / "checkpoint")
    same_bits(pack(tiny, tiny / "model", tmp_path, DROPPING), whole)
    assert "it starts again" in capfd.readouterr().err


def test_runs_of_a_pack_draw_their_own_dropout(tiny, tmp_path):
    """The two runs differ in nothing that decides the loss of a first step, but in the masks."""
    specs = [changed(SPEC, epochs=1, adam_beta1=beta, lora_dropout=0.1) for beta in (0.9, 0.8)]
    packed = packing.make_packed(specs, tiny / "tokens", tiny / "model")
    packed.model.train()
    packed.pack.pull()
    rows = np.arange(4)
    index = np.concatenate([rows, rows + packed.starts[1]])
    torch.manual_seed(0)
    first, second = np.array(
        [packing.summed_losses(packed, packed.train, index).detach().numpy() for _ in range(225)]
    ).T
    assert (first != second).all()
    error = np.hypot(first.std(), second.std()) / 15
    assert abs(first.mean() - second.mean()) < 4 * error
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / 15
    models = [state.bare.train() for state in packed.states]
    batch = packing.collate(packed.train, rows, packed.spec, packed.states[0].pad)
    labels = packing.labels_tensor(packed.train, rows, packed.spec)
    with torch.no_grad():
        alone = [
            float(torch.nn.functional.cross_entropy(models[0](**batch).logits, labels)) * len(rows)
            for _ in range(225)
        ]
    assert abs(first.mean() - np.mean(alone)) < 4 * np.hypot(first.std(), np.std(alone)) / 15
    assert 0.7 < first.std() / np.std(alone) < 1.4


def test_a_run_that_only_tunes_may_diverge_without_the_others(tiny, still, tmp_path):
    tuning = {"selection_rows": 20, "validate_epochs": "none"}
    specs = [changed(SPEC, seed=seed, **tuning) for seed in (0, 1)]
    specs[0] = changed(specs[0], learning_rate=1e30, max_grad_norm=None)
    outs = pack(tiny, still, tmp_path, specs)
    lost, kept = (read_record(out / "record.json").train for out in outs)
    assert lost.diverged and not lost.epochs
    assert kept.diverged is None and kept.steps == 2 * 4 and kept.epochs["selected"].scores


def test_a_reported_run_that_diverges_ends_the_pack_with_its_name(tiny, still, tmp_path):
    specs = [SPEC, changed(SPEC, seed=4, learning_rate=1e30, max_grad_norm=None)]
    with pytest.raises(UserError, match=r"run 2 of the pack \(seed 4\).*rate below 1e\+30"):
        pack(tiny, still, tmp_path, specs)
    assert not list(tmp_path.rglob("record.json"))


def test_several_processes_are_refused(tiny, still, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(UserError, match="starts 2 processes"):
        pack(tiny, still, tmp_path, [SPEC, changed(SPEC, seed=1)])
