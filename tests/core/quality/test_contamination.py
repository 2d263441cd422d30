"""Which items of an evaluation stand in a text."""

import random

import pytest

from core.quality.contamination import Items, Shared

LONG = "A train leaves the station at nine with 120 people on board and 35 of them get off at the first stop"
"""22 words."""
SHORT = "Which planet has the most moons?"
"""6 words."""


def items(*texts: str, ngram: int = 13) -> Items:
    found = Items(ngram)
    for number, text in enumerate(texts):
        found.add("task", f"item {number}", text)
    return found


def test_a_run_of_13_words_is_enough_and_of_12_is_not() -> None:
    words = LONG.split()
    there = items("something else that has nothing to do with it, and is long enough to be an item too", LONG)
    assert there.find(f"before {' '.join(words[4:16])} after") is None
    assert there.find(f"before {' '.join(words[4:17])} after") == Shared(
        "task", "item 1", " ".join(words[4:17]).lower()
    )
    assert there.found == {"task": (2, 1)}


def test_the_whole_stretch_is_shown() -> None:
    assert items(LONG).find(f"He said: {LONG.upper()}! Then he left.") == Shared("task", "item 0", LONG.lower())


@pytest.mark.parametrize("ngram", [3, 8, 20])
def test_ngram_says_how_many_words(ngram: int) -> None:
    words = LONG.split()
    there = items(LONG, ngram=ngram)
    enough = min(ngram, 15)  # 15 words hold 8 of the 15 8-grams, which are more than half
    assert there.find(" ".join(words[:enough])) is not None
    assert there.find(" ".join(words[: enough - 1])) is None


def test_more_than_half_of_the_8_grams_are_enough_where_no_run_of_13_is_left() -> None:
    words = LONG.split()  # 22 words: 15 8-grams, of which 8 are more than half
    # The words 0-11 and 13-21 are left: 5 + 2 = 7 8-grams, and no run of 13.
    seven = [*words[:12], "x", *words[13:]]
    assert items(LONG).find(" ".join(seven)) is None
    # With the runs 0-10 and 10-21 apart: 4 + 5 = 9, of which the longer one is shown.
    nine = " ".join([*words[:11], "x", *words[10:]])
    assert items(LONG).find(nine) == Shared("task", "item 0", " ".join(words[10:]).lower())


def test_the_same_8_gram_again_and_again_is_one() -> None:
    words = LONG.split()
    assert items(LONG).find(" x ".join([" ".join(words[:8])] * 9)) is None


def test_a_short_item_must_stand_there_as_a_whole() -> None:
    there = items(SHORT)
    assert there.find("Tell me which planet has the most rings") is None
    assert there.find("which planet has the most") is None
    assert there.find("Tell me: WHICH planet has\nthe most moons, please?") == Shared(
        "task", "item 0", SHORT[:-1].lower()
    )


def test_items_that_cannot_be_judged_are_counted_and_not_found() -> None:
    there = items("Is it?", "2 + 2 = 4", LONG, SHORT)
    assert there.unjudged == {"task": 2}
    assert there.find("Is it? 2 + 2 = 4") is None
    assert there.found == {"task": (4, 0)}


def test_every_item_that_is_there_is_counted_once_by_its_source() -> None:
    there = items(LONG, LONG, SHORT)
    there.add("file.txt", "line 1", SHORT)
    assert there.find(f"{LONG} {SHORT} {SHORT}") is not None
    assert there.find(SHORT) is not None
    assert there.found == {"task": (3, 3), "file.txt": (1, 1)}


def test_the_longest_stretch_is_told_and_of_equal_ones_the_first_item_s() -> None:
    there = items(SHORT, LONG, LONG)
    assert there.find(f"{SHORT} {LONG}") == Shared("task", "item 1", LONG.lower())
    assert there.find(SHORT) == Shared("task", "item 0", SHORT[:-1].lower())


def test_items_may_be_added_after_a_search() -> None:
    there = items(LONG)
    assert there.find(SHORT) is None
    there.add("task", "late", SHORT)
    there.add("task", "later", "Seven bridges cross the river, and nobody has ever walked all of them in one go")
    assert there.find(SHORT) == Shared("task", "late", SHORT[:-1].lower())
    assert there.find(LONG) is not None
    assert there.found == {"task": (3, 2)}


def test_layout_and_signs_do_not_hide_an_item_and_code_is_told_by_its_names() -> None:
    assert items(LONG).find(f"**{LONG.replace(' ', '  ').replace('nine', 'nine,')}**") is not None
    code = "for i in range(n): total += values[i] * weights[i]; count += 1; print(i, total, count)"
    other = "for j in range(m): sum_ += rows[j] * columns[j]; k += 1; print(j, sum_, k)"
    assert items(code).find(other) is None
    assert items(code).find(code) is not None


def test_in_scripts_without_spaces_two_characters_count_as_a_word() -> None:
    # 30 different characters: 26 are 13 words.
    text = "".join(chr(0x4E00 + 7 * number) for number in range(30))
    assert items(text).find(f"\u4ed6\u8bf4{text[2:28]}") == Shared("task", "item 0", text[2:28])
    assert items(text).find(f"\u4ed6\u8bf4{text[2:20]}") is None  # 3 of its 15 16-grams
    assert items(text[:10]).find(f"\u4ed6\u8bf4{text[:10]}") is not None
    assert items(text[:9]).unjudged == {"task": 1}


@pytest.mark.parametrize("text", ["", "?", "one two three four five", "\ud800"])
def test_there_may_be_no_items_and_texts_without_words(text: str) -> None:
    assert Items(13).find(text) is None
    assert Items(13).found == {}
    assert items(LONG, SHORT).find(text) is None


def test_hashes_find_what_comparing_every_run_finds() -> None:
    chance = random.Random(5)

    def text(length: int) -> list[str]:
        return chance.choices("abcd", k=length)  # so few words that runs are shared by chance

    every = [text(chance.randint(4, 12)) for _ in range(300)]
    there = items(*map(" ".join, every), ngram=7)
    for _ in range(300):
        row = text(40)
        runs = {n: {tuple(row[at : at + n]) for at in range(41 - n)} for n in (5, 6, 7)}
        expected = any(
            tuple(item[at : at + (n := min(len(item), 7))]) in runs[n]
            for item in every
            if len(item) >= 5
            for at in range(len(item) + 1 - min(len(item), 7))
        )
        assert (there.find(" ".join(row)) is not None) == expected


def test_short_items_with_numbers_are_compared_with_their_signs() -> None:
    there = items("What is 5 + 9? Answer with the number only.", SHORT)
    other = "What is 5 - 9? Answer with the number only."
    assert there.find(other) is None
    assert there.find(other.replace("-", "*")) is None
    found = there.find("Please: **What is 5 + 9?** Answer with the number only!")
    assert found == Shared("task", "item 0", "what is 5 + 9 answer with the number only")
    assert there.find("which planet has the most (moons)?") == Shared("task", "item 1", SHORT[:-1].lower())
    assert there.found == {"task": (2, 2)}
    long = f"{other} {LONG}"
    assert items(long.replace("-", "+")).find(long) is not None  # signs do not hide a long one
