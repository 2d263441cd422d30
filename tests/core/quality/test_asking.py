"""Questions to models: one budget, every answer kept, none paid twice. The models are servers on this machine."""

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core.commands.teacher import TeacherOptions
from core.data.run import Run
from core.errors import BudgetReached, TeacherError, TeacherUnavailable, UsageError
from core.quality.asking import ANSWERS, NOT_ASKED, Asking, Estimate, Question, Respondent
from core.teachers import Completion, Sampling
from tests.support.running import read_rows
from tests.support.scripted_teacher import Answer, Call, Chat, ScriptedTeacher, refusal, scripted_teacher
from tests.support.tiny_model import make_tiny_model

GREEDY = Sampling(5, temperature=0.0)
DEAR = (0.0, 0.001)
"""USD per token: an answer of at most 5 tokens costs 0.005 at most, and the script's answers say 0.001."""


def echo(chat: Chat) -> str:
    return f"answer to {chat.question}"


def options_of(server: ScriptedTeacher, **more: Any) -> TeacherOptions:
    given = {"model": server.model, "base_url": server.base_url, "concurrency": 1, "retries": 0}
    return TeacherOptions.model_validate(given | more)


def questions(*texts: str) -> list[Question]:
    return [Question([{"role": "user", "content": text}]) for text in texts]


class Asked:
    """What came of one run of a check that asks one model."""

    def __init__(
        self,
        folder: Path,
        options: TeacherOptions,
        asked: Sequence[Question],
        *,
        run: Run | None = None,
        sampling: Sampling = GREEDY,
        **more: Any,
    ) -> None:
        self.run = run or Run()
        self.found: list[Completion | TeacherError] = []
        asyncio.run(self._ask(folder, options, asked, sampling, {"max_cost": None} | more))

    async def _ask(
        self, folder: Path, options: TeacherOptions, asked: Sequence[Question], sampling: Sampling, more: Any
    ) -> None:
        async with Asking(folder, self.run, **more) as self.asking:
            self.who = await self.asking.open(options, "teacher")
            self.found = await self.asking.ask(self.who, asked, sampling)

    @property
    def texts(self) -> list[str]:
        """Answers, and the reasons of those that there are not."""
        return [each.text if isinstance(each, Completion) else each.reason for each in self.found]


@pytest.fixture(autouse=True)
def no_keys(folder: Path) -> None:
    """An empty folder and no keys around every test."""


def test_answers_come_in_order_and_equal_questions_are_asked_once(tmp_path: Path):
    with scripted_teacher(echo) as server:
        asked = Asked(tmp_path, options_of(server, concurrency=4), questions("a", "b", "a", "c"))
        assert asked.texts == ["answer to a", "answer to b", "answer to a", "answer to c"]
        assert sorted(chat.question for chat in server.chats) == ["a", "b", "c"]
    assert asked.who.model.model_dump() == {
        "role": "teacher", "name": "scripted/model", "backend": "openai", "requests": 3, "cached": 0,
        "usd": pytest.approx(0.003),
    }  # fmt: skip
    assert all(chat.body["temperature"] == 0 and chat.body["max_tokens"] == 5 for chat in server.chats)


def test_the_same_run_again_asks_nothing_and_a_larger_one_only_what_is_new(tmp_path: Path):
    with scripted_teacher(echo) as server:
        options = options_of(server)
        Asked(tmp_path, options, questions("a", "b"))
        again = Asked(tmp_path, options, questions("a", "b"))
        assert again.texts == ["answer to a", "answer to b"]
        assert (again.who.requests, again.who.cached, again.who.known_usd) == (2, 2, None)
        assert len(server.chats) == 2
        Asked(tmp_path, options, questions("b", "c", "a"))
        assert [chat.question for chat in server.chats] == ["a", "b", "c"]
        # Another model and other sampling are other questions.
        Asked(tmp_path, options.model_copy(update={"model": "other/model"}), questions("a"))
        Asked(tmp_path, options, questions("a"), sampling=Sampling(6, temperature=0.0))
        assert [chat.question for chat in server.chats[3:]] == ["a", "a"]
    assert len(read_rows(tmp_path / ANSWERS)) == 5


def test_a_budget_holds_over_all_models_and_what_came_is_kept(tmp_path: Path):
    # Answers: 0.005 reserved, 0.001 paid. Under 0.0065 the third would reach 0.002 + 0.005 = 0.007.
    async def both(max_cost: float) -> tuple[list[Completion | TeacherError], list[Completion | TeacherError], Asking]:
        async with Asking(tmp_path, Run(), max_cost=max_cost) as asking:
            teacher = await asking.open(options_of(server), "teacher")
            judge = await asking.open(options_of(other), "judge")
            found = await asking.ask(teacher, questions("a", "b", "c"), GREEDY)
            return found, await asking.ask(judge, questions("d"), GREEDY), asking

    with scripted_teacher(echo, DEAR) as server, scripted_teacher(echo, DEAR) as other:
        found, judged, asking = asyncio.run(both(0.0065))
        assert [isinstance(each, Completion) for each in found] == [True, True, False]
        assert isinstance(asking.stopped, BudgetReached)
        assert isinstance(judged[0], TeacherError)
        assert judged[0].reason == NOT_ASKED
        assert "--max-cost 0.0065 USD is reached" in str(judged[0])
        assert (len(server.chats), len(other.chats)) == (2, 0)
        assert asking.spending.known == pytest.approx(0.002)
        # With the same budget anew the third is paid, and the judge: 0.001 + 0.005 < 0.0065.
        found, judged, asking = asyncio.run(both(0.0065))
        assert all(isinstance(each, Completion) for each in (*found, *judged))
        assert asking.stopped is None
        assert (len(server.chats), len(other.chats)) == (3, 1)
        # One budget: under 0.0055 the judge's 0.005 do not fit beside what the teacher cost.
        folder = tmp_path / "one"

        async def teacher_then_judge() -> list[Completion | TeacherError]:
            async with Asking(folder, Run(), max_cost=0.0055) as asking:
                teacher = await asking.open(options_of(server), "teacher")
                judge = await asking.open(options_of(other), "judge")
                await asking.ask(teacher, questions("a"), GREEDY)
                return await asking.ask(judge, questions("d"), GREEDY)

        assert isinstance(asyncio.run(teacher_then_judge())[0], TeacherError)
        assert len(other.chats) == 1


def test_a_budget_without_a_price_is_refused_with_the_option_that_names_one(tmp_path: Path):
    with scripted_teacher(echo) as server, pytest.raises(UsageError, match="Add --teacher-price PROMPT/COMPLETION"):
        Asked(tmp_path, options_of(server), questions("a"), max_cost=1.0)
    assert server.chats == []


def test_what_one_question_fails_with_does_not_touch_the_others(tmp_path: Path):
    def script(chat: Chat) -> Any:
        if chat.question == "bad":
            return refusal(400, "no such thing")
        return Call("search", {"q": "x"}) if chat.question == "tool" else echo(chat)

    with scripted_teacher(script) as server:
        asked = Asked(tmp_path, options_of(server), questions("a", "bad", "tool", "b"))
        assert asked.texts == ["answer to a", "invalid_request", "tool_calls", "answer to b"]
        assert asked.asking.stopped is None
        assert asked.who.known_usd == pytest.approx(0.003)  # a call of a tool is paid as well
        # What failed is asked again another time, and only that.
        Asked(tmp_path, options_of(server), questions("a", "bad", "tool", "b"))
        assert [chat.question for chat in server.chats[4:]] == ["bad", "tool"]


def test_tools_go_to_the_model_and_are_part_of_the_question(tmp_path: Path):
    tool = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
    plain = questions("a")[0]
    with scripted_teacher(echo) as server:
        Asked(tmp_path, options_of(server), [plain, Question(plain.messages, (tool,))])
        assert [chat.tools for chat in server.chats] == [[], ["search"]]


def test_a_wrong_key_is_an_error_of_usage_only_while_nothing_was_answered(tmp_path: Path):
    async def teacher_then_judge() -> Asking:
        async with Asking(tmp_path / "two", Run(), max_cost=None) as asking:
            teacher = await asking.open(options_of(good), "teacher")
            judge = await asking.open(options_of(server), "judge")
            assert isinstance((await asking.ask(teacher, questions("a"), GREEDY))[0], Completion)
            assert isinstance((await asking.ask(judge, questions("a"), GREEDY))[0], TeacherError)
            return asking

    with scripted_teacher(lambda chat: refusal(401, "no such key")) as server, scripted_teacher(echo) as good:
        with pytest.raises(UsageError, match="no such key"):
            Asked(tmp_path, options_of(server), questions("a"))
        assert isinstance(asyncio.run(teacher_then_judge()).stopped, TeacherUnavailable)


def test_ctrl_c_keeps_what_came_and_begins_nothing_more(tmp_path: Path):
    run = Run()

    def script(chat: Chat) -> str:
        if chat.number == 1:
            run.stop.ask()
        return echo(chat)

    with scripted_teacher(script) as server:
        asked = Asked(tmp_path, options_of(server), questions("a", "b", "c", "d"), run=run)
        assert asked.texts == ["answer to a", "answer to b", NOT_ASKED, NOT_ASKED]
        assert asked.asking.ended
        assert asked.asking.stopped is None
        assert Asked(tmp_path, options_of(server), questions("a", "b", "c", "d")).texts[2:] == [
            "answer to c", "answer to d",
        ]  # fmt: skip
        assert [chat.question for chat in server.chats] == ["a", "b", "c", "d"]


def test_a_dry_run_asks_nothing_touches_nothing_and_knows_what_is_there(tmp_path: Path):
    async def estimated(folder: Path) -> Estimate:
        async with Asking(folder, Run(), max_cost=None, dry_run=True) as asking:
            teacher = await asking.open(options_of(server), "teacher")
            return asking.estimate(teacher, questions("a", "b", "b"), GREEDY, more_tokens=7)

    with scripted_teacher(echo, (0.01, 0.001)) as server:
        asked = questions("b")[0]
        # [[{"role":"user","content":"b"}],[]] has 36 bytes, and a message is 16 tokens more at most: 52
        assert asked.most_tokens == 36 + 16
        found = asyncio.run(estimated(tmp_path / "none"))
        assert (found.requests, found.cached) == (2, 0)
        assert found.worst_usd == pytest.approx(2 * (0.01 * (52 + 7) + 0.001 * 5))
        assert server.chats == []
        assert list(tmp_path.iterdir()) == []
        Asked(tmp_path / "some", options_of(server), questions("b"))
        found = asyncio.run(estimated(tmp_path / "some"))
        assert (found.requests, found.cached) == (1, 2)
    assert Estimate(1, 2, 0.5) + Estimate(3, 4, 0.25) == Estimate(4, 6, 0.75)
    assert (Estimate(1, 2, 0.5) + Estimate(3, 4, None)).worst_usd is None


def test_a_file_of_answers_has_one_writer(tmp_path: Path):
    async def twice() -> None:
        async with Asking(tmp_path, Run(), max_cost=None), Asking(tmp_path, Run(), max_cost=None):
            pass

    with pytest.raises(UsageError, match="another run is writing"):
        asyncio.run(twice())


def test_somebody_elses_file_is_left_alone(tmp_path: Path):
    (tmp_path / ANSWERS).write_text(json.dumps({"mine": 1}) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="not an answer of ours"):
        Asking(tmp_path, Run(), max_cost=None)
    assert json.loads((tmp_path / ANSWERS).read_text(encoding="utf-8")) == {"mine": 1}


def test_a_model_here_is_asked_and_trained_anew_it_is_another_one(tmp_path: Path):
    model = make_tiny_model(tmp_path / "model")
    options = TeacherOptions(model=str(model), device_map="cpu", threads=1)
    first = Asked(tmp_path, options, questions("What is the capital of France?"))
    assert isinstance(first.found[0], Completion)
    assert first.who.known_usd == 0.0
    assert Asked(tmp_path, options, questions("What is the capital of France?")).who.cached == 1
    os.utime(model / "model.safetensors", (1, 1))
    assert Asked(tmp_path, options, questions("What is the capital of France?")).who.cached == 0


def test_an_answer_that_says_no_cost_leaves_the_cost_unknown(tmp_path: Path):
    with scripted_teacher(lambda chat: Answer("yes", cost_usd=None)) as server:
        assert Asked(tmp_path, options_of(server), questions("a")).who.model.usd is None
        # With a price it is computed: 10 tokens in, 5 out
        priced = Asked(tmp_path, options_of(server, price="3/15"), questions("b"))
        assert priced.who.model.usd == pytest.approx((10 * 3 + 5 * 15) / 1e6)


def test_a_released_model_can_be_left_without_harm(tmp_path: Path):
    async def released() -> Respondent:
        async with Asking(tmp_path, Run(), max_cost=None) as asking:
            who = await asking.open(options_of(server), "teacher")
            await asking.ask(who, questions("a"), GREEDY)
            await asking.release(who)
            await asking.release(who)
            return who

    with scripted_teacher(echo) as server:
        assert asyncio.run(released()).teacher is None
