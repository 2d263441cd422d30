"""The server over HTTP: who may ask (Host, Origin, bearer token), how much at a time, and an end at once."""

import asyncio
import contextlib
import errno
import hmac
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from core.data.stop import Stop
from core.errors import UsageError

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/mcp"
HEALTH = "/healthz"
TOKEN_KEY = "DISTILL_MCP_TOKEN"
SHORTEST_TOKEN = 16
MOST_BYTES = 4 * 1024 * 1024
"""Of a request's body."""
MOST_AT_ONCE = 256
"""Connections and running requests; more are answered with 503."""
MOST_SESSIONS = 1000
"""Of clients that speak a protocol before 2026-07-28; later ones have none."""
LAST_WORDS_S = 1
"""So long after the end is asked for, answers that are under way may still be sent; streams are cut then."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def not_of_a_client_that_left(record: logging.LogRecord) -> bool:
    """Leaves out tracebacks of last words that find nobody who would read them."""

    def gone(error: BaseException | None) -> bool:
        if isinstance(error, BaseExceptionGroup):
            return all(gone(each) for each in error.exceptions)
        if isinstance(error, anyio.ClosedResourceError | anyio.BrokenResourceError):
            return True
        return error is not None and gone(error.__context__)  # an apology that finds nobody either

    return not (record.exc_info and gone(record.exc_info[1]))


def serve_http(
    server: "MCPServer[Any]",
    host: str,
    port: int,
    token: str | None,
    allow_hosts: Sequence[str],
    *,
    stop: Stop,
    note: Callable[[str], None],
) -> None:
    """Answer at http://HOST:PORT/mcp until `stop` is asked for.

    port: 0 for any that is free; `note` gets the address, in a line of its own.
    token: what a caller has to send as `Authorization: Bearer TOKEN`; None: whoever is on this machine may ask.
    allow_hosts: further names under which this server is reached (`name` or `name:port`), for Host and Origin.
    Raises UsageError for an address that is in use or is none, for one beyond this machine without a token, and for
    a token that can be guessed.
    """
    import uvicorn

    log = logging.getLogger("uvicorn.error")
    for told in (log, logging.getLogger("mcp.server.streamable_http")):
        told.addFilter(not_of_a_client_that_left)

    class Server(uvicorn.Server):
        """Ends with `stop`; the signals are the command line's, not uvicorn's."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            log.disabled = True  # each stream that is cut would be an error to it
            await super().shutdown(sockets)

    with listen(host, port, token) as listener:
        bound = listener.getsockname()[1]
        allowed = allowed_hosts(host, bound, allow_hosts)
        config = uvicorn.Config(
            application(server, allowed, token),
            log_config=None,
            access_log=False,
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_AT_ONCE,
            timeout_graceful_shutdown=LAST_WORDS_S,
        )
        http = Server(config)

        def leave() -> None:
            http.should_exit = True

        stop.subscribe(leave)
        note(f"listening on http://{in_url(host)}:{bound}{PATH}")
        if token is None:
            note(f"every program on this machine may ask; {TOKEN_KEY} would let in only who knows it")
        if stop.requested:  # before there was anybody to tell
            leave()
        try:
            asyncio.run(http.serve([listener]))
        finally:
            log.disabled = False


def application(server: "MCPServer[Any]", allowed: Sequence[str], token: str | None) -> "ASGIApp":
    """The ASGI application: the SDK's at /mcp, and /healthz, which says no more than that it lives."""
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.responses import JSONResponse, PlainTextResponse

    inner = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=MOST_BYTES,
        max_sessions=MOST_SESSIONS,
        transport_security=TransportSecuritySettings(
            allowed_hosts=list(allowed),
            allowed_origins=[f"{scheme}://{name}" for scheme in ("http", "https") for name in allowed],
        ),
    )

    async def application(scope: "Scope", receive: "Receive", send: "Send") -> None:
        answer: ASGIApp = inner
        if scope["type"] == "http":
            if scope["path"] == HEALTH:
                answer = PlainTextResponse("ok\n")
            elif token is not None and (refusal := refused(scope["headers"], token)) is not None:
                says = {"error": f"This server wants the header `Authorization: Bearer TOKEN`: its {TOKEN_KEY}."}
                answer = JSONResponse(says, 401, {"WWW-Authenticate": refusal})
        await answer(scope, receive, send)

    return application


def refused(headers: Sequence[tuple[bytes, bytes]], token: str) -> str | None:
    """None where the token is the right one, else what WWW-Authenticate says (RFC 6750, section 3)."""
    given = [value for name, value in headers if name == b"authorization"]
    scheme, _, credentials = given[0].partition(b" ") if given else (b"", b"", b"")
    if scheme.lower() != b"bearer":
        return 'Bearer realm="distill"'
    if len(given) == 1 and hmac.compare_digest(credentials.strip(b" "), token.encode("utf-8")):
        return None
    return 'Bearer realm="distill", error="invalid_token", error_description="another token is wanted"'


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """A socket that listens there. Raises UsageError, see serve_http."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host or "?", port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError):
        raise UsageError(f"--host {host}: no address of that name on this machine. Try 127.0.0.1.") from None
    if token is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise UsageError(
            f"--host {host} can be reached from other machines, and no token is set. Put {TOKEN_KEY}=... (at least "
            f"{SHORTEST_TOKEN} characters) into the environment or .env, or use --host 127.0.0.1."
        )
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UsageError(
            f"{TOKEN_KEY} has {len(token)} characters, which can be guessed: at least {SHORTEST_TOKEN} are needed. "
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=MOST_AT_ONCE)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"--port {port} of {host} is in use. Choose another, or 0 for any that is free.") from None
        raise UsageError(f"--host {host} --port {port}: {error.strerror}. Try --host 127.0.0.1 --port 0.") from None


def allowed_hosts(host: str, port: int, more: Sequence[str]) -> list[str]:
    """What Host may be, without wildcards. Raises UsageError for a name that is none."""
    names = [f"{name}:{port}" for name in dict.fromkeys((*LOOPBACK, in_url(host).lower()))]
    for name in more:
        if not re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", name):
            raise UsageError(f"--allow-host {name!r} is no host. Give name or name:port, without http:// and path.")
        names += [name.lower()] if re.search(r":\d+$", name) else [f"{name.lower()}:{port}", name.lower()]
    if port == 80:  # which no client writes
        names += [name.removesuffix(":80") for name in names]
    return list(dict.fromkeys(names))


def in_url(host: str) -> str:
    """An IPv6 address in its brackets."""
    return f"[{host}]" if ":" in host else host
