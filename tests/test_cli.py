"""The command line: exit codes, one line per error, and what each command writes and says."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from conftest import make_spec, tiny_config, tiny_model
from loraudit import inject
from loraudit.cli import app
from loraudit.train import train

SPEC = make_spec(epochs=1, rank=2)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="loraudit")


def error_of(*arguments) -> str:
    """Call a command that must fail with one line on stderr and exit code 1."""
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def bin_file(tmp_path):
    """Write an adapter with loralib's names, and the folder of its base model's config."""
    model = inject.apply(tiny_model("roberta"), make_spec(rank=2))
    file = tmp_path / "adapter.bin"
    torch.save(inject.adapter_state(model, ("classifier",)), file)
    tiny_config("roberta").save_pretrained(tmp_path / "base")
    return file


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(SPEC, tiny / "tokens", tiny / "model", out)
    return out


@pytest.mark.parametrize("command", [[], ["import"], ["export"], ["crosscheck"]])
def test_help_says_how(command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: loraudit" in result.stdout
    shown = " ".join(result.stdout.split())
    assert not command or f"loraudit {command[0]} " in shown.partition("Example")[2]


def test_help_is_quick_and_the_program_is_installed():
    """Nothing heavy is imported before a command runs, and pyproject.toml names the program."""
    heavy = (
        "import sys, loraudit.cli; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    scripts = tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"loraudit": "loraudit.cli:app"}


@pytest.mark.parametrize(
    "arguments",
    [["imprt"], ["import", "x", "--aplha", "8"], ["export"], ["import", "--alpha", "x"]],
)
def test_misuse_is_exit_code_2(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


def test_import_says_what_it_found(bin_file, tmp_path):
    out = tmp_path / "out"
    options = ["--model", "roberta-base", "--base", tmp_path / "base", "--out", out]
    result = call("import", bin_file, "--alpha", 16, *options)
    assert result.exit_code == 0, result.stderr
    for shown in ("adapted matrices", "q+v", "file bytes", "16 (as told)", "wrote"):
        assert shown in result.stdout
    assert json.loads((out / "adapter_config.json").read_text())["lora_alpha"] == 16
    inject.load(tiny_model("roberta"), out)


def test_import_refuses_with_one_line(bin_file, tmp_path):
    options = ["--out", tmp_path / "out", "--base", tmp_path / "base"]
    named = [*options, "--model", "roberta-base"]
    assert "--alpha" in error_of("import", bin_file, *named)
    assert "did you mean 'roberta-base'" in error_of(
        "import", bin_file, *options, "--model", "roberta-bas"
    )
    assert "no file" in error_of("import", tmp_path / "x.bin", "--alpha", 8, *named)
    cut = tmp_path / "cut.bin"
    cut.write_bytes(bin_file.read_bytes()[:500])
    assert "truncated or damaged" in error_of("import", cut, "--alpha", 8, *named)
    lacking = ["--model", "roberta-base", "--out", tmp_path / "out", "--base", tmp_path]
    assert "no config.json" in error_of("import", bin_file, "--alpha", 8, *lacking)
    assert not (tmp_path / "out").exists()


def test_export_writes_a_folder(run, tmp_path):
    result = call(
        "export", run, "--out", tmp_path / "out", "--licence", "mit", "--base-model", "me/tiny"
    )
    assert result.exit_code == 0, result.stderr
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "base_model: me/tiny" in card
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/tiny"
    inject.load(tiny_model(), tmp_path / "out")


def test_export_refuses_with_one_line(run, tmp_path):
    assert "no finished run" in error_of("export", tmp_path, "--out", tmp_path / "out")
    assert "exists already" in error_of("export", run, "--out", tmp_path)


def test_crosscheck_of_a_run(run, tiny):
    folders = ["--tokens", tiny / "tokens", "--model", tiny / "model"]
    result = call("crosscheck", run / "spec.json", *folders)
    assert result.exit_code == 0, result.stderr
    assert "PEFT's read by ours" in result.stdout
    assert "False" not in result.stdout


def test_crosscheck_out_of_tolerance_is_exit_code_1(run, tiny, monkeypatch):
    from loraudit import crosscheck

    monkeypatch.setitem(crosscheck.TOLERANCE["float32"], "trajectory", -1.0)
    folders = ["--tokens", tiny / "tokens", "--model", tiny / "model"]
    result = call("crosscheck", run / "spec.json", *folders)
    assert result.exit_code == 1
    assert "optimizer steps (float32, PEFT) differs by" in result.stderr
    assert "optimizer steps" in result.stdout  # the table is shown all the same


def test_crosscheck_refuses_with_one_line(run, tmp_path):
    assert "give either" in error_of("crosscheck")
    assert "give either" in error_of("crosscheck", "--study", "quickstart")
    assert "give either" in error_of("crosscheck", run / "spec.json", "--cell", "x")
    assert "did you mean" in error_of("crosscheck", "--study", "quickstrt", "--cell", "x")
    near = ["--study", "quickstart", "--cell", "snippets/minilm/r8-q+k"]
    assert "did you mean 'snippets/minilm/r8-q+v'" in error_of("crosscheck", *near)
    assert "no JSON file" in error_of("crosscheck", tmp_path / "spec.json")
    (tmp_path / "spec.json").write_text("[]")
    assert "expected keys and values" in error_of("crosscheck", tmp_path / "spec.json")
    nothing = ["--tokens", tmp_path, "--model", tmp_path]
    assert "nothing fetched" in error_of("crosscheck", run / "spec.json", *nothing)


def test_crosscheck_needs_an_adapter(run, tmp_path):
    spec = json.loads((run / "spec.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "method": "full"}))
    assert "'full' has no adapter" in error_of("crosscheck", tmp_path / "spec.json")
