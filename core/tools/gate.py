"""The proxy between the embedded browser and the network.

A browser's own interception of requests misses redirects, and a name that was checked may stand for another address
a moment later. So all of Chromium's traffic goes through this one: it looks the name up, checks what it found, and
connects to exactly that address.
"""

import asyncio
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from .hosts import Address, HostRules, as_address, normal_host, place

_HEAD_BYTES = 256 * 1024
_CHUNK_BYTES = 64 * 1024
_CONNECT_S = 10.0
_LAST_BYTES_S = 5.0
_REMEMBERED = 4096
_HOP_HEADERS = (b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive")


class _Refused(Exception):
    """The rules say no. The message says why."""


class Gate:
    """An HTTP proxy on loopback that lets through what the rules allow.

    answer_bytes: what one answer over http: may bring; the rest is cut off (a page of 50 MB costs Chromium gigabytes).
    tunnel_bytes: what one connection for https: may bring, with all its answers: they cannot be told apart here.
    problems: why the last attempt at a (host, port) came to nothing: "Refused: ...", "Could not connect: ...".
    """

    def __init__(self, rules: HostRules, answer_bytes: int = 8 * 2**20, tunnel_bytes: int = 128 * 2**20) -> None:
        self._rules = rules
        self._answer_bytes, self._tunnel_bytes = answer_bytes, tunnel_bytes
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self.problems: dict[tuple[str, int], str] = {}

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES)

    async def aclose(self) -> None:
        """End the server and every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._request(reader, writer)
        except _Refused as error:
            _answer(writer, "403 Forbidden", _told(error))
        except (OSError, ValueError, LookupError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            _answer(writer, "502 Bad Gateway", _told(error))
        except asyncio.CancelledError:
            writer.transport.abort()  # and no `raise`: the server's own callback would log it
        finally:
            await _end(writer)
            self._connections.discard(task)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request or one tunnel; the connection ends with it, so that no request follows to another host."""
        start, headers = await _head(reader)
        method, target, version = start.split(b" ", 2)
        tunnel = method == b"CONNECT"
        if tunnel:
            host, _, port = target.decode("ascii").rpartition(":")
            far_reader, far_writer = await self._connect(normal_host(host), int(port))
        else:
            match = re.fullmatch(rb"http://([^/?#]*)([^#]*)", target)
            if match is None:
                raise _Refused("only http: and https: are let through.")
            host, port = place(urlsplit(f"http://{match[1].decode('latin-1')}"))
            far_reader, far_writer = await self._connect(host, port)
            path = match[2] if match[2].startswith(b"/") else b"/" + match[2]
            far_writer.write(_closing(b" ".join((method, path, version)), headers))
        try:
            if tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            up = asyncio.create_task(_copy(reader, far_writer))
            limit_bytes = self._tunnel_bytes if tunnel else self._answer_bytes
            down = asyncio.create_task(_down(far_reader, writer, limit_bytes, has_head=not tunnel))
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                if down.done():
                    down.result()
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        finally:
            far_writer.transport.abort()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to an address that was checked. Raises _Refused, OSError or TimeoutError."""
        try:
            far = await self._connected(host, port)
        except (_Refused, OSError, TimeoutError) as error:
            while len(self.problems) >= _REMEMBERED:
                del self.problems[next(iter(self.problems))]
            self.problems[host, port] = _told(error, f"{host}:{port}")
            raise
        self.problems.pop((host, port), None)
        return far

    async def _connected(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        problem: Exception = OSError("the name has no address")
        for address in await self._allowed_addresses(host, port):
            try:
                connecting = asyncio.open_connection(str(address), port, limit=_HEAD_BYTES)
                return await asyncio.wait_for(connecting, _CONNECT_S)
            except (OSError, TimeoutError) as error:
                problem = error
        raise problem

    async def _allowed_addresses(self, host: str, port: int) -> list[Address]:
        reason = self._rules.refuse_host(host, port)
        if reason is not None:
            raise _Refused(reason)
        loop = asyncio.get_running_loop()
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), _CONNECT_S)
        addresses = [address for entry in found if (address := as_address(str(entry[4][0]))) is not None]
        reasons = {address: self._rules.refuse_address(host, port, address) for address in addresses}
        allowed = [address for address in addresses if reasons[address] is None]
        if addresses and not allowed:
            raise _Refused(reasons[addresses[0]] or "")
        return allowed


def _told(error: Exception, where: str = "the server") -> str:
    if isinstance(error, _Refused):
        return f"Refused: {error}"
    why = f"no answer within {_CONNECT_S:g} s" if isinstance(error, TimeoutError) else str(error)
    return f"Could not connect to {where}: {why}"


async def _head(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    """The first line and the header lines of a message."""
    first, *headers = (await reader.readuntil(b"\r\n\r\n")).rstrip(b"\r\n").split(b"\r\n")
    return first, headers


def _closing(first: bytes, headers: list[bytes]) -> bytes:
    """A head that ends its connection, so that each request gets a connection and a check of its own."""
    kept = [line for line in headers if line.partition(b":")[0].strip().lower() not in _HOP_HEADERS]
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


async def _down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit_bytes: int, has_head: bool) -> None:
    """An answer, or the half of a tunnel that comes from afar."""
    while has_head:
        first, headers = await _head(reader)
        if first.split(b" ", 2)[1][:1] != b"1":  # 100 and 103 say nothing that the browser needs
            writer.write(_closing(first, headers))
            break
    try:
        await _copy(reader, writer, limit_bytes)
    except OSError:
        pass  # cut off: the browser sees that by the length


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit_bytes: int | None = None) -> None:
    copied = 0
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
        copied += len(data)
        if limit_bytes is not None and copied > limit_bytes:
            return


def _answer(writer: asyncio.StreamWriter, status: str, text: str) -> None:
    """The proxy's own answer. Harmless where another has begun: the connection is about to end."""
    body = text.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    if not writer.is_closing():
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)


async def _end(writer: asyncio.StreamWriter) -> None:
    """Send what is left, but wait for a reader that has stopped no longer than a few seconds."""
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), _LAST_BYTES_S)
    except (OSError, TimeoutError, asyncio.CancelledError):
        writer.transport.abort()
