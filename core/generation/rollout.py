"""One rollout: the teacher works on one prompt with tools, turn by turn, until it answers.

A turn is one answer of the teacher and the tool calls in it. What a tool does wrong goes back to the teacher as its
result; what ends a rollout is a final answer, the turn limit, an answer cut off by its length, or an error.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson

from ..errors import RequestRejected
from ..teachers import Completer, Completion, Message, Sampling
from ..tools.protocol import Tool, ToolResult, ToolsetGone

CHARS_PER_TOKEN = 4.0
"""Before the teacher has counted the first prompt of a rollout, and for tool results, which nobody counts."""
STUB_CHARS = 200
"""What is left of a tool result that had to make room."""
LOOP_TURNS = 3
"""So many turns in a row with the same calls and the same results are a loop."""
CALLS_AT_ONCE = 32
"""Calls of one turn that run side by side; a teacher may ask for thousands."""
GO_ON = "Go on."
CALL_AS_TEXT = re.compile(r'<tool_call>\s*(?:\{\s*"|<function=)|\[TOOL_CALLS\]\s*\[|<\|python_tag\|>\s*\{')


class Session(Protocol):
    """The tools of one rollout. ready: waits until a tool can be called; concurrent: whether its calls may run beside
    others."""

    async def ready(self, name: str) -> None: ...

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult: ...

    def concurrent(self, name: str) -> bool: ...


@dataclass(frozen=True)
class LoopLimits:
    """max_context, max_tool_response: tokens.   tool_timeout_s: for one call.   rollout_timeout_s: in all.
    go_on: turns without tool calls do not end the rollout while turns are left.
    """

    max_turns: int
    max_context: int
    max_tool_response: int | None
    tool_timeout_s: float
    rollout_timeout_s: float
    go_on: bool = False


@dataclass
class Totals:
    """What a rollout has used so far. turn_seconds: per turn, {"teacher": s, "tools": s}."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    seconds: float = 0.0
    turn_seconds: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    tools_used: Counter[str] = field(default_factory=Counter[str])
    tools_failed: Counter[str] = field(default_factory=Counter[str])
    tool_errors: list[str] = field(default_factory=list[str])
    shortened: int = 0


class Conversation:
    """The messages of a rollout, and how many tokens they take.

    The teacher's own count of the last prompt calibrates the estimate of the next one.
    """

    def __init__(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        self.messages = [dict(message) for message in messages]
        self._echoes: dict[int, dict[str, Any]] = {}
        self._tools_chars = sum(len(orjson.dumps(tool.as_openai())) for tool in tools)
        self._counted = (0, 0, 0)  # tokens, characters and messages of the last prompt that the teacher counted

    def to_send(self) -> list[Message]:
        """As the teacher gets it: with what its server wants back, and without our record of its thinking."""
        sent: list[Message] = []
        for number, message in enumerate(self.messages):
            plain = {key: value for key, value in message.items() if key != "reasoning_content"}
            sent.append({**plain, **self._echoes.get(number, {})})
        return sent

    def answer(self, completion: Completion) -> None:
        """Add a turn of the teacher."""
        if completion.usage.prompt_tokens:
            self._counted = completion.usage.prompt_tokens, self.chars, len(self.messages)
        message: Message = {"role": "assistant", "content": completion.text}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        if completion.tool_calls:
            message["tool_calls"] = completion.tool_calls
        if completion.echo:
            self._echoes[len(self.messages)] = dict(completion.echo)
        self.messages.append(message)

    @property
    def chars(self) -> int:
        """Characters of the next prompt, schemas included."""
        return self._tools_chars + sum(message_chars(message) for message in self.messages)

    @property
    def tokens(self) -> int:
        """Tokens of the next prompt, estimated."""
        counted, chars, _ = self._counted
        per_token = chars / counted if counted and chars else CHARS_PER_TOKEN
        return round(self.chars / per_token)

    @property
    def most_tokens(self) -> int:
        """A bound on them: what was counted, and a token for every byte that has come since."""
        counted, _, known = self._counted
        new = sum(len(orjson.dumps(message)) + 16 for message in self.to_send()[known:])
        return counted + new + (0 if counted else self._tools_chars)

    def fit(self, max_tokens: int) -> int:
        """Shorten the oldest tool results until the next prompt fits; those of the last turn only at the very end.

        Returns how many were shortened. Raises RequestRejected when that is not enough.
        """
        shortened = 0
        for message in self.messages:
            if self.tokens <= max_tokens:
                return shortened
            content = message.get("content")
            if message["role"] == "tool" and isinstance(content, str) and len(content) > STUB_CHARS * 1.5:
                left_out = len(content) - STUB_CHARS
                message["content"] = (
                    f"{content[:STUB_CHARS]}\n[{left_out:,} characters of this older result were left out]"
                )
                shortened += 1
        if self.tokens > max_tokens:
            raise RequestRejected(
                "context_length",
                f"the conversation takes about {self.tokens:,} tokens, more than --max-context leaves ({max_tokens:,})",
            )
        return shortened


def message_chars(message: Message) -> int:
    """Characters of a message, calls included."""
    content, calls = message.get("content"), message.get("tool_calls")
    size = len(content) if isinstance(content, str) else len(orjson.dumps(content))
    return size + (len(orjson.dumps(calls)) if calls else 0)


class Rollout:
    """One rollout on its way. `ended` is "" until it has an outcome: "final_answer", "max_turns" or "length"."""

    def __init__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        session: Session,
        teacher: Completer,
        sampling: Sampling,
        limits: LoopLimits,
        watch: Callable[[str], None] = lambda text: None,
    ) -> None:
        """watch: told what the rollout is doing now."""
        self.conversation = Conversation(messages, tools)
        self.totals = Totals()
        self.ended = ""
        self.turns = 0
        self.tools, self._session, self._teacher = list(tools), session, teacher
        self.sampling, self._limits, self._watch = sampling, limits, watch
        self._deadline_s = 0.0
        self._malformed = False
        self._last_calls: list[bytes] = []

    async def ask(self) -> Completion:
        """The teacher's next turn. Raises TeacherError: RequestRejected ends the rollout; else the same turn may be
        asked for again."""
        if self.totals.seconds > self._limits.rollout_timeout_s:
            raise self._too_long()
        started_s = time.monotonic()
        try:
            self.totals.shortened += self.conversation.fit(self._room)
            self._watch(f"turn {self.turns + 1}, teacher")
            seed = self.sampling.seed
            sampling = self.sampling if seed is None else replace(self.sampling, seed=(seed + self.turns) % 2**31)
            tools = [tool.as_openai() for tool in self.tools]
            completion = await self._teacher.complete(self.conversation.to_send(), sampling, tools)
        finally:
            seconds = time.monotonic() - started_s
            self.totals.seconds += seconds
        self.totals.turn_seconds.append({"teacher": round(seconds, 3), "tools": 0.0})
        return completion

    async def use(self, completion: Completion) -> None:
        """Record a turn, call the tools that it asks for, and decide whether the rollout has ended. Raises
        RequestRejected."""
        started_s = time.monotonic()
        self._deadline_s = started_s + self._limits.rollout_timeout_s - self.totals.seconds
        try:
            await self._use(completion)
        finally:
            seconds = time.monotonic() - started_s
            self.totals.seconds += seconds
            self.totals.turn_seconds[-1]["tools"] = round(seconds, 3)

    def _too_long(self) -> RequestRejected:
        return RequestRejected("rollout_timeout", f"took longer than {self._limits.rollout_timeout_s:g} s")

    @property
    def _room(self) -> int:
        """Tokens that a prompt may take, so that an answer fits behind it."""
        return self._limits.max_context - min(self.sampling.max_tokens, self._limits.max_context // 4)

    async def _use(self, completion: Completion) -> None:
        self.turns += 1
        self.conversation.answer(completion)
        usage = completion.usage
        self.totals.prompt_tokens += usage.prompt_tokens
        self.totals.completion_tokens += usage.completion_tokens
        last = self.turns >= self._limits.max_turns
        if completion.finish_reason == "length":
            self.ended = "length"
        elif not completion.tool_calls:
            if self.tools and CALL_AS_TEXT.search(completion.text):
                raise RequestRejected(
                    "tool_calls_as_text",
                    "the answer holds a tool call as text: the server has no tool parser for this model "
                    "(vLLM: --enable-auto-tool-choice --tool-call-parser NAME; llama-server: --jinja)",
                )
            if self._limits.go_on and not last:
                self.conversation.messages.append({"role": "user", "content": GO_ON})
            else:
                self.ended = "final_answer"
        elif last:  # results that nobody will read need not be fetched
            self.ended = "max_turns"
        else:
            await self._call_tools(completion.tool_calls)

    async def _call_tools(self, calls: list[dict[str, Any]]) -> None:
        """Call the tools, side by side where they allow it, and add the results in the order of the calls."""
        parsed = [(call["id"], call["function"]["name"], arguments_of(call)) for call in calls]
        malformed = [name for _, name, arguments in parsed if isinstance(arguments, str)]
        if malformed and self._malformed:
            raise RequestRejected("malformed_arguments", f"arguments of {malformed[0]} are no JSON object, once again")
        self._malformed = self._malformed or bool(malformed)
        together = all(self._session.concurrent(name) for _, name, _ in parsed)
        if together and len(parsed) > 1:
            room = asyncio.Semaphore(CALLS_AT_ONCE)
            results = await asyncio.gather(*(self._call_in(room, name, arguments) for _, name, arguments in parsed))
        else:
            results = [await self._call(name, arguments) for _, name, arguments in parsed]
        for (id_, _, _), result in zip(parsed, results, strict=True):
            content = cut(result.text, self._limits.max_tool_response)
            self.conversation.messages.append({"role": "tool", "tool_call_id": id_, "content": content})
        self._refuse_loops(parsed, results)

    async def _call_in(self, room: asyncio.Semaphore, name: str, arguments: dict[str, Any] | str) -> ToolResult:
        async with room:
            return await self._call(name, arguments)

    async def _call(self, name: str, arguments: dict[str, Any] | str) -> ToolResult:
        """The result of one call; what went wrong is a result too. Raises RequestRejected when the tools are gone."""
        if isinstance(arguments, str):
            result = ToolResult(f"Error: {arguments} Send the arguments as one JSON object.", is_error=True)
        elif not any(tool.name == name for tool in self.tools):
            names = ", ".join(tool.name for tool in self.tools) or "none"
            result = ToolResult(f"Error: there is no tool {name!r}. Available: {names}.", is_error=True)
        else:
            self._watch(f"turn {self.turns}, {name}")
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                raise self._too_long()
            try:
                await self._session.ready(name)
                async with asyncio.timeout(min(self._limits.tool_timeout_s, left_s)) as clock:
                    result = await self._session.call(name, arguments)
            except ToolsetGone as gone:
                raise RequestRejected("tools_gone", f"{name}: {gone}") from None
            except Exception as error:
                if isinstance(error, TimeoutError) and clock.expired():
                    if left_s < self._limits.tool_timeout_s:
                        raise self._too_long() from None
                    result = ToolResult(f"Error: no result within {self._limits.tool_timeout_s:g} s.", is_error=True)
                else:  # a mistake of the tool, or of ours: one call failed
                    result = ToolResult(f"Error: {type(error).__name__}: {error}", is_error=True)
        self.totals.tools_used[name] += 1
        if result.is_error:
            self.totals.tools_failed[name] += 1
            self.totals.tool_errors.append(f"{name}: {result.text[:200]}")
        return result

    def _refuse_loops(self, calls: list[tuple[str, str, Any]], results: list[ToolResult]) -> None:
        """Raises RequestRejected when the same calls keep giving the same results."""
        seen = orjson.dumps([(name, arguments) for _, name, arguments in calls] + [result.text for result in results])
        self._last_calls = [seen] if not self._last_calls or self._last_calls[-1] != seen else [*self._last_calls, seen]
        if len(self._last_calls) >= LOOP_TURNS:
            names = ", ".join(dict.fromkeys(name for _, name, _ in calls))
            raise RequestRejected("loop", f"{LOOP_TURNS} turns in a row made the same call to {names}, to no effect")


def arguments_of(call: dict[str, Any]) -> dict[str, Any] | str:
    """The arguments of a tool call; for malformed ones the reason, as a sentence."""
    text = call["function"].get("arguments") or "{}"
    try:
        arguments = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"the arguments are not valid JSON ({error.msg} at character {error.pos + 1})."
    return arguments if isinstance(arguments, dict) else "the arguments are not a JSON object."


def cut(text: str, max_tokens: int | None) -> str:
    """A tool result of at most so many tokens, with a marker where it was cut; broken Unicode is replaced."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    most = len(text) if max_tokens is None else int(max_tokens * CHARS_PER_TOKEN)
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[cut: {most:,} of {len(text):,} characters are shown]"
