"""The small files of a job: whole or not there, and for their owner alone. Standard library only."""

import errno
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

RESERVED = 4096
"""Bytes kept for a last word about a job, so that it can be said on a full disk."""
AGAIN_S = (0.2, 0.5, 1, 2, 4, 8)
"""Between attempts to say it."""


def write(path: Path, value: dict[str, Any]) -> None:
    """A value as JSON: a temporary file beside it, fsync, rename. What was reserved is given back. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(value, default=str).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    _reservation(path).unlink(missing_ok=True)


def reserve(path: Path) -> None:
    """Take the room on the disk for a file that `write_reserved` will write. Raises OSError."""
    handle = os.open(_reservation(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(b" " * RESERVED)
        file.flush()
        os.fsync(file.fileno())


def write_reserved(path: Path, value: dict[str, Any]) -> None:
    """The same as `write` for a small value, in the place that was reserved; the rest is filled with blanks.

    Raises OSError. Where nothing is reserved (somebody tidied up) it is written as any other file.
    """
    data = json.dumps(value).encode()
    try:
        file = open(_reservation(path), "r+b")  # noqa: SIM115  closed below
    except FileNotFoundError:
        write(path, value)
        return
    with file:
        file.write(data.ljust(RESERVED))
        file.flush()
        os.fsync(file.fileno())
    os.replace(_reservation(path), path)


def insist(write: Callable[[Path, dict[str, Any]], None], path: Path, value: dict[str, Any]) -> None:
    """Write a last word, and again for some seconds where a disk is away for a while.

    Raises OSError: at once for a full disk and a deleted folder.
    """
    for pause_s in AGAIN_S:
        try:
            return write(path, value)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT):
                raise
            time.sleep(pause_s)
    write(path, value)


def read(path: Path) -> dict[str, Any] | None:
    """What `write` wrote; None for a file that is not there, cannot be read or was torn."""
    try:
        with opened(path) as file:
            value = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def opened(path: Path) -> BinaryIO:
    """A file for reading: no link, which might lead out of the job's folder, and no pipe, which would never end.

    Raises OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def speakable(value: Any) -> Any:
    """A JSON value that UTF-8 can say: file names of old disks may hold halves of characters, which become "?"."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


def tail(path: Path, most_bytes: int) -> bytes:
    """The end of a file, from the beginning of a line where it has several. Raises OSError."""
    with opened(path) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - most_bytes))
        data = file.read(most_bytes)
    if length > most_bytes and b"\n" in data:
        return data.partition(b"\n")[2]
    return data


def reserve_mark(path: Path) -> None:
    """The same for an empty file, which `mark` makes. Raises OSError."""
    os.close(os.open(_reservation(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def mark(path: Path) -> None:
    """Make an empty file, on a full disk too. Raises OSError."""
    try:
        os.replace(_reservation(path), path)
    except FileNotFoundError:  # it is marked already, or somebody tidied up
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _reservation(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserved")
