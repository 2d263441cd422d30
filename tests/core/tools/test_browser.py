"""The embedded browser, with a real Chromium and a real site."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
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
from core.tools.protocol import ToolResult, Toolset, ToolsetGone
from tests.support.running import ROOT
from tests.support.site import Site, small_site

QUICK = Limits(page_s=5, action_s=3, snapshot_s=6, load_s=1)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with small_site() as running:
        yield running


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


def with_teacher(site: Site, story: Callable[[Teacher], Awaitable[None]], **options: Any) -> None:
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


# Reading and acting


@pytest.mark.browser
def test_a_teacher_finds_an_answer_by_searching(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        home = await teacher.open("/")
        assert home.startswith(f"### Page\n- Page URL: {site.base}/\n- Page Title: Bridges\n### Snapshot\n```yaml\n- ")
        box = ref(home, 'searchbox "Search"')
        results = await teacher.good("type", element="search", target=box, text="forth", submit=True)
        assert "Page Title: Results for forth" in results
        details = await teacher.good("click", target=ref(results, 'link "Forth Bridge"'))
        assert "Longest span: 521 metres" in details
        assert "Longest span: 521 metres" in await teacher.good("snapshot")
        assert "Page Title: Results for forth" in await teacher.good("navigate_back")
        assert "Page Title: Bridges" in await teacher.good("navigate_back")
        assert "about:blank" in await teacher.good("navigate_back")
        assert "no page before" in await teacher.bad("navigate_back")

    with_teacher(site, story)


@pytest.mark.browser
def test_forms_are_filled_keys_are_pressed_and_places_are_found(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        page = await teacher.open("/fields")
        fields = [
            {"target": ref(page, "textbox"), "name": "Name", "type": "textbox", "value": "Ada"},
            {"target": ref(page, "checkbox"), "name": "News", "type": "checkbox", "value": "true"},
            {"target": ref(page, "combobox"), "name": "Size", "type": "combobox", "value": "large"},
        ]
        filled = await teacher.good("fill_form", fields=fields)
        assert re.search(r'textbox "Name".*: Ada', filled)
        assert re.search(r'checkbox "News" \[checked\]', filled)
        assert 'option "large" [selected]' in filled
        assert 'option "small" [selected]' in await teacher.good("select_option", target="select", values=["small"])
        assert "ArrowDown" in await teacher.good("press_key", key="ArrowDown")
        assert 'Unknown key: "Bogus"' in await teacher.bad("press_key", key="Bogus")
        assert "- Page URL" in await teacher.good("hover", target="select")
        assert re.search(r'Name".*: xyz', await teacher.good("type", target="input >> nth=0", text="xyz", slowly=True))
        assert 'Found 1 match for "LARGE"' in await teacher.good("find", text="LARGE")
        assert 'No matches found for "absent"' in await teacher.good("find", text="absent")
        assert "uploads none" in await teacher.good("click", target="[type=file]")
        part = await teacher.good("snapshot", target="select", depth=3, boxes=True)
        assert "[box=" in part
        assert "heading" not in part

    with_teacher(site, story)


@pytest.mark.browser
def test_elements_in_frames_have_refs_that_work(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        page = await teacher.open("/frame")
        assert "521 metres" in page
        inside = await teacher.good("click", target=ref(page, 'link "Back to the search"'))
        assert 'heading "Outer"' in inside
        assert "searchbox" in inside

    with_teacher(site, story)


@pytest.mark.browser
def test_what_an_action_sets_off_is_waited_for(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/script")
        assert "Slow but here" in await teacher.good("click", target="button")
        await teacher.open("/fetch")
        assert "Page Title: Fetched" in await teacher.good("click", target="button")
        await teacher.open("/appears")
        assert "Arrived" in await teacher.good("wait_for", text="Arrived")
        assert '"Arrived" did not go' in await teacher.bad("wait_for", textGone="Arrived")
        assert "Arrived" in await teacher.good("wait_for", time=0.1)
        assert "what to wait for" in await teacher.bad("wait_for")

    with_teacher(site, story)


@pytest.mark.browser
def test_a_wait_that_was_cut_short_says_so(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/")
        assert "Waited 0.4 s, the most for one call, and not 100000 s." in await teacher.good("wait_for", time=100_000)
        assert "Waited" not in await teacher.good("wait_for", time=0.2)

    with_teacher(site, story, limits=Limits(page_s=0.2, action_s=3, snapshot_s=6, load_s=1))


@pytest.mark.browser
def test_a_snapshot_right_after_a_refused_redirect_shows_the_page_that_is_there(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        for _ in range(5):
            await teacher.open("/links")
            await teacher.bad("navigate", url=f"{site.base}/to/file")
            assert "### Snapshot" in await teacher.good("snapshot")
            await teacher.bad("navigate", url=f"{site.base}/to/file")
            assert "### Result" in await teacher.good("find", text="e")

    with_teacher(site, story)


@pytest.mark.browser
def test_mistakes_of_the_teacher_are_explained(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        old = ref(await teacher.open("/"), 'button "Search"')
        await teacher.open("/fields")
        assert "Take a new browser_snapshot" in await teacher.bad("click", target=old)
        assert "No element fits #absent" in await teacher.bad("click", target="#absent")
        assert "3 elements fit label" in await teacher.bad("click", target="label")
        assert "target: is required" in await teacher.bad("click")
        assert "There is no tool browser_evaluate" in await teacher.bad("evaluate", function="() => 1")
        assert "not an <input>" in await teacher.bad("type", target="h1", text="x")
        text = await teacher.bad("click", target="[")
        assert "\x1b" not in text
        button = ref(await teacher.open("/"), 'button "Search"')
        assert "Results for" in await teacher.good("click", ref=button)  # as older servers called the argument

    with_teacher(site, story)


@pytest.mark.browser
def test_tabs_are_listed_chosen_and_closed(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/new-tab")
        clicked = await teacher.good("click", target="a")
        assert clicked.startswith("### Open tabs\n- 0: (current) [new-tab]")
        assert f"- 1: [Bridges]({site.base}/)" in clicked
        assert 'heading "Bridges"' in await teacher.good("tabs", action="select", index=1)
        assert "There is no tab 7" in await teacher.bad("tabs", action="close", index=7)
        assert "- 0: (current) [new-tab]" in await teacher.good("tabs", action="close")
        assert "Cookie" in await teacher.good("tabs", action="new", url=f"{site.base}/cookie")
        await teacher.good("close")
        assert "No open tabs" in await teacher.good("close")
        await teacher.still_works()

    with_teacher(site, story)


# Hostile pages


@pytest.mark.browser
def test_nothing_but_allowed_web_pages_is_reached_by_whatever_way(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        for url in ("file:///etc/passwd", "chrome://version", "javascript:alert(1)", "view-source:" + site.base):
            assert "only http: and https: pages" in await teacher.bad("navigate", url=url)
        assert "--allow-hosts 169.254.169.254:80" in await teacher.bad("navigate", url="http://169.254.169.254/latest")
        await teacher.open("/links")
        assert 'heading "Links"' in await teacher.good("click", target="text=file")
        assert "redirects to what is not a web page" in await teacher.bad("click", target="text=redirect")
        assert "redirects to what is not a web page" in await teacher.bad("navigate", url=f"{site.base}/to/file")
        for there in ("http://127.0.0.1:65000/", "https://127.0.0.1:65000/", "http://example.org/"):
            said = await teacher.bad("navigate", url=f"{site.base}/to?url={there}")
            assert "is not among the allowed hosts" in said
            assert "--allow-hosts" in said
        await teacher.still_works()

    with_teacher(site, story)


@pytest.mark.browser
def test_a_page_cannot_reach_other_hosts_by_scripts_sockets_or_udp(site: Site) -> None:
    with small_site() as other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.2)
        ice = f"stun:127.0.0.1:{udp.getsockname()[1]}"

        async def story(teacher: Teacher) -> None:
            await teacher.open("/")
            tab = teacher.session._current
            assert tab is not None
            script = f"""async () => {{
                const results = [];
                await fetch('{other.base}/', {{mode: 'no-cors'}}).then(r => results.push('fetch'), () => {{}});
                await new Promise(done => {{
                    const image = new Image(); image.onload = image.onerror = done; image.src = '{other.base}/i';
                }});
                await new Promise(done => {{
                    const socket = new WebSocket('ws://{other.host}/ws');
                    socket.onopen = () => {{ results.push('websocket'); done() }}; socket.onerror = done;
                }});
                const peer = new RTCPeerConnection({{iceServers: [{{urls: '{ice}'}}]}});
                peer.createDataChannel('x');
                await peer.setLocalDescription(await peer.createOffer());
                await new Promise(done => setTimeout(done, 1000));
                return results;
            }}"""
            assert "websocket" not in await tab.page.evaluate(script)

        with_teacher(site, story)
        assert other.requests == []
        with pytest.raises(TimeoutError):
            udp.recvfrom(100)


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
def test_downloads_and_empty_answers_are_told_and_keep_the_page(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/links")
        assert "Download of download was refused" in await teacher.good("click", target="text=download")
        assert "Download of download was refused" in await teacher.open("/download")
        assert 'heading "Links"' in await teacher.good("click", target="text=nothing")
        assert "status 204" in await teacher.bad("navigate", url=f"{site.base}/none")
        assert 'heading "Links"' in await teacher.good("snapshot")

    with_teacher(site, story)


@pytest.mark.browser
def test_dialogs_are_answered_with_no_and_told(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/alerts")
        asked = await teacher.good("click", target="button")
        assert asked.endswith('### Events\n- ["confirm" dialog with message "Sure?"]: dismissed')
        assert "Page Title: false" in asked
        await teacher.open("/stay")
        await teacher.good("type", target="input", text="unsaved")
        assert "beforeunload" in await teacher.open("/")
        await teacher.open("/alert-loop")
        endless = await teacher.bad("click", target="button")
        assert "opened dialogs without end and was closed" in endless
        assert "dismissed (20 times)" in endless
        await teacher.still_works()

    with_teacher(site, story)


@pytest.mark.browser
def test_a_page_may_open_only_so_many_tabs(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/popups")
        result = await teacher.raw("click", target="button")
        assert "A new tab was closed at once: 8 tabs are open already. (" in result.text
        for _ in range(50):
            if len((await teacher.good("tabs", action="list")).split("### Events")[0].strip().splitlines()) == 9:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("there are not 8 tabs")
        assert "no more can be" in await teacher.bad("tabs", action="new")
        await teacher.still_works()

    with_teacher(site, story)


@pytest.mark.browser
def test_pages_that_do_not_answer_or_never_end_cost_a_bounded_time(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        began = time.monotonic()
        assert "did not answer within 5 s" in await teacher.bad("navigate", url=f"{site.base}/silent")
        endless = await teacher.open("/never")
        assert "The first part" in endless
        assert "still loading" in endless
        assert time.monotonic() - began < 25
        await teacher.still_works()

    with_teacher(site, story)


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


@pytest.mark.browser
def test_a_page_gets_no_permissions_and_no_service_worker(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        assert "denied denied denied denied" in await teacher.open("/wants")
        await teacher.good("wait_for", time=0.3)

    with_teacher(site, story)
    assert "/sw.js" not in site.paths


@pytest.mark.browser
def test_what_the_teacher_reads_can_be_written_anywhere(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        text = await teacher.open("/odd")
        assert "red" in text
        assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
        json.dumps(text, ensure_ascii=False).encode()

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
def test_calls_of_one_rollout_run_one_after_another(site: Site) -> None:
    async def story(teacher: Teacher) -> None:
        both = await asyncio.gather(teacher.open("/bridge/forth-bridge"), teacher.open("/bridge/severn-bridge"))
        assert "521 metres" in both[0]
        assert "988 metres" in both[1]

    with_teacher(site, story)


@pytest.mark.browser
@pytest.mark.parametrize("victim", ["chrom", "node"])
def test_when_chromium_or_its_driver_dies_the_rollout_ends_and_the_next_gets_a_new_one(
    site: Site, victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a driver that is killed cannot tidy up

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
def sleeper(site: Site, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process of its own, in a group of its own, with a browser; it visits a page for every line that it reads."""
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER.format(root=str(ROOT), host=site.host, url=site.base), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
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
def test_no_chromium_outlives_a_run_that_is_killed(sleeper: "subprocess.Popen[str]", tmp_path: Path) -> None:
    processes = family(sleeper.pid)
    assert len(processes) > 3
    assert list(tmp_path.glob("playwright*profile*")) != []
    sleeper.kill()
    assert gone(processes)
    assert list(tmp_path.glob("playwright*profile*")) == []


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
    assert "pip install -e '.[browser]'" in opening_fails(BrowserTools())


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
