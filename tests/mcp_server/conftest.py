"""A server in memory over an empty workspace, and callers of both eras of the protocol."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import anyio
import pytest
from mcp import Client
from mcp.types import CallToolResult, TextContent

from mcp_server.door import Settings
from mcp_server.server import DistillServer, build

Era = Literal["legacy", "2026-07-28"]
ENDED = ("succeeded", "stopped", "failed", "cancelled", "lost")
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a call answered. data: the structured part.   seconds: that it took."""

    is_error: bool
    text: str
    data: dict[str, Any]
    seconds: float

    def __getitem__(self, key: str) -> Any:
        return self.data[key]


@dataclass(frozen=True)
class Caller:
    """A client of one era that connects for every call. options: of the client."""

    server: DistillServer
    era: Era
    options: dict[str, Any]

    def __call__(self, tool: str, /, **arguments: Any) -> Answer:
        async def ask(client: Client) -> Answer:
            return await called(client, tool, arguments)

        return self.talk(ask)

    def done(self, tool: str, /, **arguments: Any) -> Answer:
        """The answer of a call that was no error."""
        answer = self(tool, **arguments)
        assert not answer.is_error, answer.text
        return answer

    def refused(self, tool: str, /, **arguments: Any) -> str:
        """The text of a call that was one."""
        answer = self(tool, **arguments)
        assert answer.is_error, answer.text
        assert "Traceback" not in answer.text
        assert "--" not in answer.text, "a flag is no word of a tool"
        assert str(self.server.door.workspace.root) not in answer.text
        return answer.text

    def ended(self, answer: Answer, seconds: float = 60) -> Answer:
        """The same job when it has ended."""
        until = time.monotonic() + seconds
        while answer["state"] not in ENDED:
            assert time.monotonic() < until, answer
            answer = self.done("get_job", job_id=answer["job_id"], wait_s=20)
        return answer

    def with_(self, **options: Any) -> "Caller":
        return Caller(self.server, self.era, options)

    def talk(self, conversation: Callable[[Client], Awaitable[T]]) -> T:
        """A whole conversation over one connection."""

        async def connected() -> T:
            with anyio.fail_after(120):
                async with Client(self.server, mode=self.era, **self.options) as client:
                    return await conversation(client)

        return anyio.run(connected)


async def called(client: Client, tool: str, arguments: dict[str, Any], **options: Any) -> Answer:
    started = time.monotonic()
    result = await client.call_tool(tool, arguments, **options)
    assert isinstance(result, CallToolResult)
    text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
    data = cast(dict[str, Any], result.structured_content or {})
    return Answer(bool(result.is_error), text, data, time.monotonic() - started)


@pytest.fixture
def workspace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, also the current one; queues of devices of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / f"{folder.name}-cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture(params=["legacy", "2026-07-28"])
def era(request: pytest.FixtureRequest) -> Era:
    return request.param


@pytest.fixture
def server(workspace: Path) -> DistillServer:
    return build(Settings(workspace))


@pytest.fixture
def call(server: DistillServer, era: Era) -> Caller:
    """In both eras."""
    return Caller(server, era, {})


@pytest.fixture
def ask(server: DistillServer) -> Caller:
    """In one, where the era can make no difference."""
    return Caller(server, "2026-07-28", {})
