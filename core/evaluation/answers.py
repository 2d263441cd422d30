"""What models have answered, kept by the hash of the model and of the question: an evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from ..data.jsonlines import Journal, Row, lock, read_lines
from ..errors import InputError, UsageError


def default_folder() -> Path:
    """$XDG_CACHE_HOME/distill/answers, by default ~/.cache/distill/answers."""
    from ..teachers.hf_model import cache_folder

    return cache_folder() / "answers"


def key_of(kind: str, args: Iterable[Any]) -> bytes:
    """16 bytes that tell one question from all others: what is asked for, and everything that it is asked with.

    args: values that JSON can hold; the order of a dict's keys does not matter.
    """
    text = json.dumps([kind, *args], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Answers:
    """The answers of one model: a journal `IDENTITY.jsonl`, read once, with a row for each answer.

    A row is on its way to the disk when `put` returns, so a killed run loses none. A second run of the same model at
    the same time writes `IDENTITY.2.jsonl`, and so on; all of them are read.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """identity: a hash of all that the model's answers depend on. Raises UsageError for a folder or file that
        cannot be written or that holds something else."""
        self._values: dict[bytes, Any] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be made: {error.strerror}. Choose another folder with --cache."
            ) from None
        mine = next(path for path in _places(folder, identity) if _free(path))
        try:
            for path in sorted(folder.glob(f"{identity}.*jsonl")):
                if path != mine:
                    self._read(path)
            self._journal = Journal(mine, lambda number, row: self._take(mine, number, row))
        except InputError as error:
            raise UsageError(f"{error} It should hold kept answers: delete it, or choose another --cache.") from None

    def get(self, kind: str, args: Iterable[Any]) -> Any:
        """The value that was put, as JSON gives it back; None: there is none."""
        return self._values.get(key_of(kind, args))

    def put(self, kind: str, args: Iterable[Any], value: Any) -> None:
        """Keep a value that JSON can hold, not None. Floats must be finite: JSON has no others.

        Raises StoppedEarly when the disk is full.
        """
        key = key_of(kind, args)
        self._journal.append({"key": key.hex(), "value": value})
        self._values[key] = value

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, path: Path, number: int, row: Row) -> None:
        try:
            self._values[bytes.fromhex(row["key"])] = row["value"]
        except (KeyError, TypeError, ValueError):
            raise InputError(path, number, "not an answer.") from None

    def _read(self, path: Path) -> None:
        """The journal of another run, which may be writing a line just now."""
        for number, line in read_lines(path):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                return
            self._take(path, number, row)


def _places(folder: Path, identity: str) -> Iterator[Path]:
    yield folder / f"{identity}.jsonl"
    for number in range(2, 1000):
        yield folder / f"{identity}.{number}.jsonl"
    raise UsageError(f"too many runs are writing answers of one model to {folder}. Choose another --cache.")


def _free(path: Path) -> bool:
    """Whether no other run is writing there."""
    try:
        with open(path, "ab") as file:
            lock(file.fileno(), path)
    except UsageError:
        return False
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Choose another folder with --cache.") from None
    return True
