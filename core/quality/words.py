"""Texts as checks see them: words, whose layout does not count but what changes a sum does; whether they are JSON."""

import re
import unicodedata
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import orjson
from numpy.typing import NDArray

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters: scripts without spaces between words."""
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8"
    "\u06ea-\u06ed\u0711\u0730-\u074a\u0900-\u0963\u0966-\u0dff\u0f71-\u0f84\u0f8d-\u0fbc"
)
"""Accents and vowel signs, which stand within words and are no letters to Python's \\w; all of the Indic blocks."""
_DROPPED = r"""\-*.,;:!?"'`#\u00a1\u00bf\u2026\u2018-\u201f\u2032\u2033\u2039\u203a\u00ab\u00bb\u00b7\u2022""" + (
    "\u060c\u061b\u061f\u06d4\u0964\u0965\u3001-\u3003\u3008-\u3011\u30fb"
)
"""What structures sentences and Markdown."""
_WORD = re.compile(
    rf"[^\W_{UNSPACED}]+(?:[{_MARKS}]+[^\W_{UNSPACED}]*)*|[{UNSPACED}]|[^\w\s{_DROPPED}{_MARKS}{UNSPACED}]"
)
_OPERATOR = re.compile(
    r"""
      \*\*(?<=[\w)]\*\*)(?=[\d(])              # 2**3, but not **bold**
    | [-*](?:(?<=[\d)].)|(?<=[\d)][ ].)|(?<=\b\w.)|(?<=\b\w[ ].))(?=[ ]?(?:[\d(]|\w\b))  # 5 - 3, a*b, (x)-1
    | -(?=\d)                                   # -3
    | \.(?<=\d\.)(?=\d)                         # 3.5
    | \#(?<=\w\#)                               # C#
    """,
    re.VERBOSE,
)
_OPERATORS = {"**": "^", "*": "\u00d7", "-": "\u2212", ".": "\u066b", "#": "\u266f"}
"""What must not be dropped -> a sign that never is."""
_PLAIN = {
    **{
        f"{sign}": f"^{number}"
        for number, sign in enumerate("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    },
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe0e\ufe0f", ""),
}
"""Before NFKC: raised digits (of 2\u00b3 it would make 23), dashes that are all one, what nobody sees."""
_SPECIAL = re.compile(f"[{''.join(_PLAIN)}]")


def words(text: str) -> list[str]:
    """The words of a text in order, without regard to case, form (NFKC), white space, punctuation and Markdown.

    Signs that change what is asked are words too: + = < % ( ) $ wherever they stand; minus, asterisk and point between
    numbers or single letters. So "5 - 3" is neither "5 + 3" nor "5, 3", while "well-known" is "well known" and "**so**"
    is "so". In scripts without spaces every character is a word.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _SPECIAL.sub(lambda found: _PLAIN[found[0]], text))
    text = " ".join(text.casefold().split())
    return _WORD.findall(_OPERATOR.sub(lambda found: _OPERATORS[found[0]], text))


def word_hashes(found: Sequence[str]) -> NDArray[np.uint32]:
    """CRC-32 of every word: the same on every machine, and the quickest that Python has. Words that collide are two in
    four billion."""
    encoded = " ".join(found).encode("utf-8", "surrogatepass").split(b" ") if found else []
    return np.fromiter(map(crc32, encoded), np.uint32, len(encoded))


def is_json(text: str) -> bool:
    """Whether a text is a whole JSON object or list, which may hold as many like items as it wants."""
    text = text.strip()
    if not text.startswith(("{", "[")) or not text.endswith(("}", "]")):
        return False
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
