"""Entries as text for a terminal: wrapped to its width, coloured where it shows colours, folded where it is long."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..commands.show import Overview
from .clean import clean, clean_line
from .entries import GOOD, Broken, Entry
from .messages import Message, Part, as_text
from .overview import overview_lines

STYLES = {
    "bold": "1",
    "dim": "2",
    "system": "2",
    "user": "1;34",
    "assistant": "1;32",
    "tool": "33",
    "call": "36",
    "good": "32",
    "bad": "31",
    "hit": "7",
}
LABEL = 11
"""Columns of the roles and names on the left."""
FOLDED_LINES = {"text": 60, "result": 6, "reasoning": 3, "call": 8, "field": 6}
"""Lines shown of each kind of part when it is folded."""
MOST_CHARACTERS = 20_000
"""Of one part, when it is folded: nobody wraps 50 MB to see six lines."""


@dataclass(frozen=True)
class Screen:
    """How text is laid out. hits: what --search looks for."""

    width: int = 80
    color: bool = False
    full: bool = False
    hits: re.Pattern[str] | None = None

    def style(self, name: str, text: str) -> str:
        """Text in a style; `text` must be clean already."""
        return f"\x1b[{STYLES[name]}m{text}\x1b[0m" if self.color and text else text

    def overview(self, title: str, overview: Overview) -> str:
        """The head: what the input holds."""
        noun = {"rollouts": "rollouts", "rows": "rows", "rollout": "rollout"}.get(overview.kind, overview.kind)
        count = f"{overview.entries:,} {noun}" if overview.kind in ("rollouts", "rows") else noun
        if not overview.whole:
            count = f"the first {count}"
        lines = [f"{self.style('bold', clean_line(title))}  {count}"]
        for name, figures in overview_lines(overview):
            lines += self._labelled("  " + name.ljust(LABEL), "dim", [("", clean(figures))], LABEL + 2)
        return "\n".join(lines) + "\n"

    def broken(self, broken: Broken) -> str:
        """A row or file that cannot be shown."""
        head = self._head(broken.index, broken.place, [("bad", "unreadable")])
        return "\n".join([*head, *self._block(broken.reason, "field", 2, full=True)]) + "\n"

    def entry(self, entry: Entry) -> str:
        """A rollout or a row."""
        lines = self._head(entry.index, entry.place, list(badges(entry)))
        for message in entry.messages:
            lines += self._message(message)
        fields = dict(entry.fields if self.full or self.hits else entry.brief)  # a hit may be in any of them
        if entry.schemas:
            fields["tools"] = entry.schemas if self.full else tool_names(entry.schemas)
        if entry.messages and fields:
            lines.append(self.style("dim", "· · ·"))
        lines += self._fields(fields)
        return "\n".join(lines) + "\n"

    def _head(self, index: int, place: str, marks: list[tuple[str, str]]) -> list[str]:
        left, place = f"── #{index} ", clean_line(place)
        right = " · ".join(text for _, text in marks)
        coloured = " · ".join(self.style(style, text) if style else text for style, text in marks)
        room = self.width - len(left) - columns(place) - len(right) - 4
        if room >= 0:
            line = left + self.style("bold", place) + " " + "─" * (room + 1)
            return [f"{line} {coloured}" if right else line + "──"]
        return [left + self.style("bold", place), *([f"   {coloured}"] if right else [])]

    def _message(self, message: Message) -> list[str]:
        role = clean_line(message.role)
        style = role if role in STYLES else "dim"
        lines: list[str] = []
        for part in message.parts or [Part("text", "")]:
            lines += self._labelled(role[: LABEL - 1].ljust(LABEL), style, list(self._part(part)), LABEL)
            role = ""
        return [*lines, ""]

    def _part(self, part: Part) -> Iterator[tuple[str, str]]:
        """(style, line) of a part, within the width."""
        name = clean_line(part.name) or "?"
        indent = 0
        if part.kind == "call":
            yield "call", f"→ {name}"
            indent = 2
        elif part.kind == "result":
            yield ("bad" if part.failed else "tool"), f"← {name if part.name else 'result'}" + " (error)" * part.failed
            indent = 2
        elif part.kind == "reasoning":
            yield "dim", "reasoning"
            indent = 2
        dim = "dim" if part.kind == "reasoning" else ""
        for line in self._block(part.text, part.kind, indent, styled=False):
            yield dim, line

    def _fields(self, fields: dict[str, Any]) -> list[str]:
        """`name  value` lines; an object's own fields below it."""
        lines: list[str] = []
        names = max((min(columns(clean_line(str(name))), 24) for name in fields), default=0)
        for name, value in fields.items():
            if isinstance(value, dict) and value:
                lines.append(self.style("dim", clean_line(str(name))))
                lines += [
                    "  " + line for line in Screen(self.width - 2, self.color, self.full, self.hits)._fields(value)
                ]
            else:
                label = clean_line(str(name)).ljust(names) + "  "
                block = self._block(as_text(value), "field", 0, width=self.width - columns(label), styled=False)
                lines += self._labelled(label, "dim", [("", line) for line in block], columns(label))
        return lines

    def _labelled(self, label: str, style: str, lines: list[tuple[str, str]], indent: int) -> list[str]:
        """Lines with a label before the first; those that are too long are wrapped."""
        found: list[str] = []
        for line_style, line in lines or [("", "")]:
            for piece in wrap(line, max(20, self.width - indent)):
                text = self._marked(piece, line_style)
                left = self.style(style, label.rstrip()) + " " * (indent - columns(label.rstrip()))
                if self.hits and self.hits.search(piece):  # a mark that is seen without colours too
                    left = left[:-1] + "›" if left.endswith(" ") else left
                found.append((left + text).rstrip())
                label = ""
        return found

    def _marked(self, line: str, style: str) -> str:
        if self.hits is None or not self.color:
            return self.style(style, line) if style else line
        pieces: list[str] = []
        at = 0
        for match in self.hits.finditer(line):
            if match.end() > match.start():
                before = line[at : match.start()]
                pieces += [self.style(style, before) if style else before, self.style("hit", match[0])]
                at = match.end()
        rest = line[at:]
        return "".join([*pieces, self.style(style, rest) if style else rest])

    def _block(
        self, text: str, kind: str, indent: int, width: int | None = None, *, full: bool = False, styled: bool = True
    ) -> list[str]:
        """Wrapped lines of a text; folded to a few when its kind is one that folds."""
        before = left = 0
        if not (self.full or full) and len(text) > MOST_CHARACTERS:
            hit = self.hits.search(text) if self.hits else None
            before = max(0, hit.start() - MOST_CHARACTERS // 2) if hit and hit.end() > MOST_CHARACTERS else 0
            left = max(0, len(text) - before - MOST_CHARACTERS)
            text = text[before : before + MOST_CHARACTERS]
        text = clean(text).expandtabs(4)
        room = max(20, (width or self.width - LABEL) - indent)
        lines = [piece for line in text.split("\n") for piece in wrap(line.rstrip(), room)]
        while lines and not lines[-1]:
            lines.pop()
        most = FOLDED_LINES.get(kind)
        if most and not (self.full or full) and (len(lines) > most + 1 or before or left):
            lines = self._folded(lines, most, before, left)
        lines = [" " * indent + line if line else line for line in lines]
        return [self._marked(line, "") for line in lines] if styled else lines

    def _folded(self, lines: list[str], most: int, before: int, left: int) -> list[str]:
        """The first lines, or those around the first hit; and how much is left out.

        before, left: characters that were cut off already.
        """
        first = 0
        if self.hits:
            hit = next((number for number, line in enumerate(lines) if self.hits.search(line)), 0)
            first = max(0, hit - most // 2) if hit >= most else 0
        shown = lines[first : first + most]
        after = len(lines) - first - len(shown)
        head = f"… {_amount(first, before)} before" if first or before else ""
        tail = f"… {_amount(after, left)} more (--full)" if after or left else ""
        return [*([head] if head else []), *shown, *([tail] if tail else [])]


def _amount(lines: int, characters: int) -> str:
    parts = [f"{lines:,} line{'s' * (lines != 1)}"] if lines else []
    return " and ".join([*parts, *([f"{characters:,} characters"] if characters else [])])


def badges(entry: Entry) -> Iterator[tuple[str, str]]:
    """(style, text) of what stands at an entry's head."""
    if entry.verdict:
        yield ("good" if entry.verdict == GOOD else "bad"), entry.verdict
    if entry.why:
        yield "bad", clean_line(entry.why)
    if entry.truncated:
        yield "bad", "truncated"
    if entry.reward is not None:
        yield "", f"reward {entry.reward:g}"
    if entry.turns > 1 or (entry.turns and entry.verdict):
        yield "", f"{entry.turns:,} turn{'s' * (entry.turns != 1)}"
    if entry.tokens is not None:
        yield "", f"{entry.tokens:,} tokens"


def tool_names(schemas: Iterable[Any]) -> str:
    """The names in tool schemas of any form, separated by commas."""
    names: list[str] = []
    for schema in schemas:
        about = schema.get("function", schema) if isinstance(schema, dict) else schema
        names.append(str(about.get("name", "?")) if isinstance(about, dict) else as_text(about))
    return ", ".join(names)


def columns(text: str) -> int:
    """How many columns of a terminal a line takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or character in "\u200c\u200d\ufe0e\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(line: str, width: int) -> list[str]:
    """A line cut at spaces into pieces of at most `width` columns, its indentation repeated; long words are cut."""
    if columns(line) <= width:
        return [line]
    indent = line[: min(len(line) - len(line.lstrip(" ")), width // 2)]
    pieces, piece, used = [], indent, len(indent)
    for word in re.findall(r" +|[^ ]+", line[len(indent) :]):
        size = columns(word)
        if used + size <= width:
            piece, used = piece + word, used + size
            continue
        if word.startswith(" "):  # spaces at the place of a break
            pieces.append(piece)
            piece, used = indent, len(indent)
            continue
        if used > len(indent):
            pieces.append(piece.rstrip(" "))
            piece, used = indent, len(indent)
        if size <= width - used:
            piece, used = piece + word, used + size
            continue
        for character in word:
            wide = _columns_of(character)
            if used + wide > width:
                pieces.append(piece)
                piece, used = indent, len(indent)
            piece, used = piece + character, used + wide
    if piece.strip(" ") or not pieces:
        pieces.append(piece)
    return pieces
