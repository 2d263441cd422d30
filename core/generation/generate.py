"""`generate_teacher_data`: prompts in, SFT-ready rows with a teacher's answers out; nothing paid for is lost.

Two passes over the input: the first reads every row, finds what is wrong with it and what is missing in the output (so
that mistakes and costs are known before anything is spent); the second asks.

Files, for --output train.jsonl:
    train.jsonl                  a row per answer, appended as it arrives
    train.jsonl.rejected.jsonl   paid answers that the filters kept out; loosened filters take them back in
    train.jsonl.failures.jsonl   what failed, and why; the next run tries it again
    train.jsonl.run.json         every run: its options, where they came from, and its result
"""

import asyncio
import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from .. import __version__
from ..commands.generate_teacher_data import Generated, GenerateTeacherData, Plan
from ..data.jsonlines import FOREIGN, Journal, Row, cannot_write, lock, sound_length
from ..data.keys import KeyCounts, work_key
from ..data.prompts import BadRow, Prompt, PromptOptions, open_prompts
from ..data.run import Run, write_json
from ..errors import InputError, TeacherError, TeacherUnavailable, UsageError
from ..teachers import Completer, Completion, Sampling, open_teacher
from ..teachers.openai_api import ApiTeacher, Price
from .engine import Engine, Limits
from .filters import Filters

OURS = ("teacher", "id", "sample", "index", "finish_reason", "usage", "cost", "reasoning", "rejected_because")
"""Keys of a row's metadata that we write; the same key in the input's metadata becomes input_<key>."""

ADVICE = {
    "timeout": "slow answers: a higher --timeout or a lower --max-tokens",
    "connection": "the connection failed: is the server up, is --base-url right?",
    "context_length": "longer than the teacher's context: shorten these prompts or lower --max-tokens",
    "no_room_for_answer": "reasoning used up --max-tokens: raise it",
    "over_budget": "one request exceeds the provider's budget: lower --max-tokens",
    "not_found": "the provider does not serve this model or these options: check --model",
    "invalid_request": "the provider does not accept these requests: read their messages",
    "refused_by_provider": "the provider's rules refuse these prompts",
    "content_filter": "the provider's content filter cut these answers",
    "refusal": "the teacher refuses these prompts",
    "bad_row": "rows of the input that cannot be used: mend them",
    "upstream_error": "the provider had errors: run the same command again",
    "broken_answer": "broken answers: run the same command again",
    "empty_answer": "empty answers: run the same command again",
    "truncated": "cut off by --max-tokens: raise it, or --no-drop-truncated takes these answers as they are",
    "too_short": "shorter than --min-chars; a lower value takes these answers in without asking again",
}


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
    if same_file(options.input, options.output):  # the rows that are added would be read as prompts, for ever
        raise UsageError(f"--input and --output are the same file, {options.output}. Choose another --output.")
    teacher = open_teacher(options)
    try:
        reading = PromptOptions(options.prompt_key, options.system, options.limit)
        with open_prompts(options.input, reading) as prompts:
            generation = Generation(options, run, teacher, prompts)
            for note in getattr(teacher, "notes", []):
                run.progress.note(note)
            price = await find_price(options, teacher) if options.dry_run or options.max_cost else None
            if options.dry_run:
                return await generation.dry_run(price)
            return await generation.run(price or given_price(options))
    finally:
        await teacher.aclose()


def given_price(options: GenerateTeacherData) -> Price | None:
    """The price of --price, in USD per token."""
    if options.price is None:
        return None
    prompt, completion = (float(part) / 1e6 for part in options.price.split("/"))
    return Price(prompt, completion, "--price")


async def find_price(options: GenerateTeacherData, teacher: Completer) -> Price | None:
    """The price of --price, else of the provider's list. Raises UsageError if --max-cost needs one that is unknown."""
    price = given_price(options)
    if price is None and isinstance(teacher, ApiTeacher):
        price = await teacher.price()
        if price is None and options.max_cost is not None and not options.dry_run:
            raise UsageError(
                f"--max-cost needs a price, and {teacher.endpoint} lists none for {teacher.model}. "
                "Add --price PROMPT/COMPLETION in USD per million tokens, for example --price 3/15."
            )
    return price


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
        self.output = options.output
        self.rejected_path = beside(self.output, ".rejected.jsonl")
        self.failures_path = beside(self.output, ".failures.jsonl")
        self.run_path = beside(self.output, ".run.json")
        self._asked_for = {
            "teacher": teacher.identity,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_p": self.sampling.top_p,
            "seed": options.seed,
        }
        self.done = KeyCounts()
        self.rejected_before = KeyCounts()
        self.acceptable = KeyCounts()  # rejected before, and no longer by these filters
        self.failed_before = KeyCounts()
        self.settled_again = KeyCounts()

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
        """What has to be asked, in the order of the input."""
        for row, occurrence in self.rows():
            if isinstance(row, Prompt):
                for work in self.works(row, occurrence):
                    if work.key not in self.done and work.key not in self.rejected_before:
                        yield work

    def inspect_output(self, number: int, row: Row) -> None:
        """Remember a row of the output. Raises InputError when it is not one of ours."""
        self.done.add(row_key(self.output, number, row))

    def inspect_rejected(self, number: int, row: Row) -> None:
        key = row_key(self.rejected_path, number, row)
        if key not in self.done:
            self.rejected_before.add(key)
            if self.reject(row) is None:
                self.acceptable.add(key)

    def inspect_failures(self, number: int, row: Row) -> None:
        if not isinstance(row.get("id"), str):
            raise InputError(self.failures_path, number, f"not a failure of ours. {FOREIGN}")
        self.failed_before.add(row["id"])

    def reject(self, row: Row) -> str | None:
        """Why the filters keep a row out, or None."""
        text, metadata = row["messages"][-1].get("content") or "", row["metadata"]
        marked = "refusal" if metadata.get("rejected_because") == "refusal" else ""  # perhaps by the provider alone
        return self.filters.reject(text, metadata["finish_reason"], marked)

    def scan(self) -> "Scan":
        """The first pass. Raises InputError when no row can be used."""
        scan = Scan()
        for row, occurrence in self.rows():
            if isinstance(row, BadRow):
                scan.bad_rows += 1
                if len(scan.examples) < 5:
                    scan.examples.append(str(row))
                continue
            scan.prompts += 1
            for work in self.works(row, occurrence):
                if work.key in self.done:
                    scan.there += 1
                elif work.key in self.acceptable:
                    scan.acceptable.add(work.key)
                elif work.key in self.rejected_before:
                    scan.rejected += 1
                else:
                    scan.missing += 1
                    scan.prompt_bytes += message_bytes(row)
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
        for path, inspect in self._files():
            if path.is_file() and not self.options.overwrite:
                sound_length(path, inspect)
        scan = self.scan()
        self._tell_bad_rows(scan)
        tokens_in, tokens_out = scan.prompt_bytes // 4, scan.missing * self.options.max_tokens
        credit = await self.teacher.credit_left_usd() if isinstance(self.teacher, ApiTeacher) else None
        endpoint = self.teacher.identity.get("endpoint")
        unknown = "computed on this machine" if self.teacher.local else f"{endpoint} lists none; see --price"
        return Plan(
            prompts=scan.prompts,
            bad_rows=scan.bad_rows,
            answers_wanted=scan.prompts * self.options.samples,
            answers_there=scan.there + len(scan.acceptable) + scan.rejected,
            requests=scan.missing,
            prompt_tokens_estimate=tokens_in,
            completion_tokens_at_most=tokens_out,
            price_usd_per_million=(price.prompt * 1e6, price.completion * 1e6) if price else None,
            price_source=price.source if price else unknown,
            worst_case_usd=price.cost(tokens_in, tokens_out) if price else (0.0 if self.teacher.local else None),
            credit_left_usd=credit,
            model=self.teacher.model,
            backend=self.teacher.backend,
        )

    def _files(self) -> list[tuple[Path, Callable[[int, Row], None]]]:
        """In this order: what is rejected depends on what is done."""
        return [
            (self.output, self.inspect_output),
            (self.rejected_path, self.inspect_rejected),
            (self.failures_path, self.inspect_failures),
        ]

    def _tell_bad_rows(self, scan: "Scan") -> None:
        if scan.bad_rows:
            unseen = scan.bad_rows - len(scan.examples)
            more = f"\n  ... and {unseen:,} more" if unseen else ""
            self.context.progress.note(
                f"{scan.bad_rows:,} rows cannot be used:\n  " + "\n  ".join(scan.examples) + more
            )

    # ---- run -------------------------------------------------------------------------------------------------

    async def run(self, price: Price | None) -> Generated:
        """Ask for everything that is missing. Raises UsageError before the first request when something is wrong."""
        if self.options.overwrite:
            self._move_aside()
        journals = [Journal(path, inspect) for path, inspect in self._files()]
        try:
            return await self._run(price, *journals)
        finally:
            for journal in journals:
                journal.close()

    def _move_aside(self) -> None:
        """For --overwrite. Raises UsageError before anything is moved: no usable prompt, or another run's output."""
        if not any(isinstance(row, Prompt) for row, _ in self.rows()):
            self.scan()
        files = [p for p in (self.output, self.rejected_path, self.failures_path, self.run_path) if p.is_file()]
        with ExitStack() as held:
            for path in files:
                lock(held.enter_context(open(path, "rb")).fileno(), path)
            for path in files:
                aside, number = beside(path, ".old"), 2
                while aside.exists():
                    aside, number = beside(path, f".old{number}"), number + 1
                try:
                    path.rename(aside)
                except OSError as error:
                    raise UsageError(cannot_write(aside, error)) from None

    async def _run(self, price: Price | None, rows: Journal, rejected: Journal, failures: Journal) -> Generated:
        progress = self.context.progress
        scan = self.scan()
        self._tell_bad_rows(scan)
        record = self._record_start()
        tally = Tally()
        failures_before = failures.length
        if scan.acceptable:
            self._accept(scan.acceptable, rows, rejected)
        for row, _ in self.rows() if scan.bad_rows else ():
            if isinstance(row, BadRow):
                key = work_key(["bad row", row.place, row.problem])
                self._failure(failures, tally, key, row.place, 0, "bad_row", row.problem, 0, None)

        if scan.missing:
            await self.teacher.prepare(progress.note)
        loop = asyncio.get_running_loop()
        last_sync_s = loop.time()

        async def attempt(work: Work) -> Completion:
            # Greedy or not, equal requests may get equal answers from a provider's cache: further samples need seeds.
            seeded = self.options.seed is not None or work.sample > 0
            sampling = replace(self.sampling, seed=int(work.key[-8:], 16) >> 1) if seeded else self.sampling
            return await self.teacher.complete(work.prompt.messages, sampling)

        def cost_usd(completion: Completion) -> float:
            return self._cost(completion, price) or 0.0

        def worst_usd(work: Work) -> float:
            if price is None or self.teacher.local:
                return 0.0
            # A token has at least one byte, so bytes bound the prompt's tokens; templates add a few per message.
            return price.cost(message_bytes(work.prompt) + 16 * len(work.prompt.messages), self.options.max_tokens)

        def succeeded(work: Work, completion: Completion) -> None:
            nonlocal last_sync_s
            cost = self._cost(completion, price)
            row = self._row(work, completion, cost)
            reason = self.filters.reject(completion.text, completion.finish_reason, completion.refusal)
            if reason:
                row["metadata"]["rejected_because"] = reason
                rejected.append(row)
            else:
                rows.append(row)
            tally.answer(completion, cost, reason)
            progress.counts.tokens = tally.completion_tokens
            if work.key in self.failed_before:
                self.settled_again.add(work.key)
            if loop.time() - last_sync_s > 1:
                last_sync_s = loop.time()
                loop.run_in_executor(None, rows.sync)

        def failed(work: Work, error: TeacherError, attempts: int) -> None:
            self._failure(
                failures,
                tally,
                work.key,
                work.prompt.place,
                work.sample,
                error.reason,
                str(error),
                attempts,
                error.cost_usd,
            )

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
            progress.end()
        self._forget_failures(failures, failures_before)
        result = self._result(scan, tally, engine, time.monotonic() - started_s)
        self._record_end(record, result)
        return result

    def _cost(self, completion: Completion, price: Price | None) -> float | None:
        """USD of an answer: what the teacher says, else the price times its tokens; 0 for a local teacher."""
        if self.teacher.local:
            return 0.0
        if completion.cost_usd is None and price is not None:
            return price.cost(completion.usage.prompt_tokens, completion.usage.completion_tokens)
        return completion.cost_usd

    def _row(self, work: Work, completion: Completion, cost: float | None) -> Row:
        answer: Row = {"role": "assistant", "content": completion.text}
        if self.options.keep_reasoning:  # "" too: `datasets` wants the same keys in every row
            answer["reasoning_content"] = completion.reasoning
        theirs = {f"input_{k}" if k in OURS else k: v for k, v in work.prompt.metadata.items()}
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

    def _accept(self, keys: set[str], rows: Journal, rejected: Journal) -> None:
        """Take answers in that looser filters no longer reject: they are paid for."""

        def still_rejected(_: int, row: Row) -> bool:
            key = row["metadata"]["id"]
            if key in keys:
                del row["metadata"]["rejected_because"]
                rows.append(row)
            return key not in keys and key not in self.done

        rejected.rewrite(still_rejected, after_reading=rows.sync)
        self.context.progress.note(
            f"{len(keys):,} answers that were rejected before are taken in; nothing is asked again"
        )

    def _failure(
        self,
        failures: Journal,
        tally: "Tally",
        key: str,
        place: str,
        sample: int,
        reason: str,
        message: str,
        attempts: int,
        cost_usd: float | None,
    ) -> None:
        failures.append(
            {
                "id": key,
                "place": place,
                "sample": sample,
                "reason": reason,
                "message": message,
                "attempts": attempts,
                "cost": cost_usd,
                "time": utc_now(),
            }
        )
        tally.failures[reason] += 1
        tally.last_message[reason] = message
        if key in self.failed_before:
            self.settled_again.add(key)

    def _forget_failures(self, failures: Journal, before: int) -> None:
        """Drop what earlier runs wrote about work that has been settled since, and about bad rows: those that are
        still bad were written again."""

        def keep(offset: int, row: Row) -> bool:
            settled = row["id"] in self.settled_again or row["id"] in self.done or row.get("reason") == "bad_row"
            return offset >= before or not settled

        if len(self.failed_before):
            failures.rewrite(keep)

    # ---- the end ---------------------------------------------------------------------------------------------

    def _result(self, scan: "Scan", tally: "Tally", engine: "Engine[Work, Completion]", seconds: float) -> Generated:
        stopped = engine.stopped
        answered = tally.kept + sum(tally.rejected.values())
        if isinstance(stopped, TeacherUnavailable) and stopped.usage and not answered:
            raise UsageError(str(stopped))
        remaining = scan.missing - answered
        status = "done"
        if stopped:
            status = "stopped"
        elif self.context.stop.requested and remaining > sum(tally.failures.values()) - tally.failures["bad_row"]:
            status = "interrupted"
        elif tally.failures:
            status = "some_failed"
        known = tally.cost_known or not answered or engine.spending.known
        return Generated(
            status=status,
            stopped_because=str(stopped) if stopped else None,
            output=self.output,
            model=self.teacher.model,
            backend=self.teacher.backend,
            rows=tally.kept + len(scan.acceptable),
            rows_in_output=scan.there + len(scan.acceptable) + tally.kept,
            failed=sum(tally.failures.values()),
            rejected=sum(tally.rejected.values()),
            bad_rows=scan.bad_rows,
            remaining=remaining,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cost_usd=engine.spending.known if known else None,
            maybe_billed_usd=engine.spending.maybe,
            seconds=round(seconds, 3),
            finish_reasons=dict(tally.finish_reasons.most_common()),
            answer_tokens=tally.quantiles(),
            failures=dict(tally.failures.most_common()),
            advice=tally.advice(),
        )

    def _record_start(self) -> dict[str, Any]:
        """Add this run to <output>.run.json."""
        runs: list[Any] = []
        try:
            runs = list(orjson.loads(self.run_path.read_bytes())["runs"])
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
            pass  # the first run, or a damaged record: the rows are what counts
        options = self.options.model_dump(mode="json")
        record: dict[str, Any] = {
            "command": "generate_teacher_data",
            "version": __version__,
            "started": utc_now(),
            "options": {k: {"value": v, "from": self.context.origins.get(k, "default")} for k, v in options.items()},
            "teacher": self.teacher.identity,
            "result": None,
        }
        runs.append(record)
        try:
            write_json(self.run_path, {"runs": runs})
        except OSError as error:
            raise UsageError(cannot_write(self.run_path, error)) from None
        return {"runs": runs}

    def _record_end(self, record: dict[str, Any], result: Generated) -> None:
        record["runs"][-1] |= {"ended": utc_now(), "result": result.model_dump(mode="json")}
        try:
            write_json(self.run_path, record)
        except OSError as error:  # a full disk: the rows are safe, and the summary is still to be shown
            self.context.progress.note(f"{self.run_path} could not be written: {error.strerror}")


class Scan:
    """What the first pass found."""

    def __init__(self) -> None:
        self.prompts = self.bad_rows = self.there = self.rejected = self.missing = self.prompt_bytes = 0
        self.acceptable: set[str] = set()
        self.examples: list[str] = []


class Tally:
    """What a run has had so far, in memory that does not grow with the rows."""

    def __init__(self) -> None:
        self.kept = self.prompt_tokens = self.completion_tokens = 0
        self.cost_known = True
        self.rejected: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.finish_reasons: Counter[str] = Counter()
        self.last_message: dict[str, str] = {}
        self._lengths: Counter[int] = Counter()

    def answer(self, completion: Completion, cost: float | None, rejected: str | None) -> None:
        if rejected:
            self.rejected[rejected] += 1
        else:
            self.kept += 1
        self.prompt_tokens += completion.usage.prompt_tokens
        self.completion_tokens += completion.usage.completion_tokens
        self.cost_known = self.cost_known and cost is not None
        self.finish_reasons[completion.finish_reason] += 1
        self._lengths[completion.usage.completion_tokens or len(completion.text) // 4] += 1

    def quantiles(self) -> dict[str, int]:
        """Smallest, quartiles, 90 % and largest length of the answers (nearest rank)."""
        ordered = sorted(self._lengths.items())
        total = sum(self._lengths.values())
        if not total:
            return {}
        wanted = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "90%": 0.9, "max": 1.0}
        found: dict[str, int] = {}
        for name, share in wanted.items():
            rank, passed = max(1, -int(-share * total // 1)), 0
            for length, count in ordered:
                passed += count
                if passed >= rank:
                    found[name] = length
                    break
        return found

    def advice(self) -> list[str]:
        """A line for each kind of failure and rejection."""
        lines: list[str] = []
        for reason, count in (self.failures + self.rejected).most_common():
            said = self.last_message.get(reason)
            last = f" (last: {said[:160]})" if said and reason != "bad_row" else ""
            lines.append(f"{count:,} {reason}: {ADVICE.get(reason, 'read the messages')}{last}")
        return lines


def same_file(source: str, output: Path) -> bool:
    """Whether the prompts are read from the file that the rows would be written to."""
    try:
        return output.samefile(source)
    except (OSError, ValueError):  # one of them does not exist, or is no path at all
        return False


def beside(path: Path, suffix: str) -> Path:
    """train.jsonl, .run.json -> train.jsonl.run.json"""
    return path.with_name(path.name + suffix)


def row_key(path: Path, number: int, row: Any) -> str:
    """The key of a row that we wrote. Raises InputError for any other."""
    metadata = row.get("metadata") if isinstance(row, dict) else None
    key = metadata.get("id") if isinstance(metadata, dict) else None
    if not (isinstance(key, str) and len(key) == 32 and row.get("messages")):
        raise InputError(path, number, f"not a row of generate_teacher_data. {FOREIGN}")
    try:
        int(key, 16)
    except ValueError:
        raise InputError(path, number, f"not a row of generate_teacher_data. {FOREIGN}") from None
    return key


def message_bytes(prompt: Prompt) -> int:
    """UTF-8 bytes of a prompt's texts."""
    return sum(len(str(message.get("content") or "").encode()) for message in prompt.messages)


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
