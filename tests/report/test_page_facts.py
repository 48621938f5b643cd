"""What the report says in words of the updates of saved adapters."""

import pandas as pd

from loraudit.report.page_facts import _update_fact


def updates(targets: str, rank: int, stable: float, runs: int = 1) -> list[dict]:
    """Make rows of the table of section 7: one layer, whose update is a tenth of W."""
    row = {
        "task": "t",
        "model": "m",
        "targets": targets,
        "label": None,
        "rank": rank,
        "layer": 0,
        "weight_norm": 10.0,
    }
    values = {"stable_rank": stable, "amplification": 3.0, "update_norm": 1.0}
    names = targets.split("+")
    return [
        {**row, **values, "matrix": matrix, "run": f"{targets} r{rank} s{seed}"}
        for matrix in names
        for seed in range(runs)
    ]


def test_medians_are_of_each_target_set_at_its_own_largest_rank():
    rows = [
        *updates("q+v", 1, 1.0),
        *updates("q+v", 8, 4.0, runs=2),
        *updates("up", 64, 20.0),
    ]
    assert _update_fact(pd.DataFrame(rows)) == (
        "Medians over adapters and layers. "
        "q+v at rank 8 (2 in-house adapters, 1 layer): q: stable rank 4.00, amplification 3, norm "
        "10 % of W's; v: stable rank 4.00, amplification 3, norm 10 % of W's. "
        "up at rank 64 (1 in-house adapter, 1 layer): up: stable rank 20.00, amplification 3, "
        "norm 10 % of W's."
    )


def test_medians_are_of_each_task_and_model():
    rows = pd.DataFrame(updates("q", 8, 4.0))
    text = _update_fact(pd.concat([rows, rows.assign(model="n", stable_rank=2.0)]))
    assert "t (m), q at rank 8 (1 in-house adapter, 1 layer): q: stable rank 4.00" in text
    assert "t (n), q at rank 8 (1 in-house adapter, 1 layer): q: stable rank 2.00" in text
