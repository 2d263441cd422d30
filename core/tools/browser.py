"""An embedded browser: Chromium through Playwright, one process a run, one isolated context a rollout."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..data.text import one_line
from ..errors import MissingDependency, UsageError, pip_line
from .browser_page import BrowserSession
from .browser_schemas import TOOLS
from .browser_tab import Limits, quietly
from .gate import Gate
from .hosts import HostRules
from .plain import plain
from .protocol import ToolsetGone

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Playwright

_ON_PATH = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "DISPLAY", "XAUTHORITY", "WAYLAND_DISPLAY")
_CLOSE_S = 10.0
_GET_CHROMIUM = (
    "Install it (apt install chromium, or python -m playwright install chromium) or name it with --browser-path."
)
_SWITCHES = (
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing goes around the proxy: no look-ups of names, no WebRTC over UDP.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy",
)


@dataclass(eq=False)
class _Chromium:
    playwright: "Playwright"
    browser: "Browser"
    failed: bool = False

    def alive(self) -> bool:
        return self.browser.is_connected() and not self.failed

    async def close(self) -> None:
        """End Chromium and Playwright's driver, also when one of them is dead already."""
        await quietly(self.browser.close(), _CLOSE_S)
        await quietly(self.playwright.stop(), _CLOSE_S)


class BrowserTools:
    """The tools `browser_*`: names, arguments and sections of the results are those of Playwright MCP 0.0.83.

    Two things differ, because the results are what a student learns from: a page comes with its snapshot, where
    Playwright MCP links to a file, and without the Playwright code of the action. Dialogs are dismissed and told,
    files are neither kept nor sent, and no tool evaluates code.

    allow_hosts: see HostRules.   executable: Chromium; None looks for Playwright's own, then on PATH.
    sandbox: Chromium's own sandbox; None uses it unless the user is root, for whom Chromium has none.
    """

    def __init__(
        self,
        name: str = "browser",
        allow_hosts: Sequence[str] = (),
        executable: Path | None = None,
        headless: bool = True,
        sandbox: bool | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.tools = list(TOOLS)
        self._rules = HostRules(allow_hosts)
        self._gate = Gate(self._rules)
        self._executable = executable
        self._headless = headless
        self._sandbox = getattr(os, "geteuid", lambda: 1)() != 0 if sandbox is None else sandbox
        self._limits = limits or Limits()
        self._chromium: _Chromium | None = None
        self._starting = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def open(self) -> None:
        """Start Chromium. Raises UsageError when Playwright or a browser is missing or does not start."""
        try:
            import playwright.async_api  # noqa: F401
        except ImportError as error:
            raise MissingDependency("playwright", "--browser", "browser") from error
        await self._gate.open()
        try:
            await self._running()
        except BaseException:
            await self._gate.aclose()
            raise

    @asynccontextmanager
    async def session(self) -> AsyncIterator[BrowserSession]:
        """A browser context of its own: no cookies, storage or tabs of others. Raises ToolsetGone without Chromium."""
        from playwright.async_api import Error

        try:
            chromium = await self._running()
            try:
                context = await self._new_context(chromium)
            except Exception:  # a dead driver shows at its next use only, and raises what it likes
                chromium.failed = True
                chromium = await self._running()
                context = await self._new_context(chromium)
        except (UsageError, Error) as error:
            raise ToolsetGone(f"the browser cannot be used: {plain(str(error))}") from None
        try:
            yield BrowserSession(context, self._rules, self._gate, self._limits, chromium.alive)
        finally:
            await asyncio.shield(self._in_background(quietly(context.close(), _CLOSE_S)))

    async def aclose(self) -> None:
        """End Chromium, Playwright's driver and the proxy."""
        self._closed = True
        await asyncio.gather(*self._closing, return_exceptions=True)
        chromium, self._chromium = self._chromium, None
        if chromium is not None:
            await chromium.close()
        await self._gate.aclose()

    async def _running(self) -> _Chromium:
        """The Chromium of this run, started again where it has ended. Raises UsageError when it cannot be."""
        async with self._starting:
            if self._closed:
                raise UsageError("the run is at its end.")
            if self._chromium is not None and not self._chromium.alive():
                self._in_background(self._chromium.close())
                self._chromium = None
            if self._chromium is None:
                self._chromium = await self._start()
            return self._chromium

    async def _start(self) -> _Chromium:
        from playwright.async_api import Error, async_playwright

        try:
            playwright = await async_playwright().start()
        except (Error, OSError) as error:
            raise UsageError(
                f"Playwright does not start: {plain(str(error))}. Run: {pip_line('--force-reinstall', 'playwright')}"
            ) from None
        try:
            executable = _find(self._executable, Path(playwright.chromium.executable_path))
            browser = await playwright.chromium.launch(
                executable_path=executable,
                headless=self._headless,
                chromium_sandbox=self._sandbox,
                args=list(_SWITCHES),
                proxy={"server": self._gate.url},
                env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
                handle_sigint=False,  # the run ends what it has begun, then closes the browser
                handle_sigterm=False,
                handle_sighup=False,
                timeout=60_000,
            )
        except Error as error:
            await quietly(playwright.stop(), _CLOSE_S)
            raise UsageError(_why_not(error.message)) from None
        except BaseException:
            await quietly(playwright.stop(), _CLOSE_S)
            raise
        return _Chromium(playwright, browser)

    async def _new_context(self, chromium: _Chromium) -> "BrowserContext":
        task = asyncio.ensure_future(
            chromium.browser.new_context(
                accept_downloads=False,
                locale="en-US",
                permissions=[],
                service_workers="block",
                viewport={"width": 1280, "height": 720},
            )
        )
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._in_background(_close_when_there(task))
            raise

    def _in_background(self, work: Any) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task


async def _close_when_there(coming: "asyncio.Future[BrowserContext]") -> None:
    try:
        await (await coming).close()
    except Exception:
        pass  # it never came, or Chromium went first


def _find(given: Path | None, own: Path) -> Path:
    """The browser's executable. Raises UsageError with the ways to one."""
    if given is not None:
        found = shutil.which(given)
        if found is None:
            raise UsageError(f"--browser-path {given}: no such program. {_GET_CHROMIUM}")
        return Path(found)
    on_path = [cast(str, found) for found in map(shutil.which, _ON_PATH) if found]
    candidates = [own] if own.is_file() else [Path(found) for found in on_path]
    if not candidates:
        raise UsageError(f"--browser needs Chromium, and none was found. {_GET_CHROMIUM}")
    return candidates[0]


def _why_not(message: str) -> str:
    if "No usable sandbox" in message:
        return (
            "Chromium cannot start its sandbox on this machine: unprivileged user namespaces are switched off. "
            "A distribution's own chromium or google-chrome brings what it needs; name it with --browser-path."
        )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"Chromium does not start: {one_line(plain(' '.join(lines[:3])), 600)} {_GET_CHROMIUM}"
