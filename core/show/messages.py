"""A conversation of any form -> messages made of parts. All that is there is kept; nothing is mended or judged."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

PartKind = Literal["text", "reasoning", "call", "result"]

SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "bing": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
PLAIN = ("user", "assistant", "system")
CONVERSATION_KEYS = ("conversation", "messages", "conversations")
INLINE = re.compile("<(think|thinking|tool_call|tool_result|tool_error)>")
FAILED_RESULT = re.compile(r'\s*(?:#+ *|\{"?|\[)?(?:tool |mcp )?error\b', re.IGNORECASE)
"""How the result of a failed call begins, in traces that have no field for it."""

ONE_LINE = 72
"""Characters of JSON that stand on one line."""


@dataclass(frozen=True)
class Part:
    """A piece of a message. name: the tool's, of calls and results. failed: the result says that the call failed."""

    kind: PartKind
    text: str
    name: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Message:
    """role: as the file has it, with ShareGPT's names translated."""

    role: str
    parts: list[Part] = field(default_factory=list[Part])


def conversation_of(record: dict[str, Any]) -> tuple[str | None, list[Any]]:
    """The key that holds a conversation, and the conversation; (None, []) where there is none."""
    for key in (*CONVERSATION_KEYS, "prompt"):
        turns = record.get(key)
        if isinstance(turns, list) and turns and all(is_turn(turn) for turn in turns):
            return key, turns
    return None, []


def is_turn(turn: Any) -> bool:
    """Whether this looks like a message: ours, ShareGPT's, or an item of the Responses API."""
    return isinstance(turn, dict) and ("role" in turn or "from" in turn or isinstance(turn.get("type"), str))


def read_messages(turns: list[Any]) -> list[Message]:
    """The messages of a conversation, whatever their form."""
    messages: list[Message] = []
    names: dict[str, str] = {}
    for turn in turns:
        if not isinstance(turn, dict):
            messages.append(Message("?", [Part("text", as_text(turn))]))
            continue
        content = turn.get("content")
        if len(turn) == 2 and turn.get("role") in PLAIN and isinstance(content, str) and "<" not in content:
            messages.append(Message(turn["role"], [Part("text", content)] if content else []))  # most are like this
            continue
        parts = list(_parts(turn, names))
        role = turn.get("role", turn.get("from"))
        role = SHAREGPT.get(str(role), str(role)) if role is not None else _role(parts)
        messages.append(Message(role, parts))
    return messages


def _role(parts: list[Part]) -> str:
    """The role of an item that states none."""
    return "tool" if parts and parts[0].kind == "result" else "assistant"


def _parts(turn: dict[str, Any], names: dict[str, str]) -> Iterator[Part]:
    """names: call id -> tool, filled by the calls and asked by the results."""
    for key in ("reasoning_content", "reasoning", "thinking"):
        if turn.get(key):
            yield Part("reasoning", as_text(turn[key]))
            break
    role, kind = turn.get("role", turn.get("from")), turn.get("type")
    content = turn.get("content", turn.get("value"))
    if kind == "function_call":
        yield _call(turn, turn.get("call_id"), names)
    elif kind == "function_call_output":
        name = names.get(str(turn.get("call_id")), "")
        yield _result(turn.get("output"), name, None)
    elif role in ("tool", "function", "observation"):
        name = turn.get("name") or names.get(str(turn.get("tool_call_id")), "")
        yield from _tool_message(content, str(name), turn)
    elif role == "function_call":  # ShareGPT with tools
        yield _call(_object(content), None, names)
    else:
        yield from _content(content, names)
    calls = turn.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        if isinstance(call, dict):
            yield _call(call.get("function", call), call.get("id"), names)
        else:
            yield Part("call", as_text(call))
    if isinstance(turn.get("function_call"), dict):
        yield _call(turn["function_call"], None, names)


def _content(content: Any, names: dict[str, str]) -> Iterator[Part]:
    if isinstance(content, str):
        yield from _inline(content, names)
    elif isinstance(content, list):
        for item in content:
            if isinstance(item, dict) and isinstance(item.get("thinking"), str):
                yield Part("reasoning", item["thinking"])
            elif isinstance(item, dict) and isinstance(item.get("text"), str):
                yield from _inline(item["text"], names)
            elif isinstance(item, dict):
                yield Part("text", f"[{_short(item)}]")
            else:
                yield Part("text", as_text(item))
    elif content is not None:
        yield Part("text", as_text(content))


def _short(item: dict[str, Any]) -> str:
    """A part that is no text, such as an image: its kind and size, not its bytes."""
    size = len(as_text(item))
    return f"{item.get('type', 'part')}, {size:,} characters" if size > 200 else as_text(item)


def _inline(text: str, names: dict[str, str]) -> Iterator[Part]:
    """Text with <think> and <tool_call> blocks in it, taken apart. Takes time in proportion to the text, however many
    tags are opened and never closed in it."""
    at, unclosed = 0, set[str]()
    for match in INLINE.finditer(text):
        tag = match[1]
        if match.start() < at or tag in unclosed:
            continue
        end = text.find(f"</{tag}>", match.end())
        if end < 0:
            unclosed.add(tag)
            continue
        if before := text[at : match.start()].strip("\n"):
            yield Part("text", before)
        inner = text[match.end() : end].strip()
        at = end + len(tag) + 3
        if tag == "tool_call":
            yield _call(_object(inner), None, names)
        elif tag.startswith("tool"):
            yield _result(inner, "", tag == "tool_error")
        elif inner:
            yield Part("reasoning", inner)
    if rest := (text[at:].strip("\n") if at else text):
        yield Part("text", rest)


def _tool_message(content: Any, name: str, turn: dict[str, Any]) -> Iterator[Part]:
    failed = True if turn.get("is_error") or turn.get("isError") else None
    text = as_text(content) if not isinstance(content, list) else "\n".join(p.text for p in _content(content, {}))
    for tag in ("tool_result", "tool_error"):
        inner = text.strip()
        if inner.startswith(f"<{tag}>") and inner.endswith(f"</{tag}>"):
            failed = tag == "tool_error" or failed
            text = inner[len(tag) + 2 : -len(tag) - 3].strip()
    yield _result(text, name, failed)


def _result(content: Any, name: str, failed: bool | None) -> Part:
    text = as_text(content)
    return Part("result", text, name, bool(FAILED_RESULT.match(text)) if failed is None else failed)


def _call(call: Any, key: Any, names: dict[str, str]) -> Part:
    if not isinstance(call, dict):
        return Part("call", as_text(call))
    name = as_text(call.get("name") or "")
    if key is not None:
        names[str(key)] = name
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        arguments = _object(arguments)
    return Part("call", _arguments(arguments), name)


def _object(text: Any) -> Any:
    """JSON where it is JSON, else as it stands."""
    if isinstance(text, str):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return text


def _arguments(value: Any) -> str:
    """`name: value` lines for a flat object, JSON for everything else."""
    if value is None or value == {}:
        return ""
    if not isinstance(value, dict):
        return as_text(value)
    return "\n".join(f"{key}: {as_text(item)}" for key, item in value.items())


def as_text(value: Any) -> str:
    """A text as it is, everything else as JSON: on one line where it is short, else indented."""
    if isinstance(value, str):
        return value
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2
    try:
        text = orjson.dumps(value, default=str, option=options).decode()
        if len(text) < 4 * ONE_LINE and len(line := json.dumps(orjson.loads(text), ensure_ascii=False)) <= ONE_LINE:
            return line
        return text
    except TypeError:  # nested deeper than orjson writes, or a lone surrogate within
        pass
    try:
        return repr(value)
    except RecursionError:
        return "(nested too deeply to show)"
