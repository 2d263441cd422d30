"""What models have answered, kept by the hash of the model and of the question: an evaluation goes on where it was."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from ..data.jsonlines import Journal, lock
from ..errors import InputError, UsageError


class Broken(str):
    """The answer of a model that gave none: its logits were not finite, it refused, or it cannot do what was asked."""


def broken(response: Any) -> bool:
    """Whether a response of a model is none: NaN, or `Broken`. response: what one request was answered with."""
    value = response[0] if isinstance(response, tuple) else response
    return isinstance(value, Broken) or (isinstance(value, float) and math.isnan(value))


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
    the same time writes `IDENTITY.2.jsonl`, and so on; all of them are read. So does a run that finds a file damaged:
    that one stays as it is, and what it holds is used.

    notes: lines that were passed over, for the user.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """identity: a hash of all that the model's answers depend on. Raises UsageError for a folder or file that
        cannot be written, or that holds no answers at all."""
        self.notes: list[str] = []
        self._values: dict[bytes, Any] = {}
        self._closed = False
        self._made = None if folder.is_dir() else folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be made: {error.strerror}. Choose another folder with --cache."
            ) from None
        self._journal = self._opened(folder, identity)
        try:
            for path in sorted(folder.glob(f"{identity}.*jsonl")):
                if path != self._journal.path:
                    self._read(path)
        except BaseException:
            self._journal.close()
            raise

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
        """An empty journal is removed, and its folder if it was made for it: a dry run leaves nothing. Copies of one
        model share their answers, so it may be called again."""
        if self._closed:
            return
        self._closed = True
        self._journal.close()
        if self._made is not None:
            with contextlib.suppress(OSError):  # it holds something
                self._made.rmdir()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self, folder: Path, identity: str) -> Journal:
        """The first file that no other run is writing and that is whole."""

        def inspect(number: int, row: Any) -> None:
            if not self._take(row):
                raise InputError(path, number, "not an answer.")

        for path in _places(folder, identity):
            if _free(path):
                try:
                    return Journal(path, inspect)
                except InputError:  # `_read` uses what is whole of it
                    continue
        raise AssertionError  # _places ends with an error

    def _take(self, row: Any) -> bool:
        """Whether a row is an answer, which is remembered then."""
        try:
            self._values[bytes.fromhex(row["key"])] = row["value"]
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def _read(self, path: Path) -> None:
        """A file that stays as it is: damaged, or of another run, which may be writing a line just now. Raises
        UsageError when none of its lines is an answer."""
        good = bad = 0
        with open(path, "rb") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    taken = self._take(orjson.loads(line))
                except orjson.JSONDecodeError:
                    if not line.endswith(b"\n") and (good or line.startswith(b'{"'[: len(line)])):
                        continue  # the last line, not whole yet
                    taken = False
                good, bad = good + taken, bad + (not taken)
        if bad and not good:
            raise UsageError(
                f"{path} is in the place of kept answers and holds something else. Choose another folder with --cache."
            )
        if bad:
            self.notes.append(
                f"{path}: {bad:,} of {good + bad:,} lines are damaged and were passed over; what they answered is "
                "asked again"
            )


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
