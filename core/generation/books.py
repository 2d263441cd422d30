"""The files of a run: what is in them at the start, and what is added to them.

For --output train.jsonl:
    train.jsonl                  a row per answer, appended as it arrives
    train.jsonl.rejected.jsonl   paid answers that the filters kept out; loosened filters take them back in
    train.jsonl.failures.jsonl   what failed, and why; the next run tries it again
    train.jsonl.run.json         every run: its options, where they came from, and its result
"""

import datetime
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson

from ..data.jsonlines import FOREIGN, Journal, Row, cannot_write, check_place, lock, sound_length
from ..data.keys import KeyCounts
from ..data.run import write_json
from ..errors import InputError, StoppedEarly, UsageError
from .filters import Filters


class Books:
    """Which answers are there, by key, and the journals that new ones go to.

    `with books.open():` locks the files and reads them; `read()` only looks, for a dry run.
    """

    def __init__(self, output: Path, filters: Filters) -> None:
        self.filters = filters
        self.output = output
        self.rejected_path = beside(output, ".rejected.jsonl")
        self.failures_path = beside(output, ".failures.jsonl")
        self.run_path = beside(output, ".run.json")
        self._done = KeyCounts()
        self._rejected = KeyCounts()
        self._acceptable = KeyCounts()  # rejected by an earlier run, and no longer by these filters
        self._failed = KeyCounts()
        self._settled = KeyCounts()  # failed in an earlier run, settled by this one
        self._answer_tokens = 0
        self._runs: list[Any] = []

    @property
    def files(self) -> tuple[Path, ...]:
        """All that a run may write."""
        return self.output, self.rejected_path, self.failures_path, self.run_path

    # ---- what is there -----------------------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Whether the output holds the answer."""
        return key in self._done

    def rejects(self, key: str) -> bool:
        """Whether the answer was paid for, and kept out by the filters."""
        return key in self._rejected

    def would_accept(self, key: str) -> bool:
        """Whether the answer was kept out by an earlier run, and these filters let it in."""
        return key in self._acceptable

    def failed_before(self, key: str) -> bool:
        """Whether an earlier run failed at it."""
        return key in self._failed

    @property
    def had_failures(self) -> bool:
        """Whether an earlier run failed at anything."""
        return len(self._failed) > 0

    @property
    def mean_answer_tokens(self) -> float | None:
        """Mean length of the answers in the output, in tokens; None when there is none to go by."""
        return self._answer_tokens / len(self._done) if self._answer_tokens else None

    def read(self) -> None:
        """Look at the files, and touch none. Raises UsageError when a run could not use them."""
        check_place(self.output)
        for path, inspect in self._files():
            if path.is_file():
                sound_length(path, inspect)

    def _files(self) -> list[tuple[Path, Callable[[int, Row], None]]]:
        """In this order: what is rejected depends on what is done."""
        return [
            (self.output, self._inspect_output),
            (self.rejected_path, self._inspect_rejected),
            (self.failures_path, self._inspect_failure),
        ]

    def _inspect_output(self, number: int, row: Row) -> None:
        self._done.add(row_key(self.output, number, row))
        usage = row["metadata"].get("usage")
        self._answer_tokens += usage.get("completion_tokens", 0) if isinstance(usage, dict) else 0

    def _inspect_rejected(self, number: int, row: Row) -> None:
        key = row_key(self.rejected_path, number, row)
        if key not in self._done:
            self._rejected.add(key)
            text, metadata = row["messages"][-1].get("content") or "", row["metadata"]
            if not isinstance(text, str) or not isinstance(metadata.get("finish_reason"), str):
                raise InputError(self.rejected_path, number, f"not a rejected answer of ours. {FOREIGN}")
            marked = "refusal" if metadata.get("rejected_because") == "refusal" else ""  # perhaps by the provider alone
            if self.filters.reject(text, metadata["finish_reason"], marked) is None:
                self._acceptable.add(key)

    def _inspect_failure(self, number: int, row: Row) -> None:
        if not isinstance(row.get("id"), str):
            raise InputError(self.failures_path, number, f"not a failure of ours. {FOREIGN}")
        self._failed.add(row["id"])

    # ---- what is added -----------------------------------------------------------------------------------------

    @contextmanager
    def open(self) -> Iterator["Books"]:
        """Hold the files alone. Raises UsageError: not ours, not writable, another run is at work."""
        with ExitStack() as opened:
            journals: list[Journal] = []
            for path, inspect in self._files():
                journals.append(Journal(path, inspect))
                opened.callback(journals[-1].close)
            self._rows, self._rejects, self._failures = journals
            self._failures_before = self._failures.length
            yield self

    def move_aside(self) -> None:
        """For --overwrite: rename what is there to .old. Raises UsageError when another run is at work."""
        files = [path for path in self.files if path.is_file()]
        with ExitStack() as held:
            for path in files:
                lock(held.enter_context(open(path, "rb")).fileno(), path)
            for path in files:
                aside, number = beside(path, ".old"), 2
                while aside.exists():
                    aside, number = beside(path, f".old{number}"), number + 1
                try:
                    path.rename(aside)
                except OSError as error:
                    raise UsageError(cannot_write(aside, error)) from None

    def answered(self, row: Row, rejected_because: str | None) -> None:
        """Add an answer. Raises StoppedEarly when the disk is full."""
        if rejected_because:
            row["metadata"]["rejected_because"] = rejected_because
            self._rejects.append(row)
        else:
            self._rows.append(row)
        self._settle(row["metadata"]["id"])

    def failed(self, key: str, **about: Any) -> None:
        """Add a failure. Raises StoppedEarly when the disk is full."""
        self._failures.append({"id": key, **about, "time": utc_now()})
        self._settle(key)

    def _settle(self, key: str) -> None:
        if key in self._failed:
            self._settled.add(key)

    def accept(self, keys: KeyCounts) -> None:
        """Take answers in that looser filters no longer reject. Raises StoppedEarly when the disk is full."""

        def still_rejected(_: int, row: Row) -> bool:
            key = row["metadata"]["id"]
            if key in keys:
                del row["metadata"]["rejected_because"]
                self._rows.append(row)
            return key not in keys and key not in self._done

        self._rejects.rewrite(still_rejected, after_reading=self.sync)

    def forget_settled(self) -> None:
        """Drop what earlier runs wrote about work that has been settled since, and about bad rows: those that are
        still bad were written again. Raises StoppedEarly when the disk is full."""

        def keep(offset: int, row: Row) -> bool:
            settled = row["id"] in self._settled or row["id"] in self._done or row.get("reason") == "bad_row"
            return offset >= self._failures_before or not settled

        if len(self._failed):
            self._failures.rewrite(keep)

    def sync(self) -> None:
        """Bring what was added to the disk."""
        for journal in (self._rows, self._rejects, self._failures):
            journal.sync()

    # ---- the record of runs ------------------------------------------------------------------------------------

    def record_start(self, about: dict[str, Any]) -> None:
        """Add a run to <output>.run.json. Raises UsageError when it cannot be written."""
        try:
            self._runs = list(orjson.loads(self.run_path.read_bytes())["runs"])
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
            pass  # the first run, or a damaged record: the rows are what counts
        self._runs.append({**about, "started": utc_now(), "result": None})
        try:
            write_json(self.run_path, {"runs": self._runs})
        except OSError as error:
            raise UsageError(cannot_write(self.run_path, error)) from None

    def record_end(self, result: dict[str, Any]) -> None:
        """Add the result to the run. Raises StoppedEarly when the disk is full."""
        self._runs[-1] |= {"ended": utc_now(), "result": result}
        try:
            write_json(self.run_path, {"runs": self._runs})
        except OSError as error:
            raise StoppedEarly(cannot_write(self.run_path, error)) from None


def beside(path: Path, suffix: str) -> Path:
    """train.jsonl, .run.json -> train.jsonl.run.json"""
    return path.with_name(path.name + suffix)


def row_key(path: Path, number: int, row: Any) -> str:
    """The key of a row that we wrote. Raises InputError for any other."""
    metadata = row.get("metadata") if isinstance(row, dict) else None
    key = metadata.get("id") if isinstance(metadata, dict) else None
    messages = row.get("messages") if isinstance(row, dict) else None
    sound = isinstance(messages, list) and messages and isinstance(messages[-1], dict)
    if not (isinstance(key, str) and len(key) == 32 and sound):
        raise InputError(path, number, f"not a row of generate_teacher_data. {FOREIGN}")
    try:
        int(key, 16)
    except ValueError:
        raise InputError(path, number, f"not a row of generate_teacher_data. {FOREIGN}") from None
    return key


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
