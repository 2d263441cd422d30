"""The embedded browser as a set of tools: its limits, sessions and processes, with a real Chromium and a real site."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import UsageError
from core.tools.browser import BrowserTools
from core.tools.browser_page import BrowserSession
from core.tools.browser_schemas import TOOLS, wrong_arguments
from core.tools.browser_tab import Limits
from core.tools.browser_text import clean, completed, cut, found
from core.tools.protocol import Toolset, ToolsetGone
from tests.support.browsing import Teacher, browser, ref, with_teacher
from tests.support.running import ROOT
from tests.support.site import Site, small_site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with small_site() as running:
        yield running


def family(pid: int | None = None) -> list[psutil.Process]:
    """The living descendants of a process that belong to a browser or its driver."""
    names = ("chrom", "node")
    found: list[psutil.Process] = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if child.is_running() and any(name in child.name() for name in names):
                found.append(child)
        except psutil.Error:  # it ended while we looked
            pass
    return found


def words_of(process: psutil.Process) -> str:
    """Its command line; "" when it ends while we look."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def gone(processes: list[psutil.Process], limit_s: float = 10) -> bool:
    _, alive = psutil.wait_procs(processes, limit_s)
    return not any(is_alive(process) for process in alive)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.mark.browser
def test_a_wait_that_was_cut_short_says_so(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/")
        assert "Waited 2 s, the most for one call, and not 100000 s." in await teacher.good("wait_for", time=100_000)
        assert "Waited" not in await teacher.good("wait_for", time=0.2)

    with_teacher(site, story, limits=Limits(page_s=1, action_s=3, snapshot_s=6, load_s=1))


@pytest.mark.browser
def test_without_named_hosts_this_machine_is_out_of_reach(site: Site) -> None:
    async def main() -> None:
        async with browser() as tools, tools.session() as session:
            before = len(site.requests)
            teacher = Teacher(session, site)
            assert "on this machine" in await teacher.bad("navigate", url=site.base)
            assert "on this machine" in await teacher.bad("navigate", url=site.host.replace("127.0.0.1", "localhost"))
            assert "on this machine" in await teacher.bad("navigate", url=site.base.replace("127.0.0.1", "0x7f.1"))
            assert len(site.requests) == before

    asyncio.run(main())


@pytest.mark.browser
def test_a_server_that_is_not_there_is_an_error(site: Site) -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            async with browser("127.0.0.1:*", "absent.invalid") as tools, tools.session() as session:
                teacher = Teacher(session, site)
                for scheme in ("http", "https"):
                    said = await teacher.bad("navigate", url=f"{scheme}://127.0.0.1:{port}/")
                    assert f"Could not connect to 127.0.0.1:{port}" in said
                assert "Could not connect to absent.invalid:443" in await teacher.bad("navigate", url="absent.invalid")
                await teacher.still_works()

    asyncio.run(main())


@pytest.mark.browser
@pytest.mark.slow
def test_a_page_of_50_mb_is_shown_in_part(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        big = await teacher.open("/big?mb=50")
        assert "row of text" in big
        assert len(big) < 41_000
        assert re.search(r"\[cut: \d+ of \d{6,} characters", big)
        assert re.search(r"very large: \d+ elements", big)
        await teacher.still_works()

    with_teacher(site, story, limits=Limits())


@pytest.mark.browser
def test_a_page_that_hangs_or_crashes_is_replaced(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/hang")
        assert "Timeout" in await teacher.bad("click", target="button")
        assert "did not respond and was closed" in await teacher.bad("snapshot")
        await teacher.still_works()
        renderers = [process for process in family() if "--type=renderer" in words_of(process)]
        assert renderers
        for process in renderers:
            process.kill()
        assert gone(renderers)
        result = await teacher.raw("snapshot")
        assert "crashed" in result.text or "about:blank" in result.text
        await teacher.still_works()

    with_teacher(site, story)


# Sessions and processes


@pytest.mark.browser
def test_rollouts_share_nothing(site: Site) -> None:
    async def main() -> None:
        async with browser(site.host) as tools:
            for _ in range(2):
                async with tools.session() as session:
                    assert "had: undefined" in await Teacher(session, site).open("/cookie")
            async with tools.session() as one, tools.session() as two:
                assert "had: undefined" in await Teacher(one, site).open("/cookie")
                assert "had: k=1 v" in await Teacher(one, site).open("/cookie")
                assert "had: undefined" in await Teacher(two, site).open("/cookie")

    asyncio.run(main())


@pytest.mark.browser
@pytest.mark.slow
def test_twenty_rollouts_at_once_leave_nothing_behind(site: Site) -> None:
    async def rollout(tools: BrowserTools, words: str) -> str:
        async with tools.session() as session:
            teacher = Teacher(session, site)
            home = await teacher.open("/")
            results = await teacher.good("type", target=ref(home, "searchbox"), text=words, submit=True)
            return await teacher.good("click", target=ref(results, "link"))

    async def main() -> list[psutil.Process]:
        async with browser(site.host, limits=Limits()) as tools:
            words = ["forth", "severn", "clifton", "avon"] * 5
            answers = await asyncio.gather(*(rollout(tools, word) for word in words))
            spans = {"forth": "521", "severn": "988", "clifton": "214", "avon": "214"}
            assert [word for word, answer in zip(words, answers, strict=True) if spans[word] not in answer] == []
            assert tools._chromium is not None
            assert tools._chromium.browser.contexts == []
            processes = family()
            assert processes
        return processes

    assert gone(asyncio.run(main()))
    assert family() == []


@pytest.mark.browser
def test_a_call_that_is_cancelled_leaves_the_session_usable(site: Site) -> None:
    calls = [
        ("navigate", {"url": f"{site.base}/silent"}),
        ("navigate", {"url": f"{site.base}/never"}),
        ("wait_for", {"time": 3}),
        ("snapshot", {}),
        ("tabs", {"action": "new"}),
    ]

    async def main() -> None:
        async with browser(site.host) as tools:
            async with tools.session() as session:
                teacher, cancelled = Teacher(session, site), 0
                for name, arguments in calls:
                    for limit_s in (0.001, 0.01, 0.3):
                        try:
                            await asyncio.wait_for(teacher.raw(name, **arguments), limit_s)
                        except TimeoutError:
                            cancelled += 1
                    await teacher.still_works()
                assert cancelled >= 10
            for limit_s in (0, 0.001, 0.01, 0.05):
                try:
                    async with asyncio.timeout(limit_s), tools.session() as session:
                        await Teacher(session, site).open("/never")
                except TimeoutError:
                    pass
            assert tools._chromium is not None
            for _ in range(100):
                if not tools._chromium.browser.contexts:
                    break
                await asyncio.sleep(0.05)
            assert tools._chromium.browser.contexts == []

    asyncio.run(main())


@pytest.mark.browser
@pytest.mark.parametrize("victim", ["chrom", "node"])
def test_when_chromium_or_its_driver_dies_the_rollout_ends_and_the_next_gets_a_new_one(
    site: Site, victim: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short_path))  # a driver that is killed cannot tidy up

    async def main() -> list[psutil.Process]:
        async with browser(site.host) as tools:
            async with tools.session() as session, tools.session() as busy:
                teacher = Teacher(session, site)
                await teacher.still_works()
                waiting = asyncio.create_task(busy.call("browser_wait_for", {"text": "never"}))
                await asyncio.sleep(0.5)
                first = family()
                [root, *_] = [process for process in first if victim in process.name()]
                root.kill()
                with pytest.raises(ToolsetGone):
                    await waiting
                with pytest.raises(ToolsetGone):
                    await teacher.raw("snapshot")
            async with tools.session() as session:
                await Teacher(session, site).still_works()
            return first + family()

    assert gone(asyncio.run(main()))


SLEEPER = """
import asyncio, signal, sys
sys.path.insert(0, {root!r})
from core.tools.browser import BrowserTools

async def main():
    signal.signal(signal.SIGINT, lambda *_: None)
    tools = BrowserTools(allow_hosts=[{host!r}])
    await tools.open()
    async with tools.session() as session:
        print((await session.call("browser_navigate", {{"url": {url!r}}})).is_error, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print((await session.call("browser_navigate", {{"url": {url!r}}})).is_error, flush=True)
    await tools.aclose()

asyncio.run(main())
"""


@pytest.fixture
def sleeper(site: Site, short_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process of its own, in a group of its own, with a browser; it visits a page for every line that it reads."""
    script = short_path / "sleeper.py"
    script.write_text(SLEEPER.format(root=str(ROOT), host=site.host, url=site.base), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(short_path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "False\n"
    yield process
    process.kill()
    process.wait(10)
    process.stdin.close()
    process.stdout.close()


@pytest.mark.browser
def test_no_chromium_outlives_a_run_that_is_killed(sleeper: "subprocess.Popen[str]", short_path: Path) -> None:
    processes = family(sleeper.pid)
    assert len(processes) > 3
    assert list(short_path.glob("playwright*profile*")) != []
    sleeper.kill()
    assert gone(processes)
    assert list(short_path.glob("playwright*profile*")) == []


@pytest.mark.browser
def test_the_browser_outlives_ctrl_c_so_that_a_run_can_end_in_order(sleeper: "subprocess.Popen[str]") -> None:
    assert sleeper.stdin is not None
    assert sleeper.stdout is not None
    processes = family(sleeper.pid)
    os.killpg(sleeper.pid, signal.SIGINT)
    time.sleep(0.5)
    sleeper.stdin.write("go on\n")
    sleeper.stdin.flush()
    assert sleeper.stdout.readline() == "False\n"
    sleeper.stdin.close()
    assert sleeper.wait(20) == 0
    assert gone(processes)


def opening_fails(tools: BrowserTools) -> str:
    async def main() -> None:
        try:
            await tools.open()
        finally:
            await tools.aclose()

    with pytest.raises(UsageError) as failure:
        asyncio.run(main())
    return str(failure.value)


def test_without_playwright_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "playwright.async_api", None)
    assert "doctor.py --install browser" in opening_fails(BrowserTools())


@pytest.mark.browser
def test_without_a_browser_the_ways_to_one_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Site
) -> None:
    assert "--browser-path" in opening_fails(BrowserTools(executable=tmp_path / "absent"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    broken.chmod(0o755)
    assert opening_fails(BrowserTools(executable=broken)).startswith("Chromium does not start")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    message = opening_fails(BrowserTools())
    assert "none was found" in message
    assert "apt install chromium" in message
    assert family() == []


# Without a browser


@pytest.mark.parametrize("tool_timeout_s", [1, 10, 45, 60, 600])
def test_a_call_ends_before_the_time_limit_of_tools(tool_timeout_s: float) -> None:
    limits = Limits.within(tool_timeout_s)
    assert limits.call_s < tool_timeout_s
    assert limits.page_s <= 15
    assert limits.chars == Limits().chars


def test_the_tools_are_named_as_playwright_mcp_names_them() -> None:
    toolset: Toolset = BrowserTools()
    assert toolset.tools == TOOLS
    names = {tool.name for tool in toolset.tools}
    assert {"browser_navigate", "browser_navigate_back", "browser_snapshot", "browser_click", "browser_type"} <= names
    assert "browser_evaluate" not in names
    assert "browser_file_upload" not in names
    for tool in TOOLS:
        assert set(tool.parameters.get("required", ())) <= set(tool.parameters["properties"])
        assert hasattr(BrowserSession, f"_do_{tool.name.removeprefix('browser_')}")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("browser_click", {"target": "e1", "modifiers": ["Shift"]}, []),
        ("browser_click", {}, ["target: is required"]),
        ("browser_click", {"target": 5}, ["target: has to be of type string"]),
        ("browser_click", {"target": "e1", "x": 1}, ["x: is not an argument of this tool"]),
        ("browser_click", {"target": "e1", "button": "top"}, ["button: has to be one of left, right, middle"]),
        ("browser_click", {"target": "e1", "modifiers": ["Hyper"]}, ["modifiers[0]: has to be one of Alt, "]),
        ("browser_wait_for", {"time": True}, ["time: has to be of type number"]),
        ("browser_fill_form", {"fields": [{"target": "e1"}]}, ["fields[0].name: is required"]),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], expected: list[str]) -> None:
    wrong = wrong_arguments(name, arguments)
    assert [line[: len(start)] for line, start in zip(wrong, expected, strict=False)] == expected
    assert bool(wrong) == bool(expected)


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("example.org", "https://example.org"),
        ("example.org:8080/x?y", "https://example.org:8080/x?y"),
        ("localhost:8080", "http://localhost:8080"),
        (" 10.0.0.1/x ", "http://10.0.0.1/x"),
        ("http://example.org", "http://example.org"),
        ("javascript:alert(1)", "javascript:alert(1)"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("about:blank", "about:blank"),
    ],
)
def test_an_address_without_a_scheme_is_completed(typed: str, url: str) -> None:
    assert completed(typed) == url


def test_a_long_snapshot_is_cut_at_a_line_with_a_marker() -> None:
    text = "\n".join(f"- line {number}" for number in range(1000))
    kept = cut(text, 100)
    assert kept.startswith("- line 0\n- line 1\n")
    assert kept.splitlines()[-1].startswith("[cut: ")
    assert all(line in text.split("\n") for line in kept.splitlines()[:-1])
    assert len(kept) < 200
    assert cut(text, len(text)) == text


def test_what_is_found_is_shown_under_its_ancestors() -> None:
    tree = ["- main:", "  - list:", "    - item one", "    - item two", "    - item three", "  - button", "- footer"]
    assert found(tree, "TWO").splitlines()[1:] == tree[:5]
    assert found(tree, "three").splitlines()[1:] == [*tree[:2], "...", *tree[3:6]]
    assert found(tree, "nothing") == 'No matches found for "nothing".'
    assert "25 matches" in found(["- x"] * 25, "x")


def test_text_is_cleaned_of_what_cannot_be_written() -> None:
    assert clean("a\x00b\x1b[31mc\ud800\tä\n") == "ab[31mc?\tä\n"
