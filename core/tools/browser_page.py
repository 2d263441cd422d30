"""One rollout's browser: the tabs of one isolated context, what the tools do with them, what the teacher is told."""

import asyncio
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .browser_schemas import wrong_arguments
from .browser_tab import Limits, Tab, quietly, soon
from .browser_text import clean, completed, cut, first_lines, found
from .gate import Gate
from .hosts import HostRules, shown
from .protocol import ToolResult, ToolsetGone

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Locator, Page

_REF = re.compile(r"\[?(?:ref=)?((?:f\d+)?e\d+)\]?")
_SAFE_PAGES = ("http://", "https://", "about:", "chrome-error:", "blob:", "data:")
_TRIM = """limit => {
    const all = document.getElementsByTagName('*'), excess = all.length - limit;
    if (excess <= 0) return 0;
    window.stop();
    for (let node = all[limit - 1]; node && node.parentNode; node = node.parentNode)
        while (node.nextSibling) node.nextSibling.remove();
    return excess;
}"""
"""Takes away what comes after the first elements: each of them costs a snapshot about 0.1 ms."""
REPLACED_S = 0.3
"""For a page that replaces another one to be there."""
Value = TypeVar("Value")
_STILL_LOADING = "The page is still loading: more may come. browser_wait_for gives it time."


class Failed(Exception):
    """The call cannot be done. The message is for the teacher."""


class BrowserSession:
    """The tools of one rollout. Calls run one after another; a call that is cancelled leaves the session usable.

    alive: whether Chromium still runs.
    """

    def __init__(
        self, context: "BrowserContext", rules: HostRules, gate: Gate, limits: Limits, alive: Callable[[], bool]
    ) -> None:
        self._context, self._rules, self._gate, self._limits, self._alive = context, rules, gate, limits, alive
        self._tabs: dict[Page, Tab] = {}
        self._current: Tab | None = None
        self._events: deque[str] = deque(maxlen=50)
        self._cut_off = False
        self._lock = asyncio.Lock()
        context.set_default_timeout(limits.action_s * 1000)
        context.on("page", self._opened)

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Call a tool of the browser. Raises ToolsetGone when Chromium has ended."""
        tool: Callable[..., Awaitable[str]] | None = getattr(self, f"_do_{name.removeprefix('browser_')}", None)
        if tool is None or not name.startswith("browser_"):
            return _error(f"There is no tool {shown(name)}.")
        if "ref" in arguments and "target" not in arguments:  # as older versions of Playwright MCP call it
            arguments = {("target" if key == "ref" else key): value for key, value in arguments.items()}
        wrong = wrong_arguments(name, arguments)
        if wrong:
            return _error(f'Invalid arguments for tool "{name}":\n' + "\n".join(f"- {line}" for line in wrong))
        async with self._lock:
            return await self._guarded(tool, arguments)

    async def _guarded(self, tool: Callable[..., Awaitable[str]], arguments: dict[str, Any]) -> ToolResult:
        from playwright.async_api import Error

        if not self._alive():
            raise ToolsetGone("Chromium has ended.")
        if self._cut_off and self._current is not None:  # what the last call has set off must not come into this one
            await quietly(self._stop(self._current), 2)
        self._cut_off = False
        for tab in self._tabs.values():
            tab.dialogs = tab.downloads = 0
        try:
            async with asyncio.timeout(self._limits.call_s):
                return ToolResult(clean(await tool(**arguments)))
        except Failed as error:
            return _error(self._with_events(str(error)))
        except TimeoutError:
            return _error(self._with_events(await self._give_up("did not respond")))
        except asyncio.CancelledError:
            self._cut_off = True
            raise
        except Error as error:
            if not self._alive() or ("closed" in error.message and not await self._answers()):
                raise ToolsetGone("Chromium has ended.") from None
            tab = self._current
            if tab is not None and not tab.usable:
                word = "crashed" if tab.crashed else "opened dialogs without end" if tab.flooded else "is gone"
                return _error(self._with_events(await self._give_up(word)))
            return _error(self._with_events(first_lines(error.message)))
        except Exception:
            if not await self._answers():  # a driver that dies raises what it likes
                raise ToolsetGone("Chromium has ended.") from None
            raise

    async def _answers(self) -> bool:
        """Whether the context is there; that Playwright's driver has died shows in nothing else."""
        try:
            await asyncio.wait_for(self._context.cookies(), 5)
        except Exception:
            return False  # of whatever kind: it cannot be used
        return True

    # Tabs and elements.

    def _opened(self, page: "Page") -> None:
        """A new tab, opened by a page or by us."""
        if page in self._tabs:
            return
        self._tabs[page] = Tab(page, self._limits, self._events)
        page.on("close", lambda closed: self._tabs.pop(closed, None) and None)
        if len(self._tabs) > self._limits.tabs:
            self._events.append(f"A new tab was closed at once: {self._limits.tabs} tabs are open already.")
            soon(page.close())

    async def _new_tab(self) -> Tab:
        page = await self._context.new_page()
        self._opened(page)
        self._current = tab = self._tabs[page]
        return tab

    async def _tab(self) -> Tab:
        """The current tab; else the last one that is left; else a new, empty one."""
        if self._current is None or not self._current.usable:
            usable = [tab for tab in self._tabs.values() if tab.usable]
            self._current = usable[-1] if usable else await self._new_tab()
        return self._current

    async def _give_up(self, what: str) -> str:
        """Close the current page, which cannot be used any more. What to say about it."""
        tab, self._current = self._current, None
        if tab is not None:
            self._tabs.pop(tab.page, None)
            await quietly(tab.page.close(), 3)
        return f"The page {what} and was closed. Use browser_navigate to open a page."

    async def _locate(self, tab: Tab, target: str) -> "Locator":
        ref = _REF.fullmatch(target.strip())
        locator = tab.page.locator(f"aria-ref={ref[1]}" if ref else target)
        count = await locator.count()
        if ref and not count:
            raise Failed(f"Ref {ref[1]} is not on the page any more. Take a new browser_snapshot and use its refs.")
        if not count:
            raise Failed(f"No element fits {shown(target)}. browser_snapshot shows the page and its refs.")
        if count > 1:
            raise Failed(f"{count} elements fit {shown(target)}. Use a ref of browser_snapshot.")
        return locator

    # What the teacher is told.

    async def _outcome(self, tab: Tab) -> str:
        """The page after an action. Raises Failed where the action led to a page that did not come."""
        loaded = await tab.settled()
        problem = tab.problem(self._gate)
        if problem is not None:
            raise Failed(problem)
        if not tab.page.url.startswith(_SAFE_PAGES):
            url = tab.page.url
            await self._give_up("left the web")
            raise Failed(f"Refused: {self._rules.refuse_url(url)}")
        if not loaded:
            self._events.append(_STILL_LOADING)
        return await self._page_text(tab, await self._snapshot(tab))

    async def _snapshot(self, tab: Tab, **options: Any) -> str:
        from playwright.async_api import TimeoutError as TooSlow

        async with asyncio.timeout(self._limits.snapshot_s):
            removed = await _once_more(lambda: tab.page.evaluate(_TRIM, self._limits.elements))
            if removed:
                self._events.append(f"The page is very large: {removed} elements at its end were taken away.")
            limit_ms = self._limits.snapshot_s * 1000
            try:
                return await _once_more(lambda: tab.page.aria_snapshot(mode="ai", timeout=limit_ms, **options))
            except TooSlow:
                raise TimeoutError from None

    async def _page_text(self, tab: Tab, snapshot: str) -> str:
        title = await _once_more(tab.page.title)
        parts = []
        if len(self._tabs) > 1:
            parts.append("### Open tabs\n" + await self._tab_lines())
        about = [f"- Page URL: {shown(tab.page.url, 2000)}"]
        if title:
            about.append(f"- Page Title: {shown(title, 300)}")
        parts.append("\n".join(["### Page", *about]))
        parts.append(f"### Snapshot\n```yaml\n{cut(snapshot, self._limits.chars)}\n```")
        return self._with_events("\n".join(parts))

    def _with_events(self, text: str) -> str:
        counts = Counter(self._events)
        self._events.clear()
        events = [f"- {event}{f' ({count} times)' if count > 1 else ''}" for event, count in counts.items()]
        return "\n".join([text, "### Events", *events]) if events else text

    async def _tab_lines(self) -> str:
        lines: list[str] = []
        for index, tab in enumerate(list(self._tabs.values())):
            try:
                title = await asyncio.wait_for(tab.page.title(), 1)
            except Exception:
                title = "does not respond"  # in whatever way: this tab is not the one that was asked for
            current = "(current) " if tab is self._current else ""
            lines.append(f"- {index}: {current}[{shown(title, 100)}]({shown(tab.page.url, 500)})")
        return "\n".join(lines) or "No open tabs. Navigate to a URL to create one."

    # The tools.

    async def _do_navigate(self, url: str) -> str:
        return await self._goto(await self._tab(), url)

    async def _goto(self, tab: Tab, url: str) -> str:
        from playwright.async_api import Error
        from playwright.async_api import TimeoutError as TooSlow

        url = completed(url)
        refused = self._rules.refuse_url(url)
        if refused is not None:
            raise Failed(f"Refused: {refused}")
        for attempt in range(5):
            try:
                await tab.goto(url)
                break
            except TooSlow:
                await quietly(self._stop(tab), 2)  # else it arrives in the middle of something else
                raise Failed(f"{shown(url)} did not answer within {self._limits.page_s:g} s.") from None
            except Error as error:
                if not tab.usable or not self._alive() or "has been closed" in error.message:
                    raise
                if "interrupted by another navigation" in error.message and attempt < 4:
                    await asyncio.sleep(0.1)  # the browser's own page about the last failure comes a moment late
                    continue
                if tab.status in (204, 205):
                    raise Failed(f"{shown(url)} answered with status {tab.status}: no page to show.") from None
                if await tab.downloading(error.message):
                    break  # the reason stands among the events
                raise Failed(tab.problem(self._gate) or first_lines(error.message)) from None
        return await self._outcome(tab)

    async def _stop(self, tab: Tab) -> None:
        protocol = await self._context.new_cdp_session(tab.page)
        await protocol.send("Page.stopLoading")
        await protocol.detach()

    async def _do_navigate_back(self) -> str:
        tab = await self._tab()
        before = tab.page.url
        tab.begin()
        response = await tab.page.go_back(wait_until="commit", timeout=self._limits.page_s * 1000)
        if response is None and tab.page.url == before:
            raise Failed("There is no page before this one.")
        return await self._outcome(tab)

    async def _do_snapshot(self, target: str | None = None, depth: float | None = None, boxes: bool = False) -> str:
        from playwright.async_api import TimeoutError as TooSlow

        tab = await self._tab()
        options: dict[str, Any] = {"boxes": boxes}
        if depth is not None:
            options["depth"] = max(1, int(depth))
        if target is None:
            return await self._page_text(tab, await self._snapshot(tab, **options))
        locator = await self._locate(tab, target)
        try:
            part = await locator.aria_snapshot(mode="ai", timeout=self._limits.snapshot_s * 1000, **options)
        except TooSlow:
            raise TimeoutError from None
        return await self._page_text(tab, part)

    async def _do_find(self, text: str) -> str:
        tab = await self._tab()
        places = found((await self._snapshot(tab)).split("\n"), text)
        return self._with_events("### Result\n" + cut(places, self._limits.chars))

    async def _do_click(
        self, target: str, element: str = "", doubleClick: bool = False, button: Any = "left", modifiers: Any = ()
    ) -> str:
        tab = await self._tab()
        locator = await self._locate(tab, target)
        tab.begin()
        await (locator.dblclick if doubleClick else locator.click)(button=button, modifiers=list(modifiers))
        return await self._outcome(tab)

    async def _do_hover(self, target: str, element: str = "") -> str:
        tab = await self._tab()
        locator = await self._locate(tab, target)
        tab.begin()
        await locator.hover()
        return await self._outcome(tab)

    async def _do_type(
        self, target: str, text: str, element: str = "", submit: bool = False, slowly: bool = False
    ) -> str:
        tab = await self._tab()
        locator = await self._locate(tab, target)
        tab.begin()
        if slowly:
            await locator.press_sequentially(text, timeout=self._limits.page_s * 1000)
        else:
            await locator.fill(text)
        if submit:
            await locator.press("Enter")
        return await self._outcome(tab)

    async def _do_fill_form(self, fields: list[dict[str, str]]) -> str:
        tab = await self._tab()
        tab.begin()
        for entry in fields:
            locator = await self._locate(tab, entry["target"])
            if entry["type"] in ("checkbox", "radio"):
                await locator.set_checked(entry["value"].strip().lower() == "true")
            elif entry["type"] == "combobox":
                await locator.select_option(label=entry["value"])
            else:
                await locator.fill(entry["value"])
        return await self._outcome(tab)

    async def _do_select_option(self, target: str, values: list[str], element: str = "") -> str:
        tab = await self._tab()
        locator = await self._locate(tab, target)
        tab.begin()
        await locator.select_option(values)
        return await self._outcome(tab)

    async def _do_press_key(self, key: str) -> str:
        tab = await self._tab()
        tab.begin()
        await tab.page.keyboard.press(key)
        return await self._outcome(tab)

    async def _do_wait_for(
        self, time: float | None = None, text: str | None = None, textGone: str | None = None
    ) -> str:
        from playwright.async_api import TimeoutError as TooSlow

        if time is None and text is None and textGone is None:
            raise Failed("Say what to wait for: time, text or textGone.")
        tab = await self._tab()
        limit_s = self._limits.page_s
        if time is not None:
            most_s = min(30, 2 * limit_s if text is textGone is None else limit_s)
            await asyncio.sleep(min(max(time, 0), most_s))
            if time > most_s:
                self._events.append(f"Waited {most_s:g} s, the most for one call, and not {time:g} s.")
        waits = ((textGone, "hidden", "did not go"), (text, "visible", "did not appear"))
        for words, state, otherwise in waits:
            if words is not None:
                try:
                    place = tab.page.get_by_text(words).first
                    await place.wait_for(state=state, timeout=limit_s * 500)  # type: ignore[arg-type]
                except TooSlow:
                    raise Failed(f'"{shown(words)}" {otherwise} within {limit_s / 2:g} s.') from None
        return await self._page_text(tab, await self._snapshot(tab))

    async def _do_tabs(self, action: str, index: float | None = None, url: str | None = None) -> str:
        tabs = list(self._tabs.values())
        if action == "new":
            if len(tabs) >= self._limits.tabs:
                raise Failed(f"{len(tabs)} tabs are open, no more can be. Close one first.")
            tab = await self._new_tab()
            if url:
                return await self._goto(tab, url)
        elif action != "list":
            if index is not None and not 0 <= index < len(tabs):
                raise Failed(f"There is no tab {index:g}. The tabs are:\n{await self._tab_lines()}")
            tab = tabs[int(index)] if index is not None else await self._tab()
            if action == "select":
                self._current = tab
                return await self._page_text(tab, await self._snapshot(tab))
            await tab.page.close()
            self._tabs.pop(tab.page, None)
            if self._current is tab:
                self._current = next(reversed(self._tabs.values()), None)
        return self._with_events("### Result\n" + await self._tab_lines())

    async def _do_close(self) -> str:
        return await self._do_tabs("close")


async def _once_more(look: Callable[[], Awaitable[Value]]) -> Value:
    """What a look at a page gives; a second one when the page was replaced under the first, as it is a moment after a
    navigation was refused."""
    from playwright.async_api import Error

    try:
        return await look()
    except Error as error:
        if "context was destroyed" not in error.message:
            raise
    await asyncio.sleep(REPLACED_S)
    return await look()


def _error(text: str) -> ToolResult:
    return ToolResult(clean(f"### Error\n{text}"), is_error=True)
