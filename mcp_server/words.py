"""What commands say to people at a terminal, in the words of a caller of tools."""

import re

from core.commands import COMMANDS, Command

from .answers import TEXT_BYTES, cut_text
from .schemas import words
from .texts import TEXTS

COMMAND_OF = {tool: text.command for tool, text in TEXTS.items() if text.command is not None}
"""Tool -> the command that it starts."""
LONGEST_GIVEN = 200
"""Characters of a wrong value that are shown again."""
INSTALL = re.compile(r"(\S*python\S* (?:'[^'\n]*doctor\.py'|\S*doctor\.py) --install [\w,]+)")
"""A line for a terminal, which no tool can do: it stays as it is."""
TOOL_OF = {command: tool for tool, command in COMMAND_OF.items()}


def told(text: str, command: type[Command]) -> str:
    """An error or a note with fields in the place of flags and tools in the place of scripts."""
    parts = INSTALL.split(cut_text(text, 2 * TEXT_BYTES))
    return "".join(part if place % 2 else _told(part, command) for place, part in enumerate(parts))


def _told(text: str, command: type[Command]) -> str:
    text = re.sub(r" ?See --help\.| \(see \.env\.example\)", "", text)
    text = re.sub(rf"\(given: ([^\n]{{{LONGEST_GIVEN}}})[^\n]+", r"(given: \1...)", text)
    text = re.sub(r"(?:python )?(?:scripts/)?\b(\w+)\.py\b", _tool, words(text, command))
    return text.replace("he same command", "he same call")


def _tool(found: re.Match[str]) -> str:
    name = "read_rows" if found[1] == "show" else TOOL_OF.get(found[1], found[1])
    return name if found[1] in COMMANDS else found[0]


def summed_up(text: str, command: type[Command]) -> str:
    """A result's summary without its last advice, which names command lines: answers have their own `next`."""
    kept = [line for line in text.splitlines() if not re.match(r"\s*next:", line, re.IGNORECASE)]
    return told("\n".join(kept), command)
