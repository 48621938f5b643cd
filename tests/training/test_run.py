"""The training loop on tiny models: determinism, twins, accumulation, failures."""

import functools
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from loraudit.analysis import collect
from loraudit.analysis.statistics import aggregate
from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint, read_json, write_json
from loraudit.data.tokenise import tokenise
from loraudit.report.tables import summary_table
from loraudit.studies.record import read_record, run_files
from loraudit.studies.study import Run, Study
from loraudit.tools import verify
from loraudit.tools.show import describe
from loraudit.training import loop
from loraudit.training.journal import Best
from loraudit.training.run import train
from tiny import changed, make_spec, tiny_model

pytestmark = [pytest.mark.numerics, pytest.mark.slow]

SPEC = make_spec(epochs=3, learning_rate=1e-2, targets=("q", "k", "v", "o", "up", "down"))


def run(tiny, out, **changes):
    """Train with changed fields; returns the record and the predictions."""
    spec = changed(SPEC, **changes)
    train(spec, tiny / "tokens", tiny / "model", out)
    return read_record(out / "record.json"), pd.read_parquet(out / "predictions.parquet")


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    return out, *run(tiny, out)


def logits(predictions) -> np.ndarray:
    return predictions.filter(like="logit_").to_numpy()


def test_it_learns_and_keeps_the_evidence(reference):
    out, record, predictions = reference
    result = record.train
    assert result.epochs["best"].scores["accuracy"] > 0.75
    assert result.steps == 3 * 256 // 8
    assert result.rows == {"train": 256, "validation": 128}
    history = pd.read_csv(out / "history.csv")
    assert list(history.epoch) == [1, 2, 3]
    assert result.epochs["best"].scores["accuracy"] == history.accuracy.max()
    assert result.epochs["best"].epoch == history.epoch[history.accuracy.idxmax()]
    assert result.epochs["last"].scores["accuracy"] == history.accuracy.iloc[-1]
    assert set(predictions.epoch) == {result.epochs["best"].epoch, 3}
    for epoch, scores in (
        (result.epochs["best"].epoch, result.epochs["best"].scores),
        (3, result.epochs["last"].scores),
    ):
        rows = predictions[predictions.epoch == epoch]
        assert len(rows) == 128
        assert (rows.prediction == rows.label).mean() == pytest.approx(scores["accuracy"])
    assert {"git", "packages", "threads", "data", "weights"} <= set(record.environment)
    assert read_json(out / "spec.json") == json.loads(SPEC.model_dump_json())
    assert record.files == run_files(out)
    assert {"spec.json", "history.csv", "predictions.parquet"} < set(record.files)


def test_same_spec_same_bits(reference, tiny, tmp_path):
    out, _, predictions = reference
    torch.manual_seed(99)  # what ran before must not matter
    _, again = run(tiny, tmp_path)
    assert predictions.equals(again)
    assert folder_fingerprint(out / "adapter") == folder_fingerprint(tmp_path / "adapter")


def test_blocks_that_recompute_give_the_same_bits(reference, tiny, tmp_path):
    out, _, predictions = reference
    record, again = run(tiny, tmp_path, recompute="blocks")
    assert record.spec.recompute == "blocks" and predictions.equals(again)
    assert folder_fingerprint(out / "adapter") == folder_fingerprint(tmp_path / "adapter")


def test_another_seed_is_another_run(reference, tiny, tmp_path):
    assert not np.array_equal(logits(reference[2]), logits(run(tiny, tmp_path, seed=1)[1]))


def test_the_peft_twin_trains_to_the_same_predictions(reference, tiny, tmp_path):
    _, twin = run(tiny, tmp_path, method="peft")
    assert np.abs(logits(reference[2]) - logits(twin)).max() < 1e-4


def test_accumulation_keeps_the_global_batch(reference, tiny, tmp_path):
    """With the model's own dropout the masks depend on the cut, so it is compared without."""
    predictions = []
    for micro in (8, 4):
        spec = changed(SPEC, micro_batch=micro, train_rows=61)
        train(spec, tiny / "tokens", without_dropout(tiny), tmp_path / str(micro))
        predictions.append(pd.read_parquet(tmp_path / str(micro) / "predictions.parquet"))
    assert np.abs(logits(predictions[0]) - logits(predictions[1])).max() < 1e-4


@pytest.mark.long
@pytest.mark.shapes_unchecked  # the compiler can't follow the check
def test_every_way_to_compute_gives_the_same_predictions(tiny, tmp_path, monkeypatch):
    """Compiled without a code generator (which takes a minute): the graph is what is tested."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", functools.partialmethod(compile_module, backend="aot_eager")
    )
    found = []
    for compute in ("plain", "fast", "compiled"):
        spec = changed(SPEC, compute=compute, train_rows=61)
        train(spec, tiny / "tokens", without_dropout(tiny), tmp_path / compute)
        found.append(logits(pd.read_parquet(tmp_path / compute / "predictions.parquet")))
    assert np.abs(found[0] - found[1]).max() < 1e-4
    assert np.abs(found[0] - found[2]).max() < 1e-4


QUANTISED = {"base_bits": 4, "base_group": 16}


@pytest.mark.parametrize(
    "change", [{}, {"method": "peft"}, {"method": "head"}, {"init": "loftq", "ranks": "error"}]
)
def test_a_quantised_base_trains_is_smaller_and_is_loaded_again(change, reference, tiny, tmp_path):
    from loraudit.adapters import inject
    from loraudit.adapters.base_model import load_base
    from loraudit.data.batches import collate, load_examples, pad_id

    record, predictions = run(tiny, tmp_path, **QUANTISED, **change)
    plain = reference[1].train
    assert record.train.bytes["base_linear"] < plain.bytes["base_linear"] / 2
    assert record.train.parameters["model"] == plain.parameters["model"]
    assert "hqq" in record.environment["packages"]
    if record.spec.method == "head":  # on random features, which it can learn little from
        return
    assert record.train.epochs["best"].scores["accuracy"] > 0.55
    base = inject.apply(load_base(record.spec, tiny / "model"), record.spec)
    model = inject.switch(base, tmp_path / "adapter").eval()
    examples = load_examples(record.spec, tiny / "tokens", "validation")
    index = np.arange(8)
    with torch.no_grad():
        again = model(**collate(examples, index, record.spec, pad_id(tiny / "tokens"))).logits
    best = predictions[(predictions.epoch == record.train.epochs["best"].epoch)].iloc[:8]
    assert np.abs(again.numpy() - logits(best)).max() < 1e-4


def test_a_run_in_bf16_keeps_what_it_trains_in_float32(reference, tiny, tmp_path):
    """On the CPU, whose autocast rounds as a GPU's does."""
    losses = [pd.read_csv(reference[0] / "history.csv").train_loss[0]]
    for method in ("lora", "peft"):
        record, _ = run(tiny, tmp_path / method, precision="bf16", method=method)
        saved = load_file(tmp_path / method / "adapter/adapter_model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
        assert record.train.bytes["base_linear"] == reference[1].train.bytes["base_linear"] / 2
        assert record.train.epochs["best"].scores["accuracy"] > 0.75
        losses.append(pd.read_csv(tmp_path / method / "history.csv").train_loss[0])
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=0.01)
    assert losses[1] != losses[0]


def test_lora_plus_is_another_run_and_pefts_twin_is_the_same(tiny, tmp_path):
    fields = {"lora_plus": 8.0, "learning_rate": 1e-3}
    _, ours = run(tiny, tmp_path / "ours", **fields)
    _, twin = run(tiny, tmp_path / "twin", method="peft", **fields)
    assert np.abs(logits(ours) - logits(twin)).max() < 1e-4
    _, equal = run(tiny, tmp_path / "equal", **fields | {"lora_plus": None})
    assert np.abs(logits(ours[ours.epoch == 3]) - logits(equal[equal.epoch == 3])).max() > 1e-3


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_a_variant_of_pefts_trains_and_peft_loads_it(options, tiny, tmp_path):
    from peft import PeftModel

    from loraudit.adapters.base_model import load_base
    from loraudit.data.batches import collate, load_examples, pad_id

    record, predictions = run(tiny, tmp_path, method="peft", peft=options)
    base = load_base(record.spec, tiny / "model")
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    examples = load_examples(record.spec, tiny / "tokens", "validation")
    with torch.no_grad():
        batch = collate(examples, np.arange(8), record.spec, pad_id(tiny / "tokens"))
        again = model(**batch).logits
    best = predictions[(predictions.epoch == record.train.epochs["best"].epoch)].iloc[:8]
    assert np.abs(again.numpy() - logits(best)).max() < 1e-4


def without_dropout(tiny):
    """Give the tiny model's folder with dropout set to 0 in its config."""
    folder = tiny / "model-without-dropout"
    if not folder.exists():
        shutil.copytree(tiny / "model", folder)
        config = read_json(folder / "config.json")
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.numerics
def test_the_selection_rows_choose_an_epoch_and_validation_may_wait_for_it(tiny, tmp_path):
    spec = make_spec(selection_rows=100, train_rows=64, epochs=3, learning_rate=0.02)
    specs = {name: changed(spec, validate_epochs=name) for name in ("all", "chosen", "none")}
    records, predictions = {}, {}
    for name, asked in specs.items():
        train(asked, tiny / "tokens", tiny / "model", tmp_path / name)
        records[name] = read_record(tmp_path / name / "record.json").train
        predictions[name] = pd.read_parquet(tmp_path / name / "predictions.parquet")
    history = pd.read_csv(tmp_path / "all/history.csv")
    every = records["all"].epochs
    assert every["selected"].epoch == history.epoch[history.accuracy_selection.idxmax()]
    assert every["best"].epoch == history.epoch[history.accuracy.idxmax()]
    assert records["all"].rows == {"train": 64, "selection": 100, "validation": 128}
    chosen = records["chosen"].epochs
    assert chosen == {choice: every[choice] for choice in ("selected", "last")}
    scored = pd.read_csv(tmp_path / "chosen/history.csv")
    assert set(scored.epoch[scored.accuracy.notna()]) == {c.epoch for c in chosen.values()}
    assert "accuracy" not in pd.read_csv(tmp_path / "none/history.csv")
    assert set(predictions["none"].split) == {"selection"}
    for choice, found in records["none"].epochs.items():
        names = {name for name in every[choice].scores if name.endswith("_selection")}
        assert found.scores == {name: every[choice].scores[name] for name in names}
    saved = {name: folder_fingerprint(tmp_path / name / "adapter") for name in ("all", "chosen")}
    assert saved["all"] == saved["chosen"]  # the selected epoch's
    assert not (tmp_path / "none/adapter").exists()  # nothing that only tunes is kept


def test_a_run_may_score_its_last_epoch_alone(reference, tiny, tmp_path, monkeypatch):
    """It trains as if each epoch were scored, and saves and reports the last epoch."""
    seen, evaluate = [], loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *args: seen.append(args[2]) or evaluate(*args))
    record, predictions = run(tiny, tmp_path, validate_epochs="last")
    assert seen == ["evaluate validation 3"]
    out, every, every_predictions = reference
    assert record.train.epochs == {"last": every.train.epochs["last"]}
    last = every_predictions[every_predictions.epoch == 3].reset_index(drop=True)
    assert predictions.equals(last)
    scored, history = (pd.read_csv(folder / "history.csv") for folder in (tmp_path, out))
    assert scored.train_loss.equals(history.train_loss)
    assert list(scored.accuracy.isna()) == [True, True, False]
    from loraudit.adapters import inject
    from loraudit.adapters.base_model import load_base
    from loraudit.data.batches import collate, load_examples, pad_id

    model = inject.load(load_base(record.spec, tiny / "model"), tmp_path / "adapter").eval()
    examples = load_examples(record.spec, tiny / "tokens", "validation")
    with torch.no_grad():
        batch = collate(examples, np.arange(128), record.spec, pad_id(tiny / "tokens"))
        again = model(**batch).logits.numpy()
    assert np.abs(again - logits(predictions)).max() < 1e-5
    case = verify.Case(tmp_path, record)
    assert list(verify._check_evidence(case)) == []


def test_best_epochs_weights_are_the_exported_ones(reference, tiny, batch):
    from loraudit.adapters import inject
    from loraudit.adapters.base_model import load_base
    from loraudit.data.batches import collate, load_examples, pad_id

    out, record, predictions = reference
    examples = load_examples(SPEC, tiny / "tokens", "validation")
    model = inject.load(load_base(SPEC, tiny / "model"), out / "adapter").eval()
    inputs = collate(examples, np.arange(128), SPEC, pad_id(tiny / "tokens"))
    with torch.no_grad():
        found = model(**inputs).logits.numpy()
    best = predictions[predictions.epoch == record.train.epochs["best"].epoch]
    assert np.abs(found - logits(best)).max() < 1e-5


def test_ties_go_to_the_earlier_epoch():
    best, model = Best(), torch.nn.Linear(1, 1)
    for epoch, value in ((1, 0.5), (2, 0.7), (3, 0.7), (4, 0.6)):
        best.offer(epoch, value, model)
    assert best.epoch == 2


def test_an_undefined_score_is_kept_only_until_there_is_one():
    best, model = Best(), torch.nn.Linear(1, 1)
    chosen = []
    for epoch, value in ((1, math.nan), (2, math.nan), (3, -0.5), (4, math.nan)):
        best.offer(epoch, value, model)
        chosen.append(best.epoch)
    assert chosen == [1, 1, 3, 3]


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_a_frozen_head_stays_as_drawn_but_is_saved(tiny, tmp_path, method):
    from loraudit.adapters.base_model import load_base

    record, _ = run(tiny, tmp_path, head="frozen", epochs=1, method=method)
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    drawn = load_base(SPEC, tiny / "model").classifier.weight
    assert torch.equal(saved["base_model.model.classifier.weight"], drawn)
    assert record.train.parameters["head"] == 0


def test_baselines_train_what_they_say(tiny, tmp_path):
    head, bitfit, full = (
        run(tiny, tmp_path / method, method=method, epochs=1)[0].train
        for method in ("head", "bitfit", "full")
    )
    assert head.parameters["trainable"] == head.parameters["head"] == 2 * 16 + 2
    assert full.parameters["trainable"] == full.parameters["model"]
    model = tiny_model()
    biases = [p.numel() for n, p in model.bert.named_parameters() if n.endswith("bias")]
    assert bitfit.parameters["base"] == sum(biases)
    assert bitfit.parameters["head"] == 2 * 16 + 2
    assert set(load_file(tmp_path / "head/adapter/head.safetensors")) == {
        "classifier.weight",
        "classifier.bias",
    }
    kept = load_file(tmp_path / "bitfit/adapter/bitfit.safetensors")
    assert sum(tensor.numel() for tensor in kept.values()) == bitfit.parameters["trainable"]
    assert full.bytes["adapter"] == 0


def test_full_fine_tuning_that_is_kept_trains_the_same_and_saves_the_whole_model(tiny, tmp_path):
    full, kept = (
        run(tiny, tmp_path / method, method=method, epochs=1)[0]
        for method in ("full", "full_saved")
    )
    assert kept.train.epochs == full.train.epochs
    state = load_file(tmp_path / "full_saved/adapter/full_saved.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) == kept.train.parameters["model"]
    start = load_file(tiny / "model/model.safetensors")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(state[query], next(w for k, w in start.items() if query.endswith(k)))


def test_further_validation_splits_are_scored_beside_the_first(tiny, tmp_path):
    """MNLI's mismatched split, here the tiny task's validation split under another name."""
    shutil.copytree(tiny / "task", tmp_path / "task")
    shutil.copy(tmp_path / "task/validation.parquet", tmp_path / "task/mismatched.parquet")
    manifest = read_json(tmp_path / "task/manifest.json")
    manifest["splits"]["mismatched"] = manifest["splits"]["validation"]
    write_json(tmp_path / "task/manifest.json", manifest)
    tokenise(tmp_path / "task", tiny / "model", 64, tmp_path / "tokens")
    task = SPEC.task.model_copy(update={"also_validate": {"mismatched": "anything"}})
    spec = changed(SPEC, task=task, epochs=1)
    train(spec, tmp_path / "tokens", tiny / "model", tmp_path / "run")
    result = read_record(tmp_path / "run/record.json").train
    assert (
        result.epochs["best"].scores["accuracy_mismatched"]
        == result.epochs["best"].scores["accuracy"]
    )
    assert result.rows["mismatched"] == 128
    predictions = pd.read_parquet(tmp_path / "run/predictions.parquet")
    assert dict(predictions.split.value_counts()) == {"validation": 128, "mismatched": 128}


def test_a_non_finite_loss_stops_with_its_step_and_leaves_nothing(tiny, tmp_path):
    with pytest.raises(UserError, match=r"the loss is nan at step \d+ \(epoch 1\)"):
        run(tiny, tmp_path, learning_rate=1e30, max_grad_norm=None, schedule="constant")
    assert not list(tmp_path.iterdir())


def test_the_launchers_precision_must_be_the_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="precision: the run says 'fp32', the launcher 'bf16'"):
        run(tiny, tmp_path)


def test_regression_runs_end_to_end(tiny, tmp_path):
    task = SPEC.task.model_copy(
        update={"classes": (), "metrics": ("pearson", "spearman"), "headline": "pearson"}
    )
    record, predictions = run(tiny, tmp_path, task=task)
    assert record.train.epochs["best"].scores["pearson"] > 0.5
    assert logits(predictions).shape[1] == 1


def test_an_undefined_score_is_recorded_as_such(tiny, tmp_path):
    """One validation row has no correlation."""
    task = SPEC.task.model_copy(
        update={"classes": (), "metrics": ("pearson",), "headline": "pearson"}
    )
    changes = {"task": task, "validation_rows": 1, "train_rows": 16, "epochs": 2}
    train(changed(SPEC, **changes), tiny / "tokens", tiny / "model", tmp_path / "words/tiny/x/s0")
    record = read_record(tmp_path / "words/tiny/x/s0/record.json")
    best, last = record.train.epochs["best"], record.train.epochs["last"]
    assert best.scores == last.scores == {"pearson": None}
    assert best.epoch == 1
    study = Study(
        name="one", question="", runs=(Run(id="words/tiny/x/s0", label="", spec=record.spec),)
    )
    runs = collect.tidy(study, tmp_path)
    assert runs.best.isna().all() and collect.history(study, tmp_path).score.isna().all()
    assert summary_table(aggregate(runs))["mean ± SD, %"].tolist() == ["undefined"]
    found = verify.check_run(tmp_path / study.runs[0].id, study.runs[0], None)
    assert {finding.artefact for finding in found if finding.kind == "problem"} == set()


def test_inputs_longer_than_the_model_reads_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"max_length 67 is more than model 'tiny' .*4 to 66"):
        run(tiny, tmp_path, max_length=67)


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_ranks_that_differ_by_layer_are_written_down_and_sealed(tiny, tmp_path, method):
    uneven = {"method": method, "base_bits": 4, "base_group": 8, "ranks": "error", "train_rows": 61}
    record, _ = run(tiny, tmp_path, **uneven, rank=2, init="error", epochs=1)
    ranks = pd.read_csv(tmp_path / "ranks.csv")
    shapes = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert set(ranks.step) == {0}
    assert ranks.set_index("layer")["rank"].to_dict() == {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(tensor)
        for name, tensor in shapes.items()
        if ".lora_A" in name
    }
    assert "ranks.csv" in record.files
    assert not (run(tiny, tmp_path / "even", epochs=1) and (tmp_path / "even/ranks.csv").exists())


def test_a_run_that_tunes_and_diverges_is_a_result_without_scores(tiny, tmp_path, capsys):
    spec = changed(SPEC, learning_rate=1e30, selection_rows=40, validate_epochs="none")
    train(spec, tiny / "tokens", tiny / "model", tmp_path)
    record = read_record(tmp_path / "record.json")
    assert record.train.epochs == {} and record.train.diverged == record.train.steps < 20
    assert pd.read_csv(tmp_path / "history.csv").empty
    assert pd.read_parquet(tmp_path / "predictions.parquet").empty
    assert "it diverged and counts as the worst" in capsys.readouterr().err
    case = verify.Case(tmp_path, record)
    assert list(verify._check_evidence(case)) == []
    assert describe(tmp_path)["health"]["loss not finite"] == f"at step {record.train.steps}"


def test_an_adapter_that_nothing_moves_is_unmoved_and_verify_counts_again(tiny, tmp_path):
    record, _ = run(tiny, tmp_path, learning_rate=1e-300, epochs=1, train_rows=16)
    assert len(record.train.unmoved) == 2 * 6  # two layers, six matrices
    case = verify.Case(tmp_path, record)
    assert list(verify._check_adapter(case)) == []
    other = record.train.model_copy(update={"unmoved": record.train.unmoved[1:]})
    (finding,) = verify._check_adapter(
        verify.Case(tmp_path, record.model_copy(update={"train": other}))
    )
    assert finding.text == "12 matrices B are zero, the record says 11"


def test_a_rate_that_is_too_high_collapses_and_verify_tells_it_again(tiny, tmp_path):
    record, predictions = run(tiny, tmp_path, learning_rate=10.0, epochs=1)
    assert predictions.prediction.value_counts(normalize=True).max() >= 0.99
    assert record.train.collapsed == ("best", "last")
    case = verify.Case(tmp_path, record)
    assert list(verify._check_collapsed(case, predictions)) == []
    other = record.train.model_copy(update={"collapsed": ("last",)})
    case = verify.Case(tmp_path, record.model_copy(update={"train": other}))
    (finding,) = verify._check_collapsed(case, predictions)
    assert finding.text == "collapsed at the epochs: last; the predictions give best, last"


def test_a_run_has_the_processor_time_of_its_steps(reference):
    result = reference[1].train
    assert 0 < result.cpu_seconds["train"] < 2 * result.seconds["train"] * torch.get_num_threads()
    assert result.cpu_seconds["evaluate"] > 0
