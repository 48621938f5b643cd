"""`loraudit judge`: the poster's answer as `published` gives it, and all or nothing is written."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from loraudit.base.files import read_json
from loraudit.report.judged import FILES
from loraudit.studies.reference import select
from loraudit.studies.score_files import legal_names
from loraudit.tools.cli import app
from loraudit.tools.judge import called, read

HEAD = "task,model,method,rank,targets,seed,metric,score,epoch_choice"
ROWS = [f"mrpc,roberta-base,lora,8,q+v,{seed},accuracy,{89 + seed / 2},best" for seed in range(4)]


def call(*arguments):
    return CliRunner().invoke(app, ["judge", *map(str, arguments)], prog_name="loraudit")


def error_of(*arguments, code=1) -> str:
    result = call(*arguments)
    assert result.exit_code == code
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    return result.stderr


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("\n".join([HEAD, *ROWS]))
    return path


def poster(path):
    """Write the poster's counts of right rows as percentages, a row per seed and epoch."""
    head = "task,model,method,rank,targets,alpha,seed,metric,epoch,score"
    lines = [
        f"{n.task},{n.model},lora,8,q+v,{n.alpha},{seed},accuracy,{epoch},{score!r}"
        for n in select(("poster2025.seeds",))
        for seed, epochs in n.seeds.items()
        for epoch, score in enumerate(epochs, 1)
    ]
    path.write_text("\n".join([head, *lines]))
    return path


def test_the_posters_scores_are_judged_as_the_published_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = ("--against", "hu2022.table2", "--protocol", "poster-as-run")
    result = call(poster(tmp_path / "poster.csv"), *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = pd.read_csv(tmp_path / "out/verdicts.csv")
    known = pd.read_csv("results/committed/published/verdicts.csv")
    is_open = "different, by how much is open"
    assert found.verdict.tolist() == [is_open, "not reproduced", is_open]
    columns = [name for name in known if name not in ("ours", "settings")]
    pd.testing.assert_frame_equal(found[columns], known[columns])
    assert result.stdout.count("not reproduced (another protocol)") == 1


def test_the_page_is_whole_and_says_the_verdicts(table, tmp_path):
    out = tmp_path / "out"
    result = call(table, "--against", "hu2022.table2", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    page = (out / "report.html").read_text()
    for part in (
        "results.csv beside Hu et al. 2022",
        "LoRA: Low-Rank Adaptation",
        "89.50",
        "data:image",
    ):
        assert part in page
    assert 'src="http' not in page
    again = call(table, "--against", "hu2022.table2", "--out", out, "--json")
    assert json.loads(again.stdout)["rows"][0]["task"] == "mrpc"


def test_the_folder_is_called_as_the_file_without_its_ending(table, tmp_path, monkeypatch):
    """A folder called results.csv was taken for a table."""
    monkeypatch.chdir(tmp_path)
    result = call("results.csv", "--against", "hu2022.table2")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in Path("judged/results").iterdir()) == sorted(FILES)
    Path("runs.v2").mkdir()
    assert called([Path("runs.v2")], short=True) == "runs.v2"  # a folder's name has no ending
    assert called([table, Path("runs.v2")], short=True) == "results and 1 more"
    assert called([table]) == "results.csv"


def test_nothing_is_written_where_nothing_can_be_said(table, tmp_path):
    out = tmp_path / "out"
    assert "did you mean 'hu2022.table2'" in error_of(
        table, "--against", "hu2022.tabel2", "--out", out
    )
    table.write_text(table.read_text() + "\nmrpc,roberta-base,lora,8,q+v,9,accuracy,0.9,best")
    assert "mixed units" in error_of(table, "--against", "hu2022.table2", "--out", out)
    assert not out.exists()


def test_a_folder_with_other_files_is_left_alone(table, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    said = error_of(table, "--against", "hu2022.table2", "--out", tmp_path / "mine")
    assert "holds other files (thesis.txt)" in said
    assert (tmp_path / "mine/thesis.txt").read_text() == "x"


def test_wrong_options_are_named(table, tmp_path):
    against = ("--against", "hu2022.table2", "--out", tmp_path / "out")
    assert "set: 'taks' is not known; did you mean 'task'" in error_of(
        table, *against, "--set", "taks=mrpc", code=2
    )
    assert "set: model: expected model=VALUE, got no value" in error_of(
        table, *against, "--set", "model=", code=2
    )
    for value in ("[q", "2020-13-45"):
        assert f"set: 'targets={value}': the value can't be read as YAML: " in error_of(
            table, *against, "--set", f"targets={value}", code=2
        )
    assert "reading: 'se' is not known" in error_of(table, *against, "--reading", "se")
    assert "protocol: 'poster-as-rum' is not known; did you mean 'poster-as-run'" in error_of(
        table, *against, "--protocol", "poster-as-rum"
    )
    assert "there is no such file or folder" in error_of(tmp_path / "none.csv", *against)
    assert "this file is named twice" in error_of(table, table, *against)


def test_logs_of_several_seeds_are_judged_together(tmp_path):
    for seed, score in ((1, 0.893), (2, 0.899), (3, 0.896)):
        folder = tmp_path / "runs" / f"seed{seed}"
        folder.mkdir(parents=True)
        values = ((1.0, 0.8), (2.0, score))
        logs = [{"epoch": e, "eval_accuracy": v, "step": 10 * e} for e, v in values]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    cell = {"task": "mrpc", "model": "roberta-base", "method": "lora", "rank": 8, "targets": "q+v"}
    given = [part for key, value in cell.items() for part in ("--set", f"{key}={value}")]
    result = call(
        tmp_path / "runs", "--against", "hu2022.table2", "--out", tmp_path / "out", *given, "--json"
    )
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["n"], row["mean"]) == (3, pytest.approx(0.896))
    assert read_json(tmp_path / "runs/seed1/trainer_state.json")  # read, and left as it was


def test_a_folder_above_the_given_one_tells_no_seed(tmp_path):
    """In /mnt/s3 all runs were of seed 3."""
    for run in ("a", "b"):
        folder = tmp_path / "s3/runs" / run
        folder.mkdir(parents=True)
        logs = [{"epoch": e, "eval_accuracy": 0.8 + e / 100, "step": e} for e in (1, 2)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    cell = {"task": "mrpc", "model": "roberta-base", "method": "lora", "rank": 8, "targets": "q+v"}
    legal = legal_names(select(("hu2022.table2",)))
    for files in (["runs"], ["runs/a", "runs/b"]):
        scores = read([tmp_path / "s3" / file for file in files], cell, legal)
        assert [score.seed for score in scores] == [0, 0, 1, 1]


def test_a_log_without_a_seed_in_its_name_gets_one_that_no_other_has(tmp_path):
    for run in ("a", "b-seed0", "c-seed1"):
        (tmp_path / run).mkdir()
        logs = [{"epoch": 1, "eval_accuracy": 0.8, "step": 1}]
        (tmp_path / run / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    cell = {"task": "mrpc", "model": "roberta-base", "method": "lora", "rank": 8, "targets": "q+v"}
    folders = [tmp_path / run for run in ("b-seed0", "a", "c-seed1")]
    scores = read(folders, cell, legal_names(select(("hu2022.table2",))))
    assert [score.seed for score in scores] == [0, 2, 1]


def test_judging_imports_no_torch(table, tmp_path):
    code = (
        "import sys; from loraudit.tools.judge import Asked, judge; from pathlib import Path; "
        f"judge(Asked([Path({str(table)!r})], ['hu2022.table2'], {{}}, None, None, 'sd', "
        f"Path({str(tmp_path / 'out')!r}))); "
        "print({'torch', 'transformers', 'peft'} & {*sys.modules} or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"
