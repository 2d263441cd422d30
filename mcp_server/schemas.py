"""The JSON schemas of the tools, small enough to be read again and again: names, types, choices, a short sentence each.

What a schema leaves out (whole descriptions, bounds, environment keys, rarer options) is in `options_schema`, which a
client reads when it wants it.
"""

import re
from functools import cache
from typing import Any, get_args

from core.commands import Command, load
from core.commands.base import flag
from core.jobs import State

from .texts import TEXTS

TOOLS_BUDGET = 25_000
"""Bytes that the answer to tools/list may have."""

Schema = dict[str, Any]

NOT_FOR_CALLERS = ("program", "packages")
"""What an option names (`Option.names`) that no caller may set: it would start a program of the caller's, or install
something."""
SHORT = ("type", "enum", "items", "default")
"""What the schema of a tool keeps of an option's."""
FLAG = re.compile(r"(?<![\w-])--(no-)?([a-z][a-z0-9_-]*)")
LETTER = re.compile(r"(?<![\w-])-([a-zA-Z])(?![\w-])")
OF_A_SHELL = re.compile(r",? or - for standard input|[;,] (?:repeat it|may be repeated|also repeated)\b")
"""What descriptions say that is true of a command line only."""

JOBS: dict[str, Schema] = {
    "list_jobs": {
        "state": {"type": "string", "enum": ["unfinished", *get_args(State)]},
        "tool": {"type": "string", "description": "Only started by this tool."},
        "limit": {"type": "integer", "default": 20},
        "offset": {"type": "integer", "default": 0},
    },
    "get_job": {
        "job_id": {"type": "string"},
        "wait_s": {"type": "number", "default": 0, "description": "Wait so long for its end, 45 at most."},
        "log_lines": {"type": "integer", "default": 20, "description": "Last lines of its log, 200 at most."},
    },
    "cancel_job": {"job_id": {"type": "string"}},
}
"""The arguments of the tools that no command stands behind."""


def input_schema(name: str) -> Schema:
    """What a tool takes: the options marked for MCP, `config` for all others, and what every start of a job takes.

    Required is what has neither a default nor an environment key: a call without it may still be complete.
    """
    if name in JOBS:
        return _arguments(JOBS[name], ["job_id"] if "job_id" in JOBS[name] else [])
    command = command_of(name)
    shown: Schema = {}
    for field, info in command.ordered_fields():
        option = command.option(field)
        if option.mcp:
            whole = _option(command, field)
            text = option.mcp if isinstance(option.mcp, str) else _first_sentence(str(whole["description"]))
            shown[field] = {key: whole[key] for key in SHORT if key in whole} | {"description": text}
            if info.default is False:
                del shown[field]["default"]  # of a switch nothing else is expected
    shown["config"] = {"type": "object", "description": f"Other options: options://{name}."}
    if TEXTS[name].asks_a_teacher:
        shown["confirm"] = {"type": "string", "description": "Token of needs_confirmation."}
    shown["client_request_id"] = {"type": "string", "description": "Same id, same job."}
    needed = [
        field for field, info in command.model_fields.items() if info.is_required() and not command.option(field).env
    ]
    return _arguments(shown, needed)


def options_schema(name: str) -> Schema:
    """Every option of a tool with its whole description, bounds, default and environment keys."""
    command = command_of(name)
    fields = [field for field in command.model_fields if command.option(field).names not in NOT_FOR_CALLERS]
    options = {field: _option(command, field) for field in fields}
    for field, option in options.items():
        option["group"] = command.option(field).group
        if keys := command.option(field).env_keys:
            option["environment"] = list(keys)
    needed = [field for field, info in command.model_fields.items() if info.is_required()]
    return {
        "title": f"Options of {name}: as arguments where the tool shows them, the others in config",
        "description": words(" ".join((command.__doc__ or "").split()), command),
        **_arguments(options, needed),
        "additionalProperties": False,
    }


def job_schema() -> Schema:
    """What every tool answers that starts, follows or ends a job."""
    text, thing = {"type": "string"}, {"type": ["object", "null"]}
    return {
        "type": "object",
        "properties": {"job_id": text, "state": text, "progress": thing, "result": thing, "next": text},
        "required": ["state", "next"],
    }


def jobs_schema() -> Schema:
    """What list_jobs answers."""
    jobs = {"type": "array", "items": {"type": "object"}}
    properties = {"jobs": jobs, "more": {"type": "boolean"}}
    return {"type": "object", "properties": properties, "required": ["jobs", "more"]}


def command_of(tool: str) -> type[Command]:
    """The command that a tool runs. Raises LookupError for a tool behind which there is none."""
    name = TEXTS[tool].command
    if name is None:
        raise LookupError(f"{tool} runs no command")
    return load(name)


def words(text: str, command: type[Command]) -> str:
    """A text about a command line in the words of a tool: `--max-tokens` is max_tokens, `--no-dedupe` dedupe=false."""
    names = {flag(field): field for field in command.model_fields}
    letters = {short: field for field in command.model_fields if (short := command.option(field).short)}

    def named(found: re.Match[str]) -> str:
        off, name = found.groups()
        if off and f"--no-{name}" not in names:
            return f"{names.get('--' + name, name.replace('-', '_'))}=false"
        return names.get(found[0], found[0][2:].replace("-", "_"))

    text = FLAG.sub(named, OF_A_SHELL.sub("", text))
    return LETTER.sub(lambda found: letters.get(found[0], found[0]), text)


@cache
def _properties(command: type[Command]) -> Schema:
    return command.model_json_schema()["properties"]


def _option(command: type[Command], field: str) -> Schema:
    """One option as a schema: null is said by its absence alone, and no word stands there twice."""
    schema = _without_null(_properties(command)[field])
    if schema.get("default") in (None, ""):  # nothing, whichever way the command says that
        schema.pop("default", None)
    description = command.model_fields[field].description or ""
    return schema | {"description": words(" ".join(description.split()), command)}


def _without_null(schema: Schema) -> Schema:
    """Without titles; `anyOf` of a type and null is the type, `anyOf` of several choices all of them."""
    plain = {key: value for key, value in schema.items() if key not in ("title", "format", "anyOf")}
    if "items" in plain:
        plain["items"] = _without_null(plain["items"])
    kinds = [_without_null(kind) for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) > 1:  # choices, some of them in a list of their own
        values = [value for kind in kinds for value in kind.get("enum", [kind.get("const")])]
        return {"type": kinds[0]["type"], "enum": values} | plain
    return kinds[0] | plain if kinds else plain


def _arguments(properties: Schema, required: list[str]) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z])|;\s", text)[0].rstrip(".") + "."
