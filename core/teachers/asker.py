"""The engine for code that waits: many questions at once, with retries, under one budget for the whole run."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..data.progress import Progress
from ..data.stop import Stop
from ..errors import StoppedEarly, TeacherError
from .engine import Engine, Limits, Spending

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True)
class Question(Generic[Q, A]):
    """How to ask. attempt: once; raises TeacherError.   cost_usd: of an answer, None: unknown.   worst_usd: the most
    that an attempt may cost.   answered: gets every answer as it comes, in the asker's thread."""

    attempt: Callable[[Q], Awaitable[A]]
    cost_usd: Callable[[A], float | None] = lambda answer: 0.0
    worst_usd: Callable[[Q], float] = lambda question: 0.0
    answered: Callable[[Q, A], None] = lambda question, answer: None


class Asker:
    """Asks servers from a thread of its own, so that the caller may compute meanwhile.

    spending: of everything that was asked, under `limits.max_cost_usd`.   requests: attempts that were made.
    """

    def __init__(self, limits: Limits, stop: Stop) -> None:
        self.limits, self.spending, self.requests = limits, Spending(), 0
        self._stop = stop
        self._allowed, self._answered = float(limits.concurrency), False
        self._turn = asyncio.Lock()  # one engine at a time: they share the budget and the pace
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asker", daemon=True)
        self._thread.start()

    def ask(self, questions: Sequence[Q], question: Question[Q, A]) -> list[A | TeacherError]:
        """An answer to each question, or why there is none, in their order.

        Raises StoppedEarly when no more can be asked: the budget, the key, the circuit breaker; answers that had come
        are lost to the caller, so `question.answered` is where they are kept. Raises KeyboardInterrupt when the user
        asked twice to stop.
        """
        found = self.run(self._ask(list(questions), question)).result()
        if found is None:
            raise KeyboardInterrupt
        return found

    def run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """A coroutine in this thread, where the HTTP sessions live."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _ask(self, questions: list[Q], question: Question[Q, A]) -> list[A | TeacherError] | None:
        """None when the user does not want to wait any more: KeyboardInterrupt would end the loop."""
        settled: dict[int, A | TeacherError] = {}

        async def attempt(number: int) -> A:
            self.requests += 1
            return await question.attempt(questions[number])

        def succeeded(number: int, answer: A) -> None:
            question.answered(questions[number], answer)  # may raise StoppedEarly: a full disk under the cache
            settled[number] = answer

        def failed(number: int, error: TeacherError, attempts: int) -> None:
            settled[number] = error

        async with self._turn:
            engine: Engine[int, A] = Engine(
                self.limits,
                attempt=attempt,
                cost_usd=question.cost_usd,
                worst_usd=lambda number: question.worst_usd(questions[number]),
                succeeded=succeeded,
                failed=failed,
                drain=lambda: None,
                progress=Progress(),
                stop=Unhurried(self._stop),
                spending=self.spending,
                allowed=self._allowed,
                answered=self._answered,
            )
            await engine.run(iter(range(len(questions))))
            self._allowed, self._answered = engine.allowed, engine.answered
        if len(settled) < len(questions):
            if isinstance(engine.stopped, TeacherError):
                raise StoppedEarly(str(engine.stopped)) from engine.stopped
            if engine.stopped is not None:
                raise engine.stopped
            return None
        return [settled[number] for number in range(len(questions))]

    def close(self) -> None:
        """End the thread; what is in flight is dropped."""
        self.run(self._cancel()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Unhurried(Stop):
    """The user's wish as a step of training sees it: the first Ctrl-C lets the step end, and so all that it asks."""

    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self._stop = stop

    @property
    def requested(self) -> bool:
        return self._stop.now

    @property
    def now(self) -> bool:
        return self._stop.now
