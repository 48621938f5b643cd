"""benchmarks/summary.py on the benchmarks that are on record."""

from pathlib import Path

import pandas as pd

from benchmark import benchmark

FOLDER = Path("results/committed/bench")


def test_the_committed_tables_are_made_of_the_committed_measurements():
    with benchmark("summary") as module:
        pd.testing.assert_frame_equal(
            module.targets(FOLDER).replace("", None),
            pd.read_csv(FOLDER / "speed.csv"),
            check_dtype=False,
        )
        for name in ("dropout", "recompute"):
            made = getattr(module, f"{name}_table")(FOLDER)
            text = module.markdown(made.round(2))
            assert (FOLDER / f"{name}.md").read_text() == text


def test_a_measured_ratio_meets_a_target_that_is_not_below_it():
    with benchmark("summary") as module:
        table = module.targets(FOLDER)
    asked = table[table.target.notna()]
    assert len(asked) > 20
    assert (asked.met == (asked["median"] <= asked.target).map({True: "yes", False: "no"})).all()
    assert (table[table.target.isna()].met == "").all()
