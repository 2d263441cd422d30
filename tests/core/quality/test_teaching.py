"""Which rows a teacher is shown, and how near its new answers come to those that are there."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from core.commands.teacher import TeacherOptions
from core.data.run import Run
from core.data.statistics import wilson
from core.errors import RequestRejected, StoppedEarly, TransientError, UsageError
from core.quality.asking import ANSWERS, NOT_ASKED, Asking
from core.quality.rows import Entry
from core.quality.teaching import Choice, Sample, answer_anew, choose, mean, overlap, take_answers, validate
from core.teachers import Completion
from tests.support.entries import entries, pairs
from tests.support.running import Mock
from tests.support.scripted_teacher import Answer, Chat, refusal, scripted_teacher


def numbered(count: int) -> list[Entry]:
    return pairs(*((f"What is {n} + 1?", f"It is {n + 1}.") for n in range(count)))


def in_order(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.entry.index)


@pytest.fixture(autouse=True)
def no_keys(folder: Path) -> None:
    """An empty folder and no keys around every test."""


# ---- which rows --------------------------------------------------------------------------------------------------


def test_the_choice_does_not_depend_on_where_rows_stand_and_larger_ones_keep_smaller_ones():
    rows = numbered(100)
    ten = [sample.entry.prompt for sample in choose(rows, 10, seed=0)]
    assert len(set(ten)) == 10
    assert ten == [sample.entry.prompt for sample in choose(reversed(rows), 10, seed=0)]
    assert ten == [sample.entry.prompt for sample in choose(rows, 30, seed=0)][:10]
    assert ten != [sample.entry.prompt for sample in choose(rows, 10, seed=1)]
    # Of 100 rows 10 are chosen; with 25 more, each stays with 100 / 125.
    more = {sample.entry.prompt for sample in choose(numbered(125), 10, seed=0)}
    assert len(more & set(ten)) >= 5


def test_what_cannot_be_shown_is_not_chosen_and_equal_rows_count_as_one():
    image = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    rows = entries(
        [
            {"prompt": "Why?", "answer": "Because."},
            {"prompt": "Why?", "answer": "Because."},
            {"prompt": "No answer"},
            {"prompt": "Only blanks", "answer": "  "},
            {"prompt": "Only thoughts", "answer": "<think>hm"},
            {"nothing": 1},
            {"messages": [{"role": "user", "content": image}, {"role": "assistant", "content": "A cat."}]},
            {"prompt": "Why?", "answer": "Therefore."},
        ]
    )
    assert [sample.entry.index for sample in in_order(choose(rows, 10, seed=0))] == [0, 7]


def test_a_choice_holds_no_more_than_it_keeps():
    choice = Choice(3, seed=0)
    for entry in numbered(50):
        choice.offer(entry)
    assert len(choice.samples) == 3
    assert len(choice._heap) == len(choice._chosen) == 3


def test_rows_that_ask_the_same_are_one_cluster():
    first, second, third = in_order(choose(pairs(("Why?", "A."), ("Why? ", "B."), ("How?", "C.")), 3, seed=0))
    assert first.cluster == second.cluster != third.cluster


# ---- overlap -----------------------------------------------------------------------------------------------------


def test_overlap_by_hand():
    samples = in_order(choose(pairs(("q1", "The cat sat on the mat."), ("q2", "Yes.")), 2, seed=0))
    take_answers(samples, [Completion("On a mat sat one cat", "stop"), Completion("No.", "length")])
    # Without articles: "cat sat on mat" and "on mat sat one cat" share 4 words: 2 * 4 / (4 + 5).
    assert samples[0].shown.f1 == pytest.approx(8 / 9)
    # With all words, 6 and 6: the longest common sequence is "on ... mat": 2 * 2 / 12.
    assert samples[0].shown.rouge_l == pytest.approx(4 / 12)
    assert (samples[1].shown.f1, samples[1].shown.rouge_l) == (0.0, 0.0)
    assert samples[1].shown.notes == ["the new answer was cut off: it needs more tokens"]
    f1, rouge_l = overlap(samples)
    # Mean (8/9 + 0) / 2; half the difference is the standard error, and t with one degree of freedom is over 12.
    assert (f1.name, f1.of, f1.low, f1.high) == ("f1", 2, 0.0, 1.0)
    assert f1.value == pytest.approx(4 / 9)
    assert rouge_l.value == pytest.approx(1 / 6)


def test_a_t_interval_over_ten_rows_by_hand():
    # Five times 0.5 and five times 0.7: mean 0.6, sd = 0.1 sqrt(10 / 9), so sd / sqrt(10) = 0.1 / 3;
    # t with 9 degrees of freedom is 2.262 (here to 0.1 %): 0.6 +- 0.0754.
    found = mean("f1", [0.5, 0.7] * 5, [str(n) for n in range(10)])
    assert found.value == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - 0.0754, abs=2e-4)
    assert found.high == pytest.approx(0.6 + 0.0754, abs=2e-4)
    assert (found.kind, found.count, found.of) == ("mean", None, 10)


def test_rows_with_one_question_count_as_one():
    # The same figures, but each 0.5 and each 0.7 in one cluster: two independent ones, and hardly anything is known.
    found = mean("f1", [0.5, 0.7] * 5, ["a", "b"] * 5)
    assert (found.value, found.low, found.high) == (pytest.approx(0.6), 0.0, 1.0)


def test_rows_that_are_all_equal_do_not_make_a_figure_certain():
    for value in (0.0, 0.5, 1.0):
        found = mean("f1", [value] * 10, [str(n) for n in range(10)])
        assert (found.low, found.high) == pytest.approx(wilson(10 * value, 10))
    assert wilson(10, 10)[0] == pytest.approx(10 / (10 + 1.96**2))  # 0.72, and not 1
    one = mean("f1", [0.9], ["a"])
    assert (one.value, one.low, one.high) == (0.9, 0.0, 1.0)


def test_rows_without_a_new_answer_say_why_and_are_in_no_mean():
    samples = in_order(choose(numbered(3), 3, seed=0))
    answers = [
        RequestRejected("refusal", "I\n will not"),
        TransientError(NOT_ASKED, "?"),
        Completion("It is 3.", "stop"),
    ]
    take_answers(samples, answers)
    assert [sample.shown.notes for sample in samples] == [["no new answer: I will not"], ["not asked"], []]
    assert [sample.shown.new_answer for sample in samples] == [None, None, "It is 3."]
    assert [one.of for one in overlap(samples)] == [1, 1]
    assert overlap(samples[:2]) == []


def test_the_teacher_gets_the_whole_conversation_greedily(tmp_path: Path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "<think>so soon?</think>Good bye."},
    ]
    samples = choose(entries([{"messages": turns}]), 1, seed=0)

    async def ask(options: TeacherOptions) -> None:
        async with Asking(tmp_path, Run(), max_cost=None) as asking:
            await answer_anew(samples, asking, await asking.open(options, "teacher"), 33)

    with scripted_teacher(lambda chat: "Good bye!") as server:
        asyncio.run(ask(TeacherOptions(model=server.model, base_url=server.base_url)))
        body = server.chats[0].body
    assert body["messages"] == turns[:-1]
    assert (body["temperature"], body["max_tokens"]) == (0, 33)
    assert (samples[0].shown.answer, samples[0].shown.f1) == ("Good bye.", 1.0)


# ---- for generate_synthetic --------------------------------------------------------------------------------------


def test_validate_asks_some_rows_once_and_says_how_little_it_knows(tmp_path: Path):
    def script(chat: Chat) -> Any:
        number = int(chat.question.split()[2])
        return refusal(400, "no") if number % 5 == 4 else f"It is {number + 1 if number % 5 else 'unknown'}."

    rows = numbered(20)
    with scripted_teacher(script) as server:
        options = TeacherOptions(model=server.model, base_url=server.base_url, retries=0)
        found = asyncio.run(validate(rows, options, 20, 0, 64, tmp_path, Run()))
        # Of 20 rows 4 are refused; of 16, 4 share two of three words, so f1 = 2 * 2 / 6, and 12 all.
        assert (found.rows, found.failed) == (16, 4)
        assert found.f1 == pytest.approx((12 + 4 * 2 / 3) / 16)
        assert found.f1_low < found.f1 < found.f1_high
        assert found.rouge_l == pytest.approx(found.f1)  # no articles, the same order
        assert found.cost_usd == pytest.approx(0.016)
        asked = len(server.chats)
        again = asyncio.run(validate(rows, options, 20, 0, 64, tmp_path, Run()))
        assert (again.f1, again.cost_usd) == (found.f1, None)
        assert len(server.chats) == asked + 4  # those that got no answer
    assert (tmp_path / ANSWERS).is_file()


def test_validate_with_nothing_to_compare_and_with_no_answer_at_all(tmp_path: Path):
    with scripted_teacher(lambda chat: refusal(400, "no such thing")) as server:
        options = TeacherOptions(model=server.model, base_url=server.base_url, retries=0)
        with pytest.raises(UsageError, match="no record has an answer"):
            asyncio.run(validate(entries([{"prompt": "Why?"}]), options, 10, 0, 64, tmp_path, Run()))
        assert server.chats == []
        with pytest.raises(StoppedEarly, match=r"not one of 3 records got a new answer\. .*no such thing"):
            asyncio.run(validate(numbered(3), options, 10, 0, 64, tmp_path, Run()))


def test_validate_stops_at_the_budget_and_counts_what_came(tmp_path: Path):
    # Two answers fit: 0.005 at most each, 0.001 paid (see test_asking).
    with scripted_teacher(lambda chat: Answer("It is 1."), (0.0, 0.001)) as server:
        given = {"model": server.model, "base_url": server.base_url, "concurrency": 1, "max_cost": 0.0065}
        options = TeacherOptions.model_validate(given)
        found = asyncio.run(validate(numbered(5), options, 5, 0, 5, tmp_path, Run()))
    assert (found.rows, found.failed) == (2, 3)


def test_validate_survives_a_server_with_limits_and_faults(mock: Mock, tmp_path: Path):
    mock.configure(p503=0.2, p429=0.2)
    given = {"model": mock.model, "base_url": mock.base_url, "concurrency": 4}
    rows = pairs(*((f"[id:q{n}] What is {n}?", "It is a number.") for n in range(10)))
    found = asyncio.run(validate(rows, TeacherOptions.model_validate(given), 10, 0, 64, tmp_path, Run()))
    assert (found.rows, found.failed) == (10, 0)
    assert mock.requests > 10


@pytest.mark.gguf
def test_the_model_that_wrote_an_answer_greedily_writes_it_again(tmp_path: Path):
    prompts = ("Name three primary colours.", "What is the capital of France?")
    options = TeacherOptions(model="smollm2", backend="gguf", n_gpu_layers=0, n_ctx=512, threads=1)

    async def answers(folder: Path, samples: list[Sample]) -> None:
        async with Asking(folder, Run(), max_cost=None) as asking:
            await answer_anew(samples, asking, await asking.open(options, "teacher"), 16)

    first = in_order(choose(pairs(*((prompt, "Colours.") for prompt in prompts)), 2, seed=0))
    asyncio.run(answers(tmp_path / "first", first))
    written = pairs(*((sample.shown.prompt, sample.shown.new_answer or "") for sample in first))
    second = choose(written, 2, seed=0)
    asyncio.run(answers(tmp_path / "second", second))
    assert [(sample.shown.f1, sample.shown.rouge_l) for sample in second] == [(1.0, 1.0)] * 2
    assert all((sample.shown.f1 or 0) < 0.5 for sample in first)
