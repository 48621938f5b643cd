"""Make the table and the figure of the benchmarks: each target, what was measured, met or not.

python benchmarks/summary.py [--folder results/bench] [--figure figures/bench/speed]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from loraudit.base.files import write_atomic, write_text
from loraudit.base.provenance import environment
from loraudit.report.figure_style import STYLE, WIDTH, save
from loraudit.report.formatting import markdown
from loraudit.report.looks import Look, look_of

SHARE = "LoRA's share of one linear layer, forward and backward, r=8"
STEP = "training step, r=8"
ROWS = (  # part, column filters, what, target (at most), what 1.00 is
    ("layer", {"what": "ours"}, SHARE, 0.35, "PEFT's share"),
    ("step", {"what": "ours, all tokens", "to": "frozen limit", "setting": "q+v"},
     f"{STEP}, all tokens in the last layer", 1.03, "frozen limit"),
    ("step", {"what": "ours", "to": "frozen limit", "setting": "q+v"},
     f"{STEP}, as in a study", 0.90, "frozen limit, torch's dropout"),
    ("step", {"what": "ours", "to": "PEFT", "setting": "all"}, STEP, 0.90, "PEFT"),
    ("padding", {"what": "length_grouped", "setting": "train"},
     "computed over real tokens, training", 1.05, "no padding"),
    ("padding", {"what": "sorted (evaluation)", "setting": "validation"},
     "computed over real tokens, evaluation", 1.05, "no padding"),
    ("start", {"what": "ours"}, "start of a run's process", None, "1 second"),
    ("start", {"what": "ours, in a study"}, "start of a run in a study", 3.0, "1 second"),
    ("start", {"what": "PEFT"}, "start of PEFT + Trainer", None, "1 second"),
    ("memory", {"what": "ours"}, "memory above the loaded model", 0.75, "PEFT"),
    *(("study", {"what": "ours", "to": f"PEFT + Trainer, {way}"}, "a study", target,
       f"PEFT + Trainer, {way}") for way, target in
      (("grouped by length", 0.48), ("shuffled", 0.48), ("padded to 128", 0.20))),
    ("whole", {"what": "ours"}, "a run", None, "PEFT + Trainer, grouped by length"),
    *(("whole", {"what": f"PEFT + Trainer, {way}"}, f"PEFT + Trainer, {way}", None,
       "PEFT + Trainer, grouped by length")
      for way in ("shuffled", "grouped by length, torch.compile")),
    ("evaluate", {"what": "ours"}, "evaluation pass", 1.10, "bare forward pass"),
)  # fmt: skip


LARGE = {1000: 10, 10000: 90}
"""Runs of a study, and the seconds that its dry run may take."""


def targets(folder: Path) -> pd.DataFrame:
    """Set each measured ratio beside its target."""
    found = []
    for part, filters, what, target, unit in ROWS:
        table = pd.read_csv(folder / f"{part}.csv")
        for column, value in filters.items():
            keep = (
                table[column].str.contains(f", {value},", regex=False)
                if _inside(part, column)
                else (table[column] == value)
            )
            table = table[keep]
        for row in table.itertuples():
            lower, upper = getattr(row, "lower", None), getattr(row, "upper", None)
            found.append(
                {
                    "what": what,
                    "setting": row.setting,
                    "1.00 is": unit,
                    "target": target,
                    "median": row.median,
                    "lower quartile": lower,
                    "upper quartile": upper,
                    "met": "" if target is None else "yes" if row.median <= target else "no",
                }
            )
    return pd.DataFrame(found + planning(folder))


def planning(folder: Path) -> list[dict]:
    """Set the dry runs of large studies beside their targets."""
    table = pd.read_csv(folder / "dry_runs.csv")
    found = []
    for row in table[table.what == "dry run"].itertuples():
        for target, value, unit in (
            (LARGE.get(row.runs), row.seconds, "1 second"),
            (1536 if row.runs in LARGE else None, row.peak_mib, "1 MiB"),
        ):
            if target:
                met = "yes" if value <= target else "no"
                setting = f"study of {row.runs:,} runs"
                found.append({"what": "dry run", "setting": setting, "1.00 is": unit})
                found[-1] |= {"target": target, "median": value, "met": met}
    return found


def dropout_table(folder: Path) -> pd.DataFrame:
    """Set our dropout, and none, beside torch's."""
    table = pd.read_csv(folder / "dropout.csv")
    wide = table.pivot_table(index=["of", "setting"], columns="what", values="median", sort=False)
    names = {"ours": "ours / torch's", "none": "no dropout / torch's"}
    return wide[list(names)].rename(columns=names).reset_index()


def recompute_table(folder: Path) -> pd.DataFrame:
    """Set the memory and the time of a step side by side, each as measured and over ours."""
    table = pd.read_csv(folder / "recompute.csv")
    key = ["setting", "what"]
    wide = table.pivot(index=key, columns="measure", values=["measured", "median"])
    wide = wide.reindex(pd.MultiIndex.from_frame(table[key].drop_duplicates())).sort_index(
        axis=1, level=1, sort_remaining=False
    )
    names = {"measured": "{}", "median": "{} / ours"}
    wide.columns = [names[how].format(measure) for how, measure in wide.columns]
    return wide.reset_index()


def machine_sentence() -> str:
    """Say what the benchmarks were measured on."""
    found = environment()
    names = ("torch", "transformers", "peft", "accelerate")
    versions = ", ".join(f"{name} {found['packages'][name]}" for name in names)
    cores = f"{found['cpus']} cores of {found['processor']} ({found['processor_kind']})"
    return f"Measured on {cores} with {versions}.\n"


def _inside(part: str, column: str) -> bool:
    """Tell whether a filter names a part of a setting ("minilm, q+v, 8 x 64 tokens")."""
    return part == "step" and column == "setting"


LOOKS = {
    "ours": look_of("lora", "q+v"),
    "PEFT": look_of("peft", "q+v"),
    "1 cores": Look("#777777", "s", line=":"),
    "2 cores": Look("#000000", "s"),
}
"""How each series is drawn, wherever it stands."""
NAMES = {"1 cores": "1 core"}


def draw(folder: Path) -> tuple[Figure, pd.DataFrame]:
    """Draw step time and memory against rank, tokens and matrices; wall time against runs.

    Bars are the quartiles of the rounds, where the table has them.
    """
    growth = pd.read_csv(folder / "growth.csv")
    cores = pd.read_csv(folder / "cores.csv")
    tables = []
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(3, 3, figsize=(WIDTH, 5.4), layout="constrained")
        for column, (axis, part) in enumerate(growth.groupby("axis", sort=False)):
            for row, unit in enumerate(("ms", "MiB")):
                tables.append(_lines(grid[row][column], part, axis, unit))
        grid[0][0].set_ylabel("a training step, ms")
        grid[1][0].set_ylabel("memory above the\nmodel, MiB")
        tables.append(_lines(grid[2][0], cores, "runs of a study", "seconds"))
        grid[2][0].set_ylabel("wall time, s")
        for named, empty in ((grid[2][0], grid[2][1]), (grid[0][0], grid[2][2])):
            empty.axis("off")
            empty.legend(*named.get_legend_handles_labels(), loc="center left")
    return figure, pd.concat(tables, ignore_index=True)


def _lines(axes: plt.Axes, table: pd.DataFrame, axis: str, unit: str) -> pd.DataFrame:
    """Draw one panel, a line per variant; returns what was drawn."""
    for name, part in table.groupby("what", sort=False):
        look = LOOKS[name]
        label = NAMES.get(name, name)
        axes.plot(part.value, part[unit], label=label, linestyle=look.line, **look.marks())
        if unit == "ms" and "lower" in part:
            reach = [part.ms - part.lower, part.upper - part.ms]
            bars = {"fmt": "none", "ecolor": look.colour, "elinewidth": 1}
            axes.errorbar(part.value, part.ms, yerr=reach, **bars)
    ticks = sorted(table.value.unique())
    if axis == "rank":
        axes.set_xscale("log", base=4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(axis)
    axes.set_ylim(0, 1.1 * table[unit].max())
    drawn = table.rename(columns={unit: "measured"})
    kept = [name for name in ("lower", "upper") if name in drawn and unit == "ms"]
    drawn = drawn[["what", "value", "measured", *kept]]
    return drawn.assign(axis=axis, unit=unit)


def main() -> None:
    """Write speed.csv, the tables in Markdown, machine.md and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("results/bench"))
    parser.add_argument("--figure", type=Path, default=Path("figures/bench/speed"))
    arguments = parser.parse_args()
    table = targets(arguments.folder)
    write_atomic(arguments.folder / "speed.csv", lambda path: table.to_csv(path, index=False))
    text = markdown(table.round(3).astype(object).fillna(""))
    write_text(arguments.folder / "speed.md", text)
    for name, made in (("dropout", dropout_table), ("recompute", recompute_table)):
        write_text(arguments.folder / f"{name}.md", markdown(made(arguments.folder).round(2)))
    write_text(arguments.folder / "machine.md", machine_sentence())
    save(*draw(arguments.folder), arguments.figure)
    print(text)


if __name__ == "__main__":
    main()
