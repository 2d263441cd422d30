"""What models and templates write as tags in a text: thinking, tool calls, tool results."""

import re
from typing import Any

import orjson

TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
RESULT = re.compile(r"\s*<(tool_result|tool_error|tool_response)>\s*(.*?)\s*</\1>\s*", re.DOTALL)
THINK = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>\s*|\Z)", re.DOTALL)


def reasoned(content: str) -> tuple[str, str]:
    """(reasoning, answer) of an assistant's text that may begin with <think>...</think>.

    A text that was cut off while thinking is reasoning altogether. Templates that write the opening tag into the
    prompt leave only the closing one in the answer.
    """
    thoughts: list[str] = []
    while match := THINK.match(content):
        thoughts.append(match[2].strip())
        content = content[match.end() :]
    head, tag, rest = content.rpartition("</think>")
    if tag and "<think>" not in content:
        thoughts.append(head.strip())
        content = rest.lstrip()
    return "\n\n".join(filter(None, thoughts)), content


def inline_calls(content: str) -> tuple[str, list[dict[str, Any]]]:
    """The text around <tool_call>{...}</tool_call>, and the objects. Tags that hold no object with a name are text."""
    calls: list[dict[str, Any]] = []
    texts: list[str] = []
    rest = content
    while TOOL_CALL in rest:
        before, _, after = rest.partition(TOOL_CALL)
        body, closing, following = _up_to_end_of_object(after)
        try:
            call = orjson.loads(body)
        except orjson.JSONDecodeError:
            call = None
        if not isinstance(call, dict) or "name" not in call or not (closing or not following.strip()):
            texts.append(before + TOOL_CALL)
            rest = after
            continue
        calls.append(call)
        texts.append(before)
        rest = following
    texts.append(rest)
    if not calls:
        return content, []
    return "\n".join(filter(None, (text.strip() for text in texts))), calls


def _up_to_end_of_object(text: str) -> tuple[str, bool, str]:
    """(the JSON, whether the closing tag follows, what comes after). The tag may also stand inside a string of it."""
    end = text.find(TOOL_CALL_END)
    while end >= 0:
        body = text[:end]
        if body.rstrip().endswith("}"):
            try:
                orjson.loads(body)
                return body, True, text[end + len(TOOL_CALL_END) :]
            except orjson.JSONDecodeError:
                pass
        end = text.find(TOOL_CALL_END, end + 1)
    return text, False, ""


def inline_result(match: "re.Match[str]") -> str:
    """What a <tool_result>JSON</tool_result> says; a JSON string without its quotes."""
    kind, body = match[1], match[2]
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    text = value if isinstance(value, str) else body
    return f"Error: {text}" if kind == "tool_error" else text


def results_of_user(content: str) -> list[str]:
    """The results in a user's message that holds nothing else, as templates write them."""
    if not content.lstrip().startswith("<tool_re"):
        return []
    found = list(RESULT.finditer(content))
    if not found or "".join(match[0] for match in found) != content:
        return []
    return [inline_result(match) for match in found]
