"""A proxy of the environment is used, with its password, and only where NO_PROXY allows it."""

import asyncio
import base64

import pytest

from core.errors import TransientError, UsageError
from core.teachers.api_client import environment_proxy
from core.teachers.openai_api import ApiTeacher
from core.teachers.protocol import Sampling


@pytest.fixture(autouse=True)
def no_proxy_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_proxy_is_that_of_the_scheme_unless_no_proxy_names_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_proxy("https://teacher.example/v1") is None
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert environment_proxy("https://teacher.example/v1") == "http://proxy.example:3128"
    assert environment_proxy("http://teacher.example/v1") is None
    monkeypatch.setenv("NO_PROXY", "localhost,teacher.example")
    assert environment_proxy("https://teacher.example/v1") is None


def test_a_proxy_without_a_scheme_is_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy.example:3128")
    assert environment_proxy("http://teacher.example/v1") == "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        ("socks5://proxy.example:1080", r"\(HTTP_PROXY\) is of the kind socks5; only http and https are supported"),
        ("http://user:secret@a..b:3128", r"\(HTTP_PROXY\): http://\*\*\*@a\.\.b:3128 is not a URL such as"),
        ("http://proxy.example:port", r"\(HTTP_PROXY\): http://proxy\.example:port is not a URL such as"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, proxy: str, problem: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UsageError, match=problem):
        ApiTeacher("m", "openai", base_url="http://teacher.invalid/v1")


def test_requests_go_through_the_proxy_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@127.0.0.1:{port}")
        teacher = ApiTeacher("m", "openai", base_url="http://teacher.invalid/v1")
        try:
            with pytest.raises(TransientError, match="502"):
                await teacher.complete([{"role": "user", "content": "hello"}], Sampling(10, 0.0))
        finally:
            await teacher.aclose()
            server.close()
            await server.wait_closed()

    asyncio.run(ask())
    head = seen[0].decode("ascii")
    assert head.startswith("POST http://teacher.invalid/v1/chat/completions HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic " + base64.b64encode(b"user:secret").decode() in head
