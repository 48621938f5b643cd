"""Starting from another run's adapter: what is copied, what is not, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file

from loraudit.adapters import inject, peft_folder, peft_twin, warm_start
from loraudit.base.errors import UserError
from loraudit.studies.record import read_record
from loraudit.studies.spec import digest
from loraudit.training.method import method_of
from loraudit.training.run import train
from tiny import make_spec, make_task, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

MODULES = {"lora": inject, "peft": peft_twin}
THREE = make_task(name="three", classes=("a", "b", "c"), metrics=("accuracy",))


def source(folder, method: str = "lora", **changes):
    """Export an adapter whose tensors are all random, for a 3-class RoBERTa."""
    spec = make_spec(model=tiny_entry("roberta"), task=THREE, method=method, **changes)
    model = MODULES[method].apply(tiny_model("roberta", classes=3), spec)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    MODULES[method].export(model, spec, folder)
    return {peft_folder.own_name(n): p for n, p in model.named_parameters()}


def started(folder, tensors: str, method: str = "lora", **changes):
    """Give a 2-class model before and after starting from `folder`, and what was copied."""
    start = {"run": "x", "spec_sha256": "0" * 64, "tensors": tensors}
    spec = make_spec(model=tiny_entry("roberta"), method=method, warm_start=start, **changes)
    model = MODULES[method].apply(tiny_model("roberta"), spec)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    copied = warm_start.start_from(model, spec, folder)
    rename = peft_folder.own_name
    return (
        {rename(n): p for n, p in before.items()},
        {rename(n): p for n, p in model.named_parameters()},
        copied,
    )


@pytest.mark.parametrize("method", ["lora", "peft"])
@pytest.mark.parametrize("tensors", ["adapter", "adapter+head"])
def test_the_named_tensors_are_copied_and_no_others(tmp_path, method, tensors):
    trained = source(tmp_path, method)
    before, after, copied = started(tmp_path, tensors, method)
    wanted = {name for name in after if "lora_" in name}
    if tensors == "adapter+head":
        wanted |= {"classifier.dense.weight", "classifier.dense.bias"}
    assert set(copied) == wanted
    for name, value in after.items():
        assert torch.equal(value, trained[name] if name in wanted else before[name]), name
        assert not name.startswith("classifier.out_proj") or value.shape[0] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, r"lora_A \(8, 16\), this model \(4, 16\)"),
        ({"targets": ("q",)}, r"self.value.lora_A .* this model nothing"),
        ({"targets": ("q", "k", "v")}, "has no .*self.key.lora_A"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, change, message):
    source(tmp_path)
    with pytest.raises(UserError, match=message):
        started(tmp_path, "adapter", **change)


def test_weights_start_where_another_run_ended_but_for_the_head(tiny, tmp_path):
    first = make_spec(method="full_saved", epochs=1, train_rows=16, learning_rate=1e-3)
    train(first, tiny / "tokens", tiny / "model", tmp_path / "first")
    start = {"run": "x", "spec_sha256": digest(first), "tensors": "adapter"}
    spec = make_spec(method="full_saved", warm_start=start)
    model = tiny_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    copied = method_of(spec).start_from(model, spec, tmp_path / "first/adapter")
    saved = load_file(tmp_path / "first/adapter/full_saved.safetensors")
    for name, value in model.named_parameters():
        head = name.startswith("classifier.")
        assert torch.equal(value, before[name] if head else saved[name]), name
        assert (name in copied) != head


def test_methods_that_save_nothing_start_cold():
    start = {"run": "x", "spec_sha256": "0" * 64, "tensors": "adapter"}
    assert make_spec(method="full", warm_start=start).warm_start is None
    with pytest.raises(UserError, match="method 'alora' starts cold"):
        make_spec(method="alora", warm_start=start)


def test_a_run_starts_at_the_adapter_of_the_run_that_its_spec_names(tiny, tmp_path):
    first = make_spec(epochs=1, train_rows=32, validation_rows=32)
    train(first, tiny / "tokens", tiny / "model", tmp_path / "first")
    start = {"run": "first", "spec_sha256": digest(first), "tensors": "adapter"}
    fields = {"epochs": 1, "train_rows": 32, "validation_rows": 32, "warm_start": start}
    second = make_spec(**fields)
    train(second, tiny / "tokens", tiny / "model", tmp_path / "second", tmp_path / "first")
    record = read_record(tmp_path / "second/record.json")
    assert len(record.train.copied) == 8
    assert set(record.environment["started_from"]) >= {"adapter_model.safetensors"}
    for spec, folder, message in (
        (second, None, "starts from run 'first'; give its folder"),
        (second, tmp_path / "second", "is not run 'first'"),
        (first, tmp_path / "first", "the spec has no warm_start"),
    ):
        with pytest.raises(UserError, match=message):
            train(spec, tiny / "tokens", tiny / "model", tmp_path / "third", folder)
    assert not (tmp_path / "third").exists()
