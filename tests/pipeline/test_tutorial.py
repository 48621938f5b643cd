"""The tutorial's commands, run as they stand, with a tiny model in the place of MiniLM."""

import re
from pathlib import Path

import pytest
import yaml
from test_pipeline import project  # noqa: F401

from tiny_project import command

pytestmark = pytest.mark.pipeline

BLOCK = re.compile(r"^```(sh|yaml)\n(.*?)^```", re.M | re.S)
PLACE = re.compile(r"# (add to )?(\S+)\n")
TUTORIAL = (Path(__file__).parents[2] / "docs/tutorial.md").read_text()


def test_the_tutorial_runs_as_printed(project):  # noqa: F811
    models = project / "config/models.yaml"
    table = yaml.safe_load(models.read_text())
    table["models"]["minilm"] = {"family": "bert", "source": {"folder": "tiny-model"}}
    models.write_text(yaml.safe_dump(table))
    settings = project / "config/defaults.yaml"  # the tiny model reads 66 tokens, MiniLM 512
    settings.write_text(settings.read_text().replace("max_length: 128", "max_length: 64"))
    printed = ""
    for language, text in BLOCK.findall(TUTORIAL):
        if language == "sh":
            printed += command(project, "bash", "-euc", text)
        else:
            adds, file = PLACE.match(text).groups()
            before = (project / file).read_text() if adds else ""
            (project / file).write_text(before + text)
    assert "train: 160 rows" in printed
    assert "6 runs (2 lora, 2 peft, 2 head), 1 cross-checks" in printed
    assert (project / "results/tickets/report.html").is_file()
    assert (project / "tickets-adapter/adapter_config.json").is_file()
