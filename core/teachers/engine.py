"""The engine below everything that asks a teacher many things: concurrency, retries, budget, circuit breaker, stopping.

It knows nothing of prompts or files. Work comes from an iterator, `attempt` asks once, `succeeded` and `failed` are
told the outcome, exactly once for each piece of work that was settled. Work may take several answers (`unfinished`):
each is an attempt of its own, with its own retries and its own place in the budget.

Rate limits: concurrency falls by 0.7 once per window (the requests in flight when the limit was hit are one window) and
grows by one per window of successes (additive increase, multiplicative decrease: Chiu and Jain, 1989). A Retry-After
silences the whole run. Retries wait a random time up to 0.5 s x 2^n ("full jitter", capped at 30 s).
"""

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..data.progress import Progress
from ..data.stop import Stop
from ..errors import (
    BudgetReached,
    DistillError,
    RequestRejected,
    StoppedEarly,
    TeacherError,
    TeacherUnavailable,
    Throttled,
    TransientError,
)

W = TypeVar("W")
A = TypeVar("A")

BACKOFF_BASE_S, BACKOFF_CAP_S = 0.5, 30.0
DECREASE = 0.7
FRUITLESS_S = 300.0
"""A run that only meets rate limits for so long is stopped."""


@dataclass(frozen=True)
class Limits:
    """concurrency: most attempts in flight.   retries: further attempts after a transient error.
    max_cost_usd: most that may be spent, one `share`-th of --max-cost.   cheaper, goes_on: what a user then does.
    fruitless_s: see FRUITLESS_S.
    holds: begun work keeps its place between attempts, because it holds something (a browser, a container). At most
        `concurrency` pieces are begun then, and one Ctrl-C lets them end.
    """

    concurrency: int
    retries: int = 5
    max_cost_usd: float | None = None
    share: int = 1
    cheaper: str = "lower --max-tokens"
    goes_on: str = "The same command with a fresh --max-cost goes on."
    fruitless_s: float = FRUITLESS_S
    holds: bool = False

    @property
    def breaker(self) -> int:
        """Rows that fail in a row, with no success between, before the run is stopped."""
        return max(25, 3 * self.concurrency)


@dataclass
class Job(Generic[W]):
    """One piece of work on its way. begun: it has had an attempt. attempts: at the current answer.
    worst_usd, started_s: of the last attempt."""

    work: W
    begun: bool = False
    worst_usd: float = 0.0
    attempts: int = 0
    started_s: float = 0.0


@dataclass
class Spending:
    """USD. known: stated or computed costs.  maybe: upper bound of attempts that ended without an answer and may be
    billed.  reserved: upper bound of what is in flight."""

    known: float = 0.0
    maybe: float = 0.0
    reserved: float = 0.0
    unanswered: int = 0  # attempts in `maybe`

    @property
    def bound(self) -> float:
        return self.known + self.maybe + self.reserved


class Engine(Generic[W, A]):
    """Runs work through `attempt` until it is done, the budget is reached, or the user stops it.

    attempt: asks once; raises TeacherError.          cost_usd: the cost of an answer (None: unknown).
    worst_usd: the most that one attempt can cost.    succeeded, failed: told each outcome; they may raise StoppedEarly.
    drain: called once when no queued request should begin any more.
    unfinished: whether the work wants another attempt after an answer; None: an answer settles it.
    ahead_usd: of new work and all begun work: money that must be free besides, so that what is begun can be ended.
    answered_usd: the cost of an answer that came in an attempt which is cut off afterwards; None: no answer came.
    spending, allowed, answered: of an engine of this run that came before: what was spent under the same budget, how
    many attempts may be in flight, whether real answers came.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        attempt: Callable[[W], Awaitable[A]],
        cost_usd: Callable[[A], float | None],
        worst_usd: Callable[[W], float],
        succeeded: Callable[[W, A], None],
        failed: Callable[[W, TeacherError, int], None],
        drain: Callable[[], None],
        progress: Progress,
        stop: Stop,
        unfinished: Callable[[A], bool] | None = None,
        ahead_usd: Callable[[W, list[W]], float] | None = None,
        answered_usd: Callable[[W], float | None] | None = None,
        spending: Spending | None = None,
        allowed: float | None = None,
        answered: bool = False,
    ) -> None:
        self.limits = limits
        self.spending = spending or Spending()
        self.allowed = float(limits.concurrency) if allowed is None else allowed
        self.stopped: DistillError | None = None
        self._attempt, self._cost_usd, self._worst_usd = attempt, cost_usd, worst_usd
        self._succeeded, self._failed, self._drain = succeeded, failed, drain
        self._unfinished, self._ahead_usd, self._answered_usd = unfinished, ahead_usd, answered_usd
        self._progress, self._stop = progress, stop
        self._tasks: dict[asyncio.Task[A], Job[W]] = {}
        self._waiting: list[tuple[float, int, Job[W]]] = []
        self._tie = itertools.count()
        self._quiet_until_s = 0.0
        self._cut_s = 0.0
        self._cuts = 0  # since the last answer
        self._failed_in_a_row = 0
        self._fruitful_s = 0.0
        self._drained = self._abandoning = False
        self.answered = answered
        self._begun_may_end = True  # whatever stopped the run: begun work that holds its place is still worth its money

    async def run(self, works: Iterator[W]) -> None:
        """Settle all of `works`. Afterwards `stopped` says why the run ended early, or is None.

        Work that was neither done nor failed is simply not settled: the caller will find it missing next time.
        """
        loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._stop.subscribe(lambda: loop.is_closed() or loop.call_soon_threadsafe(self._wake.set))
        self._fruitful_s = loop.time()
        source = iter(works)
        more = True
        try:
            while True:
                if more and self._open:
                    more = self._launch(loop, source)
                else:
                    self._launch(loop, iter(()))
                self._show()
                if not self._goes_on and not self._drained:
                    self._drained = True
                    self._drain()
                to_come = (more and self._open) or (bool(self._waiting) and self._goes_on)
                if self._stop.now or not (self._tasks or to_come):
                    return
                await self._something(loop)
        finally:
            await self._abandon()

    @property
    def _open(self) -> bool:
        """Whether new work may begin."""
        return self.stopped is None and not self._stop.requested

    @property
    def _goes_on(self) -> bool:
        """Whether further attempts at begun work may begin."""
        return self._open or (self.limits.holds and self._begun_may_end)

    def _launch(self, loop: asyncio.AbstractEventLoop, source: Iterator[W]) -> bool:
        """Begin what may begin now: due attempts first, then new work. False when `source` has ended."""
        now = loop.time()
        if now < self._quiet_until_s:
            return True
        while self._goes_on and len(self._tasks) < int(self.allowed):
            if self._waiting and self._waiting[0][0] <= now:
                job = heapq.heappop(self._waiting)[2]
            elif not self._open or len(self._tasks) + len(self._waiting) >= self._most_begun:
                return True
            else:
                try:
                    work = next(source, None)
                except Exception as error:  # the Hub is gone, the file was changed: what is in flight is still kept
                    problem = StoppedEarly(f"reading the input failed: {type(error).__name__}: {error}")
                    self._end(problem, begun_may_end=True)
                    return False
                if work is None:
                    return False
                job = Job(work)
            job.worst_usd = self._worst_usd(job.work)
            if self.limits.max_cost_usd is not None and job.worst_usd > self.limits.max_cost_usd:
                try:
                    self._reject(job, RequestRejected("over_budget", self._too_dear(job)))
                except DistillError as stop:
                    self._end(stop)
                continue
            if not self._affordable(job):
                # What is in flight will cost less than its worst case, and begun work may end: ask again then.
                if self._tasks or (not job.begun and any(other.begun for _, _, other in self._waiting)):
                    due_s = now if job.begun else now + 0.1
                    heapq.heappush(self._waiting, (due_s, next(self._tie), job))
                    return True
                self._end(BudgetReached(self._budget_message(job)), begun_may_end=True)
                continue
            self.spending.reserved += job.worst_usd
            job.attempts += 1
            job.begun, job.started_s = True, now
            task = loop.create_task(self._ask(job.work))
            self._tasks[task] = job
            task.add_done_callback(self._ended)
        return True

    @property
    def _most_begun(self) -> int:
        """A teacher that fails everything must not pull the whole input into memory."""
        return self.limits.concurrency if self.limits.holds else 5 * self.limits.concurrency

    async def _ask(self, work: W) -> A:
        return await self._attempt(work)

    def _affordable(self, job: Job[W]) -> bool:
        most = self.limits.max_cost_usd
        if most is None:
            return True
        ahead_usd = 0.0
        if self._ahead_usd and not job.begun:
            begun = [other for other in (*self._tasks.values(), *(job for _, _, job in self._waiting)) if other.begun]
            ahead_usd = self._ahead_usd(job.work, [other.work for other in begun])
        return self.spending.bound + job.worst_usd + ahead_usd <= most

    def _budget_message(self, job: Job[W]) -> str:
        most, share = self.limits.max_cost_usd or 0.0, self.limits.share
        whole = f"{most * share:g} USD is reached"
        if share > 1:
            whole = f"{most * share:g} USD: one of {share} processes has reached its share of {most:g}"
        return (
            f"--max-cost {whole}: {self.spending.known:.4f} spent, "
            f"{self.spending.maybe:.4f} possibly billed, and the next request may cost up to {job.worst_usd:.4f}"
            f"{', and more to be ended' if self._ahead_usd and not job.begun else ''}. "
            f"{self.limits.goes_on}"
        )

    def _too_dear(self, job: Job[W]) -> str:
        return f"this request alone may cost {job.worst_usd:.4f} USD, more than --max-cost; {self.limits.cheaper}"

    async def _something(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until an attempt ends, a retry is due, the silence is over, or the user wants to stop."""
        self._wake.clear()
        due = None
        if self._goes_on and len(self._tasks) < int(self.allowed):
            if self._waiting:
                due = self._waiting[0][0]
            if loop.time() < self._quiet_until_s:
                due = self._quiet_until_s
        try:
            timeout_s = 0.5 if due is None else min(0.5, max(0.02, due - loop.time()))
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _ended(self, task: "asyncio.Task[A]") -> None:
        """An attempt ended (a task's callback: it must not raise)."""
        job = self._tasks.pop(task)
        self.spending.reserved -= job.worst_usd
        if not self._tasks:
            self.spending.reserved = 0.0  # no rounding error may grow over a million rows
        self._wake.set()
        if self._abandoning:
            return
        error = RequestRejected("cancelled", "cancelled from within") if task.cancelled() else task.exception()
        try:
            if error is None:
                self._success(job, task.result())
            elif isinstance(error, TeacherError):
                self._trouble(job, error)
            else:
                raise error
        except DistillError as stop:
            self._end(stop)
        except Exception as bug:
            self._end(StoppedEarly(f"an internal error ({type(bug).__name__}: {bug}); please report it"))
            asyncio.get_running_loop().call_exception_handler({"message": "in the engine", "exception": bug})

    def _success(self, job: Job[W], answer: A) -> None:
        cost_usd = self._cost_usd(answer)
        if cost_usd is None:  # the budget must hold where a server counts nothing
            self.spending.maybe += job.worst_usd
        else:
            self.spending.known += cost_usd
        self._cuts, self.answered = 0, True
        self._fruitful_s = asyncio.get_running_loop().time()
        if self.allowed < self.limits.concurrency:
            self.allowed = min(float(self.limits.concurrency), self.allowed + 1 / self.allowed)
        if self._unfinished and self._unfinished(answer):
            job.attempts = 0
            self._later(job, 0)
            return
        self._succeeded(job.work, answer)
        self._failed_in_a_row = 0
        self._progress.counts.done += 1

    def _trouble(self, job: Job[W], error: TeacherError) -> None:
        if error.cost_usd is not None:
            self.spending.known += error.cost_usd
        elif error.billed:
            self._maybe_billed(job)
        if isinstance(error, TeacherUnavailable) and error.reason == "not_an_api" and self.answered:
            # Real answers came from there: a gateway between is in trouble, and its page says nothing about the others.
            error = TransientError("web_page", str(error))
        if isinstance(error, TeacherUnavailable):
            self._end(error)
        elif isinstance(error, Throttled):
            self._slow_down(job, error)
        elif isinstance(error, TransientError) and job.attempts <= self.limits.retries:
            self._later(job, random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**job.attempts)))
        else:
            self._reject(job, error)

    def _reject(self, job: Job[W], error: TeacherError) -> None:
        self._failed(job.work, error, job.attempts)
        self._progress.counts.failed += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.limits.breaker:
            self._end(
                StoppedEarly(
                    f"{self._failed_in_a_row} rows failed one after another. The last one: {str(error).rstrip('.')}. "
                    "Mend that, then run the same command: it asks only for what is missing."
                ),
                begun_may_end=True,
            )

    def _maybe_billed(self, job: Job[W]) -> None:
        self.spending.maybe += job.worst_usd
        self.spending.unanswered += 1

    def _slow_down(self, job: Job[W], error: Throttled) -> None:
        now = asyncio.get_running_loop().time()
        if job.started_s >= self._cut_s:
            self.allowed = max(1.0, self.allowed * DECREASE)
            self._cut_s = now
            self._cuts += 1
        if error.retry_after_s is not None:
            self._quiet_until_s = max(self._quiet_until_s, now + error.retry_after_s)
            wait_s = error.retry_after_s
        else:
            wait_s = random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(self._cuts, 10)))
            if self._cuts > 1:  # not one answer since the first cut: new work would only be refused as well
                self._quiet_until_s = max(self._quiet_until_s, now + wait_s)
        job.attempts -= 1  # a rate limit says nothing about the row
        self._later(job, wait_s)
        if now - self._fruitful_s > max(self.limits.fruitless_s, 3 * (error.retry_after_s or 0)):
            minutes = (now - self._fruitful_s) / 60
            self._end(StoppedEarly(f"nothing but rate limits for {minutes:.0f} minutes. The last one: {error}"))

    def _later(self, job: Job[W], wait_s: float) -> None:
        heapq.heappush(self._waiting, (asyncio.get_running_loop().time() + wait_s, next(self._tie), job))

    def _end(self, reason: DistillError, *, begun_may_end: bool = False) -> None:
        """Begin nothing more; what is in flight may end, and with it, where nothing speaks against it, begun work."""
        self._begun_may_end = self._begun_may_end and begun_may_end
        if self.stopped is None:
            self.stopped = reason

    def _show(self) -> None:
        counts = self._progress.counts
        counts.retrying = len(self._waiting)
        counts.in_flight = len(self._tasks)
        if self.spending.known:
            counts.spend_usd = self.spending.known
        if self.allowed < self.limits.concurrency:
            counts.metrics["in flight at most"] = int(self.allowed)
        else:
            counts.metrics.clear()
        self._progress.tick()

    async def _abandon(self) -> None:
        """Cancel what is still in flight (a second Ctrl-C); what was not answered counts as possibly billed."""
        self._abandoning = True
        for task, job in list(self._tasks.items()):
            answered_usd = self._answered_usd(job.work) if self._answered_usd else None
            if answered_usd is None:
                self._maybe_billed(job)
            else:
                self.spending.known += answered_usd
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=1)
