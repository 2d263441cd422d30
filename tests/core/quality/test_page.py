"""The page of a report on data, in a real Chromium: it asks for nothing, runs nothing, and rows stay text."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation.page_kit import MOST_OF_A_TEXT
from core.quality.page import MOST_OF_ALL_SHOWN, SHOWN_MOST, html
from core.quality.report import write_report
from core.quality.results import DataReport, Example
from tests.support.data_report import example, shown_row

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EVIL = (
    "</td></table></style></title><script>window.pwned = 1</script><img src=http://127.0.0.1:9/x onerror='pwned=2'>"
    "<svg onload=pwned=3><a href='javascript:pwned=4'>x</a><iframe src=//127.0.0.1:9></iframe><style>*{display:none}"
    '</style><meta http-equiv=refresh content="0;url=http://127.0.0.1:9">" autofocus onfocus="pwned=5" '
    "\x00\x1b[2J\u202e\ud83d"
)


def evil() -> DataReport:
    """A report in which everything that comes from elsewhere is hostile."""
    report = example()
    report.name = report.data = report.made = EVIL
    report.headline, report.notes, report.settings = [EVIL], [EVIL], {EVIL: {EVIL: [EVIL]}}
    report.examples = {EVIL: [Example(place=EVIL, why=EVIL, text=EVIL, like=EVIL)]}
    report.languages, report.kinds = {EVIL: 3, "en": 4}, {EVIL: {EVIL: 4, "b": 5}}
    report.contamination, report.distinct = {EVIL: (5, 1)}, {EVIL: 0.5}
    report.lengths[0].what = report.lengths[0].unit = report.measured[0].name = EVIL
    report.shown = [shown_row(1, place=EVIL, prompt=EVIL, answer=EVIL, new_answer=EVIL, notes=[EVIL])]
    for model in report.models:
        model.name = model.role = model.backend = EVIL
    return report


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


Show = Callable[[DataReport], Opened]


@pytest.fixture
def show(tmp_path: Path, browser: "Browser") -> Iterator[Show]:
    """Write a report, and open its page."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})

    def show(report: DataReport) -> Opened:
        write_report(tmp_path, report)
        opened = Opened(context.new_page())
        opened.page.goto((tmp_path / "report.html").as_uri())
        for summary in opened.page.locator("summary").all():
            summary.click()
        return opened

    yield show
    context.close()


# ---- in the browser --------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_nothing_that_rows_or_models_say_runs_loads_or_changes_the_page(show: Show):
    opened = show(evil())
    page = opened.page
    page.wait_for_timeout(300)
    assert page.evaluate("window.pwned") is None
    assert [url[:60] for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1
    assert opened.errors == []
    assert page.locator("main script, iframe, svg, main style, a, main meta, [onerror], [autofocus]").count() == 0
    assert page.locator("img").count() == 5
    seen = EVIL.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    seen = seen.replace("\ud83d", "\\ud83d")
    assert page.locator("h1").text_content() == seen
    assert page.locator("article .prompt").text_content() == seen
    assert page.locator(".sides .text").all_text_contents() == [seen, seen]
    assert page.locator("#measures tbody tr").count() == 7


@pytest.mark.browser
def test_every_column_of_every_table_sorts_both_ways(show: Show):
    opened = show(example())
    page = opened.page
    tables = page.locator("table")
    assert tables.count() == 9
    for number in range(9):
        table = tables.nth(number)
        for place in range(table.locator("th").count()):
            head = table.locator("th").nth(place)
            values = f"rows => rows.map(row => row.cells[{place}].dataset.by)"
            for direction in ("ascending", "descending"):
                head.get_by_role("button").click()
                assert head.get_attribute("aria-sort") == direction
                seen = table.locator("tbody tr").evaluate_all(values)
                known = [value for value in seen if value != ""]
                assert seen == known + [""] * (len(seen) - len(known))  # what has no value stays below
                if "number" in (head.get_attribute("class") or ""):
                    assert known == sorted(known, key=float, reverse=direction == "descending")
    assert opened.errors == []


@pytest.mark.browser
def test_the_page_works_in_both_colour_schemes_and_each_plot_follows_them(show: Show):
    opened = show(example())
    page = opened.page
    shown: dict[str, list[str]] = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        page.wait_for_function(  # a picture follows the scheme a moment later
            "before => [...document.images].every("
            "image => image.complete && image.naturalWidth === 1050 && !before.includes(image.currentSrc))",
            arg=shown.get("light", []),
        )
        back, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, ink)]
        assert abs(brightness[0] - brightness[1]) > 450  # of 765
        shown[scheme] = page.evaluate("[...document.images].map(image => image.currentSrc)")
    assert len({*shown["light"], *shown["dark"]}) == 10
    assert opened.errors == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1100, 700, 360])
@pytest.mark.parametrize("rows", [10, 1_000_000])
def test_neither_the_page_nor_its_tables_scroll_sideways(show: Show, width: int, rows: int):
    opened = show(example(rows))
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width >= 700:
        assert set(
            page.locator(".scroll").evaluate_all("all => all.map(one => one.scrollWidth - one.clientWidth)")
        ) == {0}


@pytest.mark.browser
def test_a_word_of_a_hundred_thousand_characters_does_not_push_the_page_aside(show: Show):
    report = example()
    word = "x" * 100_000
    report.data = report.made = word
    report.headline = report.notes = [word]
    report.examples = {"schema": [Example(place=word, why=word, text=word, like=word)]}
    report.kinds = {word: {word: 5, "b": 6}}
    report.shown = [shown_row(1, place=word, prompt=word, answer=word, new_answer=word, notes=[word])]
    opened = show(report)
    opened.page.set_viewport_size({"width": 700, "height": 900})
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# ---- the file itself -------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_its_own_elements_only_and_no_address():
    text = html(evil(), [])
    elements = Elements(text).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert [tag for tag, _ in elements].count("style") == 1
    assert not {"img", "iframe", "link", "object", "form", "base", "a", "svg"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset", "href")]
    assert not re.search("[\x00\x1b\u202e\ud83d]", text)


def elements_of(report: DataReport) -> list[str]:
    """All but the places where a line may break."""
    return [tag for tag, attributes in Elements(html(report, [])).found if tag != "wbr" and "class" not in attributes]


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_whatever_a_row_says_is_text(text: str):
    report = example(samples=1)
    before = elements_of(report)
    report.shown[0].prompt = report.shown[0].place = text
    report.examples["personal"][0].text = text
    assert elements_of(report) == before


def test_a_long_answer_is_cut_at_its_end_and_a_long_prompt_at_its_beginning():
    report = example(samples=1)
    report.shown[0].answer = "y" * 200_000
    report.shown[0].prompt = "z" * 5_000 + " the question"
    text = html(report, [])
    assert len(text) < 60_000
    assert f"… {200_000 - MOST_OF_A_TEXT:,} more characters, which samples.jsonl has" in text
    assert f"{5_013 - MOST_OF_A_TEXT:,} characters before, which samples.jsonl has …" in text
    assert "z the question</div>" in text


def test_rows_are_left_out_when_there_are_many_or_they_grow_too_large():
    report = example(samples=1000)
    text = html(report, [])
    assert text.count("<article") == SHOWN_MOST
    assert f"{SHOWN_MOST} of 1,000 rows, those first" in text
    for one in report.shown:
        one.prompt = one.answer = one.new_answer = '"' * 100_000  # each becomes six characters
    text = html(report, [])
    assert len(text) < MOST_OF_ALL_SHOWN + 200_000
    # three texts of 3,000 quotes in each of them: 54,000 characters and some more
    assert text.count("<article") == 19
    assert "19 of 1,000 rows, those first" in text


def test_what_a_reader_must_know_is_on_the_page():
    report = example()
    report.shown[3].new_answer = None
    report.shown[4].answer = ""
    text = Elements(html(report, [])).text
    for words in (
        "data/train.jsonl, 1,000 rows, 2026-01-05 10:20 UTC",
        "rows much like one that stood before",
        "8.3 to 12.0",
        "of 1,000",
        "not certain",
        "near_duplicate: 5 of 100 rows",
        "an e-mail address (j...@g....com)",
        "train.jsonl:91",
        "3 rows were too short to tell their language.",
        "1,010",
        "3 from the folder",
        "$0.0042",
        "student less teacher, per byte, row by row",
        "arXiv:1606.05250",
        "0.051",
        "1,900",
    ):
        assert words in text
    assert text.count("the teacher now") == 9
    assert html(report, []).count('<div class="text none">empty</div>') == 1
