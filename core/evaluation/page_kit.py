"""What pages of reports are made of: one HTML file, no network, no foreign script, every text escaped.

The page's own style and script are the only ones that its Content-Security-Policy lets run, by their hashes; pictures
are inside the file.
"""

import base64
import hashlib
import html as markup
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..data.text import printable, without_surrogates

MOST_UNBROKEN = 24
"""Characters of a word in a table."""
MOST_OF_A_TEXT = 3_000
"""Characters of a prompt or an answer; samples.jsonl has all of it."""


@dataclass(frozen=True)
class Cell:
    """text, and a second line below it, both not yet escaped.   by: what the column is sorted by, if not the text."""

    text: str
    below: str = ""
    by: float | str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Column:
    """number: to the right, and sorted as a number."""

    name: str
    number: bool = False


@dataclass(frozen=True)
class Plot:
    """name: of its file.   light, dark: data URIs, for light and dark pages."""

    name: str
    light: str
    dark: str | None = None


def document(name: str, about: str, headline: Iterable[str], body: Iterable[str]) -> str:
    """A whole page. name: its title.   about: a line below it.   headline: what a reader must know.   body: sections,
    as markup."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    title = escaped(name)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n',
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n",
        f'<header class="wrap"><h1>{title}</h1><p class="soft">{escaped(about)}</p>',
        '<ul class="headline">',
        *(f"<li>{escaped(line)}</li>" for line in headline),
        "</ul>",
        '</header>\n<main class="wrap">\n',
        *body,
        f"</main>\n<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def escaped(text: str) -> str:
    """Text that is nothing but text, in an element or in a quoted attribute."""
    return markup.escape(printable(text.replace("\r\n", "\n")), quote=True)


def table(label: str, columns: list[Column], rows: Iterable[list[Cell]]) -> Iterator[str]:
    """A table that the script sorts: `data-by` of a cell, or else its text."""
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(label)}"><table><thead><tr>'
    for column in columns:
        number = ' class="number"' if column.number else ""
        yield f'<th scope="col"{number}><button type="button">{escaped(column.name)}</button></th>'
    yield "</tr></thead><tbody>\n"
    for row in rows:
        yield "<tr>"
        yield from (_cell(cell, column) for cell, column in zip(row, columns, strict=True))
        yield "</tr>\n"
    yield "</tbody></table></div>\n"


def _cell(cell: Cell, column: Column) -> str:
    by = cell.by if cell.by is not None or column.number else cell.text
    if isinstance(by, float) and math.isnan(by):
        by = None
    write = escaped if column.number else _breakable
    text = f'<span class="mark {cell.kind}">{escaped(cell.text)}</span>' if cell.kind else write(cell.text)
    below = f"<small>{write(cell.below)}</small>" if cell.below else ""
    number = ' class="number"' if column.number else ""
    return f'<td{number} data-by="{"" if by is None else escaped(str(by))}">{text}{below}</td>'


def _breakable(text: str) -> str:
    """Text in which a line may break behind _ and /, and anywhere only where a part is very long."""
    shown = escaped(text).replace("_", "_<wbr>").replace("/", "/<wbr>")
    longest = max(map(len, re.split(r"[\s_/]", text)))
    return shown if longest <= MOST_UNBROKEN else f'<span class="anywhere">{shown}</span>'


def section(title: str, name: str, folded: str = "") -> Iterator[str]:
    """Opens a section; with `folded` also a fold, which the caller closes."""
    yield f'<section id="{name}">'
    if folded:
        yield f'<details><summary><h2>{title}</h2><span class="soft">{escaped(folded)}</span></summary>'
    else:
        yield f"<h2>{title}</h2>"


def notes(lines: Iterable[str]) -> Iterator[str]:
    """A section of notes, if there are any."""
    listed = [f"<li>{escaped(line)}</li>" for line in lines]
    if listed:
        yield from section("Notes", "notes")
        yield from ("<ul>", *listed, "</ul></section>\n")


def pictures(plots: list[Plot], caption: Callable[[str], str]) -> Iterator[str]:
    """A section of plots, if there are any.   caption: of a file name."""
    if not plots:
        return
    yield from section("Plots", "plots")
    for plot in plots:
        about = escaped(caption(plot.name))
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{plot.dark}">' if plot.dark else ""
        yield f"<figure><picture>{source}"
        yield f'<img src="{plot.light}" alt="{about}"></picture></figure>\n'
    yield "</section>\n"


def answer_text(text: str | None) -> str:
    """What a model or a row says, its end cut off where it is long. None: not answered."""
    if not text:
        return f'<div class="text none">{"not answered" if text is None else "empty"}</div>'
    left = len(text) - MOST_OF_A_TEXT
    note = f'<div class="cut">… {left:,} more characters, which samples.jsonl has</div>' if left > 0 else ""
    return f'<div class="text">{escaped(text[:MOST_OF_A_TEXT])}</div>{note}'


def prompt_text(prompt: str) -> str:
    """A prompt, its beginning cut off where it is long: the question stands at its end, after examples."""
    left = len(prompt) - MOST_OF_A_TEXT
    note = f'<div class="cut">{left:,} characters before, which samples.jsonl has …</div>' if left > 0 else ""
    return f'<div class="text prompt">{note}{escaped(prompt[-MOST_OF_A_TEXT:])}</div>'


def glossary(terms: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """A section that explains terms: (term, explanation, source or "")."""
    yield from section("How to read it", "glossary")
    yield "<dl>"
    for term, explanation, source in terms:
        cited = f' <span class="soft">{escaped(source)}</span>' if source else ""
        yield f"<dt>{escaped(term)}</dt><dd>{escaped(explanation)}{cited}</dd>"
    yield "</dl></section>\n"


def settings(options: Mapping[str, Any], more: Iterable[tuple[str, str]] = ()) -> Iterator[str]:
    """A fold with options and versions.   more: (name, text) of what else is worth keeping."""
    yield from section("Settings", "settings", folded=f"{len(options):,} options and versions")
    yield "<dl>"
    told = ((str(key), value if isinstance(value, str) else _as_json(value)) for key, value in options.items())
    for name, text in (*told, *more):
        yield f"<dt>{escaped(name)}</dt><dd>{escaped(text)}</dd>"
    yield "</dl></details></section>\n"


def _as_json(value: object) -> str:
    return orjson.dumps(without_surrogates(value), option=orjson.OPT_NON_STR_KEYS, default=str).decode()
