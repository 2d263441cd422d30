"""Entries as one HTML file: no network, no foreign script, everything that comes from a row escaped.

The page's own style and script are the only ones that its Content-Security-Policy lets run, by their hashes.
"""

import base64
import hashlib
import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..commands.show import Overview, Shown
from .clean import clean, clean_line
from .entries import Broken, Entry
from .messages import Message, Part, as_text
from .overview import overview_lines
from .terminal import badges, tool_names

MOST_OF_A_PART = 200_000
"""Characters of one text; a browser gets slow long before a row does."""
MOST_OF_A_PAGE = 60_000_000
"""Characters after which no further entry is added."""
MOST_OF_A_HINT = 160
"""Characters of a call or a result that its folded line shows."""


def page(title: str, result: Shown, picked: list[Entry | Broken], *, full: bool, search: str) -> tuple[str, int]:
    """(the whole page, how many of `picked` it holds). full: nothing is folded. search: what its search box holds."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    articles: list[str] = []
    size = 0
    for entry in picked:
        if size > MOST_OF_A_PAGE:
            break
        articles.append("".join(_broken(entry) if isinstance(entry, Broken) else _entry(entry, full)))
        size += len(articles[-1])
    name = escaped(title)
    unfold = ' data-full="">Fold all' if full else ">Unfold all"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n',
        f"<title>{name}</title>\n<style>{style}</style>\n</head>\n<body>\n",
        f'<header class="wrap"><h1>{name}</h1>{_head(result.overview, len(articles), result)}</header>\n',
        '<div class="bar" id="tools" hidden><div class="wrap" role="search">',
        f'<input type="search" id="search" placeholder="Search" aria-label="Search" value="{escaped(search)}" '
        'autocomplete="off" spellcheck="false">',
        '<label><input type="checkbox" id="failed">Failed only</label>',
        f'<button type="button" id="unfold"{unfold}</button>',
        '<output id="found" for="search failed" aria-live="polite"></output></div></div>\n',
        '<main class="wrap">\n',
        *articles,
        "</main>\n",
        '<footer class="wrap"><kbd>/</kbd> search, <kbd>j</kbd> <kbd>k</kbd> next and previous, <kbd>f</kbd> failed '
        "only, <kbd>u</kbd> unfold all, <kbd>Esc</kbd> clears the search</footer>\n",
        f"<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "".join(parts), len(articles)


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def escaped(text: str) -> str:
    """Text that is nothing but text, in an element or in a quoted attribute."""
    return html.escape(clean(text), quote=True)


def _head(overview: Overview, shown: int, result: Shown) -> str:
    noun = "rows" if overview.kind == "rows" else "rollouts"
    count = f"{overview.entries:,} {noun}" if overview.kind in ("rollouts", "rows") else f"one {overview.kind}"
    if not overview.whole:
        count = f"the first {count}"
    if shown < result.matching or result.matching < overview.entries:
        count += f"; {result.matching:,} chosen, {shown:,} on this page"
    lines = [f'<p class="count">{count}</p>', "<dl>"]
    for name, figures in overview_lines(overview):
        rate = _rate(overview) if name == "success" else ""
        lines.append(f"<dt>{name}</dt><dd>{escaped(figures)}{rate}</dd>")
    lines.append("</dl>")
    if overview.unreadable:
        names = "".join(
            f"<dt>{escaped(bad.place)}</dt><dd>{escaped(bad.reason)}</dd>" for bad in overview.unreadable_examples
        )
        more = overview.unreadable - len(overview.unreadable_examples)
        rest = f"<p>and {more:,} more</p>" if more else ""
        lines.append(
            f'<details class="unreadable"><summary>What is unreadable</summary><dl class="fields">{names}</dl>{rest}'
            "</details>"
        )
    return "".join(lines)


def _rate(overview: Overview) -> str:
    """A bar of the success rate with its interval, as a picture that needs no style attribute."""
    success = overview.success
    if success is None:
        return ""
    rate, low, high = (256 * x for x in (success.successes / success.judged, success.low, success.high))
    return (
        '<svg class="rate" viewBox="0 0 256 14" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="all" y="3" width="256" height="8" rx="4"/>'
        f'<rect class="part" y="3" width="{rate:.1f}" height="8" rx="4"/>'
        f'<path class="interval" fill="none" d="M{low:.1f} 1V13M{low:.1f} 7H{high:.1f}M{high:.1f} 1V13"/></svg>'
    )


def _broken(broken: Broken) -> Iterator[str]:
    yield f'<article id="r-{broken.index}" tabindex="-1" data-failed=""><div class="head">'
    yield f'<h2><a href="#r-{broken.index}">#{broken.index}</a>{escaped(clean_line(broken.place))}</h2>'
    yield f'<span class="mark bad">unreadable</span></div><div class="text">{escaped(broken.reason)}</div></article>\n'


def _entry(entry: Entry, full: bool) -> Iterator[str]:
    failed = ' data-failed=""' if entry.failed else ""
    yield f'<article id="r-{entry.index}" tabindex="-1"{failed}><div class="head">'
    yield f'<h2><a href="#r-{entry.index}">#{entry.index}</a>{escaped(entry.title)}</h2><span class="marks">'
    marks = [
        f'<span class="mark {style}">{escaped(text)}</span>' if style else f"<span>{escaped(text)}</span>"
        for style, text in badges(entry)
    ]
    yield "".join(marks)
    yield f'</span><span class="place">{escaped(clean_line(entry.place))}</span></div>'
    for message in entry.messages:
        yield from _message(message, full)
    tools = {"tools": entry.schemas if full else tool_names(entry.schemas)} if entry.schemas else {}
    if entry.messages:
        if entry.fields or tools:
            opened = " open" if full else ""
            yield f'<details class="about"{opened}><summary><span class="hint">metadata</span></summary>'
            yield _fields({**entry.fields, **tools})
            yield "</details>"
    else:
        yield _fields({**entry.fields, **tools}, "fields")
    yield "</article>\n"


def _message(message: Message, full: bool) -> Iterator[str]:
    known = message.role if message.role in ("system", "user", "assistant", "tool") else "other"
    yield f'<div class="turn r-{known}"><div class="role">{escaped(clean_line(message.role))}</div><div class="said">'
    for part in message.parts:
        yield _part(part, full)
    if not any(part.text or part.kind != "text" for part in message.parts):
        yield '<span class="none">empty</span>'
    yield "</div></div>"


def _part(part: Part, full: bool) -> str:
    text, cut = _capped(part.text)
    if part.kind == "text":
        return f'<div class="text">{text}</div>{cut}' if text else ""
    flat = " ".join(part.text[:600].split())
    if part.kind == "reasoning":
        head, shown = "reasoning", f'<span class="hint">{len(part.text.split()):,} words</span>'
    else:
        head = part.name or ("result" if part.kind == "result" else "?")
        shown = f'<span class="hint code">{escaped(flat[:MOST_OF_A_HINT])}</span>' if flat else ""
    if part.failed:
        shown = '<span class="mark bad">error</span>' + shown
    if not text:
        return f'<div class="{part.kind} plain"><b>{escaped(clean_line(head))}</b>{shown}</div>'
    opened = " open" if full else ""
    broken = " broken" if part.failed else ""
    return (
        f'<details class="{part.kind}{broken}"{opened}><summary><b>{escaped(clean_line(head))}</b>{shown}</summary>'
        f"<pre>{text}</pre>{cut}</details>"
    )


def _capped(text: str) -> tuple[str, str]:
    """(escaped text, a note when its end was left out)."""
    left = len(text) - MOST_OF_A_PART
    if left <= 0:
        return escaped(text), ""
    note = f'<div class="cut">… {left:,} more characters, which only the file holds</div>'
    return escaped(text[:MOST_OF_A_PART]), note


def _fields(fields: dict[str, Any], name: str = "", depth: int = 3) -> str:
    """A list of names and values; an object's own fields in a list within, to a depth."""
    lines = [f'<dl class="{name}">' if name else "<dl>"]
    for key, value in fields.items():
        if isinstance(value, dict) and value and depth > 1:
            shown, kind = _fields(value, depth=depth - 1), ""
        else:
            text, cut = _capped(as_text(value))
            kind = "" if isinstance(value, str) or "\n" not in text else ' class="code"'
            shown = text + cut
        lines.append(f"<dt>{escaped(clean_line(str(key)))}</dt><dd{kind}>{shown}</dd>")
    return "".join([*lines, "</dl>"])
