"""MCP servers as tools: real servers on stdio and loopback, good ones and bad ones."""

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import InputError, UsageError
from core.tools.leash import Leash
from core.tools.mcp import McpCommand, McpUrl
from core.tools.mcp_connection import Stderr
from core.tools.mcp_servers_file import from_servers_file
from core.tools.mcp_text import first_line, toolset_name
from core.tools.protocol import ToolResult, ToolsetGone
from tests.support.mcp_servers import TOOLS, HttpServer, Nonsense, command, free_port
from tests.support.running import ROOT, environment


@pytest.fixture(scope="module")
def http() -> Iterator[HttpServer]:
    with HttpServer("http") as server:
        yield server


@pytest.fixture(scope="module")
def sse() -> Iterator[HttpServer]:
    with HttpServer("sse") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After each test: no child more than before, no descriptor, no connection."""
    us = psutil.Process()
    children, descriptors = len(us.children(recursive=True)), us.num_fds()
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while (len(us.children(recursive=True)) > children or us.num_fds() > descriptors) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(us.children(recursive=True)) <= children
    # The TLS context and the like are made once.
    assert us.num_fds() <= descriptors + 1


def run(work: Callable[[], Any], limit_s: float = 60) -> Any:
    """Run a coroutine function; every task that it started must have ended."""

    async def checked() -> Any:
        async with asyncio.timeout(limit_s):
            value = await work()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return value

    return asyncio.run(checked())


async def called(server: McpUrl | McpCommand, *calls: tuple[str, dict[str, Any]]) -> list[ToolResult]:
    """The results of calls within one session."""
    await server.open()
    try:
        async with server.session() as session:
            return [await session.call(name, arguments) for name, arguments in calls]
    finally:
        await server.aclose()


def result_of(server: McpUrl | McpCommand, name: str, **arguments: Any) -> ToolResult:
    return run(lambda: called(server, (name, arguments)))[0]


def refusal(server: McpUrl | McpCommand) -> str:
    """What opening it says."""

    async def work() -> None:
        with pytest.raises(UsageError) as caught:
            await server.open()
        told.append(str(caught.value))
        await server.aclose()

    told: list[str] = []
    run(work)
    return told[0]


# --- stdio ------------------------------------------------------------------


def test_a_command_is_started_and_its_tools_are_listed_and_called() -> None:
    server = McpCommand(command("plain"), "small")
    assert result_of(server, "add", a=2, b=3) == ToolResult("5")
    assert [tool.name for tool in server.tools] == TOOLS
    assert server.tools[0].parameters["required"] == ["a", "b"]


def test_a_command_line_is_split_as_a_shell_would_but_run_by_none(folder: Path) -> None:
    line = " ".join(f"'{word}'" for word in command("plain"))
    assert result_of(McpCommand(line), "add", a=1, b=1).text == "2"
    assert result_of(McpCommand(f"{line} ; touch made > also; $(touch too)"), "add", a=1, b=1).text == "2"
    assert list(folder.iterdir()) == []
    with pytest.raises(UsageError, match="quotes"):
        McpCommand("python 'half")
    with pytest.raises(UsageError, match="empty"):
        McpCommand("  ")


def test_two_hundred_tools_come_in_pages() -> None:
    server = McpCommand(command("many"))
    run(lambda: called(server))
    assert [tool.name for tool in server.tools] == [f"tool_{number}" for number in range(200)]


def test_the_process_gets_the_variables_that_are_named_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ours")
    text = result_of(McpCommand(command("plain"), env={"NAMED": "yes"}), "environment").text
    environment = json.loads(text)
    assert environment["NAMED"] == "yes"
    assert "PATH" in environment
    assert "OPENAI_API_KEY" not in environment


def test_what_is_no_text_becomes_a_marker() -> None:
    lines = result_of(McpCommand(command("plain")), "image").text.splitlines()
    # 400 base64 characters hold 300 bytes; "AAA=" holds 2.
    assert lines == [
        "seen",
        "[image image/png, 300 bytes]",
        "[audio audio/wav, 2 bytes]",
        "[page: file:///out/page.yml]",
        "a note",
    ]


def test_structured_content_is_the_text_where_there_is_no_other() -> None:
    assert json.loads(result_of(McpCommand(command("plain")), "structured").text) == {"answer": 42}


def test_a_tools_own_error_and_a_protocol_error_about_one_call_go_to_the_model() -> None:
    calls = [("error", {}), ("refuse", {}), ("odd", {}), ("add", {"a": 1, "b": 2})]
    results = run(lambda: called(McpCommand(command("plain")), *calls))
    assert results[0] == ToolResult("that did not work", is_error=True)
    assert results[1] == ToolResult("no tool is called refuse", is_error=True)
    assert results[2].is_error
    assert results[3] == ToolResult("3")


def test_each_rollout_has_a_process_of_its_own_and_a_shared_server_has_one_for_all() -> None:
    async def counts(shared: bool) -> list[str]:
        server = McpCommand(command("plain"), shared=shared)
        await server.open()

        async def rollout() -> str:
            async with server.session() as session:
                await session.call("count", {})
                return (await session.call("count", {})).text

        try:
            return list(await asyncio.gather(rollout(), rollout(), rollout()))
        finally:
            await server.aclose()

    assert run(lambda: counts(False)) == ["2", "2", "2"]
    assert max(map(int, run(lambda: counts(True)))) == 6


def test_lines_that_are_no_messages_notifications_and_stderr_disturb_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    server = McpCommand(command("noisy"))
    results = run(lambda: called(server, *[("count", {})] * 3))
    assert [result.text for result in results] == ["1", "2", "3"]
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_server_that_dies_in_the_middle_of_a_call_is_gone_and_its_last_words_are_told() -> None:
    async def work() -> None:
        server = McpCommand(command("plain"))
        await server.open()
        async with server.session() as session, server.session() as other:
            with pytest.raises(ToolsetGone, match="fatal: told to die"):
                await session.call("die", {})
            with pytest.raises(ToolsetGone):
                await session.call("add", {"a": 1, "b": 1})
            assert (await other.call("add", {"a": 1, "b": 1})).text == "2"
        async with server.session() as fresh:
            assert (await fresh.call("add", {"a": 2, "b": 2})).text == "4"
        await server.aclose()

    run(work)


def test_a_shared_server_that_died_is_started_again_for_the_next_rollout() -> None:
    async def work() -> None:
        server = McpCommand(command("plain"), shared=True)
        await server.open()
        with pytest.raises(ToolsetGone):
            async with server.session() as session:
                await session.call("die", {})
        async with server.session() as session:
            assert (await session.call("add", {"a": 2, "b": 2})).text == "4"
        await server.aclose()

    run(work)


def test_a_process_killed_from_outside_ends_the_call_that_waits() -> None:
    async def work() -> None:
        server = McpCommand(command("plain"))
        await server.open()
        async with server.session() as session:
            pid = int((await session.call("pid", {})).text)
            waiting = asyncio.create_task(session.call("slow", {"seconds": 30}))
            await asyncio.sleep(0.2)
            os.kill(pid, 9)
            with pytest.raises(ToolsetGone):
                await waiting
        await server.aclose()

    run(work)


def test_a_server_that_exits_at_once_is_named_with_its_last_words_and_without_secrets() -> None:
    told = refusal(McpCommand(command("exits"), "broken", env={"SECRET": "hunter2-hunter2"}))
    assert "broken" in told
    assert "reading configuration" in told
    assert "hunter2" not in told


def test_what_a_server_says_moves_no_cursor_and_turns_no_words() -> None:
    told = refusal(McpCommand(command("rude"), "rude"))
    assert told.endswith("Its last words:\nred\\x1b]0;title\\x07 \\x9b and \\u202eback")
    with Nonsense(500, "bo\x1b[2Jom\x07\u202e") as server:
        assert "HTTP 500: bo\\x1b[2Jom\\x07\\u202e" in refusal(McpUrl(server.host))
    assert first_line(RuntimeError("no\x1b[2J way\x07.\nmore")) == "no way\\x07"


@pytest.mark.parametrize("behaviour", ["silent", "garbage"])
def test_a_server_that_never_answers_is_given_up_in_time(behaviour: str) -> None:
    start = time.monotonic()
    assert "within 1 s" in refusal(McpCommand(command(behaviour), connect_s=1))
    assert time.monotonic() - start < 5


def test_other_ways_not_to_be_a_server_of_tools() -> None:
    assert "no tools" in refusal(McpCommand(command("empty")))
    assert "form that is not MCP's" in refusal(McpCommand(command("badlist")))
    assert "was not found" in refusal(McpCommand("surely-not-installed --x"))
    assert "does not exist" in refusal(McpCommand(command("plain"), cwd="/nowhere/at/all"))
    assert "ended" in refusal(McpCommand([sys.executable, "-c", "pass"]))


def test_a_rollout_that_is_cancelled_while_its_server_starts_leaves_no_process() -> None:
    async def work() -> None:
        server = McpCommand(command("silent"))

        async def rollout() -> None:
            async with server.session():
                pass

        task = asyncio.create_task(rollout())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.aclose()
        assert not [child for child in psutil.Process().children() if "silent" in child.cmdline()]

    run(work)


def test_a_rollout_that_is_cancelled_while_its_server_ends_leaves_no_process() -> None:
    async def work() -> None:
        server = McpCommand(command("stubborn"))  # takes no notice of the end of its stdin
        pids: list[int] = []

        async def rollout() -> None:
            async with server.session() as session:
                pids.append(int((await session.call("pid", {})).text))

        task = asyncio.create_task(rollout())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert psutil.pid_exists(pids[0])
        await server.aclose()
        assert not psutil.pid_exists(pids[0])

    run(work)


def test_a_server_that_knows_only_the_newest_protocol_is_spoken_to_in_that() -> None:
    async def work() -> None:
        server = McpCommand(command("modern"))
        await server.open()
        async with server.session() as session:
            assert (await session.call("add", {"a": 1, "b": 2})).text == "3"
            assert (await session.call("error", {})).is_error
        await server.aclose()

    run(work)


# --- on the leash -----------------------------------------------------------

OWNER = """
import asyncio
from core.tools.leash import Leash
from core.tools.mcp import McpCommand
from tests.support.mcp_servers import command

async def main():
    async with McpCommand(command("stubborn"), leash=Leash()).session() as session:
        print((await session.call("pid", {})).text, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_server_that_ignores_the_end_of_its_stdin_does_not_outlive_a_kill_of_its_owner() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], env=environment(PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    with owner.stdout:
        server = psutil.Process(int(owner.stdout.readline()))
    assert "stubborn" in server.cmdline()
    owner.kill()
    owner.wait()
    server.wait(20)


def test_a_server_on_the_leash_is_the_command_itself_and_is_let_go_when_it_has_ended() -> None:
    async def work(leash: Leash) -> None:
        server = McpCommand(command("plain"), env={"NAMED": "two  words"}, leash=leash)
        await server.open()
        assert leash._held == {}
        async with server.session() as session:
            pid = int((await session.call("pid", {})).text)
            assert list(leash._held) == [pid]
            assert psutil.Process(pid).cmdline() == command("plain")
            assert psutil.Process(pid).parent() == psutil.Process()
            assert json.loads((await session.call("environment", {})).text)["NAMED"] == "two  words"
            with pytest.raises(ToolsetGone) as caught:
                await session.call("die", {})
            assert str(caught.value).endswith("Its last words:\nfatal: told to die")
        assert leash._held == {}
        await server.aclose()

    with Leash() as leash:
        run(lambda: work(leash))


def test_the_pid_on_stderr_is_found_behind_other_lines_and_in_pieces() -> None:
    async def work() -> None:
        stderr = Stderr(says_pid=True)
        for piece in (b"sh: warning: locale\ndistill-pid 4", b"2", b"\nready\ndistill-pid 43\n"):
            stderr.data_received(piece)
        assert await stderr.pid() == 42
        assert stderr.last_lines() == "sh: warning: locale\nready\ndistill-pid 43"
        silent = Stderr(says_pid=True)
        silent.connection_lost(None)
        assert await silent.pid() is None

    run(work)


def test_a_server_on_the_leash_that_cannot_run_says_so(folder: Path) -> None:
    with Leash() as leash:
        told = refusal(McpCommand(["./not-there"], cwd=folder, leash=leash))
        assert "`./not-there` ended. Its last words:" in told
        assert "not found" in told
        assert "reading configuration" in refusal(McpCommand(command("exits"), leash=leash))
        assert leash._held == {}


def test_a_start_that_is_cancelled_leaves_nothing_on_the_leash() -> None:
    async def work(leash: Leash) -> None:
        server = McpCommand(command("silent"), leash=leash)
        for pause_s in (0.0, 0.001, 0.005, 0.2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(pause_s), server.session():
                    pass
        await server.aclose()
        assert leash._held == {}

    with Leash() as leash:
        run(lambda: work(leash))


# --- HTTP -------------------------------------------------------------------


def test_rnows_spelling_a_bare_url_and_a_full_one_reach_the_same_server(http: HttpServer) -> None:
    for url in (http.host, f"http://{http.host}", f"http://{http.host}/", f"http://{http.host}/mcp"):
        assert result_of(McpUrl(url), "add", a=20, b=22).text == "42"


def test_an_old_server_is_reached_over_sse_by_its_url_and_by_rnows_spelling(sse: HttpServer) -> None:
    for url in (f"http://{sse.host}/sse", sse.host):
        assert result_of(McpUrl(url), "add", a=20, b=22).text == "42"


def test_each_rollout_has_a_protocol_session_of_its_own(http: HttpServer) -> None:
    async def work() -> list[str]:
        server = McpUrl(http.host)
        await server.open()

        async def rollout() -> str:
            async with server.session() as session:
                await session.call("count", {})
                return (await session.call("count", {})).text

        try:
            return list(await asyncio.gather(*(rollout() for _ in range(5))))
        finally:
            await server.aclose()

    assert run(work) == ["2"] * 5


def test_a_result_of_megabytes_arrives(http: HttpServer) -> None:
    assert len(result_of(McpUrl(http.host), "large").text) == 3_000_000


@pytest.mark.parametrize("kind", ["stdio", "http", "sse"])
def test_a_cancelled_call_leaves_the_session_usable(kind: str, http: HttpServer, sse: HttpServer) -> None:
    async def work() -> None:
        servers = {"http": McpUrl(http.host), "sse": McpUrl(f"http://{sse.host}/sse")}
        server = servers.get(kind) or McpCommand(command("plain"))
        await server.open()
        async with server.session() as session:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await session.call("slow", {"seconds": 0.4})
            assert (await session.call("add", {"a": 1, "b": 2})).text == "3"
        await server.aclose()

    run(work)


def test_arguments_that_the_tool_refuses_go_to_the_model(http: HttpServer) -> None:
    result = result_of(McpUrl(http.host), "add", a="no number")
    assert result.is_error
    assert "valid integer" in result.text


@pytest.mark.parametrize("transport", ["http", "sse"])
def test_an_http_server_that_dies_in_the_middle_is_gone(transport: str) -> None:
    async def work(server: McpUrl) -> None:
        await server.open()
        async with server.session() as session:
            with pytest.raises(ToolsetGone, match="was lost"):
                await session.call("die", {})
        with pytest.raises(ToolsetGone, match="nothing answers"):
            async with server.session():
                pass
        await server.aclose()

    with HttpServer(transport) as mortal:
        run(lambda: work(McpUrl(mortal.host)))


def test_a_session_that_the_server_has_forgotten_is_gone(http: HttpServer) -> None:
    async def work() -> None:
        server = McpUrl(first.host)
        await server.open()
        async with server.session() as session:
            assert (await session.call("add", {"a": 1, "b": 2})).text == "3"
            first.__exit__()
            first.__enter__()  # the same port, none of the sessions
            with pytest.raises(ToolsetGone):
                await session.call("add", {"a": 1, "b": 2})
        await server.aclose()

    with HttpServer("http") as first:
        run(work)


def test_a_port_where_nothing_listens() -> None:
    told = refusal(McpUrl(f"localhost:{free_port()}"))
    assert "nothing answers at http://localhost:" in told


@pytest.mark.parametrize(
    ("status", "body", "content_type", "said"),
    [
        (200, "<html>Welcome</html>", "text/html", "web page"),
        (404, "<html>no such page</html>", "text/html", "web page"),
        (404, "not here", "text/plain", "HTTP 404: not here"),
        (401, "who are you", "text/plain", "asks for credentials"),
        (500, "boom", "text/plain", "HTTP 500: boom"),
        (200, '{"answer": 42}', "application/json", "does not answer as an MCP server"),
        (200, '{"half":', "application/json", "does not answer as an MCP server"),
        (200, "", "text/event-stream", "was lost"),
        (202, "", "text/plain", "does not answer as an MCP server"),
    ],
)
def test_nonsense_is_named(status: int, body: str, content_type: str, said: str) -> None:
    with Nonsense(status, body, content_type) as server:
        told = refusal(McpUrl(server.host, "odd"))
    assert told.startswith("MCP server odd: ")
    assert said in told
    assert len(told) < 500


def test_a_refused_host_name_is_answered_with_the_other_spelling() -> None:
    with Nonsense(403, "Access is only allowed at localhost:8931") as server:
        assert "Write localhost instead" in refusal(McpUrl(server.host))


def test_a_server_that_is_slow_to_answer_is_given_up_in_time() -> None:
    with Nonsense(200, "late", delay_s=2) as server:
        start = time.monotonic()
        assert "within 0.5 s" in refusal(McpUrl(server.host, connect_s=0.5))
        assert time.monotonic() - start < 2


def test_a_socket_that_accepts_and_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "within 0.5 s" in refusal(McpUrl(f"127.0.0.1:{silent.getsockname()[1]}", connect_s=0.5))


def test_headers_are_sent_and_never_told() -> None:
    with Nonsense(500, "the token s3cret-token is wrong") as server:
        told = refusal(
            McpUrl(f"http://{server.host}/mcp?key=abcdefgh", headers={"Authorization": "Bearer s3cret-token"})
        )
    assert "s3cret" not in told
    assert "abcdefgh" not in told


def test_what_is_secret_in_an_address_of_a_file_of_servers_is_not_told(folder: Path) -> None:
    with Nonsense(500, "somebody1 with pass-w@rd and abc/defgh is nobody") as nonsense:
        url = f"http://somebody1:pass-w%40rd@{nonsense.host}/mcp?key=abc%2Fdefgh#fragment"
        (server,) = from_servers_file(servers_file(folder, {"mcpServers": {"a": {"url": url}}}))
        told = refusal(server)
    assert f"http://{nonsense.host}/mcp refuses (HTTP 500: *** with *** and *** is nobody)" in told


@pytest.mark.parametrize("url", ["ftp://me:pass-word@host/mcp?key=abcdefgh", "http://me:pass-word@host:99999999/mcp"])
def test_what_is_secret_in_an_address_that_is_none_is_not_told(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        McpUrl(url)
    assert "is no URL" in str(caught.value)
    assert "***@host" in str(caught.value)
    assert "pass-word" not in str(caught.value)
    assert "abcdefgh" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://host/mcp", "http://", "localhost:99999999", "http://[::1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no URL"):
        McpUrl(url)


# --- many at once -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "count"), [("stdio", 40), pytest.param("stdio", 200, marks=pytest.mark.slow), ("http", 200)]
)
def test_many_sessions_at_once_leave_nothing_behind(kind: str, count: int, http: HttpServer) -> None:
    async def work() -> list[str]:
        server = McpUrl(http.host) if kind == "http" else McpCommand(command("plain"))
        await server.open()

        async def rollout(number: int) -> str:
            async with server.session() as session:
                await session.call("count", {})
                return (await session.call("add", {"a": number, "b": 1})).text

        try:
            return list(await asyncio.gather(*(rollout(number) for number in range(count))))
        finally:
            await server.aclose()

    assert run(work, 120) == [str(number + 1) for number in range(count)]


def test_closing_the_set_ends_sessions_that_are_still_open() -> None:
    async def work() -> None:
        server = McpCommand(command("plain"))
        await server.open()
        session = server.session()
        tools = await session.__aenter__()
        process = psutil.Process(int((await tools.call("pid", {})).text))
        await server.aclose()
        assert not process.is_running()
        with pytest.raises(ToolsetGone):
            await tools.call("add", {"a": 1, "b": 1})
        await session.__aexit__(None, None, None)

    run(work)


# --- files of servers -------------------------------------------------------


def servers_file(folder: Path, value: Any) -> Path:
    path = folder / "servers.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_file_of_servers_as_the_clients_write_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, http: HttpServer
) -> None:
    monkeypatch.setenv("SMALL_TOKEN", "from-the-environment")
    (folder / ".env").write_text("OTHER=from-dotenv\n")
    first, *rest = command("plain")
    variables = {"A": "${SMALL_TOKEN}", "B": "${env:OTHER}", "C": "${NOT_SET:-a default}", "N": 1}
    path = servers_file(
        folder,
        {
            "mcpServers": {
                "My Server!": {"command": first, "args": rest, "env": variables},
                "over http": {"type": "streamable-http", "url": f"http://{http.host}/mcp"},
                "off": {"command": "nothing", "disabled": True},
            }
        },
    )
    small, over_http = from_servers_file(path)
    assert (small.name, over_http.name) == ("my-server", "over-http")
    environment = json.loads(result_of(small, "environment").text)
    assert [environment[name] for name in "ABCN"] == ["from-the-environment", "from-dotenv", "a default", "1"]
    assert result_of(over_http, "add", a=1, b=1).text == "2"


def test_vs_codes_spelling_is_read_too(folder: Path, sse: HttpServer) -> None:
    (server,) = from_servers_file(
        servers_file(folder, {"servers": {"a": {"type": "sse", "url": f"http://{sse.host}/sse"}}})
    )
    assert result_of(server, "add", a=1, b=1).text == "2"


def test_a_key_that_a_file_of_servers_puts_into_arguments_is_not_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALL_TOKEN", "hunter2-hunter2")
    first, *rest = command("exits")
    entry = {"command": first, "args": [*rest, "--key=${SMALL_TOKEN}"]}
    (server,) = from_servers_file(servers_file(folder, {"mcpServers": {"a": entry}}))
    told = refusal(server)
    assert "--key=***" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "servers.json:1: is not JSON"),
        ("[1]", 'no "mcpServers"'),
        ({"mcpServers": {}}, "no server is enabled"),
        ({"mcpServers": {"a": 1}}, "server 'a' is int"),
        ({"mcpServers": {"a": {}}}, "server 'a': no \"command\""),
        ({"mcpServers": {"a": {"type": "pigeon"}}}, "type 'pigeon' is not known"),
        ({"mcpServers": {"a": {"command": "x", "args": "y"}}}, '"args" is not a list'),
        ({"mcpServers": {"a": {"command": "x", "env": {"K": "${SURELY_NOT_SET}"}}}}, "SURELY_NOT_SET is not set"),
        ({"mcpServers": {"a": {"url": "ftp://x"}}}, "is no URL"),
    ],
)
def test_a_wrong_file_of_servers_names_itself_and_the_server(folder: Path, value: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_servers_file(servers_file(folder, value))
    assert "servers.json" in str(caught.value)
    assert said in str(caught.value)


def test_a_name_is_made_from_what_tells_servers_apart() -> None:
    assert McpCommand("npx -y @playwright/mcp@latest --headless").name == "playwright-mcp"
    assert McpCommand("python -u tools/search.py").name == "search"
    assert McpUrl("localhost:8931").name == "localhost-8931"
    assert toolset_name("***") == "mcp"
