"""The report: all figures and tables have a place, words come from numbers, text is escaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import test_figures
import test_rank_figures

from loraudit.report import figures, page, section7_figures
from loraudit.report.alt_text import DESCRIBE, describe, listed
from loraudit.report.figure_registry import DRAWN
from loraudit.report.products import FIGURES, TABLES, UPDATES, study_figures
from loraudit.report.tables import (
    data_table,
    processors,
    protocol_table,
    provenance_table,
    switched_table,
)
from loraudit.studies.expand import load_study
from loraudit.studies.study import Run, Study, Switch
from tiny import make_spec, make_task

HOSTILE = "</script><script>document.title='broken'</script>\"'&<img src=x onerror=alert(1)>"
WORDS = ["reproduced", "not reproduced", "undecided", "not comparable"]


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
        "verdicts": test_figures.compared(),
        "score_vs_rank": test_figures.tidy().assign(task=HOSTILE),
        "learning_curves": test_figures.epochs().assign(model=HOSTILE),
        "cost": test_figures.costs(),
        "pareto": test_figures.priced(),
        "crosscheck": test_figures.checks(),
        "spectra": section7_figures.spectra_rows(test_figures.spectrum()),
        "subspace_ranks": section7_figures.pair_rows(test_figures.similarities(), "ranks"),
    }
    for name, table in drawn.items():
        figures.save(DRAWN[name][1](table), table, folder / name)
    return page.Page(
        study=study,
        tables={
            "missing": pd.DataFrame({"what": ["run"], "name": [HOSTILE], "known": ["not started"]}),
            "switched": page.switched_table(study),
            "protocol": page.protocol_table(study),
            "verdicts": pd.DataFrame(long),
            "provenance": pd.DataFrame({"fact": ["commit"], "value": ["0123456789abcdef" * 20]}),
        },
        figures={name: folder / f"{name}.svg" for name in drawn},
        facts={"runs": "1 of 2 runs is here.", "comparison": HOSTILE, "verdicts": HOSTILE},
        remake={name: f"snakemake --cores 1 figures/small/{name}.svg" for name in drawn},
    )


SHOWN = {
    "verdicts": test_figures.compared,
    "switches": test_figures.effects,
    "score_vs_rank": test_figures.tidy,
    "score_vs_parameters": test_figures.tidy,
    "score_vs_rows": lambda: test_figures.tidy().assign(rows_train=[100, 1000] * 9),
    "score_vs_bits": test_rank_figures.scored_rows,
    "learning_curves": test_figures.epochs,
    "ranks": test_rank_figures.moved_rows,
    "cost": test_figures.costs,
    "pareto": test_figures.priced,
    "crosscheck": test_figures.checks,
    "spectra": lambda: section7_figures.spectra_rows(test_figures.spectrum()),
    "stable_rank": test_figures.projections,
    "amplification": test_figures.projections,
    "subspace_ranks": test_figures.similarities,
    "subspace_seeds": test_figures.similarities,
    "subspace_weights": test_figures.similarities,
}
"""For each figure, rows that it draws."""


def test_every_figure_and_table_has_its_place_once():
    figures = [name for _, shown, _ in page.SECTIONS.values() for name in shown]
    tables = [name for _, _, shown in page.SECTIONS.values() for name in shown]
    assert sorted(figures) == sorted(FIGURES) == sorted(DRAWN) == sorted(page.FIGURE_NAMES)
    assert sorted(tables) == sorted(page.TABLE_NAMES)
    assert set(TABLES) <= set(tables)
    assert sorted(DESCRIBE) == sorted(FIGURES) == sorted(SHOWN)
    for name in FIGURES:
        assert len((page.CAPTIONS / f"{name}.rst").read_text()) > 100


@pytest.mark.parametrize("name", FIGURES)
def test_an_image_is_described_with_its_numbers(name):
    text = describe(name, SHOWN[name]())
    assert len(re.findall(r"\d", text)) > 3
    assert "nan" not in text
    assert len(text) < 1500
    assert "no rows" in describe(name, pd.DataFrame())


def test_descriptions_say_what_is_there():
    text = describe("score_vs_rank", test_figures.tidy())
    assert "LoRA (ours) q+v 71.0 at r=1, 78.0 at r=8" in text
    assert "full fine-tuning 80.0" in text
    text = describe("verdicts", test_figures.compared())
    assert "1 reproduced, 1 not reproduced, 1 undecided" in text
    assert "not comparable" not in text
    assert (
        describe("crosscheck", test_figures.checks()).count("1 of 2 checks differ by exactly 0")
        == 2
    )
    assert listed("abcdef", 2) == "a; b; and 4 more in the CSV"


def test_an_update_that_did_not_move_is_described_without_numbers_it_has_not():
    still = test_figures.projections().assign(stable_rank=float("nan"))
    assert "not defined, no adapter has moved" in describe("stable_rank", still)
    still = section7_figures.spectra_rows(test_figures.spectrum().assign(singular_value=0.0))
    assert "nan" not in describe("spectra", still)


def study(**changes) -> Study:
    runs = [
        Run(
            id=f"t/m/{method}/s{seed}",
            label="",
            spec=make_spec(method=method, seed=seed, **fields),
        )
        for method, fields in (("lora", {}), ("full", {"learning_rate": 1e-5}))
        for seed in (0, 1)
    ]
    return Study(**{"name": "small", "question": "Why?", "runs": tuple(runs), **changes})


def test_the_protocol_tells_none_from_no_use():
    table = page.protocol_table(load_study("config/studies/adaptive.yaml")).set_index("field")
    assert table.value["base_bits"] == "none, 4, 2"
    assert "none for unlabelled" in table["where it differs"]["base_bits"]
    assert table.value["init"] == "kaiming, loftq, error"
    assert table["where it differs"]["alora"] == ""


def test_the_protocol_says_what_decides_a_field():
    table = protocol_table(study()).set_index("field")
    assert table.value["learning_rate"] == "0.005, 1e-05"
    why = table["where it differs"]
    assert why["learning_rate"] == "by method: 0.005 for LoRA (ours); 1e-05 for full fine-tuning"
    assert why["seed"] == "in the grid"
    assert why["epochs"] == why["method"] == ""
    runs = [
        Run(id=f"t/m/lora-{n}/s0", label=f"x{n}", spec=make_spec(alpha=8 if n else 16))
        for n in range(4)
    ]
    why = protocol_table(study(runs=tuple(runs))).set_index("field")["where it differs"]
    assert why["alpha"] == "by variant: 16.0 for x0; else 8.0"


def test_switches_stand_beside_the_bases_value():
    base = Run(id="t/m/lora-base/s0", label="base", spec=make_spec())
    switches = (Switch(label="a", name="alpha 8", changes={"alpha": 8.0, "init_std": None}),)
    table = switched_table(study(runs=(base,), switches=switches))
    assert table.values.tolist() == [
        ["alpha 8", "alpha", "16.0", "8.0"],
        ["alpha 8", "init_std", "none", "none"],
    ]
    assert switched_table(study()).empty


def test_provenance_keeps_values_that_differ_and_names_fingerprints():
    spec = {"task": {"name": "sst2"}, "model": {"name": "minilm"}}
    common = {"data": {"train": "1a"}, "weights": "2b", "packages": {"torch": "2"}}
    records = [
        {"spec": spec, "environment": {"git": {"commit": commit, "dirty": False}, **common}}
        for commit in ("c0", "c1", "c0")
    ]
    table = provenance_table(records).set_index("fact").value
    assert table["git commit"] == "c0, c1"
    assert table["data sha256, sst2 train"] == "1a"
    assert table["weights sha256, minilm"] == "2b"
    assert table["packages torch"] == "2"


INTEL = {"processor": "Xeon"}
AMD = {"processor": "EPYC", "processor_kind": "family 25, torch uses AVX2"}
GPU = {"processor": "Xeon", "device": "cuda:0", "gpus": ["H100", "H100"]}


@pytest.mark.parametrize(
    ("environments", "counts"),
    [
        ([INTEL, INTEL], {"Xeon": 2}),
        ([AMD, INTEL], {"EPYC (family 25, torch uses AVX2)": 1, "Xeon": 1}),
        ([AMD, {**AMD, "processor_kind": "family 26, torch uses AVX512"}],
         {"EPYC (family 25, torch uses AVX2)": 1, "EPYC (family 26, torch uses AVX512)": 1}),
        ([{**INTEL, "resumed": [{"step": 3, **INTEL}]}], {"Xeon": 1}),
        ([{**INTEL, "resumed": [{"step": 3, **AMD}]}],
         {"Xeon": 1, "EPYC (family 25, torch uses AVX2)": 1}),
        ([GPU, {**GPU, "processor": "another"}], {"H100": 2}),
    ],
)  # fmt: skip
def test_runs_are_counted_by_the_kind_of_processor(environments, counts):
    assert processors([{"environment": one} for one in environments]) == counts


def test_a_page_says_when_its_runs_were_made_on_several_kinds_of_processor(tmp_path):
    one, two = page.machine_facts({"Xeon": 2}), page.machine_facts({"Xeon": 2, "EPYC": 1})
    assert one.keys() == {"provenance"}
    assert one["provenance"].startswith("All runs were made on Xeon. On another kind of processor")
    assert "2 kinds of processor (Xeon: 2 runs; EPYC: 1 run)" in two["processors"]
    made = made_page(tmp_path)
    for facts, count in ((one, 1), (two, 2)):
        shown = page.render(replace(made, facts=made.facts | facts))
        assert shown.count(facts["provenance"].replace("'", "&#39;")) == count


def test_the_data_table_leaves_out_columns_that_say_nothing():
    split = {"rows": 3668, "labels": {"no": 1194, "yes": 2474}, "sha256": "1a"}
    manifest = {"splits": {"train": split}, "dropped": {}, "absent": []}
    table = data_table({"mrpc": manifest})
    assert table.values.tolist() == [["mrpc", "train", "3,668", "no 1,194, yes 2,474", "1a"]]
    manifest |= {"dropped": {"no_label": 2}, "absent": ["validation_mismatched"]}
    assert "no label: 2" in data_table({"mrpc": manifest}).to_string()


def found(**changes) -> dict[str, pd.DataFrame]:
    runs = pd.DataFrame({"model": "m", "task": "t", "rows_train": 2000, "rows_validation": 400,
                         "seconds": [90.0, 30.0]})  # fmt: skip
    empty = dict.fromkeys(("crosscheck", "verdicts", "switches", "missing"), pd.DataFrame())
    return {"runs": runs, **empty, **changes}


def test_facts_come_from_the_numbers():
    facts = page.facts(study(), found())
    assert facts["runs"] == "All 4 runs of the study are here, 2 minutes of run time in all."
    assert facts["comparison"].startswith("Not set beside published numbers: m on t, 2,000 train")
    assert "Adapters of rank 8 on q+v with alpha 16" in facts["protocol"]
    assert {"verdicts", "switches", "crosscheck", "updates"}.isdisjoint(facts)
    lost = pd.DataFrame({"what": ["run", "run", "cross-check"]})
    facts = page.facts(study(), found(missing=lost))
    assert facts["runs"].startswith("Incomplete: 2 of 4 runs are here")
    assert "without a result: 2 runs, 1 cross-check." in facts["runs"]
    checks = test_figures.checks().assign(ok=True)
    facts = page.facts(study(), found(crosscheck=checks, verdicts=test_figures.compared()))
    assert "4 of 4 checks in 1 cells" in facts["crosscheck"]
    assert "1e-12 in float64" in facts["crosscheck"]
    assert facts["verdicts"].startswith("1 reproduced, 1 not reproduced")


def test_a_study_draws_what_it_has():
    names = set(study_figures(study()))
    assert names >= {"score_vs_parameters", "pareto", "crosscheck", "spectra", "subspace_seeds"}
    assert names.isdisjoint({"verdicts", "switches", "score_vs_rank", "score_vs_rows"})
    only_full = study(runs=study().runs[2:])
    assert set(study_figures(only_full)) == {"learning_curves", "cost"}
    assert set(study_figures(study(compare=("hu2022.table2",)))) == names | {"verdicts"}
    assert set(UPDATES) < set(FIGURES)


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


def test_hostile_text_makes_no_element_and_no_attribute(tmp_path):
    tags = Tags()
    tags.feed(page.render(made_page(tmp_path)))
    assert tags.tags.count("script") == 1
    assert tags.tags.count("img") == len(made_page(tmp_path).figures)
    assert "onerror" not in tags.names
    assert any(HOSTILE in text for text in tags.text)
