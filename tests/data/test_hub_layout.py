"""The folder that config.yaml describes is one that a task is read from."""

import re
from pathlib import Path

import yaml

from loraudit.data.fetch_task import fetch_task
from tiny import make_task, save_hub_folder

GLUE = Path("config/config.yaml").read_text().partition("# glue:")[2].partition("glue: hub")[0]


def test_the_readme_of_config_yaml_is_enough(tmp_path):
    head = re.search(r"`(configs: .*?)`", re.sub(r"\n# ", " ", GLUE))[1]
    names = [entry["config_name"] for entry in yaml.safe_load(head)["configs"]]
    assert names == ["mrpc"]
    save_hub_folder(tmp_path / "glue", config="mrpc")
    (tmp_path / "glue" / "README.md").write_text(f"---\n{head}\n---\n")
    task = make_task(source={"folder": str(tmp_path / "glue"), "config": "mrpc"})
    splits = fetch_task(task, tmp_path / "out")["splits"]
    assert {name: split["rows"] for name, split in splits.items()} == {
        "train": 256,
        "validation": 128,
    }
