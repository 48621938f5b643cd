"""Estimates by a table of speeds: the nearest row, scaled as it is said, and one clear error."""

import re
from pathlib import Path

import pandas as pd
import pytest

from loraudit.base.errors import UserError
from loraudit.base.yaml_file import read_yaml
from loraudit.tools import gpu_speeds, plan
from loraudit.tools.gpu_speeds import COLUMNS, read_speeds, speed
from tiny import changed, make_spec, tiny_entry

ROW = {
    **{"gpu": "h100", "device": "NVIDIA H100", "torch": "2", "model": "roberta-base"},
    **{"method": "lora-r8-q+v", "batch": 16, "tokens": 128, "precision": "fp32"},
    **{"compute": "fast", "tool": "loraudit", "runs_per_gpu": 1, "steps_per_second": 10.0},
    **{"q1": 9.0, "q3": 11.0, "peak_mib": 3000.0},
}
BASE = tiny_entry().model_copy(update={"name": "roberta-base"})
SPEC = make_spec(
    model=BASE, rank=8, targets=("q", "v"), global_batch=16, micro_batch=16, max_length=128
)


def table(tmp_path, monkeypatch, *changes: dict) -> None:
    path = tmp_path / "gpu.csv"
    pd.DataFrame([ROW, *({**ROW, **change} for change in changes)]).to_csv(path, index=False)
    monkeypatch.setattr(gpu_speeds, "TABLE", path)


def test_the_row_of_the_run_itself_is_taken_as_it_is(tmp_path, monkeypatch):
    table(
        tmp_path,
        monkeypatch,
        {"precision": "bf16", "steps_per_second": 30.0},
        {"tokens": 512, "steps_per_second": 3.0},
        {"model": "roberta-large", "steps_per_second": 4.0},
        {"tool": "peft+trainer", "steps_per_second": 7.0},
        {"compute": "compiled", "steps_per_second": 20.0},
        {"gpu": "l4", "steps_per_second": 1.0},
    )
    found = speed(SPEC, read_speeds("H100"))
    assert found.step_seconds == pytest.approx(1 / 10)
    assert found.evaluate_row_seconds == pytest.approx(1 / 10 / 16 / 3)
    assert found.device_mib == 3000
    assert found.source == "measured on h100: roberta-base lora-r8-q+v 16x128 fp32"
    assert speed(SPEC, read_speeds("l4")).step_seconds == 1
    assert speed(changed(SPEC, precision="bf16"), read_speeds("h100")).step_seconds == 1 / 30


@pytest.mark.parametrize(("batch", "length"), [(32, 128), (8, 512), (64, 100)])
def test_a_larger_step_is_scaled_by_its_tokens_and_that_is_said(
    tmp_path, monkeypatch, batch, length
):
    table(tmp_path, monkeypatch)
    spec = changed(SPEC, global_batch=batch, micro_batch=batch, max_length=length)
    factor = batch * length / (16 * 128)
    found = speed(spec, read_speeds("h100"))
    assert found.step_seconds == pytest.approx(factor / 10)
    assert found.source.startswith("arithmetic from h100: ")
    assert f"times {factor:.3g} for the step's tokens" in found.source


@pytest.mark.parametrize(("length", "seconds"), [(32, 0.1), (192, 0.15), (384, 0.5), (1024, 1.0)])
def test_the_closest_size_is_taken_and_a_smaller_step_is_no_faster(
    tmp_path, monkeypatch, length, seconds
):
    table(tmp_path, monkeypatch, {"tokens": 512, "steps_per_second": 2.0})
    found = speed(SPEC.model_copy(update={"max_length": length}), read_speeds("h100"))
    assert found.step_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("length", [33, 48, 64, 100])
@pytest.mark.parametrize("batch", [12, 16])
def test_no_step_counts_as_slower_than_a_larger_one_that_was_measured(
    tmp_path, monkeypatch, batch, length
):
    """A small step waits for Python, so that its row, scaled by tokens, says too much."""
    table(
        tmp_path,
        monkeypatch,
        {"tokens": 32, "steps_per_second": 10.5},
        {"tokens": 512, "precision": "bf16", "steps_per_second": 100.0},
        {"tokens": 512, "runs_per_gpu": 2, "steps_per_second": 100.0},
    )
    spec = changed(SPEC, global_batch=batch, micro_batch=batch, max_length=length)
    assert speed(spec, read_speeds("h100")).step_seconds <= 1 / 10


def test_of_two_sizes_as_close_the_larger_is_taken(tmp_path, monkeypatch):
    table(tmp_path, monkeypatch, {"tokens": 512, "steps_per_second": 4.0})
    found = speed(changed(SPEC, max_length=256), read_speeds("h100"))
    assert "16x512" in found.source and found.step_seconds == pytest.approx(1 / 4)


def test_a_step_that_was_measured_is_as_measured(tmp_path, monkeypatch):
    """Though a larger one was faster, by chance."""
    table(tmp_path, monkeypatch, {"tokens": 512, "steps_per_second": 11.0})
    found = speed(SPEC, read_speeds("h100"))
    assert found.step_seconds == pytest.approx(1 / 10) and found.source.startswith("measured")


def test_what_is_not_the_runs_own_is_said(tmp_path, monkeypatch):
    table(tmp_path, monkeypatch, {"method": "full", "steps_per_second": 5.0})
    other = changed(SPEC, targets=("q",), model=tiny_entry())
    found = speed(other, read_speeds("h100"))
    assert (
        "model roberta-base for tiny" in found.source
        and "lora-r8-q+v for lora-r8-q" in found.source
    )
    full = speed(make_spec(method="full", model=BASE, max_length=128), read_speeds("h100"))
    assert full.source.startswith("arithmetic from h100: roberta-base full ")


@pytest.mark.parametrize("each", [1, 2, 4])
def test_runs_that_share_a_gpu_are_each_as_fast_as_their_share(tmp_path, monkeypatch, each):
    table(tmp_path, monkeypatch, {"runs_per_gpu": 2, "steps_per_second": 14.0})
    total = {1: 10.0, 2: 14.0, 4: 14.0}[each]  # four: as much together as two
    assert speed(SPEC, read_speeds("h100"), each).step_seconds == pytest.approx(each / total)


def test_gpus_that_share_a_step_each_do_their_part(tmp_path, monkeypatch):
    table(tmp_path, monkeypatch)
    spec = changed(SPEC, global_batch=256, micro_batch=16)
    one, four = (speed(spec, read_speeds("h100"), processes=count) for count in (1, 4))
    assert four.step_seconds == pytest.approx(one.step_seconds / 4)
    assert four.evaluate_row_seconds == pytest.approx(one.evaluate_row_seconds / 4)


@pytest.mark.parametrize(("precision", "slower"), [("fp32", 67 / 19.5), ("bf16", 989.4 / 312)])
def test_a_gpu_that_nobody_measured_is_slower_by_its_peak_and_that_is_said(
    tmp_path, monkeypatch, precision, slower
):
    table(tmp_path, monkeypatch, {"precision": "bf16", "steps_per_second": 30.0})
    spec = changed(SPEC, precision=precision)
    measured, other = (speed(spec, read_speeds(name)) for name in ("h100", "A100"))
    assert other.step_seconds == pytest.approx(slower * measured.step_seconds)
    assert other.device_mib == measured.device_mib
    assert other.source.startswith("arithmetic from h100: ")
    assert other.source.endswith(f", times {slower:.3g} for a100's peak")
    assert measured.source.startswith("measured on h100: ")


def test_no_gpu_is_faster_than_what_was_measured(tmp_path, monkeypatch):
    """The other one's fp32 peak is higher; a short step waits for Python all the same."""
    table(tmp_path, monkeypatch)
    peaks = read_yaml(gpu_speeds.PEAKS)
    assert peaks["rtx4090"]["fp32"] > peaks["h100"]["fp32"]
    assert speed(SPEC, read_speeds("rtx4090")).step_seconds == pytest.approx(1 / 10)
    for gpu in peaks.values():
        assert gpu["source"] and gpu["confidence"] in ("quoted", "memory")
    assert peaks.keys() - {"h100"} <= set(re.findall(r"\w+", Path("docs/gpu_box.md").read_text()))


def test_an_unknown_gpu_or_no_table_is_one_sentence(tmp_path, monkeypatch):
    table(tmp_path, monkeypatch, {"gpu": "l4"})
    with pytest.raises(
        UserError,
        match=r"gpu: 'h10' is not known; did you mean 'h100'\? \(legal: a100, h100, l4, rtx4090",
    ):
        read_speeds("h10")
    pd.DataFrame([ROW]).drop(columns="tokens").to_csv(tmp_path / "gpu.csv", index=False)
    with pytest.raises(UserError, match="no column tokens"):
        read_speeds("h100")
    monkeypatch.setattr(gpu_speeds, "TABLE", tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"no table of measured speeds .*python benchmarks/gpu\.py"):
        read_speeds("h100")
    assert set(ROW) == set(COLUMNS)


PAGE = re.findall(
    r"^\| ([\w-]+) \| .* \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$",
    Path("docs/gpu_box.md").read_text(),
    re.M,
)


@pytest.mark.parametrize("row", PAGE, ids=lambda row: row[0])
def test_the_page_of_the_lab_gpu_counts_what_the_studies_have(row):
    name, runs, steps, hours = row
    config = plan.paths.configuration() | {"study": name}
    study = plan.load_configured(config)
    counted = sum(plan._steps(run.spec) for run in study.all_runs)
    assert (int(runs), steps) == (len(study.all_runs), f"{counted:,}")
    machine = plan._machine(study, plan.Config(**config), 8, "h100", 1)
    speeds = read_speeds("h100")
    seconds = sum(plan.gpu_estimate(run.spec, speeds, machine).seconds for run in study.all_runs)
    assert hours == f"{seconds / 3600:,.0f}"


STEPS = {"poster": 815_430, "paper-table2": 36_550_750}


@pytest.mark.parametrize("name", STEPS)
def test_a_shipped_study_is_planned_for_a_gpu_that_is_not_here(tmp_path, monkeypatch, name):
    table(tmp_path, monkeypatch)
    study = plan.load_configured(plan.paths.configuration() | {"study": name})
    runs = {run.id for run in study.all_runs}
    jobs = plan.Jobs({"train": len(runs), "crosscheck": 0}, runs, set())
    monkeypatch.setattr(plan, "dry_run", lambda given: jobs)
    config = plan.paths.configuration() | {"study": name}
    one, two = (plan.plan(config, [], 2, gpu="h100", gpus=count) for count in (1, 2))
    assert one["steps"] == STEPS[name]
    assert one["gpu_seconds"] == pytest.approx(one["wall_seconds"])
    assert one["gpu_seconds"] >= one["steps"] / 10  # no faster than the table's row
    assert two["wall_seconds"] < 0.6 * one["wall_seconds"] and two["at once"] == 2
    text = "\n".join(plan.sentences(one))
    assert f"optimizer steps: {one['steps']:,}" in text and "with 1 GPU (h100)" in text
    assert "arithmetic from speeds measured on another machine" in text
    assert one["jobs_without_estimate"] == 0


def test_a_run_that_recomputes_takes_a_forward_pass_more_a_step_and_that_is_said(
    tmp_path, monkeypatch
):
    table(tmp_path, monkeypatch)
    plain, again = (
        speed(changed(SPEC, recompute=how), read_speeds("h100")) for how in ("none", "blocks")
    )
    assert again.step_seconds == pytest.approx(plain.step_seconds * 4 / 3)
    assert again.evaluate_row_seconds == plain.evaluate_row_seconds
    assert again.device_mib == plain.device_mib
    assert "recompute: blocks (memory: as without)" in again.source
    assert "recompute" not in plain.source
