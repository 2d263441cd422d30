"""Which paid answers become training rows."""

import pytest

from core.generation.filters import REFUSAL, Filters


def test_everything_but_a_truncated_answer_is_kept_by_default() -> None:
    filters = Filters()
    assert filters.reject("Once upon a", "length") == "truncated"
    assert filters.reject("x", "stop") is None
    assert filters.reject("I'm sorry, but I can't help with that.", "stop") is None


def test_truncated_answers_are_kept_on_request() -> None:
    assert Filters(drop_truncated=False).reject("Once upon a", "length") is None


def test_length_is_counted_in_characters_without_the_blanks_around() -> None:
    filters = Filters(min_chars=3)
    assert filters.reject(" äö \n", "stop") == "too_short"
    assert filters.reject("äöü", "stop") is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "I am very sorry, I cannot provide this.",
        "Sorry, I can't do that.",
        "I cannot help with this.",
        "I can't create content of this kind.",
        "I won't write that.",
        "I must decline.",
        "I'm unable to discuss this.",
        "As an AI language model, I cannot have opinions.",
        "Unfortunately, I'm unable to share it.",
    ],
)
def test_refusals_are_recognised_by_how_they_begin(text: str) -> None:
    assert Filters(drop_refusals=True).reject(text, "stop") == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here is how.",
        "Sorry is a word of apology.",
        "The clerk said: I'm sorry, but I can't help with that.",
        "As an AI researcher, she published twelve papers.",
        "I canoe every weekend.",
        "An apology begins with: I am sorry.",
        "Unfortunately, the train was late.",
    ],
)
def test_ordinary_answers_are_not_taken_for_refusals(text: str) -> None:
    assert not REFUSAL.match(text)


def test_what_the_provider_marks_as_a_refusal_is_one() -> None:
    assert Filters(drop_refusals=True).reject("No.", "stop", "I will not") == "refusal"
    assert Filters().reject("No.", "stop", "I will not") is None
