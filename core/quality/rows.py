"""The rows of a file of ours as checks see them: whatever they were written as, a conversation and its answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..commands.check_data import CheckData
from ..data.prompts import BadRow, Message, Prompt, PromptOptions, open_records, prompts_of
from ..data.tags import reasoned
from ..teachers.template_messages import LeftOut, content_text

TABLES = (".csv", ".tsv")
PAIRS = (("user", "assistant"), ("question", "answer"))
"""Columns of a question and its answer in the tables that generate_synthetic writes."""


@dataclass(frozen=True)
class Entry:
    """One row. index: from 0, among all rows.   place: for the user.   record: as it stands in the file; where that
    could not be decoded, the reason.

    problem: why it cannot be read as a conversation; nothing else is filled in then.
    messages: up to the answer.   said: the assistant's messages that end it.
    prompt: the texts of the user's messages.   answer: the text of the last message of the assistant, without
    reasoning.   metadata: also every key beside the conversation.
    """

    index: int
    place: str
    record: Any
    problem: str | None = None
    messages: list[Message] = field(default_factory=list[Message])
    said: list[Message] = field(default_factory=list[Message])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    prompt: str = ""
    answer: str = ""

    @property
    def text(self) -> str:
        """All that the row says, for duplicates: every message's text but the system's."""
        texts = [text_of(message) for message in (*self.messages, *self.said) if message["role"] != "system"]
        return "\n".join(filter(None, texts))


def text_of(message: Message) -> str:
    """A message's text; parts that are no text are left out."""
    content = message.get("content")
    try:
        return content_text(content)
    except LeftOut:
        parts = content if isinstance(content, list) else []
        return "\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)


def entry_of(row: Prompt | BadRow, record: Any) -> Entry:
    """A row as the readers of prompts give it."""
    if isinstance(row, BadRow):
        return Entry(row.index, row.place, record, row.problem)
    asked = [text_of(message) for message in row.messages if message["role"] == "user"]
    said = [text for message in row.answer if (text := text_of(message)).strip()]
    answer = reasoned(said[-1])[1] if said else ""
    return Entry(row.index, row.place, record, None, row.messages, row.answer, row.metadata, "\n".join(asked), answer)


def prompt_key(options: CheckData, records: Callable[[], Iterator[tuple[str, Any]]]) -> str:
    """--prompt-key; of a table without a column "prompt" that where generate_synthetic's tables have the question."""
    if options.prompt_key != "prompt" or Path(options.data).suffix.lower() not in TABLES:
        return options.prompt_key
    columns = next((record for _, record in records() if isinstance(record, dict)), {})
    found = (asked for asked, said in PAIRS if "prompt" not in columns and asked in columns and said in columns)
    return next(found, options.prompt_key)


@contextmanager
def open_rows(options: CheckData) -> Iterator[Callable[[], Iterator[Entry]]]:
    """A function that reads the rows of the file from the beginning. Raises InputError when it cannot be read."""
    with open_records(options.data) as records:
        reading = PromptOptions(prompt_key(options, records), None, options.limit)
        yield lambda: (entry_of(row, record) for row, record in prompts_of(records(), reading))
