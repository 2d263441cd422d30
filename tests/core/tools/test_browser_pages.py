"""What a teacher sees and does with the embedded browser: one real Chromium, a session for each test, a real site."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from core.tools.browser import BrowserTools
from tests.support.browsing import QUICK, Story, Teacher, ref
from tests.support.site import Site, small_site

pytestmark = pytest.mark.browser

WithTeacher = Callable[[Story], None]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with small_site() as running:
        yield running


@pytest.fixture(scope="module")
def with_teacher(site: Site) -> Iterator[WithTeacher]:
    """Run a story in a session of its own; the browser, which may visit the site, is the same for all."""
    tools = BrowserTools(allow_hosts=[site.host], limits=QUICK)

    async def told(story: Story) -> None:
        async with tools.session() as session:
            await story(Teacher(session, site))

    with asyncio.Runner() as runner:
        runner.run(tools.open())
        try:
            yield lambda story: runner.run(told(story))
        finally:
            runner.run(tools.aclose())


# Reading and acting


def test_a_teacher_finds_an_answer_by_searching(site: Site, with_teacher: WithTeacher) -> None:
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

    with_teacher(story)


def test_forms_are_filled_keys_are_pressed_and_places_are_found(with_teacher: WithTeacher) -> None:
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

    with_teacher(story)


def test_elements_in_frames_have_refs_that_work(with_teacher: WithTeacher) -> None:
    async def story(teacher: Teacher) -> None:
        page = await teacher.open("/frame")
        assert "521 metres" in page
        inside = await teacher.good("click", target=ref(page, 'link "Back to the search"'))
        assert 'heading "Outer"' in inside
        assert "searchbox" in inside

    with_teacher(story)


def test_what_an_action_sets_off_is_waited_for(with_teacher: WithTeacher) -> None:
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

    with_teacher(story)


def test_a_snapshot_right_after_a_refused_redirect_shows_the_page_that_is_there(
    site: Site, with_teacher: WithTeacher
) -> None:
    async def story(teacher: Teacher) -> None:
        for _ in range(5):
            await teacher.open("/links")
            await teacher.bad("navigate", url=f"{site.base}/to/file")
            assert "### Snapshot" in await teacher.good("snapshot")
            await teacher.bad("navigate", url=f"{site.base}/to/file")
            assert "### Result" in await teacher.good("find", text="e")

    with_teacher(story)


def test_mistakes_of_the_teacher_are_explained(with_teacher: WithTeacher) -> None:
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

    with_teacher(story)


def test_tabs_are_listed_chosen_and_closed(site: Site, with_teacher: WithTeacher) -> None:
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

    with_teacher(story)


# Hostile pages


def test_nothing_but_allowed_web_pages_is_reached_by_whatever_way(site: Site, with_teacher: WithTeacher) -> None:
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

    with_teacher(story)


def test_a_page_cannot_reach_other_hosts_by_scripts_sockets_or_udp(with_teacher: WithTeacher) -> None:
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

        with_teacher(story)
        assert other.requests == []
        with pytest.raises(TimeoutError):
            udp.recvfrom(100)


def test_downloads_and_empty_answers_are_told_and_keep_the_page(site: Site, with_teacher: WithTeacher) -> None:
    async def story(teacher: Teacher) -> None:
        await teacher.open("/links")
        assert "Download of download was refused" in await teacher.good("click", target="text=download")
        assert "Download of download was refused" in await teacher.open("/download")
        assert 'heading "Links"' in await teacher.good("click", target="text=nothing")
        assert "status 204" in await teacher.bad("navigate", url=f"{site.base}/none")
        assert 'heading "Links"' in await teacher.good("snapshot")

    with_teacher(story)


def test_dialogs_are_answered_with_no_and_told(with_teacher: WithTeacher) -> None:
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

    with_teacher(story)


def test_a_page_may_open_only_so_many_tabs(with_teacher: WithTeacher) -> None:
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

    with_teacher(story)


def test_pages_that_do_not_answer_or_never_end_cost_a_bounded_time(site: Site, with_teacher: WithTeacher) -> None:
    async def story(teacher: Teacher) -> None:
        began = time.monotonic()
        assert "did not answer within 5 s" in await teacher.bad("navigate", url=f"{site.base}/silent")
        endless = await teacher.open("/never")
        assert "The first part" in endless
        assert "still loading" in endless
        assert time.monotonic() - began < 25
        await teacher.still_works()

    with_teacher(story)


def test_a_page_gets_no_permissions_and_no_service_worker(site: Site, with_teacher: WithTeacher) -> None:
    async def story(teacher: Teacher) -> None:
        assert "denied denied denied denied" in await teacher.open("/wants")
        await teacher.good("wait_for", time=0.3)

    with_teacher(story)
    assert "/sw.js" not in site.paths


def test_what_the_teacher_reads_can_be_written_anywhere(with_teacher: WithTeacher) -> None:
    async def story(teacher: Teacher) -> None:
        text = await teacher.open("/odd")
        assert "red" in text
        assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
        json.dumps(text, ensure_ascii=False).encode()

    with_teacher(story)


def test_calls_of_one_rollout_run_one_after_another(with_teacher: WithTeacher) -> None:
    async def story(teacher: Teacher) -> None:
        both = await asyncio.gather(teacher.open("/bridge/forth-bridge"), teacher.open("/bridge/severn-bridge"))
        assert "521 metres" in both[0]
        assert "988 metres" in both[1]

    with_teacher(story)
