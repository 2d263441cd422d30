"""Text that comes from files and models, made fit for a terminal and for UTF-8."""

import os
import re
from pathlib import Path
from typing import Any

# C0 and C1 controls but for tab and newline, and the marks that turn the direction of writing.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters as visible escapes, so that it can neither move a cursor nor hide words.

    "\\x1b[2J" becomes the four characters \\x1b and [2J. Tabs and newlines stay.
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str, most: int = 160) -> str:
    """`printable`, on one line and at most so many characters."""
    text = printable(" ".join(text[: 4 * most].split()))
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def as_code(text: str) -> str:
    """Any text as one piece of Markdown code on one line: a fence longer than what it holds."""
    text = one_line(SURROGATES.sub("\ufffd", text), 200) or " "
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"


def path_text(path: str | Path) -> str:
    """A path as text that UTF-8 can hold, with / between its parts; bytes that are not UTF-8 become U+FFFD."""
    text = os.fspath(path)
    text = text if text.isascii() else os.fsencode(text).decode("utf-8", "replace")
    return text if os.sep == "/" else text.replace(os.sep, "/")


def without_surrogates(value: Any) -> Any:
    """A JSON value whose texts hold no lone surrogates: each becomes U+FFFD. Raises RecursionError when too deep."""
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value
