"""What a check of a file finds, in the form that its report.json has: every figure, how sure it is, and examples."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..commands.check_data import Measured

SCHEMA = 1
"""Of report.json; goes up when an older reader would misread it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Example(_Part):
    """A row at fault. place: file and line.   why: in words, without personal data.   text: the beginning of what it is
    about.   like: place of the row or item that it is much like."""

    place: str
    why: str
    text: str
    like: str | None = None


class Lengths(_Part):
    """How long something is over all rows. quantiles: "min", "25%", "median", "75%", "90%", "max".
    edges, counts: a histogram; counts has one entry less than edges."""

    what: str
    unit: str
    quantiles: dict[str, float]
    edges: list[float]
    counts: list[int]


class ShownRow(_Part):
    """A row that was shown to a model: what came of it. Figures that were not measured are None."""

    place: str
    prompt: str
    answer: str
    new_answer: str | None = None
    """The teacher's; None where it gave none."""
    f1: float | None = None
    rouge_l: float | None = None
    tokens: int | None = None
    """Of the answer, as the teacher reads it."""
    top1: int | None = None
    """Of them, those that are its first choice."""
    teacher_nats: float | None = None
    """Surprise of the whole answer in nats, its end of turn included: -sum log p of its tokens."""
    student_nats: float | None = None
    bytes: int | None = None
    """Of the answer in UTF-8, and one for the end of its turn: what the two can be compared by."""
    judge_score: float | None = None
    """0 to 1."""
    judge_choice: float | None = None
    """1: the answer that was there, 0: the teacher's new one, 0.5: a tie, or the order decided."""
    notes: list[str] = Field(default_factory=list[str])


class Model(_Part):
    """A model that was asked. role: teacher, judge, student."""

    role: str
    name: str
    backend: str
    requests: int = 0
    cached: int = 0
    """Of them, answered from the folder of the report."""
    usd: float | None = None
    """US dollars that its answers of this run cost; None where that is not known."""


class DataReport(_Part):
    """A file, looked at.

    measured: shares and means with their intervals and thresholds.   examples: by measure.   left_out: places that no
    check could read, with the reason.   contamination: task or file -> (its items, items that stand in the data).
    learnability: mean surprise in nats per byte of teacher and student, and their gap (see Measured), where scored.
    headline: what a reader must know, in whole sentences.
    """

    schema_version: int = SCHEMA
    name: str
    data: str
    rows: int
    made: str
    """When, and by which version."""
    headline: list[str]
    measured: list[Measured]
    learnability: list[Measured] = Field(default_factory=list[Measured])
    examples: dict[str, list[Example]] = Field(default_factory=dict[str, list[Example]])
    lengths: list[Lengths] = Field(default_factory=list[Lengths])
    languages: dict[str, int] = Field(default_factory=dict[str, int])
    kinds: dict[str, dict[str, int]] = Field(default_factory=dict[str, dict[str, int]])
    """Key of metadata with few values (dataset_type, task_type, difficulty, teacher, ...) -> value -> rows."""
    distinct: dict[str, float] = Field(default_factory=dict[str, float])
    """distinct-1, distinct-2 of prompts and answers."""
    contamination: dict[str, tuple[int, int]] = Field(default_factory=dict[str, tuple[int, int]])
    shown: list[ShownRow] = Field(default_factory=list[ShownRow])
    models: list[Model] = Field(default_factory=list[Model])
    notes: list[str] = Field(default_factory=list[str])
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    plots: list[str] = Field(default_factory=list[str])
