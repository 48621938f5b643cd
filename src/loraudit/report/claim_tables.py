"""Verdicts on claims for readers: a study's rows, their table, and small pictures of effects."""

import math
from collections.abc import Mapping

import pandas as pd

from loraudit.analysis.claims import SCOPE_NOT_KNOWN, claim_verdicts
from loraudit.analysis.evidence import of_study
from loraudit.report.formatting import cell_text, counted, shown_cells
from loraudit.studies.claims import QUANTITIES, load_all_claims
from loraudit.studies.reference import load_models
from loraudit.studies.study import Study


def claim_rows(study: Study, runs: pd.DataFrame, tidy: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Test the claims that a study asks about, and all others that its cells can show.

    Args:
        runs: a row per run.
        tidy: further tidy tables by name, section 7's among them where they are made.
    """
    files = load_all_claims()
    claims = [claim for _, found in files.values() for claim in found]
    claims.sort(key=lambda claim: _place(claim.id, study.claims))
    table = claim_verdicts(of_study(study, runs, tidy, load_models()), claims, study.claims)
    return with_sources(table)


def _place(name: str, listed: tuple[str, ...]) -> int:
    return listed.index(name) if name in listed else len(listed)


def with_sources(table: pd.DataFrame) -> pd.DataFrame:
    """Add to verdicts who said it and when, as `cited`."""
    if table.empty:
        return table
    cited = {
        name: f"{source.authors} {source.year}" for name, (source, _) in load_all_claims().items()
    }
    return table.assign(cited=[cited.get(one.partition(".")[0], "") for one in table.claim])


def claim_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn verdicts on claims into a table for readers."""
    records = rows.to_dict("records")
    return pd.DataFrame(
        {
            "claim": [_statement(row) for row in records],
            "effect": [effect_words(row) for row in records],
            "verdict": [verdict_text(row) for row in records],
            "source": [_source(row) for row in records],
            "holds if": [allowed_text(row) for row in records],
            "task": [cell_text(row["task"]) for row in records],
            "model": [cell_text(row["model"]) for row in records],
            "n": [int(row["n"]) for row in records],
            "epoch": [cell_text(row["epoch"]) for row in records],
            "could have shown": [_smallest(row) for row in records],
            "remarks": ["; ".join(remarks(row)) for row in records],
        }
    )


def _statement(row: dict) -> str:
    asked = "" if row["listed"] else ", not asked by the study"
    return f"{row['statement']} ({row['claim']}{asked})"


def _source(row: dict) -> str:
    return f"{row['cited']}, {row['where']}{unseen_text(row['confidence'])}"


def unseen_text(confidence: str) -> str:
    """Mark what could not be read in the source itself, as tables of published numbers do."""
    words = {"memory": " (not seen in the source itself)", "inferred": " (inferred)"}
    return words.get(confidence, "")


def verdict_text(row: dict) -> str:
    """Return a verdict with its setting: "supported in small", "supported, scope not known"."""
    scale = cell_text(row["scale"])
    joint = ", " if scale == SCOPE_NOT_KNOWN else " " if scale else ""
    return f"{row['verdict']}{joint}{scale}"


def in_unit(value: float, row: dict) -> float:
    """Return a value of a row in the claim's own unit."""
    if bool(row["log"]):
        return math.exp(value)
    return value / QUANTITIES[row["quantity"]].units[row["unit"]]


def _number(value: float, row: dict) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "0" if bool(row["log"]) else "-∞"
    shown = in_unit(value, row)
    if QUANTITIES[row["quantity"]].kind == "seeds" and not bool(row["log"]):
        if row["test"] not in ("at_most", "at_least"):
            return f"{shown:+.1f}" if row["unit"] == "points" else f"{shown:+.3g}"
        if row["unit"] == "number" and math.isfinite(QUANTITIES[row["quantity"]].span[1]):
            return f"{float(f'{shown:.2g}'):g}"  # of one at most: two digits
        return f"{shown:.1f}" if row["unit"] == "points" else f"{shown:.3g}"
    return f"{shown:.3g}"


def possible(row: dict, end: str) -> float:
    """Return an end of an interval, cut where the quantity's own values end.

    Differences are not cut: only a value itself is known to lie within the quantity's span.
    """
    if row["test"] not in ("at_most", "at_least"):
        return row[end]
    least, most = QUANTITIES[row["quantity"]].span
    return min(max(row[end], least), most)


def effect_words(row: dict) -> str:
    """Write an effect as `effect_text` does, with what its value alone does not tell."""
    beside = cell_text(row.get("beside"))  # tables of earlier versions have no such column
    return f"{effect_text(row)} ({beside})" if beside else effect_text(row)


def effect_text(row: dict) -> str:
    """Write an effect with its 95 % interval and unit: "+1.2 [-0.4, +2.8] points"."""
    if not row["parts"]:
        return ""
    if row["effect"] != row["effect"]:
        return "undefined"
    text = _number(row["effect"], row)
    low, high = possible(row, "low"), possible(row, "high")
    if low == low and (low, high) != (row["effect"], row["effect"]):
        text += f" [{_number(low, row)}, {_number(high, row)}]"
    return f"{text}{unit_text(row)}"


ALIKE = {"millions": "million", "thousands": "thousand"}
"""Units that stand behind any number in one form."""


def unit_text(row: dict, value: str = "") -> str:
    """Return a claim's unit behind a value; a bare number has none."""
    unit = ALIKE.get(row["unit"], row["unit"])
    if value == "1" and unit != "times":
        unit = unit.removesuffix("s")
    return "" if unit == "number" else f" {unit}"


def allowed_text(row: dict) -> str:
    """Say which effects a claim allows: "within ±1 points", "above 0 points"."""
    low, high = row["region_low"], row["region_high"]
    log = bool(row["log"])
    if low != low:
        return "within the margin of the published number"
    if math.isfinite(low) and math.isfinite(high):
        if math.isclose(low, -high) and not log:
            return f"within ±{_measured(f'{in_unit(high, row):g}', row)}"
        return f"{in_unit(low, row):.3g} to {in_unit(high, row):.3g}{unit_text(row)}"
    if row["test"] in ("at_most", "at_least"):
        bound = high if math.isfinite(high) else low
        return f"{row['test'].replace('_', ' ')} {_measured(f'{in_unit(bound, row):g}', row)}"
    word, bound = ("above", low) if math.isfinite(low) else ("below", high)
    return f"{word} {_measured(f'{in_unit(bound, row) + 0.0:g}', row)}"


def _measured(value: str, row: dict) -> str:
    return f"{value}{unit_text(row, value)}"


def _smallest(row: dict) -> str:
    """Write the effect beyond the claim's edge that 80 % of such studies would have found."""
    if row["smallest"] != row["smallest"]:
        return ""
    if bool(row["log"]):
        return f"{math.exp(row['smallest']):.3g} times"
    return f"{in_unit(row['smallest'], row):.2g}{unit_text(row)}"


def remarks(row: dict) -> list[str]:
    """Say what a reader has to know beside a verdict."""
    said = [cell_text(row["missing"]), cell_text(row["why"]), cell_text(row["protocol_why"])]
    if row["parts"] > 1:
        said.append(f"shown is the one of {row['parts']:g} comparisons that fits least")
    if row["parts"]:
        epoch = cell_text(row["epoch"])
        of_epoch = f", {epoch} epoch" if epoch else ""
        said.append(f"{shown_cells(cell_text(row['part']))} ({cell_text(row['how'])}{of_epoch})")
    if row["verdict"] != row["unadjusted"] and row["parts"]:
        said.append(f"{row['unadjusted']} before the correction for {row['family']:g} tests")
    if row["verdict"] == "undecided" and row["smallest"] == row["smallest"]:
        some = f"with {row['seeds']:g} seeds per cell it would"
        none = "not even with a thousand seeds per cell would it"
        known = row["seeds"] == row["seeds"]
        said.append(f"{some if known else none} be decided, if the effect is the one seen")
    if row["coarse"] == row["coarse"]:
        factor = f"{math.floor(100 * row['coarse']) / 100:g}"
        said.append(
            "the values that were chosen are not known well enough to support it: neighbours that "
            f"were tried would have to lie within a factor of {factor}, and trials to tell them "
            "apart"
        )
    if undefined := cell_text(row["undefined"]):
        said.append(f"undefined: {undefined}")
    if sick := cell_text(row["sick"]):
        said.append(f"collapsed: {sick}")
    if edge := cell_text(row.get("edge")):  # tables of earlier versions have no such column
        said.append(f"at the edge of what was tried: {shown_cells(edge)}")
    if unlike := cell_text(row["unlike"]):
        said.append(f"also differ in {unlike.replace('_', ' ')}")
    said += [cell_text(row["caution"]), cell_text(row["note"])]
    return [text for text in said if text]


WIDE, HIGH = 132, 16
"""Size of a row's picture, in CSS pixels."""


def effect_picture(row: dict) -> str:
    """Return an effect, its interval and what the claim allows as a small SVG; "" without them.

    The band is what the claim allows, the upright line no effect. It is made of numbers alone.
    """
    left_end, right_end = possible(row, "low"), possible(row, "high")
    ends = [row["effect"], left_end, right_end, row["region_low"], row["region_high"]]
    known = [value for value in ends if math.isfinite(value)]
    if not row["parts"] or not math.isfinite(row["effect"]):
        return ""
    nothing = row["test"] not in ("at_most", "at_least")
    low, high = min(known + [0.0] * nothing), max(known + [0.0] * nothing)
    margin = (high - low) * 0.08 or 1.0
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        value = min(max(value, low), high)
        return round(WIDE * (value - low) / (high - low), 1)

    left, right = at(row["region_low"]), at(row["region_high"])
    parts = [f'<rect class="band" x="{left}" width="{right - left:.1f}" y="0" height="{HIGH}"/>']
    if nothing:
        parts.append(f'<path class="none" d="M{at(0.0)} 0V{HIGH}"/>')
    if row["low"] == row["low"]:
        parts.append(f'<path class="line" d="M{at(left_end)} {HIGH // 2}H{at(right_end)}"/>')
    word = str(row["unadjusted"])
    filled = "full" if row["verdict"] == word != "undecided" else "open"
    parts.append(f'<circle class="dot {word} {filled}" cx="{at(row["effect"])}" cy="8" r="4"/>')
    return (
        f'<svg class="effect" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" height="{HIGH}" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )


UNTUNED = (
    " The study is untuned: a verdict on scores of two methods may be one on their settings, and "
    "not on the methods."
)


def claims_fact(rows: pd.DataFrame, untuned: bool = False) -> str:
    """Say in a sentence or two what a study's verdicts on claims are, and how they were made."""
    asked = rows[rows.listed.astype(bool)]
    others = rows.drop(asked.index)
    both = len(asked) and len(others)
    said = []
    for name, part in (("asked by the study: ", asked), ("others: ", others)):
        if len(part):
            words = pd.Series([verdict_text(row) for row in part.to_dict("records")])
            said.append(f"{name if both else ''}{counted(words)}")
    family = "over the claims that the study asks (Holm), the others being a family of their own"
    return (
        f"Verdicts on claims of papers{', ' if both else ': '}{'; '.join(said)}. Each is of one "
        "task and model, and of the comparison that fits the claim least; p-values are adjusted "
        f"{family if both else 'over these claims (Holm)'}. An interval covers the comparisons of "
        "one claim (95 %); where the same difference stands in another table, its interval covers "
        "that table's tests and may be wider or narrower. In small: another model, task "
        "or a subset, so that nothing is said of the claim's own setting."
        f"{UNTUNED if untuned else ''}"
    )
