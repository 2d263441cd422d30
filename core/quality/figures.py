"""What a file is made of: how long its rows are, of which kinds, and how varied their words."""

import bisect
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..data.overlap import distinct_n, words
from ..data.prompts import ANSWER_KEYS
from .personal import personal
from .results import Lengths
from .rows import Entry

QUANTILES = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "90%": 0.9, "max": 1.0}
MOST_BINS = 24
"""Bars of a histogram, as many as can be told apart in a plot of a page's width."""
LONG_TAIL = 10
"""From so many times the 90 % quantile on, the longest row would leave a histogram of equal bins empty."""
MOST_VALUES, LONGEST_VALUE = 24, 60
"""Of a key of metadata that says of which kind a row is; one with more, or with longer ones, describes single rows. As
many as a reader goes through."""
SPOKEN_ROWS = 1000
"""Rows whose words are counted for distinct-n, drawn evenly: it falls with the length of the text that it is taken of,
so files are compared at the same number of rows, and their words need not all be remembered."""


class Figures:
    """Counts of all rows that were added. Memory grows with the number of different lengths, not with that of rows."""

    def __init__(self, seed: int) -> None:
        self._lengths: dict[tuple[str, str], Counter[int]] = {}
        self._kinds: dict[str, Counter[str] | None] = {}  # None: no kind
        self._spoken: list[tuple[str, str]] = []
        self._rows = 0
        self._random = random.Random(seed)

    def add(self, entry: Entry, tokens: int | None = None) -> None:
        """A row that could be read. tokens: of the whole row, where they were counted."""
        texts = {"prompt": entry.prompt, "answer": entry.answer} if entry.said else {"prompt": entry.prompt}
        for what, text in texts.items():
            self._count(what, "characters", len(text))
            self._count(what, "words", len(text.split()))
        if tokens is not None:
            self._count("row", "tokens", tokens)
        for key, value in entry.metadata.items():
            self._add_kind(key, value)
        self._rows += 1  # Vitter's algorithm R
        if len(self._spoken) < SPOKEN_ROWS:
            self._spoken.append((entry.prompt, entry.answer))
        elif (place := self._random.randrange(self._rows)) < SPOKEN_ROWS:
            self._spoken[place] = (entry.prompt, entry.answer)

    def _count(self, what: str, unit: str, length: int) -> None:
        self._lengths.setdefault((what, unit), Counter())[length] += 1

    def _add_kind(self, key: str, value: Any) -> None:
        values = self._kinds.setdefault(key, Counter())
        if values is None:
            return
        text = str(value)
        if isinstance(value, str | int) and len(text) <= LONGEST_VALUE and key not in (*ANSWER_KEYS, "expected_answer"):
            if text not in values and personal(text):  # the report shows every value
                self._kinds[key] = None
                return
            values[text] += 1
            if len(values) <= MOST_VALUES:
                return
        self._kinds[key] = None

    def lengths(self) -> list[Lengths]:
        """Of prompts, answers, and rows in tokens."""
        return [lengths_of(what, unit, counted) for (what, unit), counted in self._lengths.items()]

    def kinds(self) -> dict[str, dict[str, int]]:
        """Key of metadata -> value -> rows, the most frequent first. A key whose values are nearly all different names
        rows, not kinds."""
        found = {key: values for key, values in self._kinds.items() if values and 2 * len(values) <= values.total()}
        return {key: dict(values.most_common()) for key, values in found.items()}

    def distinct(self) -> dict[str, float]:
        """distinct-1 and distinct-2 (Li et al., arXiv:1510.03055): different words, and pairs of words that follow one
        another in a text, as a share of all, in at most SPOKEN_ROWS rows."""
        found: dict[str, float] = {}
        for side, name in enumerate(("prompts", "answers")):
            texts = [words(pair[side]) for pair in self._spoken]
            for n in (1, 2):
                if (value := distinct_n(texts, n)) is not None:
                    found[f"{name} distinct-{n}"] = value
        return found


def lengths_of(what: str, unit: str, counted: Counter[int]) -> Lengths:
    """counted: length -> rows."""
    order = sorted(counted)
    until = list(itertools.accumulate(counted[length] for length in order))

    def quantile(share: float) -> float:
        """Between the two nearest rows, as numpy's."""
        place = share * (until[-1] - 1)
        below, above = (order[bisect.bisect_right(until, rank)] for rank in (math.floor(place), math.ceil(place)))
        return below + (above - below) * (place - math.floor(place))

    quantiles = {name: quantile(share) for name, share in QUANTILES.items()}
    edges = list(edges_for(order[0], order[-1], doubling=order[-1] > LONG_TAIL * max(1.0, quantiles["90%"])))
    counts = [0] * (len(edges) - 1)
    for length, rows in counted.items():
        counts[min(bisect.bisect_right(edges, length), len(counts)) - 1] += rows
    return Lengths(what=what, unit=unit, quantiles=quantiles, edges=edges, counts=counts)


def edges_for(low: int, high: int, *, doubling: bool) -> Iterator[float]:
    """Of bins that hold low to high: of one round width, or each twice as wide as the one before."""
    if doubling:
        yield 0.0
        edge = 1.0
        while edge <= high:
            yield edge
            edge *= 2
        yield edge
        return
    width = max(1, round_up((high - low) / MOST_BINS))
    edge = low // width * width
    while edge <= high:
        yield float(edge)
        edge += width
    yield float(edge)


def round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    size = 1
    while True:
        for step in (1, 2, 5):
            if step * size >= value:
                return step * size
        size *= 10
