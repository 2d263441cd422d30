"""The engine, with plain functions as the teacher."""

import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from core.data.progress import Progress
from core.data.stop import Stop
from core.errors import RequestRejected, StoppedEarly, TeacherError, TeacherUnavailable, Throttled, TransientError
from core.teachers import engine as engine_module
from core.teachers.engine import Engine, Limits

Attempt = Callable[[int], Awaitable[float]]


class Trial:
    """One run of the engine over numbers; an answer is its own cost in USD."""

    def __init__(
        self,
        limits: Limits,
        attempt: Attempt,
        worst_usd: float = 0.0,
        unfinished: Callable[[float], bool] | None = None,
    ) -> None:
        self.answers: dict[int, float] = {}
        self.failures: dict[int, tuple[TeacherError, int]] = {}
        self.asked: Counter[int] = Counter()
        self.in_flight = self.peak = self.drained = self.pulled = 0
        self.peak_spending = 0.0
        self.stop = Stop()
        self._attempt, self._worst_usd = attempt, worst_usd
        self.engine: Engine[int, float] = Engine(
            limits,
            attempt=self._ask,
            cost_usd=lambda answer: answer,
            worst_usd=self.worst_usd,
            succeeded=self.succeeded,
            failed=self.failed,
            drain=self.drain,
            progress=Progress(io.StringIO()),
            stop=self.stop,
            unfinished=unfinished,
        )

    def worst_usd(self, work: int) -> float:
        return self._worst_usd

    async def _ask(self, work: int) -> float:
        self.asked[work] += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self.peak_spending = max(self.peak_spending, self.engine.spending.bound)
        try:
            return await self._attempt(work)
        finally:
            self.in_flight -= 1

    def succeeded(self, work: int, answer: float) -> None:
        assert work not in self.answers
        self.answers[work] = answer

    def failed(self, work: int, error: TeacherError, attempts: int) -> None:
        assert work not in self.failures
        self.failures[work] = (error, attempts)

    def drain(self) -> None:
        self.drained += 1

    def works(self, count: int) -> Iterator[int]:
        for work in range(count):
            self.pulled += 1
            yield work

    def run(self, count: int, *others: Callable[["Trial"], Awaitable[None]]) -> "Trial":
        async def all_of_it() -> None:
            async with asyncio.timeout(20):
                await asyncio.gather(self.engine.run(self.works(count)), *(other(self) for other in others))

        asyncio.run(all_of_it())
        return self


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BACKOFF_BASE_S", 0.001)


async def quick(_: int) -> float:
    await asyncio.sleep(0.001)
    return 0.0


def test_everything_is_settled_once_and_never_more_than_concurrency_at_a_time() -> None:
    trial = Trial(Limits(7), quick).run(200)
    assert sorted(trial.answers) == list(range(200))
    assert trial.peak == 7
    assert set(trial.asked.values()) == {1}
    assert trial.engine.stopped is None


def test_no_work_at_all_ends_at_once() -> None:
    assert Trial(Limits(3), quick).run(0).answers == {}


def test_a_transient_error_is_tried_again_as_often_as_retries_say() -> None:
    async def never(_: int) -> float:
        raise TransientError("timeout", "no answer", billed=True)

    trial = Trial(Limits(2, retries=3), never).run(1)
    error, attempts = trial.failures[0]
    assert (error.reason, attempts, trial.asked[0]) == ("timeout", 4, 4)  # the first attempt and three more


def test_a_row_that_succeeds_at_the_last_attempt_is_an_answer() -> None:
    async def third_time(work: int) -> float:
        if trial.asked[work] < 3:
            raise TransientError("broken_answer", "cut off")
        return 0.0

    trial = Trial(Limits(5, retries=2), third_time)
    trial.run(20)
    assert len(trial.answers) == 20
    assert set(trial.asked.values()) == {3}
    assert trial.failures == {}


def test_a_rejected_request_is_not_tried_again() -> None:
    async def reject_odd(work: int) -> float:
        if work % 2:
            raise RequestRejected("context_length", "too long")
        return 0.0

    trial = Trial(Limits(4, retries=9), reject_odd).run(20)
    assert sorted(trial.failures) == list(range(1, 20, 2))
    assert set(trial.asked.values()) == {1}


def test_concurrency_falls_once_per_window_and_recovers_and_never_exceeds_its_limit() -> None:
    lowest = 10.0
    limited = True

    async def at_most_four(_: int) -> float:
        nonlocal lowest
        lowest = min(lowest, trial.engine.allowed)
        if limited and trial.in_flight > 4:
            raise Throttled("rate_limit", "slow down")
        await asyncio.sleep(0.002)
        return 0.0

    async def lift_the_limit(trial: Trial) -> None:
        nonlocal limited
        while len(trial.answers) < 150:
            await asyncio.sleep(0.002)
        limited = False

    trial = Trial(Limits(10), at_most_four)
    trial.run(600, lift_the_limit)
    assert len(trial.answers) == 600
    assert trial.failures == {}  # a rate limit says nothing about the row
    # One window of six refusals cuts once: 10 x 0.7 = 7, then 4.9. Six cuts would be 10 x 0.7^6 = 1.2.
    assert 2 < lowest < 7
    assert trial.engine.allowed == 10
    assert trial.peak <= 10


def test_a_burst_of_rate_limits_in_one_window_cuts_once() -> None:
    async def all_refused_at_first(work: int) -> float:
        await asyncio.sleep(0.005)
        if trial.asked[work] == 1 and work < 10:
            seen.append(trial.engine.allowed)
            raise Throttled("rate_limit", "slow down")
        return 0.0

    seen: list[float] = []
    trial = Trial(Limits(10), all_refused_at_first)
    trial.run(10)
    assert len(seen) == 10
    assert min(seen) >= 7  # 10 x 0.7: ten refusals of one window are one cut


def test_retry_after_silences_the_whole_run() -> None:
    started: list[float] = []

    async def first_is_limited(work: int) -> float:
        started.append(time.monotonic())
        if len(started) == 1:
            raise Throttled("rate_limit", "wait", retry_after_s=0.3)
        return 0.0

    trial = Trial(Limits(1), first_is_limited).run(5)
    assert len(trial.answers) == 5
    assert started[1] - started[0] >= 0.29
    assert started[5] - started[1] < 0.25


def test_a_silence_holds_back_new_work_of_every_row() -> None:
    limited_at = 0.0
    later: list[float] = []

    async def attempt(work: int) -> float:
        nonlocal limited_at
        if work == 0 and not limited_at:
            limited_at = time.monotonic()
            raise Throttled("rate_limit", "wait", retry_after_s=0.2)
        if limited_at:
            later.append(time.monotonic() - limited_at)
        await asyncio.sleep(0.01)
        return 0.0

    trial = Trial(Limits(3), attempt).run(30)
    assert len(trial.answers) == 30
    assert [wait for wait in later if 0.02 < wait < 0.19] == []


def test_nothing_but_rate_limits_for_too_long_ends_the_run() -> None:
    async def limited(_: int) -> float:
        raise Throttled("rate_limit", "come back tomorrow", retry_after_s=0.01)

    trial = Trial(Limits(3, fruitless_s=0.1), limited).run(10)
    assert isinstance(trial.engine.stopped, StoppedEarly)
    assert "nothing but rate limits" in str(trial.engine.stopped)
    assert "come back tomorrow" in str(trial.engine.stopped)
    assert trial.failures == {}


def test_the_breaker_stops_a_run_that_only_fails_with_the_providers_own_words() -> None:
    async def fail(_: int) -> float:
        raise RequestRejected("not_found", "404: no such model. Really.")

    trial = Trial(Limits(2), fail).run(1000)
    # max(25, 3 x 2) rows in a row, and at most the ones that were in flight at that moment
    assert 25 <= len(trial.failures) <= 26
    assert "25 rows failed one after another" in str(trial.engine.stopped)
    assert "no such model" in str(trial.engine.stopped)
    assert trial.pulled <= 27


def test_the_breaker_counts_rows_in_a_row_only() -> None:
    async def most_fail(work: int) -> float:
        if work % 20:
            raise RequestRejected("x", "no")
        return 0.0

    trial = Trial(Limits(1), most_fail).run(200)
    assert trial.engine.stopped is None
    assert (len(trial.answers), len(trial.failures)) == (10, 190)


def test_a_teacher_that_can_serve_nobody_stops_the_run_at_once() -> None:
    async def bad_key(work: int) -> float:
        await asyncio.sleep(0.001 * (work + 1))
        raise TeacherUnavailable("authentication", "401: no", usage=True)

    trial = Trial(Limits(4), bad_key).run(1000)
    assert isinstance(trial.engine.stopped, TeacherUnavailable)
    assert sum(trial.asked.values()) == 4
    assert trial.failures == {}
    assert trial.drained == 1


@pytest.mark.parametrize("seed", range(8))
def test_the_budget_is_never_exceeded_what_is_in_flight_included(seed: int) -> None:
    chance = random.Random(seed)

    async def costly(_: int) -> float:
        await asyncio.sleep(chance.random() * 0.002)
        luck = chance.random()
        if luck < 0.1:
            raise TransientError("timeout", "no answer", billed=True)  # possibly 0.1
        if luck < 0.2:
            raise TransientError("empty_answer", "empty", billed=True, cost_usd=0.05)
        return chance.random() * 0.1

    trial = Trial(Limits(8, retries=2, max_cost_usd=2.0), costly, worst_usd=0.1).run(10_000)
    spending = trial.engine.spending
    assert isinstance(trial.engine.stopped, StoppedEarly)
    assert "--max-cost 2 USD is reached" in str(trial.engine.stopped)
    assert trial.peak_spending <= 2.0 + 1e-9
    assert spending.known + spending.maybe <= 2.0 + 1e-9
    assert spending.known + spending.maybe > 2.0 - 0.1 - 1e-9  # and it is used: not even one more request fits
    assert spending.reserved == 0


def test_work_that_alone_may_cost_more_than_the_whole_budget_fails_and_asks_nothing() -> None:
    trial = Trial(Limits(5, max_cost_usd=0.05), quick, worst_usd=0.1).run(10)
    assert sum(trial.asked.values()) == 0
    assert {error.reason for error, _ in trial.failures.values()} == {"over_budget"}
    assert sorted(trial.failures) == list(range(10))
    assert "may cost 0.1000 USD, more than --max-cost" in str(trial.failures[0][0])
    assert trial.engine.stopped is None


def test_work_too_dear_for_the_budget_does_not_keep_the_other_work_from_it() -> None:
    class OneIsDear(Trial):
        def worst_usd(self, work: int) -> float:
            return 5.0 if work == 3 else 0.1

    async def costly(_: int) -> float:
        return 0.1

    trial = OneIsDear(Limits(2, max_cost_usd=1.0), costly).run(8)
    assert sorted(trial.answers) == [0, 1, 2, 4, 5, 6, 7]
    assert list(trial.failures) == [3]


def test_a_disk_that_is_full_when_dear_work_is_put_aside_stops_the_run() -> None:
    class Full(Trial):
        def failed(self, work: int, error: TeacherError, attempts: int) -> None:
            raise StoppedEarly("no space left")

    trial = Full(Limits(2, max_cost_usd=0.05), quick, worst_usd=0.1).run(10)
    assert str(trial.engine.stopped) == "no space left"


def test_a_budget_for_exactly_the_work_is_enough() -> None:
    async def exact(_: int) -> float:
        return 0.125

    trial = Trial(Limits(5, max_cost_usd=1.25), exact, worst_usd=0.125).run(10)
    assert len(trial.answers) == 10
    assert trial.engine.stopped is None


async def slow(_: int) -> float:
    await asyncio.sleep(0.1)
    return 0.0


def test_asked_once_to_stop_what_is_in_flight_is_finished_and_nothing_begins() -> None:
    async def ask(trial: Trial) -> None:
        await asyncio.sleep(0.15)
        trial.stop.ask()

    trial = Trial(Limits(4), slow).run(1000, ask)
    assert sum(trial.asked.values()) == len(trial.answers) == 8  # two rounds of four
    assert trial.drained == 1
    assert trial.engine.stopped is None


def test_asked_twice_to_stop_nothing_is_waited_for_and_it_counts_as_possibly_billed() -> None:
    async def for_ever(_: int) -> float:
        await asyncio.sleep(60)
        return 0.0

    async def ask(trial: Trial) -> None:
        await asyncio.sleep(0.05)
        trial.stop.ask()
        await asyncio.sleep(0.05)
        trial.stop.ask()

    began = time.monotonic()
    trial = Trial(Limits(4), for_ever, worst_usd=0.5).run(1000, ask)
    assert time.monotonic() - began < 5
    assert trial.answers == {}
    assert trial.engine.spending.maybe == 2.0  # four requests at up to 0.5


def test_a_retry_that_waits_does_not_keep_a_stopped_run_alive() -> None:
    async def limited(_: int) -> float:
        raise Throttled("rate_limit", "wait", retry_after_s=60)

    async def ask(trial: Trial) -> None:
        await asyncio.sleep(0.05)
        trial.stop.ask()

    began = time.monotonic()
    trial = Trial(Limits(4), limited).run(10, ask)
    assert time.monotonic() - began < 5
    assert trial.failures == {}  # neither done nor failed: the next run finds it missing


def test_a_disk_that_is_full_stops_the_run() -> None:
    class Full(Trial):
        def succeeded(self, work: int, answer: float) -> None:
            if len(self.answers) == 3:
                raise StoppedEarly("no space left")
            super().succeeded(work, answer)

    trial = Full(Limits(2), quick).run(100)
    assert str(trial.engine.stopped) == "no space left"
    assert len(trial.answers) == 3


def test_a_teacher_that_fails_everything_does_not_pull_the_whole_input_into_memory() -> None:
    async def fail(_: int) -> float:
        raise TransientError("upstream_error", "500")

    async def ask(trial: Trial) -> None:
        await asyncio.sleep(0.3)
        trial.stop.ask()

    trial = Trial(Limits(5, retries=1_000_000), fail).run(1_000_000, ask)
    assert trial.pulled <= 5 + 4 * 5 + 2


def test_an_error_of_our_own_ends_the_run_with_its_name_and_loses_nothing() -> None:
    async def bug(work: int) -> float:
        if work == 3:
            raise ZeroDivisionError("oops")
        return 0.0

    trial = Trial(Limits(1), bug)
    reported: list[Any] = []

    async def watch(trial: Trial) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    trial.run(10, watch)
    assert "ZeroDivisionError: oops" in str(trial.engine.stopped)
    assert sorted(trial.answers) == [0, 1, 2]
    assert [type(error) for error in reported] == [ZeroDivisionError]


# ---- work of several answers, which holds something between them ---------------------------------------------------

NOT_YET = 0.01
"""An answer (its cost in USD) after which the work wants another attempt."""


class Turns(Trial):
    """Work of `turns` answers each. begun, peak_begun: pieces of work between their first and last answer."""

    def __init__(self, limits: Limits, turns: int = 3, attempt: Attempt = quick, worst_usd: float = 0.0) -> None:
        super().__init__(limits, self._turn, worst_usd, unfinished=lambda answer: answer == NOT_YET)
        self.begun: set[int] = set()
        self.answered: Counter[int] = Counter()
        self.peak_begun = 0
        self._turns, self._each = turns, attempt

    async def _turn(self, work: int) -> float:
        self.begun.add(work)
        self.peak_begun = max(self.peak_begun, len(self.begun - set(self.answers) - set(self.failures)))
        await self._each(work)
        self.answered[work] += 1
        return NOT_YET if self.answered[work] < self._turns else 0.02


def test_work_is_asked_again_until_an_answer_finishes_it_and_is_settled_once() -> None:
    trial = Turns(Limits(4, holds=True)).run(30)
    assert sorted(trial.answers) == list(range(30))
    assert set(trial.asked.values()) == {3}
    assert trial.engine.spending.known == pytest.approx(30 * (2 * NOT_YET + 0.02))


def test_work_that_holds_something_is_not_begun_beyond_concurrency_also_while_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "BACKOFF_BASE_S", 0.02)

    async def every_other_attempt_fails(work: int) -> float:
        if trial.asked[work] % 2:
            raise TransientError("upstream_error", "500")
        return 0.0

    trial = Turns(Limits(4, holds=True), attempt=every_other_attempt_fails)
    trial.run(20)
    assert len(trial.answers) == 20
    assert trial.peak_begun == 4


def test_every_answer_has_its_own_retries() -> None:
    async def each_answer_at_the_third_attempt(work: int) -> float:
        if trial.asked[work] % 3:
            raise TransientError("upstream_error", "500")
        return 0.0

    trial = Turns(Limits(2, retries=2, holds=True), turns=4, attempt=each_answer_at_the_third_attempt)
    trial.run(5)
    assert sorted(trial.answers) == list(range(5))
    assert set(trial.asked.values()) == {12}


def test_asked_once_to_stop_begun_work_comes_to_its_end_and_none_is_begun() -> None:
    async def ask(trial: Trial) -> None:
        while sum(trial.asked.values()) < 6:
            await asyncio.sleep(0.001)
        trial.stop.ask()

    trial = Turns(Limits(4, holds=True), turns=10)
    trial.run(1000, ask)
    assert trial.begun == set(trial.answers)
    assert 4 <= len(trial.answers) <= 8
    assert trial.engine.stopped is None


def test_asked_twice_to_stop_begun_work_is_left_where_it_is() -> None:
    async def ask(trial: Trial) -> None:
        while sum(trial.asked.values()) < 6:
            await asyncio.sleep(0.001)
        trial.stop.ask()
        trial.stop.ask()

    trial = Turns(Limits(4, holds=True), turns=10_000)
    trial.run(1000, ask)
    assert trial.answers == trial.failures == {}


def test_a_teacher_that_can_serve_nobody_ends_begun_work_too() -> None:
    async def no_money_at_last(work: int) -> float:
        if sum(trial.answered.values()) > 20:
            raise TeacherUnavailable("payment", "402: out of money")
        return 0.0

    trial = Turns(Limits(4, holds=True), turns=1000, attempt=no_money_at_last)
    trial.run(10)
    assert isinstance(trial.engine.stopped, TeacherUnavailable)
    assert sum(trial.asked.values()) <= 21 + 4


def test_nothing_but_rate_limits_for_too_long_ends_a_run_with_begun_work() -> None:
    async def limited(_: int) -> float:
        raise Throttled("rate_limit", "come back tomorrow", retry_after_s=0.01)

    trial = Turns(Limits(3, fruitless_s=0.1, holds=True), attempt=limited)
    trial.run(10)
    assert "nothing but rate limits" in str(trial.engine.stopped)


def test_a_full_disk_ends_begun_work_too_since_no_answer_could_be_kept() -> None:
    class Full(Turns):
        def succeeded(self, work: int, answer: float) -> None:
            raise StoppedEarly("no space left")

    async def first_is_short(work: int) -> float:
        if work == 0:
            trial.answered[0] = 1000
        return 0.0

    trial = Full(Limits(4, holds=True), turns=1000, attempt=first_is_short)
    trial.run(10)
    assert str(trial.engine.stopped) == "no space left"
    assert sum(trial.asked.values()) < 100


@pytest.mark.parametrize("seed", range(4))
def test_the_budget_holds_over_all_answers_of_all_work_and_begun_work_may_use_it_up(seed: int) -> None:
    chance = random.Random(seed)

    async def costly(_: int) -> float:
        await asyncio.sleep(chance.random() * 0.002)
        if chance.random() < 0.1:
            raise TransientError("timeout", "no answer", billed=True)
        return 0.0

    trial = Turns(Limits(6, retries=3, max_cost_usd=1.0, holds=True), turns=5, attempt=costly, worst_usd=0.03)
    trial.run(1000)
    spending = trial.engine.spending
    assert "--max-cost 1 USD is reached" in str(trial.engine.stopped)
    assert trial.peak_spending <= 1.0 + 1e-9
    assert 1.0 - 0.03 - 1e-9 < spending.known + spending.maybe <= 1.0 + 1e-9
    assert not set(trial.answers) & set(trial.failures)
