"""Fixtures that all tests share; what they are made of is in tiny.py."""

import contextlib
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker, on every machine

import hypothesis
import pytest
import torch
import yaml
from beartype import beartype
from filelock import FileLock
from jaxtyping import jaxtyped

from gpu_record import pytest_addoption, pytest_terminal_summary  # noqa: F401
from loraudit.adapters.fast_lora import FastLoRALinear
from loraudit.adapters.first_token import FirstTokenAttention, FirstTokenBlock
from loraudit.adapters.lora import LoRALinear
from loraudit.base.gpu_slots import FOLDER
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.training_code import training_code
from tiny import make_task, save_hub_folder, save_tiny_model

# How long an example takes says nothing of the code where other work runs beside it.
hypothesis.settings.register_profile("any machine", deadline=None, max_examples=150)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("any machine")


def pytest_collection_modifyitems(items):
    """Count a test of the finished study as slow, and put files of long tests first.

    Making the study takes half a minute. Workers take files in this order: if the longest came
    last, one worker would be alone with it.
    """
    ranks: dict[Path, list[bool]] = {}
    for item in items:
        if "finished" in item.fixturenames:
            item.add_marker("slow")
        rank = [bool(item.get_closest_marker(name)) for name in ("pipeline", "slow")]
        ranks[item.path] = max(ranks.get(item.path, rank), rank)
    items.sort(key=lambda item: ranks[item.path], reverse=True)


@pytest.fixture(autouse=True, scope="session")
def own_gpu_locks(tmp_path_factory):
    """Keep the tests' locks of GPUs apart from those of the user's runs and of other workers."""
    os.environ[FOLDER] = str(tmp_path_factory.mktemp("locks"))


@pytest.fixture(autouse=True)
def shapes_checked(request, monkeypatch):
    """Check the shapes in the annotations of the layers at every call."""
    if request.node.get_closest_marker("shapes_unchecked"):
        return
    for owner, name in (
        (LoRALinear, "forward"),
        (LoRALinear, "delta_weight"),
        (FastLoRALinear, "forward"),
        (FirstTokenAttention, "forward"),
        (FirstTokenBlock, "forward"),
    ):
        checked = jaxtyped(getattr(owner, name), typechecker=beartype)
        monkeypatch.setattr(owner, name, checked)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Give the folders of a fetched tiny task, a fetched tiny model, and the tokens."""
    from loraudit.data.fetch_task import fetch_task
    from loraudit.data.tokenise import tokenise

    root = tmp_path_factory.mktemp("tiny")
    save_hub_folder(root / "hub")
    entry = make_task(source={"folder": str(root / "hub"), "config": "sst2"})
    fetch_task(entry, root / "task")
    save_tiny_model(root / "model")
    tokenise(root / "task", root / "model", 64, root / "tokens")
    return root


@pytest.fixture
def batch():
    """Give a batch for tiny models: token ids (4, 9) with padding in the last two rows."""
    torch.manual_seed(1)
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[2:, 6:] = 0
    return {"input_ids": torch.randint(4, 60, (4, 9)), "attention_mask": mask}


SMALL = """
question: Do the commands find what a study wrote?
claims: [own.lora-beats-head, hu2022.table2-is-reached]
defaults: {task: words, model: tiny, epochs: 2, global_batch: 16, learning_rate: 1.0e-2,
           rank: 2, max_length: 64, train_rows: 96}
per_method: {head: {learning_rate: 1.0e-2}}
grid:
  - {method: [lora, peft], targets: q+v, seed: [0, 1]}
  - {method: head, seed: [0, 1]}
"""


CLAIM = """
title: A claim of one's own
authors: A
year: 2026
url: https://example.org
claims:
  lora-beats-head:
    statement: LoRA beats the head alone.
    where: section 1
    source: text
    confidence: seen
    seen: all of it
    scope: {models: [roberta-base], tasks: [mrpc]}
    test: better
    quantity: score
    left: {method: lora}
    right: {method: head}
    margin: 0
    unit: points
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Give a project's folder with the finished study "small", made by the scripts of the rules.

    The first worker that needs it makes it, for all. A test that edits it takes a copy (`project`).
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent  # the workers' folders lie in the session's
    root = session / "finished"
    with FileLock(f"{root}.lock"):
        if not root.exists():
            _make_finished(tmp_path_factory.mktemp("making")).rename(root)
    return root


def _make_finished(root: Path) -> Path:
    """Make the project and its study in an empty folder."""
    shutil.copytree("config", root / "config")
    shutil.copytree("profiles", root / "profiles")
    shutil.copytree("scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    save_tiny_model(root / "tiny-model")
    save_hub_folder(root / "hub")
    words = {"name": "words", "source": {"folder": "hub", "config": "sst2"}}
    entry = make_task(**words).model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    tasks, models = root / "config/tasks.yaml", root / "config/models.yaml"
    tasks.write_text(tasks.read_text() + yaml.safe_dump({"words": entry}))
    tiny = "  tiny: {family: bert, source: {folder: tiny-model}}\n"
    models.write_text(models.read_text() + tiny)
    (root / "config/studies/small.yaml").write_text(SMALL)
    (root / "config/claims/own.yaml").write_text(CLAIM)
    with contextlib.chdir(root):
        run_study("small")
    return root


def run_study(name: str, checks: int | None = None, products_too: bool = True) -> None:
    """Do what the DAG does for a study of the working folder, in this process.

    Of its cross-checks, which take longest, the first `checks` are made. Without `products_too` it
    ends with them: no tables, figures and report are made.
    """
    from loraudit.report.products import Places, products
    from loraudit.studies.expand import load_configured
    from loraudit.studies.paths import RESOURCES, tokens_folder
    from loraudit.studies.training_code import training_code

    config = {**read_yaml("config/config.yaml"), "study": name}
    study = load_configured(config)
    specs = [run.spec for run in study.runs]
    for task in {spec.task.name: spec.task for spec in specs}.values():
        out = RESOURCES / "tasks" / task.name
        script("fetch_task", entry=task.model_dump_json(), out=out)
    for model in {spec.model.name: spec.model for spec in specs}.values():
        out = RESOURCES / "models" / model.name
        script("fetch_model", entry=model.model_dump_json(), out=out)
    for out, spec in {tokens_folder(spec): spec for spec in specs}.items():
        data = RESOURCES / "tasks" / spec.task.name
        made = {"data": data, "model": _model(spec), "out": out}
        script("tokenise", **{"max-length": spec.max_length}, **made)
    results = f"results/{study.name}"
    script("study", config=json.dumps(config), out=f"{results}/study.json")
    for run in sorted(study.runs, key=lambda run: run.spec.warm_start is not None):
        options = {"spec": run.spec.model_dump_json(), "code": training_code(run.spec.method)}
        options |= {"tokens": tokens_folder(run.spec), "model": _model(run.spec)}
        if start := run.spec.warm_start:
            options["start"] = f"{results}/runs/{start.run}"
        script("train", out=f"{results}/runs/{run.id}", **options)
    cells = dict([*study.cells().items()][:checks])
    for cell, spec in cells.items():
        options = {"tokens": tokens_folder(spec), "model": _model(spec)}
        out = f"{results}/crosscheck/{cell}.json"
        script("crosscheck", spec=spec.model_dump_json(), out=out, **options)
    places = Places(Path(results), Path(results), Path("figures") / study.name)
    for product in products(study, places, cells) if products_too else ():
        product.make()


def _model(spec) -> Path:
    return Path("resources/models", spec.model.name)


def script(name: str, **options: object) -> None:
    """Run a program of scripts/ in this process; a list gives an option several values."""
    arguments = []
    for key, value in options.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{key}", *map(str, values)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(f"scripts/{name}.py", run_name="__main__")


PICTURES: dict[tuple[str, str, str, tuple[str, ...]], dict[str, bytes]] = {}
"""The pictures that this process drew for copies of the study, by what they were drawn from."""


@pytest.fixture
def drawn_once(monkeypatch):
    """Draw a picture of the same rows once, as equal rows give equal bytes (test_figure_style)."""
    from loraudit.analysis.cells import cell_name
    from loraudit.report import figures

    draw = figures._draw

    def remembered(figure, rows, note, cells, stem):
        key = figure.name, f"{rows.dtypes}\n{rows.to_csv()}", note, (*map(cell_name, cells),)
        files = {suffix: stem.with_suffix(suffix) for suffix in (".svg", ".png")}
        if key not in PICTURES:
            draw(figure, rows, note, cells, stem)
            PICTURES[key] = {suffix: path.read_bytes() for suffix, path in files.items()}
        for suffix, path in files.items():
            path.write_bytes(PICTURES[key][suffix])

    monkeypatch.setattr(figures, "_draw", remembered)


@pytest.fixture
def project(finished, drawn_once, tmp_path, monkeypatch):
    """Give a copy of the finished project that the test may edit: working folder and repository."""
    root = tmp_path / "project"
    shutil.copytree(finished, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr("loraudit.base.shipped.ROOT", root)
    training_code.cache_clear()  # it read the code of another copy
    yield root
    training_code.cache_clear()
