"""List the claims of papers with the verdicts that are on record."""

import json
from typing import get_args

import pandas as pd

from loraudit.analysis.claims import Verdict
from loraudit.base.errors import unknown
from loraudit.report.claim_record import claim_files, on_record, study_claims
from loraudit.report.claim_tables import (
    allowed_text,
    claim_table,
    effect_text,
    unseen_text,
    verdict_text,
)
from loraudit.studies import paths
from loraudit.studies.claims import QUANTITIES, Claim, load_all_claims


def claims(
    text: str | None = None,
    source: str | None = None,
    quantity: str | None = None,
    verdict: str | None = None,
    study: str | None = None,
) -> list[dict]:
    """Return claims, each with the verdicts on record that fit the filters.

    Args:
        text: words of the id or statement, in any case.
        source: a file of config/claims, such as hu2022.
        quantity: the quantity that a claim speaks of.
        verdict: only claims with such a verdict; "not tested": those without any on record.
        study: only verdicts of this study, finished here or committed, and the claims that it asks
            or shows.

    Raises:
        UserError: there is no such source, quantity, verdict or study.
    """
    files = load_all_claims()
    for what, value, legal in (
        ("source", source, list(files)),
        ("quantity", quantity, list(QUANTITIES)),
        ("verdict", verdict, list(get_args(Verdict))),
    ):
        if value is not None and value not in legal:
            raise unknown(what, value, legal)
    record = on_record(paths.RESULTS) if study is None else _of_study(study)
    found = []
    for stem, (cited, mine) in files.items():
        for claim in mine:
            rows = record[record.claim == claim.id].to_dict("records")
            words = {row["verdict"] for row in rows} or {"not tested"}
            hit = text is None or text.lower() in f"{claim.id} {claim.statement}".lower()
            hit &= source in (None, stem) and quantity in (None, claim.quantity)
            hit &= verdict is None or verdict in words
            if hit and (study is None or rows):
                chosen = [row for row in rows if verdict in (None, row["verdict"])]
                by = f"{cited.authors} {cited.year}"
                found.append(_answer(claim, by, cited.url, chosen))
    return found


def _of_study(study: str) -> pd.DataFrame:
    """Return the verdicts of one study, those on what it could not test included."""
    name = paths.study_name(study)
    files = claim_files(paths.RESULTS)
    if name not in files:
        raise unknown("study with verdicts on claims", name, files)
    return study_claims([files[name]], untested=True)


def _answer(claim: Claim, cited: str, url: str, rows: list[dict]) -> dict:
    """Return a claim and its verdicts as JSON values."""
    table = pd.DataFrame(rows)
    verdicts = json.loads(table.to_json(orient="records")) if len(table) else []
    said = [
        {
            "words": verdict_text(row),
            "effect_text": effect_text(row),
            "allowed_text": allowed_text(row),
            "remarks": remarks,
        }
        for row, remarks in zip(rows, claim_table(table).remarks if rows else (), strict=True)
    ]
    own = claim.model_dump(mode="json", exclude_none=True)
    merged = [{**one, **text} for one, text in zip(verdicts, said, strict=True)]
    return {**own, "cited": cited, "url": url, "verdicts": merged}


def sections(found: list[dict]) -> list[tuple[str, list[str], list[list[object]]]]:
    """Turn claims into a table for the screen: a line for each verdict, or one that has none."""
    columns = ["claim", "statement", "source", "study", "on", "effect", "holds if", "verdict"]
    columns.append("remarks")
    lines: list[list[object]] = []
    for claim in found:
        where = f"{claim['cited']}, {claim['where']}{unseen_text(claim['confidence'])}"
        head = [claim["id"], claim["statement"], where]
        for row in claim["verdicts"] or [None]:
            if row is None:
                lines.append([*head, "", "", "", "", "not tested", ""])
            else:
                on = ", ".join(filter(None, (row["task"], row["model"])))
                shown = (row["effect_text"], row["allowed_text"], row["words"])
                lines.append([*head, row["study"], on, *shown, row["remarks"]])
            head = ["", "", ""]
    return [("claims", columns, lines)] if lines else []


def sentences(found: list[dict]) -> list[str]:
    """Count the claims and their verdicts."""
    tested = sum(any(row["verdict"] != "not tested" for row in c["verdicts"]) for c in found)
    return [f"{len(found)} claims, {tested} of them with a verdict on record"]
