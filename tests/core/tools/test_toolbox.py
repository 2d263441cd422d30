"""The tools of a run as one set."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UsageError
from core.tools.mcp import McpCommand, McpUrl
from core.tools.protocol import Tool, ToolResult, ToolsetGone
from core.tools.toolbox import MAX_CHARACTERS, Toolbox, bounded, clean_schema, valid_name
from tests.support.mcp_servers import Nonsense, command, free_port


class Listed:
    """A set whose tools say where they were called; it counts what is open."""

    def __init__(
        self,
        name: str,
        *tools: str,
        fails: Exception | None = None,
        start_s: float = 0.01,
        start_fails: Exception | None = None,
    ) -> None:
        self.name = name
        self.tools = [Tool(tool, f"{tool} of {name}", {"type": "object", "properties": {}}) for tool in tools]
        self.fails, self.start_s, self.start_fails = fails, start_s, start_fails
        self.opened = self.closed = self.sessions = self.started = 0

    async def open(self) -> None:
        await asyncio.sleep(0)
        self.opened += 1
        if self.fails:
            raise self.fails

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Listed"]:
        await asyncio.sleep(self.start_s)
        if self.start_fails:
            raise self.start_fails
        self.sessions += 1
        self.started += 1
        try:
            yield self
        finally:
            self.sessions -= 1

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        return ToolResult(f"{self.name}.{name}({arguments})")

    async def aclose(self) -> None:
        self.closed += 1
        if self.fails:
            raise RuntimeError("the end of a failure fails too")


def opened(*toolsets: Listed, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> Toolbox:
    box = Toolbox(toolsets, allow, deny)
    asyncio.run(box.open())
    return box


def names(box: Toolbox) -> list[str]:
    return [tool.name for tool in box.tools]


def call(box: Toolbox, name: str) -> ToolResult:
    async def work() -> ToolResult:
        async with box.session() as session:
            return await session.call(name, {})

    return asyncio.run(work())


# --- names ------------------------------------------------------------------


def test_names_that_two_sets_share_carry_their_set_and_reach_their_own_tool() -> None:
    box = opened(Listed("web", "search", "fetch"), Listed("local", "search"))
    assert names(box) == ["web__search", "fetch", "local__search"]
    assert call(box, "local__search").text == "local.search({})"
    assert call(box, "web__search").text == "web.search({})"
    assert any("more than one set" in note and "web__search" in note for note in box.notes)


def test_a_name_that_one_set_repeats_is_numbered() -> None:
    assert names(opened(Listed("web", "x", "x", "x_2"))) == ["x", "x_2", "x_2_2"]


def test_two_sets_of_one_name_are_told_apart() -> None:
    assert names(opened(Listed("web", "x"), Listed("web", "x"))) == ["web__x", "web2__x"]


def test_names_that_no_provider_takes_are_made_valid_and_still_reach_their_tool() -> None:
    box = opened(Listed("web", "find.it/now", "ü" * 100, ""))
    assert names(box) == ["find_it_now", "_" * 64, "tool"]
    assert call(box, "find_it_now").text == "web.find.it/now({})"


@given(st.lists(st.lists(st.text(max_size=70), max_size=6), max_size=4))
def test_every_name_is_valid_and_unique_and_reaches_the_tool_it_was_made_from(sets: list[list[str]]) -> None:
    box = opened(*(Listed(f"s{number}", *tools) for number, tools in enumerate(sets)))
    assert len(set(names(box))) == len(box.tools)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names(box))
    expected = [f"{tool} of s{number}" for number, tools in enumerate(sets) for tool in tools]
    allowed = [about for about in expected if not about.startswith("browser_")]
    assert [tool.description for tool in box.tools if not tool.description.startswith("browser_")] == allowed


# --- which are offered ------------------------------------------------------

BROWSER = ("browser_navigate", "browser_click", "browser_evaluate", "browser_run_code_unsafe", "browser_file_upload")


def test_code_evaluation_and_upload_are_denied_unless_they_are_named_in_full() -> None:
    assert names(opened(Listed("web", *BROWSER))) == ["browser_navigate", "browser_click"]
    assert names(opened(Listed("web", *BROWSER), allow=("browser_*",))) == ["browser_navigate", "browser_click"]
    assert names(opened(Listed("web", *BROWSER), allow=("browser_c*", "browser_evaluate"))) == [
        "browser_click",
        "browser_evaluate",
    ]
    notes = opened(Listed("web", *BROWSER)).notes
    assert any("browser_evaluate, browser_run_code_unsafe, browser_file_upload" in note for note in notes)


def test_a_denied_tool_cannot_be_called_by_its_name_either() -> None:
    result = call(opened(Listed("web", *BROWSER)), "browser_evaluate")
    assert result.is_error
    assert "no tool 'browser_evaluate'" in result.text


def test_the_users_own_denials_win_over_what_is_allowed() -> None:
    assert names(opened(Listed("a", "x", "y"), allow=("*",), deny=("y",))) == ["x"]


def test_a_pattern_without_a_match_names_the_tools_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"--allow-tools navigat\* matches no tool. There are: x, y\."):
        opened(Listed("a", "x", "y"), allow=("navigat*",))
    with pytest.raises(UsageError, match="No tool is left of x"):
        opened(Listed("a", "x"), deny=("x",))


def test_patterns_match_the_name_within_the_set_too() -> None:
    assert names(opened(Listed("a", "x"), Listed("b", "x", "y"), allow=("x",))) == ["a__x", "b__x"]
    assert names(opened(Listed("a", "x"), Listed("b", "x", "y"), allow=("b__x",))) == ["b__x"]


def test_a_row_selects_by_name_and_is_told_what_is_not_offered() -> None:
    box = opened(Listed("a", "x", "z"), Listed("b", "x", "y"))
    assert [tool.name for tool in box.select(["y", "x"])] == ["a__x", "b__x", "y"]
    assert [tool.name for tool in box.select(["b__x"])] == ["b__x"]
    assert box.select(None) == box.tools
    assert box.select([]) == []
    with pytest.raises(UsageError, match=r"no tool is called w, browser\. Offered: a__x, z, b__x, y"):
        box.select(["x", "w", "browser"])


def test_a_session_for_a_row_calls_the_rows_tools_only() -> None:
    box = opened(Listed("a", "x", "y"))

    async def work() -> list[ToolResult]:
        async with box.session(box.select(["x"])) as session:
            return [await session.call(name, {}) for name in ("x", "y")]

    first, second = asyncio.run(work())
    assert (first.is_error, second.is_error) == (False, True)


def test_more_tools_than_openai_takes_are_noted_with_the_way_out() -> None:
    many = Listed("a", *(f"t{number}" for number in range(200)))
    assert any("200 tools; OpenAI takes 128" in note and "--allow-tools" in note for note in opened(many).notes)
    assert not any("128" in note for note in opened(Listed("a", "x")).notes)


def test_the_size_of_the_schemas_is_noted() -> None:
    assert any(re.search(r"1 tools?, about \d+ tokens", note) for note in opened(Listed("a", "x")).notes)


def test_no_set_at_all_is_a_box_without_tools() -> None:
    box = opened()
    assert (box.tools, box.notes, box.select(None)) == ([], [], [])


# --- schemas ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "cleaned"),
    [
        ({}, {"type": "object", "properties": {}}),
        ("no schema", {"type": "object", "properties": {}}),
        ({"type": "object", "properties": None, "required": None}, {"type": "object", "properties": {}}),
        ({"$schema": "x", "$id": "y", "type": "object"}, {"type": "object", "properties": {}}),
        (
            {"type": "object", "properties": {"a": True, "b": {"type": "array"}}, "required": []},
            {"type": "object", "properties": {"a": {}, "b": {"type": "array", "items": {}}}},
        ),
        (
            {"oneOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"properties": {"b": {}}}]},
            {"type": "object", "properties": {"b": {}, "a": {"type": "string"}}},
        ),
        (
            {"type": "object", "properties": {"$schema": {"type": "string"}, "items": {"anyOf": [{"type": "array"}]}}},
            {
                "type": "object",
                "properties": {"$schema": {"type": "string"}, "items": {"anyOf": [{"type": "array", "items": {}}]}},
            },
        ),
    ],
)
def test_odd_schemas_become_what_providers_take(schema: Any, cleaned: dict[str, Any]) -> None:
    assert clean_schema(schema) == cleaned


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "anyOf", "required", "$schema", "enum", "default", "a"]),
            inner,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_cleaning_gives_an_object_and_is_done_after_once(schema: Any) -> None:
    cleaned = clean_schema(schema)
    assert cleaned["type"] == "object"
    assert isinstance(cleaned["properties"], dict)
    assert clean_schema(cleaned) == cleaned


def test_a_schema_without_end_is_not_followed_for_ever() -> None:
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"type": "array", "items": deep}
    assert clean_schema({"properties": {"deep": deep}})["type"] == "object"


# --- sessions ---------------------------------------------------------------


def test_a_rollout_that_uses_no_tool_starts_nothing_and_parallel_first_calls_start_one_session() -> None:
    used, unused = Listed("used", "x"), Listed("unused", "y")
    box = opened(used, unused)

    async def work() -> None:
        async with box.session() as session:
            assert used.started == 0
            await asyncio.gather(*(session.call("x", {}) for _ in range(5)))
            assert (used.started, used.sessions) == (1, 1)
        assert used.sessions == 0

    asyncio.run(work())
    assert unused.started == 0


def test_an_unknown_tool_is_an_error_that_names_the_nearest() -> None:
    result = call(opened(Listed("web", "browser_click", "browser_navigate", "search")), "browser_clik")
    assert result.is_error
    assert "browser_click" in result.text
    assert "search" not in result.text


def test_a_call_that_is_cancelled_while_its_session_starts_can_be_made_again() -> None:
    slow = Listed("slow", "x")
    box = opened(slow)

    async def work() -> None:
        async with box.session() as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await session.call("x", {})
            assert (await session.call("x", {})).text == "slow.x({})"
        assert (slow.started, slow.sessions) == (1, 0)

    asyncio.run(work())


def test_a_start_that_takes_longer_than_calls_may_is_not_begun_anew_by_each_of_them() -> None:
    slow = Listed("slow", "x", start_s=0.3)
    box = opened(slow)

    async def work() -> int:
        late = 0
        async with box.session() as session:
            while True:
                try:
                    async with asyncio.timeout(0.05):
                        assert (await session.call("x", {})).text == "slow.x({})"
                    return late
                except TimeoutError:
                    late += 1
                    assert late < 20

    assert asyncio.run(work()) > 2
    assert (slow.started, slow.sessions) == (1, 0)


def test_a_session_can_be_started_before_the_clock_of_a_call() -> None:
    slow, other = Listed("slow", "x", start_s=0.2), Listed("other", "y")
    box = opened(slow, other)

    async def work() -> None:
        async with box.session() as session:
            await session.ready("no tool of this name")
            assert slow.started == 0
            await asyncio.gather(session.ready("x"), session.ready("x"))
            async with asyncio.timeout(0.1):
                assert (await session.call("x", {})).text == "slow.x({})"

    asyncio.run(work())
    assert (slow.started, slow.sessions, other.started) == (1, 0, 0)


def test_a_start_that_fails_is_told_to_whoever_waits_and_to_every_later_call() -> None:
    dead = Listed("dead", "x", start_s=0.05, start_fails=ToolsetGone("it is dead"))
    box = opened(dead)

    async def work() -> None:
        async with box.session() as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await session.call("x", {})
            await asyncio.sleep(0.1)  # it fails while nobody waits for it
            for _ in range(2):
                with pytest.raises(ToolsetGone, match="it is dead"):
                    await session.call("x", {})
                with pytest.raises(ToolsetGone, match="it is dead"):
                    await session.ready("x")
        async with box.session() as unlucky:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await unlucky.ready("x")
            await asyncio.sleep(0.1)  # and nobody ever asks

    asyncio.run(work())
    assert dead.started == 0


def test_a_rollout_that_ends_while_a_session_starts_leaves_neither_task_nor_session() -> None:
    slow = Listed("slow", "x", start_s=60)
    box = opened(slow)

    async def work() -> None:
        async with box.session() as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await session.ready("x")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())
    assert (slow.started, slow.sessions) == (0, 0)


def test_a_session_is_ended_when_the_rollout_fails() -> None:
    only = Listed("only", "x")
    box = opened(only)

    async def work() -> None:
        async with box.session() as session:
            await session.call("x", {})
            raise KeyError("the rollout's own")

    with pytest.raises(KeyError):
        asyncio.run(work())
    assert only.sessions == 0


def test_when_one_set_cannot_be_opened_all_are_closed_and_every_trouble_is_told() -> None:
    good, bad, worse = (
        Listed("good", "x"),
        Listed("bad", fails=UsageError("bad")),
        Listed("w", fails=UsageError("worse")),
    )
    with pytest.raises(UsageError, match="bad\nworse"):
        opened(good, bad, worse)
    assert (good.closed, bad.closed, worse.closed) == (1, 1, 1)
    odd = Listed("odd", fails=KeyError("not on purpose"))
    with pytest.raises(KeyError):
        opened(good, odd)
    assert good.closed == 2


def test_results_are_bounded_and_hold_only_what_a_file_can() -> None:
    assert bounded("x" * (MAX_CHARACTERS + 5)) == "x" * MAX_CHARACTERS + "\n[cut: 5 more characters]"
    assert bounded("ü\ud800!") == "ü?!"
    assert bounded("plain") == "plain"


def test_a_valid_name_stays_as_it_is() -> None:
    assert valid_name("browser_click-2") == "browser_click-2"


# --- with real servers ------------------------------------------------------


def test_a_server_that_starts_more_slowly_than_calls_may_last_works() -> None:
    async def work() -> tuple[int, str]:
        box = Toolbox([McpCommand(command("late"))])
        await box.open()
        late = 0
        try:
            async with box.session() as session:
                while True:
                    try:
                        async with asyncio.timeout(0.5):
                            return late, (await session.call("count", {})).text
                    except TimeoutError:
                        late += 1
                        assert late < 10
        finally:
            await box.aclose()

    late, count = asyncio.run(work())
    assert late >= 2
    assert count == "1"


def test_two_servers_with_the_same_tools_side_by_side_and_one_dies() -> None:
    async def work() -> None:
        box = Toolbox([McpCommand(command("plain"), "one"), McpCommand(command("plain"), "two")])
        await box.open()
        async with box.session() as session:
            assert (await session.call("one__add", {"a": 1, "b": 2})).text == "3"
            with pytest.raises(ToolsetGone):
                await session.call("one__die", {})
            assert (await session.call("two__add", {"a": 3, "b": 4})).text == "7"
        await box.aclose()

    before = len(psutil.Process().children())
    asyncio.run(work())
    assert len(psutil.Process().children()) == before


def test_servers_that_are_down_or_no_servers_are_told_together() -> None:
    async def work(host: str) -> str:
        box = Toolbox([McpCommand(command("plain"), "good"), McpUrl(f"localhost:{free_port()}"), McpUrl(host)])
        with pytest.raises(UsageError) as caught:
            await box.open()
        return str(caught.value)

    with Nonsense(200, "<html></html>", "text/html") as server:
        first, second = asyncio.run(work(server.host)).splitlines()
    assert "nothing answers" in first
    assert "web page" in second
