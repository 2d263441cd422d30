"""Prompt files of every kind -> `Prompt`s: txt, jsonl, json, csv, parquet, a data set on the Hub, standard input.

A row that cannot be used becomes a `BadRow` with its place and the next step; the good rows beside it survive. A file
that cannot be used as a whole raises InputError.
"""

import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ..errors import InputError, MissingDependency, UsageError
from .cells import restored
from .jsonlines import read_lines

Message = dict[str, Any]
Record = dict[str, Any]

ROLES = {"system", "developer", "user", "assistant", "tool"}
SHAREGPT = {"human": "user", "gpt": "assistant"}
SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
CONTAINERS = ("data", "rows", "items", "conversations", "train")
CONVERT = "Make rows of them first: python scripts/convert_rollouts.py -d {} -o train.jsonl"
"""What rollouts are to become before anything reads them."""
ANSWER_KEYS = ("response", "completion", "answer", "output", "reference", "assistant", "chosen")
"""Where a row holds the answer to its prompt when the answer is no part of a conversation, the likeliest first."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. index: its place among the usable and unusable rows of the input, from 0.

    answer: what the row says after the messages: the assistant's messages that end its conversation, or one made of the
    text under ANSWER_KEYS; empty when there is none.
    """

    index: int
    place: str
    messages: list[Message]
    metadata: Record = field(default_factory=dict[str, Any])
    answer: list[Message] = field(default_factory=list[Message])


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    index: int
    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


@dataclass(frozen=True)
class PromptOptions:
    """How rows become prompts."""

    prompt_key: str = "prompt"
    system: str | None = None
    limit: int | None = None


class _Unusable(ValueError):
    """Why a record is no prompt."""


@contextmanager
def open_prompts(source: str, options: PromptOptions) -> Generator[Callable[[], Iterator[Prompt | BadRow]], None, None]:
    """A function that reads the prompts from the beginning, as often as it is called.

    Standard input can be read once only, so it goes through a temporary file. Raises InputError for a source that
    cannot be read at all.
    """
    with open_records(source) as records:
        yield lambda: (row for row, _ in prompts_of(records(), options))


@contextmanager
def open_records(source: str) -> Generator[Callable[[], Iterator[tuple[str, Any]]], None, None]:
    """The same for (place, record) of every row, which `prompts_of` takes."""
    if source == "-":
        if sys.stdin is None:
            raise UsageError("--input -: standard input is closed.")
        with tempfile.TemporaryDirectory(prefix="distill-") as folder:
            path = Path(folder) / "stdin"
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            path = path.rename(path.with_suffix(_kind(path)))
            yield lambda: read_file(path, "standard input")
    elif source.startswith("hf:"):
        dataset = _hub_dataset(source)
        yield lambda: ((f"{source} row {i}", row) for i, row in enumerate(dataset))
    else:
        path = Path(source)
        check_file(path)
        yield lambda: read_file(path, str(path))


def _kind(path: Path) -> str:
    """What a file without a name holds, by its first line: rows of JSON, one JSON document, or text."""
    first = next((line for _, line in read_lines(path)), b"")
    try:
        return ".json" if isinstance(orjson.loads(first), list) else ".jsonl"
    except orjson.JSONDecodeError:
        if not first.startswith((b"{", b"[")):
            return ".txt"
    try:
        _loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
        return ".json"
    except orjson.JSONDecodeError:
        return ".jsonl" if first.startswith(b"{") else ".txt"


def check_source(source: str) -> None:
    """Raises InputError for a source that `open_prompts` cannot read, as far as a look at the file tells."""
    if source != "-" and not source.startswith("hf:"):
        check_file(Path(source))


def check_file(path: Path) -> None:
    """Raises InputError for a path that is no file of rows."""
    if os.path.isdir(path):  # False, not an error, for a name that no file system takes
        raise InputError(path, None, f"is a directory. Name a file in it. (Rollouts? {CONVERT.format(path)})")
    if not os.path.exists(path):
        raise InputError(path, None, f"no such file (in {Path.cwd()}).")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(path, None, f'unknown kind "{path.suffix}". Known: {", ".join(SUFFIXES)}, hf:owner/name, -.')
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InputError(path, None, f"cannot be read: {error.strerror}.") from None
    if not head:
        raise InputError(path, None, "is empty.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:2]:  # with a byte order mark, or without
        raise InputError(path, None, f"is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 {path} > utf8{path.suffix}")


def prompts_of(records: "Iterator[tuple[str, Any]]", options: PromptOptions) -> Iterator[tuple[Prompt | BadRow, Any]]:
    """(prompt, record) of every row; a record that could not be decoded is the reason why."""
    for index, (place, record) in enumerate(records):
        if options.limit is not None and index >= options.limit:
            return
        try:
            if isinstance(record, _Unusable):
                raise record
            yield to_prompt(index, place, record, options), record
        except _Unusable as problem:
            yield BadRow(index, place, str(problem)), record


# ---- files -> records ------------------------------------------------------------------------------------------


def read_file(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """(place, record) of every row; a row that cannot be decoded comes as the reason why."""
    readers = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    return readers.get(path.suffix.lower(), _text)(path, name)


def _text(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in read_lines(path):
        place = f"{name}:{number}"
        try:
            yield place, line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield place, _not_utf8(error)


def _jsonl(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in read_lines(path):
        place = f"{name}:{number}"
        try:
            yield place, _loads(line)
        except orjson.JSONDecodeError as error:
            yield place, _bad_json(line, error)


def _loads(data: bytes) -> Any:
    """A JSON value. The bare NaN and Infinity that Python's json and pandas write into files become null."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        if b"NaN" not in data and b"Infinity" not in data:
            raise
        try:
            return json.loads(data, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            pass  # what orjson says of it names the place
        raise


def _bad_json(line: bytes, error: orjson.JSONDecodeError) -> _Unusable:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as problem:
        return _not_utf8(problem)
    return _Unusable(f"invalid JSON: {error.msg} at column {error.colno}. Fix or delete the line.")


def _not_utf8(error: UnicodeDecodeError) -> _Unusable:
    byte = error.object[error.start]
    return _Unusable(
        f"not UTF-8 (byte 0x{byte:02x} at position {error.start + 1}). "
        "Convert the file, for example: iconv -f LATIN1 -t UTF-8"
    )


def _json(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """A list of rows, or an object that holds one under data, rows, items, conversations or train."""
    try:
        content = _loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise InputError(
            path,
            error.lineno,
            f"invalid JSON: {error.msg} at column {error.colno}. (One object per line? Name the file .jsonl.)",
        ) from None
    key = ""
    if isinstance(content, dict):
        key = next((k for k in CONTAINERS if isinstance(content.get(k), list)), "")
        if not key:
            rollout = f" A rollout? {CONVERT.format(path)}" if isinstance(content.get("conversation"), list) else ""
            found = f"(found: {_keys(content)})"
            raise InputError(path, None, f"an object without a list under {', '.join(CONTAINERS)} {found}.{rollout}")
        content = content[key]
    if not isinstance(content, list):
        raise InputError(path, None, f"expected a list of rows, found {type(content).__name__}.")
    for number, record in enumerate(content):
        yield f"{name}: {key}[{number}]", record


def _csv(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Rows as texts, without the apostrophe that keeps a spreadsheet from calculating them (`cells.neutralised`).

    A conversation (`messages` or `conversations`) is JSON in its cell; where the cell is empty the row has none.
    """
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with open(path, encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            header = _decoded(dict.fromkeys(reader.fieldnames or (), ""))
        except csv.Error as error:
            raise InputError(path, 1, f"not CSV: {error}.") from None
        if isinstance(header, _Unusable):
            raise InputError(path, 1, f"{header} Convert the file, for example: iconv -f LATIN1 -t UTF-8")
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(path, reader.line_num, f"not CSV: {error}.") from None
            # The reader stands at the row's last line; every line break within a field is one line before it.
            line = reader.line_num - sum(str(value).count("\n") for value in row.values())
            if row.get(None):  # pyright: ignore[reportArgumentType] (DictReader's key for what has no column)
                yield f"{name}:{line}", _Unusable("more fields than columns. Quote fields that hold a comma.")
            else:
                yield f"{name}:{line}", _decoded({k: v for k, v in row.items() if k and v is not None})


def _decoded(row: dict[str, str]) -> Any:
    """The texts that a row's cells hold; why it cannot be used where they are not UTF-8."""
    for key, value in row.items():
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:
            return _Unusable(f"a column's name is not UTF-8 (at character {error.start + 1}).")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return _Unusable(f'column "{key}" is not UTF-8 (at character {error.start + 1}).')
    texts: Record = {key: restored(value) for key, value in row.items()}
    for key in ("messages", "conversations"):
        if key in texts and not texts[key].strip():
            del texts[key]
        elif texts.get(key, "").lstrip().startswith("["):
            try:
                texts[key] = orjson.loads(texts[key])
            except orjson.JSONDecodeError:
                pass  # to_prompt says what belongs there
    return texts


def _parquet(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise MissingDependency("pyarrow", "reading parquet", "hub") from None
    try:
        rows = 0
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    yield f"{name} row {rows}", record
                    rows += 1
    except (ArrowException, OSError) as error:
        raise InputError(path, None, f"not a parquet file: {error}") from None


def _hub_dataset(source: str) -> Any:
    """A data set in streaming mode. Raises UsageError when it cannot be opened."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingDependency("datasets", f"{source}", "hub") from None
    name, _, split = source.removeprefix("hf:").partition(":")
    try:
        return datasets.load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # datasets raises whatever its readers raise
        raise UsageError(f"{source} cannot be opened: {str(error).splitlines()[0]}") from None


# ---- records -> prompts ----------------------------------------------------------------------------------------

PROMPT_KEYS = ("prompt", "question", "instruction", "input", "user", "text")


def to_prompt(index: int, place: str, record: Any, options: PromptOptions) -> Prompt:
    """A record as a prompt. Raises ValueError with what was found and what to do.

    Strings are prompts. Objects have `messages` (or `conversations`), the prompt key, or Alpaca's instruction and
    input. `system` of a row wins over the option; `metadata` and all other keys are kept as metadata.
    """
    if isinstance(record, str):
        record = {options.prompt_key: record}
    if not isinstance(record, dict):
        raise _Unusable(f"expected a text or an object, found {type(record).__name__}.")
    rest = dict(record)
    metadata = rest.pop("metadata", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise _Unusable(f'"metadata" must be an object, found {type(metadata).__name__}.')
    system = rest.pop("system", None)
    if system is not None and not isinstance(system, str):
        raise _Unusable(f'"system" must be a text, found {type(system).__name__}.')
    messages, answer = _messages(rest, options)
    if system or options.system:
        if messages[0]["role"] not in ("system", "developer"):
            messages.insert(0, {"role": "system", "content": system or options.system})
        elif system:
            messages[0] = {"role": "system", "content": system}
    metadata = {**{k: v for k, v in rest.items() if v is not None}, **metadata}
    try:  # what could not be written with its answer must not be paid for
        orjson.dumps([messages])
        orjson.dumps([metadata], default=str)
    except TypeError as error:
        raise _Unusable(f"cannot be written as JSON again: {error}.") from None
    return Prompt(index, place, messages, metadata, answer or _answer(rest))


def _messages(rest: Record, options: PromptOptions) -> tuple[list[Message], list[Message]]:
    """Take the conversation out of a record: (up to the answer, the answer where it ends with one)."""
    for key in ("messages", "conversations"):
        if rest.get(key) is not None:
            return _conversation(key, rest.pop(key), rest)
    key = options.prompt_key
    if key not in rest and options.prompt_key == "prompt" and isinstance(rest.get("instruction"), str):
        return [{"role": "user", "content": _alpaca(rest)}], []
    if key in rest and rest[key] is None:
        raise _Unusable(f'"{key}" is null.')
    prompt = rest.pop(key, None)
    if isinstance(prompt, list):
        return _conversation(key, prompt, rest)
    if prompt is None:
        near = next((k for k in PROMPT_KEYS if k in rest), None)
        hint = f"Rename it, or pass --prompt-key {near}." if near else "Add one, or pass --prompt-key NAME."
        raise _Unusable(f'no "{key}" or "messages" key (found: {_keys(rest)}). {hint}')
    if not isinstance(prompt, str):
        raise _Unusable(f'"{key}" must be a text, found {type(prompt).__name__}.')
    if not prompt.strip():
        raise _Unusable(f'"{key}" is empty.')
    return [{"role": "user", "content": prompt}], []


def _answer(rest: Record) -> list[Message]:
    """The answer that a record holds beside its conversation: a text, or a list that ends with messages of the
    assistant's."""
    for key in ANSWER_KEYS:
        found = rest.get(key)
        if isinstance(found, str) and found.strip():
            return [{"role": "assistant", "content": found}]
        if isinstance(found, list):
            try:
                turns = _turns(key, found)
            except _Unusable:  # a list of something else
                continue
            if said := _split(turns)[1]:
                return said
    return []


def _alpaca(rest: Record) -> str:
    """Instruction and input of an Alpaca row; its answer stays as metadata, for comparison."""
    instruction, context = rest.pop("instruction"), rest.pop("input", None)
    if not instruction.strip():
        raise _Unusable('"instruction" is empty.')
    if "output" in rest:
        rest["reference"] = rest.pop("output")
    return f"{instruction}\n\n{context}" if isinstance(context, str) and context.strip() else instruction


def _conversation(key: str, turns: Any, rest: Record) -> tuple[list[Message], list[Message]]:
    """Checked messages that end with the user's turn, and the answer that was there; its text goes to
    rest["reference"]."""
    messages, answer = _split(_turns(key, turns))
    if answer:
        rest["reference"] = answer[0].get("content")
    if not any(message["role"] == "user" for message in messages):
        raise _Unusable(f'"{key}" has no user message to answer.')
    return messages, answer


def _split(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """A conversation, and the assistant's messages at its end."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end], messages[end:]


def _turns(key: str, turns: Any) -> list[Message]:
    """The checked messages of a conversation."""
    if not isinstance(turns, list) or not turns:
        raise _Unusable(f'"{key}" must be a list with at least one message.')
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise _Unusable(f"{key}[{number}] must be an object, found {type(turn).__name__}.")
        if "from" in turn and "value" in turn:  # ShareGPT
            turn = {"role": SHAREGPT.get(str(turn["from"]), turn["from"]), "content": turn["value"]}
        role = turn.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise _Unusable(f"{key}[{number}] has role {role!r}; known: {', '.join(sorted(ROLES))}.")
        content = turn.get("content")
        if not isinstance(content, str | list) and not turn.get("tool_calls"):
            raise _Unusable(f'{key}[{number}] has no text in "content".')
        if role == "user" and not _says_something(content):
            raise _Unusable(f"{key}[{number}] is empty.")
        # Columns give every turn every key; a provider refuses "tool_calls": null.
        messages.append({k: v for k, v in turn.items() if v is not None or k == "content"})
    return messages


def _says_something(content: Any) -> bool:
    """Whether a user's content is a text that is not blank, or parts that are objects."""
    if isinstance(content, str):
        return bool(content.strip())
    return isinstance(content, list) and bool(content) and all(isinstance(part, dict) for part in content)


def _keys(record: Record) -> str:
    return ", ".join(f'"{key}"' for key in list(record)[:8]) or "nothing"
