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

    Open addressing over two arrays: 12 bytes a slot, at most 2/3 full, so 18 to 36 bytes a key (54 while it grows),
    where a dict of strings takes about 150. Keys are told apart by their first 64 bits: among a million keys the
    chance that any two are confused is 3e-8.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._counts = array("L" if array("L").itemsize == 4 else "I", bytes(4 * 1024))
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def __contains__(self, key: str) -> bool:
        return self._counts[self._find(_digest(key))] > 0

    def add(self, key: str) -> int:
        """Count the key once more; how often it had been seen before."""
        if 3 * self._used >= 2 * len(self._slots):
            self._grow()
        digest = _digest(key)
        slot = self._find(digest)
        before = self._counts[slot]
        if not before:
            self._slots[slot] = digest
            self._used += 1
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
        self._slots = array("Q", bytes(16 * len(slots)))
        self._counts = array(counts.typecode, bytes(8 * len(slots)))
        for digest, count in zip(slots, counts, strict=True):
            if count:
                slot = self._find(digest)
                self._slots[slot], self._counts[slot] = digest, count


def _digest(key: str) -> int:
    return int(key[:16], 16)
