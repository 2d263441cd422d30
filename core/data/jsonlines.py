"""JSON Lines files that survive kill -9: one `write` per row, a torn last line cut off at the next start.

Lines end at "\\n" alone. Python's text mode and `str.splitlines` also break at U+2028, U+0085 and others, which may
stand unescaped inside a JSON string, so everything here reads bytes.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from ..errors import InputError, StoppedEarly, UsageError

Row = dict[str, Any]
ELSEWHERE = "--output (and --shard i/n)"


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end) of a file, blank lines left out, a UTF-8 BOM and CRLF removed."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line := line.strip(b" \t\r\n"):
                yield number, line


def sound_length(path: Path, inspect: Callable[[int, Row], None]) -> int:
    """The length in bytes of a file up to a torn last line, after every row before it was shown to `inspect`.

    A last line that lacks nothing but its newline is a row. One that is torn must begin like a row when
    none stands before it: otherwise the file is somebody else's. Raises InputError for a line that is not a JSON
    object, and whatever `inspect` raises.
    """
    sound = rows = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    if not line.endswith(b"\n") and (rows or line.startswith(b'{"'[: len(line)])):
                        return sound
                    raise InputError(path, number, f"not JSON ({error}). {FOREIGN}") from None
                if not isinstance(row, dict):
                    raise InputError(path, number, f"not a JSON object. {FOREIGN}")
                inspect(number, row)
                rows += 1
            sound += len(line)
    return sound


class Journal:
    """An append-only file of rows with one writer.

    Opening it takes a lock and reads it once; `inspect(line number, row)` sees every row and raises UsageError when
    the file is not ours. Only after that is a torn last line (a crash in mid-write) cut off.
    """

    def __init__(self, path: Path, inspect: Callable[[int, Row], None], elsewhere: str = ELSEWHERE) -> None:
        """Raises UsageError: not a regular file, not writable, another writer (elsewhere: the option that names another
        place), somebody else's rows."""
        self.path = path
        check_place(path)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(cannot_write(path, error)) from None
        try:
            lock(self._handle, path, elsewhere)
            self._end = sound_length(path, inspect)
            os.ftruncate(self._handle, self._end)
            self._end_last_line()
        except BaseException:
            os.close(self._handle)
            raise

    def _end_last_line(self) -> None:
        """Add the newline that a crash kept from the last row."""
        if self._end and os.pread(self._handle, 1, self._end - 1) != b"\n":
            try:
                self._end += os.write(self._handle, b"\n")
            except OSError as error:
                raise UsageError(cannot_write(self.path, error)) from None

    def append(self, row: Row) -> None:
        """Write one row with one system call. Raises StoppedEarly when the disk is full; the file stays whole."""
        line = orjson.dumps(row, default=str) + b"\n"
        written = 0
        try:
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError as error:
            os.ftruncate(self._handle, self._end)
            raise StoppedEarly(f"{cannot_write(self.path, error)} Every row before this one is kept.") from None
        self._end += len(line)

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self._end

    def rewrite(self, keep: Callable[[int, Row], bool], after_reading: Callable[[], None] | None = None) -> None:
        """Keep only the rows for which `keep(offset in bytes, row)` holds, atomically: the new file takes the old one's
        place, after `after_reading`. Raises StoppedEarly when the disk is full; the old file is whole then."""
        new = self.path.with_name(self.path.name + ".new")
        handle = None
        try:
            handle = os.open(new, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o666)
            with open(self.path, "rb") as old, open(handle, "wb", closefd=False) as file:
                offset = 0
                for line in old:
                    if line.strip():
                        row = orjson.loads(line)
                        if keep(offset, row):
                            file.write(line)
                    offset += len(line)
            os.fsync(handle)
            lock(handle, new)  # before it takes the old one's place, so that no other writer comes between
            if after_reading:
                after_reading()
            os.replace(new, self.path)
        except BaseException as error:
            if handle is not None:
                os.close(handle)
                new.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise StoppedEarly(cannot_write(self.path, error)) from None
            raise
        os.close(self._handle)
        self._handle, self._end = handle, os.fstat(handle).st_size

    def sync(self) -> None:
        """Bring what was appended to the disk. Raises StoppedEarly when the disk fails."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise StoppedEarly(cannot_write(self.path, error)) from None

    def close(self) -> None:
        """Sync and give the lock back. An empty file is removed: it would look like a result."""
        try:
            self.sync()
            if self._end == 0:
                with contextlib.suppress(OSError):  # in a folder that may not be written, an empty file stays
                    self.path.unlink()
        finally:
            os.close(self._handle)


def lock(handle: int, path: Path, elsewhere: str = ELSEWHERE) -> None:
    """Hold an open file alone until it is closed. Raises UsageError when another process holds it, or has just put
    another file in its place."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock, everything else works
        return
    busy = f"another run is writing {path}. Wait for it, or use another {elsewhere}."
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(busy) from None
    except OSError:  # a file system without locks
        return
    mine = os.fstat(handle)
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    if there is None or (mine.st_ino, mine.st_dev) != (there.st_ino, there.st_dev):
        raise UsageError(busy)  # moved away or replaced between our opening and our locking it


FOREIGN = "This file holds something else; choose another --output, or --overwrite to move it aside."


def check_place(path: Path) -> None:
    """Raises UsageError for a path that can hold no journal: in a folder that is not there, or no regular file."""
    try:
        if path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise UsageError(f"{path} is {kind}. Name a file with --output.")
        path.parent.stat()
        if not path.exists() and not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(cannot_write(path, error)) from None


def cannot_write(path: Path, error: OSError) -> str:
    """One sentence and the next step."""
    if isinstance(error, FileNotFoundError):
        return f"{path}: the folder {path.parent} does not exist. Create it: mkdir -p {path.parent}"
    if isinstance(error, PermissionError):
        return f"{path} cannot be written: {error.strerror}. Change the permissions, or choose another place."
    return f"{path} cannot be written: {error.strerror}. Free space or choose another place, then run the same command."
