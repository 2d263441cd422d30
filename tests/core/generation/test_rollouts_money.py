"""`run_rollouts`: what is paid must not be paid in vain, and trouble beside a rollout must not reach it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Generate
from tests.support.running import Reply, write_rows
from tests.support.scripted_teacher import Answer, Call, Chat, scripted_teacher

TOOLS = '''
import asyncio
import time


def look_up(term: str) -> str:
    """Look a term up."""
    return f"{term} at {time.monotonic_ns()}"


def nap(seconds: float) -> str:
    """Sleep."""
    time.sleep(seconds)
    return "rested"


async def give_up() -> str:
    """Cancel itself."""
    raise asyncio.CancelledError
'''


@pytest.fixture
def project(folder: Path) -> Path:
    (folder / "tools.py").write_text(TOOLS)
    rows = [
        {"messages": [{"role": "user", "content": f"Question {n}"}], "metadata": {"expected_answer": str(n)}}
        for n in range(6)
    ]
    write_rows(folder / "train.jsonl", rows)
    return folder


def rollouts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted((folder / "rollouts").glob("*.json"))]


def seven_turns(chat: Chat) -> Answer:
    if chat.turn < 6:
        return Answer(calls=[Call("look_up", {"term": str(chat.turn)})], usage=(500, 250), cost_usd=None)
    return Answer(chat.question.split()[1], usage=(500, 250), cost_usd=None)


def test_a_tight_budget_finishes_some_rollouts_instead_of_beginning_all(project: Path, roll: Generate) -> None:
    # A turn costs 500 x 1 + 250 x 2 = 1,000 millionths of a dollar, a rollout 7 of them: 0.007.
    with scripted_teacher(seven_turns) as teacher:
        arguments = (*teacher.options, "--all", "-c", "6", "--tools", "tools.py", "--price", "1/2")
        budget = ("--max-cost", "0.02", "--max-tokens", "300", "--max-context", "2000")
        first = roll(*arguments, *budget)
        assert first.code == 3
        assert first.result["cost_usd"] <= 0.02
        assert first.result["complete"] >= 1
        finished = first.result["complete"]
        second = roll(*arguments, *budget)
        assert second.result["complete"] > finished
        assert second.result["cost_usd"] <= 0.02


def test_a_web_page_in_the_middle_fails_no_neighbour(project: Path, roll: Generate) -> None:
    pages = 0

    def script(chat: Chat) -> str | Reply:
        nonlocal pages
        if chat.question == "Question 3" and pages < 2:
            pages += 1
            return Reply(200, b"<html>gateway</html>", {"content-type": "text/html"})
        return chat.question.split()[1]

    with scripted_teacher(script) as teacher:
        outcome = roll(*teacher.options, "--all", "-c", "1")
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["successes"] == 6


def test_rollouts_at_which_a_reward_failed_are_judged_again_and_nothing_is_asked(project: Path, roll: Generate) -> None:
    rewards = project / "rewards.py"
    right = (
        "def accuracy(args, messages):\n    return float(messages[-1]['content'] == args.metadata['expected_answer'])\n"
    )
    rewards.write_text(right.replace("expected_answer", "expectd"))
    with scripted_teacher(lambda chat: chat.question.split()[1]) as teacher:
        arguments = (*teacher.options, "--all", "--rewards", "rewards.py")
        broken = roll(*arguments)
        assert broken.result["successes"] == 0
        assert "KeyError" in " ".join(broken.result["advice"])
        asked = len(teacher.chats)
        rewards.write_text(right)
        mended = roll(*arguments)
        assert len(teacher.chats) == asked
    assert "judged again: 6 finished rollouts, 6 of them successes" in mended.stderr
    for record in rollouts(project):
        assert record["success"] is True
        assert record["rewards"] == {"accuracy": 1.0}
        assert record["errors"] == []
        assert list(record)[-1] == "conversation"


def test_a_higher_turn_limit_runs_those_again_that_it_had_ended(project: Path, roll: Generate) -> None:
    with scripted_teacher(seven_turns) as teacher:
        arguments = (*teacher.options, "-n", "3", "--tools", "tools.py")
        low = roll(*arguments, "--max-turns", "2")
        assert low.result["outcomes"] == {"max_turns": 3}
        assert roll(*arguments, "--max-turns", "2").result["rollouts"] == 0
        high = roll(*arguments, "--max-turns", "10")
    assert high.result["outcomes"] == {"final_answer": 3}
    assert len(rollouts(project)) == 3


def test_a_call_that_comes_as_text_is_no_answer(project: Path, roll: Generate) -> None:
    text = '<tool_call>\n{"name": "look_up", "arguments": {"term": "x"}}\n</tool_call>'
    with scripted_teacher(lambda chat: text) as teacher:
        outcome = roll(*teacher.options, "--tools", "tools.py")
    assert outcome.result["failures"] == {"tool_calls_as_text": 1}
    assert "tool parser" in " ".join(outcome.result["advice"])


def test_a_tool_that_cancels_itself_is_a_failed_call(project: Path, roll: Generate) -> None:
    with scripted_teacher(lambda chat: "0" if chat.results else Call("give_up")) as teacher:
        outcome = roll(*teacher.options, "--tools", "tools.py")
    assert outcome.result["successes"] == 1
    assert outcome.result["tool_errors"] == {"give_up": 1}


def test_the_time_limit_of_a_rollout_holds_within_a_turn(project: Path, roll: Generate) -> None:
    naps = Answer(calls=[Call("nap", {"seconds": 30})])
    with scripted_teacher(lambda chat: naps) as teacher:
        outcome = roll(*teacher.options, "--tools", "tools.py", "--rollout-timeout", "1", "--progress", "off")
    assert outcome.result["failures"] == {"rollout_timeout": 1}
    assert outcome.result["seconds"] < 5


def test_words_of_a_server_cannot_steer_the_terminal(project: Path, roll: Generate) -> None:
    body = json.dumps({"error": {"message": "bad \x1b[2J\x1b]0;title\x07\nnext line"}}).encode()
    with scripted_teacher(lambda chat: Reply(400, body)) as teacher:
        outcome = roll(*teacher.options)
    assert outcome.result["failures"] == {"invalid_request": 1}
    assert "\x1b" not in outcome.stderr
    assert "\x07" not in outcome.stderr
