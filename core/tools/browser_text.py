"""Texts between the teacher and the embedded browser."""

import re

from .hosts import shown

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def completed(url: str) -> str:
    """With the scheme that is meant where there is none, as in an address bar."""
    url = url.strip()
    if re.match(r"[\w.-]+(:\d+)?([/?#]|$)", url):
        local = re.match(r"(localhost|127\.|\d+\.\d+\.\d+\.\d+)", url)
        return f"{'http' if local else 'https'}://{url}"
    return url


def found(lines: list[str], text: str, most: int = 20) -> str:
    """The lines with a text, each under its ancestors and with its neighbours."""
    hits = [index for index, line in enumerate(lines) if text.lower() in line.lower()]
    if not hits:
        return f'No matches found for "{shown(text)}".'
    keep: set[int] = set()
    for hit in hits[:most]:
        keep.update(range(max(0, hit - 1), min(len(lines), hit + 2)))
        depth = _depth(lines[hit])
        for index in range(hit - 1, -1, -1):
            if _depth(lines[index]) < depth:
                keep.add(index)
                depth = _depth(lines[index])
    shown_lines: list[str] = []
    for index in sorted(keep):
        if index and index - 1 not in keep:
            shown_lines.append("...")
        shown_lines.append(lines[index])
    count = f"{len(hits)} match{'' if len(hits) == 1 else 'es'}"
    more = f", the first {most} are shown" if len(hits) > most else ""
    return f'Found {count} for "{shown(text)}"{more}:\n' + "\n".join(shown_lines)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def first_lines(message: str) -> str:
    """A browser's own words, without colours and not endless."""
    return _ANSI.sub("", message).strip()[:1000]


def clean(text: str) -> str:
    """Text that can be written anywhere: no control characters, no half characters."""
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode("utf-8")


def cut(text: str, limit: int) -> str:
    """At most about `limit` characters, whole lines where there are any, and a word about what is missing."""
    if len(text) <= limit:
        return text
    kept = text[:limit]
    kept = kept[: max(kept.rfind("\n"), 0)] or kept
    return f"{kept}\n[cut: {len(kept)} of {len(text)} characters. browser_find looks through the whole page.]"
