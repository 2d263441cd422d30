"""What reports in GitHub Markdown are made of: tables, pictures, folds; every text in them is nothing but text."""

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from ..data.text import printable, without_surrogates
from .page_kit import Column

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#&@])")
AT_THE_START = re.compile(r"^(\d+)?([.)+=-])")


def document(name: str, about: str, headline: Iterable[str], body: Iterable[str]) -> str:
    """A whole text. name: its title.   about: a line below it.   headline: what a reader must know.   body: lines."""
    return "\n".join([f"# {paragraph(name)}", f"\n{paragraph(about)}\n", *bullets(headline), *body]) + "\n"


def text(found: str) -> str:
    """Text that is nothing but text, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(printable(found).split()))


def paragraph(found: str) -> str:
    """The same where a line begins: 1. and - would make it a list."""
    return AT_THE_START.sub(r"\1\\\2", text(found))


def bullets(lines: Iterable[str]) -> Iterator[str]:
    """A list."""
    yield from (f"- {paragraph(line)}" for line in lines)


def notes(lines: Sequence[str]) -> Iterator[str]:
    """A section of notes, if there are any."""
    if lines:
        yield "\n## Notes\n"
        yield from bullets(lines)


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table. A column of numbers holds no text of others."""
    yield f"| {' | '.join(text(column.name) for column in columns)} |"
    yield f"| {' | '.join('--:' if column.number else '---' for column in columns)} |"
    for row in rows:
        cells = (cell if column.number else text(cell) for cell, column in zip(row, columns, strict=True))
        yield f"| {' | '.join(cells)} |"


def plots(names: Sequence[str], caption: Callable[[str], str]) -> Iterator[str]:
    """A section of plots, linked from plots/, for light and dark pages.   caption: of a file name."""
    if names:
        yield "\n## Plots"
    for name in names:
        light, dark = (quote(each) for each in (name, name.removesuffix(".png") + ".dark.png"))
        about = caption(name)
        yield f"\n{paragraph(about)}\n\n<picture>"
        yield f'<source media="(prefers-color-scheme: dark)" srcset="plots/{dark}">'
        yield f'<img alt="{html.escape(printable(about))}" src="plots/{light}">\n</picture>'


def glossary(terms: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """A section that explains terms: (term, explanation, source or "")."""
    yield "\n## How to read it\n"
    for term, explanation, source in terms:
        yield f"- **{text(term)}.** {text(explanation)}{f' ({text(source)})' if source else ''}"


def settings(options: Mapping[str, Any]) -> Iterator[str]:
    """A fold with options and versions as JSON, in a fence longer than any within it."""
    yield "\n<details>\n<summary>Settings</summary>\n"
    found = orjson.dumps(
        without_surrogates(dict(options)), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str
    )
    shown = printable(found.decode())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    yield f"{fence}json\n{shown}\n{fence}\n\n</details>"
