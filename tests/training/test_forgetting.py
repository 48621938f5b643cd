"""What is scored of earlier tasks after later ones: nothing lost where nothing changed."""

import runpy
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraudit.adapters.base_model import load_base
from loraudit.analysis.collect import forgetting
from loraudit.base.errors import UserError
from loraudit.data.batches import collate, load_examples, pad_id
from loraudit.report.forgetting_table import forgetting_rows as summary
from loraudit.report.forgetting_table import forgetting_table
from loraudit.studies.record import read_record
from loraudit.studies.spec import WarmStart, digest
from loraudit.studies.study import Run, Study
from loraudit.training.forgetting import chain_of, forgetting_rows
from loraudit.training.run import train
from tiny import changed, make_spec, make_task

pytestmark = pytest.mark.numerics

FIRST = make_spec(epochs=2, learning_rate=1e-2, train_rows=128)
OTHER = make_task(name="other")


def later(spec, name: str, task=OTHER, **changes):
    """Return a run on another task that starts from the run of this spec and name."""
    start = WarmStart(run=name, spec_sha256=digest(spec), tensors="adapter")
    return changed(spec, task=task, warm_start=start, **changes)


@pytest.fixture(scope="module")
def chain(tiny, tmp_path_factory):
    """Train first/s0, second/s0 and third/s0, each from the one before; returns their folder."""
    runs, spec, start = tmp_path_factory.mktemp("chain"), FIRST, None
    for number, name in enumerate(("first/s0", "second/s0", "third/s0")):
        if number:
            task = OTHER if number == 1 else make_task(name="another")
            spec = later(spec, start, task, seed=0, train_rows=64)
        folder = runs / start if start else None
        train(spec, tiny / "tokens", tiny / "model", runs / name, folder)
        start = name
    return runs


def rows_of(chain, tiny, run="second/s0"):
    earlier = [one.run for one in chain_of(run, chain)[1:]]
    return forgetting_rows(run, chain, dict.fromkeys(earlier, tiny / "tokens"), tiny / "model")


def test_each_earlier_task_is_scored_before_and_after(chain, tiny):
    rows = pd.DataFrame(rows_of(chain, tiny, "third/s0"))
    assert rows.earlier.tolist() == ["second/s0"] * 2 + ["first/s0"] * 2
    assert rows.distance.tolist() == [1, 1, 2, 2]
    assert rows.headline.tolist() == [True, False] * 2
    assert np.allclose(rows.forgotten, rows.before - rows.after)
    first = read_record(chain / "first/s0/record.json").train.epochs["best"].scores
    assert rows.before[2] == pytest.approx(first["accuracy"])
    assert rows.before[3] == pytest.approx(first["f1"])


@pytest.fixture
def copy(chain, tmp_path):
    shutil.copytree(chain, tmp_path / "copy")
    return tmp_path / "copy"


def test_nothing_is_forgotten_where_the_later_run_changes_nothing(copy, tiny):
    first = load_file(copy / "first/s0/adapter/adapter_model.safetensors")
    file = copy / "second/s0/adapter/adapter_model.safetensors"
    second = load_file(file)
    kept = {name: first[name] if "lora_" in name else value for name, value in second.items()}
    save_file(kept, file)
    for row in rows_of(copy, tiny):
        assert row["before"] == row["after"]
        assert row["forgotten"] == 0


def test_a_planted_change_gives_the_score_of_the_closed_form(copy, tiny):
    """With B of zero the later model is the base, under the first run's head."""
    file = copy / "second/s0/adapter/adapter_model.safetensors"
    second = load_file(file)
    save_file({n: torch.zeros_like(v) if "lora_B" in n else v for n, v in second.items()}, file)
    model = load_base(FIRST, tiny / "model").eval()
    first = load_file(copy / "first/s0/adapter/adapter_model.safetensors")
    head = {n.removeprefix("base_model.model."): v for n, v in first.items() if "lora_" not in n}
    assert set(head) == {"classifier.weight", "classifier.bias"}
    model.load_state_dict(head, strict=False)
    examples = load_examples(FIRST, tiny / "tokens", "validation")
    with torch.no_grad():
        index = np.arange(len(examples))
        logits = model(**collate(examples, index, FIRST, pad_id(tiny / "tokens"))).logits
    expected = (logits.argmax(1).numpy() == examples.labels).mean()
    row = rows_of(copy, tiny)[0]
    assert row["after"] == pytest.approx(expected)
    assert row["forgotten"] == pytest.approx(row["before"] - expected)
    assert row["forgotten"] != 0


def test_what_full_fine_tuning_forgets_is_scored_where_its_weights_are_kept(tiny, tmp_path):
    first = make_spec(method="full_saved", epochs=1, learning_rate=1e-3, train_rows=64)
    second = later(first, "first")
    train(first, tiny / "tokens", tiny / "model", tmp_path / "first")
    train(second, tiny / "tokens", tiny / "model", tmp_path / "second", tmp_path / "first")
    (row, _) = rows_of(tmp_path, tiny, "second")
    said = read_record(tmp_path / "first/record.json").train.epochs["best"].scores["accuracy"]
    assert row["before"] == pytest.approx(said)
    assert row["after"] <= 1


def test_an_incomplete_chain_is_refused(copy, tiny):
    (copy / "first/s0/record.json").unlink()
    with pytest.raises(UserError, match=r"first/s0/record.json: not a complete run record"):
        rows_of(copy, tiny)


def test_the_program_and_the_tables(chain, tiny, tmp_path, monkeypatch):
    out = tmp_path / "forgetting/second/s0.csv"
    words = ["--run", "second/s0", "--runs", chain, "--model", tiny / "model", "--out", out]
    words += ["--earlier", "first/s0", "--tokens", tiny / "tokens"]
    monkeypatch.setattr(sys, "argv", ["forgetting", *map(str, words)])
    runpy.run_path("scripts/forgetting.py", run_name="__main__")
    spec = read_record(chain / "second/s0/record.json").spec
    runs = (Run(id="first/s0", label="", spec=FIRST), Run(id="second/s0", label="", spec=spec))
    study = Study(name="s", question="?", runs=runs)
    table = forgetting(study, tmp_path / "forgetting")
    assert table.run.tolist() == ["second/s0"] * 2
    assert table.task.tolist() == ["other"] * 2
    rows = summary(study, pd.DataFrame(), table)
    assert rows.metric.tolist() == ["accuracy"]
    (shown,) = forgetting_table(rows).to_dict("records")
    assert (shown["after"], shown["earlier task"], shown["n"]) == ("other", FIRST.task.name, 1)
    assert shown["before, %"] == f"{100 * rows.before[0]:.1f}"
    empty = forgetting(study, tmp_path / "nothing")
    assert empty.empty
    assert summary(study, pd.DataFrame(), empty).empty
