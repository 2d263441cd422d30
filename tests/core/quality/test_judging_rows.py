"""What a judge says of stored answers and of new ones beside them. The judges are servers on this machine."""

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.commands.teacher import TeacherOptions
from core.data.run import Run
from core.errors import BudgetReached, InputError
from core.quality.asking import Asking, Estimate
from core.quality.judging_rows import Judged, estimate, grade_and_compare, opinions, read_rubric
from core.quality.teaching import Sample, choose
from core.teachers.judging import RUBRIC, THINKING_TOKENS, VERDICT_TOKENS
from tests.support.entries import pairs
from tests.support.scripted_teacher import Answer, Chat, ScriptedTeacher, refusal, scripted_teacher
from tests.support.tiny_model import make_tiny_model


@pytest.fixture(autouse=True)
def no_keys(folder: Path) -> None:
    """An empty folder and no keys around every test."""


def samples_of(*answers: tuple[str, str | None]) -> list[Sample]:
    """answers: stored, new."""
    rows = pairs(*((f"Question {number}?", stored) for number, (stored, _) in enumerate(answers)))
    samples = sorted(choose(rows, len(rows), seed=0), key=lambda sample: sample.entry.index)
    for sample, (_, new) in zip(samples, answers, strict=True):
        sample.shown.new_answer = new
    return samples


def options_of(server: ScriptedTeacher, **more: Any) -> TeacherOptions:
    given = {"model": server.model, "base_url": server.base_url, "concurrency": 1, "retries": 0}
    return TeacherOptions.model_validate(given | more)


def judged_by(options: TeacherOptions, samples: Sequence[Sample], folder: Path, **more: Any) -> tuple[Judged, Asking]:
    async def ask() -> tuple[Judged, Asking]:
        async with Asking(folder, Run(), max_cost=options.max_cost) as asking:
            return await grade_and_compare(samples, asking, await asking.open(options, "judge"), **more), asking

    return asyncio.run(ask())


def shown(chat: Chat) -> dict[str, str]:
    """The texts that a judge sees, by their names: ANSWER, or ANSWER A and ANSWER B."""
    return dict(re.findall(r"^=+ (ANSWER(?: [AB])?) =+\n(.*?)\n=+ END OF", chat.question, re.DOTALL | re.MULTILINE))


def prefers(good: Callable[[str], bool]) -> Callable[[Chat], str]:
    """A judge that grades what is good with 10 and the rest with 1, and knows the better one wherever it stands."""

    def script(chat: Chat) -> str:
        texts = shown(chat)
        if "ANSWER" in texts:
            return f"Because.\nScore: {10 if good(texts['ANSWER']) else 1}"
        a, b = good(texts["ANSWER A"]), good(texts["ANSWER B"])
        return f"Because.\nBetter: {'tie' if a == b else 'A' if a else 'B'}"

    return script


def test_grades_are_shares_and_comparisons_hold_in_both_orders(tmp_path: Path):
    samples = samples_of(("good", "bad"), ("bad", "good"), ("bad", "worse"), ("good", None))
    with scripted_teacher(prefers(lambda text: text == "good")) as server:
        judged, _ = judged_by(options_of(server), samples, tmp_path)
        assert [sample.shown.judge_score for sample in samples] == [1.0, 0.0, 0.0, 1.0]
        assert [sample.shown.judge_choice for sample in samples] == [1.0, 0.0, 0.5, None]
        assert len(server.chats) == 4 + 2 * 3
        orders = [shown(chat)["ANSWER A"] for chat in server.chats[4:]]
        assert orders == ["good", "bad", "bad", "good", "bad", "worse"]
        assert all(chat.body["temperature"] == 0 for chat in server.chats)
    assert (judged.asked, judged.unreadable, judged.failed, judged.notes) == (4 + 3, 0, 0, [])
    score, win = opinions(samples)
    assert (score.name, score.value, score.of) == ("judge_score", 0.5, 4)
    assert (win.name, win.value, win.of) == ("judge_win", 0.5, 3)
    assert (win.low, win.high) == (0.0, 1.0)  # 1, 0 and a half: three rows tell nothing


def test_a_score_between(tmp_path: Path):
    samples = samples_of(("fine", None))
    with scripted_teacher(lambda chat: "Score: 7") as server:
        judged_by(options_of(server), samples, tmp_path)
    assert samples[0].shown.judge_score == pytest.approx((7 - 1) / (10 - 1))


def test_a_judge_that_goes_by_the_place_decides_nothing(tmp_path: Path):
    samples = samples_of(("one", "two"), ("three", "four"))
    with scripted_teacher(lambda chat: "Score: 5" if "Score: N" in chat.question else "Better: A") as server:
        judged_by(options_of(server), samples, tmp_path)
    assert [sample.shown.judge_choice for sample in samples] == [0.5, 0.5]


def test_equal_answers_are_a_tie_that_nobody_pays_for(tmp_path: Path):
    samples = samples_of(("The same.", " The same.\n"))
    with scripted_teacher(prefers(lambda text: True)) as server:
        judged, _ = judged_by(options_of(server), samples, tmp_path)
        assert len(server.chats) == 1
    assert (samples[0].shown.judge_choice, judged.asked) == (0.5, 1)


def test_a_verdict_that_cannot_be_read_is_counted_and_never_asked_again(tmp_path: Path):
    def script(chat: Chat) -> Any:
        texts = shown(chat)
        if "unclear" in texts.values():
            return "Well, who knows? Fine."
        return refusal(400, "no such thing") if "refused" in texts.values() else "Score: 10"

    rows = ("unclear", None), ("refused", None), ("good", None), ("better", "unclear")
    samples = samples_of(*rows)
    with scripted_teacher(script) as server:
        judged, _ = judged_by(options_of(server), samples, tmp_path)
        assert [sample.shown.judge_score for sample in samples] == [None, None, 1.0, 1.0]
        assert samples[3].shown.judge_choice is None
        assert (judged.asked, judged.unreadable, judged.failed) == (5, 2, 1)
        assert judged.notes == [
            "judge: 2 of 5 verdicts could not be read and count for nothing",
            "judge: 1 of 5 verdicts did not come",
        ]
        assert "no grade" in samples[0].shown.notes[0]
        assert "not compared" in samples[3].shown.notes[0]
        assert [one.of for one in opinions(samples)] == [2]
        asked = len(server.chats)
        again, _ = judged_by(options_of(server), samples_of(*rows), tmp_path)
        assert (again.asked, again.unreadable, again.failed) == (5, 2, 1)
        assert len(server.chats) == asked + 1  # the refusal, which is no verdict


def test_a_judge_that_thinks_first_gets_room_for_it_and_is_not_asked_twice(tmp_path: Path):
    def script(chat: Chat) -> Any:
        if chat.body["max_tokens"] > VERDICT_TOKENS:
            return "Score: 10"
        if "one" in shown(chat).values():
            return Answer("", finish_reason="length", more={"reasoning_content": "Hm ..."})
        return Answer("It is", finish_reason="length", more={"reasoning_content": "Hm ..."})  # cut off in its words

    samples = samples_of(("one", None), ("two", None))
    with scripted_teacher(script) as server:
        judged, _ = judged_by(options_of(server), samples, tmp_path)
        assert [sample.shown.judge_score for sample in samples] == [1.0, 1.0]
        assert (judged.asked, judged.unreadable, judged.failed) == (2, 0, 0)
        assert [chat.body["max_tokens"] for chat in server.chats] == [VERDICT_TOKENS] * 2 + [THINKING_TOKENS] * 2
        judged_by(options_of(server), samples_of(("one", None), ("two", None)), tmp_path)
        assert len(server.chats) == 4


def test_the_rubric_is_the_users_or_the_default(tmp_path: Path):
    file = tmp_path / "rubric.txt"
    file.write_text("Only rhymes count.\n", encoding="utf-8")
    assert read_rubric(None) == RUBRIC
    with scripted_teacher(lambda chat: "Score: 1") as server:
        judged_by(options_of(server), samples_of(("a", None)), tmp_path / "1", rubric=read_rubric(file))
        judged_by(options_of(server), samples_of(("a", None)), tmp_path / "2")
        assert ["Only rhymes count." in chat.question for chat in server.chats] == [True, False]
        assert RUBRIC in server.chats[1].question
    file.write_text(" \n", encoding="utf-8")
    with pytest.raises(InputError, match="the rubric is empty"):
        read_rubric(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_rubric(file)
    with pytest.raises(InputError, match="No such file"):
        read_rubric(tmp_path / "none.txt")


def test_a_budget_leaves_rows_without_a_verdict_and_says_so(tmp_path: Path):
    # 512 tokens at 0.001: 0.512 reserved, 0.001 paid; 0.513 allows two requests.
    samples = samples_of(("a", None), ("b", None), ("c", None))
    with scripted_teacher(lambda chat: "Score: 10", (0.0, 0.001)) as server:
        judged, asking = judged_by(options_of(server, max_cost=0.513), samples, tmp_path)
    assert isinstance(asking.stopped, BudgetReached)
    assert [sample.shown.judge_score for sample in samples] == [1.0, 1.0, None]
    assert (judged.asked, judged.failed) == (3, 1)
    assert samples[2].shown.notes == ["not asked"]


def test_what_judging_would_cost(tmp_path: Path):
    samples = samples_of(("a", "A."), ("b", None), ("same", "same"))

    async def estimated(new_tokens: int | None) -> Estimate:
        async with Asking(tmp_path / "none", Run(), max_cost=None, dry_run=True) as asking:
            return estimate(samples, asking, await asking.open(options, "judge"), RUBRIC, new_tokens)

    with scripted_teacher(lambda chat: "Score: 1") as server:
        options = options_of(server, price="0/1000")  # answers alone cost: 0.512 USD at most
        grades = asyncio.run(estimated(None))
        assert (grades.requests, grades.worst_usd) == (3, pytest.approx(3 * 0.512))
        both = asyncio.run(estimated(100))
        assert both.requests == 3 + 2 + 2  # a pair that is there, one whose new answer is to come, and an equal one
        assert both.worst_usd == pytest.approx(7 * 0.512)
        options = options_of(server, price="1000/0")
        more = (asyncio.run(estimated(100)).worst_usd or 0) - (asyncio.run(estimated(0)).worst_usd or 0)
        assert more == pytest.approx(2 * 100 * 0.001)
        assert server.chats == []


def test_of_a_verdict_that_is_cut_off_only_a_named_one_counts(tmp_path: Path):
    def script(chat: Chat) -> Any:
        named = "named" in shown(chat).values()
        return Answer("Score: 10\nAnd it rhymes, and" if named else "There are 7 reasons", finish_reason="length")

    samples = samples_of(("named", None), ("bare", None))
    with scripted_teacher(script) as server:
        judged, _ = judged_by(options_of(server), samples, tmp_path)
        assert len(server.chats) == 2  # one that babbles gets no more room for it
    assert [sample.shown.judge_score for sample in samples] == [1.0, None]
    assert (judged.unreadable, samples[1].shown.notes) == (1, ["no grade: the judge's verdict is cut off"])


def test_a_model_on_this_machine_can_be_the_judge_and_its_babble_counts_for_nothing(tmp_path: Path):
    model = make_tiny_model(tmp_path / "model", positions=4096)
    options = TeacherOptions(model=str(model), backend="hf", device_map="cpu", threads=1)
    samples = samples_of(("a", None))
    judged, asking = judged_by(options, samples, tmp_path / "report")
    assert samples[0].shown.judge_score is None
    assert (judged.asked, judged.unreadable, judged.failed) == (1, 1, 0)
    assert asking.respondents[0].model.usd == 0.0
