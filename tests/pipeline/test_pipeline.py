"""The DAG end to end on a tiny study, in a copy of the project that tests may edit."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from loraudit.adapters.peft_folder import read_folder
from loraudit.analysis.subspace import phi
from loraudit.base.files import folder_fingerprint, read_json
from loraudit.data.fetch_task import fetch_task
from loraudit.data.tokenise import tokenise
from loraudit.report.products import Places, products
from loraudit.studies.method_settings import AdaLoRASettings, ALoRASettings
from loraudit.studies.record import read_record
from loraudit.studies.study import read_study
from tiny import make_spec
from tiny_project import STUDY, command, edited, make_project, snakemake

pytestmark = pytest.mark.pipeline

RUNS = ["lora-r2-q+v", "peft-r2-q+v", "head", "full"]
ABLATION = """
question: What does the frozen head cost, and what is a start from another task worth?
compare: [hu2022.table2]
language_loss: 8
defaults: {task: words, model: tiny, epochs: 2, global_batch: 16, learning_rate: 1.0e-2,
           rank: 2, max_length: 64, seed: [0, 1]}
grid:
  - {task: letters, method: lora}
ablation:
  base: {method: lora, head: frozen}
  switches:
    head trained: {head: trained}
    letters start: {warm_start: {task: letters, tensors: adapter}}
"""


TWINS = STUDY.replace("  - {method: [head, full]}\n", "")
"""Of two kinds of runs, as `plan` measures each kind."""
STUDIES = {"small": STUDY, "switches": ABLATION, "twins": TWINS}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"), STUDIES)


def planned(project, config: str = "study=small") -> list[str]:
    """Return the messages of the jobs that would run now, without the counts of a dry run."""
    return sorted(re.findall(r"^Job \d+: (.*)$", snakemake(project, "-n", config=config), re.M))


@pytest.fixture(scope="module")
def done(project):
    snakemake(project)
    return project / "results/small"


SCORES = ["cost", "crosscheck", "learning_curves", "hero", "pareto"]
UPDATES = ["amplification", "intruders", "spectra", "stable_rank"]
UPDATES += ["subspace_weights"]  # one rank, one seed
FIGURES = SCORES + UPDATES
DRAWN = "draw the figures"
COLLECTED = ["aggregate over seeds", "collect the runs", "test the claims", "write the report"]
ANALYSIS = [*COLLECTED, DRAWN, "measure the updates"]
TABLES = ["summary", "verdicts", "switches", "pairs", "aggregates", "cost"]


def test_every_product_is_there(done, project):
    for name in RUNS:
        folder = done / "runs/words/tiny" / name / "s0"
        record = read_record(folder / "record.json")
        assert record.train.rows == {"train": 256, "validation": 128}
        assert (folder / "history.csv").is_file()
    for name in RUNS[:2]:
        folder = done / "runs/words/tiny" / name / "s0/adapter"
        assert {path.name for path in folder.iterdir()} == {
            "adapter_model.safetensors",
            "adapter_config.json",
        }
    tidy = pd.read_parquet(done / "tidy/runs.parquet")
    assert len(tidy) == 4
    pd.testing.assert_frame_equal(
        tidy[["run", "best"]], pd.read_csv(done / "tidy/runs.csv")[["run", "best"]]
    )
    checks = pd.read_csv(done / "tidy/crosscheck.csv")
    assert checks.ok.all()
    twins = checks[~checks.check.str.startswith("layer")]
    assert len(twins) == 30
    assert set(checks.against) == {"PEFT", "loralib"}
    assert pd.read_csv(done / "tidy/twins.csv").equal_share.min() > 0.99
    for figure in FIGURES:
        for suffix in ("svg", "png", "csv"):
            assert (project / f"figures/small/{figure}.{suffix}").stat().st_size > 0
    for table in TABLES:
        assert (done / f"tables/{table}.csv").is_file()
        assert (done / f"tables/{table}.md").stat().st_size > 0
    places = Places(done, done, project / "figures/small")
    listed = products(read_study(done / "study.json"), places)
    assert [path for product in listed for path in product.files if not path.is_file()] == []
    lines = (done / "tidy/records.jsonl").read_text().splitlines()
    assert [json.loads(line)["spec"]["method"] for line in lines] == [
        "lora",
        "peft",
        "head",
        "full",
    ]
    assert "not reproduced" in (project / "results/published/verdicts.md").read_text()
    assert (project / "figures/published/verdicts.png").stat().st_size > 0


@pytest.fixture(scope="module")
def switched(project):
    snakemake(project, config="study=switches")
    return project / "results/switches"


def test_an_ablation_gives_its_table_and_figure(switched, project):
    table = pd.read_csv(switched / "tables/switches.csv")
    assert set(table.switch) == {"head trained", "letters start", "last epoch, not the best"}
    assert set(table.n) == {2}
    assert (project / "figures/switches/switches.png").stat().st_size > 0
    page = (switched / "report.html").read_text()
    assert "Which switch matters" in page
    assert "Beside published numbers" not in page  # the paper has no such task


def test_section_7_is_made_from_the_saved_adapters(switched, project):
    spectra = pd.read_csv(switched / "tidy/spectra.csv")
    table = pd.read_parquet(switched / "tidy/amplification.parquet")
    pairs = pd.read_parquet(switched / "tidy/subspaces.parquet")
    assert set(spectra.run) == set(table.run) == {
        f"{cell}/s{seed}"
        for cell in (
            "letters/tiny/lora-r2-q+v",
            *(f"words/tiny/lora-r2-q+v-{x}" for x in ("base", "head-trained", "letters-start")),
        )
        for seed in (0, 1)
    }  # fmt: skip
    assert set(pairs.pair) == {"seeds", "weights"}
    runs = [switched / f"runs/words/tiny/lora-r2-q+v-base/s{seed}" for seed in (0, 1)]
    layer = "bert.encoder.layer.1.attention.self.value"
    (a, b), (other, _) = (
        [read_folder(run / "adapter")[1][f"{layer}.lora_{name}"] for name in "AB"] for run in runs
    )
    scaling = read_record(runs[0] / "record.json").spec.lora.alpha / 2
    where = "layer == 1 and matrix == 'v'"
    mine = spectra[spectra.run == str(runs[0].relative_to(switched / "runs"))].query(where)
    values = torch.linalg.svdvals(scaling * b.double() @ a.double())[:2].tolist()
    assert list(mine.singular_value) == pytest.approx(values)
    row = table[table.run == mine.run.iloc[0]].query(where).iloc[0]
    assert row.stable_rank == pytest.approx(1 + (values[1] / values[0]) ** 2)
    weight = load_file(project / "resources/models/tiny/model.safetensors")[f"{layer}.weight"]
    assert row.weight_norm == pytest.approx(weight.double().norm().item())
    shown = pairs[(pairs.pair == "seeds") & (pairs.label == "base")].query(where)
    assert shown.phi.tolist() == pytest.approx(phi(a, other).flatten().tolist())
    for name in [*UPDATES, "subspace_seeds"]:
        assert (project / f"figures/switches/{name}.svg").stat().st_size > 0
    page = (switched / "report.html").read_text()
    assert "Medians over adapters and layers." in page
    assert re.search(r"at rank 2 \(\d+ in-house adapters, \d+ layers\): q: stable rank", page)


def test_an_adapter_alone_is_analysed_by_one_program(switched, project):
    adapter = "results/switches/runs/words/tiny/lora-r2-q+v-base/s0/adapter"
    command(project, "python", "scripts/analyse_adapter.py", "--adapter", adapter,
            "--model", "tiny-model", "--out", "alone")  # fmt: skip
    alone = pd.read_csv(project / "alone/tidy/spectra.csv")
    study = pd.read_csv(switched / "tidy/spectra.csv")
    study = study[study.run == "words/tiny/lora-r2-q+v-base/s0"]
    assert alone.singular_value.tolist() == pytest.approx(study.singular_value.tolist())
    assert {path.stem for path in (project / "alone/figures").glob("*.png")} == set(UPDATES)


def test_a_study_without_adapters_has_no_section_7(project):
    study = project / "config/studies/heads.yaml"
    study.write_text(STUDY.replace("  - {method: [lora, peft], targets: q+v}\n", ""))
    jobs = planned(project, "study=heads")
    assert [job for job in jobs if job.startswith(("draw", "measure"))] == [DRAWN]
    listed = snakemake(project, "-n", "--printshellcmds", config="study=heads")
    drawn = re.findall(r"figures/heads/(\w+)\.svg", listed)
    assert set(drawn) == {"cost", "learning_curves", "pareto", "hero"}


BITS = """
question: What do bits, starts, ranks and PEFT's other methods cost?
defaults: {task: words, model: tiny, epochs: 1, global_batch: 16, learning_rate: 1.0e-2,
           rank: 2, max_length: 64, base_group: 16, targets: q+up}
per_method: {head: {learning_rate: 1.0e-2}}
grid:
  - {method: [lora, peft], base_bits: [2]}
  - {method: lora, base_bits: [2], init: [loftq], ranks: [error], least_rank: 0, seed: [0, 1]}
  - {method: head, base_bits: [4]}
  - {method: peft, peft: {init_lora_weights: pissa}}
"""


def test_bits_starts_ranks_and_variants_go_through_the_whole_pipeline(project):
    (project / "config/studies/bits.yaml").write_text(BITS)
    snakemake(project, config="study=bits")
    runs = pd.read_parquet(project / "results/bits/tidy/runs.parquet")
    assert len(runs) == 2 + 2 + 1 + 1
    held = runs.groupby(runs.label.str.split("-").str[0]).bytes_base_linear.unique()
    assert all(len(values) == 1 for values in held)
    assert held["base_bits2"][0] < held["base_bits4"][0] < held["peft"][0]
    checks = pd.read_parquet(project / "results/bits/tidy/crosscheck.parquet")
    assert checks.ok.all() and checks.cell.nunique() == 2
    assert (checks.check == "merging refused").sum() == 2 * 2
    twins = pd.read_parquet(project / "results/bits/tidy/twins.parquet")
    assert len(twins) == 1 and twins.largest_logit_difference.max() < 1e-3
    page = (project / "results/bits/report.html").read_text()
    assert "only PEFT has them: peft-pissa" in page


TUNED = """
question: Which learning rate does each cell need?
defaults: {task: words, model: tiny, epochs: 1, global_batch: 16, rank: 2, max_length: 64,
           train_rows: 96, selection_rows: 64, validation_rows: 64}
tune:
  axes: {learning_rate: [1.0e-5, 1.0e-2]}
  per_method: {head: {learning_rate: [1.0e-2, 1.0e-1]}}
  seeds: [100]
grid:
  - {method: [lora, peft], targets: q+v}
  - {method: head}
"""


def test_a_tuned_study_waits_for_its_trials_and_takes_the_best(project):
    (project / "config/studies/tuned.yaml").write_text(TUNED)
    output = snakemake(project, "trained", config="study=tuned")
    assert "3 runs (1 lora, 1 peft, 1 head), after 4 runs that tune, 1 cross-checks" in output
    results = project / "results/tuned"
    assert len([*results.glob("runs/*/*/*/*/record.json")]) == 7
    assert len([*results.glob("crosscheck/*/*/*.json")]) == 1 and not (results / "tidy").exists()
    snakemake(project, config="study=tuned")
    trials = pd.read_parquet(results / "tidy/tuning.parquet")
    assert len(trials) == 3 * 2  # the twins' trials are the same runs
    runs = pd.read_parquet(results / "tidy/runs.parquet").set_index("method")
    for method, part in trials.groupby("method"):
        best = part.loc[part.score.idxmax()]
        assert part.chosen.tolist() == (part.learning_rate == best.learning_rate).tolist()
        assert runs.learning_rate[method] == best.learning_rate
        record = read_record(results / "runs" / runs.run[method] / "record.json")
        assert record.spec.learning_rate == best.learning_rate
        assert record.tuning.at_edge == ("learning_rate",)  # of two values both are at an edge
    trial = results / "runs/words/tiny/lora-r2-q+v-tune-learning_rate0.01/s100"
    assert not (trial / "adapter").exists()
    assert set(pd.read_parquet(trial / "predictions.parquet").split) == {"selection"}
    assert "tuned: no problem found" in command(project, "loraudit", "verify", "tuned")
    assert planned(project, "study=tuned") == []
    with edited(project / "config/studies/tuned.yaml", "1.0e-5", "2.0e-5"):
        trained = [job for job in planned(project, "study=tuned") if job.startswith("train")]
    assert trained == [
        "train words tiny lora-r2-q+v seed 0",
        "train words tiny lora-r2-q+v-tune-learning_rate2e-05 seed 100",
        "train words tiny peft-r2-q+v seed 0",
    ]


def test_a_warm_start_is_an_edge_of_the_dag(switched, project):
    folder = switched / "runs/words/tiny/lora-r2-q+v-letters-start/s1"
    record = read_record(folder / "record.json")
    source = switched / "runs/letters/tiny/lora-r2-q+v/s1"
    assert record.spec.warm_start.spec_sha256 == read_record(source / "record.json").spec_sha256
    assert len(record.train.copied) == 8
    assert record.environment["started_from"] == folder_fingerprint(source / "adapter")
    with edited(project / "config/studies/switches.yaml", "{task: letters, method: lora}",
                "{task: letters, method: lora, epochs: 1}"):  # fmt: skip
        trained = [job for job in planned(project, "study=switches") if job.startswith("train")]
    assert trained == [
        f"train {run} seed {seed}"
        for run in ("letters tiny lora-r2-q+v", "words tiny lora-r2-q+v-letters-start")
        for seed in (0, 1)
    ]


def test_every_run_is_read_as_a_language_model_on_all_texts_of_its_chain(switched):
    table = pd.read_parquet(switched / "tidy/language_loss.parquet")
    texts = table.groupby("run").text.agg(list).to_dict()
    assert texts["letters/tiny/lora-r2-q+v/s1"] == ["letters"]
    assert texts["words/tiny/lora-r2-q+v-letters-start/s1"] == ["words", "letters"]
    assert len(texts) == len(read_study(switched / "study.json").runs)
    assert set(table.rows) == {8}
    assert "no mask token" in (switched / "tables/language_loss.md").read_text()


def test_two_runs_are_compared_on_their_rows(switched, project):
    runs = "results/switches/runs/words/tiny"
    left, right = f"{runs}/lora-r2-q+v-base/s0", f"{runs}/lora-r2-q+v-head-trained/s0"
    output = command(project, "loraudit", "compare", left, right)
    assert re.search(r"head +│ frozen +│ trained", output)
    assert re.search(
        r"128 validation rows of words, last epochs; .* 95 % paired bootstrap \[", output
    )
    assert re.search(r"exact McNemar p = \d", output)
    output = command(project, "loraudit", "compare", left, "nowhere", ok=False)
    assert output.startswith("error: run: 'nowhere' is not known")


def test_plan_says_what_snakemake_would_do_and_how_long_it_takes(done, project):
    config = ["study=twins", "task=letters"]
    # Without its rows, no size of a whole task is known.
    snakemake(project, "resources/tasks/letters/manifest.json", config=" ".join(config))
    output = snakemake(project, "-n", "--quiet", "rules", config=" ".join(config))
    table = output.partition("Job stats:")[2].partition("\ntotal ")[0]
    counts = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.M)}
    output = command(project, "loraudit", "plan", "--config", *config, "--cores", "2", "--json")
    found = json.loads(output[output.index("{") :])
    assert found["jobs"] == {
        name: count for name, count in counts.items() if name not in ("all", "default")
    }
    assert found["runs"] == {"all": 2, "done": 0, "to do": 2}
    assert found["jobs_without_estimate"] == 0
    assert len(found["kinds"]) == 2
    for kind in found["kinds"]:
        assert kind["seconds"] > found["launch_seconds"] > 0
    assert "done 4, to do 0" in command(project, "loraudit", "plan", "--config", "study=small")


def test_verify_knows_a_sound_study_a_stale_one_and_an_edited_one(done, project):
    assert "small: no problem found, 0 notes" in command(project, "loraudit", "verify", "small")
    with edited(project / "src/loraudit/adapters/lora.py", "alpha / rank", "2 * alpha / rank"):
        output = command(project, "loraudit", "verify", "small", "--quick", ok=False)
    stale = re.findall(r"^problem: (\S+): stale: made by other code", output, re.M)
    assert stale == ["results/small/runs/words/tiny/lora-r2-q+v/s0/record.json"]
    record = done / "runs/words/tiny/head/s0/record.json"
    with edited(record, '"steps": 32', '"steps": 33'):
        output = command(project, "loraudit", "verify", "small", "--quick", ok=False)
    assert f"problem: {record.relative_to(project)}: changed after the run" in output


def test_the_report_shows_the_numbers_and_needs_no_network(done):
    page = (done / "report.html").read_text()
    summary = pd.read_csv(done / "tables/summary.csv")
    for value in summary.best_mean:
        assert f"{100 * value:.1f}" in page
    checks = len(pd.read_csv(done / "tidy/crosscheck.csv"))
    assert f"{checks} of {checks} checks" in page
    lines = page.count("Not drawn: ")  # what would show nothing: two epochs make no curve
    assert "Not drawn: Learning curves" in page
    assert page.count('<img src="data:image/svg+xml;base64,') + lines == len(FIGURES)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "All 4 runs of the study are here" in page
    assert "snakemake --cores 1 figures/small/cost.svg --config study=small" in page


def test_snakemakes_own_report_has_the_captions(done, project):
    snakemake(project, "--report", "snakemake.html")
    page = (project / "snakemake.html").read_text()
    for name in [*FIGURES, *TABLES, "report"]:
        first_words = (project / f"workflow/report/{name}.rst").read_text()[:20]
        assert first_words in page


def test_an_unfinished_study_has_a_report_that_names_what_is_missing(project):
    """One run diverges; the others are kept, and the page says which is not there and why."""
    study = project / "config/studies/unfinished.yaml"
    wild = "{method: lora, targets: q+v, learning_rate: 1.0e+30, max_grad_norm: null}"
    study.write_text(STUDY.replace("{method: [lora, peft], targets: q+v}", wild))
    output = snakemake(project, "partial", config="study=unfinished", ok=False)
    assert "no run of unfinished has a result yet" in output
    heads = [f"results/unfinished/runs/words/tiny/{name}/s0/record.json" for name in RUNS]
    wanted = [path for path in heads if "peft" not in path]
    snakemake(project, "--keep-going", *wanted, config="study=unfinished", ok=False)
    snakemake(project, "partial", config="study=unfinished")
    results = project / "results/unfinished"
    page = (results / "partial/report.html").read_text()
    assert "Incomplete: 2 of 3 runs are here" in page
    assert "without a result: 1 run, 1 cross-check" in page
    row = r"</td>\s*<td[^>]*>started, no result: .*the loss is nan"
    assert re.search(re.escape("words/tiny/lora-r2-q+v/s0") + row, page)
    assert list(pd.read_csv(results / "partial/tables/summary.csv").method) == ["head", "full"]
    assert not (results / "tables").exists()


def test_again_there_is_nothing_to_do(done, project):
    assert "Nothing to be done" in snakemake(project)


def test_a_comment_reruns_nothing(done, project):
    lora = project / "src/loraudit/adapters/lora.py"
    with edited(lora, "self.rank = rank", "# the paper's r\n        self.rank = rank"):
        assert planned(project) == []


def test_an_edit_of_the_scaling_reruns_in_house_runs_and_cross_checks_only(done, project):
    with edited(project / "src/loraudit/adapters/lora.py", "alpha / rank", "2 * alpha / rank"):
        jobs = planned(project)
    assert jobs == sorted(
        [*ANALYSIS, "cross-check words tiny r2-q+v", "train words tiny lora-r2-q+v seed 0"]
    )


def test_an_edit_of_a_plot_draws_the_figures_again_and_trains_nothing(done, project):
    with edited(project / "src/loraudit/report/curve_figures.py", "linewidth=0.5", "linewidth=0.6"):
        jobs = planned(project)
    assert jobs == [DRAWN, "write the report"]


def test_an_edit_of_all_figures_style_never_retrains(done, project):
    with edited(project / "src/loraudit/report/figure_style.py", "TITLE = 36", "TITLE = 35"):
        jobs = planned(project)
    assert jobs == sorted(["compare published numbers", DRAWN, "write the report"])


def test_a_changed_field_reruns_the_runs_that_have_it(done, project):
    study = project / "config/studies/small.yaml"
    with edited(study, "method: [head, full]}", "method: [head, full], weight_decay: 0.1}"):
        jobs = planned(project)
    trained = [job for job in jobs if job.startswith(("train", "cross"))]
    assert trained == ["train words tiny full seed 0", "train words tiny head seed 0"]


@pytest.mark.long
def test_a_deleted_run_is_redone_with_what_depends_on_it(done, project):
    folder = done / "runs/words/tiny/head/s0"
    before = (folder / "predictions.parquet").read_bytes()
    shutil.rmtree(folder)
    assert planned(project) == sorted([*COLLECTED, DRAWN, "train words tiny head seed 0"])
    record = str((folder / "record.json").relative_to(project))
    snakemake(project, record, warm=False)  # another seed of Python's hashes
    snakemake(project)
    assert (folder / "predictions.parquet").read_bytes() == before
    assert planned(project) == []


def test_a_wrong_scaling_fails_the_cross_check_job_and_leaves_no_table(done, project):
    target = "results/small/crosscheck/words/tiny/r2-q+v.json"
    kept = (project / target).read_text()
    with edited(project / "src/loraudit/adapters/lora.py", "alpha / rank", "2 * alpha / rank"):
        output = snakemake(project, target, ok=False)
    assert re.search(
        r"error: cross-check of r2-q\+v failed: optimizer steps \(float64, PEFT\)", output
    )
    assert not (project / target).exists()
    snakemake(project, target)
    assert (project / target).read_text() == kept


def test_a_non_finite_loss_fails_the_run_and_leaves_no_result(done, project):
    study = project / "config/studies/wild.yaml"
    study.write_text(
        STUDY.replace("1.0e-2", "1.0e+30, max_grad_norm: null").replace("lora, peft", "lora")
    )
    run = "results/wild/runs/words/tiny/lora-r2-q+v/s0"
    output = snakemake(project, f"{run}/record.json", config="study=wild", ok=False)
    assert re.search(r"error: the loss is nan at step \d+ \(epoch 1\)", output)
    assert "Traceback" not in output
    assert not list((project / run).glob("*"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("study=smal", r"study: 'smal' is not known; did you mean 'small'"),
        ("study=small task=wrods", r"task: 'wrods' is not known; did you mean 'words'"),
        ("study=small model=tony", r"model: 'tony' is not known; did you mean 'tiny'"),
        ("study=small lunch=cpu", r"key: 'lunch' is not known; did you mean 'launch'"),
    ],
)
def test_bad_configuration_is_one_sentence_before_any_job(project, config, message):
    output = snakemake(project, "-n", config=config, ok=False)
    assert re.search(message, output)
    assert "Traceback" not in output


def test_real_glue_is_one_switch_away(done, project):
    config = "study=small task=sst2 glue=hub-folder"
    (project / "hub-folder").symlink_to(project / "hub")
    jobs = planned(project, config)
    assert "fetch task sst2" in jobs
    assert sum(job.startswith("train sst2 tiny") for job in jobs) == 4
    snakemake(project, "resources/tasks/sst2/manifest.json", config=config)
    assert read_json(project / "resources/tasks/sst2/manifest.json")["splits"]["train"]["rows"]


def test_a_hub_study_without_a_network_says_what_to_do(project):
    output = snakemake(
        project, "resources/tasks/mrpc/manifest.json", config="study=small task=mrpc", ok=False
    )
    assert re.search(r"error: cannot get nyu-mll/glue .*connect this machine, .*glue=", output)
    assert not (project / "resources/tasks/mrpc/manifest.json").exists()


@pytest.mark.parametrize("name", ["quickstart", "frozen-head", "adaptive", "paper-table2"])
def test_shipped_studies_of_every_kind_plan_without_a_network(project, name):
    """A grid, an ablation, ranks and bits, and warm starts; test_expand.py expands the others."""
    output = snakemake(project, "-n", "--quiet", "rules", config=f"study={name}")
    form = rf"^study {name}: (\d+) runs .*?(?:after (\d+) runs that tune)?, (\d+) cross-checks$"
    described = re.search(form, output, re.M)
    runs, tuning, checks = (int(count or 0) for count in described.groups())
    assert runs + tuning == int(re.search(r"^train +(\d+)$", output, re.M).group(1))
    assert checks == int(re.search(r"^crosscheck +(\d+)$", output, re.M).group(1))


COUNTED = """
import os, pathlib, runpy, sys
from loraudit.training import loop
folder, forward = sys.argv[-1], loop.forward
def counted(state, examples, index):
    if not state.model.training:
        with open(pathlib.Path(folder, os.environ.get("RANK", "0") + ".rows"), "a") as file:
            file.writelines(f"{row}\\n" for row in index)
    return forward(state, examples, index)
loop.forward = counted
sys.argv[-1] += "/run"
runpy.run_path("scripts/train.py", run_name="__main__")
"""
"""scripts/train.py, which writes down the rows that each process evaluates."""


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora"},
        pytest.param(
            {"method": "alora", "alora": ALoRASettings(rows=16, first=0.5, between=0.5)},
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"method": "adalora", "adalora": AdaLoRASettings(deltaT=2), "init": None},
            marks=pytest.mark.long,
        ),
    ],
    ids=lambda changes: changes["method"],
)
def test_two_gloo_processes_equal_one(project, tmp_path, changes):
    """Without dropout (each process has masks of its own); one step has a row for one process only.

    Logits agree to 1e-4 and losses to 1e-5 (sums in another order); predictions are equal where two
    logits are further apart than that, and metrics where all are. 37 rows in evaluation batches of
    16 are two batches for one process and one for the other: every row is evaluated once.
    """
    spec = make_spec(micro_batch=4, train_rows=57, validation_rows=37, **changes)
    source = _folder({"folder": str(project / "hub"), "config": "sst2"})
    fetch_task(spec.task.model_copy(update={"source": source}), tmp_path / "t")
    shutil.copytree(project / "tiny-model", tmp_path / "m")
    tokenise(tmp_path / "t", tmp_path / "m", spec.max_length, tmp_path / "tokens")
    config = read_json(tmp_path / "m/config.json")
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    (tmp_path / "counted.py").write_text(COUNTED)
    launched = [_launched(project, tmp_path, launch, spec) for launch in ("cpu", "cpu2")]
    for processes, (record, table, _, rows) in enumerate(launched, 1):
        assert record.environment["processes"] == processes
        assert record.environment["threads"] == 1  # those of each process
        assert len(rows) == processes
        if changes["method"] == "lora":  # the others also score while they train
            assert sorted(itertools.chain(*rows)) == sorted(2 * list(range(37)))
        for epoch in (1, 2):
            shown = table[table.epoch == epoch]["row"]
            assert shown.empty or list(shown) == list(range(37))
    (one, table, losses, _), (two, table2, losses2, rows) = launched
    if changes["method"] == "lora":
        assert {len(found) for found in rows} == {2 * 16, 2 * (16 + 5)}
    moved = [tmp_path / launch / "run/ranks.csv" for launch in ("cpu", "cpu2")]
    assert [path.exists() for path in moved] == 2 * [changes["method"] != "lora"]
    if moved[0].exists():
        assert moved[0].read_text() == moved[1].read_text()
        assert two.train.counts["rank_changes"] > 0
    columns = ["split", "epoch", "row", "label"]
    pd.testing.assert_frame_equal(table[columns], table2[columns])
    logits, logits2 = (found.filter(like="logit_") for found in (table, table2))
    assert (logits - logits2).abs().max().max() < 1e-4
    clear = (logits.logit_0 - logits.logit_1).abs() > 2e-4
    assert clear.mean() > 0.9
    assert table.prediction[clear].equals(table2.prediction[clear])
    assert losses == pytest.approx(losses2, rel=1e-5)
    if clear.all():
        assert (one.train.epochs["best"].scores, one.train.epochs["last"].scores) == (
            two.train.epochs["best"].scores,
            two.train.epochs["last"].scores,
        )
    assert one.train.steps == two.train.steps == 2 * 8


def _launched(project, folder: Path, launch: str, spec):
    """Train by a launch file; returns record, predictions, losses, rows evaluated per process.

    As in a rule, the environment has the number of threads of all processes together.
    """
    out = folder / launch
    out.mkdir()
    options = {"--spec": spec.model_dump_json(), "--tokens": folder / "tokens"}
    options |= {"--model": folder / "m", "--out": out}
    command(project, "env", "OMP_NUM_THREADS=2", "MKL_NUM_THREADS=2", "python",
            "scripts/launch.py", "--num_cpu_threads_per_process", "1",
            "--config_file", f"profiles/accelerate/{launch}.yaml", str(folder / "counted.py"),
            *(str(part) for pair in options.items() for part in pair))  # fmt: skip
    rows = [[int(row) for row in path.read_text().split()] for path in out.glob("*.rows")]
    losses = list(pd.read_csv(out / "run/history.csv").train_loss)
    predictions = pd.read_parquet(out / "run/predictions.parquet")
    return read_record(out / "run/record.json"), predictions, losses, rows


def _folder(source: dict):
    from loraudit.studies.entries import FolderSource

    return FolderSource(**source)
