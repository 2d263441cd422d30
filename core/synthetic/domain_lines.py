"""What is wrong with a domain file, in words, with lines."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ..commands.resolve import suggestion

if TYPE_CHECKING:
    import yaml

Place = Sequence[int | str]
"""Keys and numbers from the top of a file to a value, as pydantic gives them."""


def line_at(node: "yaml.Node", place: Place, old_keys: Mapping[str, str]) -> int:
    """The line of a value, from 1; that of what it belongs to where it is not in the file itself.

    In a list that was written as an object ({name: weight}), item n is its n-th key.
    """
    line = node.start_mark.line + 1
    for part in place:
        found = _below(node, part, old_keys)
        if found is None:
            break
        line, node = found
    return line


def _below(node: "yaml.Node", part: int | str, old_keys: Mapping[str, str]) -> "tuple[int, yaml.Node] | None":
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if str(part) in (key.value, old_keys.get(str(key.value))):
                return key.start_mark.line + 1, value
        if isinstance(part, int) and part < len(node.value):
            key, value = node.value[part]
            return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            if part in (number, item.value):
                return item.start_mark.line + 1, item
    return None


def repeated_keys(node: "yaml.Node") -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of every key that stands twice in one object."""
    import yaml

    seen: set[int] = set()  # an anchor may be used in many places, and within itself

    def walk(node: yaml.Node) -> Iterator[tuple[int, str]]:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                yield from walk(item)
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line, name = key.start_mark.line + 1, str(key.value)
                if name in lines:
                    yield line, f'"{name}" is there twice (first in line {lines[name]}). Keep one of them.'
                lines.setdefault(name, line)
                yield from walk(value)

    yield from walk(node)


def mistakes(
    error: ValidationError, node: "yaml.Node", models: Mapping[str, type[BaseModel]], old_keys: Mapping[str, str]
) -> list[tuple[int, str]]:
    """(line, what is wrong) for each, in the order of their lines.

    models: what stands below a key, by the key; "" for the file as a whole.   old_keys: accepted for others.
    """
    found: dict[tuple[int, str], None] = {}
    for problem in error.errors():
        place: Place = problem.get("ctx", {}).get("at", problem["loc"])
        owner = next((models[str(part)] for part in reversed(place[:-1]) if part in models), models[""])
        text = _words(place, problem["type"], problem["msg"], problem["input"], owner)
        found[line_at(node, place, old_keys), text] = None
    return sorted(found)


def _words(place: Place, kind: str, message: str, given: Any, owner: type[BaseModel]) -> str:
    name = next((str(part) for part in reversed(place) if isinstance(part, str) and part != "[key]"), "")
    message = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f'unknown key "{name}".{suggestion(name, owner.model_fields) or known(owner)}'
    if kind == "missing":
        return f"{name} is missing: {owner.model_fields[name].description}"
    if kind in ("wrong_at", "value_error"):
        return message if kind == "wrong_at" else f"{name}: {message}."
    if given is None:
        return f"{name} has no value. Give it one, or leave the line out."
    if kind == "string_type" and isinstance(given, dict):
        return f"{name}: expected text, found {_shown(given)}: a colon makes a key. Put the text in quotes."
    if kind == "string_type":
        return f"{name}: expected text, found {_shown(given)}. Put it in quotes if it is meant as text."
    if kind == "string_too_short":
        return f"{name}: a text is empty."
    if kind == "list_type":
        return f"{name}: expected a list (lines that begin with -), found {_shown(given)}."
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"{name}: expected `key: value` lines, found {_shown(given)}."
    if kind == "literal_error":
        near = suggestion(str(given), re.findall(r"'(\w+)'", message))
        return f"{name}: {_lower(message)}, not {_shown(given)}.{near}"
    return f"{name}: {_lower(message)} (found {_shown(given)})."


def known(owner: type[BaseModel]) -> str:
    """' Known here: name, ...'"""
    return " Known here: " + ", ".join(owner.model_fields) + "."


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
