"""The MCP server as an assistant meets it: a process on stdio that the SDK's client starts, asked through tools."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
from mcp import Client, StdioServerParameters
from mcp.client.session import ElicitationFnT
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, TextContent, TextResourceContents

from tests.support.running import ROOT, environment

SERVER = str(ROOT / "mcp_server")
MODELS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill" / "models"
"""Where SmolLM2 is, once it has been converted: each test would need half a minute for it."""
ENDED = ("succeeded", "stopped", "failed", "cancelled", "lost")


@dataclass(frozen=True)
class Answer:
    """What a call answered. data: the structured part, {} where there is none."""

    is_error: bool
    text: str
    data: dict[str, Any]

    @property
    def state(self) -> str:
        return self.data["state"]

    @property
    def job(self) -> str:
        return self.data["job_id"]


class Assistant:
    """One connection. pid: of the server.   errors: the file with its stderr.   client: the SDK's."""

    def __init__(self, client: Client, pid: int, errors: Path) -> None:
        self.client, self.pid, self._errors = client, pid, errors

    async def call(self, tool: str, **arguments: Any) -> Answer:
        result = await self.client.call_tool(tool, arguments, read_timeout_seconds=60)
        assert isinstance(result, CallToolResult)
        text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
        return Answer(bool(result.is_error), text, cast(dict[str, Any], result.structured_content or {}))

    async def done(self, tool: str, **arguments: Any) -> Answer:
        """The answer of a call that was no error."""
        answer = await self.call(tool, **arguments)
        assert not answer.is_error, answer.text
        return answer

    async def finished(self, answer: Answer, seconds: float = 120) -> Answer:
        """The same job when it has ended, as its `next` says: get_job until then."""
        until = time.monotonic() + seconds
        while answer.state not in ENDED:
            assert "get_job" in answer.data["next"], answer.data
            assert time.monotonic() < until, answer.data
            answer = await self.call("get_job", job_id=answer.job, wait_s=45)  # of a failed job it is an error
            assert "state" in answer.data, answer.text
        return answer

    async def until(self, job: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 60) -> Answer:
        """The first look at a job for which something holds."""
        limit = time.monotonic() + seconds
        while True:
            answer = await self.done("get_job", job_id=job)
            if holds(answer.data):
                return answer
            assert answer.state not in ENDED, answer.data
            assert time.monotonic() < limit, answer.data
            await asyncio.sleep(0.1)

    async def refused(self, tool: str, *words: str, **arguments: Any) -> str:
        """The text of an error with all of these words, which speaks as a tool does: of fields, not of flags."""
        answer = await self.call(tool, **arguments)
        assert answer.is_error, answer.data
        for word in words:
            assert word in answer.text, (word, answer.text)
        assert "Traceback" not in answer.text
        assert "--" not in answer.text, answer.text
        return answer.text

    async def read(self, uri: str) -> str:
        """A resource of text."""
        (content,) = (await self.client.read_resource(uri)).contents
        assert isinstance(content, TextResourceContents)
        return content.text

    @property
    def said(self) -> str:
        """The server's stderr so far."""
        return self._errors.read_text(encoding="utf-8")

    async def send(self, number: int, seconds: float = 5) -> None:
        """Send the server a signal, and wait until that has ended it."""
        os.kill(self.pid, number)
        limit = time.monotonic() + seconds
        while psutil.pid_exists(self.pid):  # until the client's transport has reaped it
            assert time.monotonic() < limit
            await asyncio.sleep(0.01)


@asynccontextmanager
async def assistant(
    folder: Path,
    *options: str,
    mode: str = "auto",
    elicit: ElicitationFnT | None = None,
    python: str = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> AsyncIterator[Assistant]:
    """A server in `folder`, its workspace, and a client of it. At the end the server must be gone, and have said no
    traceback."""
    apart = folder.parent / f"{folder.name}-cache"  # another run's jobs are not queued with these
    if not apart.exists():
        (apart / "distill").mkdir(parents=True)
        MODELS.mkdir(parents=True, exist_ok=True)
        (apart / "distill/models").symlink_to(MODELS)
    single = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNDEFAULTENCODING": ""}
    variables = {**environment(**single, XDG_CACHE_HOME=str(apart)), **(variables or {})}
    parameters = StdioServerParameters(command=python, args=[SERVER, *options], env=variables, cwd=folder)
    errors = folder.parent / f"{folder.name}-server-{time.monotonic_ns()}.txt"
    before = {child.pid for child in psutil.Process().children()}
    with open(errors, "w", encoding="utf-8") as stderr:
        async with Client(stdio_client(parameters, stderr), mode=mode, elicitation_callback=elicit) as client:
            (process,) = (child for child in psutil.Process().children() if child.pid not in before)
            yield Assistant(client, process.pid, errors)
    assert not psutil.pid_exists(process.pid)
    assert "Traceback" not in errors.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8")


def talk(conversation: Callable[[], Awaitable[None]], seconds: float = 240) -> None:
    """Run a conversation to its end, from a test that knows no asyncio."""

    async def limited() -> None:
        await asyncio.wait_for(conversation(), seconds)

    asyncio.run(limited())


def as_json(answer: Answer) -> str:
    """For looking a word up anywhere in an answer."""
    return answer.text + json.dumps(answer.data, ensure_ascii=False)
