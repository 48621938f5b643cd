"""What `verify` says of a study that is sound, and of each fault planted in a copy of it."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, write_json
from loraudit.data.batches import held_out
from loraudit.studies.record import read_record, write_record
from loraudit.tools import verify
from loraudit.tools.remade import Finding, same_text
from tiny import changed, make_spec, rechosen

STUDY = Path("results/small")
RUN = STUDY / "runs/words/tiny/lora-r2-q+v/s0"
CHECKS = STUDY / "crosscheck/words/tiny/r2-q+v.json"
VALIDATION = Path("resources/tasks/words/validation.parquet")


def found(**options) -> list[Finding]:
    return list(verify.verify(STUDY, **options))


def problems(**options) -> list[Finding]:
    return [finding for finding in found(**options) if finding.kind == "problem"]


def digits(path: Path, number: int) -> list[int]:
    """Return the places of digits in a file, at most `number`, evenly chosen."""
    places = [match.start() for match in re.finditer(r"\d", path.read_text())]
    return places[:: max(1, len(places) // number)]


def change_digit(path: Path, place: int) -> str:
    text = path.read_text()
    other = str((int(text[place]) + 1) % 10)
    path.write_text(text[:place] + other + text[place + 1 :])
    return text


def test_a_sound_study_has_no_finding(project):
    assert found() == []


@pytest.mark.parametrize(
    ("here", "name"),
    [("results", "small"), ("results/small", "."), ("figures", "../results/small")],
)
def test_a_study_is_found_sound_from_any_folder(project, monkeypatch, here, name):
    """The figures are looked for beside the results, wherever these are named from."""
    monkeypatch.chdir(here)
    findings = list(verify.verify(Path(name), slow=False))
    assert [finding for finding in findings if finding.kind == "problem"] == []
    root = verify._root(Path(name))
    assert root.samefile(project) and not root.is_absolute()


def test_what_killed_processes_left_is_noted(project):
    left = [RUN / ".adapter.a1b2c3d4", Path("resources/tokens/words/.tiny-32.a1b2c3d4")]
    for path in left:
        path.mkdir()
    notes = found(slow=False)
    assert {(note.kind, note.artefact) for note in notes} == {("note", str(p)) for p in left}
    assert all("left by a killed process" in note.text for note in notes)


@pytest.mark.parametrize("number", range(4))
def test_a_record_edited_by_one_digit_is_caught(project, number):
    """Wherever it is: scores, times, versions, hashes, the spec."""
    path = RUN / "record.json"
    place = digits(path, 4)[number]
    change_digit(path, place)
    assert str(path) in {finding.artefact for finding in problems(slow=False)}


def test_digits_all_over_a_record_are_checked(project):
    """By the checks of its run alone."""
    path = RUN / "record.json"
    study = verify.read_study(STUDY / "study.json")
    run = next(run for run in study.runs if RUN.match(f"*{run.id}"))
    for place in digits(path, 60):
        text = change_digit(path, place)
        assert any(f.kind == "problem" for f in verify.check_run(RUN, run, None)), text[
            place - 30 :
        ]
        path.write_text(text)


CSV = ["tidy/runs.csv", "tidy/history.csv", "tidy/twins.csv", "tidy/crosscheck.csv"]
CSV += ["tables/summary.csv", "tables/pairs.csv", "tables/cost.csv", "tidy/spectra.csv"]


def test_a_table_edited_by_one_digit_is_caught(project):
    for name in CSV:
        path = STUDY / name
        start = path.read_text().index("\n")
        places = [place for place in digits(path, 20) if place > start]
        leading = path.read_text().rindex(".") - 1  # what is computed is compared to nine digits
        computed = "spectra" in name or name.startswith("tables")
        change_digit(path, leading if computed else places[len(places) // 2])
    for name in ("summary", "cost"):
        path = STUDY / f"tables/{name}.md"
        change_digit(path, digits(path, 1)[0])
    figures = sorted(Path("figures/small").glob("*.csv"))
    for path in figures:
        change_digit(path, digits(path, 1)[0])
    change_digit(STUDY / "tidy/records.jsonl", digits(STUDY / "tidy/records.jsonl", 1)[0])
    caught = [finding.artefact for finding in problems()]
    names = [*CSV, "tables/summary.md", "tables/cost.md", "tidy/records.jsonl"]
    assert sorted(caught) == sorted([*map(str, figures), *(str(STUDY / name) for name in names)])


def test_a_changed_cell_is_named(project):
    path = STUDY / "tables/summary.csv"
    table = pd.read_csv(path)
    first = str(table.best_mean[0])
    path.write_text(path.read_text().replace(first, "0.123456789"))
    texts = [f.text for f in problems() if f.artefact == str(path)]
    wanted = f"row 1, best_mean: '0.123456789', the records give '{first}'"
    assert len(texts) == 1 and wanted in texts[0]


def other_history():
    path = RUN / "history.csv"
    change_digit(path, path.read_text().rindex("0."))


def other_prediction():
    table = pd.read_parquet(RUN / "predictions.parquet")
    table.loc[0, "prediction"] = 1 - table.loc[0, "prediction"]
    table.to_parquet(RUN / "predictions.parquet", index=False)
    reseal()


def other_labels():
    table = pd.read_parquet(RUN / "predictions.parquet")
    table.label = 1 - table.label
    table.to_parquet(RUN / "predictions.parquet", index=False)
    reseal()


def forged_score():
    record = read_record(RUN / "record.json")
    best = record.train.epochs["best"].scores
    train = rechosen(record.train, "best", scores={**best, "accuracy": best["accuracy"] + 1 / 128})
    write_record(RUN, record.model_copy(update={"train": train}))


def reseal(**changes):
    """Do what a forger would: make a seal that fits."""
    record = read_record(RUN / "record.json")
    write_record(RUN, record.model_copy(update=changes))


def other_epoch():
    record = read_record(RUN / "record.json")
    epoch = 3 - record.train.epochs["best"].epoch
    reseal(train=rechosen(record.train, "best", epoch=epoch))


def other_steps():
    record = read_record(RUN / "record.json")
    reseal(train=record.train.model_copy(update={"steps": 13}))


def damaged_adapter():
    path = RUN / "adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    reseal()


def infinite_adapter():
    path = RUN / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[:] = np.inf
    save_file(tensors, path)


def added_file():
    (RUN / "adapter/notes.txt").write_text("x")


def other_spec_file():
    path = RUN / "spec.json"
    write_json(path, read_json(path) | {"seed": 5})


def other_spec():
    record = read_record(RUN / "record.json")
    spec = changed(record.spec, **{"epochs": 3})
    write_json(RUN / "spec.json", spec.model_dump(mode="json"))
    reseal(spec=spec, spec_sha256=verify.digest(spec))


def other_data():
    path = Path("resources/tasks/words/train.parquet")
    pd.read_parquet(path)[:-1].to_parquet(path)


def other_model():
    path = Path("resources/models/tiny/model.safetensors")
    path.write_bytes(path.read_bytes() + b" ")


def other_question():
    path = Path("config/studies/small.yaml")
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 4"))


def other_crosscheck():
    rows = read_json(CHECKS)
    rows[0]["difference"] = 1.0
    write_json(CHECKS, rows)


def spoil(path: Path):
    """Leave something that is no file of its kind."""
    path.write_bytes(b"\xff\xfe{")


def unsealed():
    content = read_json(RUN / "record.json")
    write_json(RUN / "record.json", {**content, "files": None, "record_sha256": None})


FAULTS = [
    (other_history, "history.csv", "changed after the run"),
    (other_history, "history.csv", "the record says"),
    (other_prediction, "predictions.parquet", "a prediction is not what its logits say"),
    (other_labels, "predictions.parquet", "labels of validation are not the task's"),
    (forged_score, "record.json", "best accuracy is .*, the predictions give"),
    (other_epoch, "history.csv", "its best epoch is"),
    (other_steps, "history.csv", "12 steps, the record says 13"),
    (damaged_adapter, "adapter/adapter_model.safetensors", "unreadable"),
    (infinite_adapter, "adapter/adapter_model.safetensors", "unreadable: .* not finite"),
    (added_file, "adapter/notes.txt", "not of this run"),
    (lambda: (RUN / "history.csv").unlink(), "history.csv", "missing, but the record has its hash"),
    (lambda: (RUN / "record.json").unlink(), "record.json", "missing: the run is not finished"),
    (lambda: (RUN / "record.json").write_text("{"), "record.json", "not a complete run record"),
    (other_spec_file, "spec.json", "not the spec of record.json"),
    (other_spec, "record.json", r"stale: made from another spec .*\(epochs\)"),
    (lambda: reseal(code_sha256="0" * 64), "record.json", "stale: made by other code"),
    (other_data, "record.json", "train of .*words is not the data"),
    (other_model, "record.json", "is not the model that it was made from"),
    (other_question, "study.json", "study's file asks for today: .* the specs of 6 runs"),
    (other_crosscheck, "crosscheck/words/tiny/r2-q+v.json", "'ok' does not fit"),
    (lambda: (STUDY / "tables/cost.csv").unlink(), "tables/cost.csv", "missing"),
    (lambda: Path("figures/small/cost.png").unlink(), "cost.png", "missing"),
    (lambda: spoil(STUDY / "study.json"), "study.json", "can't be read"),
    (lambda: spoil(RUN / "record.json"), "record.json", "not a complete run record"),
    (lambda: spoil(RUN / "history.csv"), "history.csv", "can't be read"),
    (lambda: spoil(RUN / "predictions.parquet"), "predictions.parquet", "can't be read"),
    (lambda: spoil(VALIDATION), "words/validation.parquet", "can't be read"),
    (lambda: spoil(CHECKS), "r2-q+v.json", "can't be read"),
    (lambda: CHECKS.write_text("[{}]"), "r2-q+v.json", "can't be read: KeyError 'check'"),
    (lambda: spoil(STUDY / "tidy/runs.parquet"), "tidy/runs.parquet", "can't be read"),
    (lambda: spoil(Path("config/studies/small.yaml")), "study.json", "not compared with today's"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "artefact", "text"), FAULTS)
def test_each_fault_has_its_own_message(project, plant, artefact, text):
    plant()
    hits = [f for f in problems(slow=False) if f.artefact.endswith(artefact)]
    assert any(re.search(text, finding.text) for finding in hits), hits


def test_a_file_that_can_not_be_read_does_not_stop_the_others(project, monkeypatch):
    """Neither the other runs nor the other studies; as for a user who may not read it."""
    whole = verify._sha256

    def refusing(path):
        if Path(path).name == "validation.parquet":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(verify, "_sha256", refusing)
    spoil(RUN / "record.json")
    change_digit(STUDY / "tables/cost.md", digits(STUDY / "tables/cost.md", 1)[0])
    shutil.copytree("results/small", "results/again")
    spoil(Path("results/again/study.json"))
    artefacts = [f.artefact for f in problems(slow=False)]
    assert artefacts.count(str(RUN / "record.json")) == 1
    assert artefacts.count("resources/tasks/words/validation.parquet") == 5
    assert [f.artefact for f in verify.verify(Path("results/again"))] == [
        "results/again/study.json"
    ]


def test_an_edited_picture_or_page_is_found(project):
    picture, page = Path("figures/small/cost.svg"), STUDY / "report.html"
    picture.write_text(picture.read_text().replace("</svg>", "<rect/></svg>"))
    page.write_text(page.read_text().replace("words", "wards", 1))
    shutil.copyfile("figures/small/spectra.png", "figures/small/cost.png")
    caught = {f.artefact for f in problems()}
    assert caught == {str(picture), str(page), "figures/small/cost.png"}
    assert problems(slow=False) == []


def test_the_commands_on_a_page_may_ask_for_the_study_in_any_way(project):
    page = STUDY / "report.html"
    page.write_text(
        page.read_text().replace("--config study=small", "--config study=my&#39;s.yaml")
    )
    assert verify._asked_with(page) == "study=my's.yaml"
    assert found() == []


def test_the_published_numbers_are_compared_again(tmp_path, monkeypatch):
    shutil.copytree("config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    missing = {f.artefact for f in verify.verify_published()}
    assert len(missing) == 6 and "results/published/verdicts.md" in missing
    verify.published_product(Path("results"), Path("figures")).make()
    assert list(verify.verify_published()) == []
    path = Path("results/published/verdicts.csv")
    change_digit(path, digits(path, 1)[0])
    assert [f.artefact for f in verify.verify_published()] == [str(path)]


def test_an_unsealed_record_is_a_note_and_its_scores_are_recomputed(project):
    unsealed()
    assert [f.text for f in found(slow=False) if f.kind == "note"] == [
        "unsealed (older than seals): edits show in scores only"
    ]
    content = read_json(RUN / "record.json")
    content["train"]["epochs"]["best"]["scores"]["accuracy"] += 1 / 128
    write_json(RUN / "record.json", content)
    assert any("the predictions give" in f.text for f in problems(slow=False))


def test_what_is_not_here_is_said_and_no_fault(project):
    shutil.rmtree("resources")
    findings = found()
    texts = {finding.text for finding in findings}
    assert {finding.kind for finding in findings} == {"note"}
    assert any("data were not checked" in text for text in texts)
    assert any("weights were not checked" in text for text in texts)
    assert any(text.startswith("not made again: no tiny") for text in texts)


def test_a_study_file_elsewhere_is_given_by_its_configuration(project):
    Path("config/studies/small.yaml").rename("small.yaml")
    assert {f.text for f in found(slow=False)} == {
        "no file of config/studies has this name: not compared with today's settings"
    }
    config = verify.paths.settings("quickstart") | {"study": "small.yaml"}
    assert found(config=config, slow=False) == []
    with pytest.raises(UserError, match="it asks for study 'quickstart'"):
        found(config=config | {"study": "quickstart"})


def test_records_may_not_be_swapped(project):
    """A record of another run of the study is sealed, and yet not this run's."""
    shutil.copytree(RUN.parent / "s1", RUN, dirs_exist_ok=True)
    assert any(re.search(r"stale: .*\(seed\)", f.text) for f in problems(slow=False))


def test_findings_are_plain_values(project):
    assert json.loads(json.dumps([finding._asdict() for finding in found(slow=False)])) == []


COMPUTED = ["tidy/subspaces.csv", "tables/summary.csv", "figures/small/hero.csv"]


@pytest.mark.parametrize("name", COMPUTED)
def test_another_cpus_rounding_is_forgiven_in_what_is_computed(name):
    found, wanted = "layer,phi\n1,0.12345678901234561\n", "layer,phi\n1,0.12345678901234567\n"
    assert not list(same_text(Path(name), found, wanted))
    changed = found.replace("0.1234", "0.1235")
    assert len(list(same_text(Path(name), changed, wanted))) == 1
    copied = list(same_text(Path("tidy/runs.csv"), found, wanted))
    assert len(copied) == 1  # no arithmetic there


@pytest.mark.parametrize(("change", "problem"), [(1e-15, False), (1e-6, True)])
def test_another_cpus_rounding_of_a_score_is_no_problem(project, change, problem):
    record = read_record(RUN / "record.json")
    train = record.train
    best = train.epochs["best"].scores
    rescored = rechosen(train, "best", scores={**best, "f1": best["f1"] + change})
    write_record(RUN, record.model_copy(update={"train": rescored}))
    texts = [f.text for f in problems(slow=False) if f.artefact.endswith("record.json")]
    assert any("best f1" in text and "the predictions give" in text for text in texts) == problem


def test_the_held_out_rows_are_drawn_again(tmp_path):
    spec = make_spec(selection_rows=10)
    table = pd.DataFrame({"row": range(100, 160), "label": [0, 1] * 30})
    table.to_parquet(tmp_path / "train.parquet")
    case = verify.Case(tmp_path, SimpleNamespace(spec=spec))
    rows = table.iloc[held_out(table.label.to_numpy(), spec)].assign(split="selection", epoch=1)
    assert list(verify._check_split_labels(case, tmp_path / "train.parquet", rows)) == []
    other = table[~table.row.isin(rows.row) & (table.label == rows.label.iloc[0])].row.iloc[0]
    rows.loc[rows.index[0], "row"] = other
    (finding,) = verify._check_split_labels(case, tmp_path / "train.parquet", rows)
    assert "its selection rows are not those that the task's name draws" in finding.text
