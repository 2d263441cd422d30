"""Laws of what lives in files: whatever the text, and wherever a crash cuts."""

import csv
import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.data.cells import restored
from core.data.jsonlines import Journal, Row
from core.data.keys import KeyCounts, work_key
from core.data.prompts import Prompt, PromptOptions, open_prompts

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip())
awkward = [
    "\u2028x",
    "a\u2029b",
    "\ufeffa",
    "a\x85b",
    "a\x00b",
    "😀",
    "a\x0bb\x0cc",
    "e\u0301",
    "\u202eabc",
    '"',
    "'",
    "\\n",
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(name: str, content: bytes) -> list[str]:
    """The prompts of a file; a row that cannot be used fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with open_prompts(str(path), PromptOptions()) as prompts:
            rows = list(prompts())
    assert all(isinstance(row, Prompt) for row in rows), rows
    return [row.messages[0]["content"] for row in rows if isinstance(row, Prompt)]


def awkward_examples(function: Any) -> Any:
    for bom, end in ((False, "\n"), (True, "\r\n")):
        function = example([*awkward, "a\rb", "a\nb", "a\r\nb", " a ", "\ta"], bom, end)(function)
    return function


everything = given(st.lists(texts, min_size=1, max_size=5), st.booleans(), st.sampled_from(["\n", "\r\n"]))


@everything
@awkward_examples
def test_every_text_survives_jsonl(prompts: list[str], bom: bool, end: str) -> None:
    for plain in (True, False):
        lines = [json.dumps({"prompt": text}, ensure_ascii=plain) + end for text in prompts]
        assert read("a.jsonl", ("\ufeff" * bom + "".join(lines)).encode()) == prompts


@everything
@awkward_examples
def test_every_text_survives_json(prompts: list[str], bom: bool, end: str) -> None:
    for content in ([{"prompt": text} for text in prompts], prompts, {"data": prompts}):
        assert read("a.json", ("\ufeff" * bom + json.dumps(content, ensure_ascii=False) + end).encode()) == prompts


@everything
@awkward_examples
def test_every_text_survives_csv(prompts: list[str], bom: bool, end: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["prompt", "n"], *([text, number] for number, text in enumerate(prompts))])
    # An apostrophe before what a spreadsheet would calculate is taken for the protection that it usually is.
    assert read("a.csv", ("\ufeff" * bom + file.getvalue()).encode()) == [restored(text) for text in prompts]


@everything
@awkward_examples
def test_every_line_survives_txt_without_the_blanks_around_it(prompts: list[str], bom: bool, end: str) -> None:
    lines = [line.strip(" \t\r\n") for text in prompts for line in text.split("\n")]
    lines = [line for line in lines if line.strip("\ufeff \t\r\n") and line.strip()]
    if not lines or "\0" in lines[0][:2]:  # a NUL there is the sign of UTF-16
        return
    if not bom:
        lines[0] = lines[0].lstrip("\ufeff \t\r") or "x"
        if "\0" in lines[0][:2]:
            return
    assert read("a.txt", ("\ufeff" * bom + end.join(lines)).encode()) == lines


rows = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 999), "text": st.text(max_size=12)}), min_size=1, max_size=5
)


@given(rows, st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_journal_cut_at_any_byte_loses_at_most_the_torn_row_and_goes_on(
    written: list[Row], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        ends = [0]
        journal = Journal(path, lambda _, row: None)
        for row in written:
            journal.append(row)
            ends.append(journal.length)
        journal.close()
        cut = data.draw(st.integers(0, ends[-1]))
        path.write_bytes(path.read_bytes()[:cut])
        # A row is whole when all its bytes are there, its newline or not: that is one byte before its end.
        whole = sum(end - 1 <= cut for end in ends[1:])

        seen: list[Row] = []
        journal = Journal(path, lambda _, row: seen.append(row))
        assert seen == written[:whole]
        for row in written[whole:]:
            journal.append(row)
        journal.close()
        assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == written


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(0, 2**32))
def test_key_counts_are_a_counter(numbers: list[int], salt: int) -> None:
    counts, reference = KeyCounts(), Counter[str]()
    for number in numbers:
        key = work_key([salt, number])
        assert counts.add(key) == reference[key]
        reference[key] += 1
    assert len(counts) == len(reference)
    for number in range(42):
        key = work_key([salt, number])
        assert (key in counts) == (key in reference)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50, unique=True))
def test_key_counts_tell_keys_apart_that_meet_in_the_same_slot(digests: list[int]) -> None:
    counts = KeyCounts()
    crowded = [f"{digest & ~0xFFFF:016x}{'0' * 16}" for digest in digests]  # the low bits choose the slot: all in one
    reference = Counter[str]()
    for key in crowded:
        assert counts.add(key) == reference[key]
        reference[key] += 1


@given(json_values, json_values)
def test_work_key_is_equal_for_equal_content_and_different_for_different(one: Any, other: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert work_key(one) == work_key(turned(one))
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (work_key(one) == work_key(other)) == same


@pytest.mark.parametrize("text", awkward)
def test_an_awkward_text_in_the_middle_of_a_file_does_not_break_lines(text: str) -> None:
    assert read("a.txt", f"first\n{text}x\nlast".encode()) == ["first", f"{text}x", "last"]
