"""Options and result of `generate_synthetic`."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .base import Option, Result
from .teacher import LOCAL, MONEY, RUN, SAMPLING, TEACHER, Backend, TeacherOptions, web_address

WHAT, KEEP, VALIDATION = "What is made", "What is kept", "Validation"

RecordType = Literal["reasoning", "dialogue", "instruction"]
TYPES: tuple[RecordType, ...] = ("reasoning", "dialogue", "instruction")
DEFAULT_MIX = (50, 20, 30)
"""Shares of TYPES, in per cent."""

DEFAULT_MODELS = {
    "openai": ("gpt-4o-mini", "gpt-4o"),
    "nvidia": ("nvidia/nvidia-nemotron-nano-9b-v2", "nvidia/llama-3.3-nemotron-super-49b-v1.5"),
    "nemo": ("nvidia/nvidia-nemotron-nano-9b-v2", "nvidia/llama-3.3-nemotron-super-49b-v1.5"),
    "openrouter": ("anthropic/claude-sonnet-4", "anthropic/claude-sonnet-4"),
}
"""By back end: who writes questions, who answers, where neither is named."""

THINKING = {"max_tokens": 4096, "question_max_tokens": 2048}
"""Defaults with NVIDIA's models, which think before they answer."""


class GenerateSynthetic(TeacherOptions):
    """Make training data from nothing but a domain: reasoning, dialogues, instructions, with answers that are checked.

    One model writes questions, another (or the same) answers them. What the questions are about is drawn evenly from
    the domain's file; near duplicates, refusals, other languages and wrong results are not kept. Everything that was
    paid is kept in OUTPUT_DIR: the same command again asks only for what is missing.
    """

    work: ClassVar[str] = "..synthetic.generate:generate"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/generate_synthetic.py --num-records 100 --backend openai --output-dir synthetic_datasets "
        "--dry-run --price 2.5/10 --question-price 0.15/0.6",
        "python scripts/generate_synthetic.py --num-records 1000 --domain finance --model qwen/qwen-2.5-72b-instruct "
        "--max-cost 5",
        "python scripts/generate_synthetic.py --domain my_domain.yml --documents handbook --model my-model "
        "--base-url http://localhost:8000/v1",
        "python scripts/generate_synthetic.py --skip-generation --validate --validate-samples 10",
    )
    headings: ClassVar[tuple[str, ...]] = (WHAT, TEACHER, SAMPLING, KEEP, RUN, MONEY, VALIDATION, LOCAL)

    num_records: Annotated[int, Option(WHAT, "-n", mcp=True)] = Field(default=100, ge=1, le=10_000_000)
    """How many records; raising it later adds the missing ones."""
    output_dir: Annotated[Path, Option(WHAT, "-o", mcp="Folder of the data set.")] = Path("synthetic_datasets")
    """Folder of the data set: train.jsonl, combined_N.json, combined_N.csv, a CSV for each type, README.md."""
    domain: Annotated[
        str,
        Option(
            WHAT,
            mcp="general, customer_support, medical, legal, finance, coding, education, ecommerce, or a .yml file.",
            names="file",
        ),
    ] = "general"
    """A preset (general, customer_support, medical, legal, finance, coding, education, ecommerce), or a .yml file."""
    documents: Annotated[Path | None, Option(WHAT, mcp="Folder of texts that the questions are about.")] = None
    """Folder (or file) of .txt, .md and .jsonl texts that the questions are about; each record keeps its passage."""
    mix: Annotated[str | None, Option(WHAT)] = Field(default=None, pattern=r"^\d{1,4}/\d{1,4}/\d{1,4}$")
    """Shares of reasoning/dialogue/instruction (default: the domain's, else 50/20/30)."""
    overwrite: Annotated[bool, Option(WHAT)] = False
    """Start anew: an existing output is kept beside it as <output-dir>.old."""

    backend: Annotated[
        Backend | Literal["nemo"] | None, Option(TEACHER, mcp="By default from the model's name; openai without one.")
    ] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """How the models are reached (default: from --model's name; openai where no model is named). nemo: NVIDIA's
    data-designer, which asks any OpenAI-compatible API, NVIDIA's by default."""
    model: Annotated[
        str, Option(TEACHER, "-m", mcp="Who answers (default: the backend's own choice).", names="model")
    ] = ""
    """Who answers: a name at the provider, a folder, a .gguf file, smollm2 (default: openai gpt-4o, nvidia
    llama-3.3-nemotron-super, openrouter anthropic/claude-sonnet-4)."""
    question_model: Annotated[
        str | None, Option(TEACHER, mcp="Who writes the questions (default: model).", names="model")
    ] = None
    """Who writes the questions (default: --model; where that is not given either: openai gpt-4o-mini, nvidia
    nemotron-nano)."""
    question_backend: Annotated[Backend | None, Option(TEACHER)] = None
    """How --question-model is reached (default: as --model)."""
    question_base_url: Annotated[str | None, Option(TEACHER, hidden=True, names="url")] = None
    """The server of --question-model (default: as --model)."""

    max_tokens: Annotated[int, Option(SAMPLING)] = Field(default=1024, ge=1, le=10_000_000)
    """Longest answer, in tokens; reasoning counts (4096 with the models that --backend nvidia and nemo take by
    default)."""
    question_max_tokens: Annotated[int, Option(SAMPLING)] = Field(default=512, ge=1, le=10_000_000)
    """Longest question, in tokens; reasoning counts (2048 with these models)."""
    temperature: Annotated[float, Option(SAMPLING, "-t")] = Field(default=0.7, ge=0, le=2)
    """Sampling temperature of answers."""
    question_temperature: Annotated[float, Option(SAMPLING)] = Field(default=0.8, ge=0, le=2)
    """Sampling temperature of questions. Small models want less (0.6), large ones bear 1."""
    seed: Annotated[int | None, Option(SAMPLING)] = Field(default=0, ge=0, le=2**63 - 1)
    """What is asked about, and in which words: the same seed gives the same prompts, and from local models the same
    answers."""

    language: Annotated[str | None, Option(KEEP)] = Field(default=None, pattern=r"^(any|[a-z]{2,3})$")
    """Two letters of the language that is asked for and kept (default: the domain's, else en); any: all languages."""
    near_duplicate: Annotated[float, Option(KEEP)] = Field(default=0.7, gt=0, le=1)
    """Similarity (Jaccard, of word shingles) from which a question counts as there already; 1: only equal ones."""
    drop_refusals: Annotated[bool, Option(KEEP)] = True
    """Keep no answers that refuse the task; --no-drop-refusals takes them in without asking again."""
    tries: Annotated[int, Option(KEEP)] = Field(default=5, ge=1, le=100)
    """Drafts of a record before it is given up."""
    patience: Annotated[int, Option(KEEP)] = Field(default=50, ge=1)
    """Stop when so many drafts in a row gave nothing new."""

    price: Annotated[str | None, Option(MONEY)] = Field(default=None, pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")
    """USD per million prompt/completion tokens of --model, as 3/15, where the provider lists no price."""
    question_price: Annotated[str | None, Option(MONEY)] = Field(default=None, pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")
    """The same for --question-model."""

    skip_generation: Annotated[bool, Option(VALIDATION)] = False
    """Make nothing; with --validate look at what is there."""
    validate_: Annotated[bool, Option(VALIDATION)] = False
    """Let --model answer some questions once more, and say how far its words overlap with the answers that are
    there."""
    validate_samples: Annotated[int, Option(VALIDATION)] = Field(default=10, ge=1)
    """How many. 10 tell little: the interval says how little."""

    @model_validator(mode="before")
    @classmethod
    def _models_of_the_back_end(cls, given: Any) -> Any:
        """Fills in --backend, --model and --question-model."""
        if not isinstance(given, dict) or given.get("model"):
            return given
        found = dict(given)
        backend = found.get("backend") or "openai"
        question, answer = DEFAULT_MODELS.get(backend, (None, None))
        if answer is None or (found.get("base_url") and not found.get("backend")):
            where = found.get("base_url") or f"--backend {backend}"
            raise ValueError(f"--model: which one? {where} has no model that is taken by default")
        found["backend"], found["model"] = backend, answer
        if backend in ("nvidia", "nemo"):
            found = {**THINKING, **found}
        found["question_model"] = found.get("question_model") or question
        return found

    @field_validator("mix")
    @classmethod
    def _some_share(cls, value: str | None) -> str | None:
        if value is not None and not any(map(int, value.split("/"))):
            raise ValueError("at least one share must be more than 0")
        return value

    @field_validator("question_base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        return None if value is None else web_address(value)

    @model_validator(mode="after")
    def _something_to_do(self) -> "GenerateSynthetic":
        if self.question_price is not None and self.asking() == self.answering():
            raise ValueError("--question-price is for another --question-model; one model has one --price")
        if self.skip_generation and not self.validate_:
            raise ValueError("--skip-generation leaves nothing to do: add --validate")
        return self

    def answering(self) -> TeacherOptions:
        """Who answers, for `open_teacher`. --backend nemo means NVIDIA's API, where something is asked directly.

        Without a seed: it is for what is asked, and a provider that knows no seeds need not be avoided.
        """
        shared = {name: getattr(self, name) for name in TeacherOptions.model_fields} | {"seed": None}
        backend = "nvidia" if self.backend == "nemo" and self.base_url is None else self.backend
        return TeacherOptions(**{**shared, "backend": "openai" if backend == "nemo" else backend})

    def asking(self) -> TeacherOptions:
        """Who writes the questions. Equal to `answering()` where it is the same model at the same place."""
        same = self.answering()
        if self.question_model is None and self.question_backend is None and self.question_base_url is None:
            return same
        elsewhere = self.question_backend is not None or self.question_base_url is not None
        model = self.question_model or self.model
        mine = {
            "model": model,
            "backend": self.question_backend if elsewhere else same.backend,
            "base_url": self.question_base_url if elsewhere else same.base_url,
            "api_key_env": None if elsewhere else same.api_key_env,
            "price": self.question_price or (self.price if model == self.model and not elsewhere else None),
        }
        return same.model_copy(update=mine)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ask(_Part):
    """What one of the models is asked for, at most. tokens: estimates; prices in USD per million, None: unknown."""

    model: str
    backend: str
    role: Literal["questions", "answers", "reviews"]
    requests: int
    prompt_tokens_estimate: int
    completion_tokens_at_most: int
    price_usd_per_million: tuple[float, float] | None
    price_source: str
    worst_case_usd: float | None


class SyntheticPlan(Result):
    """What `--dry-run` found: what would be asked when every draft is good, and at most what that costs."""

    status: Literal["dry_run"] = "dry_run"  # pyright: ignore[reportIncompatibleVariableOverride]
    domain: str
    records: dict[RecordType, int]
    """Wanted, by type."""
    there: int
    asks: list[Ask]
    worst_case_usd: float | None
    """Of all, when no draft has to be repeated and every answer takes all its tokens; the prompts' tokens are
    estimated. None where a price is unknown."""
    worst_case_with_tries_usd: float | None
    """The same when every record takes all its --tries."""
    example: list[dict[str, str]]
    """The first prompt that the question model would get, as messages."""
    notes: list[str] = Field(default_factory=list[str])

    def summary(self) -> str:
        wanted = ", ".join(f"{count:,} {name}" for name, count in self.records.items())
        lines = [
            f"dry run: nothing was asked or paid. Domain {self.domain}.",
            f"  records     {wanted}; {self.there:,} there already",
        ]
        for ask in self.asks:
            price = (
                f"{ask.price_usd_per_million[0]:g} / {ask.price_usd_per_million[1]:g} USD per million "
                f"({ask.price_source})"
                if ask.price_usd_per_million
                else ask.price_source
            )
            lines.append(
                f"  {ask.role:<11} {ask.requests:,} requests to {ask.model} ({ask.backend}), about "
                f"{ask.prompt_tokens_estimate:,} tokens in, at most {ask.completion_tokens_at_most:,} out; {price}"
            )
        if self.worst_case_usd is not None:
            lines.append(
                f"  cost        up to about {self.worst_case_usd:.2f} USD when every draft is kept, "
                f"{self.worst_case_with_tries_usd or 0:.2f} USD when each record takes all its --tries"
            )
        lines += [f"  {note}" for note in self.notes]
        if self.example:
            lines += ["  the first prompt:", *(f"    {line}" for one in self.example for line in _shown(one))]
        bound = "" if self.worst_case_usd == 0 else " (add --max-cost to bound the spending)"
        lines.append(f"next: the same command without --dry-run{bound}")
        return "\n".join(lines)


def _shown(message: dict[str, str]) -> list[str]:
    return [f"[{message['role']}]", *message["content"].splitlines()]


class Overlap(_Part):
    """How far new answers of the teacher overlap with those that are there: means over rows, 95 % intervals."""

    rows: int
    f1: float
    f1_low: float
    f1_high: float
    rouge_l: float
    rouge_l_low: float
    rouge_l_high: float
    failed: int = 0
    """Rows that got no new answer."""
    cost_usd: float | None = None

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"  overlap     unigram F1 {self.f1:.0%} [{self.f1_low:.0%}, {self.f1_high:.0%}], ROUGE-L "
            f"{self.rouge_l:.0%} [{self.rouge_l_low:.0%}, {self.rouge_l_high:.0%}] over {self.rows:,} rows "
            "(95 % intervals; above 60 % is good, but two right answers may share few words)",
            *([f"              {self.failed:,} rows got no new answer"] if self.failed else []),
        ]


class Synthesized(Result):
    """What is in the data set now, and what this run added."""

    output_dir: Path
    domain: str
    records: int
    """In the data set now."""
    wanted: int
    added: int
    """By this run."""
    by_type: dict[str, int] = Field(default_factory=dict[str, int])
    drafts: int = 0
    """Of this run, kept or not."""
    given_up: int = 0
    """Slots that have had all their --tries."""
    rejected: dict[str, int] = Field(default_factory=dict[str, int])
    """Drafts that were not kept, over all runs of this data set, by reason."""
    failures: dict[str, int] = Field(default_factory=dict[str, int])
    """Requests that gave no answer, by reason."""
    balance: dict[str, float] = Field(default_factory=dict[str, float])
    """Of each attribute: entropy of what it is drawn from over the largest possible, 1 for perfectly even."""
    distinct_2: float | None = None
    """Share of different word pairs among all in the questions."""
    question_model: str = ""
    answer_model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    """What this run cost; None where it is unknown."""
    maybe_billed: int = 0
    maybe_billed_usd: float = 0.0
    seconds: float = 0.0
    files: list[str] = Field(default_factory=list[str])
    advice: list[str] = Field(default_factory=list[str])
    overlap: Overlap | None = None

    def summary(self) -> str:
        lines = [f"{self.output_dir}: {self.records:,} of {self.wanted:,} records ({self.added:,} new)"]
        if self.by_type:
            lines.append("  types       " + ", ".join(f"{count:,} {name}" for name, count in self.by_type.items()))
        if self.drafts:
            cost = "unknown (no price is known)" if self.cost_usd is None else f"{self.cost_usd:.4f} USD"
            if self.maybe_billed:
                cost += f"; {self.maybe_billed:,} attempts without an answer may be billed too"
                cost += f", for up to {self.maybe_billed_usd:.4f} USD" if self.maybe_billed_usd else ""
            lines += [
                f"  drafts      {self.drafts:,} in {self.seconds:.1f} s, by {self.question_model} and "
                f"{self.answer_model}",
                f"  tokens      {self.prompt_tokens:,} in, {self.completion_tokens:,} out",
                f"  cost        {cost}",
            ]
        if self.rejected:
            lines.append("  not kept    " + ", ".join(f"{count:,} {name}" for name, count in self.rejected.items()))
        if self.balance:
            evenness = ", ".join(f"{name} {value:.2f}" for name, value in self.balance.items())
            lines.append(f"  balance     {evenness} (1: even)")
        if self.distinct_2 is not None:
            lines.append(f"  distinct-2  {self.distinct_2:.2f} of the questions")
        if self.overlap:
            lines += self.overlap.lines()
        if self.files:
            lines.append("  files       " + ", ".join(self.files))
        lines += ["  " + line for line in self.advice]
        if self.stopped_because:
            lines.append(f"stopped: {self.stopped_because}")
        elif self.status == "interrupted":
            lines.append("interrupted: the same command goes on where it stopped")
        elif self.records + self.given_up < self.wanted:
            lines.append("next: the same command again asks only for what is missing")
        elif self.records:
            rows, whole = self.output_dir / "train.jsonl", self.output_dir / f"combined_{self.records}.json"
            lines.append(f"next: python scripts/check_data.py {quote(str(rows))}; train_gold.py -d {quote(str(whole))}")
        return "\n".join(lines)
