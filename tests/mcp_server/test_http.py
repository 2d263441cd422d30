"""The server over HTTP, asked by the SDK's client and by hand."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from core.data.stop import Stop
from core.errors import UsageError
from core.jobs import files
from core.jobs.job import SPEC, SUPERVISOR
from core.jobs.processes import hold
from mcp_server.http import LAST_WORDS_S, MOST_AT_ONCE, TOKEN_KEY, allowed_hosts, serve_http
from tests.support.mcp_http import SHIPPED, started

TOKEN = "a-token-of-24-characters"
Era = Literal["legacy", "2026-07-28"]
ERAS: list[Era] = ["legacy", "2026-07-28"]
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


WITH_IPV6 = pytest.mark.skipif(not ipv6(), reason="this machine has no IPv6 loopback")


def small_server() -> MCPServer[Any]:
    """Two tools: one answers, one is called off with its caller."""
    server: MCPServer[Any] = MCPServer("small", log_level="WARNING")

    @server.tool()
    def size(text: str) -> int:
        return len(text)

    @server.tool()
    async def wait(ctx: Context[Any, Any]) -> str:
        await ctx.report_progress(0, 1)
        await anyio.sleep(60)
        return "waited"

    return server


@contextmanager
def served(
    token: str | None = None, *, host: str = "127.0.0.1", allow_hosts: tuple[str, ...] = (), port: int = 0
) -> Iterator[str]:
    """Its address, http://...:PORT/mcp. Fails when it does not end soon after it is asked to."""
    stop, notes, there = Stop(), list[str](), threading.Event()

    def note(line: str) -> None:
        notes.append(line)
        there.set()

    def serve() -> None:
        serve_http(small_server(), host, port, token, allow_hosts, stop=stop, note=note)

    thread = threading.Thread(target=serve)
    thread.start()
    assert there.wait(20), "it did not say where it listens"
    try:
        yield notes[0].removeprefix("listening on ")
    finally:
        stop.ask()
        thread.join(LAST_WORDS_S + 10)
        assert not thread.is_alive(), "it did not end"


def post(url: str, body: Any = None, **headers: str) -> httpx2.Response:
    """A request of 2026-07-28, as a client would write it."""
    message = {**LIST, "params": {"_meta": META}} if body is None else body
    standard = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/list",
    }
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.post(url, json=message, headers={**standard, **given}, timeout=20, trust_env=False)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", pytest.param("::1", marks=WITH_IPV6)])
def test_a_client_of_either_era_lists_and_calls_tools(era: Era, host: str):
    async def ask(url: str) -> None:
        async with Client(url, mode=era) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["size", "wait"]
            assert (await client.call_tool("size", {"text": "five!"})).structured_content == {"result": 5}

    with served(host=host) as url:
        assert url.startswith(f"http://{'[::1]' if host == '::1' else host}:")
        anyio.run(ask, url)


def test_another_host_or_origin_is_refused_before_anything_is_done():
    with served(allow_hosts=("distill.example",)) as url:
        port = port_of(url)
        for host in (
            f"127.0.0.1:{port}",
            f"localhost:{port}",
            f"[::1]:{port}",
            f"distill.example:{port}",
            "distill.example",
        ):
            assert post(url, Host=host).status_code == 200, host
        for host in (
            "evil.example",
            f"evil.example:{port}",
            f"localhost.evil.example:{port}",
            f"localhost:{port + 1}",
            "localhost",
        ):
            assert post(url, Host=host).status_code == 421, host
        for origin in (f"http://localhost:{port}", f"http://127.0.0.1:{port}", "https://distill.example"):
            assert post(url, Origin=origin).status_code == 200, origin
        for origin in (
            "http://evil.example",
            "null",
            f"http://localhost:{port}.evil.example",
            f"http://localhost:{port + 1}",
        ):
            assert post(url, Origin=origin).status_code == 403, origin


def test_only_who_knows_the_token_is_answered():
    with served(TOKEN) as url:
        nothing = post(url)
        assert nothing.status_code == 401
        assert nothing.headers["WWW-Authenticate"] == 'Bearer realm="distill"'
        assert TOKEN_KEY in nothing.json()["error"]
        for wrong in ("Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer {TOKEN.upper()}"):
            refusal = post(url, Authorization=wrong)
            assert refusal.status_code == 401, wrong
            assert 'error="invalid_token"' in refusal.headers["WWW-Authenticate"]
            assert TOKEN not in refusal.text
        for other in (f"Basic {TOKEN}", TOKEN):
            assert post(url, Authorization=other).status_code == 401, other
        for right in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            assert post(url, Authorization=right).status_code == 200, right
        for method in ("GET", "DELETE", "OPTIONS"):  # streams and sessions too
            assert httpx2.request(method, url, trust_env=False).status_code == 401, method


def test_two_tokens_and_bytes_that_are_no_text_are_refused():
    with served(TOKEN) as url:
        for values in ([f"Bearer {TOKEN}".encode(), b"Bearer another-one-of-them"], [b"Bearer \xff\xfe\xe9"]):
            connection = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=20)
            connection.putrequest("POST", "/mcp")
            for value in values:
                connection.putheader("Authorization", value)
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            assert connection.getresponse().status == 401
            connection.close()


def test_a_client_of_the_sdk_shows_the_token():
    async def ask(url: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False) as http_client,
            Client(streamable_http_client(url, http_client=http_client)) as client,
        ):
            assert (await client.call_tool("size", {"text": "ab"})).structured_content == {"result": 2}

    with served(TOKEN) as url:
        anyio.run(ask, url)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "no.such.host.invalid"])
def test_an_address_beyond_this_machine_needs_a_token(host: str):
    with pytest.raises(UsageError) as caught:
        serve_http(small_server(), host, 0, None, (), stop=Stop(), note=pytest.fail)
    assert TOKEN_KEY in str(caught.value) or "no address of that name" in str(caught.value)


def test_with_a_token_it_may_listen_on_every_address():
    with served(TOKEN, host="0.0.0.0", allow_hosts=("box.example",)) as url:
        here = f"http://127.0.0.1:{port_of(url)}/mcp"
        assert post(here).status_code == 401
        assert post(here, Authorization=f"Bearer {TOKEN}", Host="box.example").status_code == 200
        assert post(here, Authorization=f"Bearer {TOKEN}", Host="other.example").status_code == 421


def test_a_token_that_can_be_guessed_is_refused():
    with pytest.raises(UsageError, match=rf"{TOKEN_KEY} has 15 characters.*at least 16") as caught:
        serve_http(small_server(), "127.0.0.1", 0, "fifteen-letters", (), stop=Stop(), note=pytest.fail)
    assert "fifteen-letters" not in str(caught.value)


def test_a_port_in_use_is_named():
    with (
        served() as url,
        pytest.raises(UsageError, match=rf"--port {port_of(url)} of 127.0.0.1 is in use\. Choose another"),
    ):
        serve_http(small_server(), "127.0.0.1", port_of(url), None, (), stop=Stop(), note=pytest.fail)


@pytest.mark.parametrize("name", ["http://a.example", "a.example/path", "*", "a b", "", "a:b", "[::1", "a:123456"])
def test_a_name_that_is_no_host_is_refused(name: str):
    with pytest.raises(UsageError, match="--allow-host"):
        allowed_hosts("127.0.0.1", 8000, [name])


def test_an_address_of_another_machine_is_none_to_listen_on():
    with pytest.raises(UsageError, match=r"--host 192\.0\.2\.1 --port 0: .*Try --host 127\.0\.0\.1"):
        serve_http(small_server(), "192.0.2.1", 0, TOKEN, (), stop=Stop(), note=pytest.fail)


def test_the_port_that_nobody_writes():
    assert "localhost" in allowed_hosts("127.0.0.1", 80, ())
    assert "localhost" not in allowed_hosts("127.0.0.1", 8000, ())


def test_health_says_nothing_else():
    with served(TOKEN) as url:
        answer = httpx2.get(url.replace("/mcp", "/healthz"), trust_env=False)
        assert (answer.status_code, answer.text) == (200, "ok\n")
        assert answer.headers.keys() <= {"content-length", "content-type", "date"}


def test_a_body_of_more_than_4_mib_is_refused_and_the_next_is_answered():
    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 64 * 1024

    with served() as url:
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        assert post(url, {**LIST, "params": {"x": "x" * 5_000_000}}).status_code == 413
        try:
            assert httpx2.post(url, content=chunks(), headers=headers, trust_env=False).status_code == 413
        except httpx2.WriteError:  # it hung up before we had sent all of it
            pass
        assert post(url).status_code == 200


@pytest.mark.parametrize("era", ERAS)
def test_ten_megabytes_of_arguments_end_one_call_only(era: Era):
    async def ask(url: str) -> None:
        async with Client(url, mode=era) as client:
            with pytest.raises(MCPError):
                await client.call_tool("size", {"text": "x" * 10_000_000})
            assert (await client.call_tool("size", {"text": "x" * 1_000_000})).structured_content == {
                "result": 1_000_000
            }

    with served() as url:
        anyio.run(ask, url)


def test_what_is_no_json_is_answered():
    with served() as url:
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        for content in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000):
            for version in ("2026-07-28", "2025-11-25", "1999-01-01"):
                given = {**headers, "MCP-Protocol-Version": version}
                assert httpx2.post(url, content=content, headers=given, trust_env=False).status_code == 400, content[:9]
        assert post(url).status_code == 200


@pytest.mark.parametrize("era", ERAS)
def test_a_hundred_callers_at_once(era: Era):
    async def ask(url: str) -> None:
        async with Client(url, mode=era) as client:
            answers: list[Any] = []

            async def one(size: int) -> None:
                answers.append((await client.call_tool("size", {"text": "x" * size})).structured_content)

            async with anyio.create_task_group() as group:
                for size in range(100):
                    group.start_soon(one, size)
            assert sorted(answer["result"] for answer in answers) == list(range(100))

    with served() as url:
        anyio.run(ask, url)


def test_more_connections_than_it_takes_are_refused_until_some_go():
    with served() as url:
        idle = [socket.create_connection(("127.0.0.1", port_of(url))) for _ in range(MOST_AT_ONCE + 1)]
        try:
            assert eventually(lambda: post(url).status_code == 503)
        finally:
            for connection in idle:
                connection.close()
        assert eventually(lambda: post(url).status_code == 200)


def eventually(true: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("era", ERAS)
def test_the_end_waits_for_no_stream_and_no_call(era: Era, capfd: pytest.CaptureFixture[str]):
    began, ended = list[float](), list[float]()

    async def ask(url: str) -> None:
        async def started(progress: float, total: float | None, message: str | None) -> None:
            began.append(time.monotonic())
            closing.set()

        try:
            async with Client(url, mode=era) as client:
                await client.call_tool("wait", progress_callback=started)
        except Exception:
            pass  # whatever a client makes of a server that goes

    closing = threading.Event()
    with served() as url:
        caller = threading.Thread(target=anyio.run, args=(ask, url), daemon=True)
        caller.start()
        assert closing.wait(20)
    ended.append(time.monotonic())
    assert ended[0] - began[0] < LAST_WORDS_S + 5
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "ASGI" not in said


def shipped(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The server as its user starts it, where it cannot begin."""
    given = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    words = [sys.executable, *SHIPPED[:2], *flags]
    return subprocess.run(words, cwd=folder, env=given, capture_output=True, text=True, encoding="utf-8", timeout=60)


def test_what_cannot_be_served_is_one_line_and_exit_code_2(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = shipped(tmp_path, "--port", str(other.getsockname()[1]))
    open_to_all = shipped(tmp_path, "--host", "0.0.0.0")
    guessed = shipped(tmp_path, DISTILL_MCP_TOKEN="short-one")
    for ran, words in ((busy, "is in use"), (open_to_all, TOKEN_KEY), (guessed, "has 9 characters")):
        assert ran.returncode == 2, ran.stderr
        last = ran.stderr.strip().splitlines()[-1]
        assert last.startswith("mcp_server: error: ")
        assert words in last
        assert "Traceback" not in ran.stderr
        assert "short-one" not in ran.stderr


def waiting_job(workspace: Path) -> str:
    """A job that has not begun: its supervisor is this process."""
    id = f"job_{'0' * 32}"
    folder = workspace / ".distill" / "jobs" / id
    folder.mkdir(parents=True)
    files.write(folder / SPEC, {"command": "doctor", "created": time.time()})
    hold(folder / SUPERVISOR)  # until this process ends
    return id


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_although_a_call_waits(number: signal.Signals, tmp_path: Path):
    """The token comes from .env here, and is nowhere to be read."""
    (tmp_path / ".env").write_text(f"{TOKEN_KEY}={TOKEN}\n", "utf-8")
    call = {"name": "get_job", "arguments": {"job_id": waiting_job(tmp_path), "wait_s": 45}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {**call, "_meta": META}}
    headers = {"Authorization": f"Bearer {TOKEN}", "Mcp-Method": "tools/call", "Mcp-Name": "get_job"}
    ends: list[object] = []

    def ask(url: str) -> None:
        try:
            ends.append(post(url, message, **headers).text)
        except httpx2.TransportError as error:
            ends.append(error)

    with started(*SHIPPED, folder=tmp_path) as server:
        assert post(server.url).status_code == 401
        caller = threading.Thread(target=ask, args=(server.url,))
        caller.start()
        time.sleep(1)
        assert not ends, f"it should wait for the job: {ends}"
        began = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < LAST_WORDS_S + 5
        caller.join(20)
        assert ends
        assert "Traceback" not in server.said
        assert TOKEN not in server.said
