"""Laws of the search for near duplicates: whatever the texts."""

import string

from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.quality.near_duplicates import Match, NearDuplicates
from core.quality.words import words

law = settings(max_examples=60, deadline=None)
anything = st.text(max_size=60)
some_texts = st.lists(anything | st.sampled_from(["a b c", "a b d", "A, b c!", "a b c d", "\U0001f600"]), max_size=8)
letters = st.text(string.ascii_letters + "\u00e4\u03bb\u0436", min_size=1, max_size=6)


@law
@given(some_texts, anything, st.sampled_from([0.1, 0.5, 0.8, 1.0]))
@example(["?"], "", 0.8)
@example(["\ud800"], "\ud800!", 0.8)
def test_a_text_finds_itself(before: list[str], text: str, threshold: float) -> None:
    near = NearDuplicates(threshold)
    for each in before:
        near.add(each)
    near.add(text)
    match = near.find(text)
    assert match is not None
    assert match.similarity == 1.0
    same = [number for number, each in enumerate([*before, text]) if words(each) == words(text)]
    assert match.number == same[0]


@law
@given(some_texts, st.floats(0.05, 1))
def test_a_match_is_an_earlier_text_and_as_similar_as_the_threshold(every: list[str], threshold: float) -> None:
    near = NearDuplicates(threshold)
    for number, text in enumerate(every):
        match = near.find(text)
        assert match is None or (0 <= match.number < number and threshold <= match.similarity <= 1)
        assert near.find_and_add(text) == match
        assert len(near) == number + 1


@law
@given(st.lists(letters, max_size=12), st.data())
def test_case_white_space_and_commas_do_not_count(said: list[str], data: st.DataObject) -> None:
    plain = " ".join(said)
    between = st.sampled_from([" ", "\n", "\t ", "\u00a0", ", ", "; ", ".\n\n"])
    cased = [data.draw(st.sampled_from([word, word.upper(), word.title()])) for word in said]
    written = "".join(word + data.draw(between) for word in cased)
    near = NearDuplicates(0.8)
    near.add(plain)
    assert near.find(written) == Match(0, 1.0)


@law
@given(st.lists(letters, min_size=3, max_size=12, unique_by=str.casefold))
def test_a_likeness_is_as_great_the_other_way_round(said: list[str]) -> None:
    one, other = " ".join(said), " ".join([*said[1:], "9"])
    matches: list[Match | None] = []
    for first, second in ((one, other), (other, one)):
        near = NearDuplicates(0.3)
        near.add(first)
        matches.append(near.find(second))
    assert matches[0] == matches[1]
