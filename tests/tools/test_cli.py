"""The command line: exit codes, one line per error, and what each command writes and says."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from loraudit.adapters import inject
from loraudit.report import model_card
from loraudit.tools import plan
from loraudit.tools.cli import EXIT_CODES, app
from loraudit.tools.plan import Jobs
from loraudit.training.run import train
from tiny import make_spec, tiny_config, tiny_model

SPEC = make_spec(epochs=1, rank=2)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="loraudit")


def error_of(*arguments, code: int = 1) -> str:
    """Call a command that must fail with one line on stderr and an exit code."""
    result = call(*arguments)
    assert result.exit_code == code
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


COMMANDS = ["plan", "status", "show", "compare", "claims", "verify", "judge", "bundle", "merge"]
COMMANDS += ["import", "export", "crosscheck", "add-task", "add-model"]


def test_the_page_of_the_command_line_is_its_help():
    """If not: python scripts/cli_docs.py."""
    page = runpy.run_path("scripts/cli_docs.py")["page"]()
    assert Path("docs/cli.md").read_text() == page
    assert re.findall(r"^## `loraudit (.*)`$", page, re.M) == COMMANDS
    assert EXIT_CODES in page


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_says_how(command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: loraudit" in result.stdout
    shown = " ".join(result.stdout.split())
    assert not command or f"loraudit {command[0]} " in shown.partition("Example")[2]


DOES = re.compile(
    r"(Add|Collect|Compare|Copy|Cross-check|Draw|Expand|Fetch|Judge|Launch|List|Make|Measure|Plan|"
    r"Recompute|Say|Set|Show|Start|Submit|Tokenise|Train|Turn|Write)\b"
)
"""How a sentence that says what a program does begins."""

PROGRAMS = [path for name in ("scripts", "benchmarks") for path in Path(name).glob("*.py")]


@pytest.mark.parametrize("path", PROGRAMS, ids=str)
def test_a_programs_help_begins_with_a_sentence_that_says_what_it_does(path):
    text = path.read_text()
    if "__main__" in text:
        first = ast.get_docstring(ast.parse(text)).partition("\n\n")[0]
        assert DOES.match(first) and first.endswith((".", ":")), first


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_begins_with_a_sentence_that_says_what_the_command_does(command):
    shown = [line.strip() for line in call(*command, "--help").stdout.splitlines()]
    usage = next(number for number, line in enumerate(shown) if line.startswith("Usage"))
    text = " ".join(" ".join(shown[usage + 1 :]).split())
    assert DOES.match(text) and re.match(r"[A-Z][^.]*(\.\w[^.]*)*\.(\s|$)", text), text


TRAINING = {"torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "matplotlib"}
"""Libraries that take seconds to import and that no command needs which only reads results."""

STATISTICS = {"scipy", "statsmodels", "sklearn"}


def imported(*arguments) -> set[str]:
    """Return the top modules, and scipy.stats, if a command has imported them when it ends."""
    program = (
        "import sys\n"
        "from loraudit.tools.cli import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "finally:\n"
        "    tops = {name.partition('.')[0] for name in sys.modules}\n"
        "    print(*tops, *({'scipy.stats'} & sys.modules.keys()), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_commands_that_read_results_import_nothing_that_is_slow(run):
    """Each of them answers in about two seconds, --help at once."""
    helped = {*TRAINING, *STATISTICS, "numpy", "pandas", "yaml"}
    assert not imported("--help") & helped
    assert not imported("compare", "--help") & helped
    assert not imported("show", run) & (TRAINING | STATISTICS)
    slow = {"sklearn", "statsmodels", "scipy.stats"}
    assert not imported("compare", run, run, "--resamples", 100) & (TRAINING | slow)


def test_the_program_is_installed():
    scripts = tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"loraudit": "loraudit.tools.cli:app"}


@pytest.mark.parametrize(
    "arguments",
    [["imprt"], ["import", "x", "--aplha", "8"], ["export"], ["import", "--alpha", "x"]],
)
def test_misuse_is_exit_code_2(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["crosscheck"], "give either a spec.json or both --study and --cell"),
        (["crosscheck", "--study", "quickstart"], "give either"),
        (["crosscheck", "spec.json", "--cell", "x"], "give either"),
        (["plan", "quickstart"], "config: 'quickstart': expected KEY=VALUE, such as task=mrpc"),
        (["plan", "--config", "stdy=small"], "did you mean 'study'"),
        (["verify", "stdy=small"], "did you mean 'study'"),
        (["verify", "small", "--config", "task=mrpc", "glue"], "config: 'glue': expected KEY"),
        (["add-task", "--folder", "data"], "--name is missing"),
        (["add-task", "--name", "x", "--wheel", "y==1"], "--wheel needs --sha256"),
        (["add-task", "--name", "x", "--folder", "y", "--hub", "z"], "give one of --wheel,"),
        (["add-task", "--name", "x", "--folder", "y", "--text", "t", "--rating", "2"], "rating: "),
        (["add-model", "--name", "x", "--folder", "y", "--module", "q"], "module: 'q': expected"),
    ],
)
def test_options_that_do_not_fit_each_other_are_exit_code_2(arguments, message):
    error = error_of(*arguments, code=2)
    assert message in error
    assert error.endswith(f"; see `loraudit {arguments[0]} --help`\n")


def test_a_missing_file_of_config_says_where_to_run(monkeypatch, tmp_path):
    """Where neither the working folder nor the package's repository has one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loraudit.base.shipped.ROOT", tmp_path / "none")
    options = ["--model", "roberta-base", "--alpha", 1, "--out", "out"]
    assert "run this in the repository's folder" in error_of("import", "x.bin", *options)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_pipe_that_is_closed_early_is_no_error(run, more):
    program = "from loraudit.tools.cli import app; app()"
    command = ["bash", "-o", "pipefail", "-c", '"$0" -c "$@" | true', sys.executable, program]
    for arguments in (["--help"], ["show", str(run), *more]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_import_says_what_it_found(bin_file, tmp_path):
    out = tmp_path / "out"
    options = ["--model", "roberta-base", "--base", tmp_path / "base", "--out", out]
    result = call("import", bin_file, "--alpha", 16, *options)
    assert result.exit_code == 0, result.stderr
    for shown in ("adapted matrices", "q+v", "file bytes", "16 (as given)", "wrote"):
        assert shown in result.stdout
    assert json.loads((out / "adapter_config.json").read_text())["lora_alpha"] == 16
    inject.load(tiny_model("roberta"), out)


def test_import_refuses_with_one_line(bin_file, tmp_path):
    options = ["--out", tmp_path / "out", "--base", tmp_path / "base"]
    named = [*options, "--model", "roberta-base"]
    assert "--alpha" in error_of("import", bin_file, *named, code=2)
    assert "a number above 0" in error_of("import", bin_file, "--alpha", -8, *named, code=2)
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
    names = {"README.md", "spec.json", "adapter_config.json", "adapter_model.safetensors"}
    assert files == names and "note:" not in result.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "base_model: me/tiny" in card
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/tiny"
    inject.load(tiny_model(), tmp_path / "out")


def test_export_of_an_adapter_of_a_quantised_base_says_so(tmp_path, monkeypatch):
    record = SimpleNamespace(spec=make_spec(base_bits=4, base_group=16))
    monkeypatch.setattr(model_card, "export_run", lambda *_: record)
    result = call("export", tmp_path, "--out", tmp_path / "out")
    assert "note: the adapter is right only on its base in 4 bits" in result.stdout


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
    from loraudit.crosscheck import whole_model

    monkeypatch.setitem(whole_model.TOLERANCE["float32"], "trajectory", -1.0)
    folders = ["--tokens", tiny / "tokens", "--model", tiny / "model"]
    result = call("crosscheck", run / "spec.json", *folders)
    assert result.exit_code == 1
    assert "optimizer steps (float32, PEFT) differs by" in result.stderr
    assert "optimizer steps" in result.stdout  # the table is shown all the same


def test_crosscheck_refuses_with_one_line(run, tmp_path):
    assert "did you mean" in error_of("crosscheck", "--study", "quickstrt", "--cell", "x")
    near = ["--study", "quickstart", "--cell", "snippets/minilm/r8-q+k"]
    assert "did you mean 'snippets/minilm/r8-q+v'" in error_of("crosscheck", *near)
    assert "can't be read as JSON" in error_of("crosscheck", tmp_path / "spec.json")
    (tmp_path / "spec.json").write_text("[]")
    assert "expected keys and values" in error_of("crosscheck", tmp_path / "spec.json")
    nothing = ["--tokens", tmp_path, "--model", tmp_path]
    assert "nothing fetched" in error_of("crosscheck", run / "spec.json", *nothing)


def test_crosscheck_needs_an_adapter(run, tmp_path):
    spec = json.loads((run / "spec.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "method": "full", "adapter": None}))
    assert "'full' has no cross-check" in error_of("crosscheck", tmp_path / "spec.json")


def test_the_version_is_the_packages():
    assert call("--version").stdout == f"loraudit {version('loraudit')}\n"


def test_status_show_and_compare_print_tables_or_json(project):
    run, other = "words/tiny/lora-r2-q+v/s0", "small/words/tiny/head/s0"
    for arguments, shown in (
        (["status", "small"], "6 of 6 runs done"),
        (["show", run], "confusion on validation"),
        (["show", f"results/small/runs/{run}"], "confusion on validation"),
        (["compare", run, other], "exact McNemar p"),
        (["compare", "small", "small"], "6 finished runs in common"),
    ):
        result = call(*arguments)
        assert result.exit_code == 0, result.stderr
        assert shown in result.stdout
        assert json.loads(call(*arguments, "--json").stdout)


def test_names_that_are_not_here_are_one_line(project):
    run = "words/tiny/lora-r2-q+v/s0"
    assert "did you mean 'small'" in error_of("status", "smal")
    assert "did you mean 'words/tiny/head/s0'" in error_of("show", "words/tiny/haed/s0")
    assert "(record.json is missing)" in error_of("show", "results/small")
    assert "give two runs, or two studies" in error_of("compare", "small", run, code=2)
    assert "give two runs, or two studies" in error_of("compare", run, "results/small", code=2)
    assert "did you mean 'small'" in error_of("compare", "small", "smal")
    assert "did you mean 'small'" in error_of("verify", "smll")
    shutil.copytree("results/small", "results/twice")
    assert "say which: small/words" in error_of("show", run)
    shutil.rmtree("results")
    assert "no finished run" in error_of("show", run)
    assert "no study has results here" in error_of("verify")


def test_a_study_may_be_named_by_its_folder(project):
    """Below results/, or for a comparison anywhere."""
    shutil.copytree("results/small", "elsewhere/results/other")
    result = call("compare", "results/small/", "elsewhere/results/other")
    assert "left: results/small; right: elsewhere/results/other; 6 finished" in result.stdout
    assert "6 of 6 runs done" in call("status", "results/small").stdout
    assert "small: no problem found" in call("verify", "results/small/", "--quick").stdout
    assert "6 runs" in call("bundle", "./results/small", "--out", "small.zip").stdout


def test_verify_takes_keys_as_plan_does(project):
    Path("config/studies/small.yaml").rename("mine.yaml")
    Path("results/small").rename("results/mine")
    study = Path("results/mine/study.json")
    study.write_text(study.read_text().replace('"name": "small"', '"name": "mine"'))
    for arguments in (
        ["mine", "--config", "study=mine.yaml", "threads=2"],
        ["--config", "study=mine.yaml", "threads=2"],
        ["--config", "threads=2", "study=mine.yaml"],
    ):
        result = call("verify", "--quick", *arguments)
        assert "not compared with today's settings" not in result.stdout, result.stderr
        assert "\nmine: " in f"\n{result.stdout}"


def test_verify_says_what_differs_by_its_exit_code(project):
    assert "small: no problem found, 0 notes" in call("verify").stdout
    path = Path("results/small/tables/summary.csv")
    path.write_text(path.read_text().replace("words", "wards"))
    result = call("verify", "small", "--quick")
    assert result.exit_code == 1
    problem = f"problem: {path}: row 1, task: 'wards', the records give 'words'"
    assert problem in " ".join(result.stdout.split())
    findings = json.loads(call("verify", "small", "--quick", "--json").stdout)["small"]
    assert [finding["artefact"] for finding in findings] == [str(path)]


def test_bundle_writes_a_zip(project, tmp_path):
    result = call("bundle", "small", "--out", tmp_path / "small.zip")
    assert result.exit_code == 0, result.stderr
    assert "6 runs" in result.stdout and (tmp_path / "small.zip").is_file()


def test_plan_counts_and_times_the_runs(project, monkeypatch):
    """Snakemake's own answer is left to the pipeline tests."""
    study = plan.load_configured(plan.paths.settings("small"))
    given = []
    jobs = Jobs({"train": 6}, {run.id for run in study.runs}, set())
    monkeypatch.setattr(plan, "dry_run", lambda config: given.append(config) or jobs)
    result = call("plan", "--config", "study=small", "task=words", "--no-measure", "--cores", 2)
    assert result.exit_code == 0, result.stderr
    assert given == [["study=small", "task=words"]]
    assert "runs: 6, done 0, to do 6" in result.stdout


def test_names_are_completed(project):
    """As the shell's script asks for them."""
    asked = {"_LORAUDIT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    for words, wanted in (
        ("loraudit status sm", {"small"}),
        ("loraudit show small/words/tiny/head", {f"small/words/tiny/head/s{n}" for n in (0, 1)}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from loraudit.tools.cli import app; app(prog_name='loraudit')"],
            env={**os.environ, **asked, "COMP_WORDS": words},
            capture_output=True,
            text=True,
        )
        assert set(done.stdout.split()) == wanted, done.stderr
