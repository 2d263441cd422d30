"""Options and result of `show`."""

import re
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .base import Command, Option, Result

INPUT, WHICH, HOW = "Input", "Which rows", "How they are shown"

ON_A_TERMINAL, ON_A_PAGE = 5, 500
"""How many are shown when --limit does not say."""


class Show(Command):
    """Look at rows and rollouts as a person would: conversations with roles, tool calls and results folded.

    Nothing in a row or a rollout is executed, and nothing is changed: not on a terminal, not in the HTML page.
    """

    work: ClassVar[str] = "..show.show:show"
    as_job: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/show.py rollouts",
        "python scripts/show.py rollouts --failed --html failed.html",
        "python scripts/show.py train.jsonl --index 0,10-12,-1 --full",
        'python scripts/show.py train.jsonl --search "final answer" --sample 3 --seed 1',
    )

    path: Annotated[Path, Option(INPUT, positional=True)]
    """Folder with rollouts, one rollout, or a file of rows: .jsonl, .json, .csv, .tsv, .parquet, .txt, .md."""

    index: Annotated[str | None, Option(WHICH, "-e")] = None
    """Only these, counted from 0: 3 or 0,2,5 or 10-19; -1 is the last one."""
    failed: Annotated[bool, Option(WHICH)] = False
    """Only what failed: errors, interruptions, no success, no reward, unreadable."""
    search: Annotated[str | None, Option(WHICH, "-s")] = Field(default=None, min_length=1)
    """Only what holds this text, in any case of letters; the places are marked."""
    sample: Annotated[int | None, Option(WHICH)] = Field(default=None, ge=1)
    """N of them at random."""
    seed: Annotated[int, Option(WHICH)] = Field(default=0, ge=0)
    """Which random ones: the same seed gives the same sample."""
    limit: Annotated[int | None, Option(WHICH, "-n")] = Field(default=None, ge=1)
    """Show at most this many (default: 5 on the terminal, 500 on a page; with --index or --sample: all of them)."""

    full: Annotated[bool, Option(HOW)] = False
    """Fold nothing: whole tool results, reasoning and tool schemas."""
    html: Annotated[Path | None, Option(HOW)] = None
    """Write one HTML file that needs no network, instead of showing them here."""
    overview: Annotated[bool, Option(HOW)] = True
    """Begin with counts over the whole input; --no-overview stops reading when enough is found."""
    color: Annotated[bool | None, Option(HOW)] = None
    """Colours, also into a pipe; --no-color: never (default: on a terminal, unless NO_COLOR is set)."""
    width: Annotated[int | None, Option(HOW)] = Field(default=None, ge=40, le=1000)
    """Columns of text (default: as wide as the terminal, at most 110)."""

    @field_validator("index")
    @classmethod
    def _indexes(cls, value: str | None) -> str | None:
        if value is not None:
            for part in value.split(","):
                match = re.fullmatch(r"\s*(?:(-?\d{1,18})|(\d{1,18})-(\d{1,18}))\s*", part)
                if not match:
                    raise ValueError(f'"{part.strip()}" is no index: 3, 10-19 or -1')
                if match[2] and int(match[3]) < int(match[2]):
                    raise ValueError(f"{part.strip()} ends before it begins")
        return value

    @field_validator("html")
    @classmethod
    def _a_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.name.strip():
            raise ValueError("this names no file")
        return value

    @model_validator(mode="after")
    def _one_choice(self) -> "Show":
        if self.index is not None and self.sample is not None:
            raise ValueError("--index and --sample are two ways to choose: give one of them")
        return self

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The indexes as (first, last), both included; negative ones count from the end."""
        found: list[tuple[int, int]] = []
        for part in (self.index or "").replace(" ", "").split(","):
            if part:
                at = part.find("-", 1)
                found.append((int(part), int(part)) if at < 0 else (int(part[:at]), int(part[at + 1 :])))
        return found

    @property
    def most(self) -> int:
        """How many are shown at most."""
        if self.limit is not None:
            return self.limit
        if self.html is not None:
            return ON_A_PAGE
        if self.sample is not None:
            return self.sample
        return ON_A_TERMINAL if self.index is None else ON_A_PAGE


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ToolUse(_Part):
    """How often a tool was called, and how often it answered with an error."""

    calls: int = 0
    errors: int = 0


class Success(_Part):
    """How many of those that can be judged were a success; low and high: 95 % interval of the rate (Wilson)."""

    successes: int
    judged: int
    low: float
    high: float


class Unreadable(_Part):
    """A file or row that cannot be shown, and why, as printable text."""

    place: str
    reason: str


class Overview(_Part):
    """Counts over all that was read."""

    kind: str
    """What the input holds: "rollouts", "rollout", "rows" or "object"."""
    entries: int = 0
    """Rollouts or rows, without the unreadable ones."""
    whole: bool = True
    """False when reading stopped before the end of the input."""
    unreadable: int = 0
    unreadable_examples: list[Unreadable] = Field(default_factory=list[Unreadable])
    """The first of them."""
    roles: dict[str, int] = Field(default_factory=dict[str, int])
    verdicts: dict[str, int] = Field(default_factory=dict[str, int])
    """success, failed, error, interrupted or rejected, where a row says so."""
    success: Success | None = None
    truncated: int = 0
    tools: dict[str, ToolUse] = Field(default_factory=dict[str, ToolUse])
    """By name; the most used first."""
    mean_turns: float | None = None
    """Assistant messages, of those that have a conversation."""
    most_turns: int = 0
    mean_tokens: float | None = None
    """Of those that state a count."""
    teachers: dict[str, int] = Field(default_factory=dict[str, int])


class Picked(_Part):
    """One of those that were shown."""

    index: int
    place: str
    title: str
    verdict: str | None


class Shown(Result):
    """What was read and shown."""

    path: Path
    overview: Overview
    matching: int
    """How many fit --index, --failed and --search."""
    shown: list[Picked]
    notes: list[str] = Field(default_factory=list[str])
    html: Path | None = None
    html_bytes: int | None = None

    def summary(self) -> str:
        noun = "rows" if self.overview.kind == "rows" else "rollouts"
        read = self.overview.entries + self.overview.unreadable
        lines = [*self.notes]
        at_least = "" if self.overview.whole else "at least "
        if self.overview.kind in ("rollouts", "rows"):
            lines.append(f"{len(self.shown):,} of {at_least}{self.matching:,} chosen {noun} shown ({read:,} read)")
        if self.matching > len(self.shown) and self.overview.whole:
            lines.append(
                f"{self.matching - len(self.shown):,} not shown: --limit N shows more, --index and --sample others"
            )
        if self.overview.unreadable:
            lines.append(f"{self.overview.unreadable:,} unreadable:")
            lines += [f"  {bad.place}: {bad.reason}" for bad in self.overview.unreadable_examples]
            if self.overview.unreadable > len(self.overview.unreadable_examples):
                lines.append(f"  and {self.overview.unreadable - len(self.overview.unreadable_examples):,} more")
        if self.stopped_because:
            lines.append(f"stopped: {self.stopped_because}")
        if self.html is not None:
            lines.append(f"{self.html}: {(self.html_bytes or 0) / 1e6:.2f} MB. Open it in a browser.")
        return "\n".join(lines)
