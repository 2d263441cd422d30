"""Options and result of `generate_teacher_data`."""

import shlex
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from .base import Option, Result
from .teacher import LOCAL, MONEY, RUN, SAMPLING, TEACHER, TeacherOptions

INPUT, KEEP = "Input and output", "What to keep"
TRAIN = Path("train.jsonl")


class GenerateTeacherData(TeacherOptions):
    """Turn a file of prompts into SFT-ready rows with a teacher's answers.

    Rows are appended to --output as they finish. The same command again asks only for what is missing, so an
    interrupted or killed run is resumed by repeating it.
    """

    work: ClassVar[str] = "..generation.generate:generate"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/generate_teacher_data.py --input prompts.txt --dry-run",
        "python scripts/generate_teacher_data.py --input prompts.jsonl --model openai/gpt-5.2 --max-cost 5",
        "python scripts/generate_teacher_data.py --input prompts.csv --model my-model --base-url http://localhost:8000/v1",
        "python scripts/generate_teacher_data.py --input prompts.txt --model smollm2 --backend hf",
    )
    headings: ClassVar[tuple[str, ...]] = (INPUT, TEACHER, SAMPLING, RUN, MONEY, KEEP, LOCAL)

    input: Annotated[str, Option(INPUT, "-i", mcp="Prompts: a file or hf:owner/name.", names="data")]
    """Prompts: a .txt, .jsonl, .json, .csv or .parquet file, hf:owner/name[:split], or - for standard input."""
    output: Annotated[Path, Option(INPUT, "-o", mcp=True)] = TRAIN
    """File that the rows are appended to."""
    prompt_key: Annotated[str, Option(INPUT)] = "prompt"
    """Column or key that holds the prompt."""
    limit: Annotated[int | None, Option(INPUT, mcp=True)] = Field(default=None, ge=1)
    """Use only the first N prompts."""
    shard: Annotated[str | None, Option(INPUT)] = Field(default=None, pattern=r"^\d+/\d+$")
    """Do only part i of n, as i/n with i from 1: for several machines, each with its own --output."""
    dedupe: Annotated[bool, Option(INPUT)] = False
    """Ask only once for prompts that are equal (otherwise each occurrence is work of its own)."""
    overwrite: Annotated[bool, Option(INPUT)] = False
    """Start anew: an existing output is kept beside it as <output>.old."""

    max_tokens: Annotated[int, Option(SAMPLING, mcp=True)] = Field(default=2048, ge=1, le=10_000_000)
    """Longest answer, in tokens; reasoning counts."""
    temperature: Annotated[float, Option(SAMPLING, "-t")] = Field(default=0.7, ge=0, le=2)
    """Sampling temperature, 0 to 2."""
    samples: Annotated[int, Option(SAMPLING, mcp=True)] = Field(default=1, ge=1)
    """Answers per prompt; raising it later adds the missing ones."""

    keep_reasoning: Annotated[bool, Option(KEEP)] = False
    """Also put the reasoning into the assistant message, as reasoning_content (metadata.reasoning has it anyway)."""
    min_chars: Annotated[int, Option(KEEP)] = Field(default=0, ge=0)
    """Reject answers shorter than this many characters."""
    drop_truncated: Annotated[bool, Option(KEEP)] = True
    """Reject answers that --max-tokens cut off; --no-drop-truncated keeps them."""
    drop_refusals: Annotated[bool, Option(KEEP)] = False
    """Reject answers that refuse the task."""

    @field_validator("shard")
    @classmethod
    def _shard_in_range(cls, value: str | None) -> str | None:
        if value is not None:
            i, n = map(int, value.split("/"))
            if not 1 <= i <= n:
                raise ValueError(f"{value} is not i/n with 1 <= i <= n")
        return value

    @field_validator("output")
    @classmethod
    def _a_file(cls, value: Path) -> Path:
        if not value.name.strip():
            raise ValueError("this names no file")
        return value

    @property
    def shard_of(self) -> tuple[int, int]:
        """(i, n), i from 1; (1, 1) when the run is not sharded."""
        i, n = (self.shard or "1/1").split("/")
        return int(i), int(n)


class Plan(Result):
    """What `--dry-run` found. Token and money figures are estimates; `worst_case_usd` is a bound on the list price."""

    status: Literal["dry_run"] = "dry_run"  # pyright: ignore[reportIncompatibleVariableOverride]
    prompts: int
    bad_rows: int
    answers_wanted: int
    answers_there: int
    requests: int
    prompt_tokens_estimate: int
    completion_tokens_at_most: int
    price_usd_per_million: tuple[float, float] | None
    price_source: str
    worst_case_usd: float | None
    expected_usd: float | None = None
    """Cost when new answers are as long as those in the output; None when there are none yet."""
    credit_left_usd: float | None = None
    model: str
    backend: str

    def summary(self) -> str:
        price = (
            f"{self.price_usd_per_million[0]:g} / {self.price_usd_per_million[1]:g} USD per million prompt / "
            f"completion tokens ({self.price_source})"
            if self.price_usd_per_million
            else self.price_source
        )
        lines = [
            f"dry run: nothing was asked or paid. Teacher {self.model} through {self.backend}.",
            f"  prompts     {self.prompts:,}" + (f", and {self.bad_rows:,} unusable rows" if self.bad_rows else ""),
            f"  answers     {self.answers_wanted:,} wanted, {self.answers_there:,} there already, "
            f"{self.requests:,} requests to make",
            f"  tokens      about {self.prompt_tokens_estimate:,} in (4 characters each), "
            f"at most {self.completion_tokens_at_most:,} out",
            f"  price       {price}",
        ]
        if self.worst_case_usd is not None:
            lines.append(f"  cost        at most {self.worst_case_usd:.2f} USD, when every answer uses all its tokens")
        if self.expected_usd is not None:
            lines.append(
                f"              about {self.expected_usd:.2f} USD, when they are as long as those there already"
            )
        if self.credit_left_usd is not None:
            lines.append(f"  credit      {self.credit_left_usd:.2f} USD left on this key")
        bound = "" if self.worst_case_usd == 0 else " (add --max-cost to bound the spending)"
        lines.append(f"next: the same command without --dry-run{bound}")
        return "\n".join(lines)


class Generated(Result):
    """What a run added to its output."""

    output: Path
    model: str
    backend: str
    rows: int
    """Answers added by this run."""
    wanted: int
    """Answers to the given prompts and options in all."""
    rows_in_output: int
    """Answers to the given prompts and options in the output now."""
    failed: int
    rejected: int
    """Paid answers that the filters kept out (in <output>.rejected.jsonl; asked for only once)."""
    bad_rows: int
    remaining: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """What this run cost, failed attempts included; None when the teacher states no cost and no price is known."""
    maybe_billed: int
    """Attempts that ended without an answer and may have been billed all the same (timeouts, cut connections)."""
    maybe_billed_usd: float
    """Upper bound of what those cost, where a price is known."""
    seconds: float
    finish_reasons: dict[str, int]
    answer_tokens: dict[str, int]
    """Quantiles of the answers' length in tokens (of characters / 4 where the teacher counts none)."""
    failures: dict[str, int]
    advice: list[str]
    """One line per kind of failure: what happened and the next step."""

    def summary(self) -> str:
        cost = "unknown (the teacher states none)" if self.cost_usd is None else f"{self.cost_usd:.4f} USD"
        if self.maybe_billed:
            bound = f", for up to {self.maybe_billed_usd:.4f} USD" if self.maybe_billed_usd else ""
            cost += f"; {self.maybe_billed:,} attempts without an answer may be billed too{bound}"
        lines = [f"{self.output}: {self.rows:,} rows added in {self.seconds:.1f} s by {self.model}"]
        lines += [f"  complete    {self.rows_in_output:,} of {self.wanted:,}"]
        lines += [f"  tokens      {self.prompt_tokens:,} in, {self.completion_tokens:,} out", f"  cost        {cost}"]
        if self.finish_reasons:
            lines.append("  finish      " + ", ".join(f"{k} {n:,}" for k, n in self.finish_reasons.items()))
        if self.answer_tokens:
            lines.append("  length      " + ", ".join(f"{k} {n:,}" for k, n in self.answer_tokens.items()) + " tokens")
        if self.rejected:
            lines.append(f"  rejected    {self.rejected:,}, kept in {self.output}.rejected.jsonl")
        if self.failed:
            lines.append(f"  failed      {self.failed:,}, listed in {self.output}.failures.jsonl")
        lines += ["  " + line for line in self.advice]
        if self.stopped_because:
            lines.append(f"stopped: {self.stopped_because}")
        elif self.status == "interrupted":
            lines.append("interrupted: the same command goes on where it stopped")
        elif self.remaining:
            lines.append("next: the same command again asks only for what is missing")
        elif self.rows_in_output:
            rows = shlex.quote(str(self.output))
            lines.append(f"next: python scripts/show.py {rows}; python scripts/check_data.py {rows}{self._training()}")
        return "\n".join(lines)

    def _training(self) -> str:
        """What follows the check of rows to train on; those of another name may be a test set."""
        return " --fix clean.jsonl; train_sft.py trains on the rows that pass" if self.output.name == TRAIN.name else ""
