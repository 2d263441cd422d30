"""What programs write for a terminal, as text for messages."""

import re

from ..data.text import printable

COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(text: str) -> str:
    """Without colours, and with other control characters as visible escapes. Tabs and newlines stay."""
    return printable(COLOURS.sub("", text))
