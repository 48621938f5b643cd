"""Claims and evidence made by hand: the effects that are planted in it are known."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from loraudit.analysis.claims import claim_verdicts
from loraudit.analysis.evidence import Cell, Evidence
from loraudit.studies.claims import Claim

FACTS = {
    "statement": "S",
    "where": "section 1",
    "source": "text",
    "confidence": "seen",
    "scope": {"models": ["m"], "tasks": ["t"]},
    "quantity": "score",
}


def claim(name: str = "one", **fields) -> Claim:
    """Make a claim; margins and bounds are in points of score unless `unit` says otherwise."""
    unit = {} if fields["test"] == "ratio" else {"unit": "points"}
    return Claim(**{"id": f"file.{name}", **FACTS, **unit, **fields})


def cell(scores, subject=("t", "m"), label: str = "", columns: Mapping = {}, **fields) -> Cell:
    """Make a cell of LoRA with a score for each of the seeds 0, 1, ..."""
    known = {"method": "lora", "rank": 8, "targets": "q+v", "matrices": ("q", "v"), **fields}
    if "targets" in fields:
        known["matrices"] = tuple(fields["targets"].split("+"))
    seeds = range(len(scores))
    name = f"{known['method']} r{known['rank']} {known['targets']}"
    runs = pd.DataFrame({"seed": seeds, "last": scores, **columns})
    return Cell(name, *subject, known, runs, label)


def evidence(*cells: Cell, **fields) -> Evidence:
    return Evidence("made", cells, **fields)


def draws(random: np.random.Generator, mean: float, n: int, sd: float = 0.01) -> np.ndarray:
    return mean + sd * random.standard_normal(n)


def verdict_table() -> pd.DataFrame:
    """Make a table of verdicts: each word, with and without Holm, ratios, and one not tested."""
    random = np.random.default_rng(0)
    pair = {"left": {"targets": "q+v"}, "right": {"targets": "q"}, "margin": 0}
    rates = {"tuned": "learning_rate", "parameters_trainable": 10, "parameters_model": 1000}
    scores = [draws(random, mean, 5) for mean in (0.85, 0.80, 0.845)]
    best = [{"best": one, "best_epoch": one} for one in scores]
    made = evidence(
        cell(scores[0], columns={**rates, **best[0]}),
        cell(scores[1], targets="q", columns={**rates, **best[1]}),
        cell(scores[2], targets="k", columns={**rates, **best[2]}),
    )
    claims = [
        claim("better", test="better", **pair),
        claim(
            "worse",
            test="better",
            **{**pair, "left": {"targets": "q"}, "right": {"targets": "q+v"}},
        ),
        claim("open", test="better", **{**pair, "right": {"targets": "k"}}),
        claim("wide", test="equivalent", **{**pair, "margin": 5}),
        claim(
            "ratio",
            test="ratio",
            quantity="chosen_epoch",
            epoch="best",
            low=0.5,
            high=2,
            left={"targets": "q+v"},
            right={"targets": "q"},
        ),
        claim("gone", test="better", **{**pair, "right": {"targets": "o"}}),
        claim(
            "share",
            test="at_most",
            quantity="trainable_share",
            select={"targets": "q"},
            bound=2,
            unit="percent",
        ),
    ]
    table = claim_verdicts(made, claims, [one.id for one in claims])
    return table.assign(cited="A. Author 2024")
