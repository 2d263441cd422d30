"""The HTML page, in a real Chromium: nothing in it runs but its own script, and a person finds what they look for."""

import http.server
import re
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.show.page import MOST_OF_A_PART, escaped
from tests.support.running import Reply, small_server

from .traces import look, rollout, said, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EVIL = (
    "</pre></details></style></title><script>window.pwned = 1</script><img src=http://127.0.0.1:9/x onerror='pwned=2'>"
    "<svg onload=pwned=3><a href='javascript:pwned=4'>x</a><iframe src=//127.0.0.1:9></iframe><style>*{display:none}"
    '</style><meta http-equiv=refresh content="0;url=http://127.0.0.1:9">" autofocus onfocus="pwned=5" \x1b[2J\u202e'
)


def evil_rollout() -> dict[str, Any]:
    call = {"id": EVIL, "type": "function", "function": {"name": EVIL, "arguments": {EVIL: EVIL}}}
    conversation = [
        {"role": "user", "content": EVIL},
        {"role": EVIL, "content": [{"type": "text", "text": EVIL}, {"type": EVIL}]},
        {"role": "assistant", "content": EVIL, "reasoning_content": EVIL, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": EVIL, "name": EVIL, "content": EVIL},
    ]
    provenance = {"teacher": EVIL, "reason": EVIL}
    changes = {"metadata": {EVIL: {EVIL: [EVIL]}}, "provenance": provenance, "tools": [{"name": EVIL}, {EVIL: EVIL}]}
    return rollout(completed="error", success=False, error=EVIL, conversation=conversation, **changes)


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """Three: a success with tools, a failure, a hostile error; and half a file."""
    folder = tmp_path / "rollouts"
    write(folder / "a.json", rollout())
    write(folder / "b.json", said("What is 2 + 2?", "five, I think", success=False, total_reward=0.0))
    write(folder / "c.json", evil_rollout())
    (folder / "d<script>pwned=6<!--.json").write_text('{"conversation": [', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    sync_api = pytest.importorskip("playwright.sync_api")
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    quiet += "--disable-component-update --disable-sync"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=quiet.split())
        yield browser
        browser.close()


class Opened:
    """A page in the browser, with what it asked for and what it complained about."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text))

    def shown(self) -> list[str]:
        """Ids of the entries that are not hidden."""
        return [entry.get_attribute("id") or "" for entry in self.page.locator("article:visible").all()]

    def search(self, words: str, shown: str) -> None:
        """Type into the search box, and wait until the page says how many it shows."""
        self.page.locator("#search").fill(words)
        self.page.locator("#found").get_by_text(shown, exact=True).wait_for()


@pytest.fixture
def opened(rollouts: Path, tmp_path: Path, browser: "Browser") -> Iterator[Opened]:
    look(rollouts, html=tmp_path / "out.html")
    context = browser.new_context()
    opened = Opened(context.new_page())
    opened.page.goto((tmp_path / "out.html").as_uri())
    yield opened
    context.close()


# ---- in the browser ------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_nothing_in_a_rollout_runs_loads_or_changes_the_page(opened: Opened):
    page = opened.page
    page.locator("#unfold").click()
    page.wait_for_timeout(300)
    assert page.evaluate("window.pwned") is None
    assert [url for url in opened.requests if not url.startswith("file:")] == []
    assert len(opened.requests) == 1
    assert opened.errors == []
    assert (
        page.locator(
            "article script, article img, article iframe, article svg, article style, article a[href^=j]"
        ).count()
        == 0
    )
    assert page.locator("article").count() == 4
    assert page.locator("#r-2 .r-user .text").text_content() == EVIL.replace("\x1b", "\\x1b").replace(
        "\u202e", "\\u202e"
    )


@pytest.mark.browser
def test_the_policy_stops_even_a_script_that_got_in(opened: Opened):
    """As if escaping had failed somewhere: an element with a script, a handler, and a picture from elsewhere."""
    page = opened.page
    with small_server(lambda _: Reply()) as server:
        page.evaluate(
            """(url) => {
                const script = document.createElement("script");
                script.textContent = "window.pwned = 1";
                document.body.append(script);
                const box = document.createElement("div");
                box.innerHTML = `<img src="${url}/x.png" onerror="window.pwned = 2"><p style="color: red">x</p>`;
                document.body.append(box);
            }""",
            server.url,
        )
        page.wait_for_timeout(300)
        assert server.received == []
    assert page.evaluate("window.pwned") is None
    assert len([error for error in opened.errors if "Content Security Policy" in error]) >= 3


@pytest.mark.browser
def test_search_hides_what_does_not_fit_opens_folds_and_marks_the_words(opened: Opened):
    page = opened.page
    result = page.locator("#r-0 details.result").first
    assert result.get_attribute("open") is None
    opened.search("BRIDGE 39", "1 of 4")
    assert opened.shown() == ["r-0"]
    assert result.get_attribute("open") == ""
    assert page.evaluate("CSS.highlights.get('hit').size") == 1
    assert page.evaluate("[...CSS.highlights.get('hit')][0].toString()") == "Bridge 39"
    page.locator("#search").press("Escape")
    assert opened.shown() == ["r-0", "r-1", "r-2", "r-3"]
    assert result.get_attribute("open") is None


@pytest.mark.browser
def test_the_failed_ones_can_be_looked_at_alone(opened: Opened):
    opened.page.locator("#failed").check()
    assert opened.shown() == ["r-1", "r-2", "r-3"]
    opened.search("five", "1 of 4")
    assert opened.shown() == ["r-1"]


@pytest.mark.browser
def test_everything_folds_and_unfolds(opened: Opened):
    page = opened.page
    call = page.locator("#r-0 details.call").first
    assert not call.locator("pre").is_visible()
    call.locator("summary").click()
    assert call.locator("pre").inner_text() == "url: http://127.0.0.1/bridges"
    page.locator("#unfold").click()
    assert page.locator("details:not([open])").count() == 0
    page.get_by_role("button", name="Fold all").click()
    assert page.locator("details[open]").count() == 0


@pytest.mark.browser
def test_keys_walk_through_the_entries_search_and_filter(opened: Opened):
    page = opened.page
    for key, expected in (("j", "r-0"), ("j", "r-1"), ("k", "r-0")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == expected
    page.keyboard.press("f")
    assert opened.shown() == ["r-1", "r-2", "r-3"]
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("j")
    assert page.locator("#search").input_value() == "j"


@pytest.mark.browser
def test_the_page_works_in_both_colour_schemes_and_on_a_narrow_screen(opened: Opened):
    page = opened.page
    seen = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        back, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, ink)]
        assert abs(brightness[0] - brightness[1]) > 450  # of 765
        seen.add(back)
    assert len(seen) == 2
    page.set_viewport_size({"width": 360, "height": 700})
    page.locator("#unfold").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_the_words_that_were_searched_for_are_marked_at_once(rollouts: Path, tmp_path: Path, browser: "Browser"):
    look(rollouts, html=tmp_path / "out.html", search="ashdown")
    page = browser.new_page()
    page.goto((tmp_path / "out.html").as_uri())
    assert page.locator("#search").input_value() == "ashdown"
    assert page.evaluate("CSS.highlights.get('hit').size") >= 1
    page.close()


@pytest.mark.browser
def test_served_over_http_the_page_asks_for_nothing_else(rollouts: Path, tmp_path: Path, browser: "Browser"):
    look(rollouts, html=tmp_path / "out.html")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            asked.append(self.path)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/out.html")
        page.locator("#found").get_by_text("4 shown").wait_for()
        page.wait_for_timeout(300)
        page.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert asked == ["/out.html"]


# ---- the file itself -----------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_holds_its_own_elements_only_and_no_address(rollouts: Path, tmp_path: Path):
    result, text = look(rollouts, html=tmp_path / "out.html", full=True)
    assert text == ""
    html = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert result.html_bytes == (tmp_path / "out.html").stat().st_size
    elements = Elements(html).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert [tag for tag, _ in elements].count("style") == 1
    assert not {"img", "iframe", "link", "object", "form", "base"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")]
        assert (attributes.get("href") or "#").startswith("#")
    assert "\x1b" not in html
    assert "\u202e" not in html


def test_a_page_replaces_an_older_one_whole_and_leaves_nothing_beside_it(rollouts: Path, tmp_path: Path):
    page = tmp_path / "out.html"
    page.write_text("old", encoding="utf-8")
    look(rollouts, html=page)
    assert page.read_text(encoding="utf-8").endswith("</html>\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "rollouts"]


def test_a_huge_text_is_cut_with_a_note(tmp_path: Path):
    path = write(tmp_path / "a.json", said("x" * (MOST_OF_A_PART + 7), "short"))
    look(path, html=tmp_path / "out.html")
    html = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "… 7 more characters" in html
    assert len(html) < MOST_OF_A_PART + 40_000


def test_full_unfolds_the_page_too(rollouts: Path, tmp_path: Path):
    look(rollouts, html=tmp_path / "out.html", full=True)
    folds = [
        attributes for tag, attributes in Elements((tmp_path / "out.html").read_text("utf-8")).found if tag == "details"
    ]
    assert len(folds) > 8
    assert [fold for fold in folds if "open" not in fold and fold.get("class") != "unreadable"] == []


@given(st.text())
def test_escaped_text_is_text_whatever_it_holds(text: str):
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append(tag)

    parser = Tags()
    parser.feed(f"<p>{escaped(text)}</p>")
    parser.close()
    assert not re.search("[<>\"']", escaped(text))
    assert tags == ["p"]
