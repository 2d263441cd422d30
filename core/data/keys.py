"""Keys of pieces of work, and a table that remembers millions of them in a few bytes each."""

import hashlib
from array import array
from typing import Any

import orjson


def work_key(content: Any) -> str:
    """32 hex digits (128 bits) of the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class KeyCounts:
    """How often each key was seen, for keys that are hexadecimal digests.

    Open addressing over two arrays: 9 bytes a slot, at most 3/4 full, so 12 to 24 bytes a key (36 while it grows),
    where a dict of strings takes about 150. A run over a complete output holds two such tables, which is within 64
    bytes a row. Keys are told apart by their first 64 bits: among a million keys the chance that any two are confused
    is 3e-8.
    """

    def __init__(self) -> None:
        self._slots, self._counts = _zeros("Q", 1024), _zeros("B", 1024)
        self._often: dict[int, int] = {}  # the counts that a byte cannot hold: at most one key in 255
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def __contains__(self, key: str) -> bool:
        return self._counts[self._find(_digest(key))] > 0

    def add(self, key: str) -> int:
        """Count the key once more; how often it had been seen before."""
        if 4 * self._used >= 3 * len(self._slots):
            self._grow()
        digest = _digest(key)
        slot = self._find(digest)
        before = self._counts[slot]
        if not before:
            self._slots[slot] = digest
            self._used += 1
        if before == 255:
            before = self._often.get(digest, before)
            self._often[digest] = before + 1
        else:
            self._counts[slot] = before + 1
        return before

    def _find(self, digest: int) -> int:
        """The slot of a digest, or the empty one where it belongs."""
        slots, counts, mask = self._slots, self._counts, len(self._slots) - 1
        slot = digest & mask
        while counts[slot] and slots[slot] != digest:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        slots, counts = self._slots, self._counts
        self._slots, self._counts = _zeros("Q", 2 * len(slots)), _zeros("B", 2 * len(slots))
        for digest, count in zip(slots, counts, strict=True):
            if count:
                slot = self._find(digest)
                self._slots[slot], self._counts[slot] = digest, count


def _zeros(kind: str, count: int) -> "array[int]":
    """Without a copy beside it, which array(kind, bytes(...)) would need for a moment."""
    return array(kind, [0]) * count


def _digest(key: str) -> int:
    return int(key[:16], 16)
