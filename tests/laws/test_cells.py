"""Laws of cells: whatever a model wrote, a CSV file holds it, and no spreadsheet calculates it."""

import csv
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.data.cells import neutralised, restored
from core.data.prompts import read_file

starts = [
    "",
    "'",
    "''",
    " ",
    "\t",
    "\r",
    "\n",
    "\ufeff",
    "\0",
    "=",
    "+",
    "-",
    "@",
    "'=",
    "'-",
    "' =",
    "-1",
    "+1",
    ",",
    '"',
]
any_text = st.text() | st.builds("".join, st.lists(st.sampled_from([*starts, "1", ".", "e", "x"]), max_size=6))
utf8_text = st.text(st.characters(codec="utf-8")) | st.builds("".join, st.lists(st.sampled_from(starts), max_size=6))


@given(any_text)
@example("\ud83d=1")
def test_every_text_comes_back_from_its_cell(text: str) -> None:
    assert restored(neutralised(text)) == text


@given(any_text, any_text)
def test_two_texts_never_share_a_cell(one: str, other: str) -> None:
    assert (neutralised(one) == neutralised(other)) == (one == other)


@given(any_text)
def test_no_cell_begins_like_a_formula_unless_it_is_a_number(text: str) -> None:
    cell = neutralised(text)
    if cell.lstrip()[:1] in ("=", "+", "-", "@") or cell[:1] in ("\t", "\r"):
        float(cell)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_stays_a_number(number: float) -> None:
    assert neutralised(str(number)) == str(number)


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+1", "-1+1", "@SUM(A1)", " =1+1", "\t=1", "\r=1", "\n=1", "-", "+49 30 123", "- a list", "＝1+1", "-5%",
     "=cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "+1e5+1"],
)  # fmt: skip
def test_what_a_spreadsheet_would_calculate_gets_an_apostrophe(text: str) -> None:
    assert neutralised(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a", "-5", "+5", " -1.5 ", "-.5e-3", "'tis", "''", "'", "a=1", "(-5)", "1-2"])
def test_what_is_no_formula_stays_as_it_is_in_both_directions(text: str) -> None:
    assert neutralised(text) == restored(text) == text


@given(st.lists(st.lists(utf8_text, min_size=2, max_size=2), min_size=1, max_size=4))
@example([['a, "b"\r\nc\nd\re', "\0"], ["", "\ufeff"], ["'=1", "''-2"], ["\r", "\n"], [" ", "\t"], ["=A1,\n=A2", '"']])
def test_every_text_comes_back_from_a_real_file_as_the_readers_of_prompts_give_it(rows: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["x", "y"], *([neutralised(text) for text in row] for row in rows)])
        assert [record for _, record in read_file(path, "a.csv")] == [{"x": x, "y": y} for x, y in rows]
