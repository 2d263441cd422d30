"""Languages are told where they can be told, and nowhere else."""

import re
import sys
from pathlib import Path

import pytest

import core.data
from core.errors import MissingDependency
from core.quality.language import identifier, language_of, prose

CODES = {
    **{"English": "en", "German": "de", "French": "fr", "Spanish": "es", "Portuguese": "pt", "Polish": "pl"},
    **{"Turkish": "tr", "Vietnamese": "vi", "Swahili": "sw", "Finnish": "fi", "Russian": "ru", "Ukrainian": "uk"},
    **{"Greek": "el", "Arabic": "ar", "Persian": "fa", "Hebrew": "he", "Hindi": "hi", "Bengali": "bn", "Tamil": "ta"},
    **{"Thai": "th", "Chinese": "zh", "Japanese": "ja", "Korean": "ko", "Amharic": "am", "Georgian": "ka"},
}
CORPUS = (Path(core.data.__file__).parent / "corpus.txt").read_text(encoding="utf-8")


def test_the_languages_of_the_corpus_are_told_line_by_line() -> None:
    told = 0
    for name, lines in re.findall(r"^=== language / (\w+)\n(.*?)(?=^===|\Z)", CORPUS, re.MULTILINE | re.DOTALL):
        for line in filter(str.strip, lines.splitlines()):
            assert language_of(line) == CODES[name], line
            told += 1
    assert told > 100


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "42",
            "Paris",
            "ok",
            "Hello",
            "Berlin, Paris, Rome, Madrid",
            "E = mc^2",
            "3x + 4 = 10",
            "\U0001f600" * 20,
        ),
        "https://www.lemonde.fr/politique/article/2024/le-parti-socialiste-et-la-reforme-des-retraites",
        "```python\nfor zeile in datei:\n    ausgabe.schreibe(zeile.strip())\n```",
        "```python\nfor zeile in datei:\n    ausgabe.schreibe(zeile.strip())",  # cut off
        "`die Donaudampfschifffahrtsgesellschaft und ihre Matrosen`",
        "def f(x): return x + 1",
        "SELECT name, total FROM orders WHERE total > 100 ORDER BY total;",
        '{"name": "Schmidt", "ort": "Freiburg", "beruf": "Lehrer"}',
    ],
)
def test_what_is_short_or_no_prose_has_no_language(text: str) -> None:
    assert language_of(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "What is 2 + 2?",
            "Who wrote Hamlet?",
            "Define osmosis.",
            "Solve 3x + 4 = 10 for x.",
            "The answer is 42.",
            "Yes.",
        ),
        *(
            "Name three primary colours.",
            "Explain gravity to a child.",
            "List all prime numbers below 20.",
            "Hi there!",
        ),
        *("Translate 'bonjour' to English.", "Write a haiku about rain.", "Summarise this.", "How does TCP work?"),
        *(
            "Compute the area of a circle with radius 3 cm.",
            "Photosynthesis",
            "Convert 5 km to miles.",
            "Fix this code.",
        ),
        *("Give me a recipe for gnocchi alla romana.", "Who was Otto von Bismarck?", "Is quinoa a grain?", "Thanks!"),
        *(
            "What does 'schadenfreude' mean?",
            "Translate 'Guten Morgen, wie geht es dir?' to English.",
            "Sort [3, 1, 2].",
            "Capital of Burkina Faso?",
            "True or false: 7 > 9?",
        ),
    ],
)
def test_a_short_english_question_is_never_taken_for_another_language(text: str) -> None:
    assert language_of(text) in (None, "en")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Was ist das denn für ein Wetter?", "de"),
        ("Bien sûr, voici la réponse à votre question.", "fr"),
        ("请问，离这里最近的图书馆怎么走？", "zh"),
        (
            "會議延期到下個星期三，請各位事先準備好報告。",
            "zh",
        ),  # traditional; Cantonese is folded in
        ("Hier ist die Lösung:\n```python\nprint('the quick brown fox jumps over the lazy dog')\n```", "de"),
        ("THE SHIP WILL LEAVE THE HARBOUR IN THE MORNING", "en"),
        (
            "Скажите, пожалуйста, как пройти к ближайшей станции метро?",
            "ru",
        ),
    ],
)
def test_whole_sentences_have_one(text: str, code: str) -> None:
    assert language_of(text) == code


def test_only_the_beginning_of_a_long_text_is_looked_at() -> None:
    english = "Photosynthesis turns light, water and carbon dioxide into sugar, and the rest is air. "
    german = "Wer fr\u00fch aufsteht, hat vom Tag noch nichts gewonnen, aber die K\u00fcche f\u00fcr sich allein. "
    assert language_of(english * 1000 + german * 1000) == "en"
    assert len(prose(german * 1000)) <= 250


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    identifier.cache_clear()
    with pytest.raises(MissingDependency, match=r"py3langid.*doctor\.py --install data$"):
        language_of("The ship will leave the harbour in the morning.")
    identifier.cache_clear()
