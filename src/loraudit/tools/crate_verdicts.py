"""Claims and verdicts as JSON-LD in a study's RO-Crate, and how they are read again.

Each claim is a `Claim` of schema.org with its source as `citation`. Each verdict on it is a
`ClaimReview`: its `reviewRating` is a `Rating` whose `alternateName` is the verdict's word, and its
`additionalProperty` holds the effect (a `PropertyValue` with minValue and maxValue, the 95 %
interval), the number of runs, and the setting: task, model, scale and the study.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from loraudit.base.errors import UserError
from loraudit.report.claim_tables import effect_text, in_unit, remarks, verdict_text
from loraudit.report.formatting import cell_text
from loraudit.studies.claims import load_all_claims

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
"""The profile of RO-Crate that a bundle follows: Process Run Crate."""

METADATA = "ro-crate-metadata.json"
SCHEMA = "https://schema.org/"
TERMS = ("Claim", "ClaimReview", "claimReviewed", "itemReviewed", "reviewRating", "Rating")
"""Terms of schema.org that a crate's @context names itself, as not every version of RO-Crate's
context has them."""


def entities(table: pd.DataFrame, study: str) -> list[dict[str, Any]]:
    """Return the JSON-LD entities of a study's verdicts, each with @id and @type.

    Args:
        table: the study's table of claims, as `claims.claim_verdicts` makes it.
        study: its name.
    """
    sources = {
        claim.id: (source, claim)
        for source, claims in load_all_claims().values()
        for claim in claims
    }
    made: dict[str, dict[str, Any]] = {}
    for row in table.to_dict("records"):
        for entity in (*_claim(row, sources), *_review(row, study)):
            made.setdefault(entity["@id"], entity)
    return list(made.values())


def _claim(row: dict, sources: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Return a claim and its source."""
    claim = {"@type": "Claim", "name": row["claim"], "text": row["statement"]}
    known = sources.get(row["claim"])
    if known:
        source, entry = known
        paper = {"@type": "ScholarlyArticle", "name": source.title, "author": source.authors}
        yield {"@id": source.url, **paper, "datePublished": str(source.year)}
        claim |= {"citation": {"@id": source.url}, "description": entry.where}
    yield {"@id": f"#claim/{row['claim']}", **claim}


def _review(row: dict, study: str) -> Iterable[dict[str, Any]]:
    """Return a verdict, its rating and its numbers."""
    name = "/".join(filter(None, (row["claim"], cell_text(row["task"]), cell_text(row["model"]))))
    word = row["verdict"]
    yield {"@id": f"#rating/{word.replace(' ', '-')}", "@type": "Rating", "alternateName": word}
    values: dict[str, Any] = {
        key: cell_text(row[key]) for key in ("task", "model", "scale", "test", "quantity")
    }
    values |= {"study": study, "n": int(row["n"]), "asked": bool(row["listed"])}
    properties = [
        {"@id": f"#{key}/{name}", "@type": "PropertyValue", "name": key, "value": value}
        for key, value in values.items()
        if value != ""
    ]
    if row["parts"] and math.isfinite(row["effect"]):
        properties.append(_effect(row, name))
    yield from properties
    yield {
        "@id": f"#verdict/{name}",
        "@type": "ClaimReview",
        "name": f"{row['claim']}: {verdict_text(row)}",
        "claimReviewed": row["statement"],
        "itemReviewed": {"@id": f"#claim/{row['claim']}"},
        "reviewRating": {"@id": f"#rating/{word.replace(' ', '-')}"},
        "reviewBody": "; ".join(filter(None, [effect_text(row), *remarks(row)])),
        "additionalProperty": [{"@id": one["@id"]} for one in properties],
    }


def _effect(row: dict, name: str) -> dict[str, Any]:
    entity: dict[str, Any] = {
        "@id": f"#effect/{name}",
        "@type": "PropertyValue",
        "name": "effect",
    }
    entity |= {"value": in_unit(row["effect"], row), "unitText": row["unit"]}
    for key, end in (("minValue", "low"), ("maxValue", "high")):
        if math.isfinite(row[end]):
            entity[key] = in_unit(row[end], row)
    return entity


def read_graph(path: Path) -> dict[str, dict[str, Any]]:
    """Read the entities of a bundle by their @id: of its zip, or of the folder it was unpacked to.

    Raises:
        UserError: there is no such file, it is no RO-Crate, or no bundle of a study of loraudit.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    try:
        if path.is_dir():
            text = (path / METADATA).read_text(encoding="utf-8")
        else:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(METADATA).decode("utf-8")
    except (FileNotFoundError, KeyError):
        raise UserError(f"{path}: no RO-Crate: it has no {METADATA}") from None
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError),
        *(UnicodeDecodeError, NotImplementedError, RuntimeError),
    ) as error:
        raise UserError(f"{path}: not a bundle (a zip with {METADATA}): {error}") from None
    try:
        graph = {entity["@id"]: entity for entity in json.loads(text)["@graph"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: {METADATA} is not the JSON-LD of an RO-Crate") from None
    if graph.get("#code", {}).get("name") != "loraudit" or "./" not in graph:
        raise UserError(f"{path}: an RO-Crate, but not one that `loraudit bundle` wrote of a study")
    return graph


def verdicts_of(graph: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str, str], dict]:
    """Return the verdicts in a bundle's entities by claim, task and model.

    Returns:
        Per verdict: statement, verdict, scale, study, n, effect (value, low, high and unit, None
        where there is none), and text, which is the effect with what there is to say beside it.
    """
    found = {}
    for entity in graph.values():
        if entity.get("@type") != "ClaimReview":
            continue
        own = [graph.get(one["@id"], {}) for one in _list(entity.get("additionalProperty"))]
        values = {one.get("name"): one for one in own}
        facts = {key: str(values.get(key, {}).get("value", "")) for key in ("task", "model")}
        effect = values.get("effect")
        rating = graph.get(entity["reviewRating"]["@id"], {})
        claim = entity["itemReviewed"]["@id"].removeprefix("#claim/")
        found[claim, facts["task"], facts["model"]] = {
            "statement": entity.get("claimReviewed", ""),
            "verdict": rating.get("alternateName", ""),
            "scale": values.get("scale", {}).get("value", ""),
            "study": values.get("study", {}).get("value", ""),
            "n": values.get("n", {}).get("value"),
            "effect": effect
            and {
                "value": effect["value"],
                "low": effect.get("minValue"),
                "high": effect.get("maxValue"),
                "unit": effect.get("unitText", ""),
            },
            "text": entity.get("reviewBody", ""),
        }
    return found


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]
