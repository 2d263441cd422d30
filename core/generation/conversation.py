"""From a rollout's messages to a training row: where it ends, how it thinks, how its calls are written."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from ..data.conversation import Message, NotARollout
from ..data.keys import work_key
from ..data.rollouts import Rollout
from ..data.tags import inline_calls

OURS = (
    "teacher",
    "rollout",
    "source",
    "prompt_hash",
    "success",
    "reward",
    "turns",
    "tokens",
    "prompt_tokens",
    "completion_tokens",
    "shortened_tool_results",
    "written_by",
)
"""Keys of a row's metadata that we write, in this order; the same key in the prompt's metadata becomes input_<key>."""

WRITTEN_BY = "convert_rollouts"


def is_ours(row: dict[str, Any]) -> bool:
    """Whether a row with an answer is one that `row` made, and not an answer to a prompt made from one.

    Such a prompt keeps our metadata, and its answer keeps it too, among what the teacher's run adds. So our keys must
    be the last ones, all together.
    """
    metadata = row.get("metadata")
    if not isinstance(metadata, dict) or metadata.get("written_by") != WRITTEN_BY:
        return False
    return tuple(metadata)[-len(OURS) :] == OURS


@dataclass(frozen=True)
class Form:
    """How rows are written. calls: in `tool_calls`, or as text for templates that drop those.

    system: replaces the system prompt.   short_ids: ids of nine letters and digits, which Mistral's templates want.
    single_calls: turns with several calls are split, for Llama 3.1's templates.
    """

    thinking: Literal["keep", "strip", "tags"] = "keep"
    calls: Literal["structured", "text"] = "structured"
    arguments: Literal["string", "object"] = "string"
    tools_column: bool = True
    system: str | None = None
    short_ids: bool = False
    single_calls: bool = False


TOOLS_TEXT = """# Tools

You may call tools. Their signatures:
<tools>
{}
</tools>

To call one, write its name and its arguments as a JSON object within tags, and wait for the result:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""
"""How `calls="text"` tells the student about its tools: the notation that Hermes and Qwen models have made common."""


def prompt_hash(messages: list[Message]) -> str:
    """32 hex digits of the messages before the assistant's first, for rollouts that do not say what their prompt was.

    It is the hash that run_rollouts writes, unless the prompt itself holds answers.
    """
    prompt: list[Message] = []
    for message in messages:
        if message["role"] == "assistant":
            break
        prompt.append({"role": message["role"], "content": message["content"]})
    return work_key(prompt)


def conversation_key(messages: list[Message]) -> str:
    """32 hex digits that are equal for equal conversations, whatever their calls are called."""
    told = [
        (
            message["role"],
            message["content"],
            [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())],
        )
        for message in messages
    ]
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def is_answer(message: Message) -> bool:
    """Whether the teacher says something here, and calls nothing."""
    return message["role"] == "assistant" and not message.get("tool_calls") and bool(message["content"].strip())


def ending_with_answer(messages: list[Message], repairs: Counter[str], last: Any, *, require: bool) -> list[Message]:
    """The messages up to the teacher's last answer; it must be a turn with text and without calls.

    last: the file's last message as it stands there, which says why there is no answer. Raises NotARollout:
    call_as_text or no_final_answer, and with `require` also went_on, where turns come after the last answer.
    """
    end = len(messages)
    while end and not is_answer(messages[end - 1]):
        end -= 1
    if not any(message["role"] == "user" for message in messages[:end]):
        if calls := calls_in_text(last):
            names = ", ".join(str(call["name"]) for call in calls)
            raise NotARollout("call_as_text", f"it calls {names}, and nobody answered")
        what = f"a turn of the role {messages[-1]['role']}"
        if isinstance(last, dict) and last.get("tool_calls"):
            what = "a tool call"
        elif messages[-1]["role"] == "assistant":
            what = "an empty answer"
        raise NotARollout("no_final_answer", f"it ends with {what}")
    if end < len(messages):
        if require:
            raise NotARollout("went_on", f"{len(messages) - end} messages come after the last answer")
        repairs["trailing_turns"] += 1
    return messages[:end]


def calls_in_text(message: Any) -> list[dict[str, Any]]:
    """The <tool_call>s in the text of a message as it stands in a file."""
    content = message.get("content") if isinstance(message, dict) else None
    return inline_calls(content)[1] if isinstance(content, str) else []


def one_call_a_turn(messages: list[Message]) -> tuple[list[Message], int]:
    """(normalised messages in which every turn has one call at most, how many turns were split for that).

    Each call is followed by its result; the turn's words and reasoning stay with the first.
    """
    found: list[Message] = []
    split = 0
    waiting: list[Message] = []  # turns for the calls of a split one, but the first
    for message in messages:
        if message["role"] == "tool" and found[-1]["role"] == "tool" and waiting:
            found.append(waiting.pop(0))
        elif len(calls := message.get("tool_calls", ())) > 1:
            split += 1
            message = {**message, "tool_calls": calls[:1]}
            waiting = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in calls[1:]]
        found.append(message)
    return found, split


def row(
    rollout: Rollout, messages: list[Message], source: str, hash_: str, form: Form, *, success: bool
) -> dict[str, Any]:
    """The row of a rollout. messages: normalised, ending with an answer; they are changed in place."""
    tools = with_form(messages, rollout.tools, form)
    found: dict[str, Any] = {"messages": messages}
    if form.tools_column and tools:
        # As text, because objects of many shapes in one column are filled up with nulls, or refused, by loaders.
        found["tools"] = orjson.dumps(tools).decode()
    metadata = {f"input_{key}" if key in OURS else key: value for key, value in rollout.metadata.items()}
    metadata["teacher"] = rollout.teacher
    metadata["rollout"] = rollout.id
    metadata["source"] = source
    metadata["prompt_hash"] = hash_
    metadata["success"] = success
    metadata["reward"] = rollout.reward
    metadata["turns"] = rollout.turns
    metadata["tokens"] = rollout.total_tokens
    metadata["prompt_tokens"] = rollout.prompt_tokens
    metadata["completion_tokens"] = rollout.completion_tokens
    metadata["shortened_tool_results"] = rollout.shortened
    metadata["written_by"] = WRITTEN_BY
    found["metadata"] = metadata
    return found


def with_form(messages: list[Message], tools: list[dict[str, Any]], form: Form) -> list[dict[str, Any]]:
    """Give normalised messages the form, in place; the schemas that the template is to be given beside them."""
    if form.system is not None:
        set_system(messages, form.system)
    if form.calls == "text" and tools:
        told = TOOLS_TEXT.format("\n".join(orjson.dumps(tool).decode() for tool in tools))
        before = messages[0]["content"] if messages[0]["role"] == "system" else ""
        set_system(messages, f"{before}\n\n{told}" if before.strip() else told)
    for message in messages:
        if form.thinking != "keep" and "reasoning_content" in message:
            reasoning = message.pop("reasoning_content")
            if form.thinking == "tags":
                message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content']}"
        if form.calls == "text":
            if calls := message.pop("tool_calls", ()):
                message["content"] = "\n".join(filter(None, (message["content"].rstrip(), *map(as_text, calls))))
            continue
        for call in message.get("tool_calls", ()):
            if form.arguments == "object":
                call["function"]["arguments"] = orjson.loads(call["function"]["arguments"])
            if form.short_ids:
                call["id"] = short_id(call["id"])
        if form.short_ids and "tool_call_id" in message:
            message["tool_call_id"] = short_id(message["tool_call_id"])
    return [] if form.calls == "text" else tools


def set_system(messages: list[Message], text: str) -> None:
    """Replace the system prompt, or put one first."""
    if messages and messages[0]["role"] == "system":
        messages[0]["content"] = text
    else:
        messages.insert(0, {"role": "system", "content": text})


def as_text(call: dict[str, Any]) -> str:
    """A call in tags. Its arguments stand there as they were written."""
    name = orjson.dumps(call["function"]["name"]).decode()
    return f'<tool_call>\n{{"name": {name}, "arguments": {call["function"]["arguments"]}}}\n</tool_call>'


def short_id(id_: str) -> str:
    """Nine letters and digits, the same for the same id; one that has this form stays."""
    if len(id_) == 9 and id_.isascii() and id_.isalnum():
        return id_
    return hashlib.sha256(id_.encode("utf-8", "replace")).hexdigest()[:9]
