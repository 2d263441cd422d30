"""The tools of a run, as its options name them: one toolbox for the prompts without a container, one per container."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

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


class Kit:
    """Opens toolboxes when they are first needed, and closes them all at the end."""

    def __init__(self, options: RunRollouts, note: Callable[[str], None]) -> None:
        self._options, self._note = options, note
        self._leash = Leash()
        self._containers = Containers(Path(), run_label=str(options.output.resolve()), leash=self._leash, note=note)
        self._closing = AsyncExitStack()
        self._main: Toolbox | None = None
        self._shared: dict[str, Toolbox] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._told: set[str] = set()
        # A project's config.yml names the server in its prompts' container; with --browser no container runs.
        self._left_out = [url for url in options.mcp_url or () if options.browser and is_loopback(url)]
        self._urls = [url for url in options.mcp_url or () if url not in self._left_out]

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
            if self._left_out:
                self._tell(
                    f"--browser takes the place of mcp_url {', '.join(self._left_out)}. A server on this machine that "
                    "is to be used beside it can be named in an --mcp-servers file; a URL elsewhere is used as it is."
                )
            self._main = await self._opened(self._toolsets(self._urls), self._closing)
        return self._main

    @asynccontextmanager
    async def toolbox(self, entry: Entry) -> AsyncIterator[Toolbox]:
        """The tools of one rollout. Raises UsageError or ToolsetGone when its container cannot be had."""
        port = next((port for url in self._urls if (port := loopback_port(url))), None)
        if not self.in_container(entry):
            yield await self.main()
        elif self._options.docker_per_rollout:
            async with AsyncExitStack() as closing:
                own = self._containers.own(str(entry.docker), entry.docker_env, port)
                yield await self._beside(await closing.enter_async_context(own), closing)
        else:
            container = await self._containers.shared(str(entry.docker), entry.docker_env, port)
            async with self._opening.setdefault(container.name, asyncio.Lock()):
                if container.name not in self._shared:
                    self._shared[container.name] = await self._beside(container, self._closing)
            yield self._shared[container.name]

    async def _beside(self, container: Container, closing: AsyncExitStack) -> Toolbox:
        """A container's tools, and those from elsewhere."""
        elsewhere = [url for url in self._urls if not is_loopback(url)]
        return await self._opened(self._toolsets(elsewhere, container), closing)

    async def _opened(self, toolsets: list[Toolset], closing: AsyncExitStack) -> Toolbox:
        options = self._options
        toolbox = Toolbox(toolsets, allow=options.allow_tools or (), deny=options.deny_tools or ())
        closing.push_async_callback(toolbox.aclose)
        await toolbox.open()
        for note in toolbox.notes:
            self._tell(note)
        return toolbox

    def _tell(self, note: str) -> None:
        """Show a note, once: every container's toolbox has the same ones."""
        if note not in self._told:
            self._told.add(note)
            self._note(note)

    def _toolsets(self, urls: list[str], container: Container | None = None) -> list[Toolset]:
        """All that the options name, and what a container offers; modules are imported as they are needed."""
        options, found = self._options, list[Toolset]()
        if options.tools:
            from ..tools.python_file import PythonTools

            found.append(PythonTools(options.tools))
        if container or urls or options.mcp_command or options.mcp_servers:
            from ..tools.mcp import McpCommand, McpUrl
            from ..tools.mcp_servers_file import from_servers_file
            from ..tools.mcp_text import toolset_name

            shared, leash = options.mcp_shared, self._leash
            if container:  # named after its image: its port is another one in every run
                found.append(McpUrl(container.address, toolset_name(container.ref), shared=shared))
            found += [McpUrl(url, shared=shared) for url in urls]
            found += [
                McpCommand(command, shared=shared, connect_s=COMMAND_S, leash=leash)
                for command in options.mcp_command or ()
            ]
            if options.mcp_servers:
                found += from_servers_file(options.mcp_servers, shared=shared, leash=leash)
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


def is_loopback(url: str) -> bool:
    """Whether an address, such as localhost:8931 or a URL, is one of this machine."""
    host = (_parts(url).hostname or "").lower()
    return (
        host in {"localhost", "::1"} or host.endswith(".localhost") or re.match(r"127(\.\d+){1,3}$", host) is not None
    )


def loopback_port(url: str) -> int | None:
    """The port of an address on this machine; None for any other, or without one."""
    return _parts(url).port if is_loopback(url) else None


def _parts(url: str) -> SplitResult:
    """Empty for what is no URL: whoever connects says so."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        _ = parts.port
    except ValueError:
        return urlsplit("")
    return parts
