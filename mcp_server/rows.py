"""The tool that shows what is in files: rows of data, rollouts, reports, and what a folder holds."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any, Literal

import orjson
from anyio import from_thread, to_thread
from pydantic import BaseModel, ConfigDict, Field

from core.data.rollouts import natural
from core.errors import UsageError

from .answers import BYTES_PER_TOKEN, TEXT_BYTES, answer, dumped, shortened, strings, within
from .door import Door
from .jobs import checked
from .marked import UNTRUSTED, washer
from .reading import Row, read_rows
from .texts import TEXTS
from .tool import Tool
from .workspace import Workspace

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context
    from mcp.types import CallToolResult

LONGEST_S = 20.0
"""For looking through a file: clients wait a minute, and the answer says where it stopped."""
LOOK_UP_EVERY = 500
"""Rows, between two looks at the clock and at whether the client still waits."""
MOST_ROWS = 200
MOST_TOKENS = 20_000
LEAST_ROW_BYTES = 600
SHARES = 5
"""No row takes more than a fifth of what an answer may have, unless fewer rows are asked for."""
INPUT_SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "File (jsonl, json, csv, md, ...) or folder in the workspace."},
        "mode": {"type": "string", "enum": ["head", "sample", "search"], "default": "head"},
        "query": {"type": "string", "description": "Text to search for, in any case of letters."},
        "n": {"type": "integer", "default": 10, "description": "Most rows, up to 200."},
        "start": {"type": "integer", "default": 1, "description": "First line or item to look at."},
        "seed": {"type": "integer", "default": 0, "description": "Of the sample."},
        "budget_tokens": {"type": "integer", "default": 6000, "description": "Most tokens, up to 20000."},
    },
    "required": ["path"],
    "additionalProperties": False,
}
OUTPUT_SCHEMA = {
    "type": "object",
    "properties": {
        **{"path": {"type": "string"}, "rows": {"type": "array", "items": {"type": "object"}}},
        **{"more": {"type": "boolean"}, "left_out": {"type": "string"}, "next": {"type": "string"}},
        **{"untrusted": {"type": "boolean"}, "note": {"type": "string"}},
    },
    "required": ["path", "rows", "more", "untrusted"],
}


class ReadRows(BaseModel):
    """The arguments."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(max_length=2000)
    mode: Literal["head", "sample", "search"] | None = None
    query: str | None = Field(default=None, min_length=1, max_length=1000)
    n: int = Field(default=10, ge=1, le=MOST_ROWS)
    start: int = Field(default=1, ge=1)
    seed: int = 0
    budget_tokens: int = Field(default=6000, ge=200, le=MOST_TOKENS)


def read_rows_tool(door: Door) -> Tool:
    text = TEXTS["read_rows"]
    return Tool(
        name="read_rows",
        title=text.title,
        description=text.description,
        toolset=text.toolset,
        input_schema=lambda: INPUT_SCHEMA,
        output_schema=lambda: OUTPUT_SCHEMA,
        answer=partial(show, door),
        read_only=text.read_only,
        destructive=text.destructive,
        idempotent=text.idempotent,
        open_world=text.open_world,
    )


async def show(door: Door, arguments: Mapping[str, Any], context: "Context[Any, Any]") -> "CallToolResult":
    """Rows within the budget, what was left out, and the call that goes on. Raises UsageError."""
    asked = checked(ReadRows, arguments)
    if asked.mode == "search" and asked.query is None:
        raise UsageError("query: mode search needs the text to search for.")
    if asked.query is not None and asked.mode in ("head", "sample"):
        raise UsageError(f'query: mode {asked.mode} takes none. Leave it out, or use mode "search".')
    found = await to_thread.run_sync(look, door.workspace, asked)
    return answer(found, in_words(found), door.workspace.show)


def look(workspace: Workspace, asked: ReadRows) -> dict[str, Any]:
    """What the tool answers, for a file or a folder."""
    place = workspace.inside(asked.path)
    if place.is_dir():
        return listing(workspace, asked)
    name = workspace.name(place)
    with workspace.open(asked.path) as file:
        rows = read_rows(file, name)
        if asked.mode == "sample":
            return sample(rows, asked, name)
        return first(rows, asked, name)


# ---- files ---------------------------------------------------------------------------------------------------------


class Page:
    """Rows that are shown, as long as the budget lasts."""

    def __init__(self, asked: ReadRows) -> None:
        self.rows: list[dict[str, Any]] = []
        self._wash = washer()
        self._left = asked.budget_tokens * BYTES_PER_TOKEN
        self._each = max(LEAST_ROW_BYTES, self._left // min(asked.n, SHARES))

    def shown(self, row: Row) -> dict[str, Any]:
        """A row as an answer has it: cleaned, and cut where it is long."""
        value, problem = row.content
        named: dict[str, Any] = {row.unit: row.number}
        named |= {"at": row.at} if row.at else {}
        named |= {"problem": problem} if problem else {}
        try:
            # Long texts are cut before they are searched for keys, and again after that, where no half of one is left.
            value = shortened(value, 4 * self._each, 4 * self._each)
            return within(tidy({**named, "text" if isinstance(value, str) else "value": value}, self._wash), self._each)
        except RecursionError:
            return {**named, "problem": "nested too deeply to be shown"}

    def take(self, row: dict[str, Any]) -> bool:
        """Whether there was room for one more."""
        size = len(dumped(row)) + 1
        if size > self._left and self.rows:
            return False
        self._left -= size
        self.rows.append(row)
        return True


def tidy(value: Any, wash: Callable[[str], str]) -> Any:
    """A JSON value with all its texts washed, and no number that JSON readers cannot hold."""
    if isinstance(value, dict):
        return {wash(str(key)): tidy(item, wash) for key, item in value.items()}
    if isinstance(value, list):
        return [tidy(item, wash) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return str(value) if abs(value) < 10**4000 else "a number of more than 4,000 digits"
    return strings(value, wash)


def first(rows: Iterator[Row], asked: ReadRows, name: str) -> dict[str, Any]:
    """The first rows from `start` on, of a search those with the text in them."""
    page, clock = Page(asked), Clock()
    holds = matcher(asked.query)
    for row in rows:
        if clock.is_over():
            return answered(name, page, row.number, f"looked through the file up to {row.unit} {row.number:,}", asked)
        if row.number < asked.start or not holds(row):
            continue
        if len(page.rows) == asked.n:
            return answered(name, page, row.number, None, asked)
        if not page.take(page.shown(row)):
            return answered(name, page, row.number, f"the budget of {asked.budget_tokens:,} tokens is used up", asked)
    return answered(name, page, None, None, asked)


def sample(rows: Iterator[Row], asked: ReadRows, name: str) -> dict[str, Any]:
    """Rows at random, each as likely as any other, in the order of the file."""
    page, clock, draw = Page(asked), Clock(), random.Random(asked.seed)
    kept: list[tuple[int, dict[str, Any]]] = []
    seen, stopped = 0, None
    for row in rows:
        if clock.is_over():
            stopped = f"drawn from the first {seen:,} rows only: the file is long"
            break
        if row.number < asked.start:
            continue
        seen += 1
        place = len(kept) if len(kept) < asked.n else draw.randrange(seen)
        if place < asked.n:  # the one in its place is forgotten
            kept[place : place + 1] = [(row.number, page.shown(row))]
    for number, (_, row) in enumerate(sorted(kept, key=lambda item: item[0])):
        if not page.take(row):
            stopped = f"{len(kept) - number} of {len(kept)} drawn rows did not fit into {asked.budget_tokens:,} tokens"
            break
    found = answered(name, page, None, stopped, asked)
    return {**found, "of": seen, "more": seen > len(page.rows)}


class Clock:
    """Ends what takes too long, and what nobody waits for any more."""

    def __init__(self) -> None:
        self._ends, self._count = time.monotonic() + LONGEST_S, 0

    def is_over(self) -> bool:
        """Raises the cancellation of the call."""
        self._count += 1
        if self._count % LOOK_UP_EVERY:
            return False
        try:
            from_thread.check_cancelled()
        except RuntimeError:  # not in a thread of a server
            pass
        return time.monotonic() > self._ends


def matcher(query: str | None) -> Callable[[Row], bool]:
    if query is None:
        return lambda row: True
    wanted, wash = query.casefold(), washer()
    as_json = orjson.dumps(query.encode("utf-8", "replace").decode("utf-8")).decode("utf-8")[1:-1].casefold()

    def found(row: Row) -> bool:
        # What is not shown is not found, either, or a key could be guessed letter by letter.
        try:
            return row.holds(wanted, as_json) and row.changed(partial(tidy, wash=wash)).holds(wanted, as_json)
        except RecursionError:
            return False

    return found


def answered(name: str, page: Page, goes_on: int | None, left_out: str | None, asked: ReadRows) -> dict[str, Any]:
    """goes_on: the first row that is not shown.   left_out: why it is not."""
    found: dict[str, Any] = {"path": name, "rows": page.rows, "more": goes_on is not None}
    if left_out:
        found["left_out"] = left_out
    if goes_on is not None:
        search = f", query={orjson.dumps(asked.query).decode()}" if asked.query else ""
        found["next"] = f'read_rows(path="{name}"{search}, start={goes_on}) goes on'
    return found | UNTRUSTED


# ---- folders -------------------------------------------------------------------------------------------------------


def listing(workspace: Workspace, asked: ReadRows) -> dict[str, Any]:
    """What is in a folder, in natural order; of a search the names with the text in them. Links are left out."""
    most = 20_000
    entries = sorted(workspace.entries(asked.path, most), key=lambda item: natural(item[0]))
    cut = len(entries) >= most
    wanted, wash = (asked.query or "").casefold(), washer()
    entries = [(wash(name), about) for name, about in entries]
    names = [entry for entry in entries if wanted in entry[0].casefold()]
    if asked.mode == "sample":
        drawn = random.Random(asked.seed).sample(range(len(names)), min(asked.n, len(names)))
        names = [names[n] for n in sorted(drawn)]
    folder = workspace.name(workspace.inside(asked.path))
    page = Page(asked.model_copy(update={"n": MOST_ROWS}))
    most_shown = asked.n if "n" in asked.model_fields_set or asked.mode == "sample" else MOST_ROWS
    goes_on = None
    for number, (name, about) in enumerate(names, 1):
        if number < asked.start:
            continue
        is_folder = S_ISDIR(about.st_mode)
        row = {"name": name + "/" * is_folder} | ({} if is_folder else {"bytes": about.st_size})
        if len(page.rows) == most_shown or not page.take(row):
            goes_on = number
            break
    found = answered(
        folder, page, goes_on, f"of more than {most:,} entries some were not looked at" if cut else None, asked
    )
    return {**found, "of": len(names)}


# ---- words ---------------------------------------------------------------------------------------------------------


def in_words(found: Mapping[str, Any]) -> str:
    """The same as text, for clients that show only that: a row in a line."""
    rows = found["rows"]
    of = f" of {found['of']:,}" if "of" in found else ""
    lines = [
        f"{found['path']}: {len(rows)}{of} rows ({UNTRUSTED['note']})" if rows else f"{found['path']}: no such rows"
    ]
    room = TEXT_BYTES - 1000
    for row in rows:
        line = orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS).decode("utf-8")
        room -= len(line.encode()) + 1
        if room < 0:
            lines.append("... the others are in the structured part of this answer")
            break
        lines.append(line)
    lines += [str(found[key]) for key in ("left_out", "next") if found.get(key)]
    return "\n".join(lines)
