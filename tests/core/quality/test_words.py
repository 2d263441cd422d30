"""What counts as a word when texts are compared."""

import pytest

from core.quality.words import words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what is  the\tCAPITAL of France"),
        ("He said \u201cyes\u201d \u2013 at once.", 'he said "yes" at once'),
        ("- **First**, the _well-known_ one:\n- second `x`", "First the well known one, second x"),
        ("# Heading\n\nText \u2026", "heading text"),
        ("\uff21\uff22\uff23 \ufb01ne", "abc fine"),
        ("caf\u00e9 Stra\u00dfe", "CAFE\u0301 STRASSE"),
        ("zero\u200bwidth soft\u00adhyphen", "zerowidth softhyphen"),
        ("(2+3)*4", "( 2 + 3 ) * 4"),
        ("5\u22123 and 5 \u2013 3", "5-3 and 5 - 3"),
        ("2\u00b3", "2^3"),
        ("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d \u4e16\u754c"),
    ],
)
def test_layout_does_not_count(one: str, other: str) -> None:
    assert words(one) == words(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 5 - 3?", "What is 5 + 3?"),
        ("What is 5 - 3?", "What is 5, 3?"),
        ("(2 + 3) * 4", "2 + (3 * 4)"),
        ("(2 + 3) * 4", "(2 + 3) / 4"),
        ("2\u00b3", "23"),
        ("2**3", "2*3"),
        ("3.5 m", "35 m"),
        ("3.5 m", "3 5 m"),
        ("-3 degrees", "3 degrees"),
        ("a - b", "a b"),
        ("x*y", "x y"),
        ("10 %", "10"),
        ("a < b", "a > b"),
        ("in C#", "in C"),
        ("in C++", "in C"),
        ("\U0001f600", "\U0001f622"),
    ],
)
def test_what_changes_the_meaning_does(one: str, other: str) -> None:
    assert words(one) != words(other)


def test_scripts_without_spaces_are_read_by_the_character_and_vowel_signs_stay_with_their_letters() -> None:
    assert words("Python\u8bed\u8a00\u3067\u3059 3") == ["python", "\u8bed", "\u8a00", "\u3067", "\u3059", "3"]
    assert words("\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\u092e\u0947\u0902",
    ]
    assert words("\u0645\u064e\u0631\u062d\u0628\u0627\u060c") == ["\u0645\u064e\u0631\u062d\u0628\u0627"]


@pytest.mark.parametrize("text", ["", " \n", "?!...", '"', "_ _"])
def test_a_text_may_have_no_words(text: str) -> None:
    assert words(text) == []
