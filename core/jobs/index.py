"""One line for each job that began, and one for each that ended, so that nobody need open 10,000 folders.

Hints only: what counts are the folders. A job without a line is found too, only later; lines of deleted jobs, and
damaged ones, say nothing.
"""

import os
import re
from pathlib import Path

INDEX = ".index"
LINE = re.compile(rb"^(job_[0-9a-f]{32}) (\w+) (\w+|-)$", re.MULTILINE)


def note(folder: Path, id: str, command: str, state: str = "-") -> None:
    """Add a line. folder: of all jobs.   state: how the job ended. Raises OSError."""
    handle = os.open(folder / INDEX, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, f"\n{id} {command} {state}\n".encode())  # the first break ends a torn line before it
    finally:
        os.close(handle)


def hints(folder: Path) -> dict[str, tuple[str, str]]:
    """Id -> (command, state or "-"), in the order in which the jobs began."""
    try:
        data = (folder / INDEX).read_bytes()
    except OSError:
        return {}
    return {id.decode(): (command.decode(), state.decode()) for id, command, state in LINE.findall(data)}
