"""Runs rollouts for the engine: a turn is an attempt; tools stay open between turns, and the end becomes a file."""

import asyncio
import contextlib
import datetime
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from .. import __version__
from ..commands.run_rollouts import RunRollouts
from ..data.keys import work_key
from ..data.run import Run
from ..data.text import one_line
from ..errors import DistillError, RequestRejected, StoppedEarly, TeacherError, UsageError
from ..teachers import Completer, Completion, Price, Sampling
from ..teachers.money import answer_cost
from ..tools.protocol import Tool, ToolsetGone
from .check import Check, Verdict
from .entries import Entry
from .kit import Kit
from .rollout import LoopLimits, Rollout, Session
from .rollout_tally import RolloutTally
from .shelf import Shelf

ABOUT_TOOLS = re.compile(r"schema|parameters|function|tool", re.IGNORECASE)
CONTAINER_SCHEMAS_BYTES = 20_000
"""Tools of a container are known only when it runs; a browser's schemas take three quarters of this."""


@dataclass
class Work:
    """One rollout to run. key: 32 hex digits over everything that changes it. begun: while it is on its way."""

    key: str
    entry: Entry
    sample: int
    occurrence: int
    begun: "Begun | None" = None

    @property
    def label(self) -> str:
        """For people: "3" or "3#1" for its second sample."""
        return f"{self.entry.prompt.index}" + (f"#{self.sample}" if self.sample else "")


@dataclass
class Begun:
    """A rollout on its way, with what has to be closed after it."""

    rollout: Rollout
    place: Path
    started: datetime.datetime
    closing: contextlib.AsyncExitStack
    answered_usd: float | None = None
    """Cost of an answer whose tools are still being called; None where that is not known."""
    settled: bool = False
    """Its file is written, or is being written by a thread that nothing stops."""


@dataclass(frozen=True)
class Exchange:
    """What the engine gets for one turn."""

    completion: Completion
    finished: bool


class Runner:
    """Runs pieces of work turn by turn. schema_bytes: of the tools that most prompts get, for the budget."""

    def __init__(
        self,
        options: RunRollouts,
        run: Run,
        teacher: Completer,
        kit: Kit,
        shelf: Shelf,
        check: Check,
        price: Price | None,
    ) -> None:
        self.tally = RolloutTally()
        self.schema_bytes = 0
        self._options, self._progress, self._teacher = options, run.progress, teacher
        self._kit, self._shelf, self._check, self._price = kit, shelf, check, price
        self._sampling = sampling_of(options)
        self._limits = LoopLimits(
            options.max_turns,
            options.max_context,
            options.max_tool_response,
            options.tool_timeout,
            options.rollout_timeout,
            go_on=options.termination_policy == "max_turns",
        )
        self._begun: dict[str, Work] = {}
        self._closing: list[asyncio.Future[None]] = []
        self._refused: set[str] = set()

    async def attempt(self, work: Work) -> Exchange:
        """One turn of a rollout; at its beginning the tools are opened, at its end it is judged and written."""
        begun = work.begun or await self._begin(work)
        rollout = begun.rollout
        while True:
            try:
                completion = await rollout.ask()
                break
            except RequestRejected as error:
                if not self._without_refused_tool(rollout, error):
                    raise
        cost = answer_cost(completion, self._teacher, self._price)
        self.tally.turn(completion.usage, cost)
        self._progress.counts.tokens = self.tally.completion_tokens
        totals = rollout.totals
        totals.cost_usd = None if cost is None or totals.cost_usd is None else totals.cost_usd + cost
        begun.answered_usd = cost
        try:
            await rollout.use(completion)
        except RequestRejected as error:  # the turn was paid for, whatever came of it
            error.billed, error.cost_usd = True, cost
            raise
        if rollout.ended:
            await self._finish(work, begun)
        begun.answered_usd = None
        return Exchange(completion, finished=bool(rollout.ended))

    async def _finish(self, work: Work, begun: Begun) -> None:
        """Judge a rollout and write its file."""
        rollout = begun.rollout
        verdict = await self._check.judge(
            rollout.ended, rollout.conversation.messages, work.entry.prompt.metadata, work.entry.row
        )
        record = self._record(work, begun, verdict)
        begun.settled = True
        await asyncio.to_thread(self._shelf.put, begun.place, record, work.key)
        self.tally.ended(rollout, verdict)
        self._tell(work, f"{rollout.ended}, {'success' if verdict.success else 'no success'}")
        await self._close(work)

    async def _begin(self, work: Work) -> Begun:
        """Open the tools of a rollout. Raises RequestRejected when they cannot be had."""
        closing = contextlib.AsyncExitStack()
        self._watch(work, "opening tools")
        try:
            toolbox = await closing.enter_async_context(self._kit.toolbox(work.entry))
            tools = [tool for tool in toolbox.select(work.entry.tools) if tool.name not in self._refused]
            session: Session = await closing.enter_async_context(toolbox.session(tools))
        except BaseException as error:
            await closing.aclose()
            if not isinstance(error, Exception):
                raise
            expected = isinstance(error, ToolsetGone | UsageError)
            message = one_line(str(error) if expected else f"{type(error).__name__}: {error}", 1000)
            raise RequestRejected(
                "container" if self._kit.in_container(work.entry) else "tools_gone", message
            ) from None
        seeded = self._options.seed is not None or work.sample > 0
        sampling = replace(self._sampling, seed=int(work.key[-8:], 16) >> 1) if seeded else self._sampling
        rollout = Rollout(
            work.entry.prompt.messages,
            tools,
            session,
            self._teacher,
            sampling,
            self._limits,
            lambda doing: self._watch(work, doing),
        )
        started = datetime.datetime.now(datetime.UTC)
        place = self._shelf.place_for(work.key, started)
        work.begun = Begun(rollout, place, started, closing)
        self._begun[work.key] = work
        return work.begun

    def _without_refused_tool(self, rollout: Rollout, error: RequestRejected) -> bool:
        """Whether the provider refused a tool's schema: the rollout, and all later ones, go on without that tool."""
        if rollout.turns or error.reason != "invalid_request" or not ABOUT_TOOLS.search(str(error)):
            return False
        tool = named_tool(str(error), rollout.tools)
        if tool is None:
            return False
        rollout.tools.remove(tool)
        if tool.name not in self._refused:
            self._refused.add(tool.name)
            self._progress.note(
                f"the teacher's server refuses the tool {tool.name}; going on without it: {one_line(str(error))}"
            )
        return True

    def worst_usd(self, work: Work) -> float:
        """The most that the next turn can cost."""
        if self._price is None or self._teacher.local:
            return 0.0
        if work.begun:
            return self._price.cost(work.begun.rollout.conversation.most_tokens, self._options.max_tokens)
        schemas = CONTAINER_SCHEMAS_BYTES if self._kit.in_container(work.entry) else self.schema_bytes
        messages = work.entry.prompt.messages
        return self._price.cost(len(orjson.dumps(messages)) + 16 * len(messages) + schemas, self._options.max_tokens)

    def ahead_usd(self, work: Work, begun: list[Work]) -> float:
        """What must be free besides for a new rollout to begin: what it and those on their way may still need. So a
        budget does not end in the middle of many. A rollout is taken to cost what others have cost; before the first
        has ended, its bound."""
        if self._price is None or self._teacher.local:
            return 0.0
        options, mean = self._options, self._shelf.mean_cost_usd
        if mean is None and not begun:
            return 0.0
        whole = options.max_turns * self._price.cost(options.max_context, options.max_tokens) if mean is None else mean
        spent = [one.begun.rollout.totals.cost_usd or 0.0 if one.begun else 0.0 for one in begun]
        return sum(max(0.0, whole - usd) for usd in spent) + max(0.0, whole - self.worst_usd(work))

    def answered_usd(self, work: Work) -> float | None:
        """The cost of an answer whose tools are being called; None when the teacher has not answered."""
        return work.begun.answered_usd if work.begun else None

    def failed(self, work: Work, error: TeacherError, attempts: int) -> None:
        """A rollout ended in an error: keep what there is of it."""
        rollout = work.begun.rollout if work.begun else None
        self.tally.failed(rollout, error.reason, f"{work.entry.prompt.place}: {one_line(str(error), 600)}")
        self._tell(work, f"error: {error.reason}: {one_line(str(error), 300)}")
        self._begun.pop(work.key, None)
        self._progress.live.pop(work.key, None)
        if work.begun:  # else not even its tools could be opened
            self._closing.append(asyncio.ensure_future(self._close(work)))
            record = self._record(work, work.begun, Verdict(False), error)
            self._shelf.put(work.begun.place, record, work.key)

    async def put_away(self, why: DistillError | None) -> None:
        """Keep what there is of rollouts that were cut off, and close their tools."""
        for work in list(self._begun.values()):
            if work.begun and work.begun.rollout.turns and not work.begun.settled:
                reason = "stopped" if why else "interrupted"
                error = StoppedEarly(str(why)) if why else None
                record = self._record(work, work.begun, Verdict(False), error, reason)
                self.tally.cut_off += 1
                self.tally.cut_off_usd += work.begun.rollout.totals.cost_usd or 0.0
                with contextlib.suppress(StoppedEarly):  # the disk is full, which the result says already
                    self._shelf.put(work.begun.place, record, work.key)
            self._closing.append(asyncio.ensure_future(self._close(work)))
        if self._closing:
            await asyncio.wait(self._closing, timeout=30)

    async def _close(self, work: Work) -> None:
        """Close the tools of a rollout; what goes wrong there changes nothing any more."""
        self._begun.pop(work.key, None)
        self._progress.live.pop(work.key, None)
        if work.begun:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(30):
                    await work.begun.closing.aclose()

    def _watch(self, work: Work, doing: str) -> None:
        self._progress.live[work.key] = (f"{work.label}: {doing}", time.monotonic())

    def _tell(self, work: Work, outcome: str) -> None:
        totals = work.begun.rollout.totals if work.begun else None
        turns = work.begun.rollout.turns if work.begun else 0
        spent = f", {totals.cost_usd:.4f} USD" if totals and totals.cost_usd else ""
        seconds = f", {totals.seconds:.1f} s" if totals else ""
        self._progress.detail(f"{work.label}: {outcome}, {turns} turns{seconds}{spent}")

    def _record(
        self, work: Work, begun: Begun, verdict: Verdict, error: DistillError | None = None, cut_off: str = ""
    ) -> dict[str, Any]:
        """The rollout as its file has it: rnow's keys, then ours, and the conversation last."""
        rollout, prompt = begun.rollout, work.entry.prompt
        totals, options = rollout.totals, self._options
        ended = "error" if error else ("interrupted" if cut_off else rollout.ended)
        record: dict[str, Any] = {
            "id": begun.place.stem,
            "completed": "error" if error else not cut_off,
            "success": verdict.success,
        }
        if verdict.reward is not None:
            record |= {"total_reward": verdict.reward, "rewards": verdict.rewards}
        record |= {
            "errors": verdict.errors,
            "turns": rollout.turns,
            "truncated": rollout.ended == "length",
            "totalTokens": totals.prompt_tokens + totals.completion_tokens,
            "promptTokens": totals.prompt_tokens,
            "completion": totals.completion_tokens,
            "metadata": prompt.metadata,
            "index": prompt.index,
        }
        if error:
            record["error"] = str(error)
        return {
            **record,
            "tool_errors": totals.tool_errors,
            "provenance": {
                "written_by": f"distill {__version__}",
                "key": work.key,
                "sample": work.sample,
                "occurrence": work.occurrence,
                "prompt_hash": work_key(prompt.messages),
                "prompt_place": prompt.place,
                "teacher": self._teacher.model,
                "backend": self._teacher.backend,
                "endpoint": self._teacher.endpoint,
                "sampling": self._teacher.sampling_sent(rollout.sampling),
                "ended": ended,
                "reason": cut_off or getattr(error, "reason", None),
                "tool_names": [tool.name for tool in rollout.tools],
                "docker": work.entry.docker if self._kit.in_container(work.entry) else None,
                "check": self._check.name if verdict.reward is not None else None,
                "max_turns": options.max_turns,
                "started": begun.started.isoformat(timespec="seconds"),
                "seconds": round(totals.seconds, 3),
                "turn_seconds": totals.turn_seconds,
                "cost_usd": totals.cost_usd,
                "shortened_tool_results": totals.shortened,
            },
            "tools": [tool.as_openai() for tool in rollout.tools],
            "conversation": rollout.conversation.messages,
        }


def sampling_of(options: RunRollouts) -> Sampling:
    """How turns are drawn; seeds come per rollout and turn."""
    return Sampling(options.max_tokens, options.temperature, options.top_p or 1.0)


def named_tool(message: str, tools: Sequence[Tool]) -> Tool | None:
    """The tool that a provider's error means: by its name, or as tools[3], tools.3, functions[3]."""
    for tool in sorted(tools, key=lambda tool: -len(tool.name)):
        if re.search(rf"(?<![\w-]){re.escape(tool.name)}(?![\w-])", message):
            return tool
    place = re.search(r"\b(?:tools|functions)[\[.](\d+)", message)
    return tools[int(place[1])] if place and int(place[1]) < len(tools) else None
