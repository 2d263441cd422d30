"""Where rows go when a file is replaced as a whole: what is there now, and how nothing of it is lost."""

import filecmp
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from ..data.jsonlines import lock, read_lines
from ..errors import UsageError

Holds = Literal["nothing", "ours", "prompts", "other"]

Ours = Callable[[dict[str, Any]], bool]
"""Whether a row that ends with an answer is our own, which can be made again."""

ANSWERS = ("completion", "response", "output", "chosen")
"""Keys of what somebody may have paid for. An `answer` or a `reference` is what an answer is checked against."""
PROMPTS = ("prompt", "question", "instruction")
TURNS = ("messages", "conversations", "prompt")


def what_it_holds(path: Path, is_ours: Ours) -> tuple[Holds, int]:
    """What is in a file; for "other", also the number of the line that makes it so.

    nothing: there is no file, or an empty one.   ours: every row is.   prompts: rows that wait for answers, perhaps
    with lines among them that cannot be read, which run_rollouts leaves out too.
    """
    if not path.exists():
        return "nothing", 0
    holds: Holds = "nothing"
    unreadable = 0  # number of the first such line
    for number, line in read_lines(path):
        kind = kind_of(line, is_ours)
        if kind == "nothing":
            unreadable = unreadable or number
        elif holds == "nothing":
            holds = kind
        if kind == "other" or kind not in ("nothing", holds):
            return "other", number
        if unreadable and holds == "ours":
            return "other", unreadable
    return ("other", unreadable) if unreadable and holds == "nothing" else (holds, 0)


def kind_of(line: bytes, is_ours: Ours) -> Holds:
    """What a line holds; nothing: it is no JSON object."""
    try:
        found: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "nothing"
    if not isinstance(found, dict):
        return "nothing"
    for key in TURNS:
        turns = found.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            if turns[-1].get("role", turns[-1].get("from")) in ("assistant", "model", "gpt"):
                return "ours" if is_ours(found) else "other"
            break
    else:
        if not any(isinstance(found.get(key), str) for key in PROMPTS):
            return "other"
    return "other" if any(key in found for key in ANSWERS) else "prompts"


@contextmanager
def temporary_beside(path: Path, word: str, option: str = "--output") -> Generator[IO[bytes], None, None]:
    """An empty hidden file in the folder of `path`, gone at the end unless `put` has renamed it. option: names `path`.

    Its name is always the same, so that what a killed run left is taken up, and it is locked, so that two runs do not
    write into one another's. Raises OSError, and UsageError when another run is at work.
    """
    name = path.with_name(f".{path.name}.{word}.tmp")
    with open(name, "a+b", buffering=1 << 20) as file:
        try:
            lock(file.fileno(), name)
        except UsageError:
            raise UsageError(f"another run is writing {path}. Wait for it, or use another {option}.") from None
        identity = os.fstat(file.fileno())
        try:
            file.truncate(0)
            yield file
        finally:
            if os.path.exists(name) and os.path.samestat(identity, os.stat(name)):
                os.unlink(name)


def put(file: IO[bytes], path: Path) -> None:
    """Give a `temporary_beside` its name, with all its bytes on the disk. Raises OSError."""
    file.flush()
    mask = os.umask(0)
    os.umask(mask)
    os.fchmod(file.fileno(), 0o666 & ~mask)
    os.fsync(file.fileno())
    os.replace(file.name, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def may_move(path: Path, to: Path) -> bool:
    """Whether `to` is free, or holds the very same bytes (a run that was killed between two steps)."""
    return not os.path.lexists(to) or (to.is_file() and filecmp.cmp(path, to, shallow=False))


def second_name(path: Path, to: Path) -> None:
    """Let `to` name what `path` names, so that `path` can be replaced. Never over another file. Raises OSError."""
    if os.path.lexists(to) and may_move(path, to):
        return
    try:
        os.link(path, to, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(to):
            raise FileExistsError(f"{to} exists") from None
        os.rename(path, to)


def free_name(path: Path) -> Path:
    """train.jsonl -> train.jsonl.old, or .old2, .old3, ... where those are taken."""
    aside, number = path.with_name(path.name + ".old"), 2
    while os.path.lexists(aside):
        aside, number = path.with_name(f"{path.name}.old{number}"), number + 1
    return aside


class Destination:
    """A file to be replaced. Looks at what is there when it is made; `take` puts the new one.

    Raises UsageError when the place cannot be used, and, without `overwrite`, when it holds other data.
    """

    def __init__(self, path: Path, is_ours: Ours, *, prompts: Path | None, overwrite: bool) -> None:
        self.path = path
        self.holds, line = what_it_holds(path, is_ours)
        self.aside: Path | None = None
        """Where what is there will go; None when it is replaced."""
        if self.holds == "prompts" and prompts is not None and may_move(path, prompts):
            self.aside = prompts
        elif self.holds in ("prompts", "other"):
            if not overwrite:
                if self.holds == "prompts":
                    free = (
                        ""
                        if prompts is None
                        else f" {prompts} holds something else already, so they cannot move there."
                    )
                    raise UsageError(
                        f"{path} holds prompts.{free} Name another file with --output, or pass --overwrite: they are "
                        f"then kept as {free_name(path).name}."
                    )
                raise UsageError(
                    f"{path} holds rows that convert_rollouts did not write, the first in line {line}. Name another "
                    f"file with --output, or pass --overwrite: they are then kept as {free_name(path).name}."
                )
            self.aside = free_name(path)

    def take(self, file: IO[bytes]) -> None:
        """Replace it by a `temporary_beside`. Raises OSError; then what was there is still there."""
        if self.aside is not None:
            second_name(self.path, self.aside)
        put(file, self.path)
