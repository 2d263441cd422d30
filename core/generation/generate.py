"""`generate_teacher_data`: prompts in, SFT-ready rows with a teacher's answers out; nothing paid for is lost.

Two passes over the input: the first reads every row, finds what is wrong with it and what is missing in the output (so
that mistakes and costs are known before anything is spent); the second asks. The files are `books`' business.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..commands.generate_teacher_data import Generated, GenerateTeacherData, Plan
from ..data.jsonlines import Row
from ..data.keys import KeyCounts, work_key
from ..data.prompts import BadRow, Prompt, PromptOptions, open_prompts
from ..data.run import Run
from ..errors import InputError, RequestRejected, StoppedEarly, TeacherError, TeacherUnavailable, UsageError
from ..teachers import Completer, Completion, Price, Sampling, open_teacher
from ..teachers.engine import Engine, Limits
from ..teachers.money import answer_cost, find_price, given_price, message_bytes, worst_cost
from .books import Books
from .filters import Filters
from .tally import Tally

OURS = ("teacher", "id", "sample", "index", "finish_reason", "usage", "cost", "reasoning", "rejected_because")
"""Keys of a row's metadata that we write; the same key in the input's metadata becomes input_<key>."""


@dataclass(frozen=True)
class Work:
    """One answer to ask for. key: 32 hex digits over everything that changes the answer."""

    key: str
    prompt: Prompt
    sample: int


def generate(options: GenerateTeacherData, run: Run) -> Generated | Plan:
    """Do the work of the command. Raises UsageError before anything is spent when something is wrong."""
    return asyncio.run(_generate(options, run))


async def _generate(options: GenerateTeacherData, run: Run) -> Generated | Plan:
    for file in Books(options.output, Filters()).files:  # rows that are added would be read as prompts, for ever
        if same_file(options.input, file):
            raise UsageError(f"--input is {file}, which belongs to --output. Choose another --output.")
    teacher = open_teacher(options)
    try:
        reading = PromptOptions(options.prompt_key, options.system, options.limit)
        with open_prompts(options.input, reading) as prompts:
            generation = Generation(options, run, teacher, prompts)
            for note in teacher.notes:
                run.progress.note(note)
            price = await find_price(options, teacher) if options.dry_run or options.max_cost else None
            if options.dry_run:
                return await generation.dry_run(price)
            return await generation.run(price or given_price(options))
    finally:
        await teacher.aclose()


class Generation:
    """One run: what is there, what is missing, and where outcomes go."""

    def __init__(
        self,
        options: GenerateTeacherData,
        run: Run,
        teacher: Completer,
        prompts: Callable[[], Iterator[Prompt | BadRow]],
    ) -> None:
        self.options, self.context, self.teacher, self._prompts = options, run, teacher, prompts
        self.filters = Filters(options.min_chars, options.drop_truncated, options.drop_refusals)
        self.sampling = Sampling(options.max_tokens, options.temperature, options.top_p or 1.0)
        self.books = Books(options.output, self.filters)
        sent = teacher.sampling_sent(replace(self.sampling, seed=options.seed))
        self._asked_for = {"teacher": teacher.identity, **sent}

    # ---- what is wanted, and what is there -----------------------------------------------------------------

    def rows(self) -> Iterator[tuple[Prompt | BadRow, int]]:
        """The rows of this shard, each with the number of equal prompts before it (counted over all shards)."""
        seen = KeyCounts()
        shard, shards = self.options.shard_of
        for row in self._prompts():
            occurrence = seen.add(work_key(row.messages)) if isinstance(row, Prompt) else 0
            if row.index % shards == shard - 1 and not (self.options.dedupe and occurrence):
                yield row, occurrence

    def works(self, prompt: Prompt, occurrence: int) -> Iterator[Work]:
        """One piece of work per sample."""
        for sample in range(self.options.samples):
            yield Work(work_key([self._asked_for, prompt.messages, sample, occurrence]), prompt, sample)

    def missing(self) -> Iterator[Work]:
        """What has to be asked, in the order of the input; what failed before comes last, so that a block of bad
        prompts at the front cannot stop every run before the good ones."""
        for again in (False, True) if self.books.had_failures else (False,):
            for row, occurrence in self.rows():
                for work in self.works(row, occurrence) if isinstance(row, Prompt) else ():
                    if self.books.has(work.key) or self.books.rejects(work.key):
                        continue
                    if self.books.failed_before(work.key) == again:
                        yield work

    def scan(self) -> "Scan":
        """The first pass. Raises InputError when no row can be used."""
        scan = Scan()
        for row, occurrence in self.rows():
            self.context.stop.check()
            if isinstance(row, BadRow):
                scan.bad_rows += 1
                if len(scan.examples) < 5:
                    scan.examples.append(str(row))
                continue
            scan.prompts += 1
            for work in self.works(row, occurrence):
                if self.books.has(work.key):
                    scan.there += 1
                elif self.books.would_accept(work.key):
                    scan.acceptable.add(work.key)
                elif self.books.rejects(work.key):
                    scan.rejected += 1
                else:
                    scan.missing += 1
                    scan.prompt_bytes += message_bytes(row.messages)
        if not scan.prompts:
            if scan.examples:
                raise UsageError("no usable prompt in the input:\n  " + "\n  ".join(scan.examples))
            raise InputError(self.options.input, None, "holds no prompts" + self._why_none())
        return scan

    def _why_none(self) -> str:
        return f" for shard {self.options.shard}." if self.options.shard else " (only blank lines)."

    # ---- dry run ---------------------------------------------------------------------------------------------

    async def dry_run(self, price: Price | None) -> Plan:
        """What `run` would ask and pay. Touches no file and makes no paid request."""
        if not self.options.overwrite:
            self.books.read()
        scan = self.scan()
        self._tell_bad_rows(scan)
        tokens_in, tokens_out = scan.prompt_bytes // 4, scan.missing * self.options.max_tokens
        mean = self.books.mean_answer_tokens
        expected = price.cost(tokens_in, scan.missing * mean) if price and mean else None
        unlisted = f"unknown, none found at {self.teacher.endpoint}/models; see --price"
        return Plan(
            prompts=scan.prompts,
            bad_rows=scan.bad_rows,
            answers_wanted=scan.prompts * self.options.samples,
            answers_there=scan.there + len(scan.acceptable) + scan.rejected,
            requests=scan.missing,
            prompt_tokens_estimate=tokens_in,
            completion_tokens_at_most=tokens_out,
            price_usd_per_million=(price.prompt * 1e6, price.completion * 1e6) if price else None,
            price_source=price.source if price else ("none, it runs here" if self.teacher.local else unlisted),
            worst_case_usd=price.cost(tokens_in, tokens_out) if price else (0.0 if self.teacher.local else None),
            expected_usd=expected,
            credit_left_usd=await self.teacher.credit_left_usd(),
            model=self.teacher.model,
            backend=self.teacher.backend,
        )

    def _tell_bad_rows(self, scan: "Scan") -> None:
        if scan.bad_rows:
            unseen = scan.bad_rows - len(scan.examples)
            more = f"\n  ... and {unseen:,} more" if unseen else ""
            self.context.progress.note(f"unusable rows: {scan.bad_rows:,}\n  " + "\n  ".join(scan.examples) + more)

    # ---- run -------------------------------------------------------------------------------------------------

    async def run(self, price: Price | None) -> Generated:
        """Ask for everything that is missing. Raises UsageError before the first request when something is wrong."""
        if self.options.overwrite:
            if not any(isinstance(row, Prompt) for row, _ in self.rows()):
                self.scan()  # says why, before anything is moved
            self.books.move_aside()
        with self.books.open():
            return await self._run(price)

    async def _run(self, price: Price | None) -> Generated:
        progress = self.context.progress
        scan = self.scan()
        self._tell_bad_rows(scan)
        self.books.record_start(self._about())
        tally = Tally()
        if scan.acceptable:
            self.books.accept(scan.acceptable)
            progress.note(
                f"{len(scan.acceptable):,} answers that were rejected before are taken in; nothing is asked again"
            )

        def note_failure(key: str, place: str, sample: int, error: TeacherError, attempts: int) -> None:
            tally.failure(error.reason, str(error))
            about = {"reason": error.reason, "message": str(error), "attempts": attempts, "cost": error.cost_usd}
            self.books.failed(key, place=place, sample=sample, **about)

        for row, _ in self.rows() if scan.bad_rows else ():
            if isinstance(row, BadRow):
                problem = RequestRejected("bad_row", row.problem)
                note_failure(work_key(["bad row", row.place, row.problem]), row.place, 0, problem, 0)

        if scan.missing:
            await self.teacher.prepare(progress.note)
        loop = asyncio.get_running_loop()
        last_sync_s, syncing = loop.time(), loop.create_future()
        syncing.set_result(None)

        async def attempt(work: Work) -> Completion:
            # Greedy or not, equal requests may get equal answers from a provider's cache: further samples need seeds.
            seeded = self.options.seed is not None or work.sample > 0
            sampling = replace(self.sampling, seed=int(work.key[-8:], 16) >> 1) if seeded else self.sampling
            completion = await self.teacher.complete(work.prompt.messages, sampling)
            if not completion.text.strip():  # a row here is an answer in words
                cost = answer_cost(completion, self.teacher, price)
                raise RequestRejected("tool_calls", "a tool call instead of an answer", billed=True, cost_usd=cost)
            return completion

        def cost_usd(completion: Completion) -> float | None:
            return answer_cost(completion, self.teacher, price)

        def worst_usd(work: Work) -> float:
            if price is None or self.teacher.local:
                return 0.0
            return worst_cost(price, work.prompt.messages, self.options.max_tokens)

        def succeeded(work: Work, completion: Completion) -> None:
            nonlocal last_sync_s, syncing
            cost = answer_cost(completion, self.teacher, price)
            reason = self.filters.reject(completion.text, completion.finish_reason, completion.refusal)
            self.books.answered(self._row(work, completion, cost), reason)
            tally.answer(completion, cost, reason)
            progress.counts.tokens = tally.completion_tokens
            if loop.time() - last_sync_s > 1 and syncing.done():
                syncing.result()  # raises when the disk failed
                last_sync_s = loop.time()
                syncing = loop.run_in_executor(None, self.books.sync)

        def failed(work: Work, error: TeacherError, attempts: int) -> None:
            note_failure(work.key, work.prompt.place, work.sample, error, attempts)

        engine: Engine[Work, Completion] = Engine(
            Limits(self.teacher.concurrency or self.options.concurrency, self.options.retries, self.options.max_cost),
            attempt=attempt,
            cost_usd=cost_usd,
            worst_usd=worst_usd,
            succeeded=succeeded,
            failed=failed,
            drain=self.teacher.drain,
            progress=progress,
            stop=self.context.stop,
        )
        there = scan.there + scan.rejected + len(scan.acceptable)
        progress.begin("generate", total=there + scan.missing, already=there, unit="answers")
        started_s = time.monotonic()
        try:
            if scan.missing:
                await engine.run(self.missing())
        finally:
            with contextlib.suppress(StoppedEarly):  # the summary is still to be shown; closing the files will say it
                await syncing
            progress.end()
        result = self._result(scan, tally, engine, time.monotonic() - started_s)
        try:
            self.books.forget_settled()
            self.books.record_end(result.model_dump(mode="json"))
        except StoppedEarly as error:  # a full disk: the rows are safe, and the summary is still to be shown
            progress.note(str(error))
        if self.options.overwrite and result.remaining:
            progress.note("to go on, repeat the command WITHOUT --overwrite: with it everything is asked and paid anew")
        if isinstance(engine.stopped, TeacherUnavailable) and engine.stopped.usage and not result.finish_reasons:
            raise UsageError(str(engine.stopped))
        return result

    def _row(self, work: Work, completion: Completion, cost: float | None) -> Row:
        answer: Row = {"role": "assistant", "content": completion.text}
        if self.options.keep_reasoning:  # "" too: `datasets` wants the same keys in every row
            answer["reasoning_content"] = completion.reasoning
        theirs = dict(work.prompt.metadata)
        for name in OURS:
            if name in theirs:
                theirs[free_name(f"input_{name}", theirs)] = theirs.pop(name)
        usage = completion.usage
        ours = {
            "id": work.key,
            "index": work.prompt.index,
            "sample": work.sample,
            "finish_reason": completion.finish_reason,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "reasoning_tokens": usage.reasoning_tokens,
            },
            "cost": cost,
            "reasoning": completion.reasoning,
        }
        return {
            "messages": [*work.prompt.messages, answer],
            "metadata": {"teacher": self.teacher.model, **theirs, **ours},
        }

    # ---- the end ---------------------------------------------------------------------------------------------

    def _result(self, scan: "Scan", tally: "Tally", engine: "Engine[Work, Completion]", seconds: float) -> Generated:
        stopped = engine.stopped
        answered = tally.kept + sum(tally.rejected.values())
        remaining = scan.missing - answered
        status = "done"
        if stopped:
            status = "stopped"
        elif self.context.stop.requested and remaining > sum(tally.failures.values()) - tally.failures["bad_row"]:
            status = "interrupted"
        elif tally.failures:
            status = "some_failed"
        known = engine.spending.known or (tally.cost_known and not engine.spending.unanswered)
        return Generated(
            status=status,
            stopped_because=str(stopped) if stopped else None,
            output=self.options.output,
            model=self.teacher.model,
            backend=self.teacher.backend,
            rows=tally.kept + len(scan.acceptable),
            wanted=scan.there + len(scan.acceptable) + scan.rejected + scan.missing,
            rows_in_output=scan.there + len(scan.acceptable) + tally.kept,
            failed=sum(tally.failures.values()),
            rejected=sum(tally.rejected.values()),
            bad_rows=scan.bad_rows,
            remaining=remaining,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cost_usd=engine.spending.known if known else None,
            maybe_billed=engine.spending.unanswered,
            maybe_billed_usd=engine.spending.maybe,
            seconds=round(seconds, 3),
            finish_reasons=dict(tally.finish_reasons.most_common()),
            answer_tokens=tally.quantiles(),
            failures=dict(tally.failures.most_common()),
            advice=tally.advice(),
        )

    def _about(self) -> dict[str, Any]:
        """This run, for the record."""
        options = self.options.model_dump(mode="json")
        return {
            "command": "generate_teacher_data",
            "version": __version__,
            "options": {k: {"value": v, "from": self.context.origins.get(k, "default")} for k, v in options.items()},
            "teacher": self.teacher.identity,
        }


class Scan:
    """What the first pass found."""

    def __init__(self) -> None:
        self.prompts = self.bad_rows = self.there = self.rejected = self.missing = self.prompt_bytes = 0
        self.acceptable = KeyCounts()
        self.examples: list[str] = []


def same_file(source: str, output: Path) -> bool:
    """Whether the prompts are read from the file that the rows would be written to."""
    try:
        return output.samefile(source)
    except (OSError, ValueError):  # one of them does not exist, or is no path at all
        return False


def free_name(name: str, taken: Row) -> str:
    """The name, with "input_" before it as often as it takes to be new."""
    while name in taken:
        name = f"input_{name}"
    return name
