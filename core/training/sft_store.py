"""What an SFT run holds of its rows: their tokens in a file that is mapped into memory, and some 50 bytes of each."""

import shutil
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ..data.keys import work_key
from ..errors import UsageError

CHUNK = 1000
"""Rows whose tokens are written together."""
UNTRAINED = -100
SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])
"""32 hexadecimal digits; sorted, they stand as their texts would."""


class RowStore:
    """Rows in tokens, 8 bytes a token, in a temporary file: the system holds as much of it in memory as it has room
    for. It goes when it is closed, when nobody uses the store any more, and when the program ends."""

    def __init__(self) -> None:
        self._ids, self._labels, self._ends = array("i"), array("i"), array("i", [0])
        self._folder: Path | None = None
        self._writer: Any = None
        self._remove: Any = None

    def add(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        """Raises UsageError where the disk has no room."""
        self._ids.extend(ids)
        self._labels.extend(place if said else UNTRAINED for place, said in zip(ids, trained, strict=True))
        self._ends.append(len(self._ids))
        if len(self._ends) > CHUNK:
            self._write()

    def split(self, out: np.ndarray) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        """(all rows but those, those or None where there are none), in the order in which they came.

        out: (n,) booleans. No row can be added afterwards. Raises UsageError where the disk has no room.
        """
        self._write()
        try:
            self._writer.close()
        except OSError as error:
            raise self._no_room(error) from None
        self._writer = None
        assert self._folder is not None  # `_write` has made it
        rows = datasets.Dataset.from_file(str(self._folder / "rows.arrow"))
        if not out.any():
            return rows, None
        return rows.select(np.flatnonzero(~out)), rows.select(np.flatnonzero(out))

    def close(self) -> None:
        """Remove the file. Rows that are in use stay readable; on Windows, which removes no file in use, so does it."""
        if self._writer is not None:
            self._writer, writer = None, self._writer
            writer.close()
        if self._remove is not None:
            self._remove()

    def _write(self) -> None:
        """The waiting rows go to the file."""
        ends = pa.array(np.frombuffer(self._ends, np.int32))
        columns = [pa.array(np.frombuffer(values, np.int32)) for values in (self._ids, self._labels)]
        try:
            if self._writer is None:
                self._folder = Path(tempfile.mkdtemp(prefix="distill-rows-"))
                self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
                self._writer = pa.ipc.new_stream(str(self._folder / "rows.arrow"), SCHEMA)
            self._writer.write(
                pa.record_batch([pa.ListArray.from_arrays(ends, column) for column in columns], schema=SCHEMA)
            )
        except OSError as error:
            raise self._no_room(error) from None
        self._ids, self._labels, self._ends = array("i"), array("i"), array("i", [0])

    def _no_room(self, error: OSError) -> UsageError:
        return UsageError(
            f"the tokens of the rows cannot be written to {tempfile.gettempdir()}: {error.strerror or error}. They "
            "take 8 bytes each. Make room, or name another folder in the environment variable TMPDIR."
        )


class RowNotes:
    """What is remembered of each row that is used: its line, opening, turns, teacher and counts. 44 bytes, and 8 for
    each further turn."""

    def __init__(self) -> None:
        self._lines = array("I")
        self._openings = bytearray()
        self._hashes, self._turns = bytearray(), array("I")
        self._names: dict[str, int] = {}
        self._teachers = array("I")
        self._lengths, self._trained = array("i"), array("i")

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: int, opening: str, hashes: Sequence[str], teacher: str, length: int, trained: int) -> None:
        """opening: 32 hex digits.   hashes: `content_hash` of each turn.   length, trained: tokens."""
        self._lines.append(line)
        self._openings += bytes.fromhex(opening)
        self._hashes += bytes.fromhex("".join(hashes))
        self._turns.append(len(hashes))
        self._teachers.append(self._names.setdefault(teacher, len(self._names)))
        self._lengths.append(length)
        self._trained.append(trained)

    def held_out(self, fraction: float, seed: int) -> np.ndarray:
        """(n,) whether each row is held out, as `samples.held_out_places` has it, with numbers in place of texts."""
        if fraction <= 0:
            return np.zeros(len(self), bool)
        groups, group = np.unique(np.frombuffer(self._openings, DIGEST), return_inverse=True)
        count = min(max(1, round(len(groups) * fraction)), len(groups) - 1)
        keys = bytearray()
        for digits in groups:
            keys += bytes.fromhex(work_key([seed, digits.tobytes().hex()]))
        chosen = np.zeros(len(groups), bool)
        chosen[np.argsort(np.frombuffer(keys, DIGEST))[:count]] = True
        return chosen[group]

    def lines(self, which: np.ndarray) -> set[int]:
        """Where these rows stand in the file. which: (n,) booleans, here and below."""
        return set(np.frombuffer(self._lines, np.uint32)[which].tolist())

    def trained_on(self, which: np.ndarray) -> bytes:
        """The contents of trained_on.txt for these rows."""
        turns = np.repeat(which, np.frombuffer(self._turns, np.uint32))
        hashes = np.unique(np.frombuffer(self._hashes, ">u8")[turns])
        return "".join(f"{each:016x}\n" for each in hashes.tolist()).encode()

    def teachers(self, which: np.ndarray) -> Counter[str]:
        """How many of these rows each teacher wrote."""
        rows = np.bincount(np.frombuffer(self._teachers, np.uint32)[which], minlength=len(self._names))
        return Counter({name: int(rows[place]) for name, place in self._names.items() if rows[place]})

    def tokens(self, which: np.ndarray) -> tuple[int, int]:
        """(tokens of these rows, those that are trained)."""
        lengths, trained = np.frombuffer(self._lengths, np.int32), np.frombuffer(self._trained, np.int32)
        return int(lengths[which].sum(dtype=np.int64)), int(trained[which].sum(dtype=np.int64))

    @property
    def longest(self) -> int:
        """Most tokens of a row."""
        return max(self._lengths)
