"""A copy of the project with a tiny model, a tiny task and small studies, and Snakemake in it."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import yaml

from tiny import TASK, save_hub_folder, save_tiny_model
from warm_python import programs

ROOT = Path(__file__).parents[1]
COPIED = ("Snakefile", "workflow", "scripts", "config", "profiles", "src")
STUDY = """
question: Does the pipeline run?
defaults: {task: words, model: tiny, epochs: 2, global_batch: 16, learning_rate: 1.0e-2,
           rank: 2, max_length: 64}
per_method: {head: {learning_rate: 1.0e-2}, full: {learning_rate: 1.0e-2}}
grid:
  - {method: [lora, peft], targets: q+v}
  - {method: [head, full]}
"""


def make_project(root: Path, studies: dict[str, str]) -> Path:
    """Copy the project to `root` and add a tiny model, two tiny tasks and studies of them."""
    root.mkdir(exist_ok=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, root / name, ignore=ignore)
        else:
            shutil.copy(source, root / name)
    save_tiny_model(root / "tiny-model")
    save_hub_folder(root / "hub")
    words = {**TASK, "source": {"folder": "hub", "config": "sst2"}}
    add_entries(root / "config/tasks.yaml", {"words": words, "letters": words})
    models = root / "config/models.yaml"
    table = yaml.safe_load(models.read_text())
    table["models"]["tiny"] = {"family": "bert", "source": {"folder": "tiny-model"}}
    models.write_text(yaml.safe_dump(table))
    for name, text in studies.items():
        (root / f"config/studies/{name}.yaml").write_text(text)
    return root


def add_entries(path: Path, entries: dict) -> None:
    """Append entries to a YAML table, as a user would."""
    path.write_text(path.read_text() + yaml.safe_dump(entries))


def environment(project, *, warm: bool = False) -> dict[str, str]:
    """Put the copy's code and this interpreter's programs first; the hub is a closed port.

    Args:
        project: the copy's folder.
        warm: let Python and Snakemake start as warm_python.py says.
    """
    folders = [Path(sys.executable).parent, os.environ["PATH"]]
    path = os.pathsep.join(map(str, [*([programs()] if warm else []), *folders]))
    return {
        **{
            key: value
            for key, value in os.environ.items()
            if not key.startswith("HF_") and key != "COLUMNS"  # lines are not folded
        },
        "PATH": path,
        "PYTHONPATH": str(project / "src"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(project / "hf"),
    }


def command(project, *arguments: str, ok: bool | None = True, warm: bool = True) -> str:
    """Run a program in the copy; returns all it printed, and checks whether it succeeded."""
    done = subprocess.run(
        arguments,
        cwd=project,
        env=environment(project, warm=warm),
        timeout=900,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert ok is None or (done.returncode == 0) == ok, done.stdout
    return done.stdout


def snakemake(project, *arguments: str, config: str = "study=small", **options: bool | None) -> str:
    words = ["snakemake", "--cores", "2", *arguments, "--config", *config.split()]
    return command(project, *words, **options)


@contextmanager
def edited(path: Path, old: str, new: str):
    """Replace text in a file for the length of a block."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    try:
        yield
    finally:
        path.write_text(text)
