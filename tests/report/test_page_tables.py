"""The page's own tables: values that differ show, and what decides them is said."""

import pandas as pd
import pytest

from loraudit.report.page_tables import (
    crosscheck_table,
    data_table,
    overlap_table,
    processors,
    protocol_rest,
    protocol_table,
    provenance_table,
    switched_table,
    twins_table,
)
from loraudit.studies.accounts import protocols
from loraudit.studies.expand import load_study
from loraudit.studies.study import Run, Switch
from tiny import make_spec
from tiny_study import small_study


def test_the_protocol_tells_none_from_no_use():
    study = load_study("config/studies/adaptive.yaml")
    table = protocol_table(study).set_index("field")
    assert table.value["base bits"] == "none, 4, 2"
    assert "none" in table["where it differs"]["base bits"]
    assert table.value["init"] == "kaiming, loftq, error"
    assert "{}" not in table.to_string() and "None" not in table.to_string()
    rest = protocol_rest(study)
    assert "alora rounds 4, pruned modules" in rest
    assert not any(raw in rest for raw in ("{", "None", "init_std", "init std"))


def test_the_protocol_says_what_decides_a_field_and_leaves_out_what_never_differs():
    study = small_study()
    table = protocol_table(study).set_index("field")
    assert table.value["learning rate"] == "0.005, 1e-05"
    why = table["where it differs"]
    assert why["learning rate"] == "by method: 0.005 for LoRA (ours); 1e-05 for full fine-tuning"
    assert why["seed"] == "in the grid" and why["method"] == ""
    assert "epochs" not in table.index and f"epochs {study.runs[0].spec.epochs}" in protocol_rest(
        study
    )
    runs = [
        Run(id=f"t/m/lora-{n}/s0", label=f"x{n}", spec=make_spec(alpha=8 if n else 16))
        for n in range(4)
    ]
    why = protocol_table(small_study(runs=tuple(runs))).set_index("field")["where it differs"]
    assert why["alpha"] == "by variant: 16 for x0; else 8"


def test_the_protocol_shows_where_all_runs_depart_from_its_source():
    source = next(file for file in protocols() if file.defaults.get("global_batch") == 16)
    study = small_study(protocol=source.source)  # of a batch that is another in all its runs
    table = protocol_table(study).set_index("field")
    assert table["in the protocol's source"]["global batch"] == "16"
    assert table.value["global batch"] != "16"
    assert "global batch" not in protocol_table(small_study()).set_index("field").index


def test_switches_stand_beside_the_bases_value():
    base = Run(id="t/m/lora-base/s0", label="base", spec=make_spec())
    switches = (Switch(label="a", name="alpha 8", changes={"alpha": 8.0, "init_std": None}),)
    table = switched_table(small_study(runs=(base,), switches=switches))
    assert table.values.tolist() == [
        ["alpha 8", "alpha", "16", "8"],
        ["alpha 8", "init std", "none", "none"],
    ]
    assert switched_table(small_study()).empty


def test_the_check_that_is_nearest_to_its_tolerance_comes_first():
    checks = pd.DataFrame({
        "cell": ["a", "b", "a", "a"], "check": ["one", "one", "two", "three"], "against": "PEFT",
        "dtype": "float32", "difference": [1e-9, 2e-9, 5e-3, 0.0],
        "tolerance": [1e-6, 1e-6, 1e-2, 0.0], "ok": True,
    })  # fmt: skip
    table = crosscheck_table(checks)
    assert table.check.tolist() == ["two", "one", "three"]
    assert table["share of tolerance"].tolist() == ["50 %", "0 %", "0 %"]
    assert table["largest in"][1] == "b" and table.within[1] == "2 of 2"
    failed = crosscheck_table(checks.assign(ok=[True, False, True, True]))
    assert failed.check[0] == "one"


def test_twins_are_listed_in_words():
    twins = pd.DataFrame({
        "cell": ["t/m/r8-q+v"], "seed": [0], "rows": [1500], "equal_share": [0.998],
        "largest_logit_difference": [2.34e-6], "only_ours_right": [2], "only_peft_right": [1],
        "mcnemar_p": [1.0],
    })  # fmt: skip
    table = twins_table(twins)
    assert not any("_" in name for name in table)
    assert table["equal predictions"].tolist() == ["99.8 %"]
    assert table["only ours is right"].tolist() == ["2"]


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
    names = ["data sha256, sst2 train", "weights sha256, minilm"]
    assert list(table.index)[-2:] == names  # in this order whatever the hash seed: equal bytes


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
        ([{**GPU, "resumed": [{"step": 3, **INTEL, "gpus": ["A100"]}]}], {"H100": 1, "A100": 1}),
    ],
)  # fmt: skip
def test_runs_are_counted_by_the_kind_of_processor(environments, counts):
    assert processors([{"environment": one} for one in environments]) == counts


def test_the_data_table_leaves_out_columns_that_say_nothing():
    split = {"rows": 3668, "labels": {"no": 1194, "yes": 2474}, "sha256": "1a"}
    manifest = {"splits": {"train": split}, "dropped": {}, "absent": []}
    table = data_table({"mrpc": manifest})
    assert table.values.tolist() == [["mrpc", "train", "3,668", "no 1,194, yes 2,474", "1a"]]
    manifest |= {"dropped": {"no_label": 2}, "absent": ["validation_mismatched"]}
    assert "no label: 2" in data_table({"mrpc": manifest}).to_string()
    manifest |= {"also_in_train": {"train": {"rows": 1234, "other_label": 0}}}
    assert data_table({"mrpc": manifest})["also in train"].tolist() == ["1,234"]


def test_the_overlap_table_gives_counts_and_shares():
    row = {"task": "a", "other": "b", "rows": 4000, "in_other": 1000}
    found = pd.DataFrame([row | {"validation": 50, "in_others_train": 1}])
    counts = ["a", "b", "1,000 of 4,000 (25.0 %)", "1 of 50 (2.0 %)"]
    assert overlap_table(found).values.tolist() == [counts]
