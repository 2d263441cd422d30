"""What is wrong with one row to train on.

A row is {"messages": [...], "tools"?: schemas or their JSON, "metadata"?: {...}}, as generate_teacher_data and
convert_rollouts write it. Levels of problems: "error" (cannot be used here), "warning", "rnow" (`rnow run` refuses it).
"""

import difflib
import itertools
from collections.abc import Iterator
from typing import Any

import orjson

from ..commands.project_config import DatasetType, Level
from .conversation import ROLES as OTHER_ROLES
from .tags import TOOL_CALL, inline_calls

Problem = tuple[Level, str]
ROLES = ("system", "user", "assistant", "tool")
IMAGES = ("image", "image_url", "input_image", "video", "video_url", "audio", "input_audio", "file")


def problems_of(row: dict[str, Any], dataset_type: DatasetType = "sft") -> Iterator[Problem]:
    """(level, text) of all that is wrong with a row. The text begins with its place in the row: "messages[2]: ..."."""
    if dataset_type == "midtrain":
        if not isinstance(row.get("text"), str) or not row["text"]:
            yield "error", f'no text (found: {keys_of(row)}): rows of midtrain are {{"text": ...}}'
        return
    messages = row.get("messages")
    if type(messages) is not list or not messages:
        what = "messages is empty" if messages == [] else "no messages" if messages is None else "messages is no list"
        # Prompts in other forms are read by train_gold.
        level: Level = "rnow" if dataset_type == "distill" and messages is None else "error"
        yield level, f"{what} (found: {keys_of(row)})"
        return
    yield from fields(row, dataset_type)
    unknown = False
    for at, message in enumerate(messages):
        for level, text in message_problems(message):
            unknown = unknown or level == "error"
            yield level, f"messages[{at}]: {text}"
    if unknown or dataset_type != "sft":  # how turns follow one another can only be told of messages that can be read
        return
    yield from order(messages)
    yield from pairs(messages)


def fields(row: dict[str, Any], dataset_type: DatasetType) -> Iterator[Problem]:
    """What is wrong beside the messages."""
    level: Level = "error" if dataset_type == "rl" else "rnow"
    tools = row.get("tools")
    if tools is not None and not is_texts(tools):
        if has_schemas(tools) or tools in ([], "", "[]"):
            yield level, "tools holds schemas: `rnow run` takes a list of names there (tools.py has the schemas)"
        else:
            yield "error", "tools is neither a list of schemas, nor the JSON of one, nor a list of names"
    rewards = row.get("rewards")
    if dataset_type == "rl" and not (rewards and is_texts(rewards)):
        yield "error", "rewards: rows of rl need the names of their reward functions"
    elif rewards is not None and not is_texts(rewards):
        yield level, "rewards is no list of names"
    docker, env = row.get("docker"), row.get("docker_env")
    if docker is not None and not isinstance(docker, str):
        yield level, "docker is no name of an image"
    if env is not None and not (isinstance(env, dict) and all(isinstance(value, str) for value in env.values())):
        yield level, "docker_env is no object of texts"
    elif env and not docker:
        yield level, "docker_env without docker"
    for key in ("metadata", "variables"):
        if row.get(key) is not None and not isinstance(row[key], dict):
            yield level, f"{key} is no object"


def message_problems(message: Any) -> Iterator[Problem]:
    """What is wrong with one message, whatever stands around it."""
    if type(message) is not dict:
        yield "error", f"not an object, but {kind_of_value(message)}"
        return
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        near = OTHER_ROLES.get(str(role)) or next(iter(difflib.get_close_matches(str(role), ROLES, n=1)), None)
        hint = f" Did you mean {near}?" if near else f" Known: {', '.join(ROLES)}."
        yield "error", f"the role {quoted(role)} is unknown.{hint}" if role is not None else f"no role.{hint}"
    if calls and role != "assistant":
        yield "error", "tool_calls in a message that is not the assistant's"
    elif calls and type(calls) is not list:
        yield "error", "tool_calls is no list"
    elif message.get("function_call") and not calls:
        yield "error", "function_call is the old form: write tool_calls"
        return
    if content is None:
        if calls and role == "assistant":
            yield "rnow", "no content: `rnow run` wants a text, which may be empty"
        else:
            yield "error", "no content"
    elif type(content) is list:
        yield from part_problems(content)
    elif type(content) is not str:
        yield "error", f"content is neither text nor a list of text parts, but {kind_of_value(content)}"
    if role == "assistant" and not calls and content is not None and is_blank(content):
        yield "error", "an empty answer without tool calls"
    if type(calls) is list:
        yield from call_problems(calls)


def part_problems(parts: list[Any]) -> Iterator[Problem]:
    """What is wrong with a content that is a list."""
    for part in parts:
        if part_text(part) is None:
            kind = part.get("type") if isinstance(part, dict) else kind_of_value(part)
            what = "images and other media are not supported" if kind in IMAGES else "only text parts can be trained"
            yield "error", f"content has a part of the type {quoted(kind)}: {what}"
            return


def call_problems(calls: list[Any]) -> Iterator[Problem]:
    """What is wrong with an assistant's tool calls, each for itself."""
    ids: set[Any] = set()
    for at, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if function is None or not isinstance(name, str) or not name.strip():
            yield "error", f"tool_calls[{at}] has no function with a name"
            continue
        arguments = function.get("arguments")
        if type(arguments) is dict:
            yield "rnow", "arguments as an object: `rnow` documents the JSON of one, as a string"
        elif arguments is not None and arguments != "" and not is_json_object(arguments):
            yield "error", f"tool_calls[{at}]: the arguments are not the JSON of an object"
        if id_ := call_id(call):
            if id_ in ids:
                yield "error", f"tool_calls[{at}]: the id {quoted(id_)} is there twice"
            ids.add(id_)


def order(messages: list[dict[str, Any]]) -> Iterator[Problem]:
    """What is wrong with how turns follow one another."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        only = "only a system message" if set(roles) == {"system"} else "no message of the assistant's"
        yield "error", f"{only}: there is nothing to learn"
        return
    if "user" not in roles:
        yield "error", "no message of the user's"
    if "system" in roles[1:]:
        yield "warning", "a system message that is not the first: many chat templates refuse it"
    if roles[-1] != "assistant":
        yield "warning", f"ends without an answer: the {roles[-1]} message at its end is not trained"
    for before, message in itertools.pairwise(messages):
        if before["role"] == message["role"] == "assistant" and not before.get("tool_calls"):
            yield "warning", "the assistant speaks twice in a row: many chat templates refuse it"
            return


def pairs(messages: list[dict[str, Any]]) -> Iterator[Problem]:
    """Tool results without a call, and calls without a result though the conversation goes on."""
    open_calls: list[str | None] = []  # ids of the calls that have no result yet; None for those without an id
    guessed = False
    for at, message in enumerate(messages):
        if message["role"] == "tool":
            id_ = message.get("tool_call_id")
            if not open_calls:
                yield "error", f"messages[{at}]: a tool result, and no call is open"
            elif isinstance(id_, str) and id_ in open_calls:
                open_calls.remove(id_)
            elif None in open_calls:  # calls without ids, or written as text: their order decides
                open_calls.remove(None)
            elif not id_:
                open_calls.pop(0)
                guessed = True
            else:
                yield "error", f"messages[{at}]: the tool_call_id {quoted(id_)} belongs to no open call just before it"
            continue
        if open_calls:
            ids = ", ".join(quoted(id_) for id_ in open_calls if id_) or "without an id"
            yield "error", f"messages[{at}]: the conversation goes on, and a call has no result ({ids})"
        open_calls = calls_of(message)
    if guessed:
        yield "warning", "a tool result without tool_call_id: it is taken for that of the first open call"


def calls_of(message: dict[str, Any]) -> list[str | None]:
    """The ids of a message's calls; None for one that has none, as those written as <tool_call> text."""
    if message["role"] != "assistant":
        return []
    if calls := message.get("tool_calls"):
        return [call_id(call) for call in calls]
    content = message["content"]
    return [None] * len(inline_calls(content)[1]) if type(content) is str and TOOL_CALL in content else []


# ---- parts of messages ---------------------------------------------------------------------------------------------


def call_id(call: dict[str, Any]) -> str | None:
    """A call's id; None where there is none."""
    id_ = call.get("id")
    return id_ if isinstance(id_, str) and id_ else None


def part_text(part: Any) -> str | None:
    """The text of a part of a content; None for one that is more or something else."""
    if type(part) is str:
        return part
    text = part.get("text") if type(part) is dict else None
    return text if type(text) is str and part.get("type") not in IMAGES else None


def is_blank(content: Any) -> bool:
    """Whether a content has no text in it."""
    if type(content) is str:
        return not content or content.isspace()
    texts = [part_text(part) for part in content] if type(content) is list else ["?"]
    return all(text is not None and not text.strip() for text in texts)


def is_json_object(text: Any) -> bool:
    """Whether a text is the JSON of an object."""
    try:
        return type(text) is str and type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        return False


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return type(value) is list and all(type(item) is str for item in value)


def has_schemas(tools: Any) -> bool:
    """Whether a row's `tools` holds schemas: a list of objects, or the JSON of one."""
    if type(tools) is str and tools:
        try:
            tools = orjson.loads(tools)
        except orjson.JSONDecodeError:
            return False
    return type(tools) is list and bool(tools) and all(type(tool) is dict for tool in tools)


def keys_of(row: dict[str, Any]) -> str:
    """A row's first keys, for the user."""
    return ", ".join(quoted(key) for key in list(row)[:8]) or "nothing"


def quoted(value: Any) -> str:
    """A value of the user's, shortened, in quotation marks."""
    text = str(value)
    return f'"{text}"' if len(text) <= 40 else f'"{text[:37]}..."'


def kind_of_value(value: Any) -> str:
    """What JSON calls a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
