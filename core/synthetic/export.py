"""Records -> the files of the data set: train.jsonl and combined_N.json for training, CSVs for people."""

import csv
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from ..commands.generate_synthetic import TYPES
from ..data.cells import neutralised
from .records import Record

COLUMNS = {
    "reasoning": ("task_type", "difficulty", "question", "answer"),
    "dialogue": ("domain", "user", "assistant"),
    "instruction": ("category", "subcategory", "instruction", "response"),
    "combined": ("user", "assistant", "dataset_type"),
}
"""How each CSV begins."""
PAIRS = {"reasoning": ("question", "answer"), "instruction": ("instruction", "response")}
"""What a type calls the user's message and the assistant's, where it is not "user" and "assistant"."""
TAKEN = {"user", "assistant", "question", "answer", "instruction", "response", "system", "messages", "metadata"}
"""Columns with a meaning; a key of the metadata that is called so has the column "metadata.<key>"."""

JSON_HEAD, JSON_TAIL = b'{"conversations": [\n', b"\n]}\n"
COMBINED = re.compile(r"combined_\d+\.(csv|json)")


def export(folder: Path, records: Callable[[], Iterator[Record]], count: int) -> list[str]:
    """Write the data set into its folder; the names of its files.

    train.jsonl and combined_N.json hold all of each record: its messages and its metadata. The CSVs, one for each type
    that there is and combined_N.csv, hold it as texts: the first question and its answer, the system message, all
    messages as JSON where there are more, and a column for each key of the metadata, JSON where it is no text. Cells
    that a spreadsheet would calculate stand behind an apostrophe; our readers take it away (`cells.restored`).

    records: all of them from the beginning, in the order of their slots; read twice, one at a time.   count: N.
    No file is replaced before all are on the disk. What an earlier export wrote and this one does not is removed.
    Without any record nothing is touched. Raises OSError.
    """
    columns = _columns(records())
    if not columns:
        return []
    tables = {"combined": f"combined_{count}.csv"} | {kind: f"{kind}.csv" for kind in TYPES if kind in columns}
    names = ["train.jsonl", f"combined_{count}.json", *tables.values()]
    with ExitStack() as stack:
        files = {name: stack.enter_context(_unfinished(folder, name)) for name in names}
        rows, conversations = files[names[0]], files[names[1]]
        writers = {kind: _Table(files[name], columns[kind]) for kind, name in tables.items()}
        conversations.write(JSON_HEAD)
        for number, record in enumerate(records()):
            row = orjson.dumps({"messages": record.messages, "metadata": record.metadata}, default=str)
            rows.write(row + b"\n")
            conversations.write(b",\n" * (number > 0) + row)
            cells = _cells(record)
            writers["combined"].add(cells)
            writers[record.slot.type].add(_named_as(record.slot.type, cells))
        conversations.write(JSON_TAIL)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name, file in files.items():
            os.replace(file.name, folder / name)
    for path in folder.iterdir():
        if path.name not in files and _is_ours(path):
            path.unlink()
    return names


def _columns(records: Iterator[Record]) -> dict[str, list[str]]:
    """Type -> columns of its CSV, for the types that there are, and those of all under "combined"."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        kind = record.slot.type
        used = [name for name, text in _cells(record).items() if text]
        for table in ("combined", kind):
            found.setdefault(table, dict.fromkeys(COLUMNS[table])).update(dict.fromkeys(used))
    for kind, names in found.items():
        if kind != "combined":
            for name in ("dataset_type", *({"user", "assistant"} - set(COLUMNS[kind]))):
                names.pop(name, None)
    return {kind: list(names) for kind, names in found.items()}


def _cells(record: Record) -> dict[str, str]:
    """Column -> what a record says there, in combined_N.csv."""
    messages = record.messages
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = messages[1:] if system else messages
    texts = {
        "user": turns[0]["content"],
        "assistant": turns[1]["content"],
        "system": system,
        "messages": messages if len(turns) > 2 else "",
    }
    metadata = {f"metadata.{key}" if key in TAKEN else key: value for key, value in record.metadata.items()}
    return {name: _text(value) for name, value in (texts | metadata).items()}


def _named_as(kind: str, cells: dict[str, str]) -> dict[str, str]:
    """The same with the names that the type has for question and answer."""
    return cells | dict(zip(PAIRS.get(kind, ()), (cells["user"], cells["assistant"]), strict=False))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


class _Table:
    """A CSV file as RFC 4180 has it. columns: its first line."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self._file, self._columns = file, columns
        self._writer = csv.writer(self)
        self._writer.writerow(map(neutralised, columns))

    def add(self, cells: dict[str, str]) -> None:
        """Write a row; columns without a cell are empty."""
        self._writer.writerow(neutralised(cells.get(column, "")) for column in self._columns)

    def write(self, line: str) -> None:
        """What csv calls."""
        self._file.write(line.encode())


@contextmanager
def _unfinished(folder: Path, name: str) -> Generator[IO[bytes]]:
    """A hidden file that is to become `name`, gone at the end unless it has. A killed run's is taken up."""
    path = folder / f".{name}.tmp"
    try:
        with open(path, "wb", buffering=1 << 18) as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    """Whether an earlier export wrote this file, by its name and how it begins; its remains after a kill too."""
    name = path.name.removeprefix(".").removesuffix(".tmp")
    if not COMBINED.fullmatch(name) and name.removesuffix(".csv") not in TYPES:
        return False
    if name != path.name:
        return path.name == f".{name}.tmp"
    if not path.is_file():
        return False
    head = JSON_HEAD if name.endswith(".json") else ",".join(COLUMNS[re.split(r"[_.]", name)[0]]).encode()
    with open(path, "rb") as file:
        return file.read(len(head)) == head
