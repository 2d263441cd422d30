"""The report's page, in a real Chromium: it asks for nothing, runs nothing but its own script, and its tables sort."""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.evaluation.flips import Flips
from core.evaluation.page import html
from core.evaluation.page_kit import MOST_OF_A_TEXT, escaped
from core.evaluation.report import write_report
from core.evaluation.results import Report, Sample
from tests.support.evaluation import STRENGTHS, TASKS, example, made
from tests.support.running import Reply, small_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EVIL = (
    "</td></table></style></title><script>window.pwned = 1</script><img src=http://127.0.0.1:9/x onerror='pwned=2'>"
    "<svg onload=pwned=3><a href='javascript:pwned=4'>x</a><iframe src=//127.0.0.1:9></iframe><style>*{display:none}"
    '</style><meta http-equiv=refresh content="0;url=http://127.0.0.1:9">" autofocus onfocus="pwned=5" '
    "\x00\x1b[2J\u202e"
)
SEEN = EVIL.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


def evil() -> tuple[Report, list[Sample]]:
    """A report in which everything that comes from elsewhere is hostile."""
    report, samples = made({f"{name} {EVIL}": of for name, of in STRENGTHS.items()}, TASKS)
    report.name = report.distill = EVIL
    report.headline, report.notes, report.settings = [EVIL], [EVIL], {EVIL: {EVIL: [EVIL]}}
    for model in report.models:
        model.path = model.dtype = model.identity = model.tokenizer = model.chat_template = EVIL
        model.not_measured, model.notes = {EVIL: EVIL}, [EVIL]
    for metric in report.metrics:
        metric.notes = [EVIL]
        metric.metric += EVIL
        for gap in metric.gaps:
            gap.why = EVIL
    for task in report.tasks:
        task.about = task.version = task.suite = EVIL
    for sample in samples:
        sample.prompt = sample.reference = EVIL
        sample.key += EVIL
        sample.answers = dict.fromkeys(sample.answers, EVIL)
        sample.scores = {
            name: {f"{metric}{EVIL}": value for metric, value in of.items()} for name, of in sample.scores.items()
        }
    return report, samples


def png(colour: bytes, width: int = 40) -> bytes:
    """A picture of one colour (three bytes)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 2, 8, 2, 0, 0, 0)
    rows = (b"\0" + colour * width) * 2
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


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

    def column(self, number: int, table: str = "verdicts") -> list[str]:
        """The first line of each cell of a column, from above."""
        cells = self.page.locator(f"#{table} tbody tr td:nth-child({number + 1})")
        return cells.evaluate_all(
            "cells => cells.map(cell => cell.childNodes[0] ? cell.childNodes[0].textContent : '')"
        )

    def head(self, name: str, table: str = "verdicts") -> Any:
        return self.page.locator(f"#{table} th").get_by_role("button", name=name, exact=True)


Show = Callable[[tuple[Report, list[Sample]]], Opened]


@pytest.fixture
def show(tmp_path: Path, browser: "Browser") -> Iterator[Show]:
    """Write a report with two plots, and open its page."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})

    def show(made: tuple[Report, list[Sample]]) -> Opened:
        report, samples = made
        (tmp_path / "plots").mkdir()
        (tmp_path / "plots" / "accuracy.png").write_bytes(png(b"\xff\xff\xff"))
        (tmp_path / "plots" / "accuracy.dark.png").write_bytes(png(b"\0\0\0", width=41))
        (tmp_path / "plots" / "gap.png").write_bytes(png(b"\xff\0\0"))
        report.plots = ["accuracy.png", "gap.png", "was-deleted.png"]
        write_report(tmp_path, report, samples)
        opened = Opened(context.new_page())
        opened.page.goto((tmp_path / "report.html").as_uri())
        return opened

    yield show
    context.close()


# ---- in the browser --------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_nothing_that_models_or_tasks_say_runs_loads_or_changes_the_page(show: Show):
    opened = show(evil())
    page = opened.page
    page.locator("summary").first.click()
    page.wait_for_timeout(300)
    assert page.evaluate("window.pwned") is None
    assert [url[:60] for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1
    assert opened.errors == []
    assert page.locator("main script, iframe, svg, main style, a, main meta, [onerror], [autofocus]").count() == 0
    assert page.locator("img").count() == 2
    assert page.locator("h1").text_content() == SEEN
    assert page.locator("article .prompt").first.text_content() == SEEN
    assert page.locator(".sides .text").first.text_content() == SEEN
    assert page.locator("#verdicts tbody tr").count() == 4


@pytest.mark.browser
def test_the_policy_stops_even_a_script_that_got_in(show: Show):
    """As if escaping had failed somewhere: an element with a script, a handler, and a picture from elsewhere."""
    opened = show(example())
    with small_server(lambda _: Reply()) as server:
        opened.page.evaluate(
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
        opened.page.wait_for_timeout(300)
        assert server.received == []
    assert opened.page.evaluate("window.pwned") is None
    assert len([error for error in opened.errors if "Content Security Policy" in error]) >= 3


@pytest.mark.browser
def test_every_column_of_every_table_sorts_both_ways(show: Show):
    opened = show(example())
    page = opened.page
    page.locator("#figures summary").click()
    for table in ("verdicts", "models", "figures", "tasks"):
        names = page.locator(f"#{table} th").all_inner_texts()
        assert len(names) >= 5
        for place in range(len(names)):
            head = page.locator(f"#{table} th").nth(place)
            values = f"rows => rows.map(row => row.cells[{place}].dataset.by)"
            for direction in ("ascending", "descending"):
                head.get_by_role("button").click()
                assert head.get_attribute("aria-sort") == direction
                seen = page.locator(f"#{table} tbody tr").evaluate_all(values)
                known = [value for value in seen if value != ""]
                assert seen == known + [""] * (len(seen) - len(known))  # what has no value stays below
                number = "number" in (head.get_attribute("class") or "")
                ordered = sorted(known, key=float if number else str.lower, reverse=direction == "descending")
                assert known == ordered
        assert page.locator(f"#{table} th[aria-sort]").count() == 1
    assert opened.errors == []


@pytest.mark.browser
def test_a_table_sorts_by_click_and_by_key(show: Show):
    opened = show(example())
    assert opened.column(0) == ["arithmetic", "mmlu_", "held_", "closeness"]
    opened.head("difference").click()
    assert opened.column(4) == ["−2.5", "−2.0", "−0.172", "+21.7"]
    head = opened.head("items")
    head.focus()
    opened.page.keyboard.press("Enter")
    assert opened.column(1) == ["80", "80", "100", "120"]
    opened.page.keyboard.press("Space")
    assert opened.column(1) == ["120", "100", "80", "80"]
    opened.page.keyboard.press("Tab")  # on to the next head, with nothing but the keyboard
    assert opened.page.evaluate("document.activeElement.textContent") == "baseline"


@pytest.mark.browser
def test_items_are_shown_by_task_and_by_way(show: Show):
    opened = show(example())
    page = opened.page
    found = page.locator("#found")
    assert found.inner_text() == "40 shown"
    page.locator("#by-way").select_option("worse")
    assert found.inner_text() == "20 shown"
    assert page.locator(".way:visible h3").all_inner_texts() == ["student worse than baseline 20 of 56"]
    page.locator("#by-task").select_option("arithmetic")
    assert found.inner_text() == "1 shown"
    assert page.locator("article:visible .mark").all_inner_texts() == ["right", "wrong"]
    assert page.locator("article:visible h5").all_inner_texts() == [
        "baseline right",
        "student wrong",
        "reference",
        "teacher",
    ]


@pytest.mark.browser
def test_with_several_models_the_items_are_those_of_one(show: Show):
    strengths = {"a": ("baseline", -0.5), "b": ("student", 0.0), "c": ("checkpoint", 0.6)}
    opened = show(made(strengths, TASKS))  # pyright: ignore[reportArgumentType]
    page = opened.page
    assert {item.get_attribute("data-model") for item in page.locator(".way:visible").all()} == {"b"}
    page.locator("#by-model").select_option("c")
    assert {item.get_attribute("data-model") for item in page.locator(".way:visible").all()} == {"c"}


@pytest.mark.browser
def test_the_page_works_in_both_colour_schemes_and_each_plot_follows_them(show: Show):
    opened = show(example())
    page = opened.page
    seen: dict[str, str] = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        back, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, ink)]
        assert abs(brightness[0] - brightness[1]) > 450  # of 765
        page.wait_for_function(
            "width => document.querySelector('img').naturalWidth === width", arg=40 if scheme == "light" else 41
        )
        seen[scheme] = back
    assert seen["light"] != seen["dark"]
    assert opened.errors == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [700, 360])
def test_on_a_narrow_screen_the_page_does_not_scroll_sideways(show: Show, width: int):
    opened = show(example())
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900})
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width == 700:  # nor do the tables within it
        assert (
            page.locator(".scroll").evaluate_all("all => all.map(one => one.scrollWidth - one.clientWidth)") == [0] * 4
        )
        smallest = page.locator("td").evaluate_all(
            "all => Math.min(...all.map(cell => parseFloat(getComputedStyle(cell).fontSize)))"
        )
        assert smallest >= 12


@pytest.mark.browser
def test_very_long_names_do_not_push_the_page_aside(show: Show):
    word = "x" * 200
    report, samples = made({name + word: of for name, of in STRENGTHS.items()}, TASKS)
    report.name = report.distill = word
    for metric in report.metrics:
        metric.metric += word
    for sample in samples:
        sample.key += word
        sample.scores = {
            name: {metric + word: value for metric, value in of.items()} for name, of in sample.scores.items()
        }
    opened = show((report, samples))
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


def page_of(made: tuple[Report, list[Sample]]) -> str:
    report, samples = made
    flips = Flips(report)
    for sample in samples:
        flips.add(sample)
    return html(report, flips.ways(), [])


def test_the_page_holds_its_own_elements_only_and_no_address():
    text = page_of(evil())
    elements = Elements(text).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert [tag for tag, _ in elements].count("style") == 1
    assert not {"img", "iframe", "link", "object", "form", "base", "a", "svg"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset", "href")]
    assert not re.search("[\x00\x1b\u202e]", text)


def test_a_long_answer_is_cut_at_its_end_and_a_long_prompt_at_its_beginning():
    report, samples = example()
    for sample in samples:
        sample.answers["student"] = "y" * 200_000
        sample.prompt = "z" * 5_000 + " the question"
    text = page_of((report, samples))
    assert len(text) < 40 * 2 * MOST_OF_A_TEXT + 200_000
    assert f"… {200_000 - MOST_OF_A_TEXT:,} more characters, which samples.jsonl has" in text
    assert f"{5_013 - MOST_OF_A_TEXT:,} characters before, which samples.jsonl has …" in text
    assert "z the question</div>" in text


def test_items_are_left_out_when_the_page_grows_too_large():
    report, samples = example()
    for sample in samples:
        sample.prompt = "<" * 100_000  # each becomes four characters
        sample.answers = dict.fromkeys(sample.answers, "'" * 100_000)
    text = page_of((report, samples))
    assert len(text) < 2_500_000
    numbers = [int(number) for number in re.findall(r"<small>(\d+) of \d+</small></h3>", text)]
    assert all(5 < number <= 20 for number in numbers)
    assert text.count("<article") == sum(numbers)


def test_what_a_reader_must_know_is_on_the_page():
    report, samples = example()
    report.models[2].not_measured = {"arithmetic": "it cannot write"}
    text = Elements(page_of((report, samples))).text
    for words in (
        "teacher was not measured on arithmetic: it cannot write",
        "mmlu_dev: the gap that student recovered is not defined: the teacher was not found to be better",
        "best/ was chosen on the rows of held_out",
        "100 of 285",
        "25 clusters",
        "no difference found",
        "arXiv:2411.00640",
        "plumbing and before/after, not MMLU",
        "runs/gold/student",
    ):
        assert words in text


def test_what_has_no_better_side_is_neither_won_nor_lost_on_the_page():
    report, samples = example()
    report.tasks, report.metrics = report.tasks[:1], report.metrics[:1]
    difference = report.metrics[0].differences[0]
    won = f"{difference.wins}, {difference.losses}, {difference.ties}"
    assert won in page_of((report, samples))
    report.metrics[0].higher_is_better, difference.detectable = None, None
    text = page_of((report, samples))
    assert won not in text
    assert ">changed<" in text


def test_a_report_of_one_model_and_one_without_items_have_a_page():
    one = made({"a": ("student", 0.0)}, TASKS)
    assert "No two models were measured on the same task." in page_of(one)
    report, _ = example()
    report.metrics, report.tasks = [], []
    assert "<h2>Items that changed</h2>" not in page_of((report, []))


def test_an_answer_that_is_empty_and_one_that_is_missing_are_told_apart():
    report, samples = example()
    for sample in samples:
        sample.answers = {"baseline": ""}
    text = page_of((report, samples))
    assert text.count('none">empty') == text.count('none">not answered') == 40


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_escaped_text_is_text_whatever_it_holds(text: str):
    elements = Elements(f"<p>{escaped(text)}</p>")
    elements.close()
    assert not re.search("[<>\"']", escaped(text))
    assert [tag for tag, _ in elements.found] == ["p"]
