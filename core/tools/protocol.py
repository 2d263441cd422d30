"""What a teacher can use: a `Toolset` is opened once for a run and gives every rollout a session of its own."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Tool:
    """A tool as the teacher sees it. parameters: JSON Schema of the arguments, an object."""

    name: str
    description: str
    parameters: dict[str, Any]

    def as_openai(self) -> dict[str, Any]:
        """The form of the Chat API's `tools`."""
        about = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": about}


@dataclass(frozen=True)
class ToolResult:
    """What a call gave, as text for the teacher. is_error: the tool says that the call failed."""

    text: str
    is_error: bool = False


class ToolsetGone(Exception):
    """The session or its server is dead: no further call of this rollout can succeed. The message says why."""


class ToolSession(Protocol):
    """The tools of one rollout, with its own state (a browser context, a protocol session)."""

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Call a tool of the set. A failing tool is a result with `is_error`; raises ToolsetGone when the server died.

        The caller keeps the time limit by cancelling the call: the session must stay usable after that.
        """
        ...


class Toolset(Protocol):
    """Tools from one place.

    name: short, for messages and for prefixes where two places offer the same name ([a-z0-9_-]+).
    tools: known once `open` has returned.
    """

    name: str
    tools: list[Tool]

    async def open(self) -> None:
        """Start or reach it and list its tools. Raises UsageError with the next step when it cannot be used."""
        ...

    def session(self) -> AbstractAsyncContextManager[ToolSession]:
        """The tools of one rollout. Entering it may raise ToolsetGone."""
        ...

    async def aclose(self) -> None:
        """End what `open` started."""
        ...
