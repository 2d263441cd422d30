"""Options and result of `check_data`."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import ExitCode
from .base import Command, Option, Result
from .teacher import Backend, TeacherOptions, web_address

INPUT, CHECKS, TEACHER, JUDGE, MONEY, RESULT = (
    "Input",
    "Checks",
    "Teacher",
    "Judge",
    "Money and running",
    "Result and thresholds",
)

LEAST, MOST = ">=", "<="

MEASURES: dict[str, str] = {
    "schema": "rows that cannot be used, or whose turns are out of order",
    "empty": "rows without an answer, or with an empty one",
    "truncated": "answers that were cut off",
    "refusal": "answers that refuse the task",
    "other_language": "rows in another language than most, or than --language",
    "repetitive": "answers that repeat themselves",
    "personal": "rows with what looks like personal data: addresses of e-mail, numbers of phones, cards, accounts",
    "exact_duplicate": "rows that stood before, word for word",
    "near_duplicate": "rows much like one that stood before",
    "contaminated": "rows that share text with an item of the tasks that will be reported",
    "wrong_answer": "answers that are not the one that the row expects",
    "f1": "words that the teacher's new answer has in common with the row's (unigram F1)",
    "rouge_l": "the same in their order (ROUGE-L)",
    "top1_agreement": "tokens of the answers that are the scoring teacher's first choice",
    "judge_score": "the judge's grade, from 0 to 1",
    "judge_win": "rows whose answer the judge finds better than the teacher's new one, half of the ties included",
}
"""Every figure that may have a threshold -> what it is the share (or the mean) of."""

DEFAULT_REQUIREMENTS: dict[str, tuple[str, float]] = {
    "schema": (MOST, 0.0),
    "empty": (MOST, 0.0),
    "truncated": (MOST, 0.02),
    "refusal": (MOST, 0.02),
    "other_language": (MOST, 0.05),
    "repetitive": (MOST, 0.02),
    "personal": (MOST, 0.01),
    "exact_duplicate": (MOST, 0.01),
    "near_duplicate": (MOST, 0.05),
    "contaminated": (MOST, 0.0),
    "wrong_answer": (MOST, 0.05),
    "f1": (LEAST, 0.6),
}
"""What is asked of a file unless --require says otherwise; only of what was measured."""

REQUIREMENT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*")


class CheckData(Command):
    """Are these data any good? Every share with its interval, the rows at fault by line, and a file without them.

    Reads every kind of file that the other commands read and write. Exit code 1 when a threshold is missed. What asks a
    model (--teacher, --judge) takes only --samples rows, costs money with an API, and is off unless named.
    """

    work: ClassVar[str] = "..quality.check:check"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/check_data.py train.jsonl",
        "python scripts/check_data.py train.jsonl --tasks arc_easy,gsm8k --fix clean.jsonl",
        'python scripts/check_data.py combined_100.json --require "near_duplicate<=1%" --require "refusal<=0"',
        "python scripts/check_data.py train.jsonl --teacher qwen/qwen-2.5-72b-instruct --samples 100 --max-cost 1",
        "python scripts/check_data.py train.jsonl --teacher smollm2 --score --student student",
    )
    headings: ClassVar[tuple[str, ...]] = (INPUT, CHECKS, RESULT, TEACHER, JUDGE, MONEY)

    data: Annotated[str, Option(INPUT, positional=True, mcp="Rows: a file or hf:owner/name.", names="data")]
    """Rows: .jsonl, .json, .csv, .tsv, .parquet, .txt, hf:owner/name[:split], or - for standard input."""
    prompt_key: Annotated[str, Option(INPUT)] = "prompt"
    """Column or key that holds the prompt, where rows are no conversations."""
    limit: Annotated[int | None, Option(INPUT)] = Field(default=None, ge=1)
    """Use only the first N rows."""

    tasks: Annotated[list[str], Option(CHECKS, mcp="Benchmarks that must not be in the data.")] = Field(
        default_factory=list[str]
    )
    """Contamination: lm-eval's tasks (and suites of evaluate) that the student will be reported on."""
    against: Annotated[list[Path], Option(CHECKS, mcp="Files that must not be in the data.")] = Field(
        default_factory=list[Path]
    )
    """Contamination: files of prompts or texts that must not be trained on."""
    ngram: Annotated[int, Option(CHECKS)] = Field(default=13, ge=3, le=50)
    """Contamination: so many words in a row count as shared text; items with fewer must stand there as a whole."""
    near_duplicate: Annotated[float, Option(CHECKS)] = Field(default=0.8, gt=0, le=1)
    """Similarity (Jaccard, of word shingles) from which a row counts as a near duplicate."""
    language: Annotated[str | None, Option(CHECKS)] = Field(default=None, pattern=r"^(any|[a-z]{2,3}(,[a-z]{2,3})*)$")
    """Two letters of the languages that rows may have, as en,de (default: the one that most have); any: all."""
    match: Annotated[Literal["exact", "contains", "number"], Option(CHECKS)] = "contains"
    """How an answer is held against the expected_answer of its row."""
    tokenizer: Annotated[str | None, Option(CHECKS, names="model")] = None
    """Count lengths in this tokenizer's tokens too (a folder, a name on the Hub, smollm2)."""
    max_length: Annotated[int | None, Option(CHECKS)] = Field(default=None, ge=1)
    """With --tokenizer: longer rows count as truncated, because training would cut them."""

    require: Annotated[list[str], Option(RESULT, mcp="Thresholds, as near_duplicate<=1%.")] = Field(
        default_factory=list[str]
    )
    """A threshold, as near_duplicate<=1% or f1>=0.6; may be given several times. It takes the place of the default."""
    fix: Annotated[Path | None, Option(RESULT, mcp="Write the rows that pass to this .jsonl file.")] = None
    """Write the rows that pass to this .jsonl file, unchanged, and the others with their reasons beside it."""
    output_dir: Annotated[Path | None, Option(RESULT, "-o")] = None
    """Folder of the report (default: reports/ and the file's name)."""
    overwrite: Annotated[bool, Option(RESULT)] = False
    """Write over an existing --fix file."""

    teacher: Annotated[
        str | None, Option(TEACHER, mcp="Let this model answer some rows anew, and compare.", names="model")
    ] = None
    """Let this model answer --samples prompts once more, and compare: a name at a provider, a folder, a .gguf file,
    smollm2."""
    teacher_backend: Annotated[Backend | None, Option(TEACHER)] = None
    """How it is reached (default: from its name)."""
    teacher_base_url: Annotated[str | None, Option(TEACHER, hidden=True, names="url")] = None
    """Its server, up to and with /v1."""
    teacher_api_key_env: Annotated[str | None, Option(TEACHER, hidden=True, names="key")] = None
    """Name of the variable that holds its key."""
    teacher_tokenizer: Annotated[str | None, Option(TEACHER, names="model")] = None
    """Its tokenizer, where --score asks a server whose name for it says nothing to the Hub."""
    score: Annotated[bool, Option(TEACHER)] = False
    """Let the teacher also score the answers that are there: agreement and surprise per token (hf, gguf, vllm, sglang,
    together, fireworks)."""
    student: Annotated[str | None, Option(TEACHER, names="model")] = None
    """With --score: a Hugging Face model whose surprise is held against the teacher's: what there is to learn."""
    samples: Annotated[int, Option(TEACHER, mcp="Rows for teacher and judge.")] = Field(default=10, ge=1)
    """How many rows are shown to teacher and judge, drawn by --seed."""
    seed: Annotated[int, Option(TEACHER)] = Field(default=0, ge=0)
    """Which rows: the same seed takes the same ones."""
    max_new_tokens: Annotated[int, Option(TEACHER)] = Field(default=1024, ge=1)
    """Longest new answer of the teacher, in tokens."""

    judge: Annotated[str | None, Option(JUDGE, mcp="Model that grades answers.", names="model")] = None
    """A model that grades the answers by --rubric; with --teacher it also compares them with the new ones, in both
    orders."""
    judge_backend: Annotated[Backend | None, Option(JUDGE)] = None
    """How it is reached (default: from its name)."""
    judge_base_url: Annotated[str | None, Option(JUDGE, hidden=True, names="url")] = None
    """Its server, up to and with /v1."""
    judge_api_key_env: Annotated[str | None, Option(JUDGE, hidden=True, names="key")] = None
    """Name of the variable that holds its key."""
    judge_price: Annotated[str | None, Option(JUDGE)] = Field(default=None, pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")
    """USD per million prompt/completion tokens of the judge, where the provider lists no price."""
    rubric: Annotated[Path | None, Option(JUDGE)] = None
    """File with what counts, in words (default: correct, complete, clear)."""

    concurrency: Annotated[int, Option(MONEY)] = Field(default=5, ge=1)
    """Most requests in flight."""
    timeout: Annotated[float, Option(MONEY)] = Field(default=120, gt=0, le=86_400)
    """Seconds for one request."""
    retries: Annotated[int, Option(MONEY)] = Field(default=5, ge=0)
    """Further attempts after timeouts, 5xx and broken answers."""
    max_cost: Annotated[float | None, Option(MONEY, mcp="Most USD to spend.")] = Field(default=None, gt=0)
    """Most USD that teacher and judge may cost together."""
    teacher_price: Annotated[str | None, Option(MONEY)] = Field(default=None, pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")
    """USD per million prompt/completion tokens of the teacher, where the provider lists no price."""
    dry_run: Annotated[bool, Option(MONEY, mcp="Only say what teacher and judge would cost.")] = False
    """Say what teacher and judge would be asked and what that costs, and stop."""

    @field_validator("require")
    @classmethod
    def _requirements(cls, value: list[str]) -> list[str]:
        for text in value:
            found = REQUIREMENT.fullmatch(text)
            if not found:
                raise ValueError(f'"{text}" is no threshold such as near_duplicate<=1% or f1>=0.6')
            if found[1] not in MEASURES:
                raise ValueError(f'"{found[1]}" is not measured. There are: {", ".join(MEASURES)}')
        return value

    @field_validator("teacher_base_url", "judge_base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        return None if value is None else web_address(value)

    @model_validator(mode="after")
    def _options_that_need_another(self) -> "CheckData":
        if self.score and self.teacher is None:
            raise ValueError("--score needs --teacher")
        if self.student is not None and not self.score:
            raise ValueError("--student is for --score")
        if self.max_length is not None and self.tokenizer is None:
            raise ValueError("--max-length counts tokens: add --tokenizer")
        if self.dry_run and self.teacher is None and self.judge is None:
            raise ValueError("--dry-run: nothing is asked or paid without --teacher or --judge")
        if self.fix is not None and self.fix.suffix not in (".jsonl", ".ndjson"):
            raise ValueError(f"--fix {self.fix}: name a .jsonl file")
        return self

    @property
    def requirements(self) -> dict[str, tuple[str, float]]:
        """Measure -> ("<=" or ">=", bound); a requirement of the user's takes the place of the default."""
        found = dict(DEFAULT_REQUIREMENTS)
        for text in self.require:
            parts = REQUIREMENT.fullmatch(text)
            assert parts is not None
            found[parts[1]] = (parts[2], float(parts[3]) / (100 if parts[4] else 1))
        return found

    def teaching(self) -> TeacherOptions:
        """The teacher as other commands name theirs."""
        assert self.teacher is not None
        return TeacherOptions(
            model=self.teacher,
            backend=self.teacher_backend,
            base_url=self.teacher_base_url,
            api_key_env=self.teacher_api_key_env,
            price=self.teacher_price,
            **self._shared,
        )

    def judging(self) -> TeacherOptions:
        """The judge as other commands name their teacher."""
        assert self.judge is not None
        return TeacherOptions(
            model=self.judge,
            backend=self.judge_backend,
            base_url=self.judge_base_url,
            api_key_env=self.judge_api_key_env,
            price=self.judge_price,
            **self._shared,
        )

    @property
    def _shared(self) -> dict[str, Any]:
        names = ("concurrency", "timeout", "retries", "max_cost", "dry_run")
        return {name: getattr(self, name) for name in names}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Measured(_Part):
    """A figure of the file. kind: a share of rows (Wilson's interval), or a mean (bootstrap, t).

    required: its threshold, as "<= 0.02"; None where there is none.   passed: None without a threshold.
    certain: whether the whole interval is on that side.
    """

    name: str
    kind: Literal["share", "mean"]
    value: float
    low: float
    high: float
    count: int | None = None
    """Of a share: rows that have it."""
    of: int
    """Rows that it was measured on."""
    required: str | None = None
    passed: bool | None = None
    certain: bool | None = None

    @property
    def bound(self) -> tuple[str, float] | None:
        """("<=" or ">=", threshold), where there is one."""
        if self.required is None:
            return None
        side, _, number = self.required.partition(" ")
        return side, float(number)


class CheckPlan(Result):
    """What `--dry-run` found: what teacher and judge would be asked, and at most what that costs.

    worst_case_usd: None where a price is not known.   unpriced: the options that would name it.
    """

    status: Literal["dry_run"] = "dry_run"  # pyright: ignore[reportIncompatibleVariableOverride]
    rows: int
    requests: int
    worst_case_usd: float | None
    unpriced: list[str]
    lines: list[str]

    def summary(self) -> str:
        cost = f"unknown (see {', '.join(self.unpriced)})"
        if self.worst_case_usd is not None:
            cost = f"at most {self.worst_case_usd:.2f} USD"
        return "\n".join(
            [
                f"dry run: nothing was asked or paid. {self.rows:,} rows, {self.requests:,} requests.",
                *(f"  {line}" for line in self.lines),
                f"  cost        {cost}",
                "next: the same command without --dry-run",
            ]
        )


class Checked(Result):
    """What was found in a file. Exit code 1: a threshold was missed (status "some_failed")."""

    data: str
    rows: int
    measured: list[Measured]
    report: Path
    fixed: Path | None = None
    kept: int | None = None
    dropped: int | None = None
    cost_usd: float | None = None
    notes: list[str] = Field(default_factory=list[str])

    @property
    def exit_code(self) -> ExitCode:
        missed = any(one.passed is False for one in self.measured)
        return ExitCode.SOME_FAILED if self.status == "done" and missed else super().exit_code

    def summary(self) -> str:
        lines = [f"{self.data}: {self.rows:,} rows"]
        for one in self.measured:
            mark = {None: " ", True: "+", False: "!"}[one.passed]
            share = f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}]"
            count = f"{one.count:,} of {one.of:,}" if one.count is not None else f"mean of {one.of:,}"
            needed = f"  wanted {one.bound[0]} {100 * one.bound[1]:g}%" if one.bound is not None else ""
            unsure = ", not certain" if one.certain is False else ""
            lines.append(f"{mark} {one.name:<16} {share:<24} {count}{needed}{unsure}")
        lines += [f"  {note}" for note in self.notes]
        if self.fixed is not None:
            lines.append(f"  {self.fixed}: {self.kept:,} rows that pass; {self.dropped:,} others beside it")
        lines.append(f"  report      {self.report / 'report.html'}")
        missed = [one.name for one in self.measured if one.passed is False]
        if self.stopped_because:
            lines.append(f"stopped: {self.stopped_because}")
        elif missed:
            fix = "" if self.fixed else "; --fix out.jsonl writes a file without the rows at fault"
            lines.append(f"not good enough: {', '.join(missed)}{fix}")
        else:
            lines.append("good: every threshold is met")
        return "\n".join(lines)
