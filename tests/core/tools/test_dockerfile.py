"""Dockerfile.playwright: what its text promises, and its start script run for real, outside a container."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.tools.docker import answers_http
from core.tools.leash import Leash, process_start, processes
from tests.support.playwright_mcp import VERSION, program
from tests.support.running import ROOT, Received, Reply, small_server

DOCKERFILE = ROOT / "Dockerfile.playwright"
TEXT = DOCKERFILE.read_text("utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) as Docker reads them: comments out, continued lines joined without a newline."""
    joined = ""
    for line in TEXT.splitlines():
        if not line.lstrip().startswith("#"):
            joined += line[:-1] if re.search(r"\\[ \t]*$", line) else line + "\n"
    found = [line.strip().split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name.upper(), arguments) for name, arguments in found]


def arguments_of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


@pytest.fixture
def start_script(short_path: Path) -> Path:
    """/start.sh, as the shell of the image writes it."""
    (command,) = [arguments for arguments in arguments_of("RUN") if "/start.sh" in arguments]
    script = short_path / "start.sh"
    subprocess.run(["/bin/sh", "-c", command.replace("/start.sh", str(script))], check=True)
    return script


@pytest.fixture(scope="session")
def playwright_mcp() -> str:
    """Node's Playwright MCP of the version that the image holds."""
    return str(program())


def test_it_has_no_instruction_that_a_sandbox_cannot_build() -> None:
    names = {name for name, _ in instructions()}
    assert names <= {"FROM", "RUN", "WORKDIR", "LABEL", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert "<<" not in TEXT  # a heredoc
    assert not TEXT.startswith("# syntax")  # would need a frontend from a registry


def test_what_can_be_pinned_is_pinned() -> None:
    assert arguments_of("FROM") == ["node:22.23.3-bookworm-slim"]
    assert f"@playwright/mcp@{VERSION}" in TEXT
    assert "latest" not in TEXT


def test_it_runs_as_an_ordinary_user_that_owns_nothing_of_the_program() -> None:
    order = [name for name, _ in instructions()]
    assert arguments_of("USER") == ["1000:1000"]  # `node` in that image
    assert order.index("USER") > max(index for index, name in enumerate(order) if name == "RUN")
    assert "chown" not in TEXT
    assert "sudo" not in TEXT


def test_packages_leave_nothing_behind() -> None:
    (apt,) = [arguments for arguments in arguments_of("RUN") if "apt-get" in arguments]
    assert "apt-get update" in apt
    assert "--yes --no-install-recommends" in apt
    assert "rm -rf /var/lib/apt/lists/*" in apt
    assert "npm cache clean" in TEXT


def test_its_start_is_in_exec_form_and_keeps_both_conventions() -> None:
    assert json.loads(arguments_of("ENTRYPOINT")[0]) == ["tini", "--", "/start.sh"]
    assert json.loads(arguments_of("CMD")[0]) == ["sleep", "infinity"]
    assert arguments_of("EXPOSE") == ["8931"]
    assert "--interval=10s" in arguments_of("HEALTHCHECK")[0]


def test_the_script_is_what_a_shell_accepts(start_script: Path) -> None:
    text = start_script.read_text("utf-8")
    assert text.startswith("#!/bin/sh\n")
    assert text.endswith('exec "$@"\n')
    assert start_script.stat().st_mode & 0o777 == 0o755
    subprocess.run(["/bin/sh", "-n", str(start_script)], check=True)


def health_check(port: int) -> int:
    (words,) = arguments_of("HEALTHCHECK")
    command = json.loads(words[words.index("[") :])
    return subprocess.run(command, env={**os.environ, "MCP_PORT": str(port)}, timeout=20).returncode


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def script(start_script: Path, *command: str, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(start_script), *command],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(start_script.parent), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A server that takes its time: it listens on --port only after 1.5 s."""
    path = tmp_path / "server"
    path.write_text(
        f"#!{sys.executable}\nimport socket, sys, time\nprint('noise', flush=True)\ntime.sleep(1.5)\n"
        "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
        "listener = socket.create_server(('127.0.0.1', port))\ntime.sleep(600)\n",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def test_the_command_runs_when_the_server_listens_and_not_before(start_script: Path, stand_in: Path) -> None:
    port = free_port()
    assert health_check(port) == 1
    connect = (
        f"import socket, sys; socket.create_connection(('127.0.0.1', {port})).close(); print(*sys.argv[1:], sep='|')"
    )
    began = time.monotonic()
    process = script(
        start_script, sys.executable, "-c", connect, "two words", "$HOME", MCP_SERVER=str(stand_in), MCP_PORT=str(port)
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "two words|$HOME\n"  # its output alone: the server's goes to stderr
        assert time.monotonic() - began >= 1.5
        assert process.wait(10) == 0
        assert health_check(port) == 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_command_takes_the_place_of_the_script(start_script: Path, stand_in: Path) -> None:
    own = [sys.executable, "-c", "import os; print(os.getpid(), flush=True); raise SystemExit(5)"]
    process = script(start_script, *own, MCP_SERVER=str(stand_in), MCP_PORT=str(free_port()))
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"{process.pid}\n"  # exec: signals and exit codes are the command's
        assert process.wait(10) == 5
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_server_that_ends_at_once_ends_the_script_with_words(start_script: Path) -> None:
    process = script(start_script, "echo", "never", MCP_SERVER="/bin/false", MCP_PORT=str(free_port()))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert "the MCP server has ended" in err


PAGE = b"<!doctype html><title>Orchard</title><h1>Nine pears</h1><a href='/next'>Further</a>"


@pytest.fixture
def started(start_script: Path, playwright_mcp: str) -> Iterator[tuple[int, int]]:
    """The script with the real server and the real browser, as sandboxes start it: (its pid, its port)."""
    chromium = shutil.which("chromium")
    assert chromium, "this test needs Debian's Chromium: apt-get install chromium"
    port = free_port()
    with Leash() as leash:
        process = script(
            start_script, "sleep", "infinity", MCP_SERVER=playwright_mcp, CHROMIUM=chromium, MCP_PORT=str(port)
        )
        leash.hold_process(process.pid)
        try:
            end = time.monotonic() + 60
            while not asyncio.run(answers_http(port)):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            yield process.pid, port
        finally:
            leash.close()
            process.communicate()


def family(pid: int) -> set[int]:
    table = processes()
    found = {pid}
    while more := {child for child, it in table.items() if it.parent in found} - found:
        found |= more
    return found


@pytest.mark.browser
def test_the_real_server_browses_and_everything_ends_with_it(started: tuple[int, int]) -> None:
    from mcp.client.client import Client

    pid, port = started
    tree: set[int] = set()

    async def browse(url: str) -> tuple[set[str], str]:
        async with Client(f"http://localhost:{port}/mcp") as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            opened = await client.call_tool("browser_navigate", {"url": url})
            assert not opened.is_error, opened
            seen = await client.call_tool("browser_snapshot", {})
            local = await client.call_tool("browser_navigate", {"url": "file:///etc/passwd"})
            assert local.is_error
            tree.update(family(pid))  # while the browser runs
            return names, "".join(getattr(block, "text", "") for block in seen.content)

    def answer(request: Received) -> Reply:
        return Reply(body=PAGE, headers={"content-type": "text/html"})

    with small_server(answer) as site:
        names, snapshot = asyncio.run(browse(site.url))
    assert {"browser_navigate", "browser_snapshot", "browser_click", "browser_type"} <= names
    assert "Nine pears" in snapshot
    assert "Further" in snapshot
    assert health_check(port) == 0
    assert len(tree) >= 4  # the command, the server, the browser and its renderer

    with Leash() as leash:
        leash.hold_process(pid)
    assert [it for it in tree if process_start(it)] == []
    assert health_check(port) == 1


@pytest.mark.browser
def test_a_browser_in_use_ends_with_the_script(started: tuple[int, int]) -> None:
    from mcp.client.client import Client

    pid, port = started

    async def killed_while_browsing() -> set[int]:
        async with Client(f"http://localhost:{port}/mcp") as client:
            await client.call_tool("browser_navigate", {"url": "about:blank"})
            tree = family(pid)
            with Leash() as leash:
                leash.hold_process(pid)
            return tree

    tree = asyncio.run(killed_while_browsing())
    assert len(tree) >= 4
    assert [it for it in tree if process_start(it)] == []


@pytest.mark.browser
@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "playwright:8931", "localhost:49153"])
def test_the_published_port_may_have_another_number(host: str, started: tuple[int, int]) -> None:
    _, port = started

    async def status() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        about: dict[str, Any] = {"protocolVersion": "2025-06-18", "capabilities": {}}
        about["clientInfo"] = {"name": "test", "version": "1"}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}).encode()
        head = (
            f"POST /mcp HTTP/1.1\r\nHost: {host.format(port=port)}\r\nConnection: close\r\n"
            "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    assert b" 200 " in asyncio.run(status())
