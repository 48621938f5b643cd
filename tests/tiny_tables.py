"""Small tables for the figures and pages, made by hand: what is drawn can be counted."""

import pandas as pd

import tiny_claims
from loraudit.analysis.cost import PRICES
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figures import drawn_rows
from loraudit.report.score_figures import score_rows

RANK_CELL = {"task": "t", "model": "m", "rank": 2.0, "targets": "q+v", "label": ""}


def tidy() -> pd.DataFrame:
    rows = [
        {
            "method": method,
            "rank": rank,
            "targets": targets,
            "seed": seed,
            "best": 0.7 + rank / 100 + seed / 50,
            "last": 0.7 + rank / 100,
            "parameters_trainable": 1000 * rank + len(targets),
        }
        for method in ("lora", "peft")
        for rank in (1, 8)
        for targets in ("q+v", "all")
        for seed in (0, 1)
    ]
    rows += [
        {
            "method": method,
            "rank": None,
            "targets": None,
            "seed": 0,
            "best": score,
            "last": score,
            "parameters_trainable": count,
        }
        for method, score, count in (("head", 0.66, 770), ("full", 0.8, 10**7))
    ]
    both = pd.DataFrame(rows).assign(task="t", model="m", label="", metric="accuracy")
    return both.assign(parameters_head=770)


def scores() -> pd.DataFrame:
    """Make what the score figures draw of runs on 400 rows, 60 % of which are of one class."""
    known = {"rows_train": 100, "rows_validation": 400, "majority": 0.6}
    return score_rows(tidy().assign(**known), pd.DataFrame())


def checks() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"cell": "c", "check": check, "dtype": dtype, "difference": gap, "tolerance": limit}
            for check, gap, limit in (("same layers", 0.0, 0.0), ("outputs", 1e-12, 1e-8))
            for dtype in ("float64", "float32")
        ]
    )


def compared() -> pd.DataFrame:
    """Make a verdict table with one row per word."""
    words = ["reproduced", "not reproduced", "undecided", "not comparable"]
    gaps = [0.001, -0.02, -0.01, float("nan")]  # of a row without a test all are missing
    return pd.DataFrame(
        {
            "task": "t",
            "model": "m",
            "method": "lora",
            "rank": [1, 2, 4, 8],
            "targets": "q+v",
            "label": "",
            "published": "paper.table",
            "ours": "poster.seeds",
            **dict.fromkeys(("metric", "split", "settings"), "same"),
            "selection": "best epoch",
            "epoch": "best",
            "n": 5,
            "difference": gaps,
            "low": [gap - 0.005 for gap in gaps],
            "high": [gap + 0.005 for gap in gaps],
            "low90": [gap - 0.004 for gap in gaps],
            "high90": [gap + 0.004 for gap in gaps],
            "protocol": ["same", "another", "not stated", ""],
            "margin": 0.01,
            "published_value": 0.9,
            "published_sd": [0.002, float("nan"), 0.004, 0.001],
            "verdict": words,
        }
    )


def effects() -> pd.DataFrame:
    rows = [("head trained", "best", 0.05), ("head trained", "last", 0.06)]
    rows += [("last epoch, not the best", "best", -0.01)]
    table = pd.DataFrame(rows, columns=["switch", "epoch", "difference"])
    table = table.assign(low=table.difference - 0.01, high=table.difference + 0.01)
    table["p_holm"] = [0.01, 0.2, float("nan")]
    table = table.assign(asks=["equivalence", "equivalence", "difference"], margin=0.02)
    both = [table.assign(task=task, model="m", base=0.8, n=5) for task in ("a", "b")]
    return pd.concat(both, ignore_index=True)


def costs() -> pd.DataFrame:
    cells = {"method": ["lora", "full"], "rank": [8, None], "targets": ["q+v", None], "label": ""}
    numbers = {"bytes_tasks": [5e8, 5e9], "peak_mib": [900, 1800], "step": [0.2, 0.4]}
    numbers |= {"step_sd": [0.01, 0.02], "clock": "CPU", "steps_differ": True}
    numbers |= {"device_mib": float("nan"), "n": [5, 4]}
    return pd.DataFrame({"task": "t", "model": "m", **cells, **numbers})


def epochs() -> pd.DataFrame:
    runs = tidy()[["task", "model", "method", "rank", "targets", "label", "seed"]]
    tables = [
        runs.assign(epoch=epoch, train_loss=1 / epoch + runs.seed / 10, score=0.5 + epoch / 10)
        for epoch in (1, 2, 3, 4)
    ]
    return pd.concat(tables, ignore_index=True)


def spectrum() -> pd.DataFrame:
    """Make singular values of two layers, ranks 1 and 2, and two target sets: the second wider."""
    rows = [
        {
            "run": f"{targets}-r{rank}-s{seed}",
            "rank": rank,
            "targets": targets,
            "layer": layer,
            "matrix": matrix,
            "index": index,
            "singular_value": 10.0 * rank + layer - index / 2 + seed / 10,
        }
        for targets, matrices in (("q", "q"), ("q+v", "qv"))
        for rank in (1, 2)
        for seed in (0, 1)
        for layer in (0, 1)
        for matrix in matrices
        for index in range(1, rank + 1)
    ]
    return pd.DataFrame(rows).assign(task="t", model="m", label="")


def projections() -> pd.DataFrame:
    rows = spectrum().drop_duplicates(["run", "layer", "matrix"]).reset_index(drop=True)
    norms = {"update_norm": 4, "projected_weight": 9, "projected_update": 2, "projected_random": 1}
    ranks = 1 + rows["rank"] / 10 + rows.singular_value % 1
    return rows.assign(stable_rank=ranks, **norms)


def similarities() -> pd.DataFrame:
    """Make phi of pairs of ranks 1 and 2 in four layers, with a control in the first."""
    rows = [
        {
            "targets": targets,
            "layer": layer,
            "matrix": matrix,
            "control": control,
            "i": 1,
            "j": j,
            "phi": 0.1 if control else (layer + j) / 10,
        }
        for targets, matrices in (("q", "q"), ("q+v", "qv"))
        for matrix in matrices
        for layer, control in ((0, False), (0, True), (1, False), (2, False), (3, False))
        for j in (1, 2)
    ]
    names = {"task": "t", "model": "m", "label": "", "first": "r1 s0", "second": "r2 s0"}
    return pd.DataFrame(rows).assign(pair="ranks", side="right", **names)


def priced() -> pd.DataFrame:
    """Make three cells of two seeds: the second is beaten in everything by the first."""
    prices = {price: [1000, 2000, 3000] for price in PRICES} | {"clock": "CPU"}
    prices |= {f"{price}_sd": [10, 20, 30] for price in PRICES}
    fronts = {f"front_{price}": ["on", "beaten", "on"] for price in PRICES}
    fronts |= {f"clear_{price}": True for price in PRICES}
    cells = {"method": ["lora", "lora", "full"], "rank": [1, 8, None], "label": ""}
    scores = {"last_mean": [0.8, 0.7, 0.9], "last_sd": [0.01, float("nan"), 0.02]}
    scores |= {"n": 3, "last_collapsed": [0, 0, 0]}
    names = {"task": "t", "model": "m", "targets": ["q+v", "q+v", None], "metric": "accuracy"}
    table = pd.DataFrame({**names, **cells, **scores, **prices, **fronts, "on_gpu": False})
    own = {f"run_{price}": table[price] for price in PRICES}
    own |= {"run_last_collapsed": False}
    seeds = [table.assign(seed=seed, run_last=table.last_mean, **own) for seed in (0, 1)]
    return pd.concat(seeds, ignore_index=True)


def runs_and_verdicts() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make runs of the paper's model and numbers: ranks of one table, a baseline, another."""
    runs = tidy().assign(rows_train=100)
    rows = [
        ("lora", 1, "q+v", "best", "paper.ranks", 0.72, 0.01, "reproduced"),
        ("peft", 1, "q+v", "best", "paper.ranks", 0.72, 0.01, "reproduced"),
        ("lora", 8, "q+v", "best", "paper.ranks", 0.74, 0.01, "undecided"),
        ("full", None, None, "last", "paper.main", 0.81, float("nan"), "not reproduced"),
        ("lora", 8, "all", "best", "paper.other", 0.99, 0.01, "not comparable"),
    ]
    names = ["method", "rank", "targets", "epoch", "published", "published_value", "published_sd"]
    table = pd.DataFrame(rows, columns=[*names, "verdict"])
    return runs, table.assign(task="t", model="m", label=None, metric="accuracy")


def moved() -> pd.DataFrame:
    """Make two seeds that move rank from v to q, at step 10 or 20, and end at step 40."""
    rows = []
    for seed, step in ((0, 10), (1, 20)):
        for at, shift in ((0, 0), (step, 1), (40, 1)):
            for layer in (0, 1):
                for matrix, sign in (("q", 1), ("v", -1)):
                    run = {"run": f"s{seed}", "seed": seed, "step": at, "layer": layer}
                    rows.append({**run, "matrix": matrix, "in_use": 2 + sign * shift})
    return pd.DataFrame(rows).assign(method="alora", **RANK_CELL)


def scored() -> pd.DataFrame:
    """Make scores of three cells over full precision, 4 and 2 bits, two seeds each."""
    rows = [
        {"method": method, "label": label, "base_bits": bits, "seed": seed, "run": f"{label}{seed}"}
        for method, label, bits in (
            ("lora", "", None),
            ("lora", "base_bits4", 4),
            ("lora", "base_bits2", 2),
            ("lora", "base_bits4-loftq", 4),
            ("lora", "base_bits2-loftq", 2),
        )
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows).assign(**{k: v for k, v in RANK_CELL.items() if k != "label"})
    scores = 0.7 + table.base_bits.fillna(32) / 200 + table.seed / 100
    return table.assign(metric="accuracy", best=scores, last=scores)


def tried() -> pd.DataFrame:
    """Make trials of two cells and a twin at three rates: one choice inside, one at the edge."""
    rows = []
    for method, rank, scores in (
        ("lora", 1, (0.6, 0.8, 0.7)),
        ("peft", 1, (0.6, 0.8, 0.7)),
        ("lora", 8, (0.9, 0.8, 0.5)),
    ):
        for rate, score in zip((1e-4, 1e-3, 1e-2), scores, strict=True):
            chosen = score == max(scores)
            edge = "learning_rate" if chosen and rate != 1e-3 else ""
            cell = {**RANK_CELL, "method": method, "rank": rank, "chosen": chosen, "at_edge": edge}
            trial = {"learning_rate": rate, "values": f'{{"learning_rate": {rate}}}'}
            rows += [{**cell, **trial, "seed": s, "score": score + s / 1e4} for s in (0, 1)]
    return pd.DataFrame(rows)


def intruded() -> pd.DataFrame:
    """Make intruder counts of two ranks and full fine-tuning, two seeds, layers and matrices."""
    made = [
        {"method": method, "rank": rank, "targets": targets, "seed": seed, "layer": layer}
        | {"run": f"{method}{rank}s{seed}", "matrix": matrix, "intruders": count + seed * layer}
        for method, rank, targets, count in (
            ("lora", 1, "q+v", 3),
            ("lora", 8, "q+v", 1),
            ("full_saved", None, "", 0),
        )
        for seed in (0, 1)
        for layer in (0, 1)
        for matrix in ("q", "v")
    ]
    return pd.DataFrame(made).assign(task="t", model="m", label="", of=10, below=0.5, cosine=0.3)


def rows(name: str) -> pd.DataFrame:
    """Return what a figure of the registry draws of a small study."""
    if name in DRAWN:
        return DRAWN[name]()
    return drawn_rows(FIGURES[name], [TABLES[name]()])[0]


DRAWN = {
    "hero": lambda: scores(),
    "score_vs_rows": lambda: scores().assign(rows_train=[100, 1000] * 9),
    "pareto": priced,
    "crosscheck": checks,
}
"""Rows as they are drawn."""

TABLES = {
    "claims": tiny_claims.verdict_table,
    "verdicts": compared,
    "switches": effects,
    "score_vs_bits": scored,
    "learning_curves": epochs,
    "tuning": tried,
    "ranks": moved,
    "cost": costs,
    "spectra": spectrum,
    "stable_rank": projections,
    "amplification": projections,
    "intruders": intruded,
    **{
        f"subspace_{pair}": lambda pair=pair: similarities().assign(pair=pair)
        for pair in ("ranks", "seeds", "weights")
    },
}
"""Tables of which rows are selected."""
