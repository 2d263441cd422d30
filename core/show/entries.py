"""What there is to look at: every rollout of a folder, or every row of a file, as an `Entry`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ..data.prompts import CONTAINERS, SUFFIXES, check_file, read_file
from ..data.rollouts import NotARollout, Rollout, read_rollout, rollout_paths
from ..data.text import path_text
from ..errors import InputError
from .clean import clean
from .messages import CONVERSATION_KEYS, Message, as_text, conversation_of, is_turn, read_messages

GOOD, FAILED, ERROR, INTERRUPTED, REJECTED = "success", "failed", "error", "interrupted", "rejected"

AT_THE_HEAD = {"id", "completed", "success", "total_reward", "turns", "truncated", "totalTokens"}
AT_THE_HEAD |= {"promptTokens", "completion", "index"}
"""Fields of a rollout that its head says, or the overview."""
ORIGIN = ("teacher", "ended", "reason", "prompt_place", "started", "seconds", "cost_usd", "docker")
"""What of a rollout's provenance a person asks for."""


@dataclass(frozen=True)
class Broken:
    """A file or a row that cannot be shown."""

    index: int
    place: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """A row or a rollout.

    index: its place in the input, from 0.    place: the file, and line or row.
    verdict: success, failed, error, interrupted, rejected, or None where nothing says.
    why: more about the verdict.    fields: all but the conversation and the tools' schemas.
    schemas: of the tools that the teacher was offered.
    """

    index: int
    place: str
    verdict: str | None
    messages: list[Message]
    fields: dict[str, Any]
    schemas: list[Any] = field(default_factory=list[Any])
    truncated: bool = False
    reward: float | None = None
    turns: int = 0
    tokens: int | None = None
    teacher: str | None = None
    is_rollout: bool = False
    why: str | None = None

    @property
    def failed(self) -> bool:
        """Whether something says that this is no success."""
        return self.verdict not in (None, GOOD)

    @property
    def brief(self) -> dict[str, Any]:
        """Its fields without what is empty, what stands at its head, and what only matters to a program."""
        fields = {key: value for key, value in self.fields.items() if value not in (None, [], {}, "")}
        if self.is_rollout:
            fields = {key: value for key, value in fields.items() if key not in AT_THE_HEAD}
            if isinstance(origin := fields.get("provenance"), dict):
                fields["provenance"] = {key: origin[key] for key in ORIGIN if origin.get(key) is not None}
        return fields

    @property
    def title(self) -> str:
        """A few words to know it by: the beginning of what the user asks, else of the first text there is."""
        asked = (part.text for message in self.messages if message.role == "user" for part in message.parts)
        return _words(next(asked, "") or (Path(self.place).name if self.is_rollout else _first_text(self.fields)))

    def _haystack(self) -> str:
        parts = [self.place]
        for message in self.messages:
            parts += [text for part in message.parts for text in (part.name, part.text)]
        parts += [f"{key}\n{as_text(value)}" for key, value in self.fields.items()]
        return "\n".join(parts)

    def holds(self, words: str) -> bool:
        """Whether the words are in anything that is shown, in any case of letters."""
        text = self._haystack()
        if "\\" in words:  # they may be a control character, as it is spelled where it is shown
            text += clean(text)
        return words.lower() in text.lower()


@dataclass(frozen=True)
class Source:
    """An input that was opened. kind: rollouts, rollout, rows or object. total: how many there are, where it is known
    before reading. read: all of them, from the beginning."""

    kind: str
    total: int | None
    read: Callable[[], Iterator[Entry | Broken]]


def open_source(path: Path) -> Source:
    """Raises InputError for what cannot be shown at all: missing, empty, of an unknown kind, without rollouts."""
    if path.is_dir():
        closed: list[OSError] = []
        paths = rollout_paths(path, closed.append)
        if not paths and not closed:
            raise InputError(path, None, _nothing_in(path))
        return Source("rollouts", len(paths) + len(closed), lambda: _rollouts(paths, closed))
    check_file(path)
    if path.suffix.lower() == ".json":
        single = _one_object(path)
        if single is not None:
            return single
    return Source("rows", None, lambda: _rows(path))


def _nothing_in(path: Path) -> str:
    try:
        others = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    except OSError as error:
        return f"cannot be read: {error.strerror}."
    if others:
        return f"no rollout (*.json) in this folder. It holds {', '.join(others[:5])}: name one of these files."
    return "no rollout (*.json) in this folder. run_rollouts writes them; or name a file of rows."


def _rollouts(paths: list[Path], closed: list[OSError]) -> Iterator[Entry | Broken]:
    """closed: why folders could not be listed."""
    for index, path in enumerate(paths):
        place = path_text(path)
        try:
            yield rollout_entry(index, place, read_rollout(path))
        except NotARollout as problem:
            yield Broken(index, place, problem.detail)
    for index, error in enumerate(closed, len(paths)):
        place = path_text(Path(str(error.filename)))
        yield Broken(index, place, f"the folder cannot be read: {error.strerror}")


def _one_object(path: Path) -> Source | None:
    """A .json file that is one rollout or one object; None when it holds a list of rows. Raises InputError."""
    try:
        rollout = read_rollout(path)
    except NotARollout as problem:
        why_not = problem.detail
    else:
        return Source("rollout", 1, lambda: iter([rollout_entry(0, path_text(path), rollout)]))
    try:
        content = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise InputError(path, error.lineno, f"{why_not}.") from None
    except OSError as error:
        raise InputError(path, None, f"cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        return None
    rows = next((content[key] for key in CONTAINERS if isinstance(content.get(key), list)), None)
    if rows is not None and not (rows and all(is_turn(row) and "messages" not in row for row in rows)):
        return None
    return Source("object", 1, lambda: iter([row_entry(0, path_text(path), content)]))


def _rows(path: Path) -> Iterator[Entry | Broken]:
    for index, (place, record) in enumerate(read_file(path, path_text(path))):
        if isinstance(record, ValueError):  # the reader's reason why a row cannot be decoded
            yield Broken(index, place, str(record))
        else:
            yield row_entry(index, place, record)


def rollout_entry(index: int, place: str, rollout: Rollout) -> Entry:
    """A rollout, of whichever layout."""
    fields = {key: value for key, value in rollout.record.items() if key != "tools"}
    messages = read_messages(rollout.conversation)
    return Entry(
        index=index,
        place=place,
        verdict=rollout_verdict(rollout),
        why=_why(rollout),
        messages=messages,
        fields=fields,
        schemas=rollout.tools,
        truncated=rollout.truncated,
        reward=rollout.reward,
        turns=_turns(messages),
        tokens=rollout.total_tokens,
        teacher=rollout.teacher,
        is_rollout=True,
    )


def rollout_verdict(rollout: Rollout) -> str | None:
    """error, interrupted, failed or success; None when the file says nothing about it."""
    if failure := rollout.failure:
        return failure if failure in (ERROR, INTERRUPTED) else FAILED
    silent = rollout.completed is None and rollout.success is None and rollout.reward is None
    return None if silent else GOOD


def _why(rollout: Rollout) -> str | None:
    """A word for what a verdict alone does not say."""
    reason = rollout.provenance.get("reason")
    if isinstance(reason, str) and reason:
        return reason
    failure = rollout.failure or ""
    return failure.replace("_", " ") if failure.startswith("reward_") else None


def row_entry(index: int, place: str, record: Any) -> Entry:
    """A row of any file."""
    if not isinstance(record, dict):
        return Entry(index, place, None, [], {"text": record})
    conversation = record.get("conversation")
    if isinstance(conversation, list) and conversation:  # a rollout on one line
        rest = {name: value for name, value in record.items() if name != "conversation"}
        return rollout_entry(index, place, Rollout(Path(place), rest, conversation))
    key, turns = conversation_of(record)
    fields = {name: value for name, value in record.items() if name != key and value is not None}
    schemas = _schemas(fields.get("tools"))
    if schemas:
        del fields["tools"]
    found = record.get("metadata")
    metadata: dict[str, Any] = found if isinstance(found, dict) else {}
    messages = read_messages(turns)
    if key in CONVERSATION_KEYS and isinstance(system := fields.get("system"), str):
        messages = [*read_messages([{"role": "system", "content": system}]), *messages]
        del fields["system"]
    usage = metadata.get("usage")
    return Entry(
        index=index,
        place=place,
        verdict=row_verdict(record, metadata),
        messages=messages,
        fields=fields,
        schemas=schemas,
        truncated=metadata.get("finish_reason") == "length" or metadata.get("truncated") is True,
        turns=_turns(messages),
        tokens=_count(usage.get("completion_tokens")) if isinstance(usage, dict) else None,
        teacher=teacher if isinstance(teacher := metadata.get("teacher"), str) else None,
    )


def row_verdict(record: dict[str, Any], metadata: dict[str, Any]) -> str | None:
    """What a row says about itself: a failure of a run, a rejected answer, a success that is false."""
    if metadata.get("rejected_because"):
        return REJECTED
    if record.get("error") or (isinstance(record.get("reason"), str) and isinstance(record.get("message"), str)):
        return ERROR
    success = record.get("success", metadata.get("success"))
    return None if not isinstance(success, bool) else GOOD if success else FAILED


def _schemas(tools: Any) -> list[dict[str, Any]]:
    """The tools' schemas of a row: a list, or the text of one (as convert_rollouts writes it); nothing for names."""
    if isinstance(tools, str):
        try:
            tools = orjson.loads(tools)
        except orjson.JSONDecodeError:
            return []
    return tools if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools) else []


def _turns(messages: list[Message]) -> int:
    return sum(message.role == "assistant" for message in messages)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _first_text(fields: dict[str, Any]) -> str:
    for key in ("prompt", "instruction", "question", "input", "text", "id"):
        if isinstance(fields.get(key), str):
            return fields[key]
    return next((as_text(value) for value in fields.values()), "")


def _words(text: str, most: int = 80) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else line[: most - 1] + "…"
