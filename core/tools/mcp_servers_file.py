"""MCP servers from an `mcpServers` JSON file, as Claude Desktop, Claude Code, Cursor and VS Code write it."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..data.environment import dotenv
from ..errors import InputError
from .leash import Leash
from .mcp import McpCommand, McpUrl
from .mcp_text import toolset_name

KINDS: dict[str, Literal["http", "sse", "stdio"]] = {
    "http": "http",
    "streamable-http": "http",
    "streamable_http": "http",
    "streamablehttp": "http",
    "sse": "sse",
    "stdio": "stdio",
}
_VARIABLE = re.compile(r"\$\{(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def from_servers_file(
    path: Path, *, shared: bool = False, connect_s: float = 15.0, session_s: float = 60.0, leash: Leash | None = None
) -> list[McpUrl | McpCommand]:
    """The servers of the file that are not disabled. Raises InputError, which names the file and the server.

    leash: ends the processes of servers that are commands when ours is killed.
    `${VAR}`, `${env:VAR}` and `${VAR:-default}` are taken from the environment, else from `.env`.
    """
    servers: list[McpUrl | McpCommand] = []
    names: set[str] = set()
    for key, entry in _entries(path).items():
        if not isinstance(entry, dict):
            raise InputError(path, None, f"server {key!r} is {type(entry).__name__}, not an object.")
        if entry.get("disabled") is True or entry.get("enabled") is False:
            continue
        name = toolset_name(key)
        while name in names:
            name += "_2"
        names.add(name)
        try:
            servers.append(_server(name, entry, leash, shared=shared, connect_s=connect_s, session_s=session_s))
        except ValueError as error:  # also UsageError
            raise InputError(path, None, f"server {key!r}: {error}") from None
    if not servers:
        raise InputError(path, None, 'no server is enabled. It should hold {"mcpServers": {NAME: {"command": ...}}}.')
    return servers


def _entries(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(path, None, f"cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(path, None, "is not UTF-8. Save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise InputError(path, error.lineno, f"is not JSON: {error.msg} (column {error.colno}).") from None
    except RecursionError:
        raise InputError(path, None, "is nested too deeply to be a file of servers.") from None
    value = value if isinstance(value, dict) else {}
    inner = value.get("mcp")
    for holder in (value, inner if isinstance(inner, dict) else {}):  # VS Code's settings.json has it under "mcp"
        for key in ("mcpServers", "servers"):
            if isinstance(holder.get(key), dict):
                return holder[key]
    raise InputError(path, None, 'no "mcpServers" object (VS Code: "servers"). Is it the right file?')


def _server(name: str, entry: dict[str, Any], leash: Leash | None, **options: Any) -> McpUrl | McpCommand:
    """One entry as a toolset. Raises ValueError with the fact and the next step."""
    url = entry.get("url") or entry.get("serverUrl") or entry.get("httpUrl")
    command = entry.get("command")
    said = str(entry.get("type") or entry.get("transport") or ("http?" if url else "stdio")).lower()
    kind = KINDS.get(said)
    written = [str(text) for text in (url, command, *(entry["args"] if isinstance(entry.get("args"), list) else []))]
    options["secrets"] = [_expanded(match[0]) for text in written for match in _VARIABLE.finditer(text)]
    if said != "http?" and kind is None:
        raise ValueError(f"its type {said!r} is not known. Known: {', '.join(KINDS)}.")
    if kind == "stdio":
        if not isinstance(command, str) or not command.strip():
            raise ValueError('no "command" and no "url". Give one of them.')
        args = entry.get("args", [])
        if not isinstance(args, list) or not all(isinstance(arg, str | int | float) for arg in args):
            raise ValueError('"args" is not a list of strings.')
        argv = [_expanded(command), *(_expanded(str(arg)) for arg in args)]
        cwd = entry.get("cwd")
        folder = Path(_expanded(str(cwd))).expanduser() if cwd else None
        return McpCommand(argv, name, env=_strings(entry, "env"), cwd=folder, leash=leash, **options)
    if not isinstance(url, str):
        raise ValueError('no "command" and no "url". Give one of them.')
    # "http" is also what some write for servers that speak SSE only: then both are tried.
    return McpUrl(
        _expanded(url), name, headers=_strings(entry, "headers"), kind="sse" if kind == "sse" else None, **options
    )


def _strings(entry: dict[str, Any], key: str) -> dict[str, str]:
    value = entry.get(key) or {}
    if not isinstance(value, dict) or any(isinstance(item, dict | list) or item is None for item in value.values()):
        raise ValueError(f'"{key}" is not an object of strings.')
    return {str(name): _expanded(str(item)) for name, item in value.items()}


def _expanded(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with its variables. Raises ValueError for one that is set nowhere."""

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        found = (environment or os.environ).get(name) or dotenv().get(name)
        if found is None and default is None:
            raise ValueError(f"{name} is not set. Export it, or put {name}=... into .env.")
        return found if found else default or ""

    return _VARIABLE.sub(value, text)
