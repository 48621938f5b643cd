"""Runs that predict text: the loss, its mean over tokens, twins, export, resuming, bad input."""

import os
import re
import shutil
import signal

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers

from loraudit.adapters import inject
from loraudit.adapters.base_model import load_base
from loraudit.analysis import collect
from loraudit.analysis.contrasts import method_contrasts, task_aggregates
from loraudit.analysis.statistics import aggregate
from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint
from loraudit.crosscheck.whole_model import crosscheck, require_agreement
from loraudit.data.batches import NO_LOSS, collate, labels_tensor, load_examples, pad_id
from loraudit.data.fetch_task import fetch_task
from loraudit.data.tokenise import tokenise
from loraudit.report.tables import contrast_table, summary_table
from loraudit.studies.record import read_record
from loraudit.studies.study import Run
from loraudit.studies.study_file import Contrast
from loraudit.tools import compare, show, verify
from loraudit.tools.job_lines import score_of
from loraudit.training import loop, losses, run
from loraudit.training.accounting import count_parameters
from loraudit.training.run import train
from tiny import UP_TO_ROUNDING, changed, save_tiny_model
from tiny_text import answers, make_text_run, save_answers, text_spec, text_task

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folders of tokens and model."""
    return make_text_run(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """Return the folder of a run of three epochs."""
    out = tmp_path_factory.mktemp("trained")
    train(text_spec(epochs=3), *made, out)
    return out


def test_loss_is_on_completions_only(made):
    spec, table = text_spec(), answers(32, 1)
    examples = load_examples(spec, made[0], "validation")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made[1])
    index = np.array([5, 0, 7])
    labels = labels_tensor(examples, index, spec)
    batch = collate(examples, index, spec, pad_id(made[0]))
    assert labels.shape == batch["input_ids"].shape
    for place, row in enumerate(index):
        ids = [t for t in labels[place].tolist() if t != NO_LOSS]
        assert tokenizer.decode(ids) == table.answer[row]
        assert len(ids) == examples.labels[row]
    assert examples.weight() == sum(len(text.split()) for text in table.answer)
    assert examples.weight(index) == (labels != NO_LOSS).sum()


def test_of_a_text_all_tokens_but_the_first_carry_loss(tmp_path):
    source = save_answers(tmp_path / "source")
    task = text_task(source=source, text=["question"])
    tokens, _ = make_text_run(tmp_path, task)
    examples = load_examples(text_spec(task=task), tokens, "train")
    assert (examples.given == 1).all()
    assert (examples.labels == examples.lengths - 1).all()
    assert examples.lengths.tolist() == [len(t.split()) for t in answers(64, 0).question]


def evaluated(made, spec, dtype=torch.float64):
    """Return the losses that a run keeps of the validation rows, and its model."""
    tokens, model_folder = made
    base = load_base(spec, model_folder, pad_id(tokens)).to(dtype)
    accelerator = run.make_accelerator(spec)
    model = inject.apply(base, spec)
    with torch.no_grad():
        for layer in inject.lora_layers(model).values():
            layer.lora_B.normal_(std=0.3)
    state = run.prepare(spec, accelerator, model, 8, pad_id(tokens))
    examples = load_examples(spec, tokens, "validation")
    return loop.outputs(state, examples, "evaluate"), examples, model


def test_evaluation_equals_the_models_own_loss_in_float64(made):
    """transformers' labels of -100, row by row without padding, and over all tokens."""
    spec = text_spec(micro_batch=2)
    found, examples, model = evaluated(made, spec)
    assert found.dtype == np.float64
    model.eval()
    whole = []
    for row in range(len(examples)):
        index = np.array([row])
        ids = torch.from_numpy(
            examples.ids[examples.starts[row] :][: examples.lengths[row]].astype(int)
        )
        labels = ids.clone()
        labels[: examples.given[row]] = -100
        with torch.no_grad():
            output = model(input_ids=ids[None], labels=labels[None])
        exact = torch.nn.functional.cross_entropy(
            output.logits[0, :-1], labels[1:], ignore_index=-100, reduction="sum"
        )
        assert found[row, 0] == pytest.approx(exact.item(), abs=1e-10)
        theirs = output.loss.item() * examples.labels[index][0]  # computed in float32
        assert found[row, 0] == pytest.approx(theirs, rel=1e-5)
        whole.append(exact.item())
    scores = loop.metrics.compute(found, examples.labels, spec.task)
    assert scores["log_loss"] == pytest.approx(sum(whole) / examples.weight(), abs=1e-10)
    assert scores["perplexity"] == pytest.approx(np.exp(sum(whole) / examples.weight()), abs=1e-9)


def test_a_row_loss_does_not_depend_on_its_batch(made):
    one, two = (
        evaluated(made, text_spec(global_batch=micro, micro_batch=micro))[0] for micro in (1, 8)
    )
    np.testing.assert_allclose(one, two, atol=1e-10)


def test_it_learns_keeps_the_epoch_of_the_lowest_loss_and_the_evidence(made, trained):
    record = read_record(trained / "record.json")
    history = pd.read_csv(trained / "history.csv")
    best = record.train.epochs["best"]
    assert best.scores["log_loss"] == history.log_loss.min() < history.log_loss.max()
    assert best.epoch == history.epoch[history.log_loss.idxmin()]
    assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]
    assert record.train.collapsed == ()
    assert record.train.parameters["head"] == 0
    assert record.train.parameters["adapter"] == record.train.parameters["trainable"] == 2 * 2 * 64
    rows = pd.read_parquet(trained / "predictions.parquet").query(f"epoch == {best.epoch}")
    assert rows.prediction.sum() / rows.label.sum() == pytest.approx(best.scores["log_loss"])
    examples = load_examples(text_spec(), made[0], "validation")
    assert rows.label.tolist() == examples.labels.tolist()


def test_commands_read_such_a_run(trained):
    """verify finds nothing, show and compare write nats."""
    case = verify.Case(trained, read_record(trained / "record.json"))
    assert [f for f in verify._check_evidence(case) if f.kind == "problem"] == []
    assert [f for f in verify._check_adapter(case) if f.kind == "problem"] == []
    shown = dict((title, rows) for title, _, rows in show.sections(show.describe(trained)))
    (name, best, last), _ = shown["scores, %"]
    assert name == "log_loss"
    assert best == f"{case.record.train.epochs['best'].scores['log_loss']:.3f} nats"
    assert last.endswith(" nats")
    said = compare.run_sentences(compare.compare_runs(trained, trained, 20))
    assert "log_loss: +0.000 nats, 95 % paired bootstrap [+0.000, +0.000]" in said[0]
    assert not any("McNemar" in sentence for sentence in said)
    assert re.fullmatch(r"log_loss \d\.\d{3}", str(score_of([str(trained / "record.json")])))


def test_verify_finds_a_best_epoch_that_is_not_the_lowest(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    history = pd.read_csv(trained / "history.csv")
    history.loc[history.log_loss.idxmin(), "log_loss"] += 5
    history.to_csv(tmp_path / "run/history.csv", index=False)
    case = verify.Case(tmp_path / "run", read_record(trained / "record.json"))
    assert any("its best epoch is" in finding.text for finding in verify._check_history(case))


def test_the_mean_loss_is_over_the_tokens_of_the_global_batch(made):
    """The first step's gradient is that of one sum over the batch, however it is cut."""
    found = []
    for micro in (8, 2):
        spec = text_spec(global_batch=8, micro_batch=micro, max_grad_norm=None)
        tokens, model_folder = made
        model = inject.apply(load_base(spec, model_folder, 0).double(), spec).eval()
        state = run.prepare(spec, run.make_accelerator(spec), model, 8, 0)
        examples, index = load_examples(spec, tokens, "train"), np.arange(8)
        state.optimizer.step = lambda: None
        state.optimizer.zero_grad = lambda: None
        loop.optimizer_step(state, examples, index)
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        model.zero_grad()
    labels = labels_tensor(examples, index, spec)
    logits = model(**collate(examples, index, spec, 0)).logits
    mean = losses.token_losses(logits, labels).sum() / (labels != NO_LOSS).sum()
    mean.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[0][name], parameter.grad, atol=1e-7, rtol=1e-6)
            torch.testing.assert_close(found[1][name], parameter.grad, atol=1e-7, rtol=1e-6)


def test_the_peft_twin_trains_to_the_same_losses(made, trained, tmp_path):
    train(text_spec(epochs=3, method="peft"), *made, tmp_path)
    ours, twin = (pd.read_parquet(f / "predictions.parquet") for f in (trained, tmp_path))
    assert np.abs(ours.prediction - twin.prediction).max() < 1e-3
    assert not ours.prediction.equals(ours.label.astype(float))


def test_the_export_is_loaded_by_peft_as_a_causal_language_model(made, trained):
    config = peft.PeftConfig.from_pretrained(trained / "adapter")
    assert config.task_type == "CAUSAL_LM"
    assert not config.modules_to_save
    base = transformers.AutoModelForCausalLM.from_pretrained(made[1])
    theirs = peft.PeftModel.from_pretrained(base, trained / "adapter").eval()
    spec = text_spec()
    examples = load_examples(spec, made[0], "validation")
    index = np.arange(len(examples))
    labels = labels_tensor(examples, index, spec)
    with torch.no_grad():
        logits = theirs(**collate(examples, index, spec, pad_id(made[0]))).logits
    found = losses.row_losses(spec.task, logits, labels).numpy()
    best = read_record(trained / "record.json").train.epochs["best"].epoch
    rows = pd.read_parquet(trained / "predictions.parquet").query(f"epoch == {best}")
    np.testing.assert_allclose(found, rows.prediction, **UP_TO_ROUNDING)


def test_a_stopped_run_ends_in_the_bits_of_one_that_was_not(made, trained, tmp_path, monkeypatch):
    calls = 0

    def step(*arguments, real=loop.optimizer_step):
        nonlocal calls
        calls += 1
        if calls == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", step)
    with pytest.raises(SystemExit):
        train(text_spec(epochs=3), *made, tmp_path)
    train(text_spec(epochs=3), *made, tmp_path)
    assert (tmp_path / "history.csv").read_bytes() == (trained / "history.csv").read_bytes()
    assert folder_fingerprint(tmp_path / "adapter") == folder_fingerprint(trained / "adapter")
    assert read_record(tmp_path / "record.json").train.counts == {}


@pytest.mark.slow
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o", "up", "down")])
def test_the_crosscheck_covers_language_models(made, targets):
    rows = crosscheck(text_spec(targets=targets), *made)
    require_agreement(rows, "tiny")
    assert {row["check"] for row in rows} >= {"outputs", "gradients", "ours read by PEFT"}


def test_it_starts_from_a_classifiers_adapter(made, tiny, tmp_path):
    """The head that the classifier's folder has is left out."""
    from loraudit.studies.spec import WarmStart, digest
    from tiny import make_spec, tiny_entry

    first = make_spec(model=tiny_entry("gpt2"), targets=("q", "v"), rank=2, epochs=1)
    train(first, tiny / "tokens", made[1], tmp_path / "first")
    start = WarmStart(run="sst2/x", spec_sha256=digest(first), tensors="adapter+head")
    spec = changed(text_spec(epochs=1), warm_start=start)
    train(spec, *made, tmp_path / "second", tmp_path / "first")
    copied = read_record(tmp_path / "second/record.json").train.copied
    assert len(copied) == 8
    assert all(name.endswith(("lora_A", "lora_B")) for name in copied)


@pytest.mark.parametrize("method", ["full", "full_saved", "bitfit", "adalora", "alora"])
def test_other_methods_train_language_models(made, tmp_path, method):
    from loraudit.studies.method_settings import AdaLoRASettings, ALoRASettings

    own = {
        "adalora": {"adalora": AdaLoRASettings(deltaT=2), "targets": ("o",)},
        "alora": {"alora": ALoRASettings(rows=8, first=0.3, between=0.3, pruned=2)},
    }
    spec = text_spec(method=method, epochs=2, **own.get(method, {}))
    train(spec, *made, tmp_path)
    train_part = read_record(tmp_path / "record.json").train
    assert np.isfinite(train_part.epochs["best"].scores["log_loss"])
    assert train_part.parameters["head"] == 0


@pytest.mark.parametrize("method", ["head", "probe"])
def test_what_trains_a_head_alone_is_refused(method):
    with pytest.raises(UserError, match=f"method '{method}'.*classification head.*predicts text"):
        text_spec(method=method)


def test_no_head_is_counted_or_trained(made):
    spec = text_spec()
    model = inject.apply(load_base(spec, made[1]), spec)
    assert spec.model.head == ()
    assert count_parameters(model, spec.model.head)["head"] == 0
    assert not model.lm_head.weight.requires_grad


def test_a_quantised_base_keeps_its_last_layer(made):
    spec = text_spec(base_bits=4, base_group=16)
    model = load_base(spec, made[1])
    assert model.lm_head.weight is model.transformer.wte.weight


def test_bf16_leaves_the_embedding_in_float32(made):
    from loraudit.adapters.base_layers import hold_frozen

    model = load_base(text_spec(), made[1]).requires_grad_(False)
    hold_frozen(model, (), torch.bfloat16)
    assert model.transformer.wte.weight.dtype == torch.float32
    assert model.transformer.h[0].attn.c_attn.weight.dtype == torch.bfloat16


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    save_tiny_model(tmp_path, "bert")
    with pytest.raises(UserError, match="models of type 'bert' see the tokens after each token"):
        load_base(text_spec(), tmp_path)


def test_a_task_that_lacks_a_column_or_a_completion_is_refused(tmp_path):
    source = save_answers(tmp_path / "source")
    with pytest.raises(UserError, match="column: 'prompt' is not known"):
        fetch_task(text_task(source=source, text=["prompt", "answer"]), tmp_path / "out")
    table = answers(4, 0)
    table.loc[2, "answer"] = "  "
    table.to_csv(tmp_path / "source/train.csv", index=False)
    with pytest.raises(UserError, match="row 2 has no text in answer; remove it"):
        fetch_task(text_task(source=source), tmp_path / "out")
    table.loc[2, ["question", "answer"]] = ["", "fine"]  # a prompt may be empty
    table.to_csv(tmp_path / "source/train.csv", index=False)
    fetch_task(text_task(source=source), tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ({"question": ["a dog"] * 3 + ["the film is a story"]}, ["question", "answer"],
         "row 3 has no token to predict: its 5 tokens of prompt leave no room for the completion: "
         "max_length is 5, raise it"),
        ({"answer": ["two friends", "dog", "one", "a film"]}, ["answer"],
         r"row 1 \(and 1 more\) has no token to predict: it is a single token"),
    ],
)  # fmt: skip
def test_a_row_without_a_token_to_predict_is_refused(tmp_path, table, text, message):
    source = save_answers(tmp_path / "source")
    table = {"question": ["a"] * 4, "answer": ["fine dog"] * 4, **table}
    pd.DataFrame(table).to_csv(tmp_path / "source/train.csv", index=False)
    save_tiny_model(tmp_path / "model", "gpt2")
    fetch_task(text_task(source=source, text=text), tmp_path / "task")
    with pytest.raises(UserError, match=message):
        tokenise(tmp_path / "task", tmp_path / "model", 5, tmp_path / "tokens")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "label"}, "kind 'causal_lm' predicts the text: leave out 'label'"),
        ({"classes": ["a", "b"]}, "leave out 'classes'"),
        ({"metrics": ["accuracy"], "headline": "accuracy"},
         r"metric 'accuracy' is of classes, and the task has text to predict \(legal: log_loss, "),
        ({"validation_rows": 5}, "this source has splits"),
        ({"kind": "labels", "label": "x"}, "'log_loss' is of text to predict, and the task has a "),
    ],
)  # fmt: skip
def test_an_entry_whose_keys_do_not_go_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        text_task(**changes)


def test_the_reports_tables_write_nats(trained, tmp_path):
    """From the record to the tables of scores and of differences, of two runs and two methods."""
    spec = read_record(trained / "record.json").spec
    runs = tuple(
        Run(
            id=f"answers/tiny/{name}/s{seed}",
            label=name,
            spec=spec.model_copy(update={"seed": seed}),
        )
        for name in ("one", "two")
        for seed in (0, 1)
    )
    rows = [
        {**collect._tidy_row(runs[0].model_copy(update={"spec": spec}), trained),
         "run": run.id, "label": run.label, "seed": run.spec.seed, "best": score, "last": score}
        for run, score in zip(runs, (2.0, 2.1, 3.0, 3.2), strict=True)
    ]  # fmt: skip
    tidy = pd.DataFrame(rows)
    shown = summary_table(aggregate(tidy)).to_dict("records")
    text = next(value for key, value in shown[0].items() if "mean ± SD" in key)
    assert text.startswith("2.050 ± ")
    table = method_contrasts(tidy, [Contrast(left="one", right="two")])
    assert set(table.metric) == {"log_loss"}
    (text,) = set(contrast_table(table).difference)
    assert text == "-1.050 nats"
    assert task_aggregates(tidy).empty
