"""The tables and the figure of what GPUs do in a second, from what gpu.py measured.

python benchmarks/gpu_figure.py [--folder DIR] [--figure PATH]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from loraudit.base.files import write_text
from loraudit.report.figure_style import COLOURS, STYLE, save
from loraudit.report.formatting import markdown

MARKERS = {"loraudit": "o", "peft+trainer": "^"}
TOOLS = {"loraudit": "loraudit", "peft+trainer": "PEFT + Trainer"}
PRECISIONS = ("fp32", "tf32", "bf16")
SHOWN = ["device", "model", "tokens", "precision", "compute", "tool", "runs_per_gpu",
         "steps_per_second", "q1", "q3", "peak_mib"]  # fmt: skip


def beside_peer(table: pd.DataFrame, profile: pd.DataFrame) -> pd.DataFrame:
    """Set our steps of RoBERTa-base's shape beside the peer's, and beside the GPU's own time."""
    keys = ["device", "tokens", "precision"]
    alone = table[(table.model == "roberta-base") & (table.runs_per_gpu == 1)]
    ours = alone[alone.compute == "fast"].set_index(keys).steps_per_second
    peer = alone[alone.tool != "loraudit"].set_index(keys).steps_per_second
    kernels = profile[profile.model == "roberta-base"].set_index(keys)
    shown = {
        "loraudit, steps/s": ours.round(1),
        "PEFT + Trainer, steps/s": peer.round(1),
        "ratio": (ours / peer).round(2),
        "loraudit, ms a step": (1000 / ours).round(0),
        "of which the GPU computes, ms": kernels.kernel_ms.round(0),
        "kernels a step": kernels.kernels.round(0),
    }
    return pd.DataFrame(shown).reset_index().sort_values(keys).astype(object).fillna("")


def draw(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw steps per second against tokens, and against runs that share the GPU."""
    alone = table[
        (table.runs_per_gpu == 1) & (table.compute.eq("fast") | table.tool.ne("loraudit"))
    ]
    with plt.rc_context(STYLE):
        figure, (base, large, shared) = plt.subplots(1, 3, figsize=(7.5, 2.7), layout="constrained")
        for axes, model in ((base, "roberta-base"), (large, "roberta-large")):
            _by_tokens(axes, alone[alone.model == model])
            axes.set_title(f"{model}'s shape")
        both = table[(table.model == "roberta-base") & (table.tokens == 128)]
        both = both[both.compute.eq("fast") & both.precision.ne("tf32")]
        _lines(shared, both, "runs_per_gpu")
        shared.set(title="roberta-base, 128 tokens", xlabel="runs at once on the GPU")
        shared.set_xticks(sorted(both.runs_per_gpu.unique()))
        base.set_ylabel("steps per second, 16 rows each")
        shared.set_ylabel("steps per second, all runs")
        figure.legend(*base.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure, pd.concat([alone, both[both.runs_per_gpu > 1]])[SHOWN]


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
            label=f"{TOOLS[tool]}, {precision}", color=COLOURS[PRECISIONS.index(precision)],
            marker=MARKERS[tool], markersize=4, capsize=2,
            linestyle="-" if tool == "loraudit" else "--",
        )  # fmt: skip
    axes.set_ylim(bottom=0)


def main() -> None:
    """Write gpu.md, gpu_peer.md and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("results/committed/bench"))
    parser.add_argument("--figure", type=Path, default=Path("figures/committed/bench/gpu"))
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.folder / "gpu.csv")
    write_text(arguments.folder / "gpu.md", markdown(table[SHOWN].round(1)))
    peer = beside_peer(table, pd.read_csv(arguments.folder / "gpu_profile.csv"))
    write_text(arguments.folder / "gpu_peer.md", markdown(peer))
    save(*draw(table[table.gpu == table.gpu.iloc[0]]), arguments.figure)


if __name__ == "__main__":
    main()
