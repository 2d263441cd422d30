"""The tools of a run, as its options name them: one toolbox for the prompts without a container, one per container."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ..commands.run_rollouts import RunRollouts
from ..errors import UsageError
from ..tools.docker import Container, Containers
from ..tools.leash import Leash
from ..tools.protocol import Toolset
from ..tools.toolbox import Toolbox
from .entries import Entry

COMMAND_S = 60.0
"""For a server to start: npx may have to fetch it first."""
MANY_BROWSERS = 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Kit:
    """Opens toolboxes when they are first needed, and closes them all at the end."""

    def __init__(self, options: RunRollouts, note: Callable[[str], None]) -> None:
        self._options, self._note = options, note
        self._leash = Leash()
        self._containers = Containers(Path(), run_label=str(options.output.resolve()), leash=self._leash, note=note)
        self._closing = AsyncExitStack()
        self._main: Toolbox | None = None
        self._shared: dict[str, Toolbox] = {}
        self._opening = asyncio.Lock()

    def in_container(self, entry: Entry) -> bool:
        """Whether the entry's tools run in a container."""
        return entry.docker is not None and self._options.docker and not self._options.browser

    async def check_containers(self, images: Iterable[str]) -> None:
        """See that Docker answers, remove what a killed run left, and make the images. Raises UsageError."""
        await self._containers.check()
        await self._containers.sweep()
        for image in images:
            await self._containers.image(image)

    async def main(self) -> Toolbox:
        """The tools of prompts without a container. Raises UsageError when some cannot be used."""
        if self._main is None:
            self._main = await self._opened(self._toolsets(self._options.mcp_url or []), self._closing)
            for note in self._main.notes:
                self._note(note)
        return self._main

    @asynccontextmanager
    async def toolbox(self, entry: Entry) -> AsyncIterator[Toolbox]:
        """The tools of one rollout. Raises UsageError or ToolsetGone when its container cannot be had."""
        port = next((port for url in self._options.mcp_url or () if (port := loopback_port(url))), None)
        if not self.in_container(entry):
            yield await self.main()
        elif self._options.docker_per_rollout:
            async with AsyncExitStack() as closing:
                own = self._containers.own(str(entry.docker), entry.docker_env, port)
                yield await self._beside(await closing.enter_async_context(own), closing)
        else:
            async with self._opening:
                container = await self._containers.shared(str(entry.docker), entry.docker_env, port)
                if container.name not in self._shared:
                    self._shared[container.name] = await self._beside(container, self._closing)
            yield self._shared[container.name]

    async def _beside(self, container: Container, closing: AsyncExitStack) -> Toolbox:
        """A container's tools, and those from elsewhere."""
        elsewhere = [url for url in self._options.mcp_url or () if not loopback_port(url)]
        return await self._opened(self._toolsets([container.address, *elsewhere]), closing)

    async def _opened(self, toolsets: list[Toolset], closing: AsyncExitStack) -> Toolbox:
        options = self._options
        toolbox = Toolbox(toolsets, allow=options.allow_tools or (), deny=options.deny_tools or ())
        closing.push_async_callback(toolbox.aclose)
        await toolbox.open()
        return toolbox

    def _toolsets(self, urls: list[str]) -> list[Toolset]:
        """All that the options name; modules are imported as they are needed."""
        options, found = self._options, list[Toolset]()
        if options.tools:
            from ..tools.python_file import PythonTools

            found.append(PythonTools(options.tools))
        if urls or options.mcp_command or options.mcp_servers:
            from ..tools.mcp import McpCommand, McpUrl
            from ..tools.mcp_servers_file import from_servers_file

            found += [McpUrl(url, shared=options.mcp_shared) for url in urls]
            found += [
                McpCommand(command, shared=options.mcp_shared, connect_s=COMMAND_S)
                for command in options.mcp_command or ()
            ]
            if options.mcp_servers:
                found += from_servers_file(options.mcp_servers, shared=options.mcp_shared)
        if options.browser:
            from ..tools.browser import BrowserTools
            from ..tools.browser_tab import Limits

            limits = Limits.within(options.tool_timeout)
            hosts = options.allow_hosts or ()
            found.append(BrowserTools(allow_hosts=hosts, executable=options.browser_path, limits=limits))
            if options.concurrency > MANY_BROWSERS:
                gigabytes = 0.3 + 0.065 * options.concurrency
                self._note(f"{options.concurrency} browser contexts at a time need about {gigabytes:.1f} GB of memory")
        elif options.allow_hosts:
            raise UsageError("--allow-hosts is for --browser: another browser's network is not in our hands.")
        return found

    async def aclose(self) -> None:
        """End everything that was started."""
        await self._closing.aclose()
        await self._containers.aclose()
        await asyncio.to_thread(self._leash.close)


def loopback_port(url: str) -> int | None:
    """The port of an address on this machine, such as localhost:8931; None for any other."""
    parts = urlsplit(url if re.match(r"\w+://", url) else f"http://{url}")
    return parts.port if parts.hostname in LOOPBACK else None
