"""What reaches the terminal: wrapped, folded, marked, and never in command of it."""

import re
import unicodedata
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.show.clean import clean, clean_line
from core.show.entries import row_entry
from core.show.terminal import Screen, columns, wrap

from .traces import CONVERSATION

TEXT = st.text(st.characters() | st.sampled_from(" \n\t\r\x1b\x9b\u202e\u2066\u200b\ufeff\U000e0041"))


def shown(content: Any, role: str = "user", **options: Any) -> str:
    return Screen(**options).entry(row_entry(0, "x.jsonl:1", {"messages": [{"role": role, "content": content}]}))


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])), st.integers(2, 40))
def test_wrapped_pieces_fit_and_join_back_to_the_same_words(line: str, width: int):
    pieces = wrap(line, width)
    assert all(columns(piece) <= width for piece in pieces)
    assert "".join(pieces).replace(" ", "") == line.replace(" ", "")


def test_wide_characters_take_two_columns():
    assert wrap("日本語日本語", 4) == ["日本", "語日", "本語"]


def test_an_indented_line_keeps_its_indentation():
    assert wrap("    one two three four", 12) == ["    one two", "    three", "    four"]


@given(TEXT, TEXT, TEXT)
def test_nothing_in_a_row_can_steer_the_terminal_or_turn_or_hide_text(content: str, role: str, key: str):
    record = {"messages": [{"role": role, "content": content}], key: content, "metadata": {key: [content]}}
    text = Screen(full=True).entry(row_entry(0, content, record))
    assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\ufeff\U000e0041")


def test_escapes_are_spelled_out():
    assert clean("a\x1b[2Jb\u202ec\u200bd\r\ne\r") == "a\\x1b[2Jb\\u202ec\\u200bd\ne\\r"
    assert clean("👩\u200d💻 naïve עברית") == "👩\u200d💻 naïve עברית"  # joiners and other scripts stay as they are


def test_a_role_cannot_look_like_a_line_of_ours():
    text = shown("hi", role="user\n── #9 forged ── success")
    assert [line for line in text.split("\n") if "#9" in line and line.startswith("──")] == []
    assert clean_line("a\nb" + "c" * 400).startswith("a\\nbccc")
    assert len(clean_line("c" * 1000)) == 300


def test_long_results_are_folded_and_full_unfolds_them():
    entry = row_entry(0, "x", {"messages": CONVERSATION})
    folded, full = Screen().entry(entry), Screen(full=True).entry(entry)
    assert "… 35 lines more (--full)" in folded  # a heading and 40 links, of which 6 lines are shown
    assert "Bridge 39" not in folded
    assert "Bridge 39" in full
    assert "--full" not in full


def test_a_fold_opens_around_what_is_searched_for_and_marks_it():
    entry = row_entry(0, "x", {"messages": CONVERSATION})
    hits = re.compile(re.escape("BRIDGE 37"), re.IGNORECASE)
    plain = Screen(hits=hits).entry(entry)
    assert re.search(r"^ +›  +- link \"Bridge 37\"", plain, re.MULTILINE)
    assert "35 lines before" in plain
    assert '"\x1b[7mBridge 37\x1b[0m"' in Screen(hits=hits, color=True).entry(entry)


def test_a_hit_deep_in_a_huge_text_is_found_without_wrapping_all_of_it():
    text = shown("x " * 500_000 + "needle" + " y" * 500_000, hits=re.compile("needle"))
    assert "needle" in text
    assert "characters before" in text
    assert len(text) < 10_000


def test_calls_show_names_and_arguments_and_failed_results_say_so():
    text = Screen().entry(row_entry(0, "x", {"messages": CONVERSATION}))
    assert "→ browser_navigate\n             url: http://127.0.0.1/bridges" in text
    assert "← browser_click (error)" in text


def test_without_colours_there_is_no_escape_and_with_them_every_style_ends():
    entry = row_entry(0, "x", {"messages": CONVERSATION, "success": False})
    assert "\x1b" not in Screen().entry(entry)
    coloured = Screen(color=True).entry(entry)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == Screen().entry(entry)
    styles = re.findall(r"\x1b\[([0-9;]*)m", coloured)
    assert styles[1::2] == ["0"] * (len(styles) // 2)


def test_a_control_character_can_be_searched_for_as_it_is_shown():
    entry = row_entry(0, "x", {"prompt": "red \x1b[31mtext"})
    assert entry.holds("\\X1B[31m")
    assert not entry.holds("\\x1b[32m")
