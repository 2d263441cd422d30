"""What a check asks of models: many questions under one budget; every answer is kept when it comes, none is paid twice.

    async with Asking(folder, run, max_cost=1.0) as asking:
        teacher = await asking.open(options.teaching(), "teacher")
        answers = await asking.ask(teacher, questions, Sampling(1024, temperature=0.0))

The same questions in the same folder another time are answered from its file. Equal questions are asked once.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..commands.teacher import TeacherOptions
from ..data.jsonlines import cannot_write
from ..data.keys import work_key
from ..data.run import Run
from ..errors import DistillError, RequestRejected, TeacherError, TeacherUnavailable, TransientError, UsageError
from ..teachers import Completer, Completion, Message, Price, Sampling, ToolSchema, open_teacher
from ..teachers.answer_book import AnswerBook, Paid, read_answers
from ..teachers.engine import Engine, Limits, Spending
from ..teachers.money import answer_cost, given_price
from .results import Model

ANSWERS = "asked.jsonl"
"""Of a folder: the answers that were paid for."""
NOT_ASKED = "not_asked"
"""The reason of a question that was not reached: money ran out, or the user stopped."""


@dataclass(frozen=True)
class Question:
    """A conversation that a model is to answer. tools: that it may call; an answer in words is wanted all the same."""

    messages: list[Message]
    tools: tuple[ToolSchema, ...] = ()

    @property
    def most_tokens(self) -> int:
        """A token has at least one byte, so bytes bound the tokens; templates add a few per message."""
        return len(orjson.dumps([self.messages, self.tools])) + 16 * len(self.messages)


@dataclass(frozen=True)
class Estimate:
    """What questions would cost. requests: that are still to be made.   cached: questions whose answers are there.
    worst_usd: of the requests, in US dollars; None where no price is known."""

    requests: int
    cached: int
    worst_usd: float | None

    def __add__(self, other: "Estimate") -> "Estimate":
        known = self.worst_usd is not None and other.worst_usd is not None
        usd = (self.worst_usd or 0.0) + (other.worst_usd or 0.0) if known else None
        return Estimate(self.requests + other.requests, self.cached + other.cached, usd)


class Respondent:
    """A model that is asked; made by `Asking.open`.

    role: "teacher", "judge", for people.   requests: questions so far.   cached: of them, answered from the file.
    price: in US dollars per token, where it is known.   known_usd: what answers of this run cost, as far as it is.
    ready: whether it was prepared for its first question.   allowed, answered: of its `Engine`, kept between questions:
    how many requests it takes at once, and whether any was answered.
    """

    def __init__(self, role: str, options: TeacherOptions, teacher: Completer, price: Price | None) -> None:
        self.role, self.options, self.price = role, options, price
        self.name, self.backend, self.local = teacher.model, teacher.backend, teacher.local
        self.requests = self.cached = 0
        self.known_usd: float | None = 0.0 if teacher.local else None
        self.teacher: Completer | None = teacher
        self.ready = False
        self.allowed: float | None = None
        self.answered = False
        stamp = {"weights": _weights(options.model)} if teacher.local else {}
        self.identity: dict[str, Any] = {**teacher.identity, **stamp}

    def worst_usd(self, question: Question, max_tokens: int) -> float:
        """The most that one attempt can cost; 0 where no price is known."""
        return self.price.cost(question.most_tokens, max_tokens) if self.price and not self.local else 0.0

    @property
    def model(self) -> Model:
        """For a report."""
        return Model(
            role=self.role,
            name=self.name,
            backend=self.backend,
            requests=self.requests,
            cached=self.cached,
            usd=self.known_usd,
        )


class Asking:
    """The questions of one run, to any number of models.

    folder: where answers are kept.   spending: of all models, under `max_cost`.   respondents: all that were opened.
    stopped: why no more is asked (the budget, a server that is gone); None while all is well.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        *,
        max_cost: float | None,
        dry_run: bool = False,
        cheaper: str = "lower --max-new-tokens",
        spending: Spending | None = None,
    ) -> None:
        """Reads the answers that are there; with `dry_run` it touches nothing.

        cheaper: what makes a request cheaper, for people.   spending: what was spent before under the same budget.
        Raises UsageError when the file of answers is not ours, cannot be written, or another run has it.
        """
        self.folder, self.run, self.max_cost, self.dry_run = folder, run, max_cost, dry_run
        self.spending = spending or Spending()
        self.stopped: DistillError | None = None
        self.respondents: list[Respondent] = []
        self._cheaper = cheaper
        self._paid: dict[str, Completion] = {}
        path = folder / ANSWERS
        self._book: AnswerBook | None = None
        if dry_run:
            read_answers(path, self._seen)
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(cannot_write(folder, error)) from None
        self._book = AnswerBook(path, self._seen)

    def _seen(self, paid: Paid) -> None:
        self._paid[paid.key] = paid.completion

    async def __aenter__(self) -> "Asking":
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for who in self.respondents:
                await self.release(who)
        finally:
            if self._book is not None:
                self._book.close()

    @property
    def ended(self) -> bool:
        """Whether nothing more can be asked: see `stopped`, or the user has had enough."""
        return self.stopped is not None or self.run.stop.requested

    async def open(self, options: TeacherOptions, role: str, *, price_option: str | None = None) -> Respondent:
        """A model that can be asked; nothing is loaded or asked yet.

        price_option: the option that names its price, by default --ROLE-price.
        Raises UsageError for a key, package or model that is missing, and for --max-cost without a price.
        """
        teacher = open_teacher(options)
        try:
            price = given_price(options)
            if price is None and (self.dry_run or self.max_cost is not None):
                price = await teacher.price()
            if price is None and not teacher.local and self.max_cost is not None and not self.dry_run:
                option = price_option or f"--{role}-price"
                raise UsageError(
                    f"--max-cost needs a price, and {teacher.endpoint} lists none for {teacher.model}. "
                    f"Add {option} PROMPT/COMPLETION in USD per million tokens, for example {option} 3/15."
                )
        except BaseException:
            await teacher.aclose()
            raise
        for note in teacher.notes:
            self.run.progress.note(f"{role}: {note}")
        who = Respondent(role, options, teacher, price)
        self.respondents.append(who)
        return who

    async def release(self, who: Respondent) -> None:
        """Give back what a model holds, such as memory; it cannot be asked again."""
        if who.teacher is not None:
            teacher, who.teacher = who.teacher, None
            await teacher.aclose()

    def estimate(
        self, who: Respondent, questions: Sequence[Question], sampling: Sampling, more_tokens: int = 0
    ) -> Estimate:
        """What `ask` would cost. more_tokens: of each prompt, for what it will hold and is not known yet."""
        keys = self._keys(who, questions, sampling)
        new = {key: question for key, question in zip(keys, questions, strict=True) if key not in self._paid}
        worst: float | None = 0.0 if who.local else None
        if who.price is not None and not who.local:
            more_usd = who.price.cost(more_tokens, 0)
            worst = sum(who.worst_usd(question, sampling.max_tokens) + more_usd for question in new.values())
        return Estimate(len(new), sum(key in self._paid for key in keys), worst)

    def known(self, who: Respondent, questions: Sequence[Question], sampling: Sampling) -> list[Completion | None]:
        """The answers that are there."""
        return [self._paid.get(key) for key in self._keys(who, questions, sampling)]

    async def ask(
        self, who: Respondent, questions: Sequence[Question], sampling: Sampling
    ) -> list[Completion | TeacherError]:
        """The answer to each question, or why there is none, in their order.

        What could not be asked any more, or not yet, has the reason NOT_ASKED; `stopped` says why. Only answers in
        words count: a call of a tool is none.

        Raises UsageError when the model cannot be loaded, and for a key or an address that is wrong, when nothing was
        answered before; StoppedEarly when the disk is full.
        """
        keys = self._keys(who, questions, sampling)
        works = {key: question for key, question in zip(keys, questions, strict=True) if key not in self._paid}
        there = sum(key in self._paid for key in keys)
        who.requests += len(set(keys))
        who.cached += len(set(keys)) - len(works)
        errors: dict[str, TeacherError] = {}
        if works and not self.ended:
            await self._ask(who, works, sampling, errors, there)
        return [self._paid.get(key) or errors.get(key) or self._not_asked() for key in keys]

    async def _ask(
        self,
        who: Respondent,
        works: dict[str, Question],
        sampling: Sampling,
        errors: dict[str, TeacherError],
        there: int,
    ) -> None:
        teacher, book, progress = who.teacher, self._book, self.run.progress
        assert teacher is not None, "released"
        assert book is not None, "a dry run asks nothing"
        if not who.ready:
            await teacher.prepare(progress.note)
            who.ready = True

        spent_usd, priced = self.spending.known, False

        def cost_of(completion: Completion) -> float | None:
            return answer_cost(completion, teacher, who.price)

        async def attempt(key: str) -> Completion:
            question = works[key]
            completion = await teacher.complete(question.messages, sampling, question.tools)
            if not completion.text.strip():
                why = "a tool call instead of an answer in words"
                raise RequestRejected("tool_calls", why, billed=True, cost_usd=cost_of(completion))
            return completion

        def succeeded(key: str, completion: Completion) -> None:
            nonlocal priced
            cost_usd = cost_of(completion)
            priced = priced or cost_usd is not None
            progress.counts.tokens += completion.usage.completion_tokens
            book.add(Paid(key, who.name, completion, cost_usd))
            self._paid[key] = completion

        def failed(key: str, error: TeacherError, attempts: int) -> None:
            errors[key] = error

        limits = Limits(
            teacher.concurrency or who.options.concurrency,
            who.options.retries,
            self.max_cost,
            cheaper=self._cheaper,
        )
        engine: Engine[str, Completion] = Engine(
            limits,
            attempt=attempt,
            cost_usd=cost_of,
            worst_usd=lambda key: who.worst_usd(works[key], sampling.max_tokens),
            succeeded=succeeded,
            failed=failed,
            drain=teacher.drain,
            progress=progress,
            stop=self.run.stop,
            spending=self.spending,
            allowed=who.allowed,
            answered=who.answered,
        )
        progress.begin(f"{who.role}: {who.name}", total=there + len(works), already=there, unit="answers")
        try:
            await engine.run(iter(works))
        finally:
            progress.end()
            await asyncio.to_thread(book.sync)
            if priced or self.spending.known > spent_usd:
                who.known_usd = (who.known_usd or 0.0) + self.spending.known - spent_usd
        who.allowed, who.answered = engine.allowed, engine.answered
        self.stopped = engine.stopped
        if isinstance(engine.stopped, TeacherUnavailable) and engine.stopped.usage and not self._answered:
            raise UsageError(str(engine.stopped))

    @property
    def _answered(self) -> bool:
        """Whether any model has answered in this run."""
        return any(who.answered for who in self.respondents)

    def _keys(self, who: Respondent, questions: Sequence[Question], sampling: Sampling) -> list[str]:
        """What decides an answer. At temperature 0 equal questions have equal answers."""
        assert who.teacher is not None, "released"
        sent = {"teacher": who.identity, **who.teacher.sampling_sent(sampling)}
        return [work_key([sent, question.messages, question.tools]) for question in questions]

    def _not_asked(self) -> TeacherError:
        why = str(self.stopped) if self.stopped is not None else "interrupted"
        return TransientError(NOT_ASKED, f"not asked: {why}")


def _weights(model: str) -> list[tuple[str, int, int]]:
    """(name, bytes, time) of each file of a model that lies here: trained anew under its old name it is another one.
    [] for what lies elsewhere."""
    path = Path(model).expanduser()
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        return [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files if file.is_file()]
    except OSError:
        return []
