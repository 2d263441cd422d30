"""What a piece of work gets from its door: progress, the wish to stop, and where its options came from."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from .progress import Progress
from .stop import Stop


@dataclass
class Run:
    """One run of a command, from any door.

    origins: where each option's value came from.   out: takes text that the user asked to see (with --json: nowhere).
    """

    progress: Progress = field(default_factory=Progress)
    stop: Stop = field(default_factory=Stop)
    origins: dict[str, str] = field(default_factory=dict[str, str])
    out: Callable[[str], None] = print


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary file beside it, fsync, rename. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """A value as indented JSON, atomically."""
    write_atomic(path, orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str) + b"\n")
