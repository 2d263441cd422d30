"""What a teacher can be asked: `Completer` writes an answer. (A `Scorer`, which scores given tokens, is another thing:
a chat API can complete and usually cannot score.)"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

Message = dict[str, Any]
ToolSchema = dict[str, Any]
"""A tool as OpenAI Chat offers it: {"type": "function", "function": {"name", "description", "parameters"}}."""
ToolCall = dict[str, Any]
"""{"id": str, "type": "function", "function": {"name": str, "arguments": JSON as a string}}."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Everything is explicit: an answer must come from the distribution that was asked for.

    temperature: 0 is greedy.   top_p: 1 is no truncation.   seed: None leaves the draw to the teacher.
    """

    max_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer; `completion_tokens` includes `reasoning_tokens`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Price:
    """USD per token, and where that was found."""

    prompt: float
    completion: float
    source: str

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """USD for so many tokens."""
        return self.prompt * prompt_tokens + self.completion * completion_tokens


@dataclass(frozen=True)
class Completion:
    """One answer.

    reasoning: the thinking, apart from the answer; "" when there is none.
    finish_reason: "stop", "length" (cut off by max_tokens), "tool_calls".
    tool_calls: what the teacher wants called, always in the form of `ToolCall`, with ids that differ from each other.
        The arguments are what the teacher wrote: they may be no JSON at all.
    echo: keys that belong into the assistant's message when it is sent back to this teacher in a later turn, as the
        server sent them ("reasoning_details", "reasoning_content", "tool_calls" that carry more than OpenAI's keys,
        such as Gemini's thought signatures). They replace keys of the same name; {} when nothing is asked for.
    cost_usd: what the teacher says it cost; None when it does not say.
    refusal: the teacher's own words when it marks the answer as a refusal.
    """

    text: str
    finish_reason: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    echo: dict[str, Any] = field(default_factory=dict[str, Any])
    usage: Usage = Usage()
    cost_usd: float | None = None
    refusal: str = ""


class Completer(Protocol):
    """A teacher that writes answers: `prepare`, then `complete` as often as you like, at last `aclose`.

    identity: all that makes its answers different from another teacher's (backend, model, endpoint, number format,
        ...): part of the key of every piece of work.
    local: it runs in this process and costs nothing.
    endpoint: the URL that requests go to; None for a local teacher.
    concurrency: most requests that make sense in flight; None when the caller decides.
    context_tokens: most tokens of a prompt and its answer together; None when unknown, or before `prepare`.
    notes: what a user should know before the run starts.
    """

    backend: str
    model: str
    identity: dict[str, Any]
    local: bool

    @property
    def endpoint(self) -> str | None: ...

    @property
    def concurrency(self) -> int | None: ...

    @property
    def context_tokens(self) -> int | None: ...

    @property
    def notes(self) -> list[str]: ...

    async def prepare(self, note: Callable[[str], None]) -> None:
        """Make ready: load the model, where there is one to load; `note` tells the user. Raises UsageError."""
        ...

    async def complete(
        self, messages: list[Message], sampling: Sampling, tools: Sequence[ToolSchema] = ()
    ) -> Completion:
        """One answer, which may call the tools. Raises TeacherError (see core.errors) when there is none."""
        ...

    def sampling_sent(self, sampling: Sampling) -> dict[str, Any]:
        """{"max_tokens", "temperature", "top_p", "seed"}, with None for what this teacher is never told: what of the
        sampling may change an answer."""
        ...

    async def price(self) -> Price | None:
        """The model's price in the provider's own list; None when unknown, and for a local teacher."""
        ...

    async def credit_left_usd(self) -> float | None:
        """What may still be spent with this key; None when unknown or unlimited, and for a local teacher."""
        ...

    def drain(self) -> None:
        """No more work will come, and requests that have not begun are to be cancelled."""
        ...

    async def aclose(self) -> None:
        """Give back what the teacher holds: connections, threads, the model."""
        ...


class LocalTeacher:
    """What all teachers have in common that run in this process."""

    local = True
    endpoint: str | None = None

    @property
    def notes(self) -> list[str]:
        return []

    def sampling_sent(self, sampling: Sampling) -> dict[str, Any]:
        return asdict(sampling)

    async def price(self) -> Price | None:
        return None

    async def credit_left_usd(self) -> float | None:
        return None


THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def split_thinking(completion: Completion) -> Completion:
    """Move `<think>...</think>` at the beginning of the text to `reasoning`.

    Servers without a reasoning parser leave it in the text; some chat templates put the opening tag into the prompt,
    so that the text only closes it. A thought that never closes (cut off) leaves an empty answer.
    """
    text = completion.text.lstrip()
    if completion.reasoning or (THINK_CLOSE not in text and not text.startswith(THINK_OPEN)):
        return completion
    if not text.startswith(THINK_OPEN) and THINK_OPEN in text.partition(THINK_CLOSE)[0]:
        return completion  # the tags stand in the middle of an answer: text like any other
    thought, closed, answer = text.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    return replace(completion, text=answer.lstrip() if closed else "", reasoning=thought.strip())
