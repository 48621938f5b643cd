"""Where the verdicts of two teams' bundles agree."""

from pathlib import Path
from typing import Any, get_args

from loraudit.analysis.claims import Verdict
from loraudit.base.errors import UserError, unknown
from loraudit.tools.crate_verdicts import read_graph, verdicts_of
from loraudit.tools.show import Section

UNTESTED = "not tested"
DECIDED = ("supported", "contradicted")


def merge(left: Path, right: Path) -> dict[str, Any]:
    """Set the verdicts of two bundles side by side, by claim, task and model.

    Args:
        left, right: zips that `loraudit bundle` wrote, or the folders they were unpacked to.

    Returns:
        The bundles' names, `rows` with claim, task, model, statement, both verdicts (None: the
        bundle has none) and `together` (`word_of`), the `counts` of these words, and `shared_runs`,
        how many runs both have with equal predictions, bit for bit.

    Raises:
        UserError: a file is no bundle of a study, or neither of the two has a verdict.
    """
    graphs = [read_graph(path) for path in (left, right)]
    one, two = (_verdicts(*sides) for sides in zip(graphs, (left, right), strict=True))
    keys = [key for key in dict.fromkeys([*one, *two]) if _tested(one, key) or _tested(two, key)]
    if not keys:
        raise UserError(
            f"{left} and {right}: neither has a verdict on a claim; bundles that an older version "
            "wrote have none"
        )
    rows = []
    for claim, task, model in keys:
        a, b = one.get((claim, task, model)), two.get((claim, task, model))
        statement = (a or b or {})["statement"]
        row = {"claim": claim, "task": task, "model": model, "statement": statement}
        rows.append({**row, "left": a, "right": b, "together": word_of(a, b)})
    words = [row["together"] for row in rows]
    return {
        "left": str(left),
        "right": str(right),
        "rows": rows,
        "counts": {word: words.count(word) for word in dict.fromkeys(words)},
        "shared_runs": len(set.intersection(*map(_predictions, graphs))),
    }


def _verdicts(graph: dict, path: Path) -> dict[tuple[str, str, str], dict]:
    """Return a bundle's verdicts; refuse what `loraudit bundle` does not write."""
    try:
        found = verdicts_of(graph)
        for key, verdict in found.items():
            if (word := verdict["verdict"]) not in get_args(Verdict):
                raise unknown(f"{path}: verdict on {key[0]}", str(word), get_args(Verdict))
            _side(verdict)  # its effect can be written
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path}: a verdict is not as `loraudit bundle` writes it ({said})"
        ) from None
    return found


def _tested(verdicts: dict, key: tuple[str, str, str]) -> bool:
    return key in verdicts and verdicts[key]["verdict"] != UNTESTED


def word_of(left: dict | None, right: dict | None) -> str:
    """Say how two verdicts stand to each other, in a word or two.

    "agree": both decide, and alike. "disagree": both decide, and not alike. "one decides": the
    other is undecided. "both undecided". "only left", "only right": the other has not tested it.
    """
    a, b = (side["verdict"] if side else UNTESTED for side in (left, right))
    if UNTESTED in (a, b):
        return "only right" if a == UNTESTED else "only left"
    decided = [word for word in (a, b) if word in DECIDED]
    if len(decided) == 2:
        return "agree" if a == b else "disagree"
    return "one decides" if decided else "both undecided"


def _predictions(graph: dict) -> set[str]:
    """Return the digests of all runs' predictions in a bundle."""
    named = (e for name, e in graph.items() if name.endswith("/predictions.parquet"))
    return {entity["sha256"] for entity in named if "sha256" in entity}


def sections(merged: dict) -> list[Section]:
    """Turn `merge`'s answer into a table for the screen."""
    columns = ["claim", "on", "left", "right", "together", "statement"]
    rows: list[list[object]] = [
        [
            row["claim"],
            ", ".join(filter(None, (row["task"], row["model"]))),
            _side(row["left"]),
            _side(row["right"]),
            row["together"],
            row["statement"],
        ]
        for row in merged["rows"]
    ]
    return [("verdicts of two bundles", columns, rows)]


def _side(side: dict | None) -> str:
    """Write a verdict with its effect: "supported in small: +1.2 [+0.4, +2.0] points (n=5)"."""
    if side is None or side["verdict"] == UNTESTED:
        return ""
    said = " ".join(filter(None, (side["verdict"], side["scale"])))
    effect = side["effect"]
    if effect is None:
        return said
    ends = (effect["low"], effect["high"])
    span = "" if None in ends else " [{:.3g}, {:.3g}]".format(*ends)
    return f"{said}: {effect['value']:.3g}{span} {effect['unit']} (n={side['n']})"


def sentences(merged: dict) -> list[str]:
    """Count how the verdicts stand to each other, and say if the two are not independent."""
    counts = ", ".join(f"{count} {word}" for word, count in merged["counts"].items())
    said = [f"left: {merged['left']}; right: {merged['right']}", counts]
    if shared := merged["shared_runs"]:
        said.append(
            f"{shared} runs have the same predictions in both, bit for bit: verdicts that rest on "
            "them are not independent"
        )
    return said
