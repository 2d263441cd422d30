"""From flags, environment, `.env` and YAML to one validated command, with the origin of every value.

Order: flag > environment > .env > YAML > the project's own files > default. A field reads the environment only if its
`Option` names a key.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import InputError, UsageError
from .base import Command, flag
from .project import parse_yaml

Origins = dict[str, str]


def resolve(
    model: type[Command],
    flags: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    dotenv: Mapping[str, str | None] | None = None,
    config: Path | None = None,
    project: tuple[Mapping[str, Any], Origins] | None = None,
) -> tuple[Command, Origins]:
    """The command and where each of its values came from ("--model", "MAX_STEPS", "MAX_STEPS in .env", "config.yml",
    "default").

    project: what stands in the place of the values that the command finds in the user's project, with origins.
    Raises UsageError that names the flag, key or line whose value is not allowed.
    """
    values: dict[str, Any] = {}
    origins: Origins = {}

    def take(found: Mapping[str, Any], origin: Mapping[str, str]) -> None:
        for name, value in found.items():
            if name not in values:
                values[name], origins[name] = value, origin[name]

    take(flags, {name: flag(name) for name in flags})
    for source, where in ((environment or {}, ""), (dotenv or {}, " in .env")):
        for name in model.model_fields:
            key = next((key for key in model.option(name).env_keys if source.get(key)), None)
            if key is not None:
                take({name: source[key]}, {name: key + where})
    if config is not None:
        found, lines = read_yaml(config, list(model.model_fields))
        take(found, {name: f"{config}:{line}" for name, line in lines.items()})
    take(*(project or model.from_project(values)))
    for name in model.unmeant(origins):
        del values[name], origins[name]
    command = validated(model, values, origins)
    for name in model.model_fields:
        origins.setdefault(name, "default")
    return command, origins


def validated(model: type[Command], values: Mapping[str, Any], origins: Mapping[str, str]) -> Command:
    """The command of these values. Raises UsageError that names the places whence the wrong ones came."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, model, origins)) from None


def given(command: Command, origins: Mapping[str, str]) -> dict[str, Any]:
    """What stands otherwise than by default, as JSON: another process makes the same command of it with `validated`,
    whatever has become of the files and variables that it was read from."""
    return command.model_dump(mode="json", include={name for name, origin in origins.items() if origin != "default"})


def read_yaml(path: Path, known: list[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """The options in a YAML file (dashes and underscores are the same), and the line of each.

    Raises InputError for a missing file, broken YAML, or a key that no option has, with the nearest one.
    """
    content, node = parse_yaml(path)
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise InputError(path, 1, f"expected `option: value` lines, found {type(content).__name__}")
    lines: dict[str, int] = {}
    for key, _ in node.value if node else ():
        name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
        if name not in known:
            raise InputError(path, line, f'unknown option "{key.value}".{suggestion(name, known)}')
        if name in lines:
            raise InputError(path, line, f'"{key.value}" is there twice (first in line {lines[name]}).')
        lines[name] = line
    return {str(key).replace("-", "_"): value for key, value in content.items()}, lines


def suggestion(name: str, known: Iterable[str]) -> str:
    """' Did you mean "max_tokens"?', or nothing when no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


def explain(error: ValidationError, model: type[Command], origins: Mapping[str, str]) -> str:
    """One line per mistake, in the words of the place where the value came from."""
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "missing":
            keys = "".join(f" ({key})" for key in model.option(name).env_keys)
            lines.append(f"{flag(name)}{keys} is required. See --help.")
        elif problem["type"] == "extra_forbidden":
            lines.append(f'unknown option "{name}".{suggestion(name, model.model_fields)}')
        elif not name:
            lines.append(message)
        else:
            place = origins.get(name, flag(name))
            place = place if place == flag(name) else f"{place}: {name}"
            given = problem["input"]
            shown = given if isinstance(given, str) else json.dumps(given, default=str)
            lines.append(f"{place}: {message}" + ("" if model.option(name).hidden else f" (given: {shown})"))
    return "\n".join(lines)
