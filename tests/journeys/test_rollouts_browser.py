"""A teacher finds answers on a web site with a real browser, and its conversations become training rows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.playwright_mcp import playwright_mcp
from tests.support.running import ROOT, Outcome, ended, read_rows, start, write_rows
from tests.support.scripted_teacher import Answer, Call, Chat, scripted_teacher
from tests.support.site import BRIDGES, Site, small_site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


@pytest.fixture
def site() -> Iterator[Site]:
    with small_site() as site:
        yield site


def researcher(site: Site):
    """Search, follow the result, read the page, answer with the number on it; its only knowledge is what tools say."""

    def script(chat: Chat) -> str | Call | Answer:
        page = chat.results[-1] if chat.results else ""
        wanted = re.search(r"\"(.+?)\"", chat.question)
        assert wanted is not None
        if chat.turn == 0:
            return Call("browser_navigate", {"url": site.base})
        if "[ref=" not in page:
            return Call("browser_snapshot", {})  # Playwright MCP answers with a link to the page's snapshot
        if box := re.search(r"(?:searchbox|textbox) .*?\[ref=(\w+)\]", page):
            return Call("browser_type", typing(chat, box[1], wanted[1]))
        if link := re.search(rf"link \"{re.escape(wanted[1])}.*?\[ref=(\w+)\]", page):
            return Call("browser_click", {"element": "the first result", "target": link[1]})
        span = re.search(r"Longest span: (\d+) metres", page)
        return f"The longest span is {span[1]} metres." if span else "I do not know."

    def typing(chat: Chat, ref: str, words: str) -> dict[str, object]:
        return {"element": "the search box", "target": ref, "text": words, "submit": True}

    return script


def ask_for_bridges(folder: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Answer by browsing the web."},
                {"role": "user", "content": f'What is the longest span of the "{title}"?'},
            ],
            "metadata": {"expected_answer": re.search(r"(\d+) metres", text)[1]},  # pyright: ignore[reportOptionalSubscript]
        }
        for title, text in BRIDGES.values()
    ]
    write_rows(folder / "train.jsonl", rows)


def command(folder: Path, script: str, *arguments: str) -> Outcome:
    return ended(start(folder, *arguments, "--json", script=ROOT / "scripts" / script), timeout_s=120)


def converted(folder: Path) -> list[dict]:
    """Convert, as the document says, and check that the rows hold what the pages said."""
    outcome = command(folder, "convert_rollouts.py")
    assert outcome.code == 0, outcome.stderr
    assert (folder / "train.prompts.jsonl").is_file()
    rows = read_rows(folder / "train.jsonl")
    assert len(rows) == len(BRIDGES)
    for row in rows:
        answer = row["messages"][-1]["content"]
        span = re.search(r"(\d+) metres", answer)[0]  # pyright: ignore[reportOptionalSubscript]
        results = [message["content"] for message in row["messages"] if message["role"] == "tool"]
        assert any(f"Longest span: {span}" in text for text in results)
        assert row["messages"][0] == {"role": "system", "content": "Answer by browsing the web."}
    return rows


def test_with_the_embedded_browser(tmp_path: Path, site: Site) -> None:
    ask_for_bridges(tmp_path)
    with scripted_teacher(researcher(site)) as teacher:
        outcome = command(
            tmp_path, "run_rollouts.py", "--all", *teacher.options, "--browser", "--allow-hosts", site.host
        )
    assert outcome.code == 0, outcome.stderr
    result = outcome.result
    assert result["successes"] == len(BRIDGES), json.dumps(result, indent=1)
    assert set(result["tools_used"]) == {"browser_navigate", "browser_type", "browser_click"}
    rows = converted(tmp_path)
    assert all("tools" in row for row in rows)


def test_with_playwright_mcp_over_http(tmp_path: Path, site: Site) -> None:
    ask_for_bridges(tmp_path)
    with playwright_mcp() as address, scripted_teacher(researcher(site)) as teacher:
        outcome = command(tmp_path, "run_rollouts.py", "--all", *teacher.options, "--mcp-url", address)
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["successes"] == len(BRIDGES), json.dumps(outcome.result, indent=1)
    converted(tmp_path)
