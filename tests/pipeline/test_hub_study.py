"""The poster's study from the hub's real layout to the report: what a first run on a GPU box does.

With tiny models, one seed and 64 rows. The rules' programs run in this process.
"""

import contextlib
import copy
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

from conftest import run_study
from fake_hub import fake_hub, point_at
from hub_layout import repositories
from loraudit.base.files import folder_fingerprint, read_json
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.record import read_record

pytestmark = pytest.mark.slow

CUT = {"seed": 42, "train_rows": 64, "validation_rows": 32, "epochs": 1}
OTHERS = """
question: Do MNLI's start, BERT and DistilBERT work from the hub, too?
defaults: {method: lora, rank: 2, targets: q+v, max_length: 64, learning_rate: 1.0e-3}
grid:
  - {model: roberta-base, task: mnli}
  - {model: roberta-base, task: mrpc, warm_start: {task: mnli, tensors: adapter}}
  - {model: [bert-base, distilbert-base], task: sst2}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Give the folder with both finished studies, and what was asked of the hub."""
    root = tmp_path_factory.mktemp("hub-study")
    for name in ("config", "profiles", "scripts"):
        shutil.copytree(name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    poster = copy.deepcopy(read_yaml("config/studies/poster.yaml"))  # that one is remembered
    studies = {"poster": poster, "others": yaml.safe_load(OTHERS)}
    found = repositories(root / "hub")
    with pytest.MonkeyPatch.context() as patch, fake_hub(found) as hub, contextlib.chdir(root):
        point_at(patch, hub.url, root / "cache")
        for name, study in studies.items():
            study["defaults"] |= CUT
            Path(f"config/studies/{name}.yaml").write_text(yaml.safe_dump(study))
            run_study(name, checks=int(name == "poster"), products_too=name == "poster")
    return root, hub.seen


def records(root: Path, study: str) -> dict:
    paths = sorted((root / "results" / study / "runs").rglob("record.json"))
    return {str(path.parent.relative_to(root / "results" / study / "runs")): read_record(path)
            for path in paths}  # fmt: skip


def test_the_posters_study_has_its_report_and_its_verdicts(done):
    root, _ = done
    found = records(root, "poster")
    assert {run.split("/")[0] for run in found} == {"mrpc", "qqp", "sst2"}
    assert len(found) == 6
    assert all(record.train.rows == {"train": 64, "validation": 32} for record in found.values())
    page = (root / "results/poster/report.html").read_text()
    assert "roberta-base" in page
    verdicts = pd.read_csv(root / "results/poster/tables/verdicts.csv")
    assert {*verdicts.verdict} == {"not comparable"}  # 64 rows are a subset
    assert {"hu2022.table2", "poster2025.table1"} <= {*verdicts.published}


def test_the_hubs_files_are_fetched_once_and_no_others(done):
    _, seen = done
    files = {
        path.split("/resolve/")[1].partition("/")[2]: count
        for path, count in seen.items()
        if path.startswith("GET ") and "/resolve/" in path
    }
    assert not [name for name in files if re.search(r"coreml|\.bin$|\.h5$|\.msgpack$|\.ot$", name)]
    assert not [name for name in files if "test" in name or name.startswith("ax/")]
    assert files["sst2/train-00000-of-00001.parquet"] == 1
    assert files["mnli/validation_mismatched-00000-of-00001.parquet"] == 1


@pytest.mark.parametrize(
    ("model", "encoder", "vocabulary"),
    [
        ("roberta-base", "roberta.", "merges.txt"),
        ("bert-base", "bert.", "vocab.txt"),
        ("distilbert-base", "distilbert.", "vocab.txt"),
    ],
)
def test_a_model_arrives_with_its_weights_and_tokenizer(model, encoder, vocabulary, done):
    """The masked-language head stays behind, and what was called gamma counts as a weight."""
    root, _ = done
    folder = root / "resources/models" / model
    assert {vocabulary, "config.json", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    weights = load_file(folder / "model.safetensors")
    assert [name for name in weights if not name.startswith(encoder)]
    tokens = AutoTokenizer.from_pretrained(folder)("a superb film", "dull")
    assert len(tokens["input_ids"]) > 6
    (run,) = [path for path in (root / "results").rglob(f"*/{model}/*/s42/adapter")][:1]
    assert [name for name in load_file(run / "adapter_model.safetensors") if "lora_B" in name]


def test_a_run_starts_from_the_adapter_of_mnli(done):
    root, _ = done
    found = {run.split("/")[0]: record for run, record in records(root, "others").items()}
    assert found["mnli"].train.rows == {"train": 64, "validation": 32, "mismatched": 32}
    (adapter,) = (root / "results/others/runs/mnli").rglob("s42/adapter")
    assert found["mrpc"].environment["started_from"] == folder_fingerprint(adapter)


def test_the_adapter_on_the_hubs_weights_agrees_with_pefts(done):
    root, _ = done
    (check,) = (root / "results/poster/crosscheck").rglob("*.json")
    assert {row["against"] for row in read_json(check)} >= {"PEFT", "loralib"}
