"""One rollout, with plain functions as the teacher and the tools."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import RequestRejected, TransientError
from core.generation.rollout import STUB_CHARS, Conversation, LoopLimits, Rollout, arguments_of, cut
from core.teachers.protocol import Completion, LocalTeacher, Sampling, Usage
from core.tools.protocol import Tool, ToolResult, ToolsetGone
from core.tools.python_file import PythonTools
from core.tools.toolbox import Toolbox

PROMPT = [{"role": "system", "content": "Use the tools."}, {"role": "user", "content": "How much is it?"}]
ANY = {"type": "object", "properties": {}}
LIMITS = LoopLimits(max_turns=10, max_context=32768, max_tool_response=8000, tool_timeout_s=5, rollout_timeout_s=60)


def call(name: str, arguments: str = "{}", id_: str = "") -> dict[str, Any]:
    return {"id": id_ or f"id-{name}", "type": "function", "function": {"name": name, "arguments": arguments}}


def says(text: str = "", *calls: dict[str, Any], **more: Any) -> Completion:
    finish_reason = "tool_calls" if calls else "stop"
    return Completion(text, **{"finish_reason": finish_reason, "tool_calls": list(calls), **more})


class Teacher(LocalTeacher):
    """Says one thing after another, and remembers what it was asked."""

    backend = model = "script"
    concurrency = context_tokens = None

    async def prepare(self, note: Callable[[str], None]) -> None: ...

    def drain(self) -> None: ...

    async def aclose(self) -> None: ...

    def __init__(self, *said: Completion | Exception) -> None:
        self._said = list(said)
        self.identity: dict[str, Any] = {}
        self.asked: list[list[dict[str, Any]]] = []
        self.samplings: list[Sampling] = []
        self.tools: list[list[str]] = []

    async def complete(self, messages: list[Any], sampling: Sampling, tools: Sequence[Any] = ()) -> Completion:
        self.asked.append(json.loads(json.dumps(messages)))
        self.samplings.append(sampling)
        self.tools.append([tool["function"]["name"] for tool in tools])
        said = self._said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


@dataclass
class Tools:
    """Tools by name; each is a function of its arguments."""

    functions: dict[str, Callable[..., Any]]
    side_by_side: bool = False
    called: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])

    @property
    def tools(self) -> list[Tool]:
        return [Tool(name, "", ANY) for name in self.functions]

    async def ready(self, name: str) -> None: ...

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        self.called.append((name, arguments))
        value = self.functions[name](**arguments)
        if asyncio.iscoroutine(value):
            value = await value
        return value if isinstance(value, ToolResult) else ToolResult(str(value))

    def concurrent(self, name: str) -> bool:
        return self.side_by_side


def rollout(teacher: Teacher, tools: Tools | None = None, seed: int | None = None, **limits: Any) -> Rollout:
    tools = tools or Tools({"look": lambda: "seen"})
    sampling = Sampling(100, 1.0, seed=seed)
    return Rollout(PROMPT, tools.tools, tools, teacher, sampling, replace(LIMITS, **limits))


async def turn(one: Rollout) -> None:
    await one.use(await one.ask())


def play(one: Rollout) -> Rollout:
    """All its turns."""

    async def turns() -> None:
        while not one.ended:
            await turn(one)

    asyncio.run(turns())
    return one


def rejected(one: Rollout) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        play(one)
    return caught.value


def roles(one: Rollout) -> list[str]:
    return [message["role"] for message in one.conversation.messages]


def results(one: Rollout) -> list[str]:
    return [message["content"] for message in one.conversation.messages if message["role"] == "tool"]


# ---- how it ends ---------------------------------------------------------------------------------------------------


def test_an_answer_without_calls_ends_it() -> None:
    one = play(rollout(Teacher(says("42."))))
    assert (one.ended, one.turns, roles(one)) == ("final_answer", 1, ["system", "user", "assistant"])


def test_calls_and_results_come_before_the_answer_and_are_sent_back() -> None:
    teacher = Teacher(says("I look.", call("look", id_="a")), says("Seen."))
    one = play(rollout(teacher))
    assert one.conversation.messages[2:] == [
        {"role": "assistant", "content": "I look.", "tool_calls": [call("look", id_="a")]},
        {"role": "tool", "tool_call_id": "a", "content": "seen"},
        {"role": "assistant", "content": "Seen."},
    ]
    assert teacher.asked[1] == one.conversation.messages[:-1]
    assert teacher.tools == [["look"], ["look"]]
    assert (one.ended, one.turns, one.totals.tools_used) == ("final_answer", 2, {"look": 1})


def test_the_turn_limit_ends_it_and_fetches_no_result_that_nobody_reads() -> None:
    tools = Tools({"count": lambda n: n})
    teacher = Teacher(*(says("", call("count", json.dumps({"n": turn}))) for turn in range(5)))
    one = play(rollout(teacher, tools, max_turns=3))
    assert (one.ended, one.turns, len(teacher.asked)) == ("max_turns", 3, 3)
    assert tools.called == [("count", {"n": 0}), ("count", {"n": 1})]


def test_a_turn_that_was_cut_off_ends_it_and_calls_nothing() -> None:
    tools = Tools({"look": lambda: "seen"})
    one = play(rollout(Teacher(says("I lo", call("look"), finish_reason="length")), tools))
    assert (one.ended, tools.called) == ("length", [])


def test_with_the_policy_to_use_all_turns_the_teacher_is_told_to_go_on() -> None:
    teacher = Teacher(says("First."), says("", call("look")), says("Third."), says("Fourth."))
    one = play(rollout(teacher, max_turns=4, go_on=True))
    assert (one.ended, one.turns) == ("final_answer", 4)
    assert roles(one)[2:] == ["assistant", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert one.conversation.messages[3]["content"] == "Go on."


def test_tokens_and_seconds_are_added_up_turn_by_turn() -> None:
    teacher = Teacher(says("", call("look"), usage=Usage(10, 3)), says("Done.", usage=Usage(20, 4)))
    totals = play(rollout(teacher)).totals
    assert (totals.prompt_tokens, totals.completion_tokens) == (30, 7)
    assert [sorted(turn) for turn in totals.turn_seconds] == [["teacher", "tools"]] * 2


def test_a_seed_differs_from_turn_to_turn_and_repeats_from_run_to_run() -> None:
    drawn = []
    for _ in range(2):
        teacher = Teacher(says("", call("look")), says("Done."))
        play(rollout(teacher, seed=7))
        drawn.append([sampling.seed for sampling in teacher.samplings])
    assert drawn == [[7, 8], [7, 8]]


# ---- attempts ------------------------------------------------------------------------------------------------------


def test_a_turn_without_an_answer_may_be_tried_again_and_leaves_no_trace() -> None:
    tools = Tools({"look": lambda: "seen"})
    teacher = Teacher(says("", call("look")), TransientError("timeout", "no answer"), says("Done."))
    one = rollout(teacher, tools)

    async def turns() -> None:
        await turn(one)
        with pytest.raises(TransientError):
            await turn(one)
        await turn(one)

    asyncio.run(turns())
    assert (one.ended, one.turns, len(tools.called)) == ("final_answer", 2, 1)
    assert teacher.asked[1] == teacher.asked[2]


def test_a_rollout_that_took_too_long_is_failed_before_its_next_turn() -> None:
    teacher = Teacher(says("", call("wait")), says("Too late."))
    error = rejected(rollout(teacher, Tools({"wait": lambda: asyncio.sleep(0.1)}), rollout_timeout_s=0.05))
    assert (error.reason, len(teacher.asked)) == ("rollout_timeout", 1)


# ---- tools ---------------------------------------------------------------------------------------------------------


def test_what_a_tool_says_went_wrong_goes_back_to_the_teacher() -> None:
    tools = Tools({"look": lambda: ToolResult("The page is gone.", is_error=True)})
    one = play(rollout(Teacher(says("", call("look")), says("So be it.")), tools))
    assert results(one) == ["The page is gone."]
    assert (one.totals.tools_failed, one.totals.tool_errors) == ({"look": 1}, ["look: The page is gone."])


def test_a_tool_that_takes_too_long_is_left_and_the_teacher_is_told() -> None:
    tools = Tools({"look": lambda: asyncio.sleep(60)})
    began = time.monotonic()
    one = play(rollout(Teacher(says("", call("look")), says("So be it.")), tools, tool_timeout_s=0.05))
    assert time.monotonic() - began < 2
    assert results(one) == ["Error: no result within 0.05 s."]
    assert one.totals.tools_failed == {"look": 1}


def test_an_unknown_tool_goes_back_to_the_teacher_with_those_that_exist() -> None:
    tools = Tools({"look": lambda: "seen", "listen": lambda: "heard"})
    one = play(rollout(Teacher(says("", call("smell")), says("So be it.")), tools))
    assert results(one) == ["Error: there is no tool 'smell'. Available: look, listen."]
    assert tools.called == []


def test_a_dead_tool_server_fails_the_rollout() -> None:
    def die() -> str:
        raise ToolsetGone("it ended with code 9")

    error = rejected(rollout(Teacher(says("", call("look"))), Tools({"look": die})))
    assert (error.reason, str(error)) == ("tools_gone", "look: it ended with code 9")


@pytest.mark.parametrize("side_by_side", [False, True])
def test_results_keep_the_order_of_the_calls(side_by_side: bool) -> None:
    async def wait(ms: int) -> str:
        await asyncio.sleep(ms / 1000)
        return f"{ms} ms"

    calls = [call("wait", json.dumps({"ms": ms}), f"id{ms}") for ms in (60, 1, 30)]
    one = rollout(Teacher(says("", *calls), says("Done.")), Tools({"wait": wait}, side_by_side))
    play(one)
    assert results(one) == ["60 ms", "1 ms", "30 ms"]
    assert [m["tool_call_id"] for m in one.conversation.messages if m["role"] == "tool"] == ["id60", "id1", "id30"]


def test_python_functions_called_in_one_turn_run_side_by_side(folder: Path) -> None:
    (folder / "tools.py").write_text(
        'import threading\nall_three = threading.Barrier(3, timeout=5)\n\n\ndef meet(n: int) -> int:\n    """Meet."""\n'
        "    all_three.wait()\n    return n\n"
    )
    calls = [call("meet", json.dumps({"n": n}), f"id{n}") for n in range(3)]
    teacher = Teacher(says("", *calls), says("Met."))

    async def work() -> list[str]:
        toolbox = Toolbox([PythonTools("tools.py")])
        await toolbox.open()
        async with toolbox.session() as session:
            one = Rollout(PROMPT, toolbox.tools, session, teacher, Sampling(100, 1.0), LIMITS)
            while not one.ended:
                await turn(one)
        await toolbox.aclose()
        return results(one)

    assert asyncio.run(work()) == ["0", "1", "2"]  # one after another, the first would wait in vain
    assert threading.active_count() < 10


def test_tools_that_keep_a_state_are_called_one_after_another() -> None:
    busy = 0

    async def alone() -> str:
        nonlocal busy
        busy += 1
        at_once = busy
        await asyncio.sleep(0.01)
        busy -= 1
        return str(at_once)

    calls = [call("alone", "{}", f"id{n}") for n in range(3)]
    assert results(play(rollout(Teacher(says("", *calls), says("Done.")), Tools({"alone": alone})))) == ["1"] * 3


# ---- what the teacher gets wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('{"n": 1', "the arguments are not valid JSON"),
        ("[1]", "the arguments are not a JSON object."),
        ('"n"', "the arguments are not a JSON object."),
        ("null", "the arguments are not a JSON object."),
        ('{"n": NaN}', "the arguments are not valid JSON"),
        ('{"n": "\\ud800"}', "the arguments are not valid JSON"),
        ("[" * 5000, "the arguments are not valid JSON"),
    ],
)
def test_malformed_arguments_are_reported_to_the_teacher_once(written: str, told: str) -> None:
    tools = Tools({"count": lambda n: n})
    one = play(
        rollout(Teacher(says("", call("count", written)), says("", call("count", '{"n": 1}')), says("1")), tools)
    )
    assert results(one)[0].startswith(f"Error: {told}")
    assert results(one)[0].endswith("Send the arguments as one JSON object.")
    assert results(one)[1] == "1"
    assert (one.ended, one.totals.tools_failed) == ("final_answer", {"count": 1})


def test_malformed_arguments_for_the_second_time_fail_the_rollout() -> None:
    teacher = Teacher(
        says("", call("look", "{")), says("", call("look")), says("", call("look", "{"), usage=Usage(5, 5))
    )
    one = rollout(teacher)
    assert rejected(one).reason == "malformed_arguments"
    assert (one.turns, one.totals.completion_tokens) == (3, 5)  # the turn was an answer, and is paid for


def test_two_malformed_calls_in_one_turn_count_once() -> None:
    one = rollout(Teacher(says("", call("look", "{", "a"), call("look", "}", "b")), says("Sorry.")))
    assert play(one).ended == "final_answer"
    assert len(results(one)) == 2


def test_no_arguments_at_all_are_an_empty_object() -> None:
    assert arguments_of(call("look", "")) == {}
    assert arguments_of({"id": "a", "type": "function", "function": {"name": "look"}}) == {}


def test_the_same_call_to_the_same_effect_three_turns_in_a_row_is_a_loop() -> None:
    teacher = Teacher(*(says("", call("look", "{}", f"id{turn}")) for turn in range(9)))
    error = rejected(rollout(teacher))
    assert (error.reason, len(teacher.asked)) == ("loop", 3)
    assert "3 turns in a row made the same call to look" in str(error)


@pytest.mark.parametrize("changing", ["arguments", "results", "between"])
def test_what_changes_is_no_loop(changing: str) -> None:
    tick = iter(range(100))
    tools = Tools({"look": lambda n=0: next(tick) if changing == "results" else "seen", "other": lambda: "x"})
    said = [says("", call("look", json.dumps({"n": turn if changing == "arguments" else 0}))) for turn in range(6)]
    if changing == "between":
        said = [turn for pair in zip(said, [says("", call("other"))] * 6, strict=True) for turn in pair]
    assert play(rollout(Teacher(*said, says("Done.")), tools, max_turns=20)).ended == "final_answer"


# ---- room ----------------------------------------------------------------------------------------------------------


def test_an_oversized_result_is_cut_with_a_marker() -> None:
    tools = Tools({"look": lambda: "x" * 1000})
    one = play(rollout(Teacher(says("", call("look")), says("Done.")), tools, max_tool_response=10))
    assert results(one) == ["x" * 40 + "\n[cut: 40 of 1,000 characters are shown]"]


def test_a_result_that_fits_is_left_alone_and_broken_unicode_is_replaced() -> None:
    assert cut("x" * 40, 10) == "x" * 40
    assert cut("x" * 1_000_000, None) == "x" * 1_000_000
    assert cut("a\ud800b", None) == "a?b"


def test_the_oldest_results_make_room_first_and_nothing_else_is_touched() -> None:
    tools = Tools({"page": lambda n: f"{n} " * 1000})
    said = [says("", call("page", json.dumps({"n": n}))) for n in range(4)]
    teacher = Teacher(*said, says("Done."))
    one = play(rollout(teacher, tools, max_context=2000))
    sent = teacher.asked[-1]
    texts = [message["content"] for message in sent if message["role"] == "tool"]
    stubs = ["were left out]" in text for text in texts]
    assert stubs == sorted(stubs, reverse=True)
    assert stubs[0]
    assert not stubs[-1]
    assert texts[0].startswith("0 " * (STUB_CHARS // 2))
    assert texts[-1] == "3 " * 1000
    assert sent[:2] == PROMPT
    assert one.totals.shortened == sum(stubs)


def test_a_prompt_that_cannot_fit_is_rejected_before_anything_is_asked() -> None:
    teacher = Teacher(says("never"))
    prompt, limits = [{"role": "user", "content": "x" * 8000}], replace(LIMITS, max_context=1000)
    one = Rollout(prompt, [], Tools({}), teacher, Sampling(100, 1.0), limits)
    error = rejected(one)
    assert (error.reason, teacher.asked) == ("context_length", [])
    assert "--max-context" in str(error)


def test_the_teachers_own_count_calibrates_the_estimate() -> None:
    conversation = Conversation([{"role": "user", "content": "x" * 4000}], [])
    assert conversation.tokens == 1000
    conversation.answer(says("", usage=Usage(2000, 1)))
    assert conversation.tokens == 2000


def test_the_bound_on_the_next_prompt_counts_what_is_sent_back_and_not_recorded() -> None:
    conversation = Conversation(PROMPT, [])
    echo = {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x" * 50_000}]}
    conversation.answer(says("", call("look"), usage=Usage(20, 5), echo=echo))
    assert conversation.most_tokens > 50_000


# ---- thinking ------------------------------------------------------------------------------------------------------


def test_thinking_is_recorded_and_not_sent_back() -> None:
    teacher = Teacher(says("", call("look"), reasoning="Hm."), says("Done."))
    one = play(rollout(teacher))
    assert one.conversation.messages[2]["reasoning_content"] == "Hm."
    assert "Hm." not in json.dumps(teacher.asked)


def test_what_a_server_wants_back_is_sent_back_and_not_recorded() -> None:
    teacher = Teacher(
        says("", call("look"), reasoning="Hm.", echo={"reasoning_content": "Hm.", "x": [1]}), says("Done.")
    )
    one = play(rollout(teacher))
    assert teacher.asked[1][2]["x"] == [1]
    assert teacher.asked[1][2]["reasoning_content"] == "Hm."
    assert "x" not in one.conversation.messages[2]
