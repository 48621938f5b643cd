"""The report: all figures and tables have a place, words come from numbers, text is escaped."""

import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import tiny_tables
from loraudit.report import page
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figure_style import save
from loraudit.report.page_facts import data_facts, facts, machine_facts
from loraudit.report.page_tables import protocol_table, switched_table
from loraudit.studies.known import Contamination
from loraudit.studies.study import Run, Study, Switch
from tiny import make_spec, make_task
from tiny_study import small_study

HOSTILE = "</script><script>document.title='broken'</script>\"'&<img src=x onerror=alert(1)>"
WORDS = ["reproduced", "not reproduced", "undecided", "not comparable"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> page.Page:
    return made_page(tmp_path_factory.mktemp("made"))


def made_page(folder: Path) -> page.Page:
    """Draw figures of small tables and set tables with hostile names beside them."""
    task = make_task(name="t").model_copy(update={"name": HOSTILE})
    runs = [
        Run(id=f"run-{method}", label="base", spec=make_spec(method=method).model_copy(
            update={"task": task}))
        for method in ("lora", "peft")
    ]  # fmt: skip
    study = Study(
        name="small",
        question=f"Is {HOSTILE} shown as it is?",
        runs=tuple(runs),
        switches=(Switch(label="alpha-8", name=HOSTILE, changes={"alpha": 8.0}),),
    )
    long = {
        "task": [HOSTILE if n % 2 else f"task {n}" for n in range(12)],
        "difference": ["+1.2", "-0.3", "+10.0", "", *[f"+{n}.5" for n in range(8)]],
        "95 % interval": [f"[{n - 20:+.1f}, +99.0]" for n in range(12)],
        "disk": ["5.0 GB", "91.2 MB", "7.0 kB", *["1.0 MB"] * 9],
        "p": ["1.2e-05", "0.001", "0.9", *["0.5"] * 9],
        "verdict": [WORDS[n % 4] for n in range(12)],
        "why": ["an unbroken " + "word" * 60] * 12,
    }
    drawn = {
        "verdicts": tiny_tables.compared(),
        "hero": tiny_tables.scores().assign(task=HOSTILE),
        "learning_curves": tiny_tables.epochs().assign(model=HOSTILE),
        "cost": tiny_tables.costs(),
        "pareto": tiny_tables.priced(),
        "crosscheck": tiny_tables.checks(),
        "spectra": tiny_tables.rows("spectra"),
        "subspace_ranks": tiny_tables.rows("subspace_ranks"),
    }
    for name, table in drawn.items():
        save(FIGURES[name].code("draw")(table), table, folder / name)
    return page.Page(
        study=study,
        tables={
            "missing": pd.DataFrame({"what": ["run"], "name": [HOSTILE], "known": ["not started"]}),
            "switched": switched_table(study),
            "protocol": protocol_table(study),
            "verdicts": pd.DataFrame(long),
            "provenance": pd.DataFrame({"fact": ["commit"], "value": ["0123456789abcdef" * 20]}),
        },
        figures={name: folder / f"{name}.svg" for name in drawn},
        facts={"runs": "1 of 2 runs is here.", "comparison": HOSTILE, "verdicts": HOSTILE},
        remake={name: f"snakemake --cores 1 figures/small/{name}.svg" for name in drawn},
    )


def test_a_page_says_when_its_runs_were_made_on_several_kinds_of_processor(made):
    one, two = machine_facts({"Xeon": 2}), machine_facts({"Xeon": 2, "EPYC": 1})
    assert one.keys() == {"provenance"}
    assert one["provenance"].startswith("All runs were made on Xeon. On another kind of processor")
    assert "2 kinds of processor (Xeon: 2 runs; EPYC: 1 run)" in two["processors"]
    for said, count in ((one, 1), (two, 2)):
        text = page.render(replace(made, facts=made.facts | said))
        assert text.count(said["provenance"].replace("'", "&#39;")) == count


def tables(**changes) -> dict[str, pd.DataFrame]:
    runs = pd.DataFrame({"model": "m", "task": "t", "rows_train": 2000, "rows_validation": 400,
                         "seconds": [90.0, 30.0]})  # fmt: skip
    names = ("crosscheck", "verdicts", "switches", "pairs", "missing")
    empty = dict.fromkeys(names, pd.DataFrame())
    return {"runs": runs, **empty, **changes}


def test_the_sources_of_a_page_are_read_from_the_files_that_are_cited_only(tmp_path, monkeypatch):
    """All files of published numbers were read for each page, and a broken one stopped it."""
    broken = tmp_path / "config/reference/other.yaml"
    broken.parent.mkdir(parents=True)
    broken.write_text("[")
    monkeypatch.chdir(tmp_path)
    cited = page.sources(("hu2022.table2", "poster2025.seeds"))
    assert {entry["key"]: entry["year"] for entry in cited} == {
        "hu2022.table2": 2022,
        "poster2025.seeds": 2025,
    }


def test_facts_come_from_the_numbers():
    said = facts(small_study(), tables())
    assert said["runs"] == "All 4 runs of the study are here, 2 minutes of run time in all."
    assert said["comparison"].startswith("Not set beside published numbers: m on t, 2,000 train")
    assert "Adapters of rank 8 on q+v with alpha 16" in said["protocol"]
    assert {"verdicts", "switches", "crosscheck", "updates"}.isdisjoint(said)
    lost = pd.DataFrame({"what": ["run", "run", "cross-check"]})
    said = facts(small_study(), tables(missing=lost))
    assert said["runs"].startswith("Incomplete: 2 of 4 runs are here")
    assert "without a result: 2 runs, 1 cross-check." in said["runs"]
    checks = tiny_tables.checks().assign(ok=True)
    said = facts(small_study(), tables(crosscheck=checks, verdicts=tiny_tables.compared()))
    assert "4 of 4 checks in 1 cells" in said["crosscheck"]
    assert "1e-12 in float64" in said["crosscheck"]
    assert said["verdicts"].startswith("1 reproduced, 1 not reproduced")


def planned(*fields: dict) -> Study:
    """Make a study with a run of each of some fields."""
    runs = [
        Run(id=f"t/m/{n}/s0", label="", spec=make_spec(**each)) for n, each in enumerate(fields)
    ]
    return small_study(runs=tuple(runs))


def test_the_protocol_names_a_rule_of_alpha_and_no_rate_of_what_takes_no_steps():
    roots = [{"rank": rank, "alpha": 6 * rank**0.5, "learning_rate": 4e-3} for rank in (1, 2, 8)]
    probe = {"method": "probe", "epochs": 1, "learning_rate": 5e-4}
    study = planned(*roots, {**roots[0], "targets": "all"}, probe)
    said = facts(study, tables())["protocol"]
    where = "Adapters of rank 1, 2, 8 on q+v and on all linear layers with alpha 6 times the square"
    assert f"{where} root of the rank." in said
    assert "learning rate 0.004, head" in said
    rows = protocol_table(study).set_index("field")
    assert rows.value["alpha"] == "6 times the square root of the rank"
    assert rows["where it differs"]["alpha"] == "by rank"
    assert "learning rate" not in rows.index  # one value in all runs that have one
    both = [{"rank": rank, "alpha": 2.0 * rank} for rank in (4, 8)]
    assert "with alpha 2 times the rank." in facts(planned(*both), tables())["protocol"]
    odd = [{"rank": rank, "alpha": alpha} for rank, alpha in ((1, 8), (4, 8), (8, 9))]
    said = facts(planned(*odd), tables())["protocol"]
    assert "with alpha 8 at rank 1, 8 at rank 4, 9 at rank 8." in said


def test_the_margin_of_verdicts_is_one_point_or_several_points():
    for margin, text in ((0.01, "Margin: 1 point."), (0.015, "Margin: 1.5 points.")):
        said = facts(small_study(), tables(verdicts=tiny_tables.compared().assign(margin=margin)))
        assert text in said["verdicts"]


def test_the_title_is_in_words_and_says_what_was_trained_on_what(made):
    assert page.title_of(small_study(name="frozen-head")) == "Frozen head: LoRA on tinytask (tiny)"
    only = small_study().runs[2:]
    assert page.title_of(small_study(runs=only)).startswith("Small: full fine-tuning on ")
    text = page.render(replace(made, study=small_study(name="frozen-head")))
    assert "<h1>Frozen head: LoRA on tinytask (tiny)</h1>" in text


def test_cautions_stand_at_the_top_and_odd_rows_with_the_data(made):
    known = Contamination(model="tiny", task="tinytask", what="a corpus")
    study = small_study(contaminations=(known,))
    shared = {"task": "a", "other": "b", "rows": 10, "in_other": 5, "validation": 2}
    twice = pd.DataFrame([shared | {"in_others_train": 1}])
    said = data_facts(study, {"a": {"remarks": ["validation: odd"]}, "b": {}}, twice)
    assert "tiny was trained on data of tinytask before (a corpus)" in said["cautions"]
    assert "a and b have texts in common (5 of the 10 rows of a)" in said["cautions"]
    assert said["data"] == "a, validation: odd."
    assert data_facts(small_study(), {"b": {}}, twice[:0]) == {}
    text = page.render(replace(made, facts=made.facts | said))
    assert f'<p class="warning">{said["cautions"]}' in text


def test_the_family_of_each_tables_tests_is_said():
    pairs = pd.DataFrame(
        {"epoch": ["best", "best", "best", "last"], "role": ["test", "test", "twins", "test"],
         "p_holm": [0.01, 0.5, math.nan, 0.5], "family": [2, 2, math.nan, 1]}
    )  # fmt: skip
    said = facts(small_study(), tables(pairs=pairs))["scores"]
    assert "the 2 tests of one epoch choice" in said
    assert "rows that repeat their twin's (1) stay outside" in said
    assert "covers these tests together, and may be wider or narrower than that of" in said
    switches = tiny_tables.effects().assign(p_holm=[0.01, 0.01, math.nan] * 2, asks="equivalence")
    said = facts(small_study(), tables(switches=switches))["switches"]
    assert said.endswith("Of the 2 tests at the best epoch, for whose number p and interval are "
                         "adjusted, 2 show equality within the margin.")  # fmt: skip
    alone = tables(pairs=pairs.iloc[:1].assign(family=1))
    assert (
        "one test of each epoch choice: nothing is adjusted"
        in facts(small_study(), alone)["scores"]
    )
    alone = facts(small_study(), tables(switches=switches[switches.index == 0]))["switches"]
    assert alone.endswith("It is the only test at the best epoch.")


def test_a_caption_is_cut_behind_its_first_sentence_and_not_in_brackets():
    assert page.first_sentence("Ranks (A et al. 2024): one. Two. Three.") == (
        "Ranks (A et al. 2024): one.",
        "Two. Three.",
    )
    assert page.first_sentence("Less chance (max(i, j) / d. Or so): one. Two.")[1] == "Two."
    assert page.first_sentence("Below 0.5 of one") == ("Below 0.5 of one.", "")
    for name, text in page.captions().items():
        first, rest = page.first_sentence(text)
        assert first.count("(") == first.count(")"), name
        assert " ".join(filter(None, (first, rest))) == " ".join(text.split()), name
        assert len(first) < 400, name


def test_the_contents_name_the_answer_and_what_speaks_against_it(made):
    text = page.render(replace(made, belief=[("Seeds", "2 per cell.")]))
    assert '<li><a href="#top">The answer</a></li>' in text
    assert '<a href="#belief">Can you believe it?</a>' in text and 'id="belief"' in text
    assert 'href="#belief"' not in page.render(made)


class Tags(HTMLParser):
    """Collects the names of elements and attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.tags, self.names, self.text = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.slow
def test_hostile_text_makes_no_element_and_no_attribute(made):
    tags = Tags()
    tags.feed(page.render(made))
    assert tags.tags.count("script") == 1
    assert tags.tags.count("img") == len(made.figures)
    assert "onerror" not in tags.names
    assert any(HOSTILE in text for text in tags.text)


def test_sick_and_failed_runs_are_counted_and_named():
    runs = tables()["runs"].assign(
        run=["a/s0", "a/s1"], best=0.5, last=0.5, best_collapsed=[True, False], unmoved=[0, 2]
    )
    known = ["started, no result: error: the loss is nan at step 3", "not started"]
    lost = pd.DataFrame({"what": "run", "name": ["b/s0", "b/s1"], "known": known})
    said = facts(small_study(), tables(runs=runs, missing=lost))["scores"]
    assert "1 of 2 runs collapsed to a constant answer, and all means include them: a/s0." in said
    assert "1 of 2 runs have a matrix B that never left zero" in said and "them: a/s1." in said
    assert "1 of 4 runs failed and are in no mean: b/s0." in said
    well = facts(small_study(), tables(runs=runs.assign(best_collapsed=False, unmoved=0)))
    assert not any(word in well["scores"] for word in ("collapsed", "never left zero", "failed"))


def test_a_choice_that_only_some_tasks_made_is_said_to_be_theirs():
    runs = tables()["runs"].assign(run=["a/s0", "b/s0"], task=["t", "u"], best=0.5, last=0.5)
    runs = runs.assign(selected=[0.4, math.nan])
    said = facts(small_study(), tables(runs=runs))["scores"]
    assert "rows held out of the training split. Only t (m) made that choice." in said
    assert "Best is +10.0 points above selected" in said


def test_where_every_run_has_one_epoch_none_is_said_to_be_chosen():
    runs = tables()["runs"].assign(run=["a/s0", "b/s0"], task="t", best=0.5, last=0.5)
    study = small_study()
    once = tuple(
        run.model_copy(update={"spec": run.spec.model_copy(update={"epochs": 1})})
        for run in study.runs
    )
    said = facts(small_study(runs=once), tables(runs=runs))["scores"]
    assert "Every run has one epoch, so that none is chosen." in said
    assert "optimistic" not in said
    assert "optimistic" in facts(study, tables(runs=runs))["scores"]
