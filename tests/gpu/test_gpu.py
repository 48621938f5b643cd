"""What can only be tried on a GPU: placement, equal bits, resume, precisions, sharing.

`make test-gpu` runs these; where there is no GPU they are skipped. Models are random and small, the
texts made up, so no network is needed.
"""

import copy
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from loraudit.adapters import inject
from loraudit.adapters.base_model import load_base
from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint, write_json
from loraudit.crosscheck import whole_model
from loraudit.data.batches import collate, load_examples, pad_id
from loraudit.data.fetch_task import fetch_task
from loraudit.data.tokenise import tokenise
from loraudit.studies.method_settings import AdaLoRASettings, ALoRASettings
from loraudit.studies.record import read_record
from loraudit.training import loop
from loraudit.training.run import train
from tiny import changed, make_spec, make_task, save_hub_folder, save_tiny_model, tiny_entry

MATRICES = ("q", "k", "v", "o", "up", "down")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.shapes_unchecked,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

LENGTHS = (64, 128, 512)
SPEC = make_spec(
    model=tiny_entry("roberta"), train_rows=48, validation_rows=32, global_batch=16, micro_batch=8,
    epochs=2, learning_rate=1e-3, lora_dropout=0.1, max_length=128,
)  # fmt: skip
SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
         "intermediate_size": 256, "max_position_embeddings": 514, "vocab_size": 64,
         "type_vocab_size": 1, "pad_token_id": 0}  # fmt: skip
"""A small RoBERTa whose attention heads are as wide as the real one's (64)."""

TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
PRUNING = ALoRASettings(rows=8, first=0.3, between=0.3, pruned=3)
KINDS: dict[str, dict] = {
    "lora": {},
    "peft": {"method": "peft"},
    "all matrices": {"targets": MATRICES},
    "full": {"method": "full"},
    "4 bits": {"base_bits": 4, "base_group": 64},
    "alora": {"method": "alora", "rank": 2, "alora": PRUNING},
    "adalora": {"method": "adalora", "adalora": AdaLoRASettings(deltaT=2), "init": None},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Give a folder with a model, and tokens of long texts cut at each of LENGTHS."""
    root = tmp_path_factory.mktemp("gpu")
    save_hub_folder(root / "hub", rows=128)
    for file in (root / "hub").rglob("*.parquet"):
        table = pd.read_parquet(file)
        table["sentence"] = [" ".join([text] * (4 + 70 * (number % 2)))
                             for number, text in enumerate(table.sentence)]  # fmt: skip
        table.to_parquet(file)
    fetch_task(make_task(source={"folder": str(root / "hub"), "config": "sst2"}), root / "task")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for name, dropout in (("model", {}), ("still", still)):
        save_tiny_model(root / name, "roberta")
        torch.manual_seed(0)
        config = transformers.RobertaConfig(**SHAPE, **dropout)
        transformers.RobertaForSequenceClassification(config).save_pretrained(root / name)
    for length in LENGTHS:
        tokenise(root / "task", root / "model", length, root / f"tokens-{length}")
    return root


def run(folders, out, precision="fp32", model="model", **changes):
    """Train on the GPU; returns the record and the predictions.

    `model` is "still" for the one without dropout.
    """
    spec = changed(SPEC, precision=precision, **changes)
    train(spec, folders / f"tokens-{spec.max_length}", folders / model, out)
    return read_record(out / "record.json"), pd.read_parquet(out / "predictions.parquet")


@pytest.fixture(autouse=True)
def launched_for_a_gpu(monkeypatch):
    """Set what the launcher sets; the precision is the run's own."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")


def logits(predictions: pd.DataFrame) -> np.ndarray:
    return predictions.filter(like="logit_").to_numpy()


def on_cpu(folders, out, **changes):
    """Train with the CPU in a process of its own; returns the predictions."""
    spec = changed(SPEC, **changes)
    done = launched(folders, out, spec, "cpu")
    assert done.wait() == 0
    return pd.read_parquet(out / "predictions.parquet")


def launched(folders, out, spec, profile: str) -> subprocess.Popen:
    """Start a run as rule train does, with a file of profiles/accelerate."""
    out.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.json"
    write_json(file, spec.model_dump(mode="json"))
    words = ["scripts/launch.py", "--quiet", "--config_file", f"profiles/accelerate/{profile}.yaml"]
    words += ["--num_cpu_threads_per_process", "1", "scripts/train.py", "--spec", str(file)]
    words += ["--tokens", str(folders / f"tokens-{spec.max_length}"), "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    return subprocess.Popen([sys.executable, *words, "--model", str(folders / "model")],
                            env=environment)  # fmt: skip


def test_the_run_is_on_the_gpu_and_says_so(folders, tmp_path):
    record, _ = run(folders, tmp_path)
    assert record.environment["device"].startswith("cuda")
    assert torch.cuda.get_device_name() in record.environment["gpus"]
    assert record.train.peak_device_memory_mib > 0


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("length", LENGTHS)
def test_same_spec_same_bits(length, precision, folders, tmp_path):
    _, first = run(folders, tmp_path / "a", precision, max_length=length)
    torch.randn(1000, device="cuda")  # what ran before must not matter
    _, again = run(folders, tmp_path / "b", precision, max_length=length)
    assert np.array_equal(logits(first), logits(again))
    assert folder_fingerprint(tmp_path / "a/adapter") == folder_fingerprint(tmp_path / "b/adapter")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_the_same_bits_again(kind, folders, tmp_path):
    _, first = run(folders, tmp_path / "a", **KINDS[kind])
    _, again = run(folders, tmp_path / "b", **KINDS[kind])
    assert np.array_equal(logits(first), logits(again))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(
    kind, folders, tmp_path, monkeypatch
):
    _, whole = run(folders, tmp_path / "whole", **KINDS[kind])
    inner, calls = loop.optimizer_step, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(*args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "optimizer_step", stopped)
        run(folders, tmp_path / "cut", **KINDS[kind])
    record, resumed = run(folders, tmp_path / "cut", **KINDS[kind])
    assert [row["step"] for row in record.environment["resumed"]] == [4]
    assert np.array_equal(logits(whole), logits(resumed))


NO_DROPOUT = {"lora_dropout": 0.0, "epochs": 1, "learning_rate": 1e-9, "train_rows": 16}
"""A run that hardly moves: its logits are those of the start."""


@pytest.mark.parametrize(
    ("precision", "most"), [("fp32", 1e-5), ("tf32", 1e-3), ("bf16", 2e-2)]
)  # the significands' roundings: 6e-8, 5e-4 and 4e-3 per product
def test_logits_are_the_cpus_up_to_the_precisions_rounding(precision, most, folders, tmp_path):
    cpu = logits(on_cpu(folders, tmp_path / "cpu", **NO_DROPOUT))
    _, gpu = run(folders, tmp_path / "gpu", precision, **NO_DROPOUT)
    assert np.abs(logits(gpu) - cpu).max() <= most * max(1.0, np.abs(cpu).max())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_it_learns_in_every_precision(precision, folders, tmp_path):
    learning = {"train_rows": None, "validation_rows": None, "epochs": 6, "max_length": 64}
    record, _ = run(folders, tmp_path, precision, targets=MATRICES, method="full", **learning)
    assert record.train.epochs["best"].scores["accuracy"] > 0.8


def test_compiled_has_the_logits_of_the_fast_path(folders, tmp_path):
    _, fast = run(folders, tmp_path / "fast", **NO_DROPOUT)
    _, compiled = run(folders, tmp_path / "compiled", compute="compiled", **NO_DROPOUT)
    assert np.abs(logits(fast) - logits(compiled)).max() <= 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fast_and_plain_layers_agree(precision, folders, tmp_path):
    """Without dropout: the fast path computes fewer tokens, so it draws other masks."""
    steps = {**NO_DROPOUT, "learning_rate": 1e-3, "train_rows": 48, "targets": MATRICES}
    steps["model"] = "still"
    _, fast = run(folders, tmp_path / "fast", precision, **steps)
    _, plain = run(folders, tmp_path / "plain", precision, compute="plain", **steps)
    assert np.abs(logits(fast) - logits(plain)).max() <= (1e-4 if precision == "fp32" else 3e-2)


def test_a_quantised_base_has_the_cpus_logits(folders, tmp_path):
    quantised = {**NO_DROPOUT, "base_bits": 4, "base_group": 64}
    cpu = logits(on_cpu(folders, tmp_path / "cpu", **quantised))
    _, gpu = run(folders, tmp_path / "gpu", **quantised)
    assert np.abs(logits(gpu) - cpu).max() <= 1e-3


@pytest.fixture
def base(folders):
    """Give the base model and four rows on the GPU."""
    spec = changed(SPEC, targets=MATRICES)
    tokens = folders / "tokens-128"
    examples = load_examples(spec, tokens, "train")
    batch = collate(examples, np.arange(4), spec, pad_id(tokens))
    model = load_base(spec, folders / "model", pad_id(tokens)).to("cuda")
    return model, spec, {name: tensor.to("cuda") for name, tensor in batch.items()}


def test_merging_changes_no_output(base):
    model, spec, batch = base
    adapted = inject.apply(model, spec).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    with torch.inference_mode():
        apart = adapted(**batch).logits
        inject.merge(adapted)
        assert (adapted(**batch).logits - apart).abs().max() <= 1e-4
        inject.unmerge(adapted)
        assert (adapted(**batch).logits - apart).abs().max() <= 1e-4


def cross_checked(base, folders, dtype: str, **changes) -> list[dict]:
    """Return the cross-check's rows on batches that are on the GPU."""
    model, spec, _ = base
    torch.set_float32_matmul_precision("highest")
    tokens = folders / "tokens-128"
    examples = load_examples(spec, tokens, "train")
    batches = []
    for number in range(9):
        index = np.arange(2 * number, 2 * number + 2)
        batch = collate(examples, index, spec, pad_id(tokens))
        batch["labels"] = torch.as_tensor(examples.labels[index])
        batches.append({name: tensor.to("cuda") for name, tensor in batch.items()})
    return whole_model.compare(copy.deepcopy(model), changed(spec, **changes), batches, dtype)


@pytest.mark.parametrize("dtype", whole_model.TOLERANCE)
def test_the_cross_check_holds_on_the_gpu(dtype, base, folders):
    """In float32 as in float64: TF32 is off unless the spec asks for it."""
    rows = cross_checked(base, folders, dtype)
    assert [row for row in rows if not row["ok"]] == []
    assert len(rows) > 8


def test_the_cross_check_holds_in_bf16_on_the_gpu(base, folders):
    rows = cross_checked(base, folders, "float32", precision="bf16")
    assert [row for row in rows if not row["ok"]] == []
    in_bf16 = {row["check"] for row in rows if row["dtype"] == "bfloat16"}
    assert {"outputs", "gradients", "merged outputs", "merged weights"} <= in_bf16


@pytest.mark.parametrize("runs", [1, 2])
def test_launched_runs_share_the_gpu_and_have_the_bits_of_one_alone(runs, folders, tmp_path):
    """As rule train launches them; the locks of gpu_slots.py hand the one GPU on."""
    _, alone = run(folders, tmp_path / "alone")
    outs = [tmp_path / f"launched-{number}" for number in range(runs)]
    processes = [launched(folders, out, SPEC, "gpu") for out in outs]
    assert [process.wait() for process in processes] == [0] * runs
    for out in outs:
        assert read_record(out / "record.json").environment["device"].startswith("cuda")
        predictions = pd.read_parquet(out / "predictions.parquet")
        assert np.array_equal(logits(alone), logits(predictions))


def test_two_processes_at_once_have_the_bits_of_one_alone(folders, tmp_path):
    """Without locks: both compute on the GPU at the same time."""
    _, alone = run(folders, tmp_path / "alone")
    outs = [tmp_path / name for name in "ab"]
    write_json(tmp_path / "spec.json", SPEC.model_dump(mode="json"))
    processes = [
        subprocess.Popen([sys.executable, "scripts/train.py", "--spec", str(tmp_path / "spec.json"),
                          "--tokens", str(folders / "tokens-128"), "--model",
                          str(folders / "model"), "--out", str(out)])
        for out in outs
    ]  # fmt: skip
    assert [process.wait() for process in processes] == [0, 0]
    for out in outs:
        assert np.array_equal(logits(alone), logits(pd.read_parquet(out / "predictions.parquet")))


@TWO_GPUS
def test_two_gpus_train_what_one_does(folders, tmp_path):
    """NCCL: the same global batch on two GPUs; sums are rounded otherwise."""
    _, one = run(folders, tmp_path / "one", **NO_DROPOUT)
    spec = changed(SPEC, **NO_DROPOUT)
    assert launched(folders, tmp_path / "two", spec, "gpu2").wait() == 0
    two = pd.read_parquet(tmp_path / "two/predictions.parquet")
    assert np.abs(logits(one) - logits(two)).max() <= 1e-5


def test_too_little_memory_is_said_in_one_sentence(folders, tmp_path):
    """The device's memory is limited to what a big batch does not fit into."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(160 * 2**20 / whole)
    try:
        with pytest.raises(UserError, match=r"memory.*micro_batch"):
            run(folders, tmp_path, max_length=512, global_batch=48, micro_batch=48)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not (tmp_path / "record.json").exists()
