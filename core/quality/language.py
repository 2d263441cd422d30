"""Which language a text is in, where that can be told: py3langid's classifier, on what is prose in it."""

import re
from functools import lru_cache
from typing import Any

from ..errors import MissingDependency, StoppedEarly
from .repetition import FENCED

SURE = 0.8
"""Least probability. Below, a text counts as unsure: short ones, mixed ones, code, and siblings such as Bosnian and
Croatian."""
LETTERS = 16
"""Least letters, in bytes of UTF-8: 16 of Latin, 8 of Cyrillic, 6 of Chinese."""
MOST = 250
"""Characters that are looked at."""

MARKED = re.compile(r"`[^`\n]+`|\$[^$\n]+\$|\\\[.*?\\\]|\\\(.*?\\\)|</?[A-Za-z][^<>\n]*>", re.DOTALL)
"""Inline code, formulas, tags."""
NO_WORD = re.compile(r"[\d_@\\/<>{}=|~^$%&+]+|\w\(|\w\.\w")
"""Stands in numbers, addresses, names and calls of code."""
QUOTED = re.compile(
    r"(?<!\w)'[^'\n]{2,200}'(?!\w)|\"[^\"\n]{2,200}\"|\u201c[^\u201d\n]{2,200}\u201d|\u00ab[^\u00bb\n]{2,200}\u00bb"
)
"""What is asked to be translated is often in another language."""
FOLDED = {
    **{"ary": "ar", "arz": "ar", "fuv": "ff", "grc": "el", "gug": "gn", "hbo": "he", "kik": "ki", "ltg": "lv"},
    **{"nn": "no", "pcm": "en", "sdh": "ku", "uzs": "uz", "wuu": "zh", "yue": "zh"},
}
"""py3langid's codes -> those of ISO 639-1. Languages without one (Venetian, Kabyle, ...) keep their three letters."""
NONE = "zxx"
"""No language."""


@lru_cache(maxsize=1)
def identifier() -> Any:
    """py3langid's classifier, loaded once (0.6 s). Raises MissingDependency; StoppedEarly when the folder of temporary
    files has no room: it is unpacked there."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError:
        raise MissingDependency("py3langid", "telling languages", "data") from None
    try:
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError as error:
        raise StoppedEarly(no_room(error)) from None


def no_room(error: OSError) -> str:
    """Of the folder of temporary files."""
    return (
        f"temporary files cannot be written: {error.strerror}. Free space, or name another folder in TMPDIR, then run "
        "the same command."
    )


def language_of(text: str) -> str | None:
    """The language of a text as ISO 639-1 names it; None when it is too short, unsure, or no prose at all."""
    text = prose(text)
    unquoted = QUOTED.sub(" ", text)
    if letters(unquoted) >= LETTERS:
        text = unquoted
    elif letters(text) < LETTERS:
        return None
    code, share = identifier().classify(text)
    family = FOLDED.get(code, code)
    if share < SURE:  # Cantonese and Chinese may share what one of them would need
        share = sum(other for name, other in identifier().rank(text) if FOLDED.get(name, name) == family)
    return family if share >= SURE and family != NONE else None


def letters(text: str) -> int:
    """Its letters, in bytes of UTF-8."""
    return sum(len(sign.encode()) for sign in text if sign.isalpha())


def prose(text: str) -> str:
    """The beginning of a text without what belongs to no language."""
    text = MARKED.sub(" ", FENCED.sub("\n", text[: 4 * MOST])[: 2 * MOST])
    words = (word if not NO_WORD.search(word) else _without(word) for word in text.split())
    return " ".join(filter(None, words))[:MOST]


def _without(word: str) -> str:
    """What is left of a word with signs in it: nothing, but where a script puts no blanks between words."""
    return "" if word.isascii() else NO_WORD.sub(" ", word)
