"""Published numbers beside cells: sizes of adapters, and the splits that a metric is of."""

import pandas as pd
import pytest

from loraudit.analysis.matching import obstacles
from loraudit.studies.reference import Architecture, Published

KNOWN = Architecture(layers=12, width=768, parameters=100_000_000, source="a test")
CELL = {"method": "peft", "model": "theirs", "rank": 8, "targets": "all", "task": "words"}


def said(number: dict, row: dict, fields: dict | None = None) -> str:
    """Return all that forbids comparing a run with a number of the same model."""
    given = {"reference": "their", "table": "1", "where": "", "source": "", "confidence": "seen"}
    given |= {"value": 50, "model": "theirs", "metric": "accuracy"}
    published = Published(**{**given, **number})
    runs = pd.DataFrame([{"method": "peft", "rank": 8, "matrices": "q+v", **row}])
    return "; ".join(obstacles(CELL, runs, published, {"theirs": KNOWN}, fields))


def adapter(matrices: str, parameters: int) -> dict:
    sizes = {"parameters_adapter": parameters, "parameters_model": KNOWN.parameters}
    return {"matrices": matrices, **sizes}


@pytest.mark.parametrize("matrices", ["q+v", "up+down", "gate+up+down", "q+k+v+o+gate+up+down"])
def test_a_matrix_of_the_mlp_has_the_parameters_of_its_two_widths(matrices):
    """B A of rank r on an in x out matrix has r (in + out) parameters, and an MLP is 4 wide."""
    sides = [(1, 4) if name in ("gate", "up", "down") else (1, 1) for name in matrices.split("+")]
    count = sum(12 * 8 * 768 * (one + two) for one, two in sides)
    assert "layers of width" not in said({}, adapter(matrices, count))
    assert "layers of width 768 would have" in said({}, adapter(matrices, 2 * count))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"peft_type": "VERA"}])
def test_the_shape_of_plain_lora_is_asked_of_lora_only(options):
    found = said({}, adapter("q+v", 5000), {"peft": options})
    assert ("layers of width" in found) == ("peft_type" not in options)


@pytest.mark.parametrize(
    ("metric", "split"),
    [
        ("accuracy", None),
        ("log_loss", None),
        ("accuracy_mismatched", "mismatched"),
        ("log_loss_mismatched", "mismatched"),
    ],
)
def test_a_metrics_split_is_what_stands_after_its_name(metric, split):
    splits = ("train", "validation", *((split,) if split else ()))
    rows = {f"rows_{name}": 10 for name in splits}
    published = {f"published_rows_{name}": 10 for name in splits}
    assert "rows" not in said({"metric": metric}, {**rows, **published})
    assert "size of the task is not" not in said({"metric": metric}, {**rows, **published})
    for name in splits:
        fewer = said({"metric": metric}, {**rows, f"rows_{name}": 5, **published})
        assert f"a subset: 5 {name} rows" in fewer
