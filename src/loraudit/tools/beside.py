"""What the jobs take that read finished runs: on what was forgotten, and on language models.

Such a job computes on one CPU, as training/forgetting.py and training/language_loss.py do: it loads
models and runs their validation rows forwards, which costs what a run's own start and evaluation
cost on this machine's CPU.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from loraudit.studies.study import Study

Beside = Literal["forgetting", "language_loss"]

BESIDE: tuple[Beside, ...] = get_args(Beside)
"""The rules of these jobs, each with one job for a run."""

HEADED = 1.5
"""Times that a row costs under a language-model head: of RoBERTa-base's shape the layers have 85
million weights per token and the head, with 50,265 words of 768 numbers, 39 million more."""


class Reading(NamedTuple):
    """What reading a run again takes on this CPU: its start and one row, in seconds; its rows."""

    ready: float
    row: float
    rows: int


def beside_seconds(
    rule: Beside, study: Study, run: str, readings: Mapping[str, Reading | None]
) -> float | None:
    """Return the seconds of a job beside a run; None where a run of its chain has no reading.

    Args:
        rule: one of `BESIDE`.
        study: has the run, and the runs before it in its chain.
        run: the name of the run that the job belongs to.
        readings: for each run of the study.
    """
    names = study.chain(run)
    chain = [readings[name] for name in (names[1:] if rule == "forgetting" else names)]
    known = [one for one in chain if one is not None]
    if len(known) < len(chain):
        return None
    if rule == "forgetting":  # of each earlier run its rows, before and after
        return sum(one.ready + 2 * one.rows * one.row for one in known)
    most = study.language_loss or 0
    rows = sum(2 * min(most, one.rows) * one.row for one in known)
    return 2 * known[0].ready + HEADED * rows  # the base alone, and with what was saved
