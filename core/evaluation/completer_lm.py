"""A teacher that only writes answers (llama.cpp, APIs), as lm-eval asks a model."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from ..commands.teacher import TeacherOptions
from ..errors import (
    RequestRejected,
    StoppedEarly,
    TeacherError,
    TeacherUnavailable,
    Throttled,
    TransientError,
    UsageError,
)
from ..teachers import Message, Price, Sampling, Usage, open_teacher
from .answers import Broken

BACKOFF_BASE_S, BACKOFF_CAP_S = 0.5, 30.0
"""Before attempt n + 1: a random time up to BASE * 2^n, CAP at most ("full jitter")."""
FRUITLESS_S = 600.0
"""Nothing but rate limits for so long ends the evaluation."""
REFUSED_IN_A_ROW = 20
"""So many requests refused one after another end it, too: the cause is none of them."""
NOTHING = "empty_answer"
"""The reason by which a teacher says that its answer is empty: for an examiner that is an answer."""
NO_ROOM = "no_room_for_answer"
"""The reason by which it says that it never came to an answer: that tells nothing of what it knows."""


class CannotScore(UsageError):
    """The model writes answers, but does not tell how probable a given text is."""


class TeacherFailed(StoppedEarly):
    """The teacher cannot be asked any more; what it answered before is kept."""


class CompleterLM(LM):
    """Messages go to the teacher, several at a time; answers are cut at the task's stop strings here.

    `apply_chat_template` gives the messages as JSON, since it is the teacher that applies its template. Greedy unless a
    task samples; then every draw is the teacher's own, without a seed.
    """

    def __init__(self, options: TeacherOptions, note: Callable[[str], None] = lambda text: None) -> None:
        """Opens the teacher and loads what it has to load. Raises UsageError."""
        super().__init__()
        self.tokens = 0
        self.usd: float | None = None
        self.notes: list[str] = []
        self._options = options
        self._teacher = open_teacher(options)
        self._price: Price | None = None
        self._answered = self._no_room = self._refused = self._refused_in_a_row = 0
        self._last_refusal = ""
        self._quiet_until_s = self._fruitful_s = 0.0
        self._problems: list[BaseException] = []
        self._closed = False
        # One loop for all calls: connections and a teacher's worker belong to the loop that they began in.
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self._prepare(note))
        except BaseException:
            self.close()
            raise

    async def _prepare(self, note: Callable[[str], None]) -> None:
        for text in self._teacher.notes:
            note(text)
        await self._teacher.prepare(note)
        if not self._teacher.local:
            self._price = await self._teacher.price()

    # ---- what lm-eval asks ---------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return self._options.model.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as JSON, for `generate_until`."""
        return orjson.dumps(chat_history).decode()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise CannotScore(self._cannot())

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise CannotScore(self._cannot())

    def _cannot(self) -> str:
        how = "through llama.cpp" if self._teacher.local else "over a chat API"
        instead = " --teacher-backend hf runs the same file in transformers, which can." if self._teacher.local else ""
        return (
            f"{self._options.model} is asked {how}, which writes answers and does not say how probable a given one is: "
            f"no score where a model chooses among answers.{instead}"
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """One answer per request; `Broken` where the teacher refused or had no room left for one (`notes` count both).

        Every answer goes to the cache hook when it comes; a broken one does not, so that it is asked for again another
        time.

        Raises UsageError for what no request can overcome (a bad key) when that is so from the beginning, TeacherFailed
        when it is so later or the teacher cannot be reached, and whatever the hook raises, after what is in flight.
        """
        answers: list[str] = [Broken()] * len(requests)
        self._problems = []
        self._runner.run(self._answer_all([request.args for request in requests], answers))
        self.notes = self._broken_notes()
        if self._problems:
            raise self._problems[0]
        return answers

    def _broken_notes(self) -> list[str]:
        """Why items have no score."""
        notes: list[str] = []
        if self._refused:
            many = f"{self._refused:,} request{'s' * (self._refused > 1)}"
            notes.append(f"{self._options.model} refused {many}, which have no score ({self._last_refusal})")
        if self._no_room:
            many = f"{self._no_room:,} answer{'s' * (self._no_room > 1)}"
            notes.append(
                f"{many} had no room: {self._options.model} used all tokens for reasoning. These items have no score, "
                "and are asked again each time; a task's max_gen_toks, or --max-new-tokens for held-out prompts, gives "
                "more room"
            )
        return notes

    # ---- asking --------------------------------------------------------------------------------------------------

    async def _answer_all(self, asked: Sequence[Any], answers: list[str]) -> None:
        waiting = deque(enumerate(asked))
        self._fruitful_s = asyncio.get_running_loop().time()

        async def work() -> None:
            while waiting and not self._problems:
                place, (context, settings) = waiting.popleft()
                try:
                    text = await self._answer(context, settings)
                except Exception as problem:
                    self._problems.append(problem)
                    for other in workers:
                        other.cancel()
                    return
                if text is None:
                    continue
                answers[place] = text
                try:
                    self.cache_hook.add_partial("generate_until", (context, settings), text)
                except BaseException as wish:  # to stop: what is in flight may still come, and the loop must not die
                    self._problems.append(wish)

        most = self._teacher.concurrency or self._options.concurrency
        workers = [asyncio.create_task(work()) for _ in range(min(most, len(asked)))]
        if workers:
            await asyncio.wait(workers)

    async def _answer(self, context: str, settings: dict[str, Any]) -> str | None:
        """The answer up to the first stop string; None where there is none."""
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(settings, 256))
        sampling = Sampling(
            max_tokens=wanted["max_gen_toks"],
            temperature=float(wanted["temperature"]) if wanted["do_sample"] else 0.0,
            top_p=float(wanted.get("top_p", 1.0)),
        )
        text = await self._ask(messages_of(context), sampling)
        if text is None:
            return None
        return postprocess_generated_text(text, wanted["until"], None)

    async def _ask(self, messages: list[Message], sampling: Sampling) -> str | None:
        loop = asyncio.get_running_loop()
        attempts = throttled = 0
        while True:
            if (wait_s := self._quiet_until_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if self._problems:  # stopping: nothing new is begun
                raise asyncio.CancelledError
            try:
                completion = await self._teacher.complete(messages, sampling)
            except TeacherError as error:
                self._pay(error.cost_usd, Usage())
                if error.reason == NOTHING:
                    self._went_well(loop.time())
                    return ""
                if error.reason == NO_ROOM:
                    self._no_room += 1
                    self._went_well(loop.time())
                    return None
                if isinstance(error, TeacherUnavailable):
                    at_once = error.usage and not self._answered
                    raise (UsageError if at_once else TeacherFailed)(str(error)) from None
                if isinstance(error, RequestRejected):
                    return self._refusal(error)
                if isinstance(error, Throttled):
                    throttled += 1
                    self._throttled(error, throttled, loop.time())
                    continue
                attempts += 1
                self._after(error, attempts)
                await asyncio.sleep(_backoff_s(attempts))
            else:
                self._went_well(loop.time())
                self._pay(completion.cost_usd, completion.usage)
                return completion.text

    def _went_well(self, now_s: float) -> None:
        self._answered += 1
        self._fruitful_s, self._refused_in_a_row = now_s, 0

    def _refusal(self, error: RequestRejected) -> None:
        self._refused += 1
        self._refused_in_a_row += 1
        self._last_refusal = str(error)
        if self._refused_in_a_row >= REFUSED_IN_A_ROW:
            raise TeacherFailed(
                f"{self._options.model} refused {self._refused_in_a_row} requests one after another, the last one "
                f"because of {error}"
            )

    def _throttled(self, error: Throttled, times: int, now_s: float) -> None:
        """Silence for all workers, as long as the teacher asks for."""
        if now_s - self._fruitful_s > max(FRUITLESS_S, 3 * (error.retry_after_s or 0)):
            raise TeacherFailed(f"nothing but rate limits for {FRUITLESS_S / 60:.0f} minutes. The last one: {error}")
        wait_s = _backoff_s(times) if error.retry_after_s is None else error.retry_after_s
        self._quiet_until_s = max(self._quiet_until_s, now_s + wait_s)

    def _after(self, error: TeacherError, attempts: int) -> None:
        """Raises TeacherFailed when a request has failed too often: an empty answer for it would be a wrong score."""
        if isinstance(error, TransientError) and attempts <= self._options.retries:
            return
        raise TeacherFailed(
            f"{self._options.model} gave no answer in {attempts} attempts: {str(error).rstrip('.')}. What was answered "
            "is kept; the same command goes on."
        )

    def _pay(self, cost_usd: float | None, usage: Usage) -> None:
        self.tokens += usage.completion_tokens
        if cost_usd is None and self._price is not None and usage.completion_tokens:
            cost_usd = self._price.cost(usage.prompt_tokens, usage.completion_tokens)
        if cost_usd is not None:
            self.usd = (self.usd or 0.0) + cost_usd

    def close(self) -> None:
        """Give back connections, threads and the model. May be called twice."""
        if not self._closed:
            self._closed = True
            self._runner.run(self._teacher.aclose())
            self._runner.close()


def messages_of(context: str) -> list[Message]:
    """What `apply_chat_template` wrote, as messages again; any other text as one message of the user's."""
    if context.startswith('[{"'):
        try:
            found = orjson.loads(context)
        except orjson.JSONDecodeError:
            found = None
        if isinstance(found, list) and all(
            isinstance(each, dict) and {"role", "content"} <= each.keys() for each in found
        ):
            return found
    return [{"role": "user", "content": context}]


def _backoff_s(times: int) -> float:
    return random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(times, 10)))
