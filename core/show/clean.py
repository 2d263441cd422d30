"""Text that is safe to look at: it can neither steer the terminal, nor reorder what is read, nor hide in it."""

import re

from ..data.text import printable

UNSEEN = re.compile(
    "[\xad\u180e\u200b\u2028\u2029\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)
"""Characters that show nothing, and can so carry words past a reader (joiners stay: scripts and emoji need them)."""


def clean(text: str) -> str:
    r"""`printable`, with invisible characters spelled out too: \u200b. Line ends become \n."""
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), printable(_lines(text)))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n") if "\r" in text else text


def clean_line(text: str, most: int = 300) -> str:
    """`clean` on one line, cut to `most` characters: for names and places, which must not look like the lines around
    them."""
    text = clean(text[: most + 1]).replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= most else text[: most - 1] + "…"
