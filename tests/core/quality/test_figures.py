"""Lengths, kinds and words of a file, against numbers that can be worked out by hand."""

from collections import Counter

import pytest

from core.data.overlap import distinct_n
from core.quality.figures import SPOKEN_ROWS, Figures, lengths_of
from core.quality.rows import Entry


def entry(index: int, prompt: str = "why", answer: str = "", **metadata: object) -> Entry:
    said = [{"role": "assistant", "content": answer}] if answer else []
    return Entry(index, f"f:{index}", {}, None, [{"role": "user", "content": prompt}], said, metadata, prompt, answer)


def test_quantiles_lie_between_the_two_nearest_rows() -> None:
    # 1 2 3 4 10: the median is the third; 25 % lies at place 1 -> 2; 90 % at place 3.6 -> 4 + 0.6 * 6 = 7.6
    found = lengths_of("answer", "words", Counter([10, 1, 3, 2, 4]))
    assert found.quantiles == pytest.approx({"min": 1, "25%": 2, "median": 3, "75%": 4, "90%": 7.6, "max": 10})


def test_a_histogram_holds_every_row_once_in_bins_of_a_round_width() -> None:
    lengths = Counter({0: 3, 49: 2, 50: 5, 230: 1})
    found = lengths_of("prompt", "characters", lengths)
    assert found.edges[:3] == [0, 10, 20]  # 230 / 24 = 9.6, rounded up to 10
    assert found.edges[-1] > 230
    assert sum(found.counts) == 11
    assert (found.counts[0], found.counts[4], found.counts[5], found.counts[23]) == (3, 2, 5, 1)


def test_one_very_long_row_gives_bins_that_double() -> None:
    found = lengths_of("prompt", "characters", Counter({5: 99, 100_000: 1}))
    assert found.edges[:5] == [0, 1, 2, 4, 8]
    assert found.edges[-1] == 131_072
    assert (found.counts[3], found.counts[-1], sum(found.counts)) == (99, 1, 100)


def test_all_rows_of_one_length_are_one_bin() -> None:
    found = lengths_of("prompt", "words", Counter({7: 4}))
    assert (found.edges, found.counts) == ([7, 8], [4])


def test_keys_with_few_values_are_kinds_and_those_that_name_rows_are_none() -> None:
    figures = Figures(0)
    for number in range(40):
        kinds = {"difficulty": "easy" if number % 4 else "hard", "id": f"row{number}", "turns": 1 + number % 2}
        figures.add(entry(number, expected_answer="yes", story="long " * 20, **kinds))
    assert figures.kinds() == {"difficulty": {"easy": 30, "hard": 10}, "turns": {"1": 20, "2": 20}}
    few = Figures(0)
    for number in range(4):
        few.add(entry(number, name=f"n{number}"))  # four values in four rows are names
    assert few.kinds() == {}


def test_a_key_that_names_people_by_their_addresses_is_no_kind() -> None:
    figures = Figures(0)
    for number in range(8):
        figures.add(entry(number, owner=f"{'ab'[number % 2]}nna.schmidt@" + "gmail.com", kind="letter"))
    assert figures.kinds() == {"kind": {"letter": 8}}


def test_distinct_n_counts_pairs_within_a_text_only() -> None:
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct_n(texts, 1) == 2 / 5  # a b a a b
    assert distinct_n(texts, 2) == 2 / 3  # ab ba ab
    assert distinct_n([["alone"]], 2) is None


def test_lengths_of_answers_are_those_of_rows_that_have_one() -> None:
    figures = Figures(0)
    figures.add(entry(0, "two words"), tokens=12)
    figures.add(entry(1, "one", "a b c"))
    by_name = {(each.what, each.unit): each for each in figures.lengths()}
    assert sum(by_name["prompt", "words"].counts) == 2
    assert by_name["answer", "words"].quantiles["max"] == 3
    assert sum(by_name["answer", "characters"].counts) == 1
    assert by_name["row", "tokens"].quantiles["median"] == 12


def test_the_words_of_many_rows_are_those_of_an_even_sample_and_the_same_every_time() -> None:
    def distinct(seed: int) -> float:
        figures = Figures(seed)
        for number in range(4 * SPOKEN_ROWS):
            figures.add(entry(number, "old" if number < 2 * SPOKEN_ROWS else f"new{number}"))
        return figures.distinct()["prompts distinct-1"]

    # Half of the rows say the same word: half of the sampled words are different ones, whatever the order in the file.
    assert abs(distinct(0) - 0.5) < 0.06
    assert distinct(0) == distinct(0)
