"""What a call answers: structured JSON and a short text, no longer than a client takes, without control characters."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import orjson
from mcp.types import CallToolResult, TextContent

from .marked import safe, washer

MOST_TOKENS = 25_000
BYTES_PER_TOKEN = 2
"""Fewer than JSON and English have (about 3.5 and 4.5); Chinese and digits have about as many."""
MOST_BYTES = MOST_TOKENS * BYTES_PER_TOKEN
TEXT_BYTES, ERROR_BYTES = 12_000, 1_900
"""Of the text, which stands beside the structured answer, or alone, as an error."""
SHORTEST, FEWEST = 200, 5
"""Neither texts nor lists are cut below these many characters and items."""


def answer(
    value: Mapping[str, Any], text: str, shown: Callable[[str], str], *, is_error: bool = False
) -> CallToolResult:
    """A result for the client.

    shown: takes out of a text what a caller need not know (the machine's paths).   Both parts together stay below
    MOST_TOKENS; what is cut says so where it stood.
    """

    washed = washer()

    @cache  # most texts of a long answer are the same few keys
    def tidy(part: str) -> str:
        return shown(washed(part))

    short = cut_text(tidy(text), TEXT_BYTES)
    return CallToolResult(
        content=[TextContent(type="text", text=short)],
        structured_content=within(strings(value, tidy), MOST_BYTES - len(short.encode("utf-8", "replace"))),
        is_error=is_error,
    )


def failure(text: str, shown: Callable[[str], str]) -> CallToolResult:
    """An error that the caller can mend."""
    said = cut_text(shown(safe(cut_text(text, 2 * ERROR_BYTES))), ERROR_BYTES)  # it may quote an argument
    return CallToolResult(content=[TextContent(type="text", text=said)], is_error=True)


def strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every text in it changed, keys included. NaN and infinity, which JSON has not, become null."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strings(item, change) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def within(value: dict[str, Any], most_bytes: int) -> dict[str, Any]:
    """A JSON object of at most so many bytes: long texts and lists are cut, further each time, until it fits.

    Texts lose their middle and lists their end; both say how much. An object with too many keys for even that becomes
    {"cut": how large it was}.
    """
    size = len(dumped(value))
    if size <= most_bytes:
        return value
    longest, most = most_bytes // 2, 1000
    while longest > SHORTEST or most > FEWEST:
        longest, most = max(SHORTEST, longest // 2), max(FEWEST, most // 2)
        shorter = shortened(value, longest, most)
        if len(dumped(shorter)) <= most_bytes:
            return shorter
    kept = {key: item for key, item in value.items() if item is None or isinstance(item, bool | int | float)}
    kept |= {key: cut_text(item, SHORTEST) for key, item in value.items() if isinstance(item, str)}
    note = f"{size:,} bytes are more than one answer may have"
    return {**kept, "cut": note} if len(dumped(kept)) + len(note) + 20 <= most_bytes else {"cut": note}


def shortened(value: Any, longest: int, most: int) -> Any:
    """A JSON value whose texts have at most `longest` bytes and whose lists at most `most` items, about."""
    if isinstance(value, str):
        return cut_text(value, longest)
    if isinstance(value, dict):
        return {key: shortened(item, longest, most) for key, item in value.items()}
    if isinstance(value, list):
        rest = [f"... and {len(value) - most:,} more"] if len(value) > most else []
        return [*(shortened(item, longest, most) for item in value[:most]), *rest]
    return value


def cut_text(text: str, most_bytes: int) -> str:
    """A text of about so many bytes: beginning and end, and how much is missing between them."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most_bytes:
        return data.decode("utf-8")
    half = most_bytes // 2
    start, end = data[:half].decode("utf-8", "ignore"), data[-half:].decode("utf-8", "ignore")
    return f"{start}\n[... {len(data) - 2 * half:,} bytes left out ...]\n{end}"


def dumped(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
