"""Tool calls in one form, however they were written: OpenAI Chat's, with ids, and arguments as a JSON string."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from .protocol import Message, ToolCall

PLAIN_KEYS = {"id", "type", "index", "function"}
PLAIN_FUNCTION_KEYS = {"name", "arguments"}


def normal_call(raw: Any) -> ToolCall | None:
    """A call in the form of `ToolCall`, with "id" "" where there is none; None for what names no tool."""
    if not isinstance(raw, Mapping):
        return None
    function = raw.get("function")
    if not isinstance(function, Mapping):
        return None
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        return None
    call_id = raw.get("id")
    return {
        "id": call_id if isinstance(call_id, str) and call_id.strip() else "",
        "type": "function",
        "function": {"name": name.strip(), "arguments": arguments_text(function.get("arguments"))},
    }


def arguments_text(arguments: Any) -> str:
    """Arguments as a JSON string. A string is left as it is, even when it is no JSON; none at all are "{}"."""
    if isinstance(arguments, str):
        return arguments if arguments.strip() else "{}"
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def with_ids(calls: Iterable[ToolCall], turn: int) -> list[ToolCall]:
    """The calls, each with an id that no other has.

    An id that is missing or was already used among them is made from the call and its place, so that the same answer
    has the same ids again. turn: a number that differs from answer to answer within a conversation.
    """
    taken: set[str] = set()
    named: list[ToolCall] = []
    for place, call in enumerate(calls):
        call_id = call["id"]
        attempt = 0
        while not call_id or call_id in taken:
            about = [turn, place, attempt, call["function"]["name"], call["function"]["arguments"]]
            call_id = "call_" + hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
            attempt += 1
        taken.add(call_id)
        named.append({**call, "id": call_id})
    return named


def read_calls(message: Mapping[str, Any], turn: int) -> tuple[list[ToolCall], list[dict[str, Any]]]:
    """The tool calls of an assistant's message from a server -> (in normal form, to be sent back).

    The second list is empty unless some call carries keys that OpenAI does not know; then it holds all calls in normal
    form with those keys. The deprecated `function_call` is read as one call.
    """
    raw_calls = message.get("tool_calls")
    if not isinstance(raw_calls, list) or not raw_calls:
        raw_calls = [{"function": message.get("function_call")}]
    read: list[tuple[ToolCall, dict[str, Any]]] = []
    for raw in raw_calls:
        call = normal_call(raw)
        if call is not None:
            read.append((call, raw))
    calls = with_ids((call for call, _ in read), turn)
    more = [
        ({k: v for k, v in raw.items() if k not in PLAIN_KEYS}, {**raw["function"], **call["function"]})
        for call, (_, raw) in zip(calls, read, strict=True)
    ]
    if not any(keys or set(function) - PLAIN_FUNCTION_KEYS for keys, function in more):
        return calls, []
    return calls, [{**call, **keys, "function": function} for call, (keys, function) in zip(calls, more, strict=True)]


def with_object_arguments(messages: Iterable[Message], *, short_ids: bool = False) -> list[Message]:
    """The conversation as chat templates want it: arguments as objects (transformers' convention; what is no JSON
    object stays a string), and no empty `tool_calls`, whose mere presence some templates take for a call.

    short_ids: ids become nine letters and digits, as Mistral's templates demand.
    """
    prepared: list[Message] = []
    for message in messages:
        message = dict(message)
        calls = message.pop("tool_calls", None)
        if calls:
            message["tool_calls"] = [_with_object_arguments(call, short_ids) for call in calls]
        if short_ids and isinstance(message.get("tool_call_id"), str):
            message["tool_call_id"] = short_id(message["tool_call_id"])
        prepared.append(message)
    return prepared


def _with_object_arguments(call: ToolCall, short_ids: bool) -> ToolCall:
    function = dict(call["function"])
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, TypeError, RecursionError):
        arguments = None
    if isinstance(arguments, dict):
        function["arguments"] = arguments
    return {**call, "function": function, "id": short_id(call["id"]) if short_ids else call["id"]}


def short_id(call_id: str) -> str:
    """Nine letters and digits that stand for an id; such an id stands for itself."""
    if len(call_id) == 9 and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]
