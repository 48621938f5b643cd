"""What a figure keeps of a study that is too large for it."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from loraudit.report.figure_registry import FIGURES
from loraudit.report.figure_style import STYLE
from loraudit.report.thinning import MOST_SUBJECTS, note_of, thinned, write_note

LIMITS = {name: figure.limit for name, figure in FIGURES.items() if figure.limit}

KEYS = ["task", "model", "method", "rank", "targets", "label"]


def cells(labels: int, tasks: int = 1, **extra) -> pd.DataFrame:
    """Make rows of twins and a baseline: tasks x labels x 2 methods x 2 seeds, and 2 of `full`."""
    rows = []
    for task, label, method in itertools.product(range(tasks), range(labels), ("lora", "peft")):
        cell = (f"t{task}", "m", method, 8, "q+v", f"x{label}")
        rows += [dict(zip(KEYS, cell, strict=True)) | {"seed": seed} for seed in (0, 1)]
    full = {"task": "t0", "model": "m", "method": "full", "rank": None, "targets": None}
    rows += [{**full, "label": "", "seed": seed} for seed in (0, 1)]
    return pd.DataFrame(rows).assign(**extra)


@pytest.mark.parametrize("figure", [*LIMITS, "crosscheck"])
def test_a_study_that_fits_is_kept_whole(figure):
    table = cells(3)
    kept, note = thinned(table, LIMITS.get(figure))
    pd.testing.assert_frame_equal(kept, table)
    assert note == ""


@pytest.mark.parametrize("figure", [name for name in LIMITS if name != "score_vs_rows"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_large_one_is_thinned_evenly_with_whole_groups_and_says_so(figure, tasks):
    table = cells(100, tasks)
    kept, note = thinned(table, LIMITS[figure])
    columns, most = list(LIMITS[figure].columns), LIMITS[figure].most
    groups = kept.groupby(["task", *columns], dropna=False)
    whole = table.groupby(["task", *columns], dropna=False).size()
    assert (groups.size() == whole[groups.size().index]).all()  # all seeds and twins of each
    counts = kept.groupby("task").apply(lambda part: part.groupby(columns, dropna=False).ngroups)
    assert set(counts) == {most}
    keys = table[["task", *columns]].drop_duplicates()
    first, last = keys.iloc[0], keys.iloc[-1]
    drawn = kept[["task", *columns]].drop_duplicates()
    assert drawn.iloc[0].equals(first)
    assert drawn.iloc[-1].equals(last)
    assert note.startswith(f"{most * tasks} of {len(keys)} ")


def test_the_order_of_rows_stays():
    table = cells(100).assign(place=range(402))
    kept, _ = thinned(table, LIMITS["learning_curves"])
    assert kept.place.is_monotonic_increasing


def test_subjects_are_thinned_too():
    table = cells(1, tasks=2 * MOST_SUBJECTS)
    kept, note = thinned(table, LIMITS["hero"])
    assert kept.task.nunique() == MOST_SUBJECTS
    assert f"{MOST_SUBJECTS + 1} of {2 * MOST_SUBJECTS + 1} series" in note  # and the baseline's


def test_published_numbers_stay_and_what_is_not_drawn_takes_no_place():
    table = cells(100)
    table.loc[table.label == "x1", "method"] = "published"
    assert (thinned(table, LIMITS["hero"])[0].method == "published").sum() == 4
    table = cells(100, verdict="not comparable")
    table.loc[table.label.isin(["x1", "x2"]), "verdict"] = "undecided"
    kept, note = thinned(table, LIMITS["verdicts"])
    assert len(kept) == len(table)
    assert note == ""


def test_the_note_is_drawn_above_the_panels():
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        axes.set_title("a panel")
        figure.set_size_inches(3.35, 3)
        write_note(figure, note_of(13, 100, "series"))
        figure.canvas.draw()
    note, title = (text.get_window_extent() for text in (figure._suptitle, axes.title))
    assert note.y0 >= title.y1
    assert figure.bbox.x0 <= note.x0 and note.x1 <= figure.bbox.x1
    plt.close(figure)
