"""Which hosts the embedded browser may talk to, and the proxy that keeps to it."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UsageError
from core.tools.gate import Gate
from core.tools.hosts import HostRules, as_address, is_public, normal_host
from tests.support.site import small_site


@pytest.mark.parametrize(
    "url",
    ["https://example.org/a?b#c", "http://example.org:8080", "about:blank", "http://93.184.215.14/", "http://ä.de"],
)
def test_a_public_page_is_allowed_when_no_hosts_are_named(url: str) -> None:
    assert HostRules().refuse_url(url) is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "metadata.google.internal",
        "[::1]",
        "[fc00::1]",
        "[fe80::1]",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::]",
        "[fec0::1]",
        "nas.local",
    ],
)
def test_private_hosts_are_refused_and_the_message_names_the_option(host: str) -> None:
    reason = HostRules().refuse_url(f"http://{host}/")
    assert reason is not None
    assert "private network or on this machine" in reason
    assert "--allow-hosts" in reason
    assert normal_host(host) in reason


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "chrome://version",
        "view-source:http://example.org",
        "ftp://example.org/",
        "javascript:alert(1)",
        "data:text/html,hi",
        "blob:http://example.org/1",
        "about:version",
        "http://",
        "http://[x",
        "",
        "http://example.org:99999/",
        "//example.org/",
    ],
)
def test_only_web_pages_can_be_opened(url: str) -> None:
    assert HostRules(["*"]).refuse_url(url) is not None


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        (
            "example.org",
            ["http://example.org", "https://EXAMPLE.org./"],
            ["http://www.example.org", "http://example.org:81"],
        ),
        (
            "*.example.org",
            ["https://a.example.org", "https://a.b.example.org"],
            ["https://example.org", "https://xexample.org"],
        ),
        ("localhost:8080", ["http://localhost:8080/x"], ["http://localhost", "http://localhost:8081"]),
        ("127.0.0.1:*", ["http://127.0.0.1:1234", "http://127.0.0.1"], ["http://127.0.0.2", "http://localhost"]),
        ("[::1]:8080", ["http://[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080"], ["http://[::1]"]),
        ("*", ["http://example.org:81"], ["http://127.0.0.1", "http://localhost:8080"]),
        ("münchen.example", ["http://xn--mnchen-3ya.example/", "http://münchen.example"], ["http://munchen.example"]),
        ("*.internal", [], ["http://metadata.internal/"]),
        ("metadata.internal", ["http://metadata.internal/"], ["http://x.metadata.internal/"]),
    ],
)
def test_named_hosts_and_no_others_are_allowed(pattern: str, allowed: list[str], refused: list[str]) -> None:
    rules = HostRules([pattern])
    assert [url for url in allowed if rules.refuse_url(url) is not None] == []
    assert [url for url in refused if rules.refuse_url(url) is None] == []


def test_what_is_not_listed_is_refused_with_the_list() -> None:
    reason = HostRules(["example.org", "localhost:1"]).refuse_url("https://other.example/")
    assert reason is not None
    assert "other.example:443 is not among the allowed hosts (example.org, localhost:1)" in reason
    assert "--allow-hosts other.example:443" in reason


def test_a_private_address_is_allowed_behind_an_exact_name_only() -> None:
    private = ipaddress.ip_address("10.0.0.7")
    assert HostRules(["wiki.example"]).refuse_address("wiki.example", 443, private) is None
    for rules in (HostRules(), HostRules(["*.example"]), HostRules(["*"]), HostRules(["wiki.example:8443"])):
        reason = rules.refuse_address("wiki.example", 443, private)
        assert reason is not None
        assert "wiki.example stands for 10.0.0.7" in reason


@pytest.mark.parametrize(
    "pattern", ["", "https://example.org", "example.org/path", "a b", "ex*mple.org", "example.org:0", "a@b"]
)
def test_a_pattern_that_cannot_be_meant_is_a_usage_error(pattern: str) -> None:
    with pytest.raises(UsageError, match="--allow-hosts"):
        HostRules([pattern])


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_public_in_every_ipv6_form(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    forms = [
        f"::ffff:{address}",
        f"64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::",
    ]
    assert {is_public(ipaddress.ip_address(form)) for form in forms} == {is_public(address)}


@given(st.ip_addresses())
def test_an_address_is_refused_exactly_when_it_is_not_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    assert (HostRules().refuse_url(f"http://{host}/") is None) == is_public(address)
    assert HostRules([host]).refuse_url(f"http://{host}/") is None


@given(st.text(max_size=40))
def test_no_text_breaks_the_rules(text: str) -> None:
    HostRules().refuse_url(text)
    HostRules().refuse_url(f"http://{text}/")
    assert normal_host(normal_host(text)) == normal_host(text) or as_address(text) is None


# The proxy


@asynccontextmanager
async def gate(*allow: str, **options: Any) -> AsyncIterator[Gate]:
    opened = Gate(HostRules(allow), **options)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.aclose()


async def ask(gate: Gate, request: str, limit_s: float = 10) -> bytes:
    """What the proxy answers to a raw request, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gate.url.rpartition(":")[2]))
    try:
        writer.write(request.replace("\n", "\r\n").encode())
        return await asyncio.wait_for(reader.read(), limit_s)
    finally:
        writer.close()


@asynccontextmanager
async def raw_server(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that does what `answer` does. "127.0.0.1:PORT"."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def test_an_allowed_page_comes_through_and_its_connection_ends_with_it() -> None:
    async def main() -> None:
        with small_site() as site:
            async with gate(site.host) as opened:
                answer = await ask(
                    opened, f"GET {site.base}?x=1 HTTP/1.1\nHost: {site.host}\nProxy-Connection: keep-alive\n\n"
                )
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"Connection: close" in answer
            assert b"<h1>Bridges</h1>" in answer or b"Not found" in answer
            [(path, headers)] = site.requests
            assert path == "/?x=1"
            assert headers["connection"] == "close"
            assert "proxy-connection" not in headers

    asyncio.run(main())


def test_a_refused_host_gets_no_connection_and_the_reason_is_kept() -> None:
    async def main() -> None:
        with small_site() as site:
            port = int(site.host.partition(":")[2])
            async with gate() as opened:
                plain = await ask(opened, f"GET {site.base}/ HTTP/1.1\nHost: x\n\n")
                tunnel = await ask(opened, f"CONNECT {site.host} HTTP/1.1\nHost: x\n\n")
                six = await ask(opened, "CONNECT [::1]:443 HTTP/1.1\nHost: x\n\n")
                assert plain.startswith(b"HTTP/1.1 403")
                assert b"--allow-hosts " + site.host.encode() in plain
                assert tunnel.startswith(b"HTTP/1.1 403")
                assert six.startswith(b"HTTP/1.1 403")
                assert opened.problems["127.0.0.1", port].startswith("Refused: 127.0.0.1")
            assert site.requests == []

    asyncio.run(main())


def test_a_public_name_that_stands_for_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with small_site() as site:
            port = int(site.host.partition(":")[2])

            async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
                assert host == "rebinding.example"
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
            request = f"GET http://rebinding.example:{port}/ HTTP/1.1\nHost: x\n\n"
            async with gate() as opened:
                assert b"rebinding.example stands for 127.0.0.1" in await ask(opened, request)
            assert site.requests == []
            async with gate(f"rebinding.example:{port}") as opened:
                assert b"<h1>Bridges</h1>" in await ask(opened, request)

    asyncio.run(main())


def test_a_tunnel_carries_bytes_both_ways() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data.upper())
            await writer.drain()
            if b"end" in data:
                return

    async def main() -> None:
        async with raw_server(echo) as host, gate(host) as opened:
            answer = await ask(opened, f"CONNECT {host} HTTP/1.1\nHost: x\n\nhello, this is the end")
            assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nHELLO, THIS IS THE END"

    asyncio.run(main())


def test_an_endless_answer_is_cut_off() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()

    async def main() -> None:
        async with raw_server(endless) as host, gate(host, answer_bytes=1_000_000, tunnel_bytes=500_000) as opened:
            answer = await ask(opened, f"GET http://{host}/ HTTP/1.1\nHost: x\n\n")
            assert 1_000_000 < len(answer) < 1_300_000
            tunnel = await ask(opened, f"CONNECT {host} HTTP/1.1\nHost: x\n\nGET / HTTP/1.1\n\n")
            assert 500_000 < len(tunnel) < 800_000

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b"502 Bad Gateway"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", b"502 Bad Gateway"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK"),
    ],
)
def test_a_server_that_speaks_strangely_harms_nobody(sent: bytes, expected: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()

    async def main() -> None:
        async with raw_server(answer) as host, gate(host) as opened:
            assert expected in (await ask(opened, f"GET http://{host}/ HTTP/1.1\nHost: x\n\n")).split(b"\r\n")[0]

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_text",
    [
        "\n\n",
        "NONSENSE\n\n",
        "GET / HTTP/1.1\n\n",
        "GET ftp://example.org/ HTTP/1.1\n\n",
        "CONNECT a:b HTTP/1.1\n\n",
        "GET http:///x HTTP/1.1\n\n",
        f"GET http://{'a' * 300000}/ HTTP/1.1\n\n",
    ],
)
def test_a_request_that_is_none_gets_an_error(request_text: str) -> None:
    async def main() -> None:
        async with gate("*") as opened:
            assert (await ask(opened, request_text)).split(b" ")[1] in (b"403", b"502")

    asyncio.run(main())


def test_a_server_that_cannot_be_reached_is_told_as_such_until_it_can() -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
            port = taken.getsockname()[1]
            async with gate("127.0.0.1:*") as opened:
                request = f"GET http://127.0.0.1:{port}/ HTTP/1.1\nHost: x\n\n"
                assert b"502 Bad Gateway" in await ask(opened, request)
                assert opened.problems["127.0.0.1", port].startswith(f"Could not connect to 127.0.0.1:{port}")
                taken.listen()
                reader, writer = await asyncio.open_connection("127.0.0.1", int(opened.url.rpartition(":")[2]))
                writer.write(request.replace("\n", "\r\n").encode())
                for _ in range(100):
                    if not opened.problems:
                        break
                    await asyncio.sleep(0.02)
                assert opened.problems == {}
                writer.close()
                del reader

    asyncio.run(main())


def test_when_the_proxy_ends_so_do_its_connections() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def main() -> None:
        async with raw_server(silent) as host:
            async with gate(host) as opened:
                waiting = asyncio.create_task(ask(opened, f"GET http://{host}/ HTTP/1.1\nHost: x\n\n"))
                await asyncio.sleep(0.2)
                assert not waiting.done()
            assert await waiting == b""

    asyncio.run(main())
