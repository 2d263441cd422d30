"""Which earlier text one is like, and how much."""

import itertools
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from core.errors import MissingDependency
from core.quality.near_duplicates import BANDS, LOOKED_AT, RECALL, Match, NearDuplicates, rows_of_a_band

ROOT = Path(__file__).resolve().parents[3]
WORDS = [f"{first}{second}{third}" for first in "bdfgk" for second in "aeiou" for third in "lmnrst"]


def texts(count: int, length: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(f"{chance.choice(WORDS)}{chance.randrange(50)}" for _ in range(length)) for _ in range(count)]


def jaccard(one: str, other: str) -> float:
    """Of the pairs of neighbouring words, the ends included, without anything that the module has."""
    a, b = (set(itertools.pairwise(["", *text.split(), ""])) for text in (one, other))
    return len(a & b) / len(a | b)


def similarity(one: str, other: str) -> float:
    near = NearDuplicates(0.01)  # which everything that is alike in any band reaches
    near.add(one)
    match = near.find(other)
    return match.similarity if match else 0.0


def test_nothing_is_like_anything_at_first() -> None:
    near = NearDuplicates(0.8)
    assert near.find("What is the capital of France?") is None
    assert len(near) == 0


def test_find_takes_nothing_in_and_find_and_add_does_both() -> None:
    near = NearDuplicates(0.8)
    assert near.find_and_add("one two three") is None
    assert near.find("four five six") is None
    assert len(near) == 1
    assert near.find_and_add("four five six") is None
    assert near.find_and_add("Four, five: six!") == Match(1, 1.0)
    assert len(near) == 3


def test_the_same_words_match_with_1_and_the_earliest_of_them() -> None:
    near = NearDuplicates(0.8)
    for text in ("a", "b", "B.", "b", ""):
        near.add(text)
    assert near.find(" b!") == Match(1, 1.0)
    assert near.find("?") == Match(4, 1.0)  # no words are the same words


def test_one_word_of_twelve_is_nothing_new_when_generating_and_another_question_when_checking() -> None:
    question = "If a baker sells 14 loaves a day how many in weeks"
    other = question.replace("14", "15")
    assert len(question.split()) == 12
    # 13 pairs each, of which 11 are in both: 11 / (13 + 13 - 11) = 0.733
    assert jaccard(question, other) == pytest.approx(11 / 15)
    assert similarity(question, other) == pytest.approx(11 / 15, abs=3 * 0.0196)  # 3 x sqrt(.733 x .267 / 512)
    at_07, at_08 = NearDuplicates(0.65), NearDuplicates(0.8)
    at_07.add(question)
    at_08.add(question)
    assert at_07.find(other)
    assert at_08.find(other) is None


def test_questions_that_are_their_numbers_stay_apart() -> None:
    near = NearDuplicates(0.7)
    for one, other, sign in itertools.product(range(2, 12), range(2, 12), "+-*"):
        assert near.find_and_add(f"What is {one} {sign} {other}?") is None


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        # (one two)(two three)(three four) and two ends: a word put before the first takes its end and gives two pairs.
        ("one two three four", "please one two three four", 4 / 7),
        ("one two three four", "four three two one", 0 / 10),
        # (- ha)(ha ha)(ha -), however often
        ("ha ha ha", "ha ha ha ha", 1.0),
        ("one two", "one", 1 / 4),
    ],
)
def test_similarity_is_of_pairs_of_neighbouring_words(one: str, other: str, value: float) -> None:
    assert jaccard(one, other) == value
    assert similarity(one, other) == pytest.approx(value, abs=0.07)


def test_estimates_are_near_the_exact_similarity() -> None:
    chance = random.Random(3)
    errors: list[float] = []
    for text in texts(150, 80, seed=3):
        words = text.split()
        for place in chance.sample(range(80), chance.randint(1, 15)):
            words[place] = f"new{place}"
        other = " ".join(words)
        errors.append(similarity(text, other) - jaccard(text, other))
    # One standard error is 0.018 to 0.022: of 150, hardly any beyond 4, and their mean within 3 / sqrt(150) of one.
    assert max(map(abs, errors)) < 4 * 0.022
    assert abs(sum(errors) / len(errors)) < 3 * 0.022 / 150**0.5


def test_the_most_similar_is_found_across_growing_tables() -> None:
    near = NearDuplicates(0.7)
    every = texts(3000, 30)  # the tables hold 1,024 texts at first
    for number, text in enumerate(every):
        near.add(text)
        if number in (500, 501):
            near.add(text)  # the numbers after these are two off
    for number in (0, 499, 1000, 1500, 2999):
        shift = 2 if number > 501 else 0
        assert near.find(every[number]) == Match(number + shift, 1.0)
        words = every[number].split()
        words[7] = "another"
        match = near.find(" ".join(words))  # 29 / 33 = 0.88
        assert match is not None
        assert match.number == number + shift
        assert match.similarity == pytest.approx(29 / 33, abs=0.06)
    assert near.find(texts(1, 30, seed=9)[0]) is None


def test_at_1_only_the_same_words_match() -> None:
    near = NearDuplicates(1)
    near.add("ha ha ha")
    assert near.find("ha ha ha ha") is None
    assert near.find("Ha, ha, ha!") == Match(0, 1.0)


def test_scripts_without_spaces() -> None:
    text = "\u5df4\u9ece\u662f\u6cd5\u56fd\u7684\u9996\u90fd\uff0c\u4e5f\u662f\u6700\u5927\u7684\u57ce\u5e02\u3002"
    other = text.replace("\u6cd5", "\u5fb7")
    near = NearDuplicates(0.7)
    near.add(text)
    # 16 characters, one changed: 15 / 19 = 0.79
    match = near.find(other)
    assert match is not None
    assert match.similarity == pytest.approx(15 / 19, abs=0.06)


def test_a_crowd_of_texts_alike_in_part_is_searched_in_bounded_time_and_said() -> None:
    near = NearDuplicates(0.5)
    (template,) = texts(1, 60)
    chance = random.Random(1)
    for number in range(LOOKED_AT * 5):
        words = template.split()
        for place in chance.sample(range(60), 5):  # 51 / 71 = 0.72 of the template: 0.72^3 = 0.37 of them in each band
            words[place] = f"{number}x{place}"
        near.add(" ".join(words))
    assert near.find(template) is not None
    assert near.crowded == 1
    apart = NearDuplicates(0.5)
    for text in texts(500, 60):
        apart.find_and_add(text)
    assert apart.crowded == 0


def test_copies_crowd_nothing_out() -> None:
    near = NearDuplicates(0.8)
    original, copied = texts(2, 60)
    near.add(original)
    for _ in range(LOOKED_AT * 3):
        near.add(copied)
    assert near.find(f"{original} indeed") is not None
    assert near.find(copied) == Match(1, 1.0)
    assert near.crowded == 0


@pytest.mark.parametrize("threshold", [0.35, 0.5, 0.65, 0.8, 0.95, 1.0])
def test_bands_miss_few_texts_at_the_threshold_and_are_no_shorter_than_they_must_be(threshold: float) -> None:
    rows = rows_of_a_band(threshold)
    assert 1 - (1 - threshold**rows) ** BANDS >= RECALL
    assert rows == 21 or 1 - (1 - threshold ** (rows + 1)) ** BANDS < RECALL


def test_at_most_1_kb_a_text() -> None:
    # Just over a power of two, where the tables have the most empty slots.
    near = NearDuplicates(0.8)
    first, *more = texts(4200, 12)
    near.add(first)
    tracemalloc.start()
    try:
        for text in more:
            near.find_and_add(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / len(more) < 1024


def test_the_same_in_every_process_whatever_its_hash_seed() -> None:
    program = """
from core.quality.near_duplicates import NearDuplicates
near = NearDuplicates(0.3)
for text in ("the first text of some that are alike", "the second text of some that are alike", "another one"):
    print(near.find_and_add(text))
print(near.find("a third text of some that are alike"))
"""

    def printed(seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    assert "Match(number=0" in printed("1")
    assert printed("1") == printed("2")


def test_without_datasketch_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingDependency, match=r"datasketch.*doctor\.py --install data$"):
        NearDuplicates(0.8)
