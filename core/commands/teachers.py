"""Options and result of `teachers`."""

import textwrap
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .base import Command, Option, Result
from .teacher import web_address

WHICH, COST, SERVER = "Which teachers", "What a file of prompts costs", "Whose list"
ApiBackend = Literal[
    "openrouter", "openai", "nvidia", "together", "fireworks", "vllm", "sglang", "llama-server", "ollama"
]
WIDTH = 100
"""Most columns of what is printed."""
LONGEST_NAME = 40
ROWS, ROWS_BY_PURPOSE = 20, 4
"""How many teachers are shown, and for each purpose, where --limit says nothing."""


class Teachers(Command):
    """Which teachers there are today, and what they cost.

    The models and prices are read from the server's own list, OpenRouter's unless another is named, which needs no key
    and costs nothing. Without options: a few teachers for each purpose, and how they were chosen. With --input: what
    the answers to these prompts cost at most with each, the cheapest first.
    """

    work: ClassVar[str] = "..teachers.recommend:teachers"
    as_job: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/teachers.py",
        "python scripts/teachers.py --distillable --tools",
        "python scripts/teachers.py --input prompts.txt --max-tokens 800",
        "python scripts/teachers.py --search qwen --sort price",
        "python scripts/teachers.py --base-url http://127.0.0.1:8000/v1",
    )
    headings: ClassVar[tuple[str, ...]] = (WHICH, COST, SERVER)

    search: Annotated[str | None, Option(WHICH, mcp="Only names with this text.")] = Field(default=None, min_length=1)
    """Only models whose name holds this text."""
    tools: Annotated[bool, Option(WHICH, mcp="Only such as call tools.")] = False
    """Only models that call tools, as run_rollouts needs."""
    distillable: Annotated[bool, Option(WHICH, mcp="Only such as may be trained on.")] = False
    """Only models whose authors allow training on their text (OpenRouter's word; the licence decides)."""
    sort: Annotated[Literal["price", "new", "context"] | None, Option(WHICH)] = None
    """Order: price (a million tokens in and a million out, cheapest first), new (newest first), or context (longest
    first). By default by purpose, or by cost with --input."""
    limit: Annotated[int | None, Option(WHICH, "-n")] = Field(default=None, ge=1, le=10_000)
    """Show at most so many (default: 20, and 4 for each purpose)."""

    input: Annotated[str | None, Option(COST, "-i", mcp="File of prompts to price.", names="data")] = None
    """Prompts whose answers are to be paid: a file as generate_teacher_data takes it, hf:owner/name[:split], or - for
    standard input."""
    prompt_key: Annotated[str, Option(COST)] = "prompt"
    """Column or key that holds the prompt."""
    system: Annotated[str | None, Option(COST, "-s")] = None
    """System prompt of every row that has none of its own."""
    max_tokens: Annotated[int, Option(COST)] = Field(default=2048, ge=1, le=10_000_000)
    """Longest answer, in tokens; every answer is taken to be that long."""
    samples: Annotated[int, Option(COST)] = Field(default=1, ge=1)
    """Answers per prompt."""

    backend: Annotated[ApiBackend | None, Option(SERVER)] = None
    """Whose list: a provider or a server by name (default: openrouter; with --base-url: openai)."""
    base_url: Annotated[str | None, Option(SERVER, hidden=True, names="url")] = None
    """Any OpenAI-compatible server, up to and with /v1."""
    api_key_env: Annotated[str | None, Option(SERVER, hidden=True, names="key")] = Field(
        default=None, pattern=r"^[A-Z_][A-Z0-9_]*$"
    )
    """Name of the variable that holds the key, where the list needs one."""
    timeout: Annotated[float, Option(SERVER)] = Field(default=20, gt=0, le=600)
    """Seconds for one request."""

    @field_validator("base_url")
    @classmethod
    def _http_without_secrets(cls, value: str | None) -> str | None:
        return None if value is None else web_address(value)

    @model_validator(mode="after")
    def _only_where_it_is_known(self) -> "Teachers":
        if self.distillable and self.server != "openrouter":
            raise ValueError(f"--distillable: only OpenRouter knows what may be trained on, and this is {self.server}")
        return self

    @property
    def server(self) -> ApiBackend:
        """Whose list is read."""
        return self.backend or ("openai" if self.base_url else "openrouter")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TeacherListed(_Part):
    """One model. None stands for what the list does not say.

    context_tokens: prompt and answer together.   created: the day it was listed.
    tells_logprobs: of the tokens that it writes.   distillable: its author allows training on its text.
    cost_at_most_usd: of the answers to --input, when each is as long as it may be.
    """

    model: str
    prompt_usd_per_million: float | None
    completion_usd_per_million: float | None
    context_tokens: int | None
    created: str | None
    calls_tools: bool | None
    reasons: bool | None
    tells_logprobs: bool | None
    distillable: bool | None
    cost_at_most_usd: float | None = None


class Purpose(_Part):
    """What some teachers are good for. how: by what rule they were taken from the list."""

    name: str
    how: str
    models: list[str]


class TeachersFound(Result):
    """What the list said."""

    source: str
    read_at: str
    """When it was read, in UTC."""
    listed: int
    """Models in the list."""
    fitting: int
    """Of these, such as were asked for."""
    purposes: list[Purpose] = Field(default_factory=list[Purpose])
    teachers: list[TeacherListed]
    prompts: int | None = None
    """In --input; `bad_rows` could not be used."""
    bad_rows: int = 0
    prompt_tokens_estimate: int | None = None
    completion_tokens_at_most: int | None = None
    notes: list[str] = Field(default_factory=list[str])
    next: str

    def summary(self) -> str:
        lines = [f"{self.listed:,} models in {self.source}, read {self.read_at}"]
        for note in self.notes:
            lines += textwrap.wrap(f"  {note}", WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        return "\n".join([*lines, f"next: {self.next}"])

    def table(self) -> str:
        """What is shown: for each purpose its teachers, or all in one table."""
        by_name = {each.model: each for each in self.teachers}
        width = min(LONGEST_NAME, max((len(name) for name in by_name), default=5))
        cost = self.prompts is not None
        lines: list[str] = []
        if cost:
            lines += [
                f"{self.prompts:,} prompts, about {self.prompt_tokens_estimate:,} tokens in, "
                f"at most {self.completion_tokens_at_most:,} out; cost when every answer uses all its tokens",
                "",
            ]
        lines.append(_heading(width, cost))
        if not self.purposes:
            return "\n".join([*lines, *(_row(each, width, cost) for each in self.teachers)])
        for purpose in self.purposes:
            rule = f"{purpose.name}: {purpose.how}"
            lines += ["", *textwrap.wrap(rule, WIDTH, subsequent_indent="  ", break_on_hyphens=False)]
            lines += [_row(by_name[name], width, cost) for name in purpose.models]
        return "\n".join(lines)


def _heading(width: int, cost: bool) -> str:
    first = f"{'cost $':>8} " if cost else ""
    since = "" if cost else f"  {'since':<7}"
    return f"{'MODEL':<{width}} {first}{'$/M in':>8} {'$/M out':>8} {'context':>7}{since}  can"


def _row(each: TeacherListed, width: int, cost: bool) -> str:
    """A name that is too long stands on a line of its own: it is there to be copied."""
    abilities = {
        "tools": each.calls_tools,
        "think": each.reasons,
        "logp": each.tells_logprobs,
        "train": each.distillable,
    }
    can = " ".join(word for word, does in abilities.items() if does)
    name = each.model if len(each.model) <= width else f"{each.model}\n{'':<{width}}"
    first = f"{_usd(each.cost_at_most_usd):>8} " if cost else ""
    since = "" if cost else f"  {(each.created or '')[:7]:<7}"
    prices = f"{_usd(each.prompt_usd_per_million):>8} {_usd(each.completion_usd_per_million):>8}"
    return f"{name:<{width}} {first}{prices} {_short(each.context_tokens):>7}{since}  {can}".rstrip()


def _usd(value: float | None) -> str:
    """At least two digits of an amount, so that 0.0004 does not look free."""
    if value is None:
        return "?"
    return f"{value:.2f}" if value == 0 or value >= 0.1 else f"{value:.2g}" if value >= 0.0001 else "<0.0001"


def _short(tokens: int | None) -> str:
    if tokens is None:
        return "?"
    return f"{tokens / 1e6:.3g}M" if tokens >= 1_000_000 else f"{tokens // 1000}k" if tokens >= 1000 else str(tokens)
