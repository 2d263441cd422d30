"""Text to compare tokenizers on: a small one of our own in many scripts, or the user's files, in passages."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..errors import InputError

LONGEST = 2000
"""Characters of a passage: longer stretches of a file are cut at a line's end, or else in the middle."""
MOST_BYTES = 64 * 1024 * 1024
"""Of a file. More would say nothing more."""
KEYS = ("text", "completion", "response", "answer", "output")


@dataclass(frozen=True)
class Passage:
    """A stretch of text that is counted as one. kind: its label; group: language, code, numbers, chat or text."""

    kind: str
    group: str
    text: str


def built_in() -> list[Passage]:
    """The shipped text: languages by line, everything else by passages between lines of ~~~."""
    found: list[Passage] = []
    whole = Path(__file__).with_name("corpus.txt").read_text(encoding="utf-8")
    for section in re.split(r"(?m)^=== ", whole)[1:]:
        heading, _, body = section.partition("\n")
        group, _, kind = heading.partition(" / ")
        parts = body.splitlines() if group == "language" else body.rstrip("\n").split("\n~~~\n")
        found += [Passage(kind, group, part) for part in parts]
    return found


def own(paths: Sequence[Path]) -> list[Passage]:
    """The user's files: each is a kind of its own. Raises InputError: missing, not UTF-8, without text."""
    found: list[Passage] = []
    for path in paths:
        read = _rows(path) if path.suffix.lower() in (".jsonl", ".ndjson") else iter([_text(path)])
        passages = [Passage(path.name, "text", part) for text in read for part in cut(text)]
        if not passages:
            raise InputError(path, None, "holds no text to compare tokenizers on.")
        found += passages
    return found


def spread(passages: Sequence[Passage], most: int) -> list[Passage]:
    """At most so many passages of each kind, evenly over all of them."""
    by_kind: dict[str, list[Passage]] = {}
    for passage in passages:
        by_kind.setdefault(passage.kind, []).append(passage)
    return [
        some[n * len(some) // min(most, len(some))] for some in by_kind.values() for n in range(min(most, len(some)))
    ]


def cut(text: str) -> Iterator[str]:
    """A text in passages, with nothing lost but blank ends: after blank lines, and where one would be too long."""
    for block in re.split(r"(?<=\n)\s*\n(?=\S)", text.replace("\r\n", "\n")):
        rest = block.strip("\n")
        while len(rest) > LONGEST:
            end = rest.rfind("\n", LONGEST // 2, LONGEST) + 1 or rest.rfind(" ", LONGEST // 2, LONGEST) or LONGEST
            end = end if end > 0 else LONGEST
            yield rest[:end]
            rest = rest[end:]
        if rest.strip():
            yield rest


def words_of(text: str) -> int | None:
    """Words between white space; None for a script that writes without spaces (more than a fifth of its letters)."""
    letters = sum(map(str.isalpha, text))
    unspaced = len(re.findall("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]", text))
    return None if unspaced * 5 > letters else len(text.split())


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES)
    except FileNotFoundError:
        raise InputError(path, None, "no such file. Name existing ones with --text.") from None
    except OSError as error:
        raise InputError(path, None, f"cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) == MOST_BYTES and error.start > MOST_BYTES - 4:  # cut in the middle of a character
            return data[: error.start].decode("utf-8-sig")
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(path, line, "not UTF-8. Convert it: iconv -f LATIN1 -t UTF-8") from None


def _rows(path: Path) -> Iterator[str]:
    said = False
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if number > 1 and not line.endswith("}"):  # the end of what was read of a long file
                return
            raise InputError(path, number, f"not JSON: {error.msg}") from None
        for text in _answers(row):
            said = True
            yield text
        if not said and number >= 100:
            break
    if not said:
        raise InputError(path, None, f"no row holds an assistant's message or one of the keys {', '.join(KEYS)}.")


def _answers(row: Any) -> Iterator[str]:
    """What a student would learn to say from a row."""
    if isinstance(row, str):
        yield row
    if not isinstance(row, dict):
        return
    for message in row.get("messages") or row.get("conversation") or ():
        if isinstance(message, dict) and message.get("role") == "assistant":
            content = message.get("content")
            if isinstance(content, str):
                yield content
            for call in message.get("tool_calls") or ():
                yield json.dumps(call.get("function", call) if isinstance(call, dict) else call, ensure_ascii=False)
    if isinstance(value := next((row[key] for key in KEYS if row.get(key)), None), str):
        yield value
