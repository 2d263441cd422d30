"""The text of `--help`, from a command model alone.

Not cyclopts' own, which costs more processor time than importing pydantic and cyclopts together, for boxes around it.
"""

import inspect
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from .base import Command, Option, choices, flag

LONGEST_NAMES = 26
LONGEST_CHOICES = 40


class Line(NamedTuple):
    """An option in the help. names: "--output, -o PATH".   text: what it means, its choices and default."""

    group: str
    names: str
    text: str
    required: bool


def help_text(command: str, model: type[Command], general: Iterable[Line], ending: str, width: int) -> str:
    """The whole help: usage, description, options by group, examples, and `ending`. Texts are wrapped at `width`."""
    lines = [option_line(name, model.option(name), info) for name, info in model.ordered_fields()] + [*general]
    required = [line.names.replace(",", "").split() for line in lines if line.required]
    usage = " ".join([command, *(f"{names[0]} {names[-1]}" for names in required), "[OPTIONS]"])
    about = [" ".join(part.split()) for part in (inspect.getdoc(model) or "").split("\n\n")]
    blocks = [f"Usage: {usage}", *(wrapped(part, width) for part in about)]
    for group in dict.fromkeys(line.group for line in lines):
        blocks.append("\n".join([f"{group}:", *(shown(line, width) for line in lines if line.group == group)]))
    blocks.append("\n".join(["Examples:", *(f"  {example}" for example in model.examples)]))
    return "\n\n".join([*blocks, wrapped(ending, width)])


def shown(line: Line, width: int) -> str:
    """The names, and the text beside them; below them, where they are long."""
    indent = " " * (LONGEST_NAMES + 4)
    text = wrapped(line.text, width, indent)
    if len(line.names) > LONGEST_NAMES:
        return f"  {line.names}\n{text}"
    return f"  {line.names:<{LONGEST_NAMES + 2}}{text[len(indent) :]}"


def wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def option_line(name: str, option: Option, info: FieldInfo) -> Line:
    """A field of a command."""
    parts = [info.annotation, *get_args(info.annotation)]
    parts += [inner for part in parts if get_origin(part) is list for inner in get_args(part)]
    kinds = {part for part in parts if isinstance(part, type) and get_origin(part) is None}
    names = [f"[{flag(name)}]" if option.positional else flag(name), *([option.short] if option.short else [])]
    unset = info.is_required() or info.default_factory is not None or info.default is None
    default = "" if unset else str(info.default)
    if bool in kinds and default:
        names.append("--no-" + flag(name)[2:])
        default = "on" if info.default else ""
    text = info.description or ""
    if allowed := choices(info):
        short = "|".join(allowed)
        text += f" [{short if len(short) <= LONGEST_CHOICES else ' | '.join(allowed)}]"  # a line may end between them
    if option.env_keys:
        text += f" [env: {', '.join(option.env_keys)}]"
    if default:
        text += f" [default: {default}]"
    if info.is_required():
        text += " [required]"
    return Line(option.group, ", ".join(names) + (" NAME" if allowed else metavar(kinds)), text, info.is_required())


def metavar(kinds: set[type[Any]]) -> str:
    """What stands for a value: " INT"; nothing for a switch."""
    known = {bool: "", int: " INT", float: " NUMBER", Path: " PATH", str: " TEXT"}
    return next((word for kind, word in known.items() if kind in kinds), " JSON")
