"""A teacher at the embedded browser."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from core.tools.browser import BrowserTools
from core.tools.browser_page import BrowserSession
from core.tools.browser_tab import Limits
from core.tools.protocol import ToolResult
from tests.support.site import Site

QUICK = Limits(page_s=5, action_s=3, snapshot_s=6, load_s=1)


@asynccontextmanager
async def browser(*allow: str, **options: Any) -> AsyncIterator[BrowserTools]:
    tools = BrowserTools(allow_hosts=allow, **{"limits": QUICK, **options})
    await tools.open()
    try:
        yield tools
    finally:
        await tools.aclose()


class Teacher:
    """Calls tools and looks at what they say."""

    def __init__(self, session: BrowserSession, site: Site) -> None:
        self.session, self.site = session, site

    async def raw(self, name: str, **arguments: Any) -> ToolResult:
        return await self.session.call(f"browser_{name}", arguments)

    async def good(self, name: str, **arguments: Any) -> str:
        result = await self.raw(name, **arguments)
        assert not result.is_error, result.text
        return result.text

    async def bad(self, name: str, **arguments: Any) -> str:
        result = await self.raw(name, **arguments)
        assert result.is_error, result.text
        assert result.text.startswith("### Error\n")
        return result.text

    async def open(self, path: str) -> str:
        return await self.good("navigate", url=self.site.base + path)

    async def still_works(self) -> None:
        assert 'heading "Bridges"' in await self.open("/")


Story = Callable[[Teacher], Awaitable[None]]


def with_teacher(site: Site, story: Story, **options: Any) -> None:
    """Run `story` in one session of a fresh browser that may visit the site."""

    async def main() -> None:
        async with browser(site.host, **options) as tools, tools.session() as session:
            await story(Teacher(session, site))

    asyncio.run(main())


def ref(text: str, line: str) -> str:
    """The ref in the snapshot's line that holds `line`."""
    found = re.search(rf"{re.escape(line)}.*?\[ref=((?:f\d+)?e\d+)\]", text)
    assert found is not None, f"no {line} in {text}"
    return found[1]
