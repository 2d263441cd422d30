"""What a tool of this server is: its declaration, and the function that answers a call."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context
    from mcp.types import CallToolResult, InputRequiredResult

Toolset = Literal["data", "train", "eval", "jobs"]
"""`jobs` is always there: looking at work, and stopping it."""


@dataclass(frozen=True)
class Tool:
    """One tool, as `tools/list` shows it.

    description: what it does, when to use it, what it costs, what to call next.
    read_only, destructive, idempotent, open_world: the annotations of the MCP specification.
    input_schema, output_schema: make the JSON schemas; called at the first listing, not at the start of the server.
    answer: gets the arguments as they came, unchecked, and the SDK's context. Raises DistillError for what the caller
    can mend; everything else is a crash, of which the caller learns only that it happened.
    """

    name: str
    title: str
    description: str
    toolset: Toolset
    input_schema: Callable[[], dict[str, Any]]
    output_schema: Callable[[], dict[str, Any]]
    answer: "Callable[[Mapping[str, Any], Context[Any, Any]], Awaitable[CallToolResult | InputRequiredResult]]"
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False
    open_world: bool = False
