"""Texts that are much like an earlier one, found among any number of them, in less than 1 kB of memory a text.

A text is the set of its pairs of neighbouring words, the first and the last one paired with the text's end; two texts
are as similar as their sets are (Jaccard: the pairs in common, of all pairs that either has). A word changed in the
middle of n takes two pairs from n + 1 and puts two others there: (n - 1) / (n + 3) are left.

    n = 12   11/15 = 0.73        at 0.7, texts of 10 words with one changed are found, and of 100 with 8
    n = 17   16/20 = 0.80        at 0.8, of 17 words with one, and of 100 with 5

So "What is 17 + 25?" and "What is 17 + 26?" are two questions, as is one of twelve words with another number in it at
0.8; at 0.7, which `generate_synthetic` takes, that is nothing new. Pairs, because single words would not see the order,
and because with longer runs a changed word weighs more than a short question can bear: of twelve words 0.65 would be
left with threes, 0.52 with fives.

The sets are known by signatures (Broder 1997, MinHash), of which only one byte each is kept (Li and König 2010, b-bit
MinHash), and are looked up by bands of them (locality-sensitive hashing; Leskovec, Rajaraman, Ullman, Mining of Massive
Datasets, chapter 3). Similarities are estimates with a standard error of at most 0.022, of 0.018 at 0.8.
"""

from array import array
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingDependency
from .words import word_hashes, words

HASHES = 512
"""Bytes of a signature."""
BANDS, RECALL = 24, 0.95
"""Of two texts that are exactly as similar as the threshold, at least this share meets in a band (thresholds below
0.35: fewer)."""
LOOKED_AT = 64
"""Texts of a band that are compared, the latest ones. More than that share one only where a file's texts are all alike
in part, as with one template for all; see `crowded`."""
AT_ONCE = 256
"""Pairs that are hashed together: 0.5 MB, which stays in the processor's cache."""
_TABLES = BANDS + 1
_END = np.zeros(1, np.uint32)
_LEFT, _RIGHT, _MIX = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35), np.uint32(0x9E3779B1)

Signature = NDArray[np.uint8]


@dataclass(frozen=True)
class Match:
    """The earlier text that another one is most like. number: which, from 0.   similarity: 1.0 for the same words."""

    number: int
    similarity: float


class NearDuplicates:
    """Texts in the order in which they were added, and which of them a text is most like.

    Per text: its signature (512 bytes), a digest of its words (8), and for each band and the digest a link to the text
    before it in the same slot of a table, with one to two slots for each text (200 to 300).
    crowded: searches that met so many texts alike in part that only the latest were compared: near duplicates may have
    been missed there, never equal ones.
    """

    def __init__(self, threshold: float) -> None:
        """Raises MissingDependency. threshold: similarity, from which a text matches; at 1 only equal words do."""
        try:
            from datasketch import MinHash
        except ImportError:
            why = "the search for near duplicates"
            raise MissingDependency("datasketch", why, "data") from None
        self.threshold = threshold
        self.crowded = 0
        self._minhash = MinHash(HASHES, hashfunc=int, scheme="affine32")  # the words are hashed already
        self._rows = rows_of_a_band(threshold)
        factors = np.random.RandomState(1).randint(0, 1 << 31, self._rows, np.uint32)
        self._factors: NDArray[np.uint32] = 2 * factors + 1
        self._last: tuple[str | None, tuple[Signature, int]] = (None, (np.zeros(0, np.uint8), 0))
        self._count = 0
        self._signatures = array("B")  # arrays grow by a sixteenth where bytearray and numpy take more
        self._digests = array("Q")  # 0: an earlier text has the same words, and stands in the tables for this one
        self._before = array("I")  # _TABLES for each text: 1 + number of the text before it in its slot
        self._width = 1024
        self._latest = np.zeros(_TABLES * self._width, np.uint32)  # 1 + number of the latest text in each slot

    def __len__(self) -> int:
        return self._count

    def find(self, text: str) -> Match | None:
        """The most similar of the texts so far, when it is as similar as the threshold; of several the earliest."""
        return self._find(*self._signed(text))

    def add(self, text: str) -> None:
        """Take the text in, under the next number."""
        self._add(*self._signed(text))

    def find_and_add(self, text: str) -> Match | None:
        """`find`, then `add`, in little more than the time of one."""
        signature, digest = self._signed(text)
        match = self._find(signature, digest)
        self._add(signature, digest)
        return match

    # ---- signatures ------------------------------------------------------------------------------------------------

    def _signed(self, text: str) -> tuple[Signature, int]:
        """(signature (HASHES,), digest) of a text's words."""
        if text != self._last[0]:  # what is looked for is often added next
            self._last = (text, self._sign(text))
        return self._last[1]

    def _sign(self, text: str) -> tuple[Signature, int]:
        found = words(text)
        digest = blake2b(" ".join(found).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashes = np.concatenate((_END, word_hashes(found), _END))
        pairs = (hashes[:-1] * _LEFT + hashes[1:] * _RIGHT).tolist()
        self._minhash.clear()
        for start in range(0, len(pairs), AT_ONCE):
            self._minhash.update_batch(pairs[start : start + AT_ONCE])
        # The smallest of many hashes has no high bits, and its low ones depend on those of the word alone: mix them.
        signature = ((self._minhash.hashvalues * _MIX) >> 24).astype(np.uint8)
        return signature, int.from_bytes(digest, "little") or 1

    def _slots_of(self, signatures: NDArray[np.uint8], digests: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Places in `_latest`, (N, _TABLES), of texts with signatures (N, HASHES) and digests (N,)."""
        bands = signatures[:, : BANDS * self._rows].reshape(-1, BANDS, self._rows)
        keys = np.empty((len(signatures), _TABLES), np.uint32)
        keys[:, 0] = digests  # its low half
        (bands * self._factors).sum(axis=2, dtype=np.uint32, out=keys[:, 1:])
        # The high bits of the product depend on all of the key.
        places = (keys * _MIX) >> np.uint32(33 - self._width.bit_length())
        return places + np.arange(0, _TABLES * self._width, self._width)

    # ---- search ------------------------------------------------------------------------------------------------------

    def _find(self, signature: Signature, digest: int) -> Match | None:
        equal, *latest = self._latest[self._slots_of(signature[None], np.array([digest], np.uint64))[0]].tolist()
        while equal:
            if self._digests[equal - 1] == digest:
                return Match(equal - 1, 1.0)
            equal = self._before[(equal - 1) * _TABLES]
        if self.threshold >= 1:
            return None
        numbers = sorted(self._candidates(latest))
        if not numbers:
            return None
        signatures = np.frombuffer(self._signatures, np.uint8).reshape(-1, HASHES)
        same = np.count_nonzero(signatures[numbers] == signature, axis=1)
        best = int(same.argmax())
        # One byte of 256 is the same by chance.
        similarity = max(0.0, (int(same[best]) / HASHES - 1 / 256) / (1 - 1 / 256))
        return Match(numbers[best], similarity) if similarity >= self.threshold else None

    def _candidates(self, latest: list[int]) -> set[int]:
        """Numbers of the texts that share a slot with this one, from the latest in each band's."""
        found: set[int] = set()
        crowded = False
        for table, there in enumerate(latest, 1):
            left = LOOKED_AT
            while there and left:
                found.add(there - 1)
                there = self._before[(there - 1) * _TABLES + table]
                left -= 1
            crowded = crowded or there > 0
        self.crowded += crowded
        return found

    # ---- growth ------------------------------------------------------------------------------------------------------

    def _add(self, signature: Signature, digest: int) -> None:
        if self._count == self._width:
            self._grow()
        slots = self._slots_of(signature[None], np.array([digest], np.uint64))[0]
        equal = int(self._latest[slots[0]])
        while equal and self._digests[equal - 1] != digest:
            equal = self._before[(equal - 1) * _TABLES]
        self._signatures.frombytes(signature.tobytes())
        if equal:
            self._digests.append(0)
            self._before.frombytes(bytes(4 * _TABLES))
        else:
            self._digests.append(digest)
            self._before.frombytes(self._latest[slots].tobytes())
            self._latest[slots] = self._count + 1
        self._count += 1

    def _grow(self) -> None:
        """Twice the slots, and every text linked anew; which slots are its own follows from what is kept of it."""
        self._width *= 2
        self._latest = np.zeros(0, np.uint32)  # let go of before the next ones are there
        self._latest = np.zeros(_TABLES * self._width, np.uint32)
        linked = np.flatnonzero(np.frombuffer(self._digests, np.uint64))
        for start in range(0, len(linked), AT_ONCE):
            self._link(linked[start : start + AT_ONCE])

    def _link(self, numbers: NDArray[np.int64]) -> None:
        """Put texts of these numbers, ascending and later than all that are in the tables, into them."""
        signatures = np.frombuffer(self._signatures, np.uint8).reshape(-1, HASHES)[numbers]
        slots = self._slots_of(signatures, np.frombuffer(self._digests, np.uint64)[numbers]).ravel()
        order = np.argsort(slots, kind="stable")
        slots, texts = slots[order], np.repeat(numbers + 1, _TABLES)[order]
        new = np.ones(len(slots) + 1, np.bool_)  # whether another slot begins here
        new[1:-1] = slots[1:] != slots[:-1]
        before = np.where(new[:-1], self._latest[slots], np.roll(texts, 1))
        links = (numbers[:, None] * _TABLES + np.arange(_TABLES)).ravel()[order]
        np.frombuffer(self._before, np.uint32)[links] = before
        self._latest[slots[new[1:]]] = texts[new[1:]]


def rows_of_a_band(threshold: float) -> int:
    """Bytes of the signature in a band: as many as RECALL allows, so that few other texts share one, but at least 2."""
    fitting = (rows for rows in range(HASHES // BANDS, 2, -1) if 1 - (1 - threshold**rows) ** BANDS >= RECALL)
    return next(fitting, 2)
