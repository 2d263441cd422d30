"""The answers of a step, scored; where the teacher is a server, those of the next one while the student learns."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .exchange import Exchange
from .learner import Draw, Learner
from .signal import exchange_of

Answer = tuple[Sequence[int], bool]
"""The student's tokens, and whether the last of them ends the answer."""


class Ahead:
    """Answers and scores, step by step: `take` those of a step, then `begin` the next one before the student learns.

    draws: of a step, for this process.   last: the last step of the run.
    staleness: by how many steps the student's answers may be older than the weights that learn from them. At 0 only
    answers that are not the student's own are scored ahead, which changes nothing. At 1 its own are as well: they were
    written before the step in between, as in asynchronous reinforcement learning (Noukhovitch et al., 2024).

    What a step is trained on does not depend on what was ready: first come the answers that are not the student's own,
    then its own.
    """

    def __init__(
        self,
        learner: Learner,
        draws: Callable[[int], Sequence[Draw]],
        *,
        staleness: int,
        last: int,
        aborted: Callable[[], bool],
    ) -> None:
        self._learner, self._draws, self._staleness, self._last = learner, draws, staleness, last
        self._aborted = aborted
        self._waits = learner.signal is not None and learner.signal.waits
        self._thread = ThreadPoolExecutor(1, "ahead") if self._waits else None
        self._step = 0
        self._scoring: Future[list[Exchange]] | None = None
        self._asked: list[Exchange] = []
        self._own_answers: list[Exchange] = []
        self._own_step = 0

    def take(self, step: int) -> list[Exchange]:
        """A step's answers with their scores. Raises StoppedEarly and KeyboardInterrupt as `Learner.score` does."""
        if not self._waits:
            exchanges = self._learner.answer(self._draws(step), aborted=self._aborted)
            self._check()
            return self._learner.score(exchanges)
        if self._step != step:
            self.begin(step)
        scoring, asked = self._scoring, self._asked
        assert scoring is not None
        own: list[Exchange] = []
        if not self._staleness:
            own = self._learner.answer(self._own(step), aborted=self._aborted)
            self._check()
        with self._learner.watch("teacher"):
            scored = scoring.result()
        self._scoring, self._asked, self._step = None, [], 0
        self._learner.count_lost(asked, scored)
        return scored + (self._learner.score(own) if own else [])

    def begin(self, step: int, *, asks: bool = True) -> None:
        """Answer and score as much of a step as may be done before the student learns another one.

        asks: False when the run is about to end: nothing is paid that may not be needed, but the answers that belong
        into its checkpoint are written.
        """
        if not self._waits or step > self._last:
            return
        assert self._thread is not None
        learner = self._learner
        asked = learner.answer([each for each in self._draws(step) if not learner.answers_itself(*each)])
        if self._staleness:
            if self._own_step != step:  # else they were kept with the checkpoint
                own = learner.answer(self._own(step), aborted=self._aborted)
                self._check()
                self._own_answers, self._own_step = own, step
            asked += self._own_answers
        assert learner.signal is not None
        if not asks:
            return
        self._step, self._asked = step, asked
        self._scoring = self._thread.submit(learner.signal.scored, asked)

    def kept(self, step: int) -> list[Answer]:
        """The student's own answers of a step that was begun: weights that are gone wrote them, so that they belong
        into a checkpoint. [] where it was not begun."""
        if self._own_step != step:
            return []
        return [(exchange.completion_ids, exchange.ended) for exchange in self._own_answers]

    def restore(self, step: int, kept: Sequence[Answer]) -> None:
        """Go on with what `kept` gave for a step."""
        signal = self._learner.signal
        self._own_step = step
        self._own_answers = [
            exchange_of(signal, sample, ids, ended, True)
            for (sample, _), (ids, ended) in zip(self._own(step), kept, strict=bool(kept))
        ]

    def _own(self, step: int) -> list[Draw]:
        return [each for each in self._draws(step) if self._learner.answers_itself(*each)]

    def _check(self) -> None:
        if self._aborted():
            raise KeyboardInterrupt

    def close(self) -> None:
        """Wait for what is being asked: it is paid, and goes into the cache."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
