"""One run of `generate_synthetic`.

The book of paid answers is read first, which gives every slot the state that it had; then what is missing is asked; at
the end, however it comes, the data set is written anew.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import orjson

from ..commands.generate_synthetic import GenerateSynthetic, Synthesized
from ..data.jsonlines import cannot_write
from ..data.keys import work_key
from ..data.run import Run
from ..data.text import one_line
from ..errors import RequestRejected, StoppedEarly, TeacherError, TeacherUnavailable, TransientError, UsageError
from ..generation.tally import ADVICE
from ..quality.language import identifier
from ..teachers import Completion
from ..teachers.answer_book import AnswerBook, Paid
from ..teachers.engine import Engine, Limits, Spending
from .card import write_card
from .domain import Domain
from .export import export
from .folder import Folder
from .making import NOT_ANSWERED, Making, Workshop
from .measures import Measures
from .plan import Plan
from .records import Passage, Rejected, Slot
from .shelf import Shelf
from .voices import Voices

HELP = {
    "near_duplicate": "more topics in the domain, a higher --question-temperature, another --question-model",
    "not_json": "a lower --question-temperature, or a stronger --question-model",
    "no_question": "a lower --question-temperature, or a stronger --question-model",
    "empty": "a lower --question-temperature, or a stronger --question-model",
    "unverifiable": "a stronger --question-model, or tasks with verify: arithmetic",
    "other_language": "a model that knows the language, or --language any",
    "refusal": "another model, or --no-drop-refusals",
    "truncated": "a higher --max-tokens and --question-max-tokens",
    "wrong_answer": "a stronger --model",
    "schema": "a stronger --model, or a simpler JSON schema",
}
"""Main reason why drafts are not kept -> what to do."""
SYNC_EVERY_S = 5.0
SHOWN = 3
"""Reasons for which drafts were not kept that the user is told with an example."""


class Synthesis:
    """One run. made_of: what makes it another data set than others.   shelf: the records that are made.
    spending: what it cost."""

    shelf: Shelf

    def __init__(
        self, options: GenerateSynthetic, run: Run, domain: Domain, passages: list[Passage], voices: Voices
    ) -> None:
        """Raises UsageError for a mix that the domain has no tasks for."""
        self.options, self.context, self.domain, self.voices = options, run, domain, voices
        shares = domain.shares(options.mix)
        self.plan = Plan(domain, options.seed or 0, shares, passages)
        self.folder = Folder(options.output_dir)
        self.made_of: dict[str, Any] = {
            "domain": work_key(domain.model_dump(mode="json", exclude_defaults=True, exclude={"name", "mix"})),
            "mix": [round(share / sum(shares), 9) for share in shares],
            "seed": options.seed or 0,
            "documents": work_key([[each.place, each.text] for each in passages]) if passages else None,
            "model that asks": voices["questions"].identity,
            "model that answers": voices["answers"].identity,
        }
        self.workshop = Workshop(options, domain, self.plan, voices.identities, voices.samples)
        self.workshop.on_reject = self._rejected
        self._making: dict[int, Making] = {}  # slots that were begun and not ended
        self._unused = 0  # answers in the book that are not what is asked now
        self.failures: Counter[str] = Counter()
        self._last_failure: dict[str, str] = {}
        self._opened: ExitStack | None = None  # None in a dry run, which writes nothing
        self._logs: dict[Path, IO[bytes]] = {}  # of drafts and requests that came to nothing
        self._tokens_in = self._tokens_out = self._answers = self._rejected_before = 0
        self._cost_known = True
        self.spending = Spending()

    # ---- what is there -----------------------------------------------------------------------------------------

    def replay(self, paid: Paid) -> None:
        """Take an answer of an earlier run, where it is what would be asked now."""
        number = paid.place
        if number is None or not 0 <= number < self.options.num_records:
            self._unused += 1
            return
        making = self._making_of(self.plan.slot(number))
        if making is None or self.workshop.request(making).key != paid.key:
            self._unused += 1
            return
        self._take(making, paid)

    def _making_of(self, slot: Slot) -> Making | None:
        """A slot on its way, begun where it was not; None for one that is made or given up."""
        if slot.number in self.shelf:
            return None
        making = self._making.get(slot.number)
        if making is None:
            making = self._making[slot.number] = self.workshop.begin(slot)
        return None if self.workshop.given_up(making) else making

    def _take(self, making: Making, paid: Paid) -> str | None:
        """Go on with an answer, and put away a record that is made. Gives the verdict that belongs into the book."""
        verdict = self.workshop.take(making, paid)
        if making.record is not None:
            self.shelf.add(making.record)
            del self._making[making.slot.number]
        return verdict

    def _rejected(self, making: Making, why: Rejected) -> None:
        about = {"index": making.slot.number, "attempt": making.attempt, **making.slot.fields}
        self._log(self.folder.rejected, **about, reason=why.reason, why=why.why)

    def _log(self, path: Path, **row: Any) -> None:
        if self._opened is None:
            return
        try:
            if path not in self._logs:  # not before the book is locked
                file = open(path, "wb", buffering=0)  # noqa: SIM115  closed by the stack
                self._logs[path] = self._opened.enter_context(file)
            self._logs[path].write(orjson.dumps(row, default=str) + b"\n")
        except OSError as error:
            raise StoppedEarly(cannot_write(path, error)) from None

    # ---- run ---------------------------------------------------------------------------------------------------

    async def run(self) -> Synthesized:
        """Ask for everything that is missing, and write the data set."""
        if self.options.overwrite:
            self.folder.move_aside()
        self.folder.check(self.made_of)
        self.folder.make()
        with ExitStack() as self._opened:
            self.shelf = Shelf(self.folder.path, self.options.num_records)
            self._opened.callback(self.shelf.close)
            book = AnswerBook(self.folder.answers, self.replay)  # from here on nobody else may write in the folder
            self._opened.callback(book.close)
            self.folder.begin(self.made_of, self.options, self.context)
            for path in (self.folder.rejected, self.folder.failures):
                if path not in self._logs:  # of an earlier run
                    path.unlink(missing_ok=True)
            return await self._run(book)

    async def _run(self, book: AnswerBook) -> Synthesized:
        progress, workshop = self.context.progress, self.workshop
        before = len(self.shelf)
        if self._unused:
            progress.note(
                f"{self._unused:,} answers in {self.folder.answers} belong to drafts that are not asked for now"
            )
        given_up = [n for n, making in self._making.items() if workshop.given_up(making)]
        missing = self.options.num_records - before - len(given_up)
        workshop.barren.clear()
        self._rejected_before = workshop.rejected.total()
        engine = self._engine(book)
        progress.begin("synthesize", total=self.options.num_records, already=before + len(given_up), unit="records")
        started_s = time.monotonic()
        try:
            if missing:
                if self.domain.language != "any":
                    identifier()  # half a second that would hold up everybody at the first answer
                for teacher in self.voices.teachers:
                    await teacher.prepare(progress.note)
                await engine.run(self._missing())
        finally:
            progress.end()
        book.sync()
        return self._result(engine, before, time.monotonic() - started_s)

    def _missing(self) -> Iterator[Making]:
        """Slots that are neither made nor given up, in their order."""
        for slot in self.plan.slots(self.options.num_records):
            begun = slot.number in self._making or slot.number in self.shelf
            if (making := self._making_of(slot)) is not None:
                yield making
            elif not begun:  # every problem that could be made for it is there already
                self.context.progress.counts.failed += 1

    def _engine(self, book: AnswerBook) -> "Engine[Making, Paid]":
        workshop, progress = self.workshop, self.context.progress
        loop = asyncio.get_running_loop()
        self._synced_s = loop.time()

        async def attempt(making: Making) -> Paid:
            request = workshop.request(making)
            voice = self.voices[request.role]
            sampling = voice.sampling
            if voice.teacher.local:  # so that the same command gives the same answers
                sampling = replace(sampling, seed=int(request.key[-8:], 16) >> 1)
            try:
                said = await voice.teacher.complete(request.messages, sampling)
                cost = voice.cost(said)
            except (RequestRejected, TransientError) as error:
                if error.reason not in NOT_ANSWERED:
                    raise
                said, cost = Completion("", error.reason), error.cost_usd
                if cost is None and not error.billed:
                    cost = 0.0
            paid = Paid(request.key, voice.teacher.model, said, cost, making.slot.number)
            self._count(paid)
            progress.counts.tokens = self._tokens_out
            verdict = None
            try:
                try:
                    verdict = self._take(making, paid)
                finally:
                    book.add(replace(paid, verdict=verdict))
            except StoppedEarly:  # a full disk; the engine will not count what it cost
                self.spending.known += cost or 0.0
                raise
            if loop.time() - self._synced_s > SYNC_EVERY_S:
                self._synced_s = loop.time()
                await loop.run_in_executor(None, book.sync)
            return paid

        def worst_usd(making: Making) -> float:
            if making.draft is None:
                return 0.0
            return self.voices[making.role].worst_cost(workshop.request(making).messages)

        def succeeded(making: Making, paid: Paid) -> None:
            if making.record is None:  # given up: the engine counts it as done
                progress.counts.done -= 1
                progress.counts.failed += 1
            if max(workshop.barren.values(), default=0) >= self.options.patience:
                raise StoppedEarly(self._nothing_new())

        def failed(making: Making, error: TeacherError, attempts: int) -> None:
            self.failures[error.reason] += 1
            self._last_failure[error.reason] = str(error)
            about = {"index": making.slot.number, "attempt": making.attempt, "reason": error.reason}
            self._log(self.folder.failures, **about, message=str(error), attempts=attempts, cost=error.cost_usd)

        def unfinished(paid: Paid) -> bool:
            making = self._making.get(paid.place or 0)
            if max(workshop.barren.values(), default=0) >= self.options.patience:
                raise StoppedEarly(self._nothing_new())
            return making is not None and not workshop.given_up(making)

        def drain() -> None:
            for teacher in self.voices.teachers:
                teacher.drain()

        at_once = min(teacher.concurrency or self.options.concurrency for teacher in self.voices.teachers)
        return Engine(
            Limits(at_once, self.options.retries, self.options.max_cost),
            attempt=attempt,
            cost_usd=lambda paid: paid.cost_usd,
            worst_usd=worst_usd,
            succeeded=succeeded,
            failed=failed,
            unfinished=unfinished,
            drain=drain,
            spending=self.spending,
            progress=progress,
            stop=self.context.stop,
        )

    def _count(self, paid: Paid) -> None:
        usage = paid.completion.usage
        self._tokens_in += usage.prompt_tokens
        self._tokens_out += usage.completion_tokens
        self._cost_known = self._cost_known and paid.cost_usd is not None
        self._answers += 1

    def _nothing_new(self) -> str:
        why = ", ".join(f"{count:,} {reason}" for reason, count in self.workshop.rejected.most_common(SHOWN))
        last = self.workshop.last
        example = f" The last one: {last.reason}: {one_line(last.why)}." if last else ""
        most = self.workshop.rejected.most_common(1)[0][0]
        return (
            f"{max(self.workshop.barren.values()):,} drafts in a row gave nothing new (so far {why}).{example} What "
            f"helps: {HELP.get(most, HELP['near_duplicate'])}. --patience N goes on all the same."
        )

    # ---- the end -----------------------------------------------------------------------------------------------

    def _result(self, engine: "Engine[Making, Paid]", before: int, seconds: float) -> Synthesized:
        stopped, workshop, options = engine.stopped, self.workshop, self.options
        if isinstance(stopped, TeacherUnavailable) and stopped.usage and not self._answers and not len(self.shelf):
            raise UsageError(str(stopped))
        made = len(self.shelf)
        status = "done"
        if stopped:
            status = "stopped"
        elif self.context.stop.requested and made < self.options.num_records:
            status = "interrupted"
        elif made < self.options.num_records:
            status = "some_failed"
        spending = self.spending
        result = Synthesized(
            status=status,
            stopped_because=str(stopped) if stopped else None,
            output_dir=options.output_dir,
            domain=self.domain.name,
            records=made,
            wanted=self.options.num_records,
            added=made - before,
            drafts=made - before + workshop.rejected.total() - self._rejected_before,
            rejected=dict(workshop.rejected.most_common()),
            failures=dict(self.failures.most_common()),
            question_model=self.voices["questions"].teacher.model,
            answer_model=self.voices["answers"].teacher.model,
            prompt_tokens=self._tokens_in,
            completion_tokens=self._tokens_out,
            cost_usd=spending.known if self._cost_known else None,
            maybe_billed=spending.unanswered,
            maybe_billed_usd=spending.maybe,
            seconds=round(seconds, 3),
            given_up=sum(map(workshop.given_up, self._making.values())),
            advice=self._advice(),
        )
        try:
            if made:
                measures = Measures(self.domain, self.shelf)
                found = {"by_type": measures.by_type, "balance": measures.balance, "distinct_2": measures.distinct_2}
                result = result.model_copy(update=found)
                files = export(self.folder.path, lambda: iter(self.shelf), made)
                write_card(self.folder.card, result, self.domain, options, self.voices.prices, measures)
                result = result.model_copy(update={"files": [*files, self.folder.card.name]})
            self.folder.end(result.model_dump(mode="json"))
        except (OSError, StoppedEarly) as error:  # a full disk: all answers are in the book
            said = str(error) if isinstance(error, StoppedEarly) else cannot_write(self.folder.path, error)
            result = result.model_copy(update={"status": "stopped", "stopped_because": said})
        return result

    def _advice(self) -> list[str]:
        lines: list[str] = []
        if self.options.overwrite and len(self.shelf) < self.options.num_records:
            lines.append("to go on, repeat the command WITHOUT --overwrite: with it everything is asked and paid anew")
        for reason, count in self.failures.most_common():
            last = one_line(self._last_failure[reason])
            lines.append(f"{count:,} {reason}: {ADVICE.get(reason, 'read the messages')} (last: {last})")
        given_up = sum(self.workshop.given_up(making) for making in self._making.values())
        if given_up:
            lines.append(
                f"given up after {self.options.tries} drafts: {given_up:,} of the records (rejected.jsonl says why); a "
                "higher --tries goes on with them"
            )
        return lines
