"""Tools of MCP servers: reached by URL, or started by a command; one protocol session for each rollout.

This module imports the MCP SDK (most of a second), so it is imported only when MCP tools are asked for.
"""

import asyncio
import shlex
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_plus, urlsplit, urlunsplit

from pydantic import TypeAdapter, ValidationError

from ..data.environment import redacted
from ..data.text import one_line
from ..errors import MissingDependency, UsageError
from .leash import Leash
from .plain import plain
from .protocol import Tool, ToolResult, ToolsetGone

try:
    import httpx2
    import mcp_types as types
    from mcp.client.stdio import StdioServerParameters
    from mcp.shared.exceptions import MCPError

    from .mcp_connection import (
        Connection,
        Mode,
        Refusal,
        Stderr,
        http_transport,
        stdio_transport,
    )
    from .mcp_text import first_line, full_url, program_name, text_of, toolset_name, words_of
except ImportError as missing:  # also version 1 of the SDK, which has other modules
    raise MissingDependency("mcp (2.3 or newer)", "tools of an MCP server", "mcp") from missing

# Protocol errors about one call: the teacher can do better. After any other the session is tried.
CALL_ERRORS = {types.INVALID_PARAMS, types.METHOD_NOT_FOUND}
MAX_PAGES = 100
ALIVE_S = 5.0
PATHS = "(often /mcp or /sse)"
_CALL_RESULT: TypeAdapter[Any] = TypeAdapter(types.CallToolResult | types.InputRequiredResult)


@dataclass(frozen=True)
class Route:
    """One way to speak with a server. url: empty for a command."""

    kind: Literal["http", "sse", "stdio"]
    mode: Mode
    url: str = ""


class _Server:
    """What both kinds of server share: opening, sessions, the end."""

    def __init__(self, name: str, *, shared: bool, connect_s: float, session_s: float, secrets: Sequence[str]) -> None:
        self.name = name
        self.tools: list[Tool] = []
        self._shared, self._connect_s, self._session_s = shared, connect_s, session_s
        # "Bearer x": servers quote the second word alone.
        self._secrets = [part for secret in secrets for part in (secret, *secret.split()) if len(part) >= 8]
        self._routes: list[Route] = []
        self._route: Route | None = None
        self._common: Connection | None = None
        self._connecting = asyncio.Lock()
        self._connections: set[Connection] = set()

    # What the two kinds of server know.

    def _connect(self, route: Route) -> Connection:
        """A connection that is not open yet."""
        raise NotImplementedError

    def _why(self, error: BaseException, seen: Any, limit_s: float) -> str:
        """Fact and next step of a failed connection or a lost one."""
        raise NotImplementedError

    def _worth_another_route(self, error: BaseException, seen: Any) -> bool:
        raise NotImplementedError

    # Toolset

    async def open(self) -> None:
        """Reach or start the server once and list its tools. Raises UsageError."""
        connection = await self._first_connection()
        try:
            self.tools = await self._listed(connection)
            if not self.tools:
                raise self._unusable("has no tools. Check its options.")
        except TimeoutError as error:
            await self._end(connection)
            raise self._unusable(self._why(error, connection.seen, self._connect_s)) from None
        except BaseException:
            await self._end(connection)
            raise
        if self._shared:
            self._common = connection
        else:
            await self._end(connection)

    @asynccontextmanager
    async def session(self) -> AsyncIterator["McpSession"]:
        """A protocol session of the rollout's own (or the common one). Raises ToolsetGone."""
        if self._shared:
            async with self._connecting:
                if self._common is not None and (self._common.ended or self._common.broken):
                    await self._end(self._common)
                    self._common = None
                self._common = self._common or await self._connected()
            yield McpSession(self, self._common)
            return
        connection = await self._connected()
        try:
            yield McpSession(self, connection)
        finally:
            await self._end(connection)

    async def aclose(self) -> None:
        """End every session, and every process that was started."""
        connections = list(self._connections)
        self._connections.clear()
        self._common = None
        await asyncio.gather(*(connection.close() for connection in connections))

    # Connecting

    async def _first_connection(self) -> Connection:
        """A connection over the first route that the server takes, within the time for all of them."""
        told: str | None = None
        deadline = asyncio.get_running_loop().time() + self._connect_s
        for route in self._routes:
            connection = self._started(route)
            try:
                await connection.open(deadline - asyncio.get_running_loop().time())
            except Exception as error:
                self._connections.discard(connection)
                # What the first route gave; the failure of another one is a consequence of trying old ways.
                told = told or self._why(error, connection.seen, self._connect_s)
                if not self._worth_another_route(error, connection.seen):
                    break
            else:
                self._route = route
                return connection
        raise self._unusable(told or "cannot be reached.")

    async def _connected(self) -> Connection:
        connection = self._started(self._route or self._routes[0])
        try:
            await connection.open(self._session_s)
        except Exception as error:
            self._connections.discard(connection)
            why = self._why(error, connection.seen, self._session_s)
            raise ToolsetGone(f"{self.name}: {self._shown_text(why)}") from error
        return connection

    def _started(self, route: Route) -> Connection:
        connection = self._connect(route)
        self._connections.add(connection)
        return connection

    async def _end(self, connection: Connection) -> None:
        await connection.close()
        # Not reached when the rollout is cancelled meanwhile; aclose() then waits for the end.
        self._connections.discard(connection)

    async def _listed(self, connection: Connection) -> list[Tool]:
        """All tools, page by page. Raises UsageError for a list that is no list, TimeoutError."""
        tools: list[Tool] = []
        cursor: str | None = None
        seen: set[str] = set()
        try:
            async with asyncio.timeout(self._connect_s):
                for _ in range(MAX_PAGES):
                    page = await connection.session.list_tools(
                        params=types.PaginatedRequestParams(cursor=cursor) if cursor else None
                    )
                    tools += [Tool(tool.name, tool.description or "", tool.input_schema) for tool in page.tools]
                    cursor = page.next_cursor
                    if not cursor or cursor in seen:
                        break
                    seen.add(cursor)
        except MCPError as error:
            raise self._unusable(f"does not list its tools: {first_line(error)}. Is it a server of tools?") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise self._unusable(f"lists its tools in a form that is not MCP's ({place}: {first['msg']}).") from None
        return tools

    def _unusable(self, why: str) -> UsageError:
        return UsageError(f"MCP server {self.name}: {self._shown_text(why)}")

    def gone(self, connection: Connection, error: BaseException) -> ToolsetGone:
        """What a call of a dead session raises."""
        connection.broken = True
        why = self._why(connection.error or error, connection.seen, ALIVE_S)
        return ToolsetGone(f"{self.name}: {self._shown_text(why)}")

    def _shown_text(self, text: str) -> str:
        """For people: without our secrets, and with nothing in it that a terminal would obey."""
        return plain(self.told(text))

    def told(self, text: str) -> str:
        """The text without our secrets."""
        return redacted(text, *self._secrets)

    def _slow(self, limit_s: float) -> str:
        return f"gave no answer within {limit_s:g} s. Is it still starting?"


class McpSession:
    """The tools of one rollout."""

    def __init__(self, server: _Server, connection: Connection) -> None:
        self._server, self._connection = server, connection

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Call a tool; it may be cancelled, and the session goes on. Raises ToolsetGone when the server is dead."""
        # Not `session.call_tool`: it lists all tools anew in every session, to hold results against their schemas.
        request = types.CallToolRequest(params=types.CallToolRequestParams(name=name, arguments=arguments))
        try:
            result = await self._connection.session.send_request(request, _CALL_RESULT)
        except MCPError as error:
            if error.code in CALL_ERRORS or await self._alive():
                return ToolResult(self._server.told(error.message), is_error=True)
            raise self._server.gone(self._connection, error) from error
        except ValidationError:
            return ToolResult("The server's answer was not a tool result.", is_error=True)
        if not isinstance(result, types.CallToolResult):
            return ToolResult("The tool asks a person for input, and there is none.", is_error=True)
        return ToolResult(text_of(result), bool(result.is_error))

    async def _alive(self) -> bool:
        """Whether the session still answers: an error may be the call's own, or the end of the server."""
        if self._connection.ended:
            return False
        try:
            async with asyncio.timeout(ALIVE_S):
                await self._connection.session.list_tools()
        except (MCPError, ValidationError, TimeoutError):
            return False
        return True


class McpUrl(_Server):
    """A server that runs already: streamable HTTP, and SSE for old ones.

    url: a full one, or rnow's spelling `localhost:8931`. The host stays as it is written: Playwright MCP answers only
    to the very name that it announces.
    """

    def __init__(
        self,
        url: str,
        name: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        kind: Literal["http", "sse"] | None = None,
        shared: bool = False,
        connect_s: float = 15.0,
        session_s: float = 60.0,
        secrets: Sequence[str] = (),
    ) -> None:
        """kind: what it speaks, where that is known. secrets: parts of the URL that no message may show.

        Raises UsageError for what is no URL.
        """
        self.url = full_url(url)
        parts = urlsplit(self.url)
        where = f"{parts.hostname}-{parts.port}" if parts.port else str(parts.hostname)
        hidden = [parts.username or "", parts.password or ""]
        hidden += [piece.partition("=")[2] or piece for piece in parts.query.split("&")]
        hidden += [unquote_plus(part) for part in hidden]  # servers quote what they have understood
        self._headers = dict(headers or {})
        super().__init__(
            name or toolset_name(where),
            shared=shared,
            connect_s=connect_s,
            session_s=session_s,
            secrets=[*secrets, *self._headers.values(), *hidden],
        )
        self._shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        if kind != "sse" and not (kind is None and parts.path.rstrip("/").endswith("/sse")):
            # One protocol session a rollout is what keeps rollouts apart (Playwright MCP: a browser context), and only
            # versions with the handshake have sessions; `auto` is for servers that know the newest version only.
            self._routes += [Route("http", "legacy", self.url), Route("http", "auto", self.url)]
        if kind != "http":
            self._routes.append(Route("sse", "legacy", self.url))
            if parts.path.endswith("/mcp"):
                sibling = parts._replace(path=parts.path.removesuffix("/mcp") + "/sse")
                self._routes.append(Route("sse", "legacy", urlunsplit(sibling)))

    def _connect(self, route: Route) -> Connection:
        refusal = Refusal()
        assert route.kind != "stdio"
        return Connection(http_transport(route.kind, route.url, self._headers, refusal), route.mode, refusal)

    def _worth_another_route(self, error: BaseException, seen: Refusal) -> bool:
        """As the specification says for old servers: a 4xx to the handshake. Not where the address is the trouble."""
        if isinstance(error, httpx2.HTTPStatusError):
            return True
        return isinstance(error, MCPError) and not seen.html and seen.status not in {401, 403, 407, 421, 429}

    def _why(self, error: BaseException, seen: Refusal, limit_s: float) -> str:
        at = self._shown
        words = one_line(seen.text, 200)
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return f"{at} {self._slow(limit_s)}"
        if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
            return f"{at} is no URL that can be reached: {error}."
        if isinstance(error, httpx2.ConnectError):
            return f"nothing answers at {at} ({error}). Start the server, or check host and port."
        if seen.status in {401, 407}:
            return f"{at} asks for credentials (HTTP {seen.status}). Give headers in an mcpServers file."
        host = urlsplit(at).hostname
        if seen.status in {403, 421} and "host" in (words or str(error)).lower():
            other = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}.get(str(host), "the name that it announces")
            return f"{at} refuses the host name {host} (HTTP {seen.status}: {words or error}). Write {other} instead."
        if seen.html:
            return f"{at} answers with a web page (HTML), not as an MCP server. Check port and path {PATHS}."
        if seen.status is not None:
            said = words or (str(error) if isinstance(error, MCPError) else "")
            advice = f"Check port and path {PATHS}." if seen.status < 500 else "See the server's log."
            return f"{at} refuses (HTTP {seen.status}{f': {said}' if said else ''}). {advice}"
        if isinstance(error, MCPError) and error.code != types.CONNECTION_CLOSED:
            return f"{at} does not answer as an MCP server: {first_line(error)}. Check port and path {PATHS}."
        if isinstance(error, ValidationError):
            return f"{at} does not answer as an MCP server. Check port and path {PATHS}."
        return f"the connection to {at} was lost ({words_of(error)})."


class McpCommand(_Server):
    """A server that we start, one process for each session, spoken to over its stdin and stdout.

    command: a line that is split as a shell would, never run by one, or a list of arguments.
    env: what the process gets besides HOME, PATH and the like; the rest of our environment, keys among it, stays here.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        name: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        shared: bool = False,
        connect_s: float = 15.0,
        session_s: float = 60.0,
        secrets: Sequence[str] = (),
        leash: Leash | None = None,
    ) -> None:
        """secrets: parts of the command that no message may show. leash: ends the processes when ours is killed.

        Raises UsageError for a command that cannot be split.
        """
        self._leash = leash
        try:
            argv = shlex.split(command) if isinstance(command, str) else list(command)
        except ValueError as error:
            raise UsageError(f"The MCP command {command!r} cannot be read: {error}. Check its quotes.") from None
        if not argv:
            raise UsageError("The MCP command is empty.")
        env = dict(env or {})
        super().__init__(
            name or toolset_name(program_name(argv)),
            shared=shared,
            connect_s=connect_s,
            session_s=session_s,
            secrets=[*secrets, *env.values()],
        )
        self._line = self.told(shlex.join(argv))
        self._parameters = StdioServerParameters(
            # A server that writes bytes that are no UTF-8 spoils a line, not the session.
            command=argv[0],
            args=argv[1:],
            env=env,
            cwd=cwd,
            encoding_error_handler="replace",
        )
        self._routes = [Route("stdio", "legacy"), Route("stdio", "auto")]

    async def open(self) -> None:
        """Start it once and list its tools. Raises UsageError."""
        path = self._parameters.env.get("PATH") if self._parameters.env else None
        if self._parameters.cwd is not None and not Path(self._parameters.cwd).is_dir():
            raise self._unusable(f"the folder {self._parameters.cwd} to start it in does not exist.")
        if self._parameters.cwd is None and shutil.which(self._parameters.command, path=path) is None:
            raise self._unusable(f"the command {self._parameters.command} was not found. Install it, or give its path.")
        await super().open()

    def _connect(self, route: Route) -> Connection:
        transport, stderr = stdio_transport(self._parameters, self._leash)
        return Connection(transport, route.mode, stderr)

    def _worth_another_route(self, error: BaseException, seen: Stderr) -> bool:
        return isinstance(error, MCPError) and error.code != types.CONNECTION_CLOSED

    def _why(self, error: BaseException, seen: Stderr, limit_s: float) -> str:
        lines = seen.last_lines()
        last = f" Its last words:\n{lines}" if lines else " It said nothing on stderr."
        if isinstance(error, TimeoutError):
            return f"`{self._line}` {self._slow(limit_s)}{last if lines else ''}"
        if isinstance(error, OSError):
            return f"`{self._line}` cannot be started: {error.strerror or error}."
        if isinstance(error, MCPError) and error.code != types.CONNECTION_CLOSED:
            return f"`{self._line}` does not answer as an MCP server: {first_line(error)}.{last if lines else ''}"
        if isinstance(error, MCPError):
            return f"`{self._line}` ended.{last}"
        return f"`{self._line}` failed ({words_of(error)}).{last if lines else ''}"

    def _slow(self, limit_s: float) -> str:
        return (
            f"gave no answer within {limit_s:g} s. Does it speak MCP on its stdin? "
            "If it is still being installed (npx, uvx), run it once by hand."
        )
