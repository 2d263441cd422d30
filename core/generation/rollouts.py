"""`run_rollouts`: prompts in, a file per rollout out; nothing finished is run again.

Two passes over the prompts, as in `generate`: the first finds what is wanted and missing, the second runs it. The
engine takes a turn of the teacher as an attempt, so retries, rate limits and the budget work turn by turn, while a
rollout keeps its tools.
"""

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import orjson

from ..commands.run_rollouts import RolledOut, RolloutPlan, RunRollouts
from ..data.keys import KeyCounts, work_key
from ..data.prompts import ANSWER_KEYS, BadRow, PromptOptions, open_prompts
from ..data.rollouts import read_rollout
from ..data.run import Run
from ..data.statistics import wilson
from ..errors import TeacherUnavailable, UsageError
from ..teachers import Completer, Price, backend_of, open_teacher
from ..teachers.engine import Engine, Limits
from ..teachers.money import answer_cost, find_price, given_price
from ..tools.toolbox import Toolbox
from .check import Check, Rewards
from .entries import Entry, Rows, Selection, prompts_file, select, to_entry
from .kit import Kit
from .rollout_runner import Exchange, Runner, Work, sampling_of
from .rollout_tally import RolloutTally
from .shelf import Shelf


def run_rollouts(options: RunRollouts, run: Run) -> RolledOut | RolloutPlan:
    """Do the work of the command. Raises UsageError before anything is spent when something is wrong."""
    if not options.dir.is_dir():
        raise UsageError(f"--dir {options.dir}: no such folder.")
    # What a user's tools print must not mix with the result on stdout.
    with contextlib.chdir(options.dir), contextlib.redirect_stdout(sys.stderr):
        return asyncio.run(_run_rollouts(options, run))


async def _run_rollouts(options: RunRollouts, run: Run) -> RolledOut | RolloutPlan:
    source = prompts_file(options)
    teacher = open_teacher(with_reasoning(options), tools=True)
    kit = Kit(options, run.progress.note)
    try:
        with open_prompts(source, PromptOptions(options.prompt_key, options.system)) as rows:
            run.progress.note(f"prompts from {source}")
            for note in teacher.notes:
                run.progress.note(note)
            selection = select(options, rows)
            if selection.skipped:
                run.progress.note(f"--entry {', '.join(selection.skipped)}: past the end of {source}, left out")
            rollouts = Rollouts(options, run, teacher, kit, rows, selection)
            price = await find_price(options, teacher) if options.dry_run or options.max_cost else None
            if options.dry_run:
                return await rollouts.dry_run(price)
            return await rollouts.run(price or given_price(options))
    finally:
        await kit.aclose()
        await teacher.aclose()


def with_reasoning(options: RunRollouts) -> RunRollouts:
    """The options with --reasoning in the words of the provider's API."""
    if options.reasoning is None:
        return options
    effort = "none" if options.reasoning == "disabled" else options.reasoning
    backend = backend_of(options.model, options.backend, options.base_url)
    if backend in ("gguf", "hf"):
        raise UsageError(f"--reasoning is for API teachers, and this one is {backend}.")
    body = {"reasoning": {"effort": effort}} if backend == "openrouter" else {"reasoning_effort": effort}
    return options.model_copy(update={"extra_body": {**body, **(options.extra_body or {})}})


class Rollouts:
    """One run: what is wanted, what is there, what is on its way."""

    def __init__(
        self, options: RunRollouts, run: Run, teacher: Completer, kit: Kit, rows: Rows, selection: Selection
    ) -> None:
        self.options, self.context, self.teacher, self.kit = options, run, teacher, kit
        self._rows, self._selection = rows, selection
        self.shelf = Shelf(options.output, options.max_turns)
        self.check = Check(options.check, Rewards(options.rewards, options.reward_timeout) if options.rewards else None)
        self._toolbox: Toolbox | None = None  # of prompts without a container
        self._schema_bytes = 0

    # ---- what is wanted, and what is there -----------------------------------------------------------------------

    def entries(self) -> Iterator[tuple[Entry | BadRow, int]]:
        """The selected rows, each with the number of equal prompts before it in the whole input."""
        seen = KeyCounts()
        for row in self._rows():
            entry = row if isinstance(row, BadRow) else to_entry(row)
            occurrence = 0 if isinstance(entry, BadRow) else seen.add(work_key(entry.prompt.messages))
            if self._selection.wanted(row.index):
                yield self._checked(entry), occurrence

    def _checked(self, entry: Entry | BadRow) -> Entry | BadRow:
        """An entry whose tools and rewards exist."""
        if isinstance(entry, BadRow):
            return entry
        try:
            self._names(entry)
        except UsageError as error:
            return BadRow(entry.prompt.index, entry.prompt.place, str(error))
        functions = self.check.rewards.functions if self.check.rewards else {}
        missing = [name for name in entry.row.get("rewards", ()) if name not in functions]
        if missing and functions:
            return BadRow(entry.prompt.index, entry.prompt.place, f"no reward function {missing[0]!r} in --rewards.")
        return entry

    def works(self, entry: Entry, occurrence: int) -> Iterator[Work]:
        """One piece of work per sample."""
        names = self._names(entry)
        asked_for = {
            "teacher": self.teacher.identity,
            "sampling": self.teacher.sampling_sent(replace(sampling_of(self.options), seed=self.options.seed)),
            "tools": sorted(names) if names is not None else None,
            "docker": [entry.docker, entry.docker_env] if self.kit.in_container(entry) else None,
        }
        for sample in range(self.options.samples):
            key = work_key([asked_for, entry.prompt.messages, sample, occurrence])
            yield Work(key, entry, sample, occurrence)

    def _names(self, entry: Entry) -> list[str] | None:
        """The tools of an entry; those of a container are known only when it runs. Raises UsageError."""
        if self._toolbox is None or self.kit.in_container(entry):
            return entry.tools
        return [tool.name for tool in self._toolbox.select(entry.tools)]

    def missing(self) -> Iterator[Work]:
        """What has to be run, in the order of the input."""
        for entry, occurrence in self.entries():
            for work in self.works(entry, occurrence) if isinstance(entry, Entry) else ():
                if not self.shelf.has(work.key):
                    yield work

    async def scan(self) -> "Scan":
        """Open the tools and look at every row. Raises UsageError when something cannot be used."""
        scan = Scan()
        await self._open_tools()
        for row, occurrence in self.entries():
            self.context.stop.check()
            if isinstance(row, BadRow):
                scan.bad_rows += 1
                scan.examples += [str(row)] if len(scan.examples) < 5 else []
                continue
            scan.prompts += 1
            answer, unused = self._expects(row)
            scan.without_answer += not answer
            scan.unused_answers.update([unused] if unused else [])
            for work in self.works(row, occurrence):
                if self.shelf.has(work.key):
                    scan.there += 1
                    scan.successes += self.shelf.succeeded(work.key)
                    scan.unchecked += self.shelf.unchecked(work.key)
                else:
                    scan.missing += 1
                    scan.faulted |= {work.key} & self.shelf.faults
                    scan.first_bytes += len(orjson.dumps(row.prompt.messages)) + self._schema_bytes
        scan.faults_before = frozenset(self.shelf.faults)
        if not scan.prompts:
            raise UsageError("no usable prompt among those selected:\n  " + "\n  ".join(scan.examples))
        if scan.bad_rows:
            unseen = scan.bad_rows - len(scan.examples)
            more = f"\n  ... and {unseen:,} more" if unseen else ""
            self.context.progress.note(f"unusable rows: {scan.bad_rows:,}\n  " + "\n  ".join(scan.examples) + more)
        return scan

    def _expects(self, entry: Entry) -> tuple[bool, str]:
        """Whether something judges the rollouts of a prompt; else the key of an answer that is not compared, or ""."""
        metadata = entry.prompt.metadata
        if self.check.rewards or self.options.check == "none" or metadata.get("expected_answer") is not None:
            return True, ""
        return False, next((key for key in ANSWER_KEYS if isinstance(metadata.get(key), str | int | float)), "")

    async def _open_tools(self) -> None:
        """Open what the selected rows need before anything is spent."""
        images: dict[str, None] = {}
        outside = False
        for row in self._rows():
            self.context.stop.check()
            entry = to_entry(row) if self._selection.wanted(row.index) and not isinstance(row, BadRow) else row
            if isinstance(entry, Entry) and self.kit.in_container(entry):
                images[str(entry.docker)] = None
            elif isinstance(entry, Entry):
                outside = True
        if images:
            await self.kit.check_containers(() if self.options.dry_run else images)
        if outside:
            self._toolbox = await self.kit.main()
            tools = self._toolbox.tools
            self._schema_bytes = sum(len(orjson.dumps(tool.as_openai())) for tool in tools)
            if not tools:
                ways = "--tools, --mcp-url, --mcp-command or --browser"
                self.context.progress.note(f"no tools: the model can only answer. Give it some with {ways}.")

    # ---- dry run -------------------------------------------------------------------------------------------------

    async def dry_run(self, price: Price | None) -> RolloutPlan:
        """What `run` would do and pay. Makes no paid request and writes nothing."""
        self.shelf.read()
        scan = await self.scan()
        options = self.options
        turns = scan.missing * options.max_turns
        worst = (turns * options.max_context, turns * min(options.max_tokens, options.max_context))
        mean = self.shelf.mean_cost_usd
        return RolloutPlan(
            prompts=scan.prompts,
            bad_rows=scan.bad_rows,
            without_expected_answer=scan.without_answer,
            unused_answer_keys=dict(scan.unused_answers.most_common()),
            rollouts_wanted=scan.there + scan.missing,
            rollouts_there=scan.there,
            rollouts_to_run=scan.missing,
            tools=[tool.name for tool in self._toolbox.tools] if self._toolbox else [],
            prompt_tokens_estimate=scan.first_bytes // 4,
            worst_case_tokens=worst,
            price_usd_per_million=(price.prompt * 1e6, price.completion * 1e6) if price else None,
            worst_case_usd=price.cost(*worst) if price else (0.0 if self.teacher.local else None),
            expected_usd=mean * scan.missing if mean is not None and not self.teacher.local else None,
            model=self.teacher.model,
            backend=self.teacher.backend,
        )

    # ---- run -----------------------------------------------------------------------------------------------------

    async def run(self, price: Price | None) -> RolledOut:
        """Run everything that is missing. Raises UsageError before the first request when something is wrong."""
        with self.shelf.open():
            if self.shelf.foreign:
                note = f"{self.shelf.folder}: {self.shelf.foreign:,} files are no rollouts, left alone"
                self.context.progress.note(note)
            scan = await self.scan()
            scan.successes += await self._judge_again()
            if scan.missing:
                await self.teacher.prepare(self.context.progress.note)
            return await self._run(scan, price)

    async def _judge_again(self) -> int:
        """Judge finished rollouts at which a reward function failed, from their files: the function was mended. How
        many are successes now."""
        if not self.check.rewards or not self.shelf.unjudged:
            return 0
        judged = successes = 0
        for entry, occurrence in self.entries():
            for work in self.works(entry, occurrence) if isinstance(entry, Entry) else ():
                path = self.shelf.unjudged.get(work.key)
                if path is None or not isinstance(entry, Entry):
                    continue
                found = read_rollout(path)
                ended = str(found.record.get("provenance", {}).get("ended"))
                verdict = await self.check.judge(ended, found.conversation, entry.prompt.metadata, entry.row)
                verdicts = {"success": verdict.success, "total_reward": verdict.reward, "rewards": verdict.rewards}
                record = {**found.record, **verdicts, "errors": verdict.errors, "conversation": found.conversation}
                self.shelf.write(path, record)
                judged, successes = judged + 1, successes + verdict.success
        self.context.progress.note(f"judged again: {judged:,} finished rollouts, {successes:,} of them successes")
        return successes

    async def _run(self, scan: "Scan", price: Price | None) -> RolledOut:
        options, progress = self.options, self.context.progress
        runner = Runner(options, self.context, self.teacher, self.kit, self.shelf, self.check, price)
        runner.schema_bytes = self._schema_bytes
        most = min(options.concurrency, self.teacher.concurrency or options.concurrency)
        engine: Engine[Work, Exchange] = Engine(
            Limits(most, options.retries, options.max_cost, holds=True),
            attempt=runner.attempt,
            cost_usd=lambda exchange: answer_cost(exchange.completion, self.teacher, price),
            worst_usd=runner.worst_usd,
            succeeded=lambda work, exchange: None,  # written by the attempt, beside the other rollouts' turns
            failed=runner.failed,
            drain=self.teacher.drain,
            progress=progress,
            stop=self.context.stop,
            unfinished=lambda exchange: not exchange.finished,
            ahead_usd=runner.ahead_usd,
            answered_usd=runner.answered_usd,
        )
        progress.begin("rollouts", total=scan.there + scan.missing, already=scan.there, unit="rollouts")
        started_s = time.monotonic()
        try:
            if scan.missing:
                await engine.run(self.missing())
        finally:
            await runner.put_away(engine.stopped)
            progress.end()
        stopped = engine.stopped
        if isinstance(stopped, TeacherUnavailable) and stopped.usage and not runner.tally.answers:
            raise UsageError(str(stopped))
        return self._result(scan, runner.tally, engine, time.monotonic() - started_s)

    def _result(self, scan: "Scan", tally: RolloutTally, engine: Engine[Work, Exchange], seconds: float) -> RolledOut:
        stopped, spending = engine.stopped, engine.spending
        remaining = scan.missing - tally.finished
        # What a run repeats is still there as it was where the run did not get to it.
        faults = sum(key in scan.faulted or key not in scan.faults_before for key in self.shelf.faults)
        successes, judged = scan.successes + tally.successes, scan.there + tally.finished + faults
        status = "done"
        if stopped:
            status = "stopped"
        elif self.context.stop.requested and remaining > tally.outcomes["error"]:
            status = "interrupted"
        elif tally.outcomes["error"] or scan.bad_rows:
            status = "some_failed"
        known = spending.known or (tally.cost_known and not spending.unanswered)
        return RolledOut(
            status=status,
            stopped_because=str(stopped) if stopped else None,
            output=self.options.dir / self.options.output,
            model=self.teacher.model,
            backend=self.teacher.backend,
            rollouts=tally.rollouts,
            wanted=scan.there + scan.missing,
            complete=scan.there + tally.finished,
            successes=successes,
            judged=judged,
            own_faults=faults,
            success_rate=successes / judged if judged else None,
            success_interval=wilson(successes, judged) if judged else None,
            unchecked=scan.unchecked + tally.unchecked,
            outcomes=dict(tally.outcomes.most_common()),
            failures=dict(tally.failures.most_common()),
            bad_rows=scan.bad_rows,
            remaining=remaining,
            prompts_left=self._selection.left,
            turns=tally.turns,
            tools_used=dict(tally.tools_used.most_common()),
            tool_errors=dict(tally.tools_failed.most_common()),
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cost_usd=spending.known if known else None,
            maybe_billed=spending.unanswered,
            maybe_billed_usd=spending.maybe,
            seconds=round(seconds, 3),
            advice=tally.advice(),
        )


@dataclass
class Scan:
    """What the first pass found. first_bytes: of the first turns of all missing rollouts.

    without_answer: prompts that nothing judges.   unused_answers: keys of theirs that look like the answer.
    successes, unchecked: of those there.   faulted: missing ones that ended by the model's own fault; faults_before:
    all such in the folder.
    """

    prompts: int = 0
    bad_rows: int = 0
    without_answer: int = 0
    unused_answers: Counter[str] = field(default_factory=Counter[str])
    there: int = 0
    successes: int = 0
    unchecked: int = 0
    faulted: set[str] = field(default_factory=set[str])
    faults_before: frozenset[str] = frozenset()
    missing: int = 0
    first_bytes: int = 0
    examples: list[str] = field(default_factory=list[str])
