"""A study whose runs are trained in packs, by Snakemake."""

import pandas as pd
import pytest

from loraudit.base.files import read_json
from tiny_project import command, make_project, snakemake

pytestmark = pytest.mark.pipeline

STUDY = """
question: Can runs share a batch?
defaults: {task: words, model: tiny, epochs: 1, global_batch: 16, micro_batch: 8,
           learning_rate: 1.0e-2, max_length: 64, train_rows: 32}
per_method: {head: {learning_rate: 1.0e-2}}
grid:
  - {method: lora, rank: [1, 2], targets: q+v, seed: [0, 1]}
  - {method: head}
"""
RUNS = [f"words/tiny/lora-r{rank}-q+v/s{seed}" for rank in (1, 2) for seed in (0, 1)]


def test_packed_runs_have_their_own_folders_records_and_logs(tmp_path):
    project = make_project(tmp_path / "project", {"small": STUDY})
    config = "study=small runs_per_batch=3"
    records = [f"results/small/runs/{run}/record.json" for run in RUNS]
    refused = snakemake(project, "-n", config="study=small runs_per_batch=3 launch=cpu2", ok=False)
    assert "a pack is trained by one" in refused
    planned = command(project, "loraudit", "plan", "--no-measure", "--config", *config.split())
    assert "what packing saves is not measured" in " ".join(planned.split())
    said = snakemake(project, "results/small/study.json", *records, config=config)
    assert "train 3 runs of words tiny together" in said
    assert "note: 3 of 5 runs are trained in packs of up to 3" in said
    folders = [project / "results/small/runs" / run for run in RUNS]
    sizes = []
    for run, folder in zip(RUNS, folders, strict=True):
        record = read_json(folder / "record.json")
        sizes.append(len(record["environment"].get("packed", [])))
        table = pd.read_parquet(folder / "predictions.parquet")
        last = table[table.epoch == 1]
        accuracy = record["train"]["epochs"]["last"]["scores"]["accuracy"]
        assert (last.label == last.prediction).mean() == pytest.approx(accuracy)
        assert f"r{record['spec']['adapter']['rank']}" in run
        assert run.endswith(f"s{record['spec']['seed']}")
        cell, _, seed = run.rpartition("/")
        assert (project / f"logs/small/train/{cell}-{seed}.log").read_text()
        assert sorted(path.name for path in folder.iterdir()) == [
            *("adapter", "history.csv", "predictions.parquet", "record.json", "spec.json")
        ]
    assert sizes == [3, 3, 3, 0]
    found = command(project, "loraudit", "verify", "small", ok=None)
    assert not [line for line in found.splitlines() if "lora-r" in line and "runs/" in line]
    again = snakemake(project, "-n", *records, config=config)
    assert "Nothing to be done" in again
