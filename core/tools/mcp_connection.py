"""One MCP protocol session in an asyncio task of its own, over streamable HTTP, SSE or a child's stdio.

The SDK's contexts are made of task groups, which must be left by the task that entered them; a rollout may be
cancelled anywhere. So a task of ours holds the contexts, and rollouts only send requests through the session.
"""

import asyncio
import logging
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio
import httpx2
from mcp.client.client import Client
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from .leash import Leash
from .plain import plain

# Without a handler of its own, Python prints the SDK's warnings (every line of a server that is no JSON) to stderr.
logging.getLogger("mcp").addHandler(logging.NullHandler())

Mode = Literal["legacy", "auto"]
Transport = Callable[[], AbstractAsyncContextManager[Any]]

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""Of one SSE event. The SDK's 1 MiB is less than one large screenshot, and an event above it fails the call."""
CLOSE_S = 10.0
"""For an orderly end: a child gets 2 s after its stdin closed and 2 s after SIGTERM before SIGKILL."""


class Connection:
    """A session with a server: `open`, then `session`, then `close`, from any tasks of one event loop."""

    def __init__(self, transport: Transport, mode: Mode, seen: Any) -> None:
        """seen: what tells why it failed: a Refusal, or a Stderr."""
        self._transport = transport
        self.seen = seen
        self._mode: Mode = mode
        self._stop = asyncio.Event()
        self._scope = anyio.CancelScope()
        self._ready: asyncio.Future[ClientSession] | None = None
        self._task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        """Why the session ended by itself, if it did."""
        self.broken = False
        """Whether a call found that nobody answers any more: the end of a child does not end the session by itself."""

    async def open(self, limit_s: float | None = None) -> ClientSession:
        """Connect and shake hands. Raises what went wrong, taken out of its exception groups; TimeoutError after
        limit_s. Nothing is left of a connection that was not opened."""
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(self._ready))
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.shield(self._ready)
        except BaseException:
            await self.close()
            raise

    @property
    def session(self) -> ClientSession:
        """To send requests with. It answers that the connection is closed once it is."""
        assert self._ready is not None
        return self._ready.result()

    @property
    def ended(self) -> bool:
        """Whether nothing holds the session any more."""
        return self._task is None or self._task.done()

    async def close(self) -> None:
        """End the session and its process. Bounded in time; may be called twice, and again after a cancelled call."""
        if self._task is None:
            return
        self._stop.set()
        if self._ready is not None and not self._ready.done():
            self._scope.cancel()
        # asyncio.wait leaves the task alone when this call is cancelled.
        await asyncio.wait({self._task}, timeout=CLOSE_S)
        if not self._task.done():
            # A scope and not task.cancel(), which would break into the SDK's shielded end of a child process.
            self._scope.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_S)

    async def _hold(self, ready: asyncio.Future[ClientSession]) -> None:
        try:
            with self._scope:
                # No cache: a list of tools is asked for once, and results of calls are never to be remembered.
                async with Client(self._transport(), mode=self._mode, cache=None) as client:
                    ready.set_result(client.session)  # not the client, which forgets it at its end
                    await self._stop.wait()
        except BaseException as error:
            self.error = first_cause(error)
            if not isinstance(error, Exception | BaseExceptionGroup):
                raise
        finally:
            if not ready.done():
                if self.error is None or isinstance(self.error, asyncio.CancelledError):
                    ready.cancel()
                else:
                    ready.set_exception(self.error)
                    ready.exception()  # taken: nobody may be waiting for it any more


def first_cause(error: BaseException) -> BaseException:
    """The first exception inside groups of groups that is no cancellation."""
    while isinstance(error, BaseExceptionGroup):
        inner = [one for one in error.exceptions if not isinstance(one, asyncio.CancelledError)]
        error = (inner or list(error.exceptions))[0]
    return error


# --- HTTP -----------------------------------------------------------------------------------------------------------


@dataclass
class Refusal:
    """The last answer of a server above HTTP 399, or one that is HTML: the SDK's errors do not tell."""

    status: int | None = None
    text: str = ""
    html: bool = False

    async def watch(self, response: httpx2.Response) -> None:
        kind = response.headers.get("content-type", "").lower()
        self.html = self.html or "html" in kind
        if response.status_code < 400:
            return
        self.status, self.text = response.status_code, ""
        if "json" in kind:
            return  # the SDK reads it and quotes what it says
        async for chunk in response.aiter_text(2000):
            self.text = chunk
            break


@cache
def _tls() -> ssl.SSLContext:
    """Made once: loading the authorities costs tens of milliseconds, and every rollout has a client of its own."""
    return httpx2.create_ssl_context()


def is_loopback(url: str) -> bool:
    host = (urlsplit(url).hostname or "").lower()
    return host in {"localhost", "::1"} or host.endswith(".localhost") or host.startswith("127.")


def http_transport(kind: Literal["http", "sse"], url: str, headers: dict[str, str], refusal: Refusal) -> Transport:
    """A transport to a URL, with cookies and connections of its own."""

    def http_client(
        headers: dict[str, str] | None = headers,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers=headers,
            auth=auth,
            # Whoever calls a tool keeps the time; a silent stream is not a dead one.
            timeout=httpx2.Timeout(30.0, read=None),
            limits=httpx2.Limits(max_connections=None),
            verify=_tls(),
            trust_env=not is_loopback(url),  # no proxy reaches this machine's own ports
            event_hooks={"response": [refusal.watch]},
        )

    @asynccontextmanager
    async def streams() -> AsyncIterator[Any]:
        if kind == "sse":
            async with sse_client(url, headers=headers, httpx_client_factory=http_client) as pair:
                yield pair
        else:
            async with (
                http_client() as client,
                streamable_http_client(url, http_client=client, max_sse_event_size=MAX_EVENT_BYTES) as pair,
            ):
                yield pair

    return streams


# --- stdio ----------------------------------------------------------------------------------------------------------


SAYS_ITS_PID = ("/bin/sh", "-c", 'echo "distill-pid $$" >&2; exec "$@"', "sh")
"""Before a command: its process says its number on stderr before anything else. The SDK tells nobody."""
_PID_LINE = re.compile(rb"(?m)^distill-pid (\d+)\n")


class Stderr(asyncio.Protocol):
    """What a child wrote to its stderr last; none of it goes to the terminal.

    says_pid: it was started with SAYS_ITS_PID.
    """

    KEPT_BYTES = 16_000

    def __init__(self, says_pid: bool = False) -> None:
        self._kept = bytearray()
        self._says_pid = says_pid
        self._pid: int | None = None
        self._changed = asyncio.Event()
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._kept += data
        # Not always the first line: a shell may complain about the locale before.
        if self._says_pid and (said := _PID_LINE.search(self._kept)):
            self._says_pid = False
            self._pid = int(said[1])
            del self._kept[said.start() : said.end()]
            self._changed.set()
        del self._kept[: -self.KEPT_BYTES]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self._changed.set()

    async def pid(self) -> int | None:
        """The child's, as soon as it has said it; None when it ended without."""
        await self._changed.wait()
        return self._pid

    def last_lines(self, count: int = 20) -> str:
        """Fit for a terminal: without colours, other control characters as visible escapes."""
        lines = [plain(line).rstrip() for line in self._kept.decode("utf-8", "replace").splitlines()]
        return "\n".join([line for line in lines if line][-count:])


@contextmanager
def held(leash: Leash, pid: int | None) -> Iterator[None]:
    """Keep a process on the leash for as long as the block lasts."""
    if pid is None:
        yield
        return
    leash.hold_process(pid)
    try:
        yield
    finally:
        leash.release(pid)


def stdio_transport(parameters: StdioServerParameters, leash: Leash | None = None) -> tuple[Transport, Stderr]:
    """A transport to a child of our own, which lives as long as the session, and what it says on stderr.

    leash: ends the child when we die without ending it; a server may well take no notice of the end of its stdin.
    """
    on_leash = leash is not None and sys.platform != "win32"
    stderr = Stderr(says_pid=on_leash)
    if on_leash:
        words = [*SAYS_ITS_PID[1:], parameters.command, *parameters.args]
        parameters = parameters.model_copy(update={"command": SAYS_ITS_PID[0], "args": words})

    @asynccontextmanager
    async def streams() -> AsyncIterator[Any]:
        if sys.platform == "win32":  # its event loop cannot read from an ordinary pipe
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                async with stdio_client(parameters, errlog=nowhere) as pair:
                    yield pair
            return
        read_end, write_end = os.pipe()
        with os.fdopen(write_end, "w", encoding="utf-8") as writer:
            reader = os.fdopen(read_end, "rb", 0)
            try:
                pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: stderr, reader)
            except BaseException:
                reader.close()
                raise
            try:
                # The leash outside: it lets go of the child when the SDK has ended it.
                async with AsyncExitStack() as outer, stdio_client(parameters, errlog=writer) as pair:
                    writer.close()  # the child's own copy is left, so that its end is seen
                    if leash is not None:
                        outer.enter_context(held(leash, await stderr.pid()))
                    yield pair
            finally:
                writer.close()
                # A child that died has said why; a grandchild may hold the pipe for longer than we wait.
                with anyio.move_on_after(0.3, shield=True):
                    await stderr.ended.wait()
                pipe.close()

    return streams, stderr
