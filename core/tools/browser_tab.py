"""One tab of the embedded browser: what its page is doing, and what became of the last navigation."""

import asyncio
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .browser_text import first_lines
from .gate import Gate
from .hosts import place, shown

if TYPE_CHECKING:
    from playwright.async_api import Dialog, Download, FileChooser, Frame, Page, Request, Response

_WORKING = ("document", "script", "xhr", "fetch")


@dataclass(frozen=True)
class Limits:
    """How long things may last, in seconds, and how large they may be.

    page_s: an answer to a navigation.   action_s: until an element is ready.   snapshot_s: a snapshot.
    load_s: what a page loads after its document.   elements: of a page.   chars: of a snapshot.
    tabs, dialogs: more are closed, with the page that shows them in the case of dialogs.
    """

    page_s: float = 15.0
    action_s: float = 5.0
    snapshot_s: float = 15.0
    load_s: float = 2.0
    elements: int = 20_000
    chars: int = 40_000
    tabs: int = 8
    dialogs: int = 20

    @property
    def call_s(self) -> float:
        """The longest that a call lasts."""
        return 2 * self.page_s + self.snapshot_s + self.load_s

    @classmethod
    def within(cls, tool_timeout_s: float) -> "Limits":
        """Limits that let every call end by itself, with a word about what happened, before its time is over."""
        share = min(1.0, tool_timeout_s / 50)
        return cls(cls.page_s * share, cls.action_s * share, cls.snapshot_s * share, cls.load_s * share)


class Tab:
    """A page and its news.

    events: what the page did that the teacher should know, shared by the tabs of a session.
    navigation: the request for a document that has not arrived yet.   status: of the last document.
    failure: (URL, reason) of the last document that did not come.
    dialogs, downloads: how many there were during this call.
    """

    def __init__(self, page: "Page", limits: Limits, events: deque[str]) -> None:
        self.page = page
        self.dialogs = self.downloads = 0
        self.crashed = False
        self.navigation: Request | None = None
        self.status = 0
        self.failure: tuple[str, str] | None = None
        self._limits, self._events = limits, events
        self._pending: set[Request] = set()
        page.on("request", self._on_request)
        page.on("response", self._on_response)
        page.on("requestfinished", self._on_finished)
        page.on("requestfailed", self._on_failed)
        page.on("framenavigated", self._on_navigated)
        page.on("dialog", self._on_dialog)
        page.on("download", self._on_download)
        page.on("filechooser", self._on_file_chooser)
        page.on("crash", self._on_crash)

    @property
    def usable(self) -> bool:
        return not self.crashed and not self.page.is_closed()

    @property
    def flooded(self) -> bool:
        """Whether it was closed because its dialogs had no end."""
        return self.dialogs > self._limits.dialogs

    def begin(self) -> None:
        """Forget what became of the navigation before."""
        self.navigation, self.failure, self.status = None, None, 0

    async def goto(self, url: str) -> None:
        """Go to a URL and wait until its document begins to arrive. Raises Playwright's errors, TimeoutError too."""
        self.begin()
        try:
            await self.page.goto(url, wait_until="commit", timeout=self._limits.page_s * 1000)
        finally:
            self.navigation = None

    async def downloading(self, error: str) -> bool:
        """Whether a navigation failed with `error` because it was a download; its event comes after the failure."""
        for _ in range(50 if "Download" in error else 0):
            if self.downloads:
                break
            await asyncio.sleep(0.02)
        return self.downloads > 0

    async def settled(self) -> bool:
        """Wait for what an action has set off. Whether the page has finished loading."""
        from playwright.async_api import TimeoutError as TooSlow

        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.15)  # a script may only now begin to navigate
        end = loop.time() + self._limits.page_s
        while self.navigation is not None and loop.time() < end and self.usable:
            await asyncio.sleep(0.02)
        loaded = self.navigation is None
        try:
            await self.page.wait_for_load_state("domcontentloaded", timeout=max(1.0, (end - loop.time()) * 1000))
            await self.page.wait_for_load_state("load", timeout=self._limits.load_s * 1000)
        except TooSlow:
            loaded = False
        end = min(end, loop.time() + self._limits.load_s)
        while loop.time() < end and any(request.resource_type in _WORKING for request in self._pending):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)  # to draw what has arrived
        return loaded

    def problem(self, gate: Gate) -> str | None:
        """Why the last document did not come, or None. The gate knows more than the browser."""
        url, reason = self.failure or (self.page.url, "")
        at_gate = gate.problems.get(_place(url))
        if at_gate is not None and (self.failure is not None or self.status in (403, 502)):
            return at_gate
        if "ERR_UNSAFE_REDIRECT" in reason:
            return f"Refused: {shown(url)} redirects to what is not a web page. ({reason})"
        return f"{first_lines(reason)} at {shown(url)}" if self.failure and "ERR_ABORTED" not in reason else None

    def _on_request(self, request: "Request") -> None:
        self._pending.add(request)
        if self._is_document(request):
            self.begin()
            self.navigation = request

    def _on_response(self, response: "Response") -> None:
        if self._is_document(response.request):
            self.status = response.status
            if response.status in (204, 205):  # says: stay where you are
                self.navigation = None

    def _on_finished(self, request: "Request") -> None:
        self._pending.discard(request)

    def _on_failed(self, request: "Request") -> None:
        self._pending.discard(request)
        if request is self.navigation:
            self.navigation = None
            self.failure = (request.url, request.failure or "failed")

    def _on_navigated(self, frame: "Frame") -> None:
        if frame == self.page.main_frame:
            self.navigation = None

    async def _on_dialog(self, dialog: "Dialog") -> None:
        """Nothing is answered with yes, except to leaving a page: nobody may hold the teacher back."""
        from playwright.async_api import Error

        leaving = dialog.type == "beforeunload"
        self.dialogs += 1
        try:
            if self.flooded:
                await self.page.close()
                return
            done = "left the page" if leaving else "dismissed"
            self._events.append(f'["{dialog.type}" dialog with message "{shown(dialog.message, 300)}"]: {done}')
            await (dialog.accept() if leaving else dialog.dismiss())
        except Error:
            pass  # the page went away meanwhile

    def _on_download(self, download: "Download") -> None:
        self.begin()
        self.downloads += 1
        self._events.append(f"Download of {shown(download.suggested_filename)} was refused: no files are kept here.")

    def _on_file_chooser(self, chooser: "FileChooser") -> None:
        self._events.append("The page asks for a file: this browser uploads none.")

    def _on_crash(self, page: "Page") -> None:
        self.crashed = True

    def _is_document(self, request: "Request") -> bool:
        from playwright.async_api import Error

        try:
            return request.is_navigation_request() and request.frame == self.page.main_frame
        except Error:
            return True  # the first document of a new tab has no frame yet


def _place(url: str) -> tuple[str, int]:
    try:
        return place(urlsplit(url))
    except ValueError:
        return "", 0


_background: set[asyncio.Task[Any]] = set()


def soon(work: Awaitable[object]) -> None:
    """Do it without waiting for it."""
    task = asyncio.ensure_future(quietly(work, 10))
    _background.add(task)
    task.add_done_callback(_background.discard)


async def quietly(work: Awaitable[object], limit_s: float) -> None:
    """Do something that may fail, or last, without harm: the page, or the browser, may be dead already."""
    try:
        await asyncio.wait_for(work, limit_s)
    except Exception:
        pass  # as said
