"""The command against a teacher that follows a script: what is written, what is paid, what is run again."""

import itertools
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.data.statistics import wilson
from core.teachers import engine
from tests.conftest import Generate
from tests.support.mcp_servers import command
from tests.support.running import KEY, ROOT, Outcome, Reply, ended, start, write_rows
from tests.support.scripted_teacher import Answer, Call, Chat, Script, ScriptedTeacher, refusal, scripted_teacher

SCRIPT = ROOT / "scripts" / "run_rollouts.py"
TOOLS = '''
import time


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def fail(why: str) -> str:
    """Fail."""
    raise ValueError(why)


def nap(seconds: float) -> str:
    """Sleep."""
    time.sleep(seconds)
    return "rested"
'''
ADD = Call("add", {"a": 1, "b": 2})


@pytest.fixture
def project(folder: Path) -> Path:
    """tools.py, and train.jsonl with ten questions whose answers are known."""
    (folder / "tools.py").write_text(TOOLS)
    write_rows(folder / "train.jsonl", [task(number) for number in range(10)])
    return folder


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BACKOFF_BASE_S", 0.01)


def task(number: int, **more: Any) -> dict[str, Any]:
    question = [{"role": "user", "content": f"q{number}: how much is {number} + 2?"}]
    return {"messages": question, "metadata": {"expected_answer": number + 2, "topic": "sums"}, **more}


def number_of(chat: Chat) -> int:
    found = re.match(r"q(\d+)", chat.question)
    assert found, chat.question
    return int(found[1])


def adds(chat: Chat) -> Call | str:
    """A good pupil: one call, then its result."""
    if chat.turn == 0:
        return Call("add", {"a": number_of(chat), "b": 2})
    return f"The answer is {chat.results[-1]}."


def options(teacher: ScriptedTeacher, *arguments: str) -> list[str]:
    return ["--tools", "tools.py", *teacher.options, "--progress", "off", *arguments]


def files(folder: Path = Path("rollouts")) -> list[Path]:
    return sorted(folder.glob("*.json"))


def written(folder: Path = Path("rollouts")) -> list[dict[str, Any]]:
    """All rollouts, by prompt and sample."""
    records = [json.loads(path.read_bytes()) for path in files(folder)]
    return sorted(records, key=lambda record: (record["index"], record["provenance"]["sample"]))


def one(folder: Path = Path("rollouts")) -> dict[str, Any]:
    (record,) = written(folder)
    return record


def with_script(roll: Generate, script: Script, *arguments: str) -> tuple[Outcome, list[Chat]]:
    """One run against a teacher of its own."""
    with scripted_teacher(script) as teacher:
        return roll(*options(teacher, *arguments)), teacher.chats


def states() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files()}


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_rollout_is_a_file_with_rnows_keys_and_ours_and_the_conversation_last(project: Path, roll: Generate) -> None:
    outcome, _ = with_script(roll, adds, "--system", "Use add.", "--temperature", "0.5")
    assert outcome.code == 0, outcome.stderr
    (path,) = files()
    assert re.fullmatch(r"\d{8}_\d{6}_[0-9a-f]{8}\.json", path.name)
    record = json.loads(path.read_bytes())
    assert list(record) == [
        "id", "completed", "success", "total_reward", "rewards", "errors", "turns", "truncated", "totalTokens",
        "promptTokens", "completion", "metadata", "index", "tool_errors", "provenance", "tools", "conversation",
    ]  # fmt: skip
    provenance = record.pop("provenance")
    assert record == {
        "id": path.stem,
        "completed": True,
        "success": True,
        "total_reward": 1.0,
        "rewards": {"expected_answer": 1.0},
        "errors": [],
        "turns": 2,
        "truncated": False,
        "totalTokens": 30,
        "promptTokens": 20,
        "completion": 10,
        "metadata": {"expected_answer": 2, "topic": "sums"},
        "index": 0,
        "tool_errors": [],
        "tools": record["tools"],
        "conversation": [
            {"role": "system", "content": "Use add."},
            {"role": "user", "content": "q0: how much is 0 + 2?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call_0_0",
                        "type": "function",
                        "function": {"name": "add", "arguments": '{"a": 0, "b": 2}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_0_0", "content": "2", **tool_name(record)},
            {"role": "assistant", "content": "The answer is 2."},
        ],
    }
    assert [tool["function"]["name"] for tool in record["tools"]] == ["add", "fail", "nap"]
    assert record["tools"][0]["function"]["parameters"]["required"] == ["a", "b"]
    assert re.fullmatch("[0-9a-f]{32}", provenance["key"])
    assert re.fullmatch("[0-9a-f]{32}", provenance["prompt_hash"])
    assert provenance["teacher"] == "scripted/model"
    assert provenance["sampling"] == {"max_tokens": 4096, "temperature": 0.5, "top_p": 1.0, "seed": None}
    assert (provenance["ended"], provenance["check"], provenance["sample"]) == ("final_answer", "contains", 0)
    assert provenance["prompt_place"] == "train.jsonl:1"
    assert provenance["tool_names"] == ["add", "fail", "nap"]
    assert provenance["cost_usd"] == pytest.approx(0.002)
    assert len(provenance["turn_seconds"]) == 2


def tool_name(record: dict[str, Any]) -> dict[str, str]:
    """A tool's message may say its name."""
    message = next(message for message in record["conversation"] if message["role"] == "tool")
    return {"name": "add"} if "name" in message else {}


def test_no_temporary_file_is_left_and_none_but_rollouts_is_written(project: Path, roll: Generate) -> None:
    with_script(roll, adds, "--all")
    hidden = sorted(path.name for path in Path("rollouts").iterdir() if path.suffix != ".json")
    assert hidden == [".lock"]
    assert sorted(path.name for path in project.iterdir()) == ["rollouts", "tools.py", "train.jsonl"]


def test_the_key_is_in_no_file_and_no_message(project: Path, roll: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    outcome, _ = with_script(
        roll, lambda chat: adds(chat) if number_of(chat) else refusal(400, f"not with {KEY}"), "--all"
    )
    assert outcome.code == 1
    assert KEY not in outcome.stdout + outcome.stderr + "".join(path.read_text() for path in files())


# ---- outcomes ------------------------------------------------------------------------------------------------------


def all_outcomes(chat: Chat) -> Answer | Call | str | Reply:
    match number_of(chat):
        case 0:
            return adds(chat)
        case 1:
            return "The answer is 17."  # wrong
        case 2:
            return Call("add", {"a": chat.turn, "b": 2})  # never answers
        case 3:
            return Answer("I was just abou", finish_reason="length")
        case 4:
            return refusal(400, "the model refuses this")
        case 5:
            return Call("add", {"a": 1, "b": 1})  # the same for ever
        case 6:
            return Call("add", '{"a": 1')
        case 7:
            return Call("fail", {"why": "no luck"}) if chat.turn == 0 else "The answer is 9."
        case 8:
            return Call("subtract", {"a": 1}) if chat.turn == 0 else "The answer is 10."
        case _:
            return Call("add", {"a": "one", "b": 2}) if chat.turn == 0 else "The answer is 11."


def test_outcomes_are_told_apart_in_the_files_and_in_the_result(project: Path, roll: Generate) -> None:
    outcome, _ = with_script(roll, all_outcomes, "--all", "--max-turns", "4", "--retries", "0")
    assert outcome.code == 1
    records = written()
    assert [record["provenance"]["ended"] for record in records] == [
        "final_answer", "final_answer", "max_turns", "length", "error", "error", "error",
        "final_answer", "final_answer", "final_answer",
    ]  # fmt: skip
    assert [record["completed"] for record in records] == [True] * 4 + ["error"] * 3 + [True] * 3
    assert [record["success"] for record in records] == [
        True,
        False,
        False,
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert [record["truncated"] for record in records] == [index == 3 for index in range(10)]
    reasons = [record["provenance"]["reason"] for record in records[4:7]]
    assert reasons == ["invalid_request", "loop", "malformed_arguments"]
    assert ["error" in record for record in records] == [4 <= index <= 6 for index in range(10)]
    assert records[7]["tool_errors"] == ["fail: ValueError: no luck"]
    assert "no tool 'subtract'" in records[8]["tool_errors"][0]
    assert "Wrong arguments for add: a: Input should be a valid integer" in records[9]["tool_errors"][0]

    result = outcome.result
    assert result["outcomes"] == {"final_answer": 5, "error": 3, "max_turns": 1, "length": 1}
    assert result["failures"] == {"invalid_request": 1, "loop": 1, "malformed_arguments": 1}
    assert (result["status"], result["rollouts"], result["complete"], result["wanted"]) == ("some_failed", 10, 7, 10)
    # The loop and the broken calls are the model's own; what the provider refused is none of its doing.
    assert (result["successes"], result["judged"], result["own_faults"]) == (4, 9, 2)
    assert result["success_rate"] == pytest.approx(4 / 9)
    assert result["success_interval"] == pytest.approx(list(wilson(4, 9)))
    assert result["remaining"] == 3
    assert result["tools_used"] == {"add": 9, "fail": 1, "subtract": 1}
    assert result["tool_errors"] == {"add": 2, "fail": 1, "subtract": 1}
    assert result["turns"]["min"] == 0
    assert result["turns"]["max"] == 4
    advice = "\n".join(result["advice"])
    for word in ("loop", "malformed_arguments", "the model refuses this", "--max-tokens", "--max-turns"):
        assert word in advice
    assert "success     4 of 9 (44%, 95 % interval 19% to 73%)" in outcome.stderr
    assert "2 ended in an error of the model's own: no success" in outcome.stderr
    assert "1 are missing or ended in another error: not counted" in outcome.stderr


def test_the_results_tokens_and_cost_are_those_of_the_files_failed_rollouts_too(project: Path, roll: Generate) -> None:
    outcome, chats = with_script(roll, all_outcomes, "--all", "--max-turns", "4", "--retries", "0")
    answered = [chat for chat in chats if number_of(chat) != 4]
    result, records = outcome.result, written()
    assert result["prompt_tokens"] == sum(record["promptTokens"] for record in records) == 10 * len(answered)
    assert result["completion_tokens"] == sum(record["completion"] for record in records) == 5 * len(answered)
    assert result["cost_usd"] == pytest.approx(0.001 * len(answered))
    assert sum(record["provenance"]["cost_usd"] for record in records) == pytest.approx(0.001 * len(answered))


def test_with_a_price_a_failed_turn_costs_what_it_used_and_not_its_worst_case(project: Path, roll: Generate) -> None:
    def loops(chat: Chat) -> Answer:
        return Answer(calls=[ADD], cost_usd=None)

    outcome, _ = with_script(roll, loops, "--price", "1000/2000")
    assert outcome.result["failures"] == {"loop": 1}
    assert (outcome.result["maybe_billed"], outcome.result["maybe_billed_usd"]) == (0, 0)
    assert outcome.result["cost_usd"] == pytest.approx(3 * (10 * 1000 + 5 * 2000) / 1e6)


def test_without_counts_and_costs_the_cost_is_unknown(project: Path, roll: Generate) -> None:
    outcome, _ = with_script(roll, lambda chat: Answer("The answer is 2.", usage=None))
    assert (outcome.code, outcome.result["cost_usd"]) == (0, None)
    assert "cost        unknown" in outcome.stderr


def test_a_turn_that_is_too_long_for_the_context_is_an_error_that_names_the_option(
    project: Path, roll: Generate
) -> None:
    write_rows(project / "train.jsonl", [{"prompt": "q0: " + "long " * 1000}])
    outcome, chats = with_script(roll, adds, "--max-context", "256")
    assert (outcome.code, chats) == (1, [])
    assert one()["provenance"]["reason"] == "context_length"
    assert "--max-context" in outcome.stderr


def test_long_results_are_cut_and_old_ones_shortened_and_the_file_says_how_many(project: Path, roll: Generate) -> None:
    (project / "tools.py").write_text('def page(n: int) -> str:\n    """A page."""\n    return f"{n} " * 5000\n')

    def reads(chat: Chat) -> Answer | str:
        return Answer(calls=[Call("page", {"n": chat.turn})], usage=None) if chat.turn < 5 else "The answer is 2."

    outcome, _ = with_script(roll, reads, "--max-tool-response", "500", "--max-context", "2048")
    assert outcome.code == 0
    record = one()
    results = [message["content"] for message in record["conversation"] if message["role"] == "tool"]
    assert all("[cut: 2,000 of 10,000 characters are shown]" in text for text in results[-2:])
    assert "of this older result were left out]" in results[0]
    shortened = sum("were left out]" in text for text in results)
    assert record["provenance"]["shortened_tool_results"] == shortened > 0


def test_a_tool_that_hangs_is_left_and_the_rollout_goes_on(project: Path, roll: Generate) -> None:
    def rests(chat: Chat) -> Call | str:
        return Call("nap", {"seconds": 3}) if chat.turn == 0 else "The answer is 2."

    began = time.monotonic()
    outcome, _ = with_script(roll, rests, "--tool-timeout", "0.1")
    assert time.monotonic() - began < 2.5
    assert (outcome.code, outcome.result["tool_errors"]) == (0, {"nap": 1})
    assert one()["tool_errors"] == ["nap: Error: no result within 0.1 s."]


def test_a_rollout_that_takes_too_long_is_an_error_of_its_own(project: Path, roll: Generate) -> None:
    def rests(chat: Chat) -> Call | str:
        return adds(chat) if number_of(chat) else Call("nap", {"seconds": 0.3})

    outcome, _ = with_script(roll, rests, "-n", "2", "--rollout-timeout", "0.2")
    assert outcome.result["failures"] == {"rollout_timeout": 1}
    assert [record["completed"] for record in written()] == ["error", True]


def test_the_policy_of_using_all_turns_is_kept(project: Path, roll: Generate) -> None:
    outcome, chats = with_script(
        roll, lambda chat: "The answer is 2.", "--termination-policy", "max_turns", "--max-turns", "3"
    )
    assert (outcome.code, len(chats), one()["turns"]) == (0, 3, 3)


def test_a_row_chooses_among_the_tools_and_may_want_none(project: Path, roll: Generate) -> None:
    write_rows(project / "train.jsonl", [task(0, tools=["add"]), task(1, tools=[]), task(2), task(3, tools=["divide"])])
    outcome, chats = with_script(roll, lambda chat: f"The answer is {number_of(chat) + 2}.", "--all")
    assert {number_of(chat): chat.tools for chat in chats} == {0: ["add"], 1: [], 2: ["add", "fail", "nap"]}
    assert (outcome.code, outcome.result["bad_rows"]) == (1, 1)
    assert re.search(r"train\.jsonl:4: no tool .*divide.*: add, fail, nap\.", outcome.stderr)


def test_without_any_tools_the_user_is_told(project: Path, roll: Generate) -> None:
    with scripted_teacher(lambda chat: "The answer is 2.") as teacher:
        outcome = roll(*teacher.options)
    assert outcome.code == 0
    assert "no tools: the model can only answer" in outcome.stderr
    assert one()["tools"] == []


# ---- what a server may do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["Invalid schema for function 'fail': oops", "tools[1].function.parameters: oops"])
def test_a_tool_whose_schema_the_provider_refuses_is_left_out_and_the_run_goes_on(
    project: Path, roll: Generate, words: str
) -> None:
    def refuses(chat: Chat) -> Call | str | Reply:
        return refusal(400, words) if "fail" in chat.tools else adds(chat)

    outcome, chats = with_script(roll, refuses, "-n", "5", "--concurrency", "1")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count("refuses the tool fail; going on without it") == 1
    assert sum("fail" in chat.tools for chat in chats) == 1  # the others need not learn it again
    for record in written():
        assert record["provenance"]["tool_names"] == ["add", "nap"]
        assert [tool["function"]["name"] for tool in record["tools"]] == ["add", "nap"]


def test_a_refusal_of_all_tools_fails_the_rollouts_with_the_providers_words(project: Path, roll: Generate) -> None:
    outcome, _ = with_script(roll, lambda chat: refusal(400, "this model does not support tool calls"), "-n", "2")
    assert outcome.code == 1
    assert "this model does not support tool calls" in outcome.stderr


def test_a_web_page_instead_of_an_answer_stops_the_run_with_a_clear_word(project: Path, roll: Generate) -> None:
    page = Reply(200, b"<!DOCTYPE html><title>Login</title>", {"content-type": "text/html"})
    outcome, chats = with_script(roll, lambda chat: page, "--all", "--concurrency", "2")
    assert outcome.code == 2
    assert "web page" in outcome.stderr
    assert "--base-url" in outcome.stderr
    assert len(chats) <= 2
    assert files() == []


def test_a_web_page_in_the_middle_keeps_what_was_finished(project: Path, roll: Generate) -> None:
    page = Reply(200, b"<!DOCTYPE html><title>Login</title>", {"content-type": "text/html"})

    def script(chat: Chat) -> Answer | Reply:
        return Answer("The answer is 2.", usage=None) if number_of(chat) < 2 else page

    outcome, _ = with_script(roll, script, "--all", "--concurrency", "1")
    assert outcome.code == 1  # each is tried again, and fails alone
    assert outcome.result["outcomes"] == {"error": 8, "final_answer": 2}
    assert outcome.result["failures"] == {"web_page": 8}


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(429, "slow down", Retry_After="0.05"),
        refusal(500, "oops"),
        refusal(503, "overloaded", Retry_After="0.05"),
        Reply(200, b'{"choices": [{"message": {"content": "half an ans'),
        Reply(200, b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'),
    ],
)
def test_a_turn_that_fails_is_asked_again_and_no_other(project: Path, roll: Generate, trouble: Reply) -> None:
    failed: set[tuple[int, int]] = set()

    def script(chat: Chat) -> Call | str | Reply:
        at = number_of(chat), chat.turn
        if at not in failed:
            failed.add(at)
            return trouble
        if chat.turn < 2:
            return Call("add", {"a": chat.turn, "b": 1})
        return f"The answer is {number_of(chat) + 2}."

    outcome, chats = with_script(roll, script, "-n", "3")
    assert outcome.code == 0, outcome.stderr
    asked = sorted((number_of(chat), chat.turn) for chat in chats)
    assert asked == sorted(2 * [(number, turn) for number in range(3) for turn in range(3)])
    for number in range(3):  # every request continues the one before
        own = [chat.messages for chat in chats if number_of(chat) == number]
        assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(own))
    assert [record["turns"] for record in written()] == [3, 3, 3]
    assert outcome.result["tools_used"] == {"add": 6}


def test_a_turn_that_keeps_failing_ends_its_rollout_only(project: Path, roll: Generate) -> None:
    def script(chat: Chat) -> Call | str | Reply:
        return refusal(500, "oops") if number_of(chat) == 1 and chat.turn == 1 else adds(chat)

    outcome, chats = with_script(roll, script, "-n", "3", "--retries", "1")
    assert outcome.code == 1
    assert [record["completed"] for record in written()] == [True, "error", True]
    kept = written()[1]
    assert (kept["turns"], kept["conversation"][-1]["role"]) == (1, "tool")
    assert sum(number_of(chat) == 1 for chat in chats) == 3


def test_a_refused_key_stops_the_run_before_anything_is_written(project: Path, roll: Generate) -> None:
    outcome, _ = with_script(roll, lambda chat: refusal(401, "no such key"), "--all")
    assert outcome.code == 2
    assert "no such key" in outcome.stderr
    assert files() == []


def test_a_server_that_nobody_reaches_fails_the_rollouts_and_says_so(project: Path, roll: Generate) -> None:
    arguments = ("--base-url", "http://127.0.0.1:9/v1", "--model", "x", "--tools", "tools.py", "--retries", "0")
    outcome = roll(*arguments, "-n", "2")
    assert (outcome.code, outcome.result["failures"]) == (1, {"connection": 2})
    assert "cannot connect to http://127.0.0.1:9/v1" in outcome.stderr
    assert [record["completed"] for record in written()] == ["error", "error"]


def test_a_run_that_only_fails_is_stopped_before_it_has_asked_for_everything(project: Path, roll: Generate) -> None:
    write_rows(project / "train.jsonl", [task(number) for number in range(100)])
    outcome, chats = with_script(roll, lambda chat: refusal(400, "no such thing"), "--all", "--concurrency", "2")
    assert outcome.code == 3
    assert "failed one after another" in outcome.result["stopped_because"]
    assert "no such thing" in outcome.result["stopped_because"]
    assert 25 <= len(chats) <= 27


def test_whatever_a_tool_or_a_teacher_writes_the_file_is_whole_and_the_rollout_goes_on(
    project: Path, roll: Generate
) -> None:
    (project / "tools.py").write_text(
        'def odd() -> str:\n    """Odd."""\n    return "a\\ud800b\\x00\\u2028" + "</script>" + chr(0x1F600)\n'
    )
    answer = "Zero \u2028 \x7f \U0001f600 {tool_call} <tool_call>{}</tool_call> 2"
    outcome, chats = with_script(roll, lambda chat: answer if chat.turn else Call("odd"))
    assert outcome.code == 0, outcome.stderr
    record = one()
    assert record["conversation"][-2]["content"] == chats[1].results[0] == "a?b\x00\u2028</script>\U0001f600"
    assert record["conversation"][-1]["content"] == answer


# ---- success -------------------------------------------------------------------------------------------------------


def test_rewards_of_the_user_judge_instead_of_the_check(project: Path, roll: Generate) -> None:
    (project / "rewards.py").write_text(
        "from rnow.core import RewardArgs, get_response, reward\n\n@reward\ndef accuracy(args, messages):\n"
        "    return float(str(args.metadata['expected_answer']) in get_response(messages))\n\n\n"
        "@reward(precondition=True)\nasync def used_a_tool(args, messages):\n"
        "    return float(any(message['role'] == 'tool' for message in messages))\n"
    )
    write_rows(project / "train.jsonl", [task(0), task(1), task(2, rewards=["accuracy"]), task(3, rewards=["style"])])

    def script(chat: Chat) -> Call | str:
        return adds(chat) if number_of(chat) == 0 else f"The answer is {number_of(chat) + 2}."

    outcome, _ = with_script(roll, script, "--all", "--rewards", "rewards.py")
    found = [(record["success"], record["total_reward"], record["rewards"]) for record in written()]
    assert found == [
        (True, 2.0, {"accuracy": 1.0, "used_a_tool": 1.0}),
        (False, 0.0, {"accuracy": 1.0, "used_a_tool": 0.0}),
        (True, 1.0, {"accuracy": 1.0}),
    ]
    assert {record["provenance"]["check"] for record in written()} == {"rewards"}
    assert "train.jsonl:4: no reward function 'style' in --rewards." in outcome.stderr


def test_a_reward_that_fails_or_hangs_is_in_the_file_with_its_reason(project: Path, roll: Generate) -> None:
    (project / "rewards.py").write_text(
        "import time\n\ndef broken(args, messages):\n    return 1 / 0\n\n\n"
        "def slow(args, messages):\n    time.sleep(3)\n"
    )
    outcome, _ = with_script(roll, adds, "--rewards", "rewards.py", "--reward-timeout", "0.1")
    assert outcome.code == 0
    record = one()
    assert record["rewards"] == {"broken": "error", "slow": "timeout"}
    assert (record["success"], record["total_reward"], record["completed"]) == (False, 0.0, True)
    assert record["errors"] == ["broken: ZeroDivisionError: division by zero", "slow: timed out after 0.1 s"]


@pytest.mark.parametrize(("check", "success"), [("exact", False), ("contains", True), ("number", True), ("none", True)])
def test_the_check_is_the_users_choice(project: Path, roll: Generate, check: str, success: bool) -> None:
    with_script(roll, lambda chat: "It must be 2, I think.", "--check", check)
    assert one()["success"] is success
    assert one()["provenance"]["check"] == (None if check == "none" else check)


def test_without_an_expected_answer_a_final_answer_is_a_success_without_a_reward(project: Path, roll: Generate) -> None:
    write_rows(project / "train.jsonl", [{"prompt": "q0: anything?"}])
    with_script(roll, lambda chat: "Something.")
    assert one()["success"] is True
    assert "total_reward" not in one()
    assert "rewards" not in one()


# ---- again ---------------------------------------------------------------------------------------------------------


def test_nothing_finished_is_run_again(project: Path, roll: Generate) -> None:
    with scripted_teacher(adds) as teacher:
        roll(*options(teacher, "-n", "4"))
        before, asked = states(), len(teacher.chats)
        outcome = roll(*options(teacher, "-e", "2-6"))
        assert sorted({number_of(chat) for chat in teacher.chats[asked:]}) == [4, 5, 6]
    assert (outcome.code, outcome.result["rollouts"], outcome.result["wanted"]) == (0, 3, 5)
    assert before.items() <= states().items()


def test_the_same_command_again_asks_nothing(project: Path, roll: Generate) -> None:
    with scripted_teacher(adds) as teacher:
        first = roll(*options(teacher, "--all"))
        before, asked = states(), len(teacher.chats)
        again = roll(*options(teacher, "--all"))
        assert len(teacher.chats) == asked == 20
    assert (first.code, again.code, states()) == (0, 0, before)
    result = again.result
    assert (result["rollouts"], result["complete"], result["wanted"], result["remaining"]) == (0, 10, 10, 0)
    for name in ("successes", "judged", "success_rate", "success_interval", "unchecked"):
        assert result[name] == first.result[name]
    assert "success     10 of 10 (100%" in again.stderr


def test_the_success_is_that_of_all_wanted_rollouts_whichever_run_they_are_of(project: Path, roll: Generate) -> None:
    fails = "loops"

    def script(chat: Chat) -> Call | str | Reply:
        if number_of(chat) == 3 and fails == "loops":
            return ADD
        if number_of(chat) == 3 and fails == "refused":
            return refusal(400, "not this one")
        return "wrong" if number_of(chat) == 1 else adds(chat)

    def counts(result: dict[str, Any]) -> tuple[int, int, int]:
        return result["successes"], result["judged"], result["own_faults"]

    with scripted_teacher(script) as teacher:
        assert counts(roll(*options(teacher, "-e", "1,5")).result) == (1, 2, 0)
        assert counts(roll(*options(teacher, "-n", "4")).result) == (2, 4, 1)  # 0 and 2; 1 is wrong, 3 loops
        assert counts(roll(*options(teacher, "-n", "4")).result) == (2, 4, 1)  # 3 looped again
        assert counts(roll(*options(teacher, "-e", "0-2")).result) == (2, 3, 0)  # without 3
        fails = "refused"
        assert counts(roll(*options(teacher, "-n", "4")).result) == (2, 3, 0)  # by its provider: nothing about 3
        fails = ""
        assert counts(roll(*options(teacher, "-n", "4")).result) == (3, 4, 0)
    assert roll(*options(teacher, "-n", "4")).result["success_rate"] == pytest.approx(3 / 4)


def test_rollouts_that_ended_in_an_error_are_run_again_into_the_same_file(project: Path, roll: Generate) -> None:
    well = False

    def script(chat: Chat) -> Call | str | Reply:
        return adds(chat) if well or number_of(chat) != 2 else refusal(400, "not this one")

    with scripted_teacher(script) as teacher:
        assert roll(*options(teacher, "-n", "4")).code == 1
        before = states()
        failed = [name for name, state in before.items() if json.loads(state)["completed"] == "error"]
        well = True
        asked = len(teacher.chats)
        assert roll(*options(teacher, "-n", "4")).code == 0
        assert {number_of(chat) for chat in teacher.chats[asked:]} == {2}
    after = states()
    assert sorted(after) == sorted(before)
    assert [name for name in after if after[name] != before[name]] == failed
    assert all(record["completed"] is True for record in written())
    assert all(json.loads(state)["id"] == name.removesuffix(".json") for name, state in after.items())


def test_more_samples_are_added_to_those_there(project: Path, roll: Generate) -> None:
    with scripted_teacher(adds) as teacher:
        roll(*options(teacher, "-n", "2"))
        before = states()
        outcome = roll(*options(teacher, "-n", "2", "--samples", "3"))
    assert (outcome.code, outcome.result["rollouts"]) == (0, 4)
    assert before.items() <= states().items()
    found = [(record["index"], record["provenance"]["sample"]) for record in written()]
    assert found == [(index, sample) for index in range(2) for sample in range(3)]
    seeds = {chat.body.get("seed") for chat in teacher.chats}
    assert len(seeds) == 1 + 2 * 2 * 2  # none for the first sample; each other sample and turn has its own


@pytest.mark.parametrize(
    "change",
    [
        ("--temperature", "0.3"),
        ("--system", "Be brief."),
        ("--max-tokens", "99"),
        ("--top-p", "0.9"),
        ("--seed", "1"),
        ("--allow-tools", "add"),
        ("--reasoning", "low"),
        ("--model", "other/model"),
    ],
)
def test_another_way_of_asking_is_new_work(project: Path, roll: Generate, change: tuple[str, str]) -> None:
    with scripted_teacher(adds) as teacher:
        roll(*options(teacher, "-n", "2"))
        changed = [word for word in options(teacher, "-n", "2") if change[0] != "--model" or word != teacher.model]
        outcome = roll(*[word for word in changed if change[0] != word], *change)
    assert (outcome.code, outcome.result["rollouts"], len(files())) == (0, 2, 4)


def test_a_row_without_tools_is_other_work_than_one_with_all_of_them(project: Path, roll: Generate) -> None:
    with scripted_teacher(lambda chat: "The answer is 2.") as teacher:
        write_rows(project / "train.jsonl", [task(0, tools=[])])
        roll(*options(teacher))
        write_rows(project / "train.jsonl", [task(0)])
        outcome = roll(*options(teacher))
    assert (outcome.result["rollouts"], len(files())) == (1, 2)


def test_equal_prompts_are_separate_work_and_keep_their_places(project: Path, roll: Generate) -> None:
    write_rows(project / "train.jsonl", [task(0), task(1), task(0), task(0)])
    with scripted_teacher(adds) as teacher:
        roll(*options(teacher, "-e", "2"))
        outcome = roll(*options(teacher, "--all"))
    assert (outcome.result["rollouts"], len(files())) == (3, 4)
    assert [record["provenance"]["occurrence"] for record in written()] == [0, 0, 1, 2]
    assert len({record["provenance"]["key"] for record in written()}) == 4


def test_rows_of_one_template_are_told_apart_by_their_variables_and_not_by_their_place(
    project: Path, roll: Generate
) -> None:
    rows = [{"prompt": "q$n: how much is it?", "variables": {"n": number}} for number in range(4)]
    with scripted_teacher(lambda chat: "Much.") as teacher:
        write_rows(project / "train.jsonl", rows)
        roll(*options(teacher, "--all"))
        write_rows(project / "train.jsonl", rows[1:])
        outcome = roll(*options(teacher, "--all"))
    assert (outcome.result["rollouts"], len(files())) == (0, 4)


def test_files_of_others_are_left_alone_and_counted(project: Path, roll: Generate) -> None:
    foreign = {
        "notes.json": "{",
        "theirs.json": '{"conversation": [{"role": "user"}], "completed": true}',
        "a.txt": "x",
    }
    (project / "rollouts").mkdir()
    for name, content in foreign.items():
        (project / "rollouts" / name).write_text(content)
    outcome, _ = with_script(roll, adds)
    assert outcome.code == 0
    assert re.search(r"rollouts: 1 files? .*no rollout.*left alone", outcome.stderr)
    assert {name: (project / "rollouts" / name).read_text() for name in foreign} == foreign


def test_two_runs_in_one_folder_are_refused(project: Path, roll: Generate) -> None:
    refused: list[Outcome] = []

    def script(chat: Chat) -> Call | str:
        if not refused:
            refused.append(ended(start(project, *options(teacher), script=SCRIPT)))
        return adds(chat)

    with scripted_teacher(script) as teacher:
        assert roll(*options(teacher)).code == 0
    assert refused[0].code == 2
    assert "another run" in refused[0].stderr
    assert len(files()) == 1


# ---- Ctrl-C --------------------------------------------------------------------------------------------------------


def interrupts(times: int, at: int = 3) -> Script:
    """Works on each prompt for five turns; at the request `at` the user presses Ctrl-C."""
    pressed = threading.Event()

    def script(chat: Chat) -> Call | str:
        if chat.number >= at and not pressed.is_set():
            pressed.set()
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
        if times > 1 and pressed.is_set():
            time.sleep(0.5)
        return Call("add", {"a": chat.turn, "b": 1}) if chat.turn < 4 else f"The answer is {number_of(chat) + 2}."

    return script


def test_ctrl_c_once_finishes_what_was_begun_and_begins_nothing(project: Path, roll: Generate) -> None:
    outcome, chats = with_script(roll, interrupts(1), "--all", "--concurrency", "2")
    assert outcome.code == 130, outcome.stderr
    begun = {number_of(chat) for chat in chats}
    assert 2 <= len(begun) <= 4
    assert {record["index"] for record in written()} == begun
    assert all(record["completed"] is True for record in written())
    assert (outcome.result["status"], outcome.result["remaining"]) == ("interrupted", 10 - len(begun))
    assert "the same command goes on where it stopped" in outcome.stderr


def test_ctrl_c_twice_stops_now_and_keeps_what_there_is(project: Path, roll: Generate) -> None:
    outcome, _ = with_script(roll, interrupts(2), "--all", "--concurrency", "2")
    assert outcome.code == 130, outcome.stderr
    cut_off = [record for record in written() if record["completed"] is False]
    assert cut_off
    assert all(record["provenance"]["ended"] == "interrupted" and not record["success"] for record in cut_off)
    assert all(record["turns"] >= 1 for record in cut_off)
    with scripted_teacher(adds) as teacher:  # another address is another teacher: only the form of the files counts
        assert roll(*options(teacher, "--all")).code == 0


def test_what_was_interrupted_is_run_again_into_the_same_file(project: Path, roll: Generate) -> None:
    script = interrupts(2)
    with scripted_teacher(lambda chat: script(chat)) as teacher:
        roll(*options(teacher, "--all", "--concurrency", "2"))
        cut_off = {path.name for path in files() if json.loads(path.read_bytes())["completed"] is False}
        script = adds
        assert roll(*options(teacher, "--all")).code == 0
    assert cut_off <= {path.name for path in files()}
    assert [record["index"] for record in written()] == list(range(10))
    assert all(record["completed"] is True for record in written())


# ---- money ---------------------------------------------------------------------------------------------------------


def dear(chat: Chat) -> Answer:
    """`adds`, at 400 and 100 tokens a turn, by a server that states no cost."""
    said = adds(chat)
    counted = {"usage": (400, 100), "cost_usd": None}
    return Answer(said, **counted) if isinstance(said, str) else Answer(calls=[said], **counted)


def test_the_budget_is_never_exceeded_and_what_was_finished_is_kept(project: Path, roll: Generate) -> None:
    more = ("--all", "--price", "10/100", "--max-tokens", "100", "--max-cost", "0.1", "--concurrency", "3")
    outcome, chats = with_script(roll, dear, *more)
    assert outcome.code == 3
    result = outcome.result
    assert result["cost_usd"] == pytest.approx(0.014 * len(chats))
    assert 0.028 <= result["cost_usd"] + result["maybe_billed_usd"] <= 0.1
    assert "--max-cost 0.1 USD is reached" in result["stopped_because"]
    finished = [record for record in written() if record["completed"] is True]
    assert len(finished) == result["complete"] >= 1
    for record in written():
        if record["completed"] is not True:
            assert (record["completed"], record["provenance"]["reason"]) == ("error", "stopped")


def test_a_run_that_its_budget_stopped_goes_on_with_a_fresh_one(project: Path, roll: Generate) -> None:
    more = ("--all", "--price", "10/100", "--max-tokens", "100", "--max-cost", "0.1", "--concurrency", "3")
    with scripted_teacher(dear) as teacher:
        codes = [roll(*options(teacher, *more)).code]
        while codes[-1] == 3 and len(codes) < 10:
            codes.append(roll(*options(teacher, *more)).code)
    assert codes[-1] == 0
    assert [record["index"] for record in written()] == list(range(10))
    assert all(record["completed"] is True for record in written())
    assert len(teacher.chats) <= 20 + 3 * len(codes)  # only what was cut off is asked again


def test_answers_that_were_lost_count_into_the_budget_at_their_worst_case(project: Path, roll: Generate) -> None:
    broken = Reply(200, b'{"choices": [{"message": {"content": "half an ans')
    more = ("--all", "--price", "10/100", "--max-tokens", "100", "--max-cost", "0.1", "--retries", "99")
    outcome, chats = with_script(roll, lambda chat: broken, *more)
    assert outcome.code == 3
    assert outcome.result["maybe_billed"] == len(chats)
    assert 0.05 < outcome.result["maybe_billed_usd"] <= 0.1


def test_answers_whose_tokens_nobody_counts_are_taken_at_their_worst_case(project: Path, roll: Generate) -> None:
    more = ("--all", "--price", "10/100", "--max-tokens", "100", "--max-cost", "0.1")
    outcome, chats = with_script(roll, lambda chat: Answer("The answer is 2.", usage=None), *more)
    assert outcome.code == 3
    assert 1 <= len(chats) <= 9  # each may have cost 0.01 and its prompt
    assert outcome.result["cost_usd"] is None
    assert 0.05 < outcome.result["maybe_billed_usd"] <= 0.1


def test_the_price_is_taken_from_the_providers_list(project: Path, roll: Generate) -> None:
    with scripted_teacher(dear, price=(0.00001, 0.0001)) as teacher:
        outcome = roll(*options(teacher, "--all", "--max-tokens", "100", "--max-cost", "0.1"))
    assert outcome.code == 3
    assert outcome.result["cost_usd"] == pytest.approx(0.014 * len(teacher.chats))
    assert outcome.result["cost_usd"] <= 0.1


def test_a_prompt_that_alone_may_exceed_the_budget_is_failed_unasked(project: Path, roll: Generate) -> None:
    outcome, chats = with_script(roll, adds, "-n", "3", "--price", "10/100", "--max-cost", "0.3")
    assert (outcome.code, chats) == (1, [])
    assert outcome.result["failures"] == {"over_budget": 3}
    assert "lower --max-tokens" in outcome.stderr


def test_a_budget_without_a_price_is_refused_before_anything_is_asked(project: Path, roll: Generate) -> None:
    outcome, chats = with_script(roll, adds, "--max-cost", "1")
    assert (outcome.code, chats, files()) == (2, [], [])
    assert "--price" in outcome.stderr


@pytest.mark.parametrize("price", [None, "10/100"])
def test_a_dry_run_asks_nothing_writes_nothing_and_shows_the_tools_and_the_worst_case(
    project: Path, roll: Generate, price: str | None
) -> None:
    more = ("--price", price) if price else ()
    outcome, chats = with_script(roll, adds, "--all", "--samples", "2", "--max-turns", "3", "--dry-run", *more)
    assert (outcome.code, chats) == (0, [])
    assert sorted(path.name for path in project.iterdir()) == ["tools.py", "train.jsonl"]
    result = outcome.result
    assert (result["status"], result["prompts"], result["rollouts_to_run"]) == ("dry_run", 10, 20)
    assert result["tools"] == ["add", "fail", "nap"]
    assert result["worst_case_tokens"] == [60 * 32768, 60 * 4096]
    assert result["prompt_tokens_estimate"] > 100
    assert "tools       3: add, fail, nap" in outcome.stderr
    if price:
        assert result["worst_case_usd"] == pytest.approx((60 * 32768 * 10 + 60 * 4096 * 100) / 1e6)
    else:
        assert result["worst_case_usd"] is None
        assert "cost        unknown" in outcome.stderr


def test_a_dry_run_says_how_many_prompts_nothing_will_judge(project: Path, roll: Generate) -> None:
    rows = [{"question": f"q{number}: ?", "answer": "4"} for number in range(3)]
    write_rows(project / "train.jsonl", [*rows, {"question": "q3: ?"}, {"question": "q4: ?", "expected_answer": 6}])
    asking = ("--all", "--prompt-key", "question", "--dry-run")
    outcome, _ = with_script(roll, adds, *asking)
    assert (outcome.result["prompts"], outcome.result["without_expected_answer"]) == (5, 4)
    assert outcome.result["unused_answer_keys"] == {"answer": 3}
    assert "4 of 5 prompts have no expected_answer: any final answer counts as a success" in outcome.stderr
    assert '3 have "answer", which is not compared: name it expected_answer' in outcome.stderr
    (project / "judge.py").write_text("def fine(args, messages):\n    return 1.0\n")
    for more in (("--check", "none"), ("--rewards", "judge.py"), ("-e", "4")):
        told, _ = with_script(roll, adds, *(more if more[0] == "-e" else asking[:1] + more), *asking[1:])
        assert told.result["without_expected_answer"] == 0
        assert "any final answer counts" not in told.stderr


def test_a_dry_run_knows_what_is_there_and_expects_the_same_again(project: Path, roll: Generate) -> None:
    with scripted_teacher(adds) as teacher:
        roll(*options(teacher, "-n", "2"))
        before = states()
        result = roll(*options(teacher, "--all", "--dry-run")).result
    assert (result["rollouts_wanted"], result["rollouts_there"], result["rollouts_to_run"]) == (10, 2, 8)
    assert result["expected_usd"] == pytest.approx(8 * 0.002)
    assert states() == before


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_every_rollout_has_a_line_in_logs_and_in_the_events(project: Path, roll: Generate) -> None:
    with scripted_teacher(lambda chat: adds(chat) if number_of(chat) else refusal(400, "not this one")) as teacher:
        arguments = [
            word for word in options(teacher, "-n", "2", "--samples", "2") if word not in ("--progress", "off")
        ]
        outcome = roll(*arguments, "--progress", "lines", "--events", "events.jsonl")
    for line in (
        r"^0: error: invalid_request: 400: not this one, 0 turns",
        r"^1#1: final_answer, success, 2 turns, .* s",
    ):
        assert re.search(line, outcome.stderr, re.MULTILINE), outcome.stderr
    events = [json.loads(line) for line in (project / "events.jsonl").read_bytes().splitlines()]
    assert any("final_answer, success" in event.get("text", "") for event in events)
    assert (events[-1]["event"], events[-1]["done"], events[-1]["failed"]) == ("end", 2, 2)


def test_what_the_users_own_code_prints_does_not_mix_with_the_result(project: Path, roll: Generate) -> None:
    (project / "tools.py").write_text(
        'print("tools at work")\n\n\ndef add(a: int, b: int) -> int:\n    """Add."""\n'
        '    print("adding")\n    return a + b\n'
    )
    (project / "rewards.py").write_text('def good(args, messages):\n    print("judging")\n    return 1\n')
    outcome, _ = with_script(roll, adds, "--rewards", "rewards.py")
    assert outcome.result["success_rate"] == 1.0  # stdout holds this object and nothing else
    for word in ("tools at work", "adding", "judging"):
        assert word in outcome.stderr


# ---- tool servers --------------------------------------------------------------------------------------------------


def served(behaviour: str = "plain") -> str:
    return shlex.join(command(behaviour))


def with_servers(roll: Generate, script: Script, *arguments: str) -> Outcome:
    with scripted_teacher(script) as teacher:
        return roll(*teacher.options, "--progress", "off", "--concurrency", "3", *arguments)


def test_a_tool_servers_session_lasts_as_long_as_its_rollout(project: Path, roll: Generate) -> None:
    def counts(chat: Chat) -> Call | str:
        return Call("count", {"turn": chat.turn}) if chat.turn < 3 else f"The answer is {number_of(chat) + 2}."

    outcome = with_servers(roll, counts, "-n", "4", "--mcp-command", served())
    assert outcome.code == 0, outcome.stderr
    for record in written():
        results = [message["content"] for message in record["conversation"] if message["role"] == "tool"]
        assert results == ["1", "2", "3"]  # a server of its own, kept between turns


def test_servers_are_taken_from_a_file_and_one_session_may_serve_all(project: Path, roll: Generate) -> None:
    program, *arguments = command("plain")
    servers = {"mcpServers": {"numbers": {"command": program, "args": arguments}}}
    (project / "mcp.json").write_text(json.dumps(servers))

    def counts(chat: Chat) -> Call | str:
        return Call("count") if chat.turn == 0 else "Counted."

    flags = ("--mcp-servers", "mcp.json", "--mcp-shared", "--allow-tools", "co*,add", "--deny-tools", "add")
    outcome = with_servers(roll, counts, "-n", "3", *flags)
    assert outcome.code == 0, outcome.stderr
    results = {message["content"] for one in written() for message in one["conversation"] if message["role"] == "tool"}
    assert results == {"1", "2", "3"}
    assert {tuple(one["provenance"]["tool_names"]) for one in written()} == {("count",)}


def test_a_tool_server_that_dies_ends_its_rollout_and_no_other(project: Path, roll: Generate) -> None:
    def kills(chat: Chat) -> Call | str:
        return Call("die", {}) if number_of(chat) == 1 and chat.turn == 0 else adds(chat)

    outcome = with_servers(roll, kills, "-n", "4", "--mcp-command", served())
    assert outcome.code == 1
    assert [record["completed"] for record in written()] == [True, "error", True, True]
    assert written()[1]["provenance"]["reason"] == "tools_gone"
    assert "told to die" in written()[1]["error"]


def test_tools_of_the_same_name_are_told_apart_by_their_servers(project: Path, roll: Generate) -> None:
    write_rows(project / "train.jsonl", [task(0), task(1, tools=["add"])])

    def both(chat: Chat) -> Call | str:
        adders = [name for name in chat.tools if name.endswith("add")]
        assert len(adders) == 2
        if chat.turn < 2:
            return Call(adders[chat.turn], {"a": number_of(chat), "b": 2})
        return f"The answer is {chat.results[0] if chat.results[0] == chat.results[1] else 'unclear'}."

    outcome = with_servers(roll, both, "--all", "--mcp-command", served(), "--tools", "tools.py")
    assert outcome.code == 0, outcome.stderr
    assert [record["success"] for record in written()] == [True, True]
    assert len(written()[1]["tools"]) == 2


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGKILL]]
)
def test_no_tool_server_outlives_its_run_however_that_ends(project: Path, signals: list[signal.Signals]) -> None:
    servers: dict[int, int] = {}  # process of the tool server, by prompt
    ended_already = threading.Event()

    def asks_for_the_process(chat: Chat) -> Call | str:
        if chat.turn == 0:
            return Call("pid", {})
        servers[number_of(chat)] = int(chat.results[0])
        ended_already.wait(10)
        return "Too late."

    with scripted_teacher(asks_for_the_process) as teacher:
        arguments = [*teacher.options, "-n", "3", "--concurrency", "3", "--mcp-command", served(), "--progress", "off"]
        process = start(project, *arguments, script=SCRIPT)
        assert soon(lambda: len(servers) == 3)
        for number in signals:
            os.kill(process.pid, number)
            time.sleep(0.1)
        outcome = ended(process)
        ended_already.set()
    assert outcome.code == (-signal.SIGKILL if signal.SIGKILL in signals else 130)
    assert soon(lambda: not any(is_alive(server) for server in servers.values()))
    cut_off = [(record["completed"], record["turns"]) for record in written(project / "rollouts")]
    assert cut_off == ([] if signal.SIGKILL in signals else [(False, 1)] * 3)


def soon(holds: Callable[[], bool], within_s: float = 15) -> bool:
    """Whether it comes to hold."""
    end = time.monotonic() + within_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def is_alive(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("behaviour", ["exits", "badlist"])
def test_a_tool_server_that_cannot_be_used_is_refused_before_anything_is_asked(
    project: Path, roll: Generate, behaviour: str
) -> None:
    outcome, chats = with_script(roll, adds, "--mcp-command", served(behaviour))
    assert (outcome.code, chats, files()) == (2, [], [])
    assert "Traceback" not in outcome.stderr


# ---- a disk that is full, a folder that is gone --------------------------------------------------------------------


def test_a_full_disk_stops_the_run_and_keeps_what_was_finished(project: Path) -> None:
    (project / "tools.py").write_text(
        'def add(a: int, b: int) -> str:\n    """Add."""\n    return "long " * (8000 if a > 4 else 1)\n'
    )

    def small_disk() -> None:  # no file may pass 20,000 bytes: like a full disk, but for this process alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    with scripted_teacher(adds) as teacher:
        arguments = options(teacher, "--all", "--concurrency", "2", "--json")
        outcome = ended(start(project, *arguments, script=SCRIPT, preexec=small_disk))
    assert outcome.code == 3, outcome.stderr
    assert "cannot be written: File too large" in outcome.result["stopped_because"]
    assert "Traceback" not in outcome.stderr
    assert len(teacher.chats) <= 2 * 6 + 2  # nothing new was begun, and nothing that could not be kept went on
    rollouts = project / "rollouts"
    kept = written(rollouts)  # the finished ones, and at most what the one beside the full disk had got to
    assert sum(record["completed"] is True for record in kept) == outcome.result["complete"] >= 4
    assert len(kept) <= outcome.result["complete"] + 1
    assert sorted(path.name for path in rollouts.iterdir() if path.suffix != ".json") == [".lock"]


def test_a_folder_that_is_removed_under_a_run_stops_it(project: Path, roll: Generate) -> None:
    def removes(chat: Chat) -> Call | str:
        if number_of(chat) == 1:
            shutil.rmtree("rollouts", ignore_errors=True)
        return adds(chat)

    outcome, chats = with_script(roll, removes, "--all", "--concurrency", "1")
    assert outcome.code == 3
    assert "rollouts does not exist" in outcome.result["stopped_because"]
    assert len(chats) <= 5


# ---- everything at once --------------------------------------------------------------------------------------------


def well_formed(conversation: list[dict[str, Any]], ended: str) -> bool:
    """Whether every call has its result, in order and at once; the last turn of an unfinished rollout may lack them."""
    waiting: list[str] = []
    for message in conversation:
        if message["role"] == "tool":
            if not waiting or message["tool_call_id"] != waiting.pop(0):
                return False
        elif waiting:
            return False
        waiting = waiting or [call["id"] for call in message.get("tool_calls", ())]
    return not waiting or ended != "final_answer"


@pytest.mark.parametrize("seed", range(3))
def test_whatever_goes_wrong_runs_lead_to_one_sound_file_for_every_rollout(
    project: Path, roll: Generate, seed: int
) -> None:
    dice = random.Random(seed)
    write_rows(project / "train.jsonl", [task(number) for number in range(20)])
    troubles = [
        refusal(429, "slow down"),
        refusal(500, "oops"),
        refusal(400, "not this one"),
        Reply(200, b'{"choices": [{"mess'),
        Reply(200, b'{"choices": [{"message": {"content": ""}}], "usage": {"prompt_tokens": 9, "cost": 0.0005}}'),
    ]
    calls = [
        Call("add", {"a": 1, "b": 2}),
        Call("add", '{"a": 1'),
        Call("add", {"a": "x"}),
        Call("fail", {"why": "no"}),
        Call("unknown", {}),
        Call("nap", {"seconds": 0.001}),
    ]

    def chaos(chat: Chat) -> Answer | Reply:
        if dice.random() < 0.2:
            return dice.choice(troubles)
        if chat.turn < 6 and dice.random() < 0.7:
            return Answer("Hm.", calls=dice.choices(calls, k=dice.randint(1, 3)))
        finish_reason = "length" if dice.random() < 0.1 else "stop"
        return Answer(f"The answer is {number_of(chat) + 2}.", finish_reason=finish_reason)

    more = (
        "--all",
        "--samples",
        "2",
        "--concurrency",
        "8",
        "--price",
        "10/100",
        "--max-tokens",
        "100",
        "--retries",
        "1",
    )
    with scripted_teacher(chaos) as teacher:
        for _ in range(40):
            outcome = roll(*options(teacher, *more, "--max-cost", "0.15"))
            assert outcome.code in (0, 1, 3), outcome.stderr
            result = outcome.result
            assert result["cost_usd"] + result["maybe_billed_usd"] <= 0.15 + 1e-9
            records = written()
            assert len({record["provenance"]["key"] for record in records}) == len(records)
            assert all(well_formed(record["conversation"], record["provenance"]["ended"]) for record in records)
            assert sum(record["completed"] is True for record in records) == result["complete"]
            if outcome.code == 0:
                break
    assert outcome.code == 0
    found = [(record["index"], record["provenance"]["sample"]) for record in written()]
    assert found == [(index, sample) for index in range(20) for sample in range(2)]


# ---- nothing is left behind ----------------------------------------------------------------------------------------


@pytest.fixture
def sockets() -> Iterator[None]:
    """After the test no more files and sockets are open than before."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_many_rollouts_at_once_leave_no_socket_open(project: Path, roll: Generate, sockets: None) -> None:
    write_rows(project / "train.jsonl", [task(number) for number in range(60)])
    outcome, chats = with_script(roll, adds, "--all", "--concurrency", "30")
    assert (outcome.code, len(files()), len(chats)) == (0, 60, 120)
    assert outcome.result["success_rate"] == 1.0
