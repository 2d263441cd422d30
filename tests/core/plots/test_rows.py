"""Pictures of rows: the ends of an axis, keys, and what is drawn at which place."""

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.plots.parts import Look, key_lines
from core.plots.rows import Block, Panel, Picture, Row, draw_rows, limits
from core.plots.style import BAND, BLUE, GREY, RED, text_width

LOOK = Look(BLUE, "s")


def panel(*rows: Row, **more: Any) -> Panel:
    return Panel("per cent", [Block("task", "n = 3", list(rows))], **more)


def drawn(folder: Path, *rows: Row, **more: Any) -> Image.Image:
    draw_rows(Picture("Title", "words", [panel(*rows, **more)], [(LOOK, True, "student")]), folder / "a.png")
    with Image.open(folder / "a.png") as image:
        return image.convert("RGB")


def count(image: Image.Image, colour: str) -> int:
    of = tuple(bytes.fromhex(colour[1:]))
    return next((times for times, seen in image.getcolors(2**20) or [] if seen == of), 0)


def test_the_axis_reaches_as_far_as_intervals_with_room_at_the_ends():
    # 2 to 10, and 4 % of 8 at each end
    assert limits(panel(Row(LOOK, 5.0, 2.0, 10.0))) == pytest.approx((1.68, 10.32))


def test_a_line_is_always_in_the_picture():
    low, high = limits(panel(Row(LOOK, 5.0, 4.0, 6.0), lines=(0.0,)))
    assert low < 0 < 6 < high


def test_what_the_axis_never_shows_is_cut_off():
    # 4 % of 300 at each end
    found = limits(panel(Row(LOOK, 5.0, -4000.0, 9000.0), cut=(-100.0, 200.0)))
    assert found == pytest.approx((-112.0, 212.0))


def test_a_band_does_not_squeeze_the_intervals():
    # the values end at 10, the band at 400: shown to 1.5 x 10 on both sides
    assert limits(panel(Row(LOOK, 5.0, 1.0, 10.0, band=400.0), lines=(0.0,))) == pytest.approx((-16.2, 16.2))
    assert limits(panel(Row(LOOK, 5.0, 1.0, 10.0, band=2.0), lines=(0.0,))) == pytest.approx((-2.48, 10.48))


def test_values_that_are_no_numbers_do_not_move_the_axis():
    row = Row(LOOK, math.nan, -math.inf, math.inf, band=math.inf)
    assert limits(panel(row, Row(LOOK, 5.0, 2.0, 10.0))) == pytest.approx((1.68, 10.32))


def test_an_axis_without_any_extent_has_some():
    for row in (Row(LOOK), Row(LOOK, 0.0, 0.0, 0.0), Row(LOOK, 7.0, 7.0, 7.0)):
        low, high = limits(panel(row))
        assert math.isfinite(low)
        assert low < high


def test_a_difference_of_nothing_shows_the_whole_band():
    low, high = limits(panel(Row(LOOK, 0.0, 0.0, 0.0, band=60.0), lines=(0.0,)))
    assert low < -60
    assert high > 60


def test_a_key_goes_on_in_the_next_line_and_no_entry_leaves_it():
    key = [(LOOK, True, f"checkpoint-of-a-run-{step}") for step in range(7)] + [(LOOK, True, 300 * "x")]
    lines = key_lines(key, 6.0)
    assert [name for line in lines for *_, name in line][:7] == [name for _, _, name in key[:7]]
    assert len(lines) > 2
    for line in lines:
        place, _, _, name = line[-1]
        assert place + 0.18 + text_width(name) <= 6.0


def test_a_full_mark_has_more_of_its_colour_than_an_open_one(tmp_path: Path):
    full, empty = (count(drawn(tmp_path, Row(LOOK, 5.0, filled=filled)), BLUE) for filled in (True, False))
    key = count(drawn(tmp_path, Row(LOOK)), BLUE)
    assert full - key > 2 * (empty - key) > 0


def test_intervals_bands_and_bars_are_drawn(tmp_path: Path):
    plain = drawn(tmp_path, Row(LOOK, 5.0), lines=(0.0,))
    assert count(drawn(tmp_path, Row(LOOK, 5.0, 1.0, 9.0), lines=(0.0,)), BLUE) > count(plain, BLUE)
    assert count(plain, BAND) < 300  # edges of letters
    assert count(drawn(tmp_path, Row(LOOK, 5.0, band=3.0), lines=(0.0,)), BAND) > 1000
    bars = drawn(tmp_path, Row(LOOK, bars=((-20.0, 0.0, GREY), (0.0, 40.0, RED))))
    assert count(bars, RED) / count(bars, GREY) == pytest.approx(2.0, rel=0.1)


def test_what_lies_beyond_the_axis_ends_in_an_arrow(tmp_path: Path):
    inside = drawn(tmp_path, Row(LOOK, 0.0, -100.0, 100.0), cut=(-100.0, 100.0))
    beyond = drawn(tmp_path, Row(LOOK, 0.0, -500.0, 500.0), cut=(-100.0, 100.0))
    assert count(beyond, BLUE) > count(inside, BLUE)


def test_words_stand_in_place_of_a_mark(tmp_path: Path):
    ends = {"within": (-100.0, 200.0)}
    with_words = drawn(tmp_path, Row(LOOK, words="not defined: the teacher is not better"), **ends)
    assert with_words.tobytes() != drawn(tmp_path, Row(LOOK), **ends).tobytes()
