"""The server as a process: stdio from an unrelated folder, a clean wire, secrets kept out of stderr."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from core.commands.mcp_server import McpServer
from mcp_server.texts import TEXTS
from tests.mcp_server.conftest import Era, called
from tests.support import rollouts
from tests.support.running import ROOT, environment

SERVER = str(ROOT / "mcp_server")
HEAVY = ("torch", "transformers", "datasets", "llama_cpp", "lm_eval", "matplotlib", "numpy", "trl", "peft")
SECRET = "sk-or-v1-0123456789abcdef0123456789abcdef"


def run(folder: Path, *words: str, send: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    """The server with what is sent to it on stdin, until it ends. stdin stays open until all requests are answered: its
    end takes back those that are not."""
    command = [sys.executable, *words]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(send)
    process.stdin.flush()
    answers = [process.stdout.readline() for line in send.splitlines() if "id" in json.loads(line)]
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, "".join(answers) + output, errors)


def message(method: str, number: int | None = None, **params: Any) -> str:
    found = {"jsonrpc": "2.0", "method": method, "params": params}
    return json.dumps(found if number is None else {**found, "id": number}) + "\n"


HELLO = (
    message(
        "initialize",
        1,
        protocolVersion="2025-11-25",
        capabilities={},
        clientInfo={"name": "test", "version": "1"},
    )
    + message("notifications/initialized")
    + message("tools/list", 2)
)


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_over_stdio_from_an_unrelated_folder(tmp_path: Path, mode: Era):
    workspace, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise RuntimeError('not yours')\n", encoding="utf-8")
    rollouts.write(workspace / "rollouts" / "0.json", rollouts.record(rollouts.with_tool()))
    parameters = StdioServerParameters(
        command=sys.executable, args=[SERVER, "-w", str(workspace)], cwd=elsewhere, env=environment()
    )

    async def talk() -> None:
        with open(tmp_path / "stderr.txt", "w", encoding="utf-8") as errors, anyio.fail_after(60):
            async with Client(stdio_client(parameters, errors), mode=mode) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == list(TEXTS)
                done = await called(client, "convert_rollouts", {"output": "rows.jsonl"})
                assert done["state"] == "succeeded", done.text

    anyio.run(talk)
    assert (workspace / "rows.jsonl").is_file()
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text(encoding="utf-8")


def test_module_from_the_checkout_answers_in_the_current_folder(tmp_path: Path):
    done = run(tmp_path, "-m", "mcp_server", send=HELLO, PYTHONPATH=str(ROOT))
    hello, tools = map(json.loads, done.stdout.splitlines())
    assert hello["result"]["serverInfo"]["name"] == "distill"
    assert hello["result"]["instructions"]
    assert len(tools["result"]["tools"]) == len(TEXTS)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == [], "nothing is made before it is asked for"


def test_what_is_printed_at_import_does_not_reach_the_wire(tmp_path: Path):
    loud = tmp_path / "site" / "uvicorn"  # imported by nobody before the server; psutil would be, too
    loud.mkdir(parents=True)
    noisy = "import os, sys\nprint('a banner')\nos.write(1, b'from a library in C\\n')\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Loud:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mcp.server':\n"
        f"            exec({noisy!r})\n"
        "sys.meta_path.insert(0, Loud())\n",
        encoding="utf-8",
    )
    work = tmp_path / "work"
    work.mkdir()
    done = run(work, SERVER, send=HELLO, PYTHONPATH=str(tmp_path / "site"))
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [1, 2]
    assert "a banner" in done.stderr
    assert "from a library in C" in done.stderr


def test_nothing_heavy_is_loaded_and_no_model_of_a_command_before_it_is_asked_for(tmp_path: Path):
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from mcp_server.door import Settings\n"
        "from mcp_server.server import build\n"
        "server = build(Settings(Path('.')))\n"
        "print([name for name in sys.modules if name.startswith('core.commands.train')])\n"
        "import anyio\n"
        "from mcp import Client\n"
        "async def talk():\n"
        "    async with Client(server) as client:\n"
        "        await client.list_tools()\n"
        "        await client.list_resources()\n"
        "        await client.list_prompts()\n"
        "        await client.call_tool('generate_teacher_data', {'input': 'p', 'model': 'a/b', 'dry_run': True})\n"
        "        await client.call_tool('evaluate', {'student': 's', 'teacher': 'a/b'})\n"
        "anyio.run(talk)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = run(tmp_path, "-c", code)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workspace", "nowhere"], "is no folder"),
        (["--workspace", "~nobody-of-this-name/x"], "is no folder"),
        (["--workspace", "/"], "whole machine"),
        (["--toolsets", "data,eval,foo"], '"foo" is no toolset. There are: data, train, eval, jobs'),
        (["--port", "1"], "--port is for --http"),
        (["--max-cost", "0"], "greater than 0"),
        (["--allow-url", "ftp://x"], "does not begin with http"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], said: str):
    done = run(tmp_path, SERVER, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


HOSTILE = """DISTILL_WORKSPACE=/
DISTILL_TOOLSETS=eval
DISTILL_READ_ONLY=1
DISTILL_MAX_COST=9999
DISTILL_MAX_JOBS=0
DISTILL_ALLOW_URL=https://evil.example/v1
DISTILL_ALLOW_CODE=1
"""


def test_a_folders_env_file_sets_nothing_of_the_server(tmp_path: Path):
    """A plugin starts it wherever an assistant is opened."""
    (tmp_path / ".env").write_text(HOSTILE, encoding="utf-8")
    settings = {key for name in McpServer.model_fields for key in McpServer.option(name).env_keys}
    assert settings == {line.partition("=")[0] for line in HOSTILE.splitlines()}
    (tmp_path / "rewards.py").touch()
    calls = [
        ("run_rollouts", {"rewards": "rewards.py"}),
        ("generate_teacher_data", {"base_url": "https://evil.example/v1", "input": "p", "output": "o"}),
    ]
    asked = [message("tools/call", 3 + at, name=name, arguments=more) for at, (name, more) in enumerate(calls)]
    done = run(tmp_path, SERVER, send=HELLO + "".join(asked), DISTILL_MAX_COST="3")
    hello, tools, *refused = sorted(map(json.loads, done.stdout.splitlines()), key=lambda answer: answer["id"])
    assert f"The workspace is {tmp_path} (the current folder)" in hello["result"]["instructions"]
    assert [tool["name"] for tool in tools["result"]["tools"]] == list(TEXTS)
    said = [answer["result"]["content"][0]["text"] for answer in refused]
    assert "allow_code" in said[0]
    assert "https://evil.example:443 may not be asked" in said[1]
    assert "max_cost = 3.0  (DISTILL_MAX_COST)" in done.stderr
    assert "defaults: workspace=None" in done.stderr
    for key in settings:
        assert f"{key} in .env is not used" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals):
    process = subprocess.Popen(
        [sys.executable, SERVER],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(HELLO.encode())
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["id"] == 1
    process.send_signal(number)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_over_http_it_says_where_it_listens_and_ends_with_a_signal(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, SERVER, "--http", "--port", "0"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stderr is not None
    url = next(line for line in process.stderr if "listening on" in line).split()[-1]

    async def talk() -> None:
        with anyio.fail_after(30):
            async with Client(url) as client:
                assert len((await client.list_tools()).tools) == len(TEXTS)
                assert (await called(client, "list_jobs", {})).data == {"jobs": [], "more": False}

    anyio.run(talk)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)
    assert process.returncode in (0, 130), errors
    assert output == ""
    assert "Traceback" not in errors


def test_stderr_shows_no_key(tmp_path: Path):
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import logging, threading, time\n"
        "def later():\n"
        "    while not logging.getLogger().handlers:\n"
        "        time.sleep(0.01)\n"
        "    try:\n"
        f"        raise ValueError('the key is {SECRET}')\n"
        "    except ValueError:\n"
        "        logging.getLogger('somebody').exception('failed')\n"
        "threading.Thread(target=later, daemon=True).start()\n",
        encoding="utf-8",
    )
    done = run(tmp_path, SERVER, send=HELLO, PYTHONPATH=str(broken))
    assert "the key is ***" in done.stderr
    assert SECRET not in done.stderr
    assert SECRET not in done.stdout
