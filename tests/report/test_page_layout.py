"""A table on the page: a cell has one name, no column says nothing, numbers stand right."""

import pandas as pd
import pytest

from loraudit.report.page_layout import MARKS, NUMBER, layout, split, word


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": ["sst2", "sst2"],
            "method": ["LoRA (ours)", "full fine-tuning"],
            "rank": ["8", ""],
            "targets": ["q+v", ""],
            "mean ± SD, %": ["93.1 ± 0.4", "94.0"],
            "n": [3, 3],
            "interval": ["[-1.2, +0.3]", ""],
            "nothing": ["", None],
            "why": ["one", "two"],
        }
    )


def test_a_cell_has_one_name_and_what_all_rows_say_is_said_once():
    shown = layout(table())
    assert shown["columns"] == ["cell", "mean ± SD, %", "interval", "why"]
    assert [row[0] for row in shown["rows"]] == ["LoRA (ours) r8 q+v", "full fine-tuning"]
    assert shown["numbers"] == [False, True, True, False]
    assert shown["same"] == "The same for all rows: task sst2; n 3."
    assert shown["first"] == 2 and layout(table(), first=1)["first"] == 1


def test_one_row_keeps_its_columns_and_equal_rows_keep_one():
    shown = layout(table()[:1])
    assert shown["same"] == "" and "n" in shown["columns"] and "nothing" not in shown["columns"]
    alike = layout(pd.DataFrame({"a": ["x", "x"], "b": [1, 1]}))
    assert alike["columns"] == ["a"] and alike["same"] == "The same for all rows: b 1."
    verdicts = layout(pd.DataFrame({"task": ["a", "b"], "verdict": ["undecided"] * 2}))
    assert verdicts["columns"] == ["task", "verdict"]


def test_a_verdict_stands_right_behind_what_names_its_row():
    """Behind the numbers it was off a phone's screen."""
    shown = layout(table().assign(task=["a", "b"], verdict=["undecided", "reproduced"]))
    assert shown["columns"][:3] == ["task", "cell", "verdict"]
    assert [row[2] for row in shown["rows"]] == ["undecided", "reproduced"]
    claims = pd.DataFrame({"claim": ["A.", "B."], "effect": ["1", "2"], "verdict": "undecided"})
    assert layout(claims)["columns"] == ["claim", "verdict", "effect"]
    assert layout(claims[["verdict"]])["columns"] == ["verdict"]


def test_details_stand_in_a_table_of_their_own_beside_the_names():
    main, details = split(table(), ("why", "interval", "not there"))
    assert list(details) == ["task", "method", "rank", "targets", "interval", "why"]
    assert "why" not in main and "mean ± SD, %" in main
    main, details = split(table(), ())
    assert details.empty and list(main) == list(table())


@pytest.mark.parametrize(
    "text", ["3", "+1.2", "1,024", "[-0.3, +0.1]", "91.2 MB", "76.4 ± 0.0", "1.2e-05", "43 %"]
)
def test_numbers_are_known_as_such(text):
    assert NUMBER.fullmatch(text)


@pytest.mark.parametrize("text", ["q+v", "1 test", "2 of 5 collapsed", "n = 2: no interval", "+"])
def test_words_are_no_numbers(text):
    assert not NUMBER.fullmatch(text)


@pytest.mark.parametrize("known", MARKS)
def test_a_verdict_is_known_by_its_word_whatever_it_is_about(known):
    for about in ("", " in small", ", another protocol", ", with 2 of 5 runs collapsed"):
        assert word(f"{known}{about}") == known
    assert word("undecidedly") == "" and word("") == ""
