"""A file without the rows at fault, and these beside it with their reasons.

Every fault drops a row, whether its measure has a threshold or not: whoever asks for a file of rows that pass wants
them to pass everything. Of rows that are much like one another, the first one that has no other fault stays.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ..commands.check_data import CheckData
from ..data.jsonlines import cannot_write, check_place, read_lines
from ..data.run import Run
from ..errors import StoppedEarly, UsageError
from ..generation.destination import put, temporary_beside
from .rows import Entry

if TYPE_CHECKING:
    from .look import Look

LIKE_ANOTHER = {"exact_duplicate", "near_duplicate"}
UNCHANGED = (".jsonl", ".ndjson", ".json")
"""Kinds of files whose rows go over as they are; rows of tables and texts become conversations."""


def beside(path: Path) -> Path:
    """Where the rows that do not pass go: clean.jsonl -> clean.dropped.jsonl."""
    return path.with_name(f"{path.stem}.dropped{path.suffix}")


def check_fix(options: CheckData) -> None:
    """Raises UsageError when --fix cannot be written, or would write over something."""
    if options.fix is None:
        return
    for path in (options.fix, beside(options.fix)):
        check_place(path)
        for data in (Path(options.data), *options.against):
            if path.exists() and data.exists() and os.path.samefile(path, data):
                raise UsageError(f"--fix would write over {data}, which is read. Name another file.")
        if path.exists() and not options.overwrite:
            raise UsageError(f"{path} exists. Name another file with --fix, or pass --overwrite.")


class Standing:
    """Which of the rows at fault stay after all: those whose only fault is to be like rows that all went for others.

    To be told of the rows at fault in their order.
    """

    def __init__(self) -> None:
        self._like: dict[int, int] = {}
        self._lost: set[int] = set()  # rows that went, and none like them has stayed

    def stays(self, row: int, reasons: set[str], like: int | None) -> bool:
        """row: at fault.   like: the earlier one that it is much like."""
        if like is None:
            if not reasons & LIKE_ANOTHER:
                self._lost.add(row)
            return False
        self._like[row] = like
        first = self._first(like)
        if reasons <= LIKE_ANOTHER and first in self._lost:
            self._lost.remove(first)
            return True
        return False

    def _first(self, row: int) -> int:
        while row in self._like:
            row = self._like[row]
        return row


def write_fixed(rows: Callable[[], Iterator[Entry]], look: "Look", options: CheckData, run: Run) -> tuple[int, int]:
    """Write both files, whole or not at all; (rows that stay, rows that go).

    look: what was found in the same rows.

    Raises UsageError when no row stays, and then no file is touched; StoppedEarly when the place cannot be written, or
    the data have changed meanwhile; KeyboardInterrupt when the user asked to stop.
    """
    assert options.fix is not None
    kept_path, dropped_path = options.fix, beside(options.fix)
    at_fault, standing = look.findings(), Standing()
    finding = next(at_fault, None)
    kept = dropped = 0
    try:
        with ExitStack() as stack:
            good = stack.enter_context(temporary_beside(kept_path, "fix", "--fix"))
            bad = stack.enter_context(temporary_beside(dropped_path, "fix", "--fix"))
            for entry, line in zip(rows(), _lines(options), strict=False):
                run.stop.check()
                if finding is None or finding["row"] != entry.index:
                    good.write(_kept(entry, line, options) + b"\n")
                    kept += 1
                    continue
                if standing.stays(entry.index, set(finding["reasons"]), finding["like_row"]):
                    good.write(_kept(entry, line, options) + b"\n")
                    kept += 1
                else:
                    bad.write(_dropped(entry, line, finding["reasons"]) + b"\n")
                    dropped += 1
                finding = next(at_fault, None)
            if finding is not None or kept + dropped != look.rows:
                raise StoppedEarly(
                    f"{options.data} was changed while it was read, so nothing was written. Run the same command again."
                )
            if not kept:
                raise UsageError(
                    f"--fix {kept_path}: not one of the {dropped:,} rows of {options.data} passes, so nothing is "
                    "written. The report says why."
                )
            if dropped:
                put(bad, dropped_path)  # before the good ones: whoever sees these finds the others, too
            else:
                dropped_path.unlink(missing_ok=True)  # of an earlier run, which --overwrite gives up
            put(good, kept_path)
    except OSError as error:
        raise StoppedEarly(cannot_write(kept_path, error)) from None
    return kept, dropped


def _lines(options: CheckData) -> Iterator[bytes | None]:
    """The rows of a JSON Lines file as they are written; None for each row of other kinds."""
    path = Path(options.data)
    if path.suffix.lower() in (".jsonl", ".ndjson") and options.data != "-":
        return (line for _, line in read_lines(path))
    return itertools.repeat(None)


def _kept(entry: Entry, line: bytes | None, options: CheckData) -> bytes:
    if line is not None:
        return line
    unchanged = options.data == "-" or Path(options.data).suffix.lower() in UNCHANGED
    if unchanged and isinstance(entry.record, dict):
        return orjson.dumps(entry.record)
    return _json({"messages": [*entry.messages, *entry.said], "metadata": entry.metadata})


def _dropped(entry: Entry, line: bytes | None, reasons: dict[str, str]) -> bytes:
    """One that could not be decoded is there as text."""
    row = entry.record
    if isinstance(row, Exception):
        row = None if line is None else line.decode("utf-8", "replace")
    return _json({"place": entry.place, "reasons": reasons, "row": row})


def _json(value: Any) -> bytes:
    """Values that JSON does not have, such as a table's dates, become texts."""
    try:
        return orjson.dumps(value, default=str)
    except TypeError:  # half of a character, a number of more than 64 bits: why the row goes
        return json.dumps(value, default=str).encode()
