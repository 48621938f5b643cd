"""The figure of the cross-check: how far ours is from PEFT's and loralib's, check by check."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from loraudit.report.alt_text import listed
from loraudit.report.figure_style import SMALL, STYLE, WIDTH, nothing
from loraudit.report.looks import BLACK, METHOD_COLOURS


def crosscheck_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `crosscheck` draws: each check's largest difference over all cells."""
    if table.empty:
        return table
    largest = table.groupby(["dtype", "check"], sort=False).difference.idxmax()
    return table.loc[largest].reset_index(drop=True)


def crosscheck(table: pd.DataFrame) -> Figure:
    """Draw each check's largest difference over all cells beside its tolerance, log axis.

    A difference of exactly 0 is drawn at the left edge and written as 0.
    """
    if table.empty:
        return nothing("no cross-check of this study has a result")
    worst = table.groupby(["dtype", "check"], sort=False)[["difference", "tolerance"]].max()
    with plt.rc_context(STYLE):
        dtypes = list(dict.fromkeys(table["dtype"]))
        size = (WIDTH, 0.9 + 0.15 * table["check"].nunique())
        figure, row = plt.subplots(1, len(dtypes), figsize=size, sharey=True, squeeze=False)
        for axes, dtype in zip(row[0], dtypes, strict=True):
            part = worst.loc[dtype]
            floor = 1e-18
            axes.scatter(
                part.difference.clip(lower=floor), part.index, s=14, color=METHOD_COLOURS["lora"]
            )
            limited = part[part.tolerance > 0]
            axes.scatter(limited.tolerance, limited.index, marker="|", s=60, color=BLACK)
            for name, value in part.difference.items():
                if value == 0:
                    place = {"xytext": (5, -2.5), "textcoords": "offset points"}
                    axes.annotate("0", (floor, name), fontsize=SMALL, **place)
            axes.set_xscale("log")
            axes.set_xlim(floor / 3, 1)
            axes.set_xticks([1e-18, 1e-12, 1e-6])  # none at an edge, where panels meet
            axes.set_title(dtype)
            axes.margins(y=0.02)
        row[0][0].invert_yaxis()
        figure.supxlabel("largest difference (vertical bar: tolerance)", fontsize=SMALL + 1)
    return figure


def describe_crosscheck(rows: pd.DataFrame) -> str:
    """Say how many checks differ by nothing, and the largest difference."""
    parts = []
    for dtype, part in rows.groupby("dtype", sort=False):
        worst = part.loc[part.difference.idxmax()]
        zero = int((part.difference == 0).sum())
        parts.append(
            f"{dtype}: {zero} of {len(part)} checks differ by exactly 0, the largest difference is "
            f"{worst.difference:.2g} ({worst.check}; tolerance {worst.tolerance:.2g})"
        )
    return f"Largest difference per check. {listed(parts)}."
