"""Scores by seed that others made, beside published numbers of the same cell.

The scores are a poster's, which stand in config/reference, or anyone's, which were read from a file
(`studies.score_files`). No run of ours is needed.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from loraudit.analysis.statistics import summarise
from loraudit.analysis.verdicts import (
    NOT_COMPARABLE,
    SCALE,
    TESTED,
    Match,
    judge_with_reasons,
    margin_of,
    published_mean,
    told,
)
from loraudit.analysis.words import MOST_SEEDS, POWER, seeds_to_reproduce
from loraudit.base.errors import UserError, did_you_mean
from loraudit.studies.accounts import accounts, likeness
from loraudit.studies.reference import Published

CELL = ("task", "model", "method", "rank", "targets", "metric", "split", "train_rows")
"""Fields in which scores and a number must agree to be compared."""

NAMED = ("model", "method", "rank", "targets", "metric", "split", "selection", "settings")
"""Columns of a judged table that may be needed to tell its rows apart, beside the task."""


class Pair(NamedTuple):
    """Scores and the number that they are set beside; None and `why` if they are with none.

    `others` are the same seeds' scores of the last epoch, where the number does not say its epoch.
    """

    left: Published
    right: Published | None
    why: str = ""
    others: Published | None = None


def published_verdicts(
    ours: Iterable[Published], theirs: Iterable[Published], margin: float | None, reading: str
) -> pd.DataFrame:
    """Set scores by seed beside published numbers of the same cell, and judge them.

    Args:
        ours: numbers with scores by seed; others are left out.
        theirs: the numbers to set them beside; those in doubt, and those of another unit than
            percent or fraction, are compared with nothing.
        margin: largest difference, as a fraction, that counts as equal; None: each number's own.
        reading: what an unexplained ± is taken to be (a key of `statistics.READINGS`).

    Returns:
        A row per cell of ours and number beside it: the scores' summary, the number, the columns of
        `verdicts.judge_with_reasons`, and `protocol`. A cell that no number agrees with has one
        row, "not comparable", of which `reason` says what is missing.

    Raises:
        UserError: no number agrees with any of the cells; the message says why of the first.
    """
    theirs = list(theirs)
    pairs = list(_pairs([number for number in ours if number.scores()], theirs))
    together = [pair for pair in pairs if pair.right]
    if not together:
        why = pairs[0].why if pairs else "there are no scores by seed"
        raise UserError(f"nothing can be compared: {why}")
    judged = iter(judge_with_reasons([_match(pair, margin) for pair in together], reading))
    rows = []
    for pair in pairs:
        if pair.right is None:
            rows.append(_row(pair, reading) | {"verdict": NOT_COMPARABLE, "reason": pair.why})
            continue
        alike = likeness(accounts(pair.left).values(), accounts(pair.right))
        said = told(next(judged), alike, _more_seeds(pair, margin, reading))
        rows.append(_row(pair, reading) | said)
    return pd.DataFrame(rows)


def _pairs(ours: Sequence[Published], theirs: Sequence[Published]) -> Iterable[Pair]:
    """Pair each cell of ours with the numbers that agree with it, by the epoch choice too."""
    cells: dict[str, list[Published]] = {}
    for number in ours:
        cells.setdefault(_key(number), []).append(number)
    for choices in cells.values():
        beside, why = partners(choices[0], theirs)
        by_choice = {number.selection: number for number in choices}
        best, last = by_choice.get("best epoch"), by_choice.get("last epoch")
        found = []
        for right in beside:
            if right.selection != "unknown" and right.selection in by_choice:
                found.append(Pair(by_choice[right.selection], right))
            elif right.selection == "unknown":
                found.append(Pair(best or last or choices[0], right, others=best and last))
        stated = ", ".join(dict.fromkeys(number.selection for number in beside))
        unlike = f"the number's epoch is {stated}, the scores' is "
        unstated = by_choice.pop("unknown", None)
        if not found and by_choice:
            first = next(iter(by_choice.values()))
            yield Pair(first, None, why or unlike + " or ".join(by_choice))
        if unstated and unstated not in [pair.left for pair in found]:
            found.append(Pair(unstated, None, why or unlike + UNSTATED))
        yield from found


UNSTATED = (
    "unknown: say which it is in a column epoch_choice (best or last), or for all scores by --set "
    "epoch_choice=best or --set epoch_choice=last"
)
"""What is said of the epoch of scores that leave it open."""


def _key(number: Published) -> str:
    fields = [getattr(number, name) for name in (*CELL, "alpha", "settings", "protocol")]
    return json.dumps(fields, sort_keys=True)


def partners(left: Published, theirs: Sequence[Published]) -> tuple[list[Published], str]:
    """Return the numbers of the same cell as `left`, or none and the reason in words."""
    rest, agreed = list(theirs), list[str]()
    for name in CELL:
        value = getattr(left, name)
        agreeing = [number for number in rest if getattr(number, name) == value]
        if not agreeing:
            had = sorted({_said(getattr(number, name)) for number in rest}, key=_by_size)
            hint = did_you_mean(value, had)
            keys = " or ".join(dict.fromkeys(number.key for number in theirs))
            cell = f" for {', '.join(agreed)}" if agreed else ""
            return [], (
                f"{keys} has no number of {name.replace('_', ' ')} {_said(value)}{cell}{hint} "
                f"(it has: {', '.join(had)})"
            )
        rest = agreeing
        agreed += [_said(value)] if value is not None and name != "split" else []
    in_unit = [number for number in rest if "other" not in (number.unit, left.unit)]
    if not in_unit:
        return [], (
            f"the {rest[0].metric} of {rest[0].key} is neither a percentage nor a fraction "
            "(unit: other), and only these are compared"
        )
    certain = [number for number in in_unit if not number.doubt]
    return certain, "" if certain else f"the number is in doubt: it {in_unit[0].doubt}"


def _said(value: object) -> str:
    return "not stated" if value is None else str(value)


def _by_size(text: str) -> tuple:
    return (0, int(text), "") if text.isdigit() else (1, 0, text)


def _scores(number: Published) -> list[float]:
    return [score / SCALE[number.unit] for score in number.scores()]


def _match(pair: Pair, margin: float | None) -> Match:
    assert pair.right is not None
    others = _scores(pair.others) if pair.others else None
    return Match(_scores(pair.left), pair.right, margin_of(pair.right, margin), others)


def _more_seeds(pair: Pair, margin: float | None, reading: str) -> str:
    """Say of a single seed how many would do, by the spread that the number has itself."""
    assert pair.right is not None
    theirs, assumed = published_mean(pair.right, reading, math.nan)
    if len(pair.left.scores()) > 1 or assumed or not theirs.sd > 0:
        return ""
    seeds = seeds_to_reproduce(margin_of(pair.right, margin), theirs.sd, theirs)
    if seeds is None:
        return f"with the number's own spread not even {MOST_SEEDS} seeds would show equality"
    return (
        f"with the number's own spread, {seeds} seeds would show equality with a chance of "
        f"{100 * POWER:.0f} %"
    )


def _row(pair: Pair, reading: str) -> dict[str, Any]:
    """Return what is known of a pair before any test."""
    left, right = pair.left, pair.right
    summary = summarise(_scores(left))
    row: dict[str, Any] = {"ours": left.key, "published": right.key if right else ""}
    row |= {name: getattr(left, name) for name in ("task", *NAMED[:-1])}
    row["settings"] = _settings(left)
    row |= {key: summary[key] for key in ("n", "mean", "sd", "median")}
    row |= dict.fromkeys(("published_value", "published_sd", "published_n"), math.nan)
    row |= dict.fromkeys((*TESTED, "margin"), math.nan) | {"protocol": ""}
    if right:
        published, assumed = published_mean(right, reading, math.nan)
        row["published_value"] = published.mean
        row["published_sd"] = math.nan if assumed else published.sd
        row["published_n"] = right.n
    return row


def _settings(number: Published) -> str:
    own = {**({} if number.alpha is None else {"alpha": f"{number.alpha:g}"}), **number.settings}
    return ", ".join(f"{name} {value}" for name, value in own.items())


def telling(rows: pd.DataFrame) -> list[str]:
    """Return the columns, beside the task, that tell the rows apart.

    They are those of the cell that differ between rows; settings only where nothing else does.
    """
    varying = [name for name in NAMED[:-1] if rows[name].nunique(dropna=False) > 1]
    alike = rows.duplicated(["task", *varying, "published"]).any()
    return [*varying, *(["settings"] if alike and rows.settings.nunique() > 1 else [])]
