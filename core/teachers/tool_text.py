"""Tool calls in the text that a model writes: its own notation in, OpenAI's form out.

Understood are the notations of Hermes, Qwen 2.5/3 and SmolLM3 (<tool_call>{JSON}</tool_call>), Qwen3-Coder and
Qwen 3.5 (<function=...>), GLM 4.5 (<arg_key>), Llama 3.1 (bare JSON, <|python_tag|>), Mistral ([TOOL_CALLS]) and
DeepSeek V3. What is not a whole call (cut off, or no name can be read) stays text.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .protocol import ToolCall, ToolSchema
from .tool_calls import arguments_text, normal_call

Read = tuple[list[ToolCall], int]
"""Calls (ids may be ""), and the place in the text behind them."""

CLOSE = "</tool_call>"
DEEPSEEK = {
    word: f"<｜tool▁{name}｜>"
    for word, name in {
        "calls": "calls▁begin",
        "end_calls": "calls▁end",
        "call": "call▁begin",
        "end_call": "call▁end",
        "sep": "sep",
    }.items()
}


def parse_tool_calls(text: str, tools: Sequence[ToolSchema] = ()) -> tuple[str, list[ToolCall]]:
    """(the text around the calls, the calls in their order, "id" "" where the model wrote none).

    tools: their schemas say which values are text, in notations that write values without quotes.
    Without calls the text comes back as it was.
    """
    calls: list[ToolCall] = []
    around: list[str] = []
    begin = 0  # of the text that belongs to no call
    place = len(text) - len(text.lstrip())
    if text.startswith("{", place):
        read = _bare(text, place, tools)
        if read is not None and not text[read[1] :].strip():
            return "", read[0]
    while opener := OPENER.search(text, place):
        read = READERS[opener[0]](text, opener.end(), tools)
        place = opener.end()
        if read is not None:
            around.append(text[begin : opener.start()])
            calls += read[0]
            begin = place = read[1]
    if not calls:
        return text, []
    around.append(text[begin:])
    return "\n".join(piece.strip() for piece in around if piece.strip()), calls


# ---- the notations ---------------------------------------------------------------------------------------------


def _tagged(text: str, place: int, tools: Sequence[ToolSchema]) -> Read | None:
    """What follows <tool_call>, up to </tool_call>."""
    place = _skip_blanks(text, place)
    if text.startswith("<function=", place):
        return _function_tags(text, place, tools)
    try:
        value, end = _json_at(text, place)
    except ValueError:
        pass
    else:
        end = _skip_blanks(text, end)
        calls = _calls_of(value)
        if calls and text.startswith(CLOSE, end):
            return calls, end + len(CLOSE)
    end = text.find(CLOSE, place)
    if end < 0:
        return None
    body = text[place:end]
    call = _key_value_tags(body, tools) or _broken_json(body)
    return ([call], end + len(CLOSE)) if call else None


def _function_tags(text: str, place: int, tools: Sequence[ToolSchema]) -> Read | None:
    """<function=NAME> <parameter=KEY> VALUE </parameter> ... </function> </tool_call>"""
    end = text.find("</function>", place)
    named = re.compile(r"<function=([^>\n]+)>").match(text, place)
    close = re.compile(r"</function>\s*</tool_call>").match(text, end) if end >= 0 else None
    if not named or not close:
        return None
    name = named[1].strip()
    pairs = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", text[named.end() : end], re.DOTALL)
    call = _call(name, _typed(pairs, name, tools))
    return ([call], close.end()) if call else None


def _key_value_tags(body: str, tools: Sequence[ToolSchema]) -> ToolCall | None:
    """NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> ..."""
    name, tag, _ = body.partition("<arg_key>")
    if not tag and not re.fullmatch(r"\s*[\w.-]+\s*", body):
        return None
    pairs = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", body, re.DOTALL)
    return _call(name.strip(), _typed(pairs, name.strip(), tools))


def _broken_json(body: str) -> ToolCall | None:
    """A call whose name can be read although its JSON is broken: whoever runs it can tell the model what is wrong."""
    name = re.search(r'"name"\s*:\s*"([^"\\]+)"', body)
    if not name:
        return None
    arguments = re.search(r'"(?:arguments|parameters)"\s*:\s*(.*)', body, re.DOTALL)
    return _call(name[1], arguments[1].strip().removesuffix("}").rstrip() if arguments else body.strip())


def _bare(text: str, place: int, tools: Sequence[ToolSchema]) -> Read | None:
    """One object or several with "name" and "parameters", separated by blanks or semicolons."""
    calls: list[ToolCall] = []
    end = place
    while text.startswith("{", start := _skip_blanks(text, end, also=";" if calls else "")):
        try:
            value, behind = _json_at(text, start)
        except ValueError:
            break
        read = _calls_of(value) if "parameters" in value or "arguments" in value else []
        if not read:
            break
        calls += read
        end = behind
    return (calls, end) if calls else None


def _mistral(text: str, place: int, tools: Sequence[ToolSchema]) -> Read | None:
    """What follows [TOOL_CALLS]: a list of calls, or NAME [CALL_ID]ID [ARGS]{JSON}."""
    place = _skip_blanks(text, place)
    named = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\]\s*)?(?=\{)").match(text, place)
    try:
        value, end = _json_at(text, named.end() if named else place)
    except ValueError:
        return None
    if named:
        call = _call(named[1], value, named[2] or "")
        return ([call], end) if call else None
    calls = _calls_of(value)
    return (calls, end) if calls else None


def _deepseek(text: str, place: int, tools: Sequence[ToolSchema]) -> Read | None:
    """What follows <｜tool▁calls▁begin｜>: V3.1's NAME <｜tool▁sep｜> JSON, or V3's NAME and a code block."""
    calls: list[ToolCall] = []
    while head := DEEPSEEK_HEAD.match(text, place):
        try:
            value, end = _json_at(text, head.end())
        except ValueError:
            break
        tail = DEEPSEEK_TAIL.match(text, end)
        call = _call((head["old"] or head["new"]).strip(), value)
        if not tail or not call:
            break
        calls.append(call)
        place = tail.end()
    if not calls:
        return None
    after = _skip_blanks(text, place)
    return calls, after + len(DEEPSEEK["end_calls"]) if text.startswith(DEEPSEEK["end_calls"], after) else place


READERS: dict[str, Callable[[str, int, Sequence[ToolSchema]], Read | None]] = {
    "<tool_call>": _tagged,
    "<|python_tag|>": _bare,
    "[TOOL_CALLS]": _mistral,
    DEEPSEEK["calls"]: _deepseek,
}
OPENER = re.compile("|".join(map(re.escape, READERS)))
DEEPSEEK_HEAD = re.compile(
    rf"\s*{DEEPSEEK['call']}(?:function{DEEPSEEK['sep']}(?P<old>[^\n<]+)\n```json\n|(?P<new>[^\n<]+){DEEPSEEK['sep']})"
)
DEEPSEEK_TAIL = re.compile(rf"\s*(?:```)?\s*{DEEPSEEK['end_call']}")


# ---- pieces ----------------------------------------------------------------------------------------------------


def _call(name: str, arguments: Any, call_id: str = "") -> ToolCall | None:
    return normal_call({"id": call_id, "function": {"name": name, "arguments": arguments}})


def _calls_of(value: Any) -> list[ToolCall]:
    """The calls of an object, or of a list of objects; [] unless all of them name a tool."""
    calls: list[ToolCall] = []
    for item in value if isinstance(value, list) else [value]:
        inner = item.get("function") if isinstance(item, Mapping) else None
        about = inner if isinstance(inner, Mapping) else item
        if not isinstance(about, Mapping):
            return []
        arguments = about["arguments"] if "arguments" in about else about.get("parameters")
        call = normal_call({"id": item.get("id"), "function": {"name": about.get("name"), "arguments": arguments}})
        if call is None:
            return []
        calls.append(call)
    return calls


def _typed(pairs: Sequence[tuple[str, str]], name: str, tools: Sequence[ToolSchema]) -> dict[str, Any]:
    """Values that were written without quotes: text where the tool's schema says so, else JSON, else text."""
    schema: Any = next((tool["function"] for tool in tools if tool["function"]["name"] == name), {})
    parameters = schema.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    values: dict[str, Any] = {}
    for key, written in pairs:
        about = properties.get(key) if isinstance(properties, Mapping) else None
        values[key] = written
        if not isinstance(about, Mapping) or about.get("type") != "string":
            try:
                value, end = _json_at(written, _skip_blanks(written, 0))
            except ValueError:
                continue
            if not written[end:].strip():
                values[key] = value
    return values


def _json_at(text: str, place: int) -> tuple[Any, int]:
    """The JSON value that begins here, and the place behind it. Raises ValueError, also for NaN, for half of a
    surrogate pair, and for what is nested too deeply."""
    try:
        value, end = DECODER.raw_decode(text, place)
        arguments_text([value]).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value, end


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)
"""Not strict: models write line breaks into strings."""


def _skip_blanks(text: str, place: int, also: str = "") -> int:
    while place < len(text) and (text[place].isspace() or text[place] in also):
        place += 1
    return place
