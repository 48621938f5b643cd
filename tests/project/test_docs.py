"""What the README and docs show is what the committed files hold, and links lead somewhere."""

import functools
import importlib.util
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from PIL import Image
from statsmodels.stats.power import TTestIndPower

from committed import COMMITTED, of_today
from loraudit.analysis.cells import CHOICES
from loraudit.analysis.cost import cost
from loraudit.analysis.judging import published_verdicts
from loraudit.analysis.statistics import aggregate
from loraudit.analysis.tidy_files import read_table
from loraudit.base.errors import UserError
from loraudit.base.files import sha256
from loraudit.report.blocks import fill_blocks
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figure_style import save
from loraudit.report.figures import draw, undrawn
from loraudit.report.forest_figures import published
from loraudit.report.formatting import interval, markdown, points
from loraudit.report.looks import study_looks
from loraudit.report.page_tables import processors
from loraudit.report.tables import published_table, summary_table
from loraudit.report.thinning import note_of, write_note
from loraudit.studies.expand import load_study
from loraudit.studies.reference import select
from loraudit.tools import plan
from tiny import save_tiny_model

CHANGED_RESULTS = ("shortcuts",)
"""Studies that ran while committed results, not code, were changed in the same clone."""
BENCH = Path("figures/committed/bench")
STUDIES = sorted(path.parent for path in COMMITTED.glob("*/runs.csv"))


TODAYS = [folder for folder in STUDIES if of_today(folder)]
DOCS = Path("docs/studies.md").read_text()
README = Path("README.md").read_text()
FINDINGS = " ".join(Path("docs/findings.md").read_text().split())
TUTORIAL = Path("docs/tutorial.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *map(str, Path("docs").glob("*.md"))]
PAGES += ["config/README.md", "config/reference/README.md", "results/README.md"]
PAGES += ["results/committed/README.md"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_the_pages_tables_are_the_committed_ones(page):
    text = Path(page).read_text()
    assert fill_blocks(text, Path()) == text


def test_the_readmes_tables_are_the_committed_ones():
    named = re.findall(r"<!-- from (results/committed/\S+?\.md): .* -->\n\|", README)
    assert len(named) == README.count("<!-- from") >= 1
    assert fill_blocks(README, Path()) == README


def test_the_findings_on_rank_are_the_committed_numbers():
    """With verdicts, seeds, and the number of cells at the edge of what was tried."""
    text = FINDINGS
    folder = COMMITTED / "rank"
    cells = pd.read_csv(folder / "summary.csv").set_index(["method", "rank", "targets"])

    def score(*key: object) -> str:
        cell = cells.loc[[key]].iloc[0]
        assert cell.n == 5
        return f"{100 * cell.selected_mean:.1f} ± {100 * cell.selected_sd:.1f} %"

    one, eight = score("lora", 1, "q+v"), score("lora", 8, "q+v")
    full = score("full_saved", float("nan"), float("nan"))
    assert f"rank 1 scores {one}, rank 8 {eight} and full fine-tuning {full}." in text
    found = claim_effects(folder)
    for name, word, said in (
        ("hu2022.rank-one-is-enough", "contradicted", "is contradicted in small, {} points."),
        ("hu2022.not-below-full", "undecided", "full fine-tuning is undecided, {}, or"),
        ("hu2022.qv-beats-q", "supported", "at rank 8, {}, and"),
        ("schulman2025.mlp-not-below-attention", "supported", "than query and value, {}: both"),
    ):
        effect, verdict = found[name]
        assert verdict == f"{word} in small"
        assert said.format(effect.removesuffix(" points")) in text, name
    asked = pd.read_csv(folder / "claims.csv").query("listed")
    assert f"[{len(asked)} claims](../results/committed/rank/claims.md)" in text
    tried = pd.read_csv(folder / "tuning.csv")
    key = ["method", "rank", "targets"]
    assert f"{tried.groupby(key, dropna=False).ngroups} cells, each with a learning rate" in text
    lowest = tried.groupby(key, dropna=False).learning_rate.transform("min")
    edge = tried[tried.at_edge.notna()].drop_duplicates(key)
    assert (edge.learning_rate == lowest[edge.index]).all()
    assert f"{len(edge)} cells took the lowest" in text
    assert set(tried.seed) == {100, 101} and "learning rates by two seeds" in text
    pairs = pd.read_csv(folder / "pairs.csv").query("epoch == 'selected'")
    (pair,) = pairs.query("left == 'lora r8 q+v' and right == 'full_saved'").itertuples()
    assert f"or {interval(pair.task_low, pair.task_high)} with the chance of the rows" in text
    assert f"all {pair.task_family} differences" in text and pair.p_holm < 0.05 < pair.task_p_holm


def test_what_the_pages_say_of_ten_seeds_are_the_committed_numbers():
    text = FINDINGS
    folder = COMMITTED / "quickstart-tuning"
    cells = pd.read_csv(folder / "summary.csv", keep_default_na=False).astype(str)
    cells = cells.set_index(["method", "rank", "targets", "label"])

    def score(*key: str) -> str:
        cell = cells.loc[key]
        assert cell.n == "10"
        return f"{100 * float(cell.last_mean):.1f} ± {100 * float(cell.last_sd):.1f} %"

    unstable = ("lora", "1.0", "all", "")
    page = " ".join(Path("docs/fair_comparison.md").read_text().split())
    assert f"one of its ten seeds collapsed ({score(*unstable)})" in page
    assert cells.loc[unstable].last_collapsed == "1"
    stable = (*unstable[:3], "as-in-the-quickstart")
    assert f"none of ten did ({score(*stable)})" in page
    assert cells.loc[stable].last_collapsed == "0"
    effect, verdict = claim_effects(folder)["hu2022.rank-one-is-enough"]
    assert verdict == "undecided in small"
    said = f"rank 1 against rank 8 is undecided, {effect.removesuffix(' points')}"
    assert f"With 960 rows and ten seeds, {said}" in text


def scores_of(cells: pd.DataFrame, *labels: str) -> str:
    means = [100 * cells.selected_mean[label] for label in labels]
    sds = [100 * cells.selected_sd[label] for label in labels]
    return " and ".join(f"{m:.1f} ± {sd:.1f} %" for m, sd in zip(means, sds, strict=True))


TWO_POINTS = "hypotheses.a-frozen-head-costs-two-points"
ANYTHING = "microsoft_lora.the-head-has-to-be-trained"


def test_the_findings_on_the_frozen_head_are_the_committed_numbers():
    text = FINDINGS
    folder = COMMITTED / "head"
    cells = pd.read_csv(folder / "summary.csv").set_index("label")
    assert set(cells.n) == {12}
    tuned, fixed = (paired("head", number) for number in (0, 1))
    assert (tuned.right_variant, fixed.right_variant) == (
        "lora-r8-q+v-frozen",
        "lora-r8-q+v-frozen-poster-rate",
    )
    told = f"a trained head scores {points(fixed.difference)[1:]} points more than a frozen one"
    assert (
        f"{told} ({interval(fixed.low, fixed.high)} over 12 seeds of each, "
        f"{interval(fixed.task_low, fixed.task_high)} with the chance of the validation rows): "
        f"{scores_of(cells, 'trained-poster-rate', 'frozen-poster-rate')}."
    ) in text
    shown = ahead(tuned.difference, tuned.low, tuned.high)
    assert f"the difference is {shown}: {scores_of(cells, 'trained', 'frozen')} (" in text
    assert (
        fixed.high > 0.02 > tuned.high and "On MiniLM at 5e-4 two points are not excluded" in text
    )
    rates = pd.read_csv(folder / "tuning.csv").query("chosen").learning_rate
    assert set(rates) == {1.5e-3} and "At 1.5e-3, the best rate of both on held-out rows" in text
    trained = pd.read_csv(folder / "tuning.csv").query("label == 'trained'")
    tied = trained.groupby("learning_rate").score.mean().nlargest(2)
    assert tied.iloc[0] == pytest.approx(tied.iloc[1]) and 4.5e-3 in tied.index
    assert "(for the trained head it ties with 4.5e-3)" in text


def ahead(difference: float, low: float, high: float) -> str:
    return f"{points(difference)} {interval(low, high)}"


def test_the_findings_on_the_frozen_head_at_the_papers_size():
    folder = COMMITTED / "poster-size-tuned"
    cells = pd.read_csv(folder / "summary.csv").set_index("label")
    assert set(cells.n) == {5} and set(cells.model) == {"mpnet-base"}
    pair = paired(folder.name)
    assert pair.left_variant.endswith("trained") and pair.right_variant.endswith("frozen")
    said = f"{ahead(pair.difference, pair.low, pair.high)} over five seeds, "
    said += f"{interval(pair.task_low, pair.task_high)} with the chance of the validation rows: "
    assert f"the difference is {said}{scores_of(cells, 'headtrained', 'headfrozen')} (" in FINDINGS
    assert f"is ahead by {held_out()} (paired by seed)" in FINDINGS
    tried = pd.read_csv(folder / "tuning.csv")
    assert tried.learning_rate.nunique() == 3
    assert set(tried.query("chosen").learning_rate) == {5e-4}
    poster = yaml.safe_load(Path("config/protocols/poster-as-run.yaml").read_text())
    assert poster["defaults"]["learning_rate"] == 5e-4
    assert "learning_rate" not in poster["per_task"]["sst2"]
    assert "both heads take 5e-4 of three rates, which is the poster's" in FINDINGS
    others = ("head", "poster-size-tuned", "poster-size", "frozen-head")
    effects = {name: claim_effects(COMMITTED / name) for name in (*others, TUNED_MRPC)}
    (small,) = {effects[name][TWO_POINTS][1] for name in others}
    said = f"costs two points (our own hypothesis) is {small} in four of the five studies"
    assert said in FINDINGS and effects[TUNED_MRPC][TWO_POINTS][1] == "undecided in small"
    (open_,) = {found[ANYTHING][1] for found in effects.values()}
    assert f"That it costs anything is {open_} in all five." in FINDINGS
    shown = effects["frozen-head"][ANYTHING][0].removesuffix(" points")
    assert f"a head of RoBERTa's kind the difference is {shown} over five seeds" in FINDINGS


def paired(study: str, number: int = 0, epoch: str = "selected") -> tuple:
    """Return a contrast of a committed study."""
    rows = pd.read_csv(COMMITTED / study / "pairs.csv")
    rows = rows[rows.epoch == epoch]
    return [*rows.itertuples()][number]


def claimed(study: str, claim: str) -> str:
    return claim_effects(COMMITTED / study)[claim][0].removesuffix(" points")


def held_out() -> str:
    """Return how far the trained head is ahead on the rows that chose the epochs, by seed."""
    runs = pd.read_csv(COMMITTED / "poster-size-tuned/runs.csv").set_index(["label", "seed"])
    assert set(runs.rows_selection) == {500} and set(runs.rows_train) == {8000}
    scores = runs.selected_accuracy_selection
    apart = scores["headtrained"] - scores["headfrozen"]
    bounds = scipy.stats.ttest_1samp(apart, 0).confidence_interval()
    return ahead(apart.mean(), bounds.low, bounds.high)


TUNED_MRPC = "poster-size-tuned-mrpc"


def test_the_findings_on_the_frozen_head_on_mrpc_at_rates_of_its_own():
    pair, folder = paired(TUNED_MRPC), COMMITTED / TUNED_MRPC
    assert pair.left_variant.endswith("trained") and {pair.n_left, pair.n_right} == {3}
    cells = pd.read_csv(folder / "summary.csv").set_index("label")
    shown = ahead(pair.difference, pair.low, pair.high)
    scores = scores_of(cells, "headtrained", "headfrozen")
    assert f"difference is {shown} over three seeds, {scores} (`study={TUNED_MRPC}`" in FINDINGS
    tried = pd.read_csv(folder / "tuning.csv")
    assert set(tried.seed) == {100} and tried.learning_rate.nunique() == 3
    chosen = tried.query("chosen").set_index("label")
    assert chosen.learning_rate.to_dict() == {"headfrozen": 1.2e-3, "headtrained": 4e-4}
    assert chosen.learning_rate["headfrozen"] == tried.learning_rate.max()
    leads = {
        label: own.score.max() - own.score.nlargest(2).iloc[1]
        for label, own in tried.groupby("label")
    }
    frozen, trained = points(leads["headfrozen"]), points(leads["headtrained"])
    assert f"by {frozen} points for the frozen head and by {trained} for the trained" in FINDINGS
    runs = pd.read_csv(folder / "runs.csv")
    assert set(runs.rows_selection) == {500} and set(runs.rows_train) == {3168}
    short = f"{shown} at the best of three for each head (`study={TUNED_MRPC}`, three)"
    assert short in " ".join(README.split())


def test_the_findings_on_the_posters_three_epochs():
    cells = pd.read_csv(COMMITTED / "poster-size-epochs/summary.csv").set_index("label")
    assert set(cells.n) == {1}
    short, long = (100 * cells.last_mean[f"epochs{epochs}"] for epochs in (3, 30))
    assert f"three epochs ends at {short:.1f} % and one of thirty at {long:.1f} %" in FINDINGS
    for page in (FINDINGS, " ".join(README.split())):
        assert f"{long - short:.1f} points above" in page
    curves = Path("figures/committed/poster-size-epochs/learning_curves.csv")
    curve = pd.read_csv(curves).query("label == 'epochs30'").set_index("epoch")
    score, best = 100 * curve.score, curve.score.idxmax()
    assert f"The long run is at {score[3]:.1f} % after three of its epochs" in FINDINGS
    assert best == 5 and f"best epoch, the fifth, at {score[best]:.1f} %" in FINDINGS
    rest = score[score.index >= best]
    assert f"stays between {rest.min():.1f} and {rest.max():.1f} %" in FINDINGS
    loss = curve.train_loss
    assert f"training falls from {loss[best]:.2f} to {loss.iloc[-1]:.2f}" in FINDINGS


def test_the_findings_on_the_frozen_head_on_mrpc():
    pair = paired("poster-size", epoch="last")
    assert pair.left_variant.endswith("trained") and pair.right_variant.endswith("frozen")
    assert {pair.n_left, pair.n_right} == {3}
    cells = pd.read_csv(COMMITTED / "poster-size/summary.csv").query("method == 'lora'")
    cells = cells.set_index("label").assign(
        selected_mean=lambda rows: rows.last_mean, selected_sd=lambda rows: rows.last_sd
    )
    said = f"{ahead(pair.difference, pair.low, pair.high)} over three seeds, "
    said += f"{interval(pair.task_low, pair.task_high)} with the chance of the validation rows: "
    said += f"{scores_of(cells, 'headtrained', 'headfrozen')} (`study=poster-size`"
    assert f"after the last epoch is {said}" in FINDINGS
    summary = pd.read_csv(COMMITTED / "poster-size/summary.csv").set_index("method")
    assert summary.n["peft"] == 1
    assert f"one seed, scores {100 * summary.last_mean['peft']:.1f} %" in FINDINGS
    assert (
        pair.high < 0.02 < pair.task_high and "and on MRPC at the poster's rate neither" in FINDINGS
    )
    short = f"it is {ahead(pair.difference, pair.low, pair.high)} at the poster's rate ("
    assert f"{short}`study=poster-size`, three)" in " ".join(README.split())


def test_the_readmes_short_findings_are_the_committed_numbers():
    readme = " ".join(README.split())
    tuned, fixed = (paired("head", number) for number in (0, 1))
    size, one = paired("poster-size-tuned"), "hu2022.rank-one-is-enough"
    pairs = pd.read_csv(COMMITTED / "rank/pairs.csv").query("epoch == 'selected'")
    (full,) = pairs.query("left == 'lora r8 q+v' and right == 'full_saved'").itertuples()
    at_poster = ahead(fixed.difference, fixed.low, fixed.high)
    targets = claimed("rank", "hu2022.qv-beats-q")
    for study, rows in (("rank", 2000), ("quickstart-tuning", 960)):
        assert set(pd.read_csv(COMMITTED / study / "runs.csv").rows_train) == {rows}
    for said in (
        f"A trained head less such a one is {at_poster} at the poster's rate and "
        f"{ahead(tuned.difference, tuned.low, tuned.high)} at the best "
        f"(`study=head`, {tuned.n_left} seeds of each)",
        f"three, it is {ahead(size.difference, size.low, size.high)}, and {held_out()} on the 500 "
        "rows that chose its epochs (`study=poster-size-tuned`, five seeds)",
        f"Rank 1 less rank 8 is {claimed('rank', one)} with 2,000 rows (`study=rank`, one task, "
        f"five seeds) and, undecided, {claimed('quickstart-tuning', one)} with 960 "
        "(`study=quickstart-tuning`, ten)",
        f"Rank 8 less full fine-tuning is {claimed('rank', 'hu2022.not-below-full')}, but "
        f"{interval(full.task_low, full.task_high)} with the chance of the validation rows and "
        f"corrected for the study's {full.task_family} tests.",
        f"query and value at rank 4 less query at rank 8 is {targets}.",
    ):
        assert said in readme, said


def test_every_cross_check_on_record_is_in_tolerance():
    page = (COMMITTED / "README.md").read_text()
    found = re.findall(r"([\d,]+) of ([\d,]+) cross-checks are in tolerance", page)
    assert found and all(well == whole for well, whole in found)
    total = sum(int(whole.replace(",", "")) for _, whole in found)
    assert f"All {total:,} cross-checks of our LoRA against PEFT's and loralib's" in README
    for path in Path("figures/committed").glob("*/crosscheck.csv"):
        checks = pd.read_csv(path)
        assert checks.ok.all() and set(checks.against) == {"PEFT", "loralib"}, path


def claim_effects(folder: Path) -> dict[str, tuple[str, str]]:
    """Read a committed study's effects and verdicts by the claims' names."""
    lines = (folder / "claims.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = [re.search(r"\(([\w.-]+?\.[\w-]+)", cell[0])[1] for cell in cells]
    return {name: (cell[1], cell[2]) for name, cell in zip(names, cells, strict=True)}


def test_the_verdicts_on_published_numbers_are_current():
    table = published_verdicts(
        select(("poster2025.seeds",)), select(("hu2022.table2",)), margin=None, reading="sd"
    )
    shown = (COMMITTED / "published/verdicts.md").read_text()
    assert shown == markdown(published_table(table))


@pytest.mark.parametrize("folder", TODAYS, ids=lambda path: path.name)
def test_committed_tables_come_from_the_committed_runs(folder):
    runs = pd.read_csv(folder / "runs.csv", keep_default_na=False, na_values=[""])
    summary = aggregate(runs)
    assert (folder / "summary.md").read_text() == markdown(summary_table(summary))
    pd.testing.assert_frame_equal(
        read_table(folder / "cost.csv")[["n", "bytes_tasks", "seconds_step"]],
        cost(runs)[["n", "bytes_tasks", "seconds_step"]],
    )


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_committed_runs_have_their_records_from_committed_code(folder):
    records = pd.read_json(folder / "records.jsonl", lines=True)
    tunes = [spec.get("validate_epochs") == "none" for spec in records.spec]
    records = records[~pd.Series(tunes)]  # those that tune are not reported
    runs = pd.read_csv(folder / "runs.csv")
    assert len(records) == len(runs)
    for choice in [choice for choice in CHOICES if choice in runs and runs[choice].notna().all()]:
        epochs = [train.get("epochs", train)[choice] for train in records.train]
        scores = [
            epoch.get("scores", epoch)[metric]
            for epoch, metric in zip(epochs, runs.metric, strict=True)
        ]
        assert scores == pytest.approx(list(runs[choice]))
    states = [environment["git"] for environment in records.environment]
    assert all(state["commit"] for state in states)
    assert folder.name in CHANGED_RESULTS or not any(state["dirty"] for state in states)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_a_committed_study_says_on_which_processor_it_was_made(folder):
    records = pd.read_json(folder / "records.jsonl", lines=True)
    note = (folder / "README.md").read_text()
    assert f"made on {' and '.join(processors(records.to_dict('records')))}. Another kind" in note


@pytest.mark.parametrize("spread, seeds", [(0.3, 3), (0.7, 5), (1.5, 10)])
def test_the_page_of_error_rates_is_current(spread, seeds):
    """If not: python scripts/error_rates.py. A simulated share may round otherwise elsewhere."""
    rates = runpy.run_path("scripts/error_rates.py")["rates"]
    (line,) = re.findall(
        rf"^\| +{spread:g} \| +{seeds} \|(.*)\|$", Path("docs/error_rates.md").read_text(), re.M
    )
    for cell, gap in zip(line.split("|"), (0.0, 0.5, 1.0, 2.0), strict=True):
        shown, again = (list(map(int, t.split("/"))) for t in (cell, rates(spread, seeds, gap)))
        assert shown == pytest.approx(again, abs=1)


DRAWN = [
    path
    for path in sorted(Path("figures/committed").glob("*/*.csv"))
    if path.parent != BENCH and of_today(COMMITTED / path.parent.name)
]
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_figures_show_the_csv_beside_them(path, tmp_path):
    """Drawn again they are the same, but for the last digits that another processor may give."""
    rows = read_table(path)
    if "label" in rows:
        rows["label"] = rows.label.fillna("")
    if path.parent.name != "published" and undrawn(FIGURES[path.stem], rows):
        assert not path.with_suffix(".svg").exists(), "a picture that says why it is none"
        return
    shown = normal(path.with_suffix(".svg"))

    def drawn(note: str) -> str:
        known = path.parent.name != "published"
        with study_looks(cells(path.parent.name)):
            picture = draw(FIGURES[path.stem], rows) if known else published(rows)
        write_note(picture, note)
        save(picture, rows, tmp_path / path.stem)
        return normal(tmp_path / f"{path.stem}.svg")

    again = next((text for text in map(drawn, notes(path)) if alike(shown, text)), None)
    again = again or drawn("")  # to show how it differs
    assert NUMBER.sub("n", shown) == NUMBER.sub("n", again)
    np.testing.assert_allclose(numbers(shown), numbers(again), atol=0.02)


@functools.cache
def cells(study: str) -> list[dict]:
    """Return the cells of a committed study, a row per run; none where there is no study."""
    file = COMMITTED / study / "runs.csv"
    if not file.is_file():
        return []
    runs = read_table(file)
    return runs.assign(label=runs.label.fillna("")).to_dict("records")


def alike(shown: str, again: str) -> bool:
    """Tell whether two SVGs are the same but for the last digits of their numbers."""
    same = NUMBER.sub("n", shown) == NUMBER.sub("n", again)
    return same and np.allclose(numbers(shown), numbers(again), rtol=1e-7, atol=0.02)


def numbers(text: str) -> np.ndarray:
    return np.array(NUMBER.findall(text), dtype=float)


def normal(file: Path) -> str:
    """Read an SVG without the digests of what is drawn."""
    return re.sub(r"\b[a-z][0-9a-f]{10}\b", "id", file.read_text())


def notes(path: Path) -> list[str]:
    """Return what may stand above a figure: nothing, or that some of its cells are not drawn."""
    limit = FIGURES[path.stem].limit if path.stem in FIGURES else None
    totals = range(limit.most + 1, 3 * limit.most) if limit else ()
    return ["", *(note_of(limit.most, total, limit.unit) for total in totals)]


def test_the_docs_count_the_runs_of_every_study():
    shown = re.findall(
        r"^\| \[([\w-]+)\]\(.*?\| (\d+) \| (\d*) ?\| .*\| (\[.*\)|) ?\|$", DOCS, re.M
    )
    studies = {path.stem: load_study(path) for path in Path("config/studies").glob("*.yaml")}
    assert {(name, runs, choose) for name, runs, choose, _ in shown} == {
        (name, str(len(study.runs)), str(len(study.tuning) or ""))
        for name, study in studies.items()
    }
    reports = {folder.name: f"[report](../{folder}/report.html)" for folder in STUDIES}
    assert {name: report for name, *_, report in shown} == dict.fromkeys(studies, "") | reports
    quickstart = len(load_study("config/studies/quickstart.yaml").runs)
    for page in ("README.md", "docs/tutorial.md"):
        assert f"{quickstart} small runs on the CPU" in Path(page).read_text(), page


@pytest.mark.parametrize(("study", "rounded"), [("poster", 0.1), ("paper-table2", 1)])
def test_the_readmes_estimates_are_the_plans(study, rounded):
    """Hours of one H100, by the committed table of measured speeds."""
    line = next(row for row in README.splitlines() if f"study={study} launch=gpu" in row)
    shown = float(re.search(r"([\d,.]+) (?:H100 )?hours", line)[1].replace(",", ""))
    assert "calculated" in line
    config = plan.paths.configuration() | {"study": study}
    runs = plan.load_configured(config).all_runs
    machine = plan._machine(plan.load_configured(config), plan.Config(**config), 8, "h100", 1)
    speeds = plan.read_speeds("h100")
    seconds = sum(plan.gpu_estimate(run.spec, speeds, machine).seconds for run in runs)
    assert shown == pytest.approx(seconds / 3600, abs=0.51 * rounded)


@pytest.mark.parametrize("page", ["README.md", "docs/gpu_box.md", "docs/speed.md"])
def test_the_pages_name_the_gpus_and_the_torch_of_the_recorded_tests(page):
    """They say so too where the lock has another torch."""
    outcomes = pd.read_csv(COMMITTED / "bench/gpu_tests.csv")
    paragraphs = [" ".join(part.split()) for part in Path(page).read_text().split("\n\n")]
    said = next(part for part in paragraphs if "gpu_tests.csv" in part)
    for gpu in outcomes.device:
        assert re.search(rf"\b{gpu.split()[1]}\b", said), gpu
    (tested,) = {torch.partition("+")[0] for torch in outcomes.torch}
    assert f"torch {tested}" in said
    (locked,) = re.findall(r"^torch==(\S+)", Path("requirements.lock").read_text(), re.M)
    assert page == "docs/speed.md" or locked in said


def test_what_is_said_of_runs_that_share_a_gpu_is_in_their_records():
    """They began together, which no record says: all their steps count over the longest."""
    records = pd.read_json(COMMITTED / "poster-size-tuned/records.jsonl", lines=True)
    assert {device for run in records.environment for device in run["gpus"]} == {"NVIDIA H200"}
    page = " ".join(Path("docs/gpu_box.md").read_text().split())
    assert f"The {len(records)} runs of" in page
    reported = [run for run, spec in zip(records.train, records.spec, strict=True)
                if spec["validate_epochs"] != "none"]  # fmt: skip
    seconds = [run["seconds"]["train"] for run in reported]
    assert f"The {len(reported)} runs that are reported" in page
    assert f"in {min(seconds):.0f} to {max(seconds):.0f} seconds each" in page
    rate = sum(run["steps"] for run in reported) / max(seconds)
    said = f"about {round(rate, -1):.0f} steps a second together"
    assert said in page and said in " ".join(Path("docs/speed.md").read_text().split())


def test_the_readme_is_one_screen_and_in_order():
    lines = README.splitlines()
    assert len(lines) <= 100
    order = [
        "From one study file",  # the sentence
        "![Score",
        "make results ",
        "make test ",
        "CPU only",
        "## What came out",
        "Not in small",
        "docs/assets/report.png",
        "## My machine",
        "![The rules",
        "## Where next",
        "```bibtex",
    ]
    places = [README.index(part) for part in order]
    assert places == sorted(places)
    for image in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert Path(image).is_file(), image


def test_the_readmes_first_finding_is_what_the_verdicts_are():
    verdicts = pd.read_csv(COMMITTED / "published/verdicts.csv").verdict
    counts = verdicts.value_counts().to_dict()
    assert counts == {"not reproduced": 1, "different, by how much is open": 2}
    finding = (
        "None of three. QQP differs by more than the margin; SST-2 and MRPC differ, but whether by "
        "more than the margin is open."
    )
    said = " ".join(README.split())
    assert "a course poster, which is not ours and trained LoRA" in said
    assert finding in said


def test_the_findings_say_how_far_the_open_intervals_reach_into_the_margin():
    rows = pd.read_csv(COMMITTED / "published/verdicts.csv").set_index("task")
    is_open = rows[rows.verdict == "different, by how much is open"]
    assert is_open.index.tolist() == ["sst2", "mrpc"]
    assert (is_open.high > -is_open.margin).all()
    ends = [f"{100 * high:.2f}" for high in is_open.high]
    assert f"end inside the margin, at {ends[0]} and {ends[1]} points" in FINDINGS


def test_the_picture_of_a_report_is_of_the_committed_page():
    """If not: python scripts/report_picture.py, on a machine with Chromium."""
    script = runpy.run_path("scripts/report_picture.py")
    with Image.open("docs/assets/report.png") as picture:
        assert picture.text[script["KEY"]] == sha256(script["PAGE"])
    assert f"(docs/assets/report.png)]({script['PAGE']})" in README


def test_the_readmes_bibtex_is_that_of_the_page_on_citing():
    entries = [
        re.search(r"```bibtex\n(.*?)```", text, re.S)[1]
        for text in (README, Path("docs/cite.md").read_text())
    ]
    assert entries[0] == entries[1]


def test_the_drawing_of_the_rules_is_snakemakes():
    """If not: python scripts/dag_docs.py."""
    script = runpy.run_path("scripts/dag_docs.py")
    waits = script["rulegraph"]()
    assert {"train", "crosscheck", "report"} <= waits.keys()
    assert script["drawing"](waits) == Path("docs/assets/dag.svg").read_text()
    reduced, places = script["reduced"](waits), script["places"](script["reduced"](waits))
    assert reduced["train"] == {"tokenise"} and "fetch_model" in waits["train"]
    assert len(set(places.values())) == len(places)  # no two in one place
    for rule, wanted in waits.items():
        assert all(places[before][0] < places[rule][0] for before in wanted)


def test_the_page_on_how_it_is_built_names_every_package():
    page = Path("docs/how_it_is_built.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert sorted(named) == sorted(
        path.parent.name for path in Path("src/loraudit").glob("*/__init__.py")
    )


def test_the_page_on_seeds_has_the_numbers_that_plan_gives():
    page = Path("docs/seeds.md").read_text()
    rows = re.findall(r"^\| ([\d.]+) \| (\d+) \|$", page, re.M)
    assert len(rows) == 6
    for effect, seeds in rows:
        needed = TTestIndPower().solve_power(float(effect), power=0.8, alpha=0.05)
        assert int(seeds) == math.ceil(needed), effect
    study = load_study("config/studies/quickstart.yaml")
    (pair, *others) = plan.planned_pairs(study, 0.01)
    assert all(other["smallest"] == pair["smallest"] for other in others)
    assert pair["family"] == 5
    said = f"five tests and a spread of 1 point: {100 * pair['smallest']:.1f} points, and "
    assert f"{said}{pair['seeds']:.0f} seeds" in " ".join(page.split())
    assert {str(n) for n in (pair["n_left"], pair["n_right"])} == {"3"} and "three seeds" in page


def test_the_page_on_undecided_has_the_numbers_that_plan_gives():
    page = " ".join(Path("docs/undecided.md").read_text().split())
    study = load_study("config/studies/paper-table2.yaml", {"task": "mrpc"})
    row = next(
        row
        for row in plan.planned_power(study)
        if (row["task"], row["method"], row["published"]) == ("mrpc", "lora", "hu2022.table2")
    )
    for said in (
        f"a published ± of {100 * row['sd']:.1f}",
        f"a margin of {100 * row['margin']:.1f} points",
        f"in {100 * row['chance']:.0f} % of studies; {row['seeds']:.0f} seeds make it 80 %",
        f"at most {100 * row['at_most']:.0f} %",
    ):
        assert said in page, said


def test_the_study_of_the_page_on_decoders_is_one(tmp_path, monkeypatch):
    """Its task is the tutorial's; the entries of both pages are all that a reader has to add."""
    page = Path("docs/decoder.md").read_text()
    model, study = re.findall(r"```yaml\n(.*?)```", page, re.S)
    task = re.search(r"```yaml\n(# add to config/tasks.yaml.*?)```", TUTORIAL, re.S)[1]
    shutil.copytree("config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    for name, text in (("models", model), ("tasks", task)):
        path = Path(f"config/{name}.yaml")
        path.write_text(path.read_text() + text)
    Path("config/studies/decoder.yaml").write_text(study)
    runs = load_study("config/studies/decoder.yaml").runs
    names = [run.spec.adapter.targets for run in runs if run.spec.adapter]
    assert names == [("q", "v"), ("q", "k", "v", "o", "gate", "up", "down")]
    assert runs[0].spec.model.first_token is None  # the page says what the fast path leaves out


def test_the_page_on_decoders_makes_the_model_whose_entry_it_shows(tmp_path, monkeypatch):
    page = Path("docs/decoder.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    save_tiny_model(Path("resources/models/minilm"))  # stands for the quickstart's: a tokenizer
    exec(code, {})
    (entry,) = yaml.safe_load(re.search(r"```yaml\n(  tiny-llama.*?)```", page, re.S)[1]).items()
    made = json.loads(Path(entry[1]["source"]["folder"], "config.json").read_text())
    assert entry[0] == entry[1]["source"]["folder"]
    assert made["model_type"] == entry[1]["family"]
    assert made["max_position_embeddings"] == entry[1]["max_tokens"]
    assert f"max_length: {entry[1]['max_tokens']}}}" in page


@pytest.mark.parametrize("page", [*PAGES, *map(str, COMMITTED.glob("*/README.md"))])
def test_local_links_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", Path(page).read_text()):
        if not link.startswith("http"):
            assert (Path(page).parent / link).exists(), link


def test_showcase_fills_the_marked_blocks(tmp_path):
    (tmp_path / "table.md").write_text("| a |\n")
    text = "x\n<!-- from table.md -->\nold\n<!-- end -->\ny"
    assert fill_blocks(text, tmp_path) == "x\n<!-- from table.md -->\n| a |\n<!-- end -->\ny"


def test_a_marked_block_may_take_some_columns(tmp_path):
    table = pd.DataFrame({"a: mean": ["1.50"], "b": ["x"], "c": ["z"]})
    (tmp_path / "table.md").write_text(markdown(table))
    mark = "<!-- from table.md: c | a: mean -->"
    _, *rows, _ = fill_blocks(f"{mark}\n<!-- end -->", tmp_path).splitlines()
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[::2]] == [
        ["c", "a: mean"],
        ["z", "1.50"],
    ]
    with pytest.raises(UserError, match="column: 'd' is not known"):
        fill_blocks("<!-- from table.md: d -->\n<!-- end -->", tmp_path)


def hook(name: str):
    """Import a hook of the docs site."""
    spec = importlib.util.spec_from_file_location(name, f"docs/hooks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KEYS = hook("keys")


@pytest.mark.parametrize("name", KEYS.CLASSES)
def test_every_configuration_key_is_described_and_shown(name):
    described = KEYS.described(name)
    assert all(described.values()), [key for key, words in described.items() if not words]
    assert f"<!-- keys {name} -->" in Path("docs/configuration.md").read_text()
    rows = KEYS.table(name).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == KEYS.keys_of(name)


def test_a_missing_description_is_found():
    assert KEYS.comments_beside("a: 1 # one\n  # and more\nb: 2\n") == {
        "a": "one and more",
        "b": "",
    }
    assert KEYS.comments_above("# a, b: both\na: 1\nb: 2\n\nc: 3\n") == {
        "a": "both",
        "b": "both",
        "c": "",
    }


QUOTED = re.compile(r"\*\*([\d.]+)\*\*\s+\(`([\w.]+)`:\s+([^;)]+);\s+(\w+)[^)]*\)")


def test_the_answers_numbers_are_the_published_ones():
    """**86.6** (`hu2022.table2`: rte, lora; seen): that table has this value with these fields."""
    text = Path("docs/faq.md").read_text()
    quoted = QUOTED.findall(text)
    assert len(quoted) == len(re.findall(r"\*\*[\d.]+\*\*", text)) > 20
    for value, key, words, confidence in quoted:
        wanted = {word.strip() for word in " ".join(words.split()).split(",")}
        found = [
            number
            for number in select((key,))
            if wanted <= {part for field in fields(number) for part in field.split(", ")}
        ]
        places = len(value.partition(".")[2])
        shown = {f"{n.value * (100 if n.unit == 'fraction' else 1):.{places}f}" for n in found}
        assert shown == {value}, (key, words, shown)
        assert confidence in {number.confidence for number in found}, (key, words)


def fields(number) -> list[str]:
    known = {key: value for key, value in number.model_dump().items() if value is not None}
    return [*map(str, known.values()), *(f"{key} {value}" for key, value in known.items())]


def test_the_python_page_runs():
    first = re.search(r"```python\n(.*?)```", Path("docs/api.md").read_text(), re.S)[1]
    done = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True)
    assert done.stdout.startswith(load_study("config/studies/quickstart.yaml").describe())


def test_the_navigation_has_four_groups_and_a_home_that_is_not_the_readme():
    nav = yaml.safe_load(Path("mkdocs.yml").read_text().partition("\nnav:")[2])
    assert [next(iter(part)) for part in nav] == ["Home", "Start", "Run", "Read", "Reference"]
    home = Path("docs/index.md").read_text()
    pages = {
        page for part in nav[1:] for entry in next(iter(part.values())) for page in entry.values()
    }
    linked = {link for link in re.findall(r"\]\((\w+\.md)", home)}
    assert linked == {page for page in pages if not page.startswith("repository/")}
    assert not set(home.split("\n\n")) & set(README.split("\n\n"))


def test_a_table_of_keys_on_another_page_links_to_the_page_of_configuration():
    marked = "<!-- keys RunSpec -->"
    assert "](#alora)" in KEYS.filled(marked, "configuration.md")
    there = KEYS.filled(marked, "api.md")
    assert "](configuration.md#alora)" in there and "](#" not in there
    assert "`learning_rate`" in there and marked in Path("docs/api.md").read_text()


def test_the_citation_is_of_this_version():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    cited = yaml.safe_load(Path("CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    page = Path("docs/cite.md").read_text()
    assert f"{{{project['version']}}}" in page and cited["title"] in page
    assert f"## [{project['version']}]" in Path("CHANGELOG.md").read_text()


def test_every_test_that_the_page_of_faults_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", Path("docs/faults.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert re.search(rf"^def {name}\(", Path("tests", file).read_text(), re.M), (file, name)


def test_the_page_on_speed_has_the_fused_layers_measured_times():
    table = pd.read_csv(COMMITTED / "bench/fused.csv").set_index("what")["median"]
    ours, theirs = table["one fused layer, ours"], table["one fused layer, loralib"]
    text = " ".join(Path("docs/speed.md").read_text().split())
    assert f"takes {ours.iloc[0]:.2f} of the time of three" in text
    assert f"width and {ours.iloc[1]:.2f} at" in text
    assert f"takes {theirs.iloc[0]:.1f} and {theirs.iloc[1]:.1f} (medians" in text
