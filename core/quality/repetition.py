"""Whether a text repeats itself, as models do that got caught in a loop."""

import re
from collections import Counter
from collections.abc import Sequence

from ..data.overlap import distinct_n
from .words import UNSPACED, is_json

LOOPS, LOOPED_WORDS, LONGEST_LOOP = 5, 30, 80
"""The end of a text is a loop when the same words (at most 80) stand there 5 times in a row, 30 words altogether."""
RUN = 100
"""Longest run of one character that is none of a ruled line."""
SHARE, LEAST_WORDS = 0.6, 60
"""Share of words in runs of four that stood before from which a text (of 60 words or more) repeats itself."""
SAME_LINES, LEAST_LINES = 0.5, 6
"""Share of characters in lines that stood before, of 6 lines or more."""

FENCED = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1[^\n]*$|\Z)", re.DOTALL | re.MULTILINE)
WORD = re.compile(rf"[{UNSPACED}]|[^\W_]+")
"""A run of letters and digits; a single letter of the scripts that put no blanks between words."""
WRITTEN = re.compile(r"[^\W\d_]{2}")
SAME = re.compile(rf"([^\s\-=_*#.~+|\u2500-\u259f])\1{{{RUN - 1}}}")
TABLE = re.compile(r"^\s*\|.*\|\s*$")


def repetition(text: str) -> str | None:
    """How a text repeats itself, in words; None when it does not.

    The measures of the rules for MassiveText (Rae et al., arXiv:2112.11446, table A1: repeated lines and n-grams), with
    bounds for single answers instead of pages: a refrain, a list of like items, a table, code and JSON pass. A loop is
    looked for at the end, in code too.
    """
    if found := SAME.search(text):
        return f'one character ("{found[1]}") {RUN} times in a row'
    if is_json(text):
        return None
    words = WORD.findall(text.lower())
    if found := loop_of(words):
        return found
    prose = text.splitlines()
    if "```" in text or "~~~" in text or "|" in text:
        prose = [line for line in FENCED.sub("", text).splitlines() if not TABLE.match(line)]
        words = WORD.findall("\n".join(prose).lower())
    lines = [line.strip() for line in prose if len(line) >= 20]
    if len(lines) >= LEAST_LINES:
        again = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
        if again > SAME_LINES * sum(map(len, lines)):
            return f"{again / sum(map(len, lines)):.0%} of it are lines that stood before"
    numbers = sum(map(str.isdigit, words))  # tables and matrices may well repeat themselves
    if len(words) >= LEAST_WORDS and numbers < len(words) / 2 and (share := repeated_share(words)) > SHARE:
        return f"{share:.0%} of its runs of four words stood before"
    return None


def loop_of(words: Sequence[str]) -> str | None:
    """The loop that a text ends in. The last word may be cut off."""
    for end in (len(words), len(words) - 1):
        for period in range(1, min(LONGEST_LOOP, end // LOOPS) + 1):
            unit = words[end - period : end]
            if not WRITTEN.search("".join(unit)):  # columns of numbers may well be the same
                continue
            same = period
            while same < end and words[end - 1 - same] == words[end - 1 - same + period]:
                same += 1
            if same >= max(LOOPED_WORDS, LOOPS * period):
                return f'ends in a loop: "{" ".join(unit)[:60]}" {same // period} times'
    return None


def repeated_share(words: Sequence[str], n: int = 4) -> float:
    """Share of runs of n words that stood before."""
    distinct = distinct_n([words], n)
    return 0.0 if distinct is None else 1 - distinct
