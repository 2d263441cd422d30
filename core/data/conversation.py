"""A rollout's conversation in one form: Chat messages that every template and loader takes.

    {"role": "system" | "user", "content": str}
    {"role": "assistant", "content": str, "reasoning_content"?: str,
     "tool_calls"?: [{"id": str, "type": "function", "function": {"name": str, "arguments": str}}]}
    {"role": "tool", "tool_call_id": str, "name": str, "content": str}

`arguments` is the JSON of an object. Every call has exactly one result, in the messages right after it. What had to be
changed for that is counted; nothing is invented but ids.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson

from .tags import RESULT, TOOL_CALL, inline_calls, inline_result, reasoned, results_of_user

Message = dict[str, Any]


class NotARollout(ValueError):
    """A file or a conversation that cannot be used. reason: one word for counting.   detail: what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


ROLES = {"developer": "system", "function": "tool", "human": "user", "model": "assistant", "gpt": "assistant"}
"""Other names of roles."""


def normalised(conversation: list[Any]) -> tuple[list[Message], Counter[str]]:
    """The messages in the form above, and how often each repair was made. The input is left as it is.

    Raises NotARollout where no repair is honest: an unknown role, content that is no text, no user message.
    """
    sound = as_it_stands(conversation)
    return mended(conversation) if sound is None else (sound, Counter[str]())


def mended(conversation: list[Any]) -> tuple[list[Message], Counter[str]]:
    """`normalised`, without the short way for conversations that need nothing."""
    repairs: Counter[str] = Counter()
    messages = _merged(list(_messages(conversation, repairs)), repairs)
    messages = _paired(messages, repairs)
    if not any(message["role"] == "user" for message in messages):
        raise NotARollout("no_user_message", "no user message in the conversation")
    return messages, repairs


CALL_KEYS, FUNCTION_KEYS = {"id", "type", "function"}, {"name", "arguments"}


def as_it_stands(conversation: list[Any]) -> list[Message] | None:
    """The messages of a conversation that needs no repair, by far the most common; None when it needs a closer look.

    It is a short way only: whatever it returns, `mended` returns too, without a repair.
    """
    messages: list[Message] = []
    taken: set[str] = set()
    waiting: list[tuple[str, str]] = []  # id and tool of the calls whose results come next
    users = False
    before = None
    for item in conversation:
        if type(item) is not dict:
            return None
        role, content = item.get("role"), item.get("content")
        if type(content) is not str or "type" in item:
            return None
        if role == "tool":
            if not waiting or item.get("tool_call_id") != waiting[0][0]:
                return None
            id_, name = waiting.pop(0)
            messages.append({"role": "tool", "tool_call_id": id_, "name": name, "content": content})
        elif waiting:
            return None
        elif role == "assistant":
            if before == "assistant" or "think" in content or TOOL_CALL in content or "function_call" in item:
                return None
            message: Message = {"role": "assistant", "content": content}
            if "reasoning" in item or "thinking" in item:
                return None
            if (reasoning := item.get("reasoning_content")) is not None:
                if type(reasoning) is not str or not reasoning.strip():
                    return None
                message["reasoning_content"] = reasoning
            if calls := item.get("tool_calls"):
                if type(calls) is not list:
                    return None
                for call in calls:
                    if type(call) is not dict or call.keys() != CALL_KEYS or call["type"] != "function":
                        return None
                    id_, function = call["id"], call["function"]
                    if type(id_) is not str or not id_ or id_ in taken:
                        return None
                    if type(function) is not dict or function.keys() != FUNCTION_KEYS:
                        return None
                    name, arguments = function["name"], function["arguments"]
                    if type(name) is not str or not name.strip() or type(arguments) is not str:
                        return None
                    try:
                        if type(orjson.loads(arguments)) is not dict:
                            return None
                    except orjson.JSONDecodeError:
                        return None
                    taken.add(id_)
                    waiting.append((id_, name))
                # Copies, because the caller may change what it gets.
                message["tool_calls"] = [
                    {"id": call["id"], "type": "function", "function": dict(call["function"])} for call in calls
                ]
            messages.append(message)
        elif role == "system" or role == "user":
            if content.lstrip()[:8] == "<tool_re":
                return None
            users = users or role == "user"
            messages.append({"role": role, "content": content})
        else:
            return None
        before = role
    return messages if users and not waiting else None


# ---- message by message --------------------------------------------------------------------------------------------


def _messages(conversation: list[Any], repairs: Counter[str]) -> Iterator[Message]:
    for at, item in enumerate(conversation):
        if not isinstance(item, dict):
            raise NotARollout("not_a_message", f"conversation[{at}] is not an object")
        if item.get("type") in ("function_call", "function_call_output", "reasoning"):
            item = _of_responses(item)
            repairs["responses_item"] += 1
        role = item.get("role")
        if not isinstance(role, str):
            raise NotARollout("unknown_role", f"conversation[{at}] has no role")
        role = ROLES.get(role, role)
        reasoning: list[str] = []
        content = _text(item.get("content"), f"conversation[{at}]", role, reasoning, repairs)
        if role in ("system", "user"):
            if role == "user" and (results := results_of_user(content)):
                for result in results:
                    repairs["inline_result"] += 1
                    yield {"role": "tool", "tool_call_id": None, "name": None, "content": result}
            else:
                yield {"role": role, "content": content}
        elif role == "assistant":
            yield _assistant(item, content, reasoning, repairs)
        elif role == "tool":
            id_ = _id(item.get("tool_call_id"))
            if id_ is None and (match := RESULT.fullmatch(content)) is not None:
                repairs["inline_result"] += 1
                content = inline_result(match)
            name = item.get("name")
            yield {
                "role": "tool",
                "tool_call_id": id_,
                "name": name if isinstance(name, str) and name else None,
                "content": content,
            }
        else:
            raise NotARollout("unknown_role", f"conversation[{at}] has the role {role!r}")


def _of_responses(item: dict[str, Any]) -> dict[str, Any]:
    """An item of the Responses API as a Chat message."""
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if item["type"] == "reasoning":
        parts = item.get("summary") or item.get("content") or []
        found = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        return {"role": "assistant", "reasoning_content": "\n\n".join(filter(None, found)), "content": ""}
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": item.get("call_id"), "function": function}]}


def _text(content: Any, place: str, role: str, reasoning: list[str], repairs: Counter[str]) -> str:
    """A message's content as text; thinking parts go to `reasoning`."""
    if isinstance(content, str):
        return content
    if content is None:
        repairs["null_content"] += 1
        return ""
    if isinstance(content, list):
        repairs["content_parts"] += 1
        found: list[str] = []
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            text = part.get("text") if isinstance(part, dict) else part
            if kind in ("thinking", "reasoning"):
                thought = part.get("thinking") or text
                reasoning += [thought] if isinstance(thought, str) else []
            elif kind in ("text", "input_text", "output_text", "refusal") and isinstance(text, str):
                found.append(text)
            elif role == "tool" and isinstance(kind, str) and "image" in kind:
                repairs["image_result"] += 1
                found.append("[image]")
            else:
                raise NotARollout("not_text", f"{place} has a part of the type {kind!r}, and rows hold text")
        return ("\n" if role == "tool" else "").join(found)
    if role == "tool":  # a tool's result as it came
        repairs["result_object"] += 1
        return orjson.dumps(content).decode()
    raise NotARollout("not_text", f"the content of {place} is neither text nor a list of parts")


def _assistant(item: dict[str, Any], content: str, reasoning: list[str], repairs: Counter[str]) -> Message:
    for key in ("reasoning_content", "reasoning", "thinking"):
        thought = item.get(key)
        if isinstance(thought, str) and thought.strip():
            reasoning.append(thought)
            break
    if "think" in content:
        thought, answer = reasoned(content)
        if answer != content:
            repairs["thinking_tags"] += 1
            reasoning += [thought] if thought and thought not in reasoning else []
            content = answer
    found = item.get("tool_calls")
    calls = [_call(call, repairs) for call in found] if isinstance(found, list) else []
    if isinstance(old := item.get("function_call"), dict) and not calls:  # the Chat API before there were tools
        calls = [_call({"function": old}, repairs)]
    if TOOL_CALL in content:
        content, inline = inline_calls(content)
        if inline:
            repairs["inline_tool_call"] += len(inline)
            # Some servers send a call both ways.
            calls = calls or [_call({"id": call.get("id"), "function": call}, Counter()) for call in inline]
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = "\n\n".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    return message


def _id(value: Any) -> str | None:
    """A call's id; numbers become text, anything else is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _call(call: Any, repairs: Counter[str]) -> dict[str, Any]:
    """A call with its arguments as a string. One that cannot be read has the name None."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return _made(None, None, "")
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    named = name if isinstance(name, str) and name.strip() else None
    text = _arguments(arguments, repairs)
    return _made(_id(call.get("id")), named if text is not None else None, text or "{}")


def _made(id_: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(arguments: Any, repairs: Counter[str]) -> str | None:
    """Arguments as the JSON of an object; a string that is one stays byte for byte. None when they are malformed."""
    if isinstance(arguments, dict):
        repairs["object_arguments"] += 1
        return orjson.dumps(arguments).decode()
    if arguments is None or arguments == "":
        repairs["empty_arguments"] += 1
        return "{}"
    if not isinstance(arguments, str):
        return None
    try:
        value = orjson.loads(arguments)
        if isinstance(value, str):
            value = orjson.loads(value)
            if isinstance(value, dict):
                repairs["double_encoded_arguments"] += 1
                return orjson.dumps(value).decode()
    except orjson.JSONDecodeError:
        return None
    return arguments if isinstance(value, dict) else None


# ---- message after message -----------------------------------------------------------------------------------------


def _merged(messages: list[Message], repairs: Counter[str]) -> list[Message]:
    """Assistant messages that follow one another as one; most templates want roles to alternate."""
    merged: list[Message] = []
    for message in messages:
        if not (merged and message["role"] == merged[-1]["role"] == "assistant"):
            merged.append(message)
            continue
        before = merged[-1]
        repairs["merged_turns"] += 1
        for key, joint in (("content", "\n\n"), ("reasoning_content", "\n\n")):
            texts = [text for text in (before.get(key), message.get(key)) if text]
            if texts or key == "content":
                before[key] = joint.join(texts)
        if calls := [*before.get("tool_calls", ()), *message.get("tool_calls", ())]:
            before["tool_calls"] = calls
    return merged


def _paired(messages: list[Message], repairs: Counter[str]) -> list[Message]:
    """Calls and results in pairs: results without a call and calls without a result go, ids are made where needed."""
    paired: list[Message] = []
    used = {call["id"] for message in messages for call in message.get("tool_calls", ()) if call["id"]}
    taken: set[str] = set()
    made = 0
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if message["role"] == "tool":
            repairs["orphan_result"] += 1
            continue
        calls = message.get("tool_calls")
        if not calls:
            paired.append(message)
            continue
        results: list[Message] = []
        while at < len(messages) and messages[at]["role"] == "tool":
            results.append(messages[at])
            at += 1
        answers = _answers(calls, results)
        if orphans := len(results) - sum(answer is not None for answer in answers):
            repairs["orphan_result"] += orphans
        kept: list[tuple[dict[str, Any], Message]] = []
        for call, answer in zip(calls, answers, strict=True):
            if call["function"]["name"] is None:
                repairs["malformed_call"] += 1
            elif answer is None:
                repairs["unanswered_call"] += 1
            else:
                kept.append((call, answer))
        if not kept:
            # Its words may stand alone before a user's turn. At the end they are no answer, because it went on.
            if message["content"].strip() and at < len(messages) and messages[at]["role"] != "assistant":
                paired.append({key: value for key, value in message.items() if key != "tool_calls"})
            continue
        message["tool_calls"] = [call for call, _ in kept]
        paired.append(message)
        for call, answer in kept:
            id_ = call["id"]
            if id_ is None or id_ in taken:
                repairs["missing_id" if id_ is None else "duplicate_id"] += 1
                made += 1
                while (id_ := f"call_{made}") in used or id_ in taken:
                    made += 1
                call["id"] = id_
            taken.add(id_)
            name = call["function"]["name"]
            paired.append({"role": "tool", "tool_call_id": id_, "name": name, "content": answer["content"]})
    return _merged(paired, repairs)


def _answers(calls: list[dict[str, Any]], results: list[Message]) -> list[Message | None]:
    """The result of each call: by id, and those without an id in turn."""
    answers: list[Message | None] = [None] * len(calls)
    nameless: list[Message] = []
    for result in results:
        id_ = result["tool_call_id"]
        free = [i for i, call in enumerate(calls) if answers[i] is None and call["id"] == id_ and id_ is not None]
        if free:
            answers[free[0]] = result
        elif id_ is None:
            nameless.append(result)
    for result in nameless:
        free = [i for i, _ in enumerate(calls) if answers[i] is None]
        fitting = [i for i in free if result["name"] in (None, calls[i]["function"]["name"])]
        if fitting:
            answers[fitting[0]] = result
    # A call that has no id can only be meant by a result that answers no other one.
    taken = {id(answer) for answer in answers if answer is not None}
    strays = [result for result in results if result["tool_call_id"] is not None and id(result) not in taken]
    for result in strays:
        free = [i for i, call in enumerate(calls) if answers[i] is None and call["id"] is None]
        if free:
            answers[free[0]] = result
    return answers
