"""Files of any size as numbered rows, one at a time: JSON Lines, JSON, CSV and text. Nothing here opens a file."""

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Literal

import orjson

from core.data.cells import restored
from core.errors import InputError

MOST_ROW_BYTES = 4 << 20
"""Of one line or item; longer ones are not read as a whole. A row of 4 MiB is a million tokens."""
MOST_JSON_BYTES = 32 << 20
"""Of one JSON object, which cannot be read in pieces."""
SHOWN_OF_LONG = 2000
CHUNK = 1 << 16
PICTURES = {b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"%PDF": "a PDF"}
OTHERS = {
    b"PAR1": "a Parquet file",
    b"GGUF": "a GGUF model",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
    b"SQLite": "a SQLite database",
}


@dataclass(frozen=True)
class Row:
    """A row as it stands in its file. number: its line, or (unit) its place among the items of JSON, from 1.

    at: where in a JSON object ("conversation[3]").   raw: its bytes, not parsed yet.   size: of the line, of which
    `raw` is only the beginning where it is longer than MOST_ROW_BYTES.
    """

    number: int
    value: Any = None
    unit: Literal["line", "item"] = "line"
    at: str | None = None
    raw: bytes | None = None
    size: int = 0
    json: bool = True
    problem: str | None = None

    @cached_property
    def content(self) -> tuple[Any, str | None]:
        """(what is in it, why it is no row). A line that is no JSON is shown as the text that it is."""
        if self.raw is None:
            return self.value, self.problem
        text = self.raw.decode("utf-8", "replace")
        if self.size > len(self.raw):
            return text[
                :SHOWN_OF_LONG
            ], f"{self.size:,} bytes in one line; of more than {MOST_ROW_BYTES:,} none is read"
        if not self.json:
            return text, None
        try:
            return parsed(self.raw), None
        except RecursionError:
            return text[:SHOWN_OF_LONG], "not JSON that can be read: nested too deeply"
        except ValueError as error:
            return text[:SHOWN_OF_LONG], f"not JSON: {str(error).split(': line')[0]}"

    def changed(self, change: Callable[[Any], Any]) -> "Row":
        """The row with its content changed; itself where that makes no difference."""
        value, problem = self.content
        if problem is not None and self.raw is not None:
            value = self.raw.decode("utf-8", "replace")  # of which `content` may have the beginning only
        new = change(value)
        return self if new == value else Row(self.number, new)

    def holds(self, wanted: str, as_json: str) -> bool:
        """Whether a text is in it, in any case of letters; both forms are casefolded, the second as JSON writes it."""
        if self.raw is not None:
            text = self.raw.decode("utf-8", "replace").casefold()
            if not self.json:
                return wanted in text
            if b"\\u" not in self.raw and b"\\/" not in self.raw:  # then there is one way to write it
                return as_json in text
        value, _ = self.content
        return wanted in value.casefold() if isinstance(value, str) else as_json in written(value).casefold()


def written(value: Any) -> str:
    """A value as JSON, with as few escapes as it can have."""
    try:
        return orjson.dumps(value).decode("utf-8")
    except TypeError:  # half a character, a number of more than 64 bits
        return json.dumps(value, ensure_ascii=False)


def parsed(data: bytes) -> Any:
    """A JSON value; NaN and Infinity, which Python writes, are read too. Raises ValueError and RecursionError."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data.decode("utf-8"))


def read_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    """The rows of an open file, in order, by the ending of its name; what has no known one is lines of text.

    At most one row (MOST_ROW_BYTES) or one JSON object (MOST_JSON_BYTES) is in memory. Raises InputError, which names
    the line, for a file that is empty, binary, or torn where its rest cannot be read.
    """
    _check(file, name)
    ending = name.rpartition(".")[2].lower()
    if ending == "json":
        yield from _json(file, name)
    elif ending in ("csv", "tsv"):
        yield from _csv(file, name, "\t" if ending == "tsv" else ",")
    else:
        for number, raw, size in lines(file):
            if raw.strip() or ending not in ("jsonl", "ndjson"):
                yield Row(number, raw=raw, size=size, json=ending in ("jsonl", "ndjson"))


def _check(file: BinaryIO, name: str) -> None:
    """Raises InputError for what holds no text. Leaves the file at its beginning, behind a byte order mark."""
    head = file.read(4096)
    if not head:
        raise InputError(name, None, "is empty.")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(name, None, "is UTF-16. Save it as UTF-8.")
    for begin, what in (PICTURES | OTHERS).items():
        if head.startswith(begin):
            hint = f"plot://{name} shows it." if what.endswith("picture") else "Name a file of text, JSON or CSV."
            raise InputError(name, None, f"is {what}, no text. {hint}")
    if b"\0" in head:
        raise InputError(name, None, "is binary, no text. Name a file of text, JSON or CSV.")
    file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """(number from 1, line without its end, its length) of every line; of a longer one than MOST_ROW_BYTES only the
    beginning, so that the memory does not grow with a line."""
    number = 0
    while line := file.readline(MOST_ROW_BYTES + 1):
        number += 1
        size = len(line)
        if size > MOST_ROW_BYTES and not line.endswith(b"\n"):
            line = line[:SHOWN_OF_LONG]
            while (more := file.readline(CHUNK)) and not more.endswith(b"\n"):
                size += len(more)
            yield number, line, size + len(more.rstrip(b"\r\n"))
        else:
            line = line.rstrip(b"\r\n")
            yield number, line, len(line)


# ---- CSV -----------------------------------------------------------------------------------------------------------


def _csv(file: BinaryIO, name: str, delimiter: str) -> Iterator[Row]:
    """Rows by the names of the columns; cells as they were before a spreadsheet was kept from calculating them."""
    header: list[str] | None = None
    before = 0  # the line that the last whole row ended on

    def texts() -> Iterator[str]:
        row, row_bytes = 0, 0
        for _, raw, size in lines(file):
            row, row_bytes = before + 1, size + 1 + (row_bytes if row == before + 1 else 0)
            if row_bytes > MOST_ROW_BYTES:
                why = f"a row of more than {MOST_ROW_BYTES:,} bytes, most often a quote that is never closed"
                raise InputError(name, row, f"not CSV that can be read: {why}.")
            yield raw.decode("utf-8", "replace") + "\n"

    csv.field_size_limit(sys.maxsize)  # the process's: whoever read CSV before may have left another one
    reader = csv.reader(texts(), delimiter=delimiter)
    try:
        for cells in reader:
            number, before = before + 1, reader.line_num
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            row = {column: restored(cell) for column, cell in zip(header, cells, strict=False)}
            extra = len(cells) - len(header)
            problem = f"{abs(extra)} fields more than columns" if extra > 0 else None
            yield Row(number, row, problem=problem)
    except csv.Error as error:
        raise InputError(name, before + 1, f"not CSV that can be read: {error}.") from None


# ---- JSON ----------------------------------------------------------------------------------------------------------


def _json(file: BinaryIO, name: str) -> Iterator[Row]:
    """The items of a list, however long; of an object its values, of which lists of objects are one row per item."""
    start = file.tell()
    first = file.read(CHUNK).lstrip()[:1]
    file.seek(start)
    if first == b"[":
        yield from _items(file, name)
        return
    data = file.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise InputError(name, None, f"is one JSON value of more than {MOST_JSON_BYTES >> 20} MiB, too large to read.")
    try:
        document = parsed(data)
    except RecursionError:
        raise InputError(name, None, "is JSON that is nested too deeply to read.") from None
    except UnicodeDecodeError as error:
        raise InputError(name, data.count(b"\n", 0, error.start) + 1, "not UTF-8.") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            what = "more than one JSON value. If that is one in each line, rename the file to .jsonl."
            raise InputError(name, error.lineno, what) from None
        what = "it ends in the middle" if _is_torn(error) else error.msg
        raise InputError(name, error.lineno, f"not JSON: {what} (column {error.colno}).") from None
    number = 0
    for key, value in document.items() if isinstance(document, dict) else [("", document)]:
        several = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        for place, item in [(f"{key}[{n}]", item) for n, item in enumerate(value)] if several else [(key, value)]:
            number += 1
            yield Row(number, item, "item", at=place)


def _is_torn(error: json.JSONDecodeError) -> bool:
    """Whether a text is only the beginning of a JSON value."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc.rstrip())


def _items(file: BinaryIO, name: str) -> Iterator[Row]:
    """The items of a JSON list, each parsed when its end has been read."""
    decoder, to_text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    text, at, line, counted, number, ended = "", 0, 1, 0, 0, False

    def here() -> int:
        return line + text.count("\n", counted, at)

    def more() -> bool:
        """Read on; the text before `at` is forgotten. False at the end of the file."""
        nonlocal text, at, line, counted, ended
        data = file.read(max(CHUNK, len(text) - at))
        ended = not data
        line, text = here(), text[at:]
        at = counted = 0
        try:
            text += to_text.decode(data, final=ended)
        except UnicodeDecodeError:
            raise InputError(name, here(), "not UTF-8 from here on.") from None
        return not ended

    def sign() -> str:
        """The next character that is no blank; "" at the end."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            if at < len(text) or not more():
                return text[at : at + 1]

    sign()
    at += 1  # the bracket that opens the list
    while True:
        if (found := sign()) == "]":
            return
        if number and found != ",":
            raise InputError(name, here(), f"not JSON: {_missing(found)} after item {number:,}.")
        if number:
            at += 1
            found = sign()
        while True:
            try:
                value, end = decoder.raw_decode(text, at)
                if end < len(text) or ended or found in '{["':  # a number might go on
                    break
                more()
            except RecursionError:
                raise InputError(name, here(), f"item {number + 1:,} is nested too deeply to read.") from None
            except json.JSONDecodeError as error:
                if len(text) - at > MOST_ROW_BYTES:
                    what = f"no JSON, or longer than {MOST_ROW_BYTES >> 20} MiB"
                    raise InputError(name, here(), f"item {number + 1:,} is {what}.") from None
                if not more():
                    what = "the list ends in the middle of" if _is_torn(error) else f"not JSON: {error.msg} in"
                    raise InputError(name, here(), f"{what} item {number + 1:,}.") from None
        at, number = end, number + 1
        yield Row(number, value, "item")


def _missing(found: str) -> str:
    return f"{found!r} where , or ] is needed" if found else "the list ends"
