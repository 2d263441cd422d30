"""What a teacher can be asked: `Completer` writes an answer. (A `Scorer`, which scores given tokens, is another thing:
a chat API can complete and usually cannot score.)"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Message = dict[str, Any]


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
class Completion:
    """One answer.

    reasoning: the thinking, apart from the answer; "" when there is none.
    finish_reason: "stop", "length" (cut off by max_tokens), "content_filter", "tool_calls".
    cost_usd: what the teacher says it cost; None when it does not say.
    served_by: the provider behind a router; "" when unknown.
    refusal: the teacher's own words when it marks the answer as a refusal.
    """

    text: str
    finish_reason: str
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    usage: Usage = Usage()
    cost_usd: float | None = None
    served_by: str = ""
    refusal: str = ""


class Completer(Protocol):
    """A teacher that writes answers. Use it as an async context manager.

    identity: all that makes its answers different from another teacher's (backend, model, endpoint, number format,
        ...): part of the key of every piece of work.
    local: it runs in this process and costs nothing.
    concurrency: most requests that make sense in flight; None when the caller decides.
    """

    backend: str
    model: str
    identity: dict[str, Any]
    local: bool

    @property
    def concurrency(self) -> int | None: ...

    async def prepare(self, note: Callable[[str], None]) -> None:
        """Make ready: load the model, where there is one to load; `note` tells the user. Raises UsageError."""
        ...

    async def complete(self, messages: list[Message], sampling: Sampling) -> Completion:
        """One answer. Raises TeacherError (see core.errors) when there is none."""
        ...

    def drain(self) -> None:
        """No more work will come, and requests that have not begun are to be cancelled."""
        ...

    async def aclose(self) -> None: ...


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
