"""The server: our tools beside whatever is added to it with the SDK's own decorators."""

import logging
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolResult,
    GetPromptResult,
    InputRequiredResult,
    Resource,
    ToolAnnotations,
)
from mcp.types import Tool as ListedTool

from core import __version__
from core.commands.resolve import suggestion
from core.errors import DistillError, UsageError

from .answers import failure
from .commands import command_tools
from .door import Door, Settings
from .jobs import job_tools
from .marked import safe
from .prompts import add_prompts
from .resources import add_resources, list_resources
from .rows import read_rows_tool
from .texts import INSTRUCTIONS, TEXTS
from .tool import Tool

NAME = "distill"
CRASHED = "a mistake in this server, which its log describes. Nothing was started by this call; look at list_jobs."

MOST_LETTERS = 200_000
"""Of all the texts in the arguments of a call."""

log = logging.getLogger(__name__)


class DistillServer(MCPServer[Any]):
    """An MCPServer that answers for its own tools itself: their schemas come from the command models, and their
    arguments are checked as the command line checks flags. Tools added with the SDK's decorators stand beside them."""

    def __init__(self, door: Door, **sdk: Any) -> None:
        """sdk: what MCPServer takes."""
        self.door = door
        every = [*command_tools(door), *job_tools(door), read_rows_tool(door)]
        self.tools = {tool.name: tool for tool in sorted(every, key=lambda tool: list(TEXTS).index(tool.name))}
        self._listed: dict[str, ListedTool] = {}
        said = {"name": NAME, "title": "Distill", "instructions": INSTRUCTIONS, "version": __version__}
        super().__init__(**{**said, **sdk})
        add_resources(self, door)
        add_prompts(self)

    def offers(self, tool: Tool) -> bool:
        """Whether the settings allow a tool; read_only beats everything."""
        settings = self.door.settings
        return tool.read_only if settings.read_only else tool.toolset in {"jobs", *settings.toolsets}

    async def list_tools(self) -> list[ListedTool]:
        ours = [self._shown(tool) for tool in self.tools.values() if self.offers(tool)]
        return [*ours, *await super().list_tools()]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Raises ToolError for a tool that is not there; of our own tools every mistake of the caller is an answer."""
        tool = self.tools.get(name)
        if tool is None:
            known = [other.name for other in await self.list_tools()]
            if name not in known:
                near = suggestion(name[:100], known)
                raise ToolError(safe(f"there is no tool {name[:100]}.{near} There are: {', '.join(known)}."))
            return await super().call_tool(name, arguments, context)
        if not self.offers(tool):
            why = "it changes things, and this server only reads (--read-only)"
            if not self.door.settings.read_only:
                why = f"it belongs to the toolset {tool.toolset}, which this server was started without (--toolsets)"
            raise ToolError(f"{name} is not offered: {why}.")
        try:
            if (size := letters(arguments)) > MOST_LETTERS:
                much = f"the arguments have {size:,} characters, and {MOST_LETTERS:,} are the most."
                raise UsageError(f"{much} Put long texts into a file in the workspace.")
            return await tool.answer(arguments, context or Context(mcp_server=self))
        except DistillError as error:
            return failure(f"{name}: {error}", self.door.workspace.show)
        except MCPError:
            raise
        except Exception:
            log.exception("the tool %s crashed", name)
            return failure(f"{name}: {CRASHED}", self.door.workspace.show)

    async def list_resources(self) -> list[Resource]:
        return [*await list_resources(self.door), *await super().list_resources()]

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Any, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """Raises MCPError (invalid params) for a prompt that is not there, and for a missing argument."""
        prompts = {prompt.name: prompt for prompt in await self.list_prompts()}
        if name not in prompts:
            near = suggestion(name[:100], prompts)
            raise refusal(f"there is no prompt {name[:100]}.{near} There are: {', '.join(prompts)}.")
        needed = [each.name for each in prompts[name].arguments or () if each.required]
        if missing := [each for each in needed if each not in (arguments or {})]:
            raise refusal(f"the prompt {name} needs {' and '.join(missing)}.")
        try:
            return await super().get_prompt(name, arguments, context)
        except MCPError:
            raise
        except Exception:
            log.exception("the prompt %s crashed", name)
            raise MCPError(code=INTERNAL_ERROR, message=f"{name}: a mistake in this server") from None

    def _shown(self, tool: Tool) -> ListedTool:
        """As tools/list has it. Made once, when it is first asked for: the models behind it take a while to load."""
        if tool.name not in self._listed:
            self._listed[tool.name] = ListedTool(
                name=tool.name,
                title=tool.title,
                description=tool.description,
                input_schema=tool.input_schema(),
                output_schema=tool.output_schema(),
                annotations=ToolAnnotations(
                    read_only_hint=tool.read_only,
                    destructive_hint=tool.destructive,
                    idempotent_hint=tool.idempotent,
                    open_world_hint=tool.open_world,
                ),
            )
        return self._listed[tool.name]

    def _tool_input_schema(self, name: str) -> dict[str, Any] | None:
        tool = self.tools.get(name)
        return super()._tool_input_schema(name) if tool is None else self._shown(tool).input_schema


def letters(value: Any) -> int:
    """Characters of all the texts in a JSON value, names included."""
    if isinstance(value, dict):
        return sum(len(str(name)) + letters(item) for name, item in value.items())
    if isinstance(value, list):
        return sum(map(letters, value))
    return len(value) if isinstance(value, str) else 0


def refusal(text: str) -> MCPError:
    """What a caller who asked for something wrong gets."""
    return MCPError(code=INVALID_PARAMS, message=safe(text))


def build(settings: Settings, **sdk: Any) -> DistillServer:
    """A server over a workspace. Raises UsageError for a workspace that is none.

    The process's current folder should be the workspace, too: commands look for the user's config.yml there.
    sdk: what MCPServer takes beside our own.
    """
    return DistillServer(Door(settings), **sdk)
