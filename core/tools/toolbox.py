"""All the tools of a run as one set: names that providers take, allow-lists, and one session a rollout."""

import asyncio
import difflib
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from ..errors import UsageError
from .plain import COLOURS
from .protocol import Tool, ToolResult, ToolSession, Toolset

DEFAULT_DENIED = (
    # Playwright MCP offers these unless told otherwise. The first three run code that the teacher wrote, in the page or
    # in the server's own process; the next two read files of the machine; the last one installs a browser.
    "browser_evaluate",
    "browser_run_code*",
    "browser_pdf_save",
    "browser_file_upload",
    "browser_drop",
    "browser_install",
)
"""Patterns of tools that are not offered unless `allow` names them in full."""

MAX_TOOLS = 128
"""What OpenAI takes in one request."""
MAX_CHARACTERS = 2_000_000
"""Of one result: a guard against a server without measure. The rollout shortens results by tokens."""
MAX_NAME = 64


@dataclass(frozen=True)
class _Place:
    """Where a tool is: its set's number, and its name there."""

    toolset: int
    name: str


class Toolbox:
    """The tools of several sets.

    allow, deny: patterns as a shell's (`browser_*`), held against a tool's name here and its name in its own set.
    A tool is offered when `allow` is empty or matches it, and `deny` does not match it.
    """

    def __init__(self, toolsets: Sequence[Toolset], allow: Sequence[str] = (), deny: Sequence[str] = ()) -> None:
        self._toolsets, self._allow, self._deny = list(toolsets), list(allow), list(deny)
        self._places: dict[str, _Place] = {}
        self.tools: list[Tool] = []
        self.notes: list[str] = []

    async def open(self) -> None:
        """Open all sets at once and merge their tools. Raises UsageError; nothing stays open then."""
        try:
            outcomes = await asyncio.gather(*(one.open() for one in self._toolsets), return_exceptions=True)
            failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            told = [str(failure) for failure in failures if isinstance(failure, UsageError)]
            if len(told) == len(failures) > 1:
                raise UsageError("\n".join(told))
            if failures:
                raise failures[0]
            self._merge()
        except BaseException:
            await self.aclose()
            raise

    def select(self, names: Sequence[str] | None) -> list[Tool]:
        """The tools of a row that lists them by name; all for None. Raises UsageError for an unknown name."""
        if names is None:
            return list(self.tools)
        known = {tool.name: {tool.name, self._places[tool.name].name} for tool in self.tools}
        unknown = [name for name in names if not any(name in both for both in known.values())]
        if unknown:
            raise UsageError(f"no tool is called {', '.join(unknown)}. Offered: {', '.join(known) or 'none'}.")
        return [tool for tool in self.tools if not known[tool.name].isdisjoint(names)]

    @asynccontextmanager
    async def session(self, tools: Sequence[Tool] | None = None) -> AsyncIterator["ToolboxSession"]:
        """The tools of one rollout: these, or all that are offered. No other can be called.

        Each set's session starts with the first call to it: a rollout that uses no tool starts nothing.
        """
        places = {tool.name: self._places[tool.name] for tool in (self.tools if tools is None else tools)}
        session = ToolboxSession(self._toolsets, places)
        try:
            yield session
        finally:
            try:
                await session.aclose()
            except Exception:
                pass  # the rollout has what it came for; the set's own aclose() ends what is left

    async def aclose(self) -> None:
        """Close all sets, also when one of them fails to."""
        await asyncio.gather(*(one.aclose() for one in self._toolsets), return_exceptions=True)

    def _merge(self) -> None:
        self.notes = []
        offered = [
            (
                _Place(number, tool.name),
                replace(tool, name=valid_name(tool.name), parameters=clean_schema(tool.parameters)),
            )
            for number, toolset in enumerate(self._toolsets)
            for tool in toolset.tools
        ]
        tools = self._named(offered)
        if not tools:
            return
        for pattern in self._allow:
            if not any(self._matches(pattern, tool) for tool in tools):
                available = ", ".join(tool.name for tool in tools)
                raise UsageError(f"--allow-tools {pattern} matches no tool. There are: {available}.")
        self.tools = [tool for tool in tools if self._is_offered(tool)]
        denied = [tool.name for tool in tools if self._is_denied_by_default(tool)]
        if not self.tools:
            available = ", ".join(tool.name for tool in tools)
            raise UsageError(f"No tool is left of {available}. Loosen --allow-tools or --deny-tools.")
        if denied:
            self.notes.append(
                f"Not offered, because they run code, read files or change the installation: {', '.join(denied)}. "
                "Name them in full in --allow-tools to offer them."
            )
        if len(self.tools) > MAX_TOOLS:
            self.notes.append(
                f"{len(self.tools)} tools; OpenAI takes {MAX_TOOLS} at most, and models choose worse among many. "
                "Choose with --allow-tools."
            )
        size = len(json.dumps([tool.as_openai() for tool in self.tools], default=str))
        plural = "" if len(self.tools) == 1 else "s"
        self.notes.append(f"{len(self.tools)} tool{plural}, about {max(1, round(size / 4)):,} tokens in every request.")

    def _named(self, offered: list[tuple[_Place, Tool]]) -> list[Tool]:
        """Tools with one name each: prefixed where sets share a name, numbered where one set repeats it."""
        sets_of: dict[str, set[int]] = {}
        for place, tool in offered:
            sets_of.setdefault(tool.name, set()).add(place.toolset)
        labels: list[str] = []
        for toolset in self._toolsets:
            label = valid_name(toolset.name)[:24]
            labels.append(f"{label}{labels.count(label) + 1}" if label in labels else label)
        self._places = {}
        tools: list[Tool] = []
        renamed: dict[str, str] = {}
        for place, tool in offered:
            name = tool.name
            if len(sets_of[name]) > 1:
                name = valid_name(f"{labels[place.toolset]}__{name}")
            free = _free(name, self._places)
            if len(sets_of[tool.name]) > 1:
                renamed.setdefault(tool.name, free)
            self._places[free] = place
            tools.append(replace(tool, name=free))
        if renamed:
            told = ", ".join(f"{name} (as {prefixed}, ...)" for name, prefixed in list(renamed.items())[:5])
            more = f" and {len(renamed) - 5} more" if len(renamed) > 5 else ""
            self.notes.append(f"Offered by more than one set, and so named after their sets: {told}{more}.")
        return tools

    def _matches(self, pattern: str, tool: Tool) -> bool:
        return fnmatchcase(tool.name, pattern) or fnmatchcase(self._places[tool.name].name, pattern)

    def _is_denied_by_default(self, tool: Tool) -> bool:
        # A wildcard that happens to reach a denied tool is no decision for it.
        named = {tool.name, self._places[tool.name].name} & set(self._allow)
        return not named and any(self._matches(pattern, tool) for pattern in DEFAULT_DENIED)

    def _is_offered(self, tool: Tool) -> bool:
        allowed = not self._allow or any(self._matches(pattern, tool) for pattern in self._allow)
        denied = any(self._matches(pattern, tool) for pattern in self._deny)
        return allowed and not denied and not self._is_denied_by_default(tool)


class ToolboxSession:
    """The tools of one rollout, by the names that the teacher knows."""

    def __init__(self, toolsets: Sequence[Toolset], places: dict[str, _Place]) -> None:
        self._toolsets, self._places = toolsets, places
        self._open = AsyncExitStack()
        self._sessions: dict[int, asyncio.Task[ToolSession]] = {}

    async def ready(self, name: str) -> None:
        """Start the session that a tool needs, within that set's own limits and not those of a call.

        Returns at once for a tool that is not known. Raises ToolsetGone.
        """
        place = self._places.get(name)
        if place is not None:
            await self._session(place.toolset)

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Call a tool, and start its set's session if this is the first call to it. Raises ToolsetGone.

        A name that is not known is a result that says which are. Cancelling a call leaves the session usable, and one
        that is still starting goes on with it.
        """
        place = self._places.get(name)
        if place is None:
            near = difflib.get_close_matches(name, self._places, n=3) or list(self._places)[:20]
            return ToolResult(f"There is no tool {name!r}. Did you mean: {', '.join(near)}?", is_error=True)
        session = await self._session(place.toolset)
        result = await session.call(place.name, arguments)
        return replace(result, text=bounded(result.text))

    def concurrent(self, name: str) -> bool:
        """Whether a call may run beside others of the same turn: its set says that it keeps no state."""
        place = self._places.get(name)
        return place is None or getattr(self._toolsets[place.toolset], "concurrent", False)

    async def _session(self, number: int) -> ToolSession:
        # A task of its own: parallel calls of one turn must not start two browsers, nor may a call whose time is over
        # end a start that takes longer, else the next one begins anew, for ever.
        if number not in self._sessions:
            self._sessions[number] = asyncio.create_task(self._started(number))
            self._sessions[number].add_done_callback(_taken)
        return await asyncio.shield(self._sessions[number])

    async def _started(self, number: int) -> ToolSession:
        return await self._open.enter_async_context(self._toolsets[number].session())

    async def aclose(self) -> None:
        """End the sessions, also those that are still starting."""
        for task in self._sessions.values():
            task.cancel()
        try:
            await asyncio.gather(*self._sessions.values(), return_exceptions=True)
        finally:
            await self._open.aclose()


def _taken(task: "asyncio.Task[ToolSession]") -> None:
    """A failure is told to the next call; when there is none, nobody misses it."""
    if not task.cancelled():
        task.exception()


def bounded(text: str) -> str:
    """A result's text without what no file can hold (lone surrogates) or only a terminal reads (colours), and of a sane
    length."""
    if "\x1b" in text:
        text = COLOURS.sub("", text)
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]}\n[cut: {len(text) - MAX_CHARACTERS:,} more characters]"
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def valid_name(name: str) -> str:
    """A name that every provider takes: 1 to 64 of [a-zA-Z0-9_-]."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:MAX_NAME] or "tool"


def _free(name: str, taken: dict[str, _Place]) -> str:
    """The name, or the name with the next free number."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name[: MAX_NAME - len(str(number)) - 1]}_{number}"
    return candidate


def clean_schema(schema: Any) -> dict[str, Any]:
    """A tool's schema as providers take it: an object with properties, arrays with items, no `$schema`.

    OpenAI refuses anyOf, oneOf and allOf at the top: the properties of their branches are offered together, none of
    them required.
    """
    cleaned = _clean(schema, 0) if isinstance(schema, dict) else {}
    properties = dict(cleaned.get("properties", {}))
    branches = [branch for key in ("allOf", "anyOf", "oneOf") for branch in cleaned.pop(key, [])]
    for branch in branches:
        if isinstance(branch, dict):
            properties = {**branch.get("properties", {}), **properties}
    for key in ("enum", "not", "const"):
        cleaned.pop(key, None)
    return {**cleaned, "type": "object", "properties": properties}


def _clean(schema: Any, depth: int) -> Any:
    if schema is True:
        return {}
    if not isinstance(schema, dict) or depth > 40:
        return schema
    cleaned: dict[str, Any] = {}
    for key, value in schema.items():
        if key in {"$schema", "$id"} or (value is None and key not in {"default", "const"}):
            continue
        if key in {"properties", "$defs", "definitions", "patternProperties"}:
            if isinstance(value, dict):
                cleaned[key] = {str(name): _clean(inner, depth + 1) for name, inner in value.items()}
        elif key in {"items", "not", "if", "then", "else"}:
            cleaned[key] = _clean(value, depth + 1)
        elif key in {"anyOf", "oneOf", "allOf", "prefixItems"}:
            if isinstance(value, list):
                cleaned[key] = [_clean(inner, depth + 1) for inner in value]
        elif key == "required":
            if isinstance(value, list) and value:
                cleaned[key] = value
        else:
            cleaned[key] = value
    if cleaned.get("type") == "array" and "items" not in cleaned and "prefixItems" not in cleaned:
        cleaned["items"] = {}
    return cleaned
