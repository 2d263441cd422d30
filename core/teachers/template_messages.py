"""Rows of data as chat templates take them: contents as text, calls with arguments as objects, schemas as a list."""

from collections.abc import Sequence
from typing import Any

import orjson

from .protocol import Message
from .tool_calls import normal_call, with_object_arguments

NOT_TEXT = "a message is more than text, such as an image"
BAD_CALL = "a tool call cannot be read"


class LeftOut(Exception):
    """A row cannot be used. reason: for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def template_messages(messages: Sequence[Message]) -> list[Message]:
    """A conversation as chat templates take it: contents as text, calls with arguments as objects. Raises LeftOut."""
    prepared: list[Message] = []
    for message in messages:
        message = {**message, "content": content_text(message.get("content"))}
        if raw := message.pop("tool_calls", None):
            calls = [normal_call(call) for call in raw] if isinstance(raw, list) else [None]
            if None in calls:
                raise LeftOut(BAD_CALL)
            message["tool_calls"] = calls
        prepared.append(message)
    return with_object_arguments(prepared)


def content_text(content: Any) -> str:
    """A message's content as text; that of a message that only calls is "". Raises LeftOut for images and the like."""
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise LeftOut(NOT_TEXT)
        texts.append(text)
    return "".join(texts)


def tool_schemas(value: Any) -> list[dict[str, Any]] | None:
    """A row's `tools`, a list of schemas or the JSON of one. None for none, and for what is no list of schemas."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
    if isinstance(value, list) and value and all(isinstance(tool, dict) for tool in value):
        return value
    return None
