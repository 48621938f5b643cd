"""What claims speak of, read from evidence: one function for each entry of `claims.QUANTITIES`.

Each function takes a cell, the evidence that it is of and the choice of an epoch, and returns the
cell's values by seed, a Series; an empty one where the evidence does not have the quantity. A run
whose value is undefined (the correlation of a constant answer, a run that diverged) has NaN there.
"""

import pandas as pd

from loraudit.analysis.cells import choices_of, collapsed
from loraudit.analysis.evidence import Cell, Evidence
from loraudit.studies.scores import unit_of

EMPTY = pd.Series(dtype=float)


def epoch_of(evidence: Evidence, subject: tuple[str, str], asked: str | None) -> str | None:
    """Return the choice of an epoch to use in a task and model.

    It is the one asked for, or the first that all runs made; None if there is no such.
    """
    runs = pd.concat([cell.runs for cell in evidence.cells if cell.subject == subject])
    made = choices_of(runs)
    return next((choice for choice in made if asked in (None, choice)), None)


def score(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the headline score, a fraction; nothing where text is predicted."""
    return _headline(cell, epoch) if unit_of(_metric(cell)) == "points" else EMPTY


def log_loss(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the log loss of a task that predicts text, in nats per token; lower is better."""
    if _metric(cell) == "log_loss":
        return _headline(cell, epoch)
    return _column(cell, f"{epoch}_log_loss")


def _metric(cell: Cell) -> str:
    """Return the headline metric of a cell; "" of published numbers, which are fractions."""
    return str(cell.runs.metric.iloc[0]) if "metric" in cell.runs else ""


def _headline(cell: Cell, epoch: str | None) -> pd.Series:
    return _column(cell, epoch, made=epoch is not None and f"{epoch}_epoch" in cell.runs)


def chosen_epoch(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the number of the epoch that was chosen."""
    return _column(cell, f"{epoch}_epoch")


def collapsed_share(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return 1 for a run that collapsed to a constant answer, else 0."""
    if not epoch or f"{epoch}_collapsed" not in cell.runs:
        return EMPTY
    return pd.Series(collapsed(cell.runs, epoch).astype(float).to_numpy(), cell.runs.seed)


def learning_rate(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the learning rate that was chosen by the study; nothing where it was set by hand."""
    return _chosen(cell, "learning_rate")


def alpha(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the alpha that was chosen by the study; nothing where it was set by hand."""
    return _chosen(cell, "alpha")


def trainable_share(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return trainable parameters, the head's included, as a share of all."""
    return _column(cell, "parameters_trainable") / _column(cell, "parameters_model")


def head_counted(cell: Cell, evidence: Evidence) -> str:
    """Say which share of all parameters the adapter alone has, where a trained head counts too."""
    whole, adapter = _column(cell, "parameters_trainable"), _column(cell, "parameters_adapter")
    if adapter.empty or not (whole > adapter).any() or not adapter.any():
        return ""
    share = 100 * (adapter / _column(cell, "parameters_model")).max()
    return f"head included; adapter alone {share:.3g} percent"


def adapter_parameters(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the parameters of A and B, without the head's; nothing where there are none."""
    found = _column(cell, "parameters_adapter")
    return found if found.any() else EMPTY


def adapter_bytes(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the bytes of the saved adapter, its head included."""
    return _column(cell, "bytes_adapter")


def bytes_saved(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the bytes of a full checkpoint as a multiple of the adapter's."""
    return _column(cell, "bytes_checkpoint") / _column(cell, "bytes_adapter")


def stable_rank(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the median over layers of the update's stable rank, ||dW||_F^2 / sigma_1^2."""
    return _over_matrices(cell, evidence, "amplification", "stable_rank", "median")


def amplification(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the median over layers of ||dW||_F / ||U^T W V^T||_F (Hu et al. 2022, Table 7)."""
    return _over_matrices(cell, evidence, "amplification", "amplification", "median")


def subspace_similarity(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return phi(1, 1) of the cell's runs and those of the smallest rank, median over layers.

    It is given for the cell that has the highest rank. All pairs of different seeds are compared
    (equal seeds start alike); pairs that share a seed are not independent, so that the values by
    seed are the jackknife's: n times the mean of all pairs, less n - 1 times that without the seed
    (pseudo-values; Tukey 1958, Ann Math Stat 29:614). Their mean is the mean of all pairs. With
    fewer than three seeds it is one number, the mean over the pairs, which shows no spread.
    """
    rows = _first_directions(cell, evidence)
    if rows.empty:
        return EMPTY
    by_seed = rows[rows.pair == "ranks by seed"]
    return _jackknife(by_seed) if len(by_seed) else _one_number(rows[rows.pair == "ranks"])


def ranks_compared(cell: Cell, evidence: Evidence) -> str:
    """Name the two ranks that `subspace_similarity` compares: "ranks 1 and 8"."""
    rows = _first_directions(cell, evidence)
    if rows.empty:
        return ""
    low = rows["first"].str.extract(r"^r(\d+) ")[0].astype(int).min()
    return f"ranks {low} and {cell.fields['rank']:g}"


def _first_directions(cell: Cell, evidence: Evidence) -> pd.DataFrame:
    """Return phi(1, 1) of a cell beside another rank; nothing of what is not our LoRA."""
    table = evidence.tables.get("subspaces", pd.DataFrame())
    if table.empty or cell.fields.get("method") != "lora":
        return pd.DataFrame()
    return table[
        (table.task == cell.task)
        & (table.model == cell.model)
        & ~table.control.astype(bool)
        & (table.i == 1)
        & (table.j == 1)
        & (table.targets == cell.fields.get("targets"))
        & (table.label.fillna("") == cell.label)
        & table.second.str.startswith(f"r{cell.fields.get('rank')} ")
        & table.pair.isin(("ranks", "ranks by seed"))
    ]


def _one_number(rows: pd.DataFrame) -> pd.Series:
    return pd.Series([_by_pair(rows).mean()], [0]) if len(rows) else EMPTY


def _by_pair(rows: pd.DataFrame) -> pd.Series:
    """Return the median of phi over layers and matrices, for each pair of runs."""
    return rows.groupby(["first", "second"]).phi.median()


def _jackknife(rows: pd.DataFrame) -> pd.Series:
    """Return the pseudo-values by seed of the mean over pairs of seeds of phi's median."""
    found = _by_pair(rows)
    seeds = [
        found.index.get_level_values(n).str.extract(r" s(\d+)$")[0].astype(int) for n in (0, 1)
    ]
    pairs = pd.DataFrame({"one": seeds[0], "two": seeds[1], "phi": found.to_numpy()})
    names = sorted({*pairs.one, *pairs.two})
    left = [pairs.phi[(pairs.one != seed) & (pairs.two != seed)].mean() for seed in names]
    n = len(names)
    return pd.Series(n * pairs.phi.mean() - (n - 1) * pd.Series(left).to_numpy(), names)


def intruder_dimensions(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return the mean number of intruder dimensions of a run's matrices (arXiv 2410.21228)."""
    return _over_matrices(cell, evidence, "intruders", "intruders", "mean")


def forgetting(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return how much worse a run's earlier tasks score after it, the mean over these; a fraction.

    They are the tasks of its chain of warm starts, but for those that predict text.
    """
    table = evidence.tables.get("forgetting", pd.DataFrame())
    if table.empty or "run" not in cell.runs:
        return EMPTY
    points = table.metric.map(unit_of) == "points"
    return _of_runs(cell, table[points & table.headline.astype(bool)], "forgotten", "mean")


def language_loss_rise(cell: Cell, evidence: Evidence, epoch: str | None) -> pd.Series:
    """Return how much worse a run's base has become as a language model, in nats per token.

    It is the mean over the texts that were read: of its own task, and of those before it in its
    chain. Nothing where the checkpoint has no language-model head.
    """
    table = evidence.tables.get("language_loss", pd.DataFrame())
    if table.empty or "run" not in cell.runs:
        return EMPTY
    return _of_runs(cell, table[table.rise.notna()], "rise", "mean")


def _column(cell: Cell, name: str | None, made: bool = False) -> pd.Series:
    """Return a column of the tidy table by seed; empty where it is missing.

    Where all values are missing it counts as missing, unless the runs are known to have `made` it.
    """
    if name not in cell.runs or (cell.runs[name].isna().all() and not made):
        return EMPTY
    return pd.Series(cell.runs[name].astype(float).to_numpy(), cell.runs.seed)


def _chosen(cell: Cell, name: str) -> pd.Series:
    tuned = cell.runs.get("tuned", pd.Series("", cell.runs.index)).astype(object).fillna("")
    return _column(cell, name) if tuned.str.split(", ").map(lambda t: name in t).all() else EMPTY


def _over_matrices(cell: Cell, evidence: Evidence, name: str, column: str, how: str) -> pd.Series:
    """Return the mean or median of a column of a table with a row for each matrix of a run."""
    table = evidence.tables.get(name, pd.DataFrame())
    if table.empty or "run" not in cell.runs:
        return EMPTY
    return _of_runs(cell, table, column, how)


def _of_runs(cell: Cell, table: pd.DataFrame, column: str, how: str) -> pd.Series:
    """Return the mean or median of a column over the rows of each of a cell's runs, by seed."""
    found = table[table.run.isin(cell.runs.run)].groupby("run")[column].agg(how)
    seeds = cell.runs.set_index("run").seed.reindex(found.index)
    return pd.Series(found.to_numpy(), seeds.to_numpy())
