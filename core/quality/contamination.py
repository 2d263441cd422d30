"""Rows that share text with what a model will be evaluated on, found by hashes of word n-grams.

A row is contaminated by an item when it has a run of `ngram` words of it (13: Brown et al., arXiv:2005.14165, appendix
C), or more than half of its different 8-grams: an item of 24 words without its middle one has no run of 13. Items of
fewer words than `ngram` must stand in the row as a whole; those below FEWEST words cannot be judged, since any text may
hold them.

Words are letters and digits alone, because a stretch of code or of a table is mostly signs. Items that must stand in
the row as a whole and hold digits are compared with their signs, too: "5 - 9" is not "5 + 9". Of a script without
spaces two characters count as one word.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .words import UNSPACED, word_hashes, words

FEWEST = 5
"""Words of an item that can be told from what anybody writes."""
PART = 8
"""Words of the n-grams of which a row may have at most half of an item's."""
FEWEST_BITS = 16
"""Of the hashes, in a map of few."""
_BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""
_INVERSE = pow(_BASE, -1, 1 << 64)

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Shared:
    """What a row has in common with an item. words: the longest stretch, as words are compared."""

    source: str
    place: str
    words: str


class Items:
    """The items of evaluations. unjudged: source -> items with too few words."""

    def __init__(self, ngram: int) -> None:
        self.ngram = ngram
        self.unjudged: Counter[str] = Counter()
        self._items: list[tuple[str, str]] = []  # source, place
        self._signed: set[int] = set()  # numbers of short items with digits
        self._met: set[int] = set()  # numbers of items that were found
        # By the length of their n-grams, which is another one in scripts without spaces:
        self._runs: dict[int, _Grams] = {}  # one of them is enough
        self._parts: dict[int, _Grams] = {}  # of the same items: more than half of them are enough
        self._starts: dict[tuple[int, bool], _Grams] = {}  # the first of a shorter item; whether signs are words
        self._wholes: dict[int, tuple[int, int]] = {}  # number of a shorter item -> words, hash
        self._powers, self._inverses = np.ones(1, np.uint64), np.ones(1, np.uint64)  # of _BASE, of _INVERSE

    @property
    def found(self) -> dict[str, tuple[int, int]]:
        """source -> (its items, those of them that stood in a text so far)."""
        all_items = Counter(source for source, _ in self._items) + self.unjudged
        met = Counter(self._items[number][0] for number in self._met)
        return {source: (count, met[source]) for source, count in all_items.items()}

    def add(self, source: str, place: str, text: str) -> None:
        """An item: what is asked there. place: for the user."""
        every = words(text)
        found = _plain(every)
        unit = 2 if 2 * len(re.findall(f"[{UNSPACED}]", " ".join(found))) > len(found) else 1
        run, part, start, number = self.ngram * unit, PART * unit, FEWEST * unit, len(self._items)
        if len(found) < min(run, start):
            self.unjudged[source] += 1
            return
        self._items.append((source, place))
        if len(found) < run:
            if signed := any(map(str.isdigit, "".join(found))):
                self._signed.add(number)
                found = every
            sums = self._sums(found)
            self._starts.setdefault((start, signed), _Grams()).add(self._windows(sums, start)[:1], number)
            self._wholes[number] = len(found), self._window(sums, 0, len(found))
            return
        sums = self._sums(found)
        self._runs.setdefault(run, _Grams()).add(self._windows(sums, run), number)
        if part < run:
            self._parts.setdefault(part, _Grams()).add(self._windows(sums, part), number)

    def find(self, text: str) -> Shared | None:
        """What a text shares with an item, where that contaminates it: the longest stretch of all, the first that was
        added of equal ones. Every item that it is contaminated by counts as found."""
        every = words(text)
        found = _plain(every)
        sums = self._sums(found)
        with_signs = self._sums(every) if self._signed else sums
        stretches = [
            *(self._stretch(sums, length, grams, 0) for length, grams in self._runs.items()),
            *(self._stretch(sums, length, grams, 0.5) for length, grams in self._parts.items()),
            *(
                stretch
                for (length, signed), grams in self._starts.items()
                for stretch in self._whole(with_signs if signed else sums, length, grams)
            ),
        ]
        shared = max(filter(None, stretches), key=lambda stretch: (stretch[1] - stretch[0], -stretch[2]), default=None)
        if shared is None:
            return None
        start, end, number = shared
        source, place = self._items[number]
        return Shared(source, place, _shown((every if number in self._signed else found)[start:end]))

    def _stretch(self, sums: Hashes, length: int, grams: "_Grams", least: float) -> tuple[int, int, int] | None:
        """(first word, end, number) of the longest stretch of the long item that a text has most n-grams of, where it
        has more than this share of an item's."""
        places, numbers = grams.find(self._windows(sums, length), least)
        if not len(places):
            return None
        self._met.update(np.unique(numbers).tolist())
        most = int(np.bincount(numbers).argmax())
        return *_longest(places[numbers == most], length), most

    def _whole(self, sums: Hashes, length: int, grams: "_Grams") -> Iterator[tuple[int, int, int]]:
        """(first word, end, number) of every short item that stands in a text."""
        places, numbers = grams.find(self._windows(sums, length), 0)
        for start, number in zip(places.tolist(), numbers.tolist(), strict=True):
            count, whole = self._wholes[number]
            if start + count < len(sums) and self._window(sums, start, count) == whole:
                self._met.add(number)
                yield start, start + count, number

    def _sums(self, found: Sequence[str]) -> Hashes:
        """(N + 1,): the sums of word i times BASE^i, modulo 2^64, over the first 0, 1, ... words."""
        while len(self._powers) <= len(found):
            self._powers, self._inverses = (
                np.concatenate((powers, powers * np.uint64(pow(base, len(powers), 1 << 64))))
                for powers, base in ((self._powers, _BASE), (self._inverses, _INVERSE))
            )
        sums = np.zeros(len(found) + 1, np.uint64)
        np.cumsum(word_hashes(found) * self._powers[: len(found)], out=sums[1:])
        return sums

    def _windows(self, sums: Hashes, length: int) -> Hashes:
        """Hashes of all runs of so many words, in order: equal for equal words, wherever they stand."""
        return (sums[length:] - sums[:-length]) * self._inverses[: max(0, len(sums) - length)]

    def _window(self, sums: Hashes, start: int, length: int) -> int:
        """The hash of one of them."""
        return (int(sums[start + length]) - int(sums[start])) * int(self._inverses[start]) % (1 << 64)


class _Grams:
    """Which items have an n-gram, by its hash: 12 bytes each, and 8 to 16 of a map of those that may be there."""

    def __init__(self) -> None:
        self._added: list[tuple[Hashes, int]] = []
        self._hashes, self._numbers = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
        self._totals = np.zeros(0, np.int64)  # different n-grams, by item
        self._map, self._shift = np.zeros(0, np.bool_), np.uint64(0)

    def add(self, hashes: Hashes, number: int) -> None:
        """The n-grams of an item; those that it has twice count once."""
        self._added.append((np.unique(hashes), number))

    def find(self, hashes: Hashes, least: float) -> tuple[Numbers, Numbers]:
        """(places in a text, numbers of items) of the n-grams that both have, for items of which the text has more than
        this share."""
        if self._added:
            self._sort()
        # Nearly every n-gram of nearly every text is in no item, and the map says so of nine in ten or more.
        places = self._map[hashes >> self._shift].nonzero()[0]
        if not len(places):
            return places, places
        first, after = (np.searchsorted(self._hashes, hashes[places], side) for side in ("left", "right"))
        counts = after - first
        places, first, counts = places[counts > 0], first[counts > 0], counts[counts > 0]
        if not len(places):
            return places, places
        places = np.repeat(places, counts)
        numbers = self._numbers[np.repeat(first, counts) + _ramp(counts)].astype(np.int64)
        if least:
            once = np.unique(np.stack((hashes[places], numbers.astype(np.uint64))), axis=1)[1].astype(np.int64)
            enough = np.bincount(once, minlength=len(self._totals)) > least * self._totals
            places, numbers = places[enough[numbers]], numbers[enough[numbers]]
        return places, numbers

    def _sort(self) -> None:
        hashes = np.concatenate((self._hashes, *(hashes for hashes, _ in self._added)))
        counts = [len(hashes) for hashes, _ in self._added]
        added = np.repeat(np.array([number for _, number in self._added], np.uint32), counts)
        numbers = np.concatenate((self._numbers, added))
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._numbers = hashes[order], numbers[order]
        self._totals = np.bincount(numbers)
        bits = max(FEWEST_BITS, (8 * len(hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._map = np.zeros(1 << bits, np.bool_)
        self._map[self._hashes >> self._shift] = True
        self._added.clear()


def _plain(every: Sequence[str]) -> list[str]:
    return [word for word in every if word[0].isalnum()]


def _ramp(counts: Numbers) -> Numbers:
    """0, 1, ... up to each count: (2, 3) -> 0 1 0 1 2."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _longest(places: Numbers, length: int) -> tuple[int, int]:
    """First word and end of the longest stretch that n-grams at these places cover one after the other."""
    places = np.unique(places)
    starts = np.flatnonzero(np.diff(places, prepend=-2) > 1)
    ends = np.append(starts[1:], len(places))
    longest = (ends - starts).argmax()
    return int(places[starts[longest]]), int(places[ends[longest] - 1]) + length


def _shown(found: Sequence[str]) -> str:
    return re.sub(rf"(?<=[{UNSPACED}]) (?=[{UNSPACED}])", "", " ".join(found))
