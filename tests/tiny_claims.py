"""Claims and evidence made by hand: the effects that are planted in it are known."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

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
