"""Many questions at once from code that waits: order, budget, retries, the user's wish to stop."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from core.data.stop import Stop
from core.errors import RequestRejected, StoppedEarly, TeacherError, TeacherUnavailable, Throttled, TransientError
from core.teachers import engine as engine_module
from core.teachers.asker import Asker, Question
from core.teachers.engine import Limits


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def asker(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asker]:
    monkeypatch.setattr(engine_module, "BACKOFF_BASE_S", 0.001)
    made = Asker(Limits(4, retries=2, max_cost_usd=1.0), stop)
    yield made
    made.close()
    assert not any(thread.name == "asker" for thread in threading.enumerate())


async def double(number: int) -> int:
    await asyncio.sleep(0.01 * (5 - number % 5))  # later questions are answered first
    return 2 * number


def test_answers_come_in_the_order_of_the_questions_and_together(asker: Asker) -> None:
    in_flight: list[int] = []
    peak = 0

    async def ask(number: int) -> int:
        nonlocal peak
        in_flight.append(number)
        peak = max(peak, len(in_flight))
        answer = await double(number)
        in_flight.remove(number)
        return answer

    assert asker.ask(range(12), Question(ask)) == [2 * number for number in range(12)]
    assert peak == 4
    assert asker.requests == 12
    assert asker.ask([], Question(ask)) == []


def test_every_answer_is_handed_on_as_it_comes(asker: Asker) -> None:
    kept: dict[int, int] = {}

    async def ask(number: int) -> int:
        if number == 3:
            await asyncio.sleep(0.05)
            raise TeacherUnavailable("payment", "out of money")
        return 2 * number

    with pytest.raises(StoppedEarly, match="out of money"):
        asker.ask(range(4), Question(ask, answered=lambda number, answer: kept.update({number: answer})))
    assert kept == {0: 0, 1: 2, 2: 4}  # what was paid before is not lost


def test_a_question_that_fails_tells_why_and_leaves_the_others_alone(asker: Asker) -> None:
    attempts: Counter[int] = Counter()

    async def ask(number: int) -> int:
        attempts[number] += 1
        if number == 1:
            raise RequestRejected("context_length", "too long")
        if number == 2 and attempts[2] < 3:
            raise TransientError("timeout", "late")
        if number == 3:
            raise TransientError("upstream_error", "down")
        return number

    answers = asker.ask(range(5), Question(ask))
    assert answers[0] == 0
    assert answers[2] == 2
    assert answers[4] == 4
    failed = answers[1], answers[3]
    assert [str(each) for each in failed if isinstance(each, TeacherError)] == ["too long", "down"]
    assert attempts == {0: 1, 1: 1, 2: 3, 3: 3, 4: 1}  # retries=2: three attempts at most
    assert asker.requests == 9


def test_one_budget_holds_for_all_that_is_asked(asker: Asker) -> None:
    question = Question(double, cost_usd=lambda answer: 0.2, worst_usd=lambda number: 0.3)
    asker.ask(range(3), question)
    assert asker.spending.known == pytest.approx(0.6)
    with pytest.raises(StoppedEarly, match=r"--max-cost 1 USD is reached: 0\.8000 spent"):
        asker.ask(range(3), question)  # 0.6 + 0.3 fits, 0.8 + 0.3 does not
    assert asker.spending.known == pytest.approx(0.8)
    assert asker.spending.reserved == 0.0


def test_an_attempt_that_may_be_billed_counts_into_the_budget(asker: Asker) -> None:
    async def ask(number: int) -> int:
        raise TransientError("timeout", "no answer", billed=True)

    with pytest.raises(StoppedEarly, match=r"0\.8000 possibly billed"):
        asker.ask([0], Question(ask, worst_usd=lambda number: 0.4))


def test_a_rate_limit_slows_down_all_that_follows(asker: Asker) -> None:
    began = time.monotonic()
    limited = [True]

    async def ask(number: int) -> int:
        if limited:
            limited.clear()
            raise Throttled("rate_limit", "slower", retry_after_s=0.2)
        return number

    assert asker.ask([0, 1], Question(ask)) == [0, 1]
    assert time.monotonic() - began >= 0.2
    assert asker._allowed < 4


def test_the_first_wish_to_stop_lets_a_step_end_and_the_second_does_not(asker: Asker, stop: Stop) -> None:
    stop.ask()
    assert asker.ask(range(3), Question(double)) == [0, 2, 4]

    async def never(number: int) -> int:
        await asyncio.sleep(60)
        return number

    timer = threading.Timer(0.1, stop.ask)
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        asker.ask([0], Question(never))
    assert time.monotonic() - began < 10
    timer.join()


def test_threads_may_ask_at_the_same_time(asker: Asker) -> None:
    found: dict[int, list[int | TeacherError]] = {}

    def ask(first: int) -> None:
        found[first] = asker.ask(range(first, first + 5), Question(double))

    threads = [threading.Thread(target=ask, args=(first,)) for first in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {first: [2 * number for number in range(first, first + 5)] for first in (0, 100)}


def test_what_is_in_flight_when_it_is_closed_is_dropped(stop: Stop) -> None:
    asker = Asker(Limits(1), stop)
    began = threading.Event()

    async def never() -> None:
        began.set()
        await asyncio.sleep(60)

    waiting = asker.run(never())
    assert began.wait(5)
    asker.close()
    assert waiting.cancelled()
