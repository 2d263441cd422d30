"""Records that are made, out of memory: in a temporary file, found again by their slot."""

import os
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import orjson

from ..data.jsonlines import cannot_write
from ..errors import StoppedEarly, UsageError
from .records import Record, Slot


class Shelf:
    """Eight bytes of memory for each slot. folder: where the temporary file lies; it has no name there."""

    def __init__(self, folder: Path, slots: int) -> None:
        """Raises UsageError when the folder cannot be written."""
        self._places = array("q", [-1]) * slots
        self._count = 0
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise UsageError(cannot_write(folder, error)) from None

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return self._places[number] >= 0

    def add(self, record: Record) -> None:
        """Keep a record in the place of its slot. Raises StoppedEarly when the disk is full."""
        line = orjson.dumps([asdict(record.slot), record.messages, record.metadata], default=str) + b"\n"
        try:
            place = self._file.seek(0, os.SEEK_END)
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise StoppedEarly(cannot_write(self._folder, error)) from None
        self._places[record.slot.number] = place
        self._count += 1

    def __iter__(self) -> Iterator[Record]:
        """All records in the order of their slots."""
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for place in self._places:
                if place >= 0:
                    file.seek(place)
                    slot, messages, metadata = orjson.loads(file.readline())
                    yield Record(Slot(**slot), messages, metadata)

    def close(self) -> None:
        """The file is gone afterwards."""
        self._file.close()
