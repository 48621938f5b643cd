"""Make the tables and the figure of what GPUs do in a second, from what gpu.py measured.

python benchmarks/gpu_figure.py [--folder DIR] [--figure PATH]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from loraudit.base.files import write_text
from loraudit.report.figure_style import STYLE, WIDTH, save
from loraudit.report.formatting import markdown
from loraudit.report.looks import MUTED

TOOLS = {"loraudit": "loraudit", "peft+trainer": "PEFT + Trainer"}
PRECISIONS = ("fp32", "tf32", "bf16")
SHOWN = ["device", "model", "tokens", "precision", "compute", "tool", "runs_per_gpu",
         "steps_per_second", "q1", "q3", "peak_mib"]  # fmt: skip


def beside_peer(table: pd.DataFrame) -> pd.DataFrame:
    """Set our steps of RoBERTa-base's shape beside the peer's."""
    tools = table[table.tool == "loraudit"], table[table.tool != "loraudit"]
    ours, peer = map(alone, tools)
    memory, peers_memory = (alone(rows, "peak_mib") for rows in tools)
    shown = {
        "loraudit, steps/s": ours.round(1),
        "PEFT + Trainer, steps/s": peer.round(1),
        "ratio": (ours / peer).round(2),
        "loraudit, MiB": memory.round().astype("Int64"),
        "PEFT + Trainer, MiB": peers_memory.round().astype("Int64"),
        "ratio of memory": (memory / peers_memory).round(2),
    }
    return pd.DataFrame(shown).dropna().reset_index()


def beside_variable(table: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """Set steps while CUBLAS_WORKSPACE_CONFIG stays set beside those without it."""
    shown = []
    for tool, rows in kept.groupby("tool"):
        without, with_it = alone(table[table.tool == tool]), alone(rows)
        both = {"without it, steps/s": without.round(1), "while it is set": with_it.round(1),
                "ratio": (without / with_it).round(2)}  # fmt: skip
        shown.append(pd.DataFrame(both).dropna().reset_index().assign(tool=TOOLS[tool]))
    return pd.concat(shown)


def alone(table: pd.DataFrame, what: str = "steps_per_second") -> pd.Series:
    """Return a column of RoBERTa-base's shape, one run on the GPU, as users run it."""
    rows = table[(table.model == "roberta-base") & (table.runs_per_gpu == 1)]
    rows = rows[rows.compute.eq("fast") | rows.tool.ne("loraudit")]
    return rows.set_index(["device", "tokens", "precision"])[what].sort_index()


def draw(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw steps per second against tokens, and against runs that share a GPU if some do."""
    one = table[(table.runs_per_gpu == 1) & (table.compute.eq("fast") | table.tool.ne("loraudit"))]
    both = table[(table.model == "roberta-base") & (table.tokens == 128)]
    both = both[both.compute.eq("fast") & both.precision.ne("tf32")]
    shared = both.runs_per_gpu.max() > 1
    with plt.rc_context(STYLE):
        rows = 2 if shared else 1
        size = (WIDTH, 0.5 + 2.2 * rows)
        figure, grid = plt.subplots(rows, 2, figsize=size, layout="constrained", squeeze=False)
        panels = grid.ravel()
        for axes in panels[3:]:
            axes.axis("off")
        for axes, model in zip(panels, ("roberta-base", "roberta-large"), strict=False):
            _by_tokens(axes, one[one.model == model])
            axes.set_title(f"{model}'s shape")
        panels[0].set_ylabel("steps per second, 16 rows each")
        if shared:
            _lines(panels[2], both, "runs_per_gpu")
            panels[2].set(title="roberta-base, 128 tokens", xlabel="runs at once on the GPU")
            panels[2].set(xticks=sorted(both.runs_per_gpu.unique()))
            panels[2].set_ylabel("steps per second, all runs")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure, pd.concat([one, both[both.runs_per_gpu > 1]])[SHOWN]


def _by_tokens(axes: plt.Axes, table: pd.DataFrame) -> None:
    _lines(axes, table, "tokens")
    ticks = sorted(table.tokens.unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("tokens of each row")


def _lines(axes: plt.Axes, table: pd.DataFrame, x: str) -> None:
    """Draw a line for each tool and precision, with the quartiles of the rounds."""
    for (tool, precision), part in table.groupby(["tool", "precision"], sort=False):
        middle = part.steps_per_second
        axes.errorbar(
            part[x], middle, yerr=[middle - part.q1, part.q3 - middle],
            label=f"{TOOLS[tool]}, {precision}", color=MUTED[2 * PRECISIONS.index(precision)],
            marker="o", markersize=4, capsize=2,
            markerfacecolor=None if tool == "loraudit" else "white",
            linestyle="-" if tool == "loraudit" else "--",
        )  # fmt: skip
    axes.set_ylim(bottom=0)


def main() -> None:
    """Write gpu.md, gpu_peer.md, gpu_workspace.md and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("results/committed/bench"))
    parser.add_argument("--figure", type=Path, default=Path("figures/committed/bench/gpu"))
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.folder / "gpu.csv")
    write_text(arguments.folder / "gpu.md", markdown(table[SHOWN].round(1)))
    write_text(arguments.folder / "gpu_peer.md", markdown(beside_peer(table)))
    kept = pd.read_csv(arguments.folder / "gpu_workspace.csv")
    write_text(arguments.folder / "gpu_workspace.md", markdown(beside_variable(table, kept)))
    save(*draw(table[table.gpu == table.gpu.iloc[0]]), arguments.figure)


if __name__ == "__main__":
    main()
